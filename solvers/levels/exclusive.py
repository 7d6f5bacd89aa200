"""Plans in which a tensor lies in one level at a time: the best homes between uses for one order, and their plan.

Between two uses a tensor stays at level 1 or goes out to a *home*, level h or off-chip, and comes back over all links
between them. With y[l, a, k] = 1 if gap k of tensor a has its home beyond level l, and z[a] = 1 if activation a is
ever stored off-chip:

    min Σ_l w_l Σ s_a (2 y[l, a, k] − y[L, a, k]) + Σ_l w_l Σ s_a z[a]

A way out to level h is paid each time, a way off-chip once. Between levels a tensor rests in a *transit* of the level
that it passes, one after the other, so a level keeps room for the largest that may pass at that moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from typing import Any

from peakline.solvers.allocation import Instance, allocate
from peakline.solvers.bounds import grain
from peakline.solvers.dag import Dag, bits
from peakline.solvers.levels.plan import Bound, Level, LevelsPlan, LevelStep, Move
from peakline.solvers.plan import Traffic
from peakline.solvers.schedule.episodes import Schedule, episodes, gaps, uses
from peakline.solvers.schedule.gap_program import Gap, chosen, enough_leaves, minimised, slots, solver_available

__all__ = ["Homes", "best_homes", "of_homes"]


@dataclass(frozen=True)
class Homes:
    """`home[a, k]`: the level (L + 1: off-chip) where tensor a lies between its uses k and k + 1; absent: level 1."""

    order: tuple[int, ...]
    home: dict[tuple[int, int], int]
    cost: float


def best_homes(
    dag: Dag, order: Sequence[int], levels: Sequence[Level], *, time_limit: float, spare: Sequence[int] = ()
) -> Homes | None:
    """The homes with the least cost in this order, by PuLP and HiGHS; None where there is no solver or no answer.

    `spare`: bytes of each level that stay free, where what an operator touches leaves them, so that addresses are
    found more easily.
    """
    if not solver_available() or time_limit <= 0 or len(levels) < 2:
        return None
    return _Model(dag, order, levels, spare or [0] * len(levels)).solve(time_limit)


def _transits(dag: Dag, order: Sequence[int]) -> list[int]:
    """Before each step, and after the last, the bytes of the largest tensor that may pass between levels then."""
    found = [0] * (len(order) + 1)
    for a, steps in enumerate(uses(dag, order)):
        coming = [q for p, q in pairwise((-2, *steps)) if q > p + 1 and (p >= 0 or dag.maker[a] < 0)]
        going = [p + 1 for p, q in pairwise((*steps, len(order) + 2)) if q > p + 1]
        for t in (*coming, *going):
            found[t] = max(found[t], dag.size[a])
    return found


class _Model:
    """The integer program of one order."""

    def __init__(self, dag: Dag, order: Sequence[int], levels: Sequence[Level], spare: Sequence[int]) -> None:
        pulp = self.pulp = import_module("pulp")
        self.dag, self.order, self.levels, self.unit = dag, tuple(order), levels, grain(dag)
        self.gaps = gaps(dag, order)
        count = len(levels)
        self.out = {
            (n, *gap[:2]): pulp.LpVariable(f"y_{n}_{gap[0]}_{gap[1]}", cat="Binary")
            for n in range(count)
            for gap in self.gaps
        }
        self.stored = {
            a: pulp.LpVariable(f"z_{a}", 0, 1) for a in sorted({g[0] for g in self.gaps if dag.dear >> g[0] & 1})
        }
        self.model = pulp.LpProblem("homes", pulp.LpMinimize)
        self.model += self.traffic()
        for gap in self.gaps:
            for n in range(count - 1):
                self.model += self.forbid_homes_beyond_a_level_and_not_beyond_one_before(n, gap)
            if gap[0] in self.stored:
                self.model += self.forbid_reloads_of_what_was_not_stored(gap)
        for i, alive, around in slots(dag, order):
            room = max(dag.working_sets[i], levels[0].capacity - spare[0])
            if alive > room:
                self.model += self.forbid_more_than_the_first_level(sorted(around), alive - room)
        for here, transit in zip(self._resting(), _transits(dag, order)):
            for n in range(1, count):
                room = max(0, levels[n].capacity - transit - spare[n])
                if sum(dag.size[gap[0]] for gap in here) > room:
                    self.model += self.forbid_more_than_a_level(n, here, room)

    def traffic(self) -> Any:
        """Σ_l w_l Σ s_a (2 y[l, a, k] − y[L, a, k]) + Σ_l w_l Σ s_a z[a], in units and parts of the largest weight."""
        heaviest = max(level.weight for level in self.levels)
        last = len(self.levels) - 1
        return self.pulp.lpSum(
            level.weight / heaviest * (self.dag.size[a] // self.unit) * (2 * self.out[n, a, k] - self.out[last, a, k])
            for n, level in enumerate(self.levels)
            for a, k, _, _ in self.gaps
        ) + self.pulp.lpSum(
            level.weight / heaviest * (self.dag.size[a] // self.unit) * z
            for level in self.levels
            for a, z in self.stored.items()
        )

    def _resting(self) -> list[list[Gap]]:
        """The gaps that touch the moment before each step, and after the last: their tensors rest at home then."""
        found: list[list[Gap]] = [[] for _ in range(len(self.order) + 1)]
        for gap in self.gaps:
            for t in range(gap[2], gap[3] + 2):
                found[t].append(gap)
        return found

    def forbid_homes_beyond_a_level_and_not_beyond_one_before(self, n: int, gap: Gap) -> Any:
        """y[l + 1, a, k] ≤ y[l, a, k]."""
        return self.out[(n + 1, *gap[:2])] <= self.out[(n, *gap[:2])]

    def forbid_reloads_of_what_was_not_stored(self, gap: Gap) -> Any:
        """y[L, a, k] ≤ z[a]."""
        return self.out[(len(self.levels) - 1, *gap[:2])] <= self.stored[gap[0]]

    def forbid_more_than_the_first_level(self, here: list[Gap], excess: int) -> Any:
        """Σ_{gaps around slot t} min(s_a, e) y[1, a, k] ≥ e, with e = bytes alive at t − C_1."""
        return enough_leaves(((self.dag.size[gap[0]], self.out[(0, *gap[:2])]) for gap in here), excess, self.unit)

    def forbid_more_than_a_level(self, n: int, here: list[Gap], room: int) -> Any:
        """Σ_{gaps that touch moment t} s_a (y[l − 1, a, k] − y[l, a, k]) ≤ C_l − transit(t)."""
        return (
            self.pulp.lpSum(
                self.dag.size[gap[0]] // self.unit * (self.out[(n - 1, *gap[:2])] - self.out[(n, *gap[:2])])
                for gap in here
            )
            <= room // self.unit
        )

    def solve(self, time_limit: float) -> Homes | None:
        """The homes found; None where the solver has none in time."""
        if not minimised(self.model, seconds=time_limit):
            return None
        home = {}
        for gap in self.gaps:
            far = sum(chosen(self.out[(n, *gap[:2])]) for n in range(len(self.levels)))
            if far:
                home[gap[:2]] = far + 1
        return Homes(self.order, home, _cost(self.dag, self.levels, home))


def _cost(dag: Dag, levels: Sequence[Level], home: dict[tuple[int, int], int]) -> float:
    """Weighted bytes that homes move: the objective of the integer program, counted anew."""
    total = 0.0
    off = len(levels) + 1
    for (a, _), h in home.items():
        ways = 1 if h == off else 2
        total += ways * dag.size[a] * sum(level.weight for level in levels[: h - 1])
    stored = {a for (a, _), h in home.items() if h == off and dag.dear >> a & 1}
    return total + sum(dag.size[a] for a in stored) * sum(level.weight for level in levels)


def of_homes(
    dag: Dag, levels: Sequence[Level], homes: Homes, proof: Bound, *, time_limit: float, seed: int
) -> LevelsPlan | None:
    """The plan of these homes with addresses, or None if none were found in some level."""
    first = Schedule(homes.order, frozenset(homes.home))
    boxes = [(box.first, box.last + 1, dag.size[box.tensor]) for box in episodes(dag, first)]
    near = allocate(Instance.of(boxes), levels[0].capacity, time_limit=max(0.1, time_limit), seed=seed).offsets
    if near is None:
        return None
    found = [_rest(dag, levels, n, homes, time_limit, seed) for n in range(1, len(levels))]
    if any(entry is None for entry in found):
        return None
    return _Writer(dag, levels, homes, first, near, [entry for entry in found if entry is not None]).plan(proof)


Rest = tuple[dict[tuple[int, int], int], list[int]]
"""Offsets of the tensors at home in a level, and of its transit at each moment."""


def _rest(dag: Dag, levels: Sequence[Level], n: int, homes: Homes, time_limit: float, seed: int) -> Rest | None:
    """Addresses in level n + 1."""
    staying = [gap for gap in gaps(dag, homes.order) if homes.home.get(gap[:2]) == n + 1]
    passing = [(t, size) for t, size in enumerate(_transits(dag, homes.order)) if size]
    boxes = [(gap[2], gap[3] + 2, dag.size[gap[0]]) for gap in staying] + [(t, t + 1, size) for t, size in passing]
    found = allocate(Instance.of(boxes), levels[n].capacity, time_limit=max(0.1, time_limit), seed=seed)
    if found.offsets is None:
        if found.interrupted:
            raise KeyboardInterrupt
        return None
    transit = [0] * (len(homes.order) + 1)
    for (t, _), offset in zip(passing, found.offsets[len(staying) :]):
        transit[t] = offset
    return {gap[:2]: offset for gap, offset in zip(staying, found.offsets)}, transit


class _Writer:
    """Writes the plan moment by moment."""

    def __init__(
        self, dag: Dag, levels: Sequence[Level], homes: Homes, first: Schedule, near: tuple[int, ...],
        rests: list[Rest],
    ) -> None:  # fmt: skip
        self.dag, self.levels, self.homes, self.rests = dag, levels, homes, rests
        self.names = [tensor.name for tensor in dag.problem.tensors]
        self.off = {a for a, maker in enumerate(dag.maker) if maker < 0}
        self.outputs = set(bits(dag.results))
        self.at = {(box.tensor, box.first): offset for box, offset in zip(episodes(dag, first), near)}
        self.load, self.store = [0] * len(levels), [0] * len(levels)
        self.moves: list[Move] = []

    def plan(self, proof: Bound) -> LevelsPlan:
        """Before each step what its predecessor used goes home, then what it reads comes back."""
        dag, order = self.dag, self.homes.order
        used, seen = uses(dag, order), [0] * len(dag.size)
        steps = []
        for t in range(len(order) + 1):
            before = order[t - 1] if t else None
            for a in dict.fromkeys((*dag.inputs[before], *dag.outputs[before])) if before is not None else ():
                self.after_use(a, seen[a] - 1, len(used[a]), t)
            if t == len(order):
                break
            i = order[t]
            for a in dag.inputs[i]:
                self.before_use(a, seen[a] - 1, t)
            produce = {self.names[a]: self.at[a, t] for a in dag.outputs[i]}
            steps.append(LevelStep(tuple(self.moves), dag.problem.operators[i].name, produce))
            self.moves = []
            for a in (*dag.inputs[i], *dag.outputs[i]):
                seen[a] += 1
        compulsory = dag.problem.compulsory
        traffic = tuple(Traffic(came, went, compulsory) for came, went in zip(self.load, self.store))
        return LevelsPlan(tuple(self.levels), tuple(steps), tuple(self.moves), traffic, proof)

    def after_use(self, a: int, k: int, count: int, t: int) -> None:
        """Tensor `a` has had its use k: it goes home, or for good."""
        last = k + 1 == count
        home = self.homes.home.get((a, k))
        if not last and home is None:
            return
        beyond = len(self.levels) + 1
        target = beyond if last else home
        assert target is not None
        if target < beyond or (a not in self.off and (not last or a in self.outputs)):
            self.go(a, k, target, t)
        if target == beyond and (not last or a in self.outputs):
            self.off.add(a)
        self.moves.append(Move("evict", self.names[a], 1))

    def go(self, a: int, k: int, target: int, t: int) -> None:
        """Tensor `a` goes out level by level to its target, at moment `t`."""
        for level in range(2, target + 1):
            offset = None
            if level <= len(self.levels):
                rest, transit = self.rests[level - 2]
                offset = rest[a, k] if level == target else transit[t]
            self.moves.append(Move("store", self.names[a], level, offset))
            self.store[level - 2] += self.dag.size[a]
            if level > 2:
                self.moves.append(Move("evict", self.names[a], level - 1))

    def before_use(self, a: int, k: int, t: int) -> None:
        """Tensor `a` comes back from its home after use k, or for the first time."""
        home = self.homes.home.get((a, k)) if k >= 0 else len(self.levels) + 1
        if home is None:
            return
        for level in range(home - 1, 0, -1):
            offset = self.at[a, t] if level == 1 else self.rests[level - 2][1][t]
            self.moves.append(Move("load", self.names[a], level, offset))
            self.load[level - 1] += self.dag.size[a]
            if level < len(self.levels):
                self.moves.append(Move("evict", self.names[a], level + 1))
