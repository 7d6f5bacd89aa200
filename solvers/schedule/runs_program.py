"""The least traffic of one sequence of runs with options, by an integer program.

y[a, k] = 1 if tensor a is dropped in its gap k; w[a] = 1 if activation a is ever stored for that; o[t, b, a] = 1 if
output b lies in place of input a at step t; p[a, t] = 1 if a is bypassed there.

    min Σ s_a y[a, k] + Σ s_a w[a]          over the gaps that end in a reading; those that end in a making cost nothing
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from peakline.solvers.bounds import grain
from peakline.solvers.dag import Dag
from peakline.solvers.schedule.gap_program import chosen, minimised, solver_available
from peakline.solvers.schedule.runs import Runs, events

__all__ = ["best_runs", "fits"]


def best_runs(dag: Dag, order: Sequence[int], capacity: int, allow: Sequence[str], *, time_limit: float) -> Runs | None:
    """What to drop, bypass and lay in place in this sequence, by PuLP and HiGHS; None without solver or answer."""
    if not solver_available() or time_limit <= 0:
        return None
    return _Model(dag, order, capacity, allow).solve(time_limit)


class _Model:
    """The integer program of one sequence."""

    def __init__(self, dag: Dag, order: Sequence[int], capacity: int, allow: Sequence[str]) -> None:
        pulp = self.pulp = import_module("pulp")
        self.dag, self.order, self.capacity, self.unit = dag, tuple(order), capacity, grain(dag)
        self.events = events(dag, order)
        self.number = {(a, t): k for a, listed in enumerate(self.events) for k, (t, _) in enumerate(listed)}
        self.drop = {
            (a, k): pulp.LpVariable(f"y_{a}_{k}", cat="Binary")
            for a, listed in enumerate(self.events)
            for k in range(len(listed) - 1)
            if not listed[k + 1][1]
        }
        self.stored = {
            a: pulp.LpVariable(f"w_{a}", 0, 1) for a in sorted({a for a, _ in self.drop if dag.dear >> a & 1})
        }
        self.over = {
            (t, b, a): pulp.LpVariable(f"o_{t}_{b}_{a}", cat="Binary")
            for t, i in enumerate(order)
            for b, a in (dag.overlays[i] if "in-place" in allow else ())
        }
        self.passed = {
            (a, t): pulp.LpVariable(f"p_{a}_{t}", cat="Binary")
            for t, i in enumerate(order)
            for a in (dag.inputs[i] if "bypass" in allow else ())
        }
        self.model = pulp.LpProblem("runs", pulp.LpMinimize)
        self.model += pulp.lpSum(self.units(a) * y for (a, _), y in self.drop.items()) + pulp.lpSum(
            self.units(a) * w for a, w in self.stored.items()
        )
        for (a, _), y in self.drop.items():
            if a in self.stored:
                self.model += self.forbid_reloads_of_what_was_not_stored(a, y)
        self.forbid_more_than_the_capacity()
        self.forbid_overwriting_what_stays()
        self.forbid_bypassing_what_is_resident()

    def units(self, a: int) -> int:
        """Size of a tensor in units."""
        return self.dag.size[a] // self.unit

    def gone_after(self, a: int, t: int) -> Any:
        """Whether `a` is not resident after its event at step t: 1, or the variable that says so."""
        return self.drop.get((a, self.number[a, t]), 1)

    def gone_before(self, a: int, t: int) -> Any:
        """Whether `a` is not resident before it is read at step t."""
        return self.drop[a, self.number[a, t] - 1] if self.number[a, t] else 1

    def forbid_reloads_of_what_was_not_stored(self, a: int, y: Any) -> Any:
        """y[a, k] ≤ w[a]."""
        return y <= self.stored[a]

    def forbid_more_than_the_capacity(self) -> None:
        """Σ_{a touched at t} s_a + Σ_{gaps around t} s_a (1 − y) − Σ s_b o[t, b, a] − Σ s_a p[a, t] ≤ M."""
        around: list[list[tuple[int, int]]] = [[] for _ in self.order]
        for a, k in self.drop:
            for t in range(self.events[a][k][0] + 1, self.events[a][k + 1][0]):
                around[t].append((a, k))
        saving: list[list[Any]] = [[] for _ in self.order]
        for (t, b, _), over in self.over.items():
            saving[t].append(self.units(b) * over)
        for (a, t), passed in self.passed.items():
            saving[t].append(self.units(a) * passed)
        room = self.capacity // self.unit
        for t, i in enumerate(self.order):
            alive = self.dag.working_sets[i] // self.unit + sum(self.units(a) for a, _ in around[t])
            if alive > room:
                leaving = [min(self.units(a), alive - room) * self.drop[a, k] for a, k in around[t]]
                self.model += self.pulp.lpSum(leaving + saving[t]) >= alive - room

    def forbid_overwriting_what_stays(self) -> None:
        """o[t, b, a] ≤ y of a's gap after t, and ≤ 1 − p[a, t]; each output over one input, each input under one."""
        once: dict[tuple[int, int], list[Any]] = {}
        for (t, b, a), over in self.over.items():
            gone = self.gone_after(a, t)
            if not isinstance(gone, int):
                self.model += over <= gone
            if (a, t) in self.passed:
                self.model += over + self.passed[a, t] <= 1
            for name in (a, b):
                once.setdefault((t, name), []).append(over)
        for listed in once.values():
            if len(listed) > 1:
                self.model += self.pulp.lpSum(listed) <= 1

    def forbid_bypassing_what_is_resident(self) -> None:
        """p[a, t] ≤ y of a's gaps before and after t."""
        for (a, t), passed in self.passed.items():
            for gone in (self.gone_before(a, t), self.gone_after(a, t)):
                if not isinstance(gone, int):
                    self.model += passed <= gone

    def solve(self, time_limit: float) -> Runs | None:
        """The answer; None where the solver has none that fits."""
        if not minimised(self.model, seconds=time_limit, apart=1.0):
            return None
        remade = {(a, k) for a, listed in enumerate(self.events) for k in range(len(listed) - 1) if listed[k + 1][1]}
        dropped = frozenset({key for key, y in self.drop.items() if chosen(y)} | remade)
        over: dict[int, tuple[tuple[int, int], ...]] = {}
        for (t, b, a), variable in self.over.items():
            if chosen(variable):
                over[t] = (*over.get(t, ()), (b, a))
        passed = frozenset(key for key, variable in self.passed.items() if chosen(variable))
        found = Runs(self.order, dropped, passed, over)
        return found if fits(self.dag, found, self.capacity) else None


def fits(dag: Dag, runs: Runs, capacity: int) -> bool:
    """Whether no step holds more than the capacity."""
    change = [0] * (len(runs.order) + 1)
    for a, listed in enumerate(events(dag, runs.order)):
        for k, (t, made) in enumerate(listed):
            there = (made or (a, t) not in runs.bypassed) and not any(b == a for b, _ in runs.over.get(t, ()))
            change[t] += dag.size[a] * there
            change[t + 1] -= dag.size[a] * there
            if k + 1 < len(listed) and (a, k) not in runs.dropped:
                change[t + 1] += dag.size[a]
                change[listed[k + 1][0]] -= dag.size[a]
    held = 0
    for amount in change:
        held += amount
        if held > capacity:
            return False
    return True
