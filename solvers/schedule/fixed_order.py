"""The best replacement for a given order: which gaps to drop (F2), exactly by an integer program, or by a rule.

Variables: y[a, k] = 1 if tensor a is dropped in its gap k; w[a] = 1 if activation a is ever stored for that.

    min Σ s_a y[a, k] + Σ s_a w[a]

Rows of slots that no gap distinguishes coincide and are written once; within a tensor the gaps are disjoint in time,
so the capacity rows have consecutive ones apart from their weights, and the relaxation is nearly integral.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from peakline.solvers.bounds import grain
from peakline.solvers.dag import Dag
from peakline.solvers.schedule.episodes import Schedule, traffic, uses
from peakline.solvers.schedule.gap_program import Gap, chosen, enough_leaves, minimised, slots, solver_available

__all__ = ["Replacement", "best_replacement", "furthest_use"]


@dataclass(frozen=True, slots=True)
class Replacement:
    """What to drop in the order asked about, and its traffic in bytes."""

    schedule: Schedule
    cost: int


def furthest_use(dag: Dag, order: Sequence[int], capacity: int, *, spare: int = 0) -> Replacement:
    """Evict what is used again last (Belady 1966), of equals the largest; a rule, not an optimum for unequal sizes.

    The capacity must hold the largest working set. `spare` bytes of it stay free wherever an operator needs fewer.
    """
    steps = uses(dag, order)
    at = [0] * len(dag.size)  # uses that have passed, per tensor
    resident: dict[int, int] = {}  # tensor → step of the next use
    dropped: set[tuple[int, int]] = set()
    held = 0
    for i in order:
        touched = {*dag.inputs[i], *dag.outputs[i]}
        held += sum(dag.size[a] for a in touched if a not in resident)
        while held > max(capacity - spare, dag.working_sets[i]):
            victim = max((a for a in resident if a not in touched), key=lambda a: (resident[a], dag.size[a], -a))
            dropped.add((victim, at[victim] - 1))
            held -= dag.size[victim]
            del resident[victim]
        for a in touched:
            at[a] += 1
            if at[a] < len(steps[a]):
                resident[a] = steps[a][at[a]]
            else:
                resident.pop(a, None)
                held -= dag.size[a]
    kept = frozenset(dropped)
    return Replacement(Schedule(tuple(order), kept), traffic(dag, kept))


def best_replacement(
    dag: Dag, order: Sequence[int], capacity: int, *, time_limit: float = 30.0, spare: int = 0, gap: float = 0.0
) -> Replacement:
    """The gaps to drop that move the fewest bytes in this order, by PuLP and HiGHS.

    `spare` bytes of the capacity stay free wherever an operator needs fewer; a `gap` above 0, as a share of the
    traffic, is near enough to stop. Where the solver is missing or finds nothing better in time, what `furthest_use`
    drops.
    """
    rule = furthest_use(dag, order, capacity, spare=spare)
    if rule.cost == 0 or not solver_available() or time_limit <= 0:
        return rule
    solution = _Model(dag, order, capacity, spare).solve(time_limit, gap)
    return solution if solution is not None and solution.cost <= rule.cost else rule


class _Model:
    """The integer program of one order."""

    def __init__(self, dag: Dag, order: Sequence[int], capacity: int, spare: int) -> None:
        pulp = self.pulp = import_module("pulp")
        self.dag, self.order, self.capacity, self.spare = dag, tuple(order), capacity, spare
        self.unit = grain(dag)  # keeps the solver's numbers small
        self.rows = self._crowded_slots()
        self.gaps = sorted({gap for _, covering in self.rows for gap in covering})
        self.drop = {gap[:2]: pulp.LpVariable(f"y_{gap[0]}_{gap[1]}", cat="Binary") for gap in self.gaps}
        dear = sorted({gap[0] for gap in self.gaps if dag.dear >> gap[0] & 1})
        self.stored = {a: pulp.LpVariable(f"w_{a}", 0, 1) for a in dear}
        self.model = pulp.LpProblem("fixed_order", pulp.LpMinimize)
        self.model += pulp.lpSum(dag.size[gap[0]] // self.unit * self.drop[gap[:2]] for gap in self.gaps) + pulp.lpSum(
            dag.size[a] // self.unit * w for a, w in self.stored.items()
        )
        for excess, covering in self.rows:
            self.model += self.forbid_more_than_the_capacity(excess, covering)
        for gap in self.gaps:
            if gap[0] in self.stored:
                self.model += self.forbid_reloads_of_what_was_not_stored(gap)

    def forbid_more_than_the_capacity(self, excess: int, covering: list[Gap]) -> Any:
        """Σ_{gaps (a, k) around slot t} min(s_a, e_t) y[a, k] ≥ e_t, with e_t = bytes alive at t − capacity."""
        leaving = ((self.dag.size[gap[0]], self.drop[gap[:2]]) for gap in covering)
        return enough_leaves(leaving, excess, self.unit)

    def forbid_reloads_of_what_was_not_stored(self, gap: Gap) -> Any:
        """y[a, k] ≤ w[a]."""
        return self.drop[gap[:2]] <= self.stored[gap[0]]

    def _crowded_slots(self) -> list[tuple[int, list[Gap]]]:
        """(excess, gaps around it) of the slots where more is alive than fits, dominated ones left out."""
        rows: dict[frozenset[Gap], int] = {}
        for i, alive, around in slots(self.dag, self.order):
            excess = alive - max(self.capacity - self.spare, self.dag.working_sets[i])
            if excess > 0:
                rows[around] = max(rows.get(around, 0), excess)
        return [(excess, sorted(covering)) for covering, excess in rows.items()]

    def solve(self, time_limit: float, gap: float) -> Replacement | None:
        """The drops found; None where the solver has none in time."""
        if not minimised(self.model, seconds=time_limit, gap=gap, apart=1.0):
            return None
        dropped = frozenset(key for key, variable in self.drop.items() if chosen(variable))
        return Replacement(Schedule(self.order, dropped), traffic(self.dag, dropped)) if self._fits(dropped) else None

    def _fits(self, dropped: frozenset[tuple[int, int]]) -> bool:
        """Whether it does to the byte: the solver's rows hold but for its tolerance."""
        return all(
            sum(self.dag.size[gap[0]] for gap in covering if gap[:2] in dropped) >= excess
            for excess, covering in self.rows
        )
