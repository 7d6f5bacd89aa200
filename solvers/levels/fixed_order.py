"""The best replacement in every level at once for one order: an integer program, or a rule.

Level l + 1 keeps room for whatever level l holds, so what is dropped there between two uses is dropped here as well:

    min Σ_l w_l ( Σ s_a y[l, a, k] + Σ s_a z[l, a] )

with y[l, a, k] = 1 if tensor a is not at level l between its uses k and k + 1, and z[l, a] = 1 if it is an activation
that is stored over link l for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from peakline.solvers.bounds import grain
from peakline.solvers.dag import Dag
from peakline.solvers.levels.plan import Level
from peakline.solvers.schedule.fixed_order import furthest_use
from peakline.solvers.schedule.gap_program import Gap, chosen, enough_leaves, minimised, slots, solver_available

__all__ = ["Drops", "best_drops", "nested"]

Drops = tuple[frozenset[tuple[int, int]], ...]
"""(tensor, k) dropped between its uses k and k + 1, level by level; each level's contain the next one's."""


def nested(drops: Sequence[frozenset[tuple[int, int]]]) -> Drops:
    """Drops in which each level also drops what the next one does."""
    found: list[frozenset[tuple[int, int]]] = []
    outer: frozenset[tuple[int, int]] = frozenset()
    for level in reversed(drops):
        outer = outer | level
        found.append(outer)
    return tuple(reversed(found))


def best_drops(dag: Dag, order: Sequence[int], levels: Sequence[Level], *, time_limit: float) -> Drops:
    """What to drop in this order, by PuLP and HiGHS; by furthest next use, level by level, where that finds nothing."""
    rule = nested([furthest_use(dag, order, level.capacity).schedule.dropped for level in levels])
    if not any(rule) or not solver_available() or time_limit <= 0:
        return rule
    return _Model(dag, order, levels).solve(time_limit) or rule


class _Model:
    """The integer program of one order."""

    def __init__(self, dag: Dag, order: Sequence[int], levels: Sequence[Level]) -> None:
        pulp = self.pulp = import_module("pulp")
        self.dag, self.levels, self.unit = dag, levels, grain(dag)
        fullest = _fullest(dag, order)
        rows = [
            {around: alive - level.capacity for around, alive in fullest.items() if alive > level.capacity}
            for level in levels
        ]
        self.gaps = sorted({gap[:2] for level in rows for key in level for gap in key})
        self.drop = {
            (n, *gap): pulp.LpVariable(f"y_{n}_{gap[0]}_{gap[1]}", cat="Binary")
            for n in range(len(levels))
            for gap in self.gaps
        }
        dear = sorted({a for a, _ in self.gaps if dag.dear >> a & 1})
        self.stored = {(n, a): pulp.LpVariable(f"z_{n}_{a}", 0, 1) for n in range(len(levels)) for a in dear}
        self.model = pulp.LpProblem("levels", pulp.LpMinimize)
        heaviest = max(level.weight for level in levels)
        self.model += pulp.lpSum(
            levels[key[0]].weight / heaviest * (dag.size[key[1]] // self.unit) * variable
            for table in (self.drop, self.stored)
            for key, variable in table.items()
        )
        for n, level in enumerate(rows):
            for key, excess in level.items():
                self.model += self.forbid_more_than_the_capacity(n, excess, sorted(key))
            for gap in self.gaps:
                if (n, gap[0]) in self.stored:
                    self.model += self.forbid_reloads_of_what_was_not_stored(n, gap)
                if n + 1 < len(levels):
                    self.model += self.forbid_keeping_what_the_next_level_drops(n, gap)

    def forbid_more_than_the_capacity(self, n: int, excess: int, covering: list[Gap]) -> Any:
        """Σ_{gaps (a, k) around slot t} min(s_a, e) y[l, a, k] ≥ e, with e = bytes alive at t − capacity of level l."""
        leaving = ((self.dag.size[gap[0]], self.drop[(n, *gap[:2])]) for gap in covering)
        return enough_leaves(leaving, excess, self.unit)

    def forbid_reloads_of_what_was_not_stored(self, n: int, gap: tuple[int, int]) -> Any:
        """y[l, a, k] ≤ z[l, a]."""
        return self.drop[(n, *gap)] <= self.stored[n, gap[0]]

    def forbid_keeping_what_the_next_level_drops(self, n: int, gap: tuple[int, int]) -> Any:
        """y[l + 1, a, k] ≤ y[l, a, k]."""
        return self.drop[(n + 1, *gap)] <= self.drop[(n, *gap)]

    def solve(self, time_limit: float) -> Drops | None:
        """The drops found; None where the solver has none in time."""
        if not minimised(self.model, seconds=time_limit):
            return None
        return tuple(
            frozenset(gap for gap in self.gaps if chosen(self.drop[(n, *gap)])) for n in range(len(self.levels))
        )


def _fullest(dag: Dag, order: Sequence[int]) -> dict[frozenset[Gap], int]:
    """Most bytes alive in slots that lie within the same gaps."""
    most: dict[frozenset[Gap], int] = {}
    for _, alive, around in slots(dag, order):
        most[around] = max(most.get(around, 0), alive)
    return most
