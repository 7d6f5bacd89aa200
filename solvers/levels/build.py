"""Plans over several levels from drops level by level, or from single moves, with addresses."""

from __future__ import annotations

from collections.abc import Sequence

from peakline.solvers.allocation import Instance, allocate
from peakline.solvers.dag import Dag, bits
from peakline.solvers.levels.exact import Act
from peakline.solvers.levels.fixed_order import Drops
from peakline.solvers.levels.plan import Bound, Level, LevelsPlan, LevelStep, Move
from peakline.solvers.plan import Certificate, Plan, Traffic
from peakline.solvers.schedule.episodes import Schedule, to_plan

__all__ = ["of_acts", "of_drops"]


def of_drops(
    dag: Dag, levels: Sequence[Level], order: tuple[int, ...], drops: Drops, offsets: Sequence[tuple[int, ...]],
    proof: Bound,
) -> LevelsPlan:  # fmt: skip
    """The plan in which level l holds what its drops leave, at the offsets of its episodes.

    Before a step first stores from the first link to the last, then evictions, then loads from the last link to the
    first: level l + 1 has kept room for what comes from level l, and has what goes there.
    """
    none = Certificate(0, 0, "", 0.0)
    plans = [
        to_plan(dag, Schedule(order, dropped), at, level.capacity, none)
        for level, dropped, at in zip(levels, drops, offsets)
    ]
    copies = _Copies(plans)
    steps = tuple(
        LevelStep((*copies.store(t), *copies.evict(t), *copies.load(t)), step.operator, step.produce)
        for t, step in enumerate(plans[0].steps)
    )
    traffic = tuple(plan.traffic for plan in plans)
    return LevelsPlan(tuple(levels), steps, tuple(copies.store(len(order))), traffic, proof)


class _Copies:
    """Which level keeps room for a tensor, and has a copy of it, while the plans of all levels go on step by step."""

    def __init__(self, plans: Sequence[Plan]) -> None:
        self.plans = plans
        self.room: list[dict[str, int]] = [{} for _ in plans]  # offset that each level keeps for a tensor
        self.there: list[set[str]] = [set() for _ in plans]

    def store(self, t: int) -> list[Move]:
        """What goes over each link before step t, or after the last one."""
        moves = []
        for n, plan in enumerate(self.plans):
            off_chip = n + 1 == len(self.plans)
            for name in plan.final_store if t == len(plan.steps) else plan.steps[t].store:
                moves.append(Move("store", name, n + 2, None if off_chip else self.room[n + 1][name]))
                if not off_chip:
                    self.there[n + 1].add(name)
        return moves

    def evict(self, t: int) -> list[Move]:
        """What gives its room in a level back before step t, where a copy of it is there."""
        moves = []
        for n, plan in enumerate(self.plans):
            for name in plan.steps[t].evict:
                self.room[n].pop(name)
                if name in self.there[n]:
                    self.there[n].remove(name)
                    moves.append(Move("evict", name, n + 1))
        return moves

    def load(self, t: int) -> list[Move]:
        """What comes over each link before step t; all levels keep room for what it makes in the first."""
        moves = []
        for n in reversed(range(len(self.plans))):
            step = self.plans[n].steps[t]
            for name, offset in step.load.items():
                self.room[n][name] = offset
                self.there[n].add(name)
                moves.append(Move("load", name, n + 1, offset))
            self.room[n].update(step.produce)
        self.there[0].update(self.plans[0].steps[t].produce)
        return moves


def of_acts(
    dag: Dag, levels: Sequence[Level], acts: Sequence[Act], proof: Bound, *, time_limit: float, seed: int
) -> LevelsPlan | None:
    """The plan of single moves with addresses, or None if none were found in some level."""
    stays = _Stays(dag, levels, acts)
    offsets = []
    for level, boxes in zip(levels, stays.boxes):
        found = None
        if boxes:
            spans = [(first, last, dag.size[a]) for a, first, last in boxes]
            instance = Instance.of(spans)
            found = allocate(instance, level.capacity, time_limit=max(0.1, time_limit), seed=seed).offsets
            if found is None:
                return None
        offsets.append(found or ())
    return stays.plan(offsets, proof)


class _Stays:
    """Rectangles of the copies in each level; moments are positions in the list of acts."""

    def __init__(self, dag: Dag, levels: Sequence[Level], acts: Sequence[Act]) -> None:
        self.dag, self.levels, self.acts = dag, levels, acts
        self.boxes: list[list[tuple[int, int, int]]] = [[] for _ in levels]  # (tensor, first, last + 1)
        self.number: dict[tuple[int, int, int], int] = {}  # (level, tensor, act) → box
        here: list[dict[int, int]] = [{} for _ in levels]
        self.gone: list[list[tuple[int, int]]] = []  # (level, tensor) evicted before each act; then what is left
        kept = self._kept()
        for t, act in enumerate(acts):
            gone = [(act.level - 1, a) for a in bits(act.evict)]
            gone += [(n, a) for n, copies in enumerate(here) for a in copies if not kept[t] >> a & 1]
            for n, a in dict.fromkeys(gone):
                self._close(here, n, a, t)
            self.gone.append(list(dict.fromkeys(gone)))
            fresh = dag.outputs[act.run] if act.run >= 0 else (act.tensor,) if act.level <= len(levels) else ()
            for a in fresh:
                here[act.level - 1][a] = len(self.boxes[act.level - 1])
                self.number[act.level - 1, a, t] = len(self.boxes[act.level - 1])
                self.boxes[act.level - 1].append((a, t, len(acts)))

    def _close(self, here: list[dict[int, int]], n: int, a: int, t: int) -> None:
        """The copy of tensor `a` in level n + 1 ends before act `t`."""
        box = here[n].pop(a)
        self.boxes[n][box] = (a, self.boxes[n][box][1], t)

    def _kept(self) -> list[int]:
        """Before each act the tensors that a later act still reads or moves; the dead make room at once."""
        kept, found = 0, []
        for act in reversed(self.acts):
            touched = self.dag.touch[act.run] if act.run >= 0 else 1 << act.tensor
            kept |= touched
            found.append(kept)
        return found[::-1]

    def plan(self, offsets: Sequence[Sequence[int]], proof: Bound) -> LevelsPlan:
        """The acts as steps, each copy at the offset of its rectangle."""
        names = [tensor.name for tensor in self.dag.problem.tensors]
        load, store = [0] * len(self.levels), [0] * len(self.levels)
        steps: list[LevelStep] = []
        moves: list[Move] = []
        for t, act in enumerate(self.acts):
            moves += [Move("evict", names[a], n + 1) for n, a in self.gone[t]]
            n = act.level - 1
            if act.run >= 0:
                produce = {names[a]: offsets[n][self.number[n, a, t]] for a in self.dag.outputs[act.run]}
                steps.append(LevelStep(tuple(moves), self.dag.problem.operators[act.run].name, produce))
                moves = []
                continue
            offset = offsets[n][self.number[n, act.tensor, t]] if n < len(self.levels) else None
            moves.append(Move("load" if act.load else "store", names[act.tensor], act.level, offset))
            if act.load:
                load[n] += self.dag.size[act.tensor]
            else:
                store[n - 1] += self.dag.size[act.tensor]
        compulsory = self.dag.problem.compulsory
        traffic = tuple(Traffic(came, went, compulsory) for came, went in zip(load, store))
        return LevelsPlan(tuple(self.levels), tuple(steps), tuple(moves), traffic, proof)
