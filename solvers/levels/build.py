"""Plans over several levels from drops level by level, or from single moves, with addresses."""

from __future__ import annotations

from collections.abc import Sequence

from peakline.solvers.allocation import Instance, allocate
from peakline.solvers.dag import Dag, bits
from peakline.solvers.levels.exact import Act
from peakline.solvers.levels.fixed_order import Drops
from peakline.solvers.levels.plan import Bound, Level, LevelsPlan, LevelStep, Move
from peakline.solvers.plan import Certificate, Traffic
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
    count = len(levels)
    room: list[dict[str, int]] = [{} for _ in levels]  # offset that each level keeps for a tensor
    there: list[set[str]] = [set() for _ in levels]  # copies
    steps: list[LevelStep] = []
    final: list[Move] = []
    for t in range(len(order) + 1):
        last = t == len(order)
        moves: list[Move] = []
        for n, plan in enumerate(plans):
            for name in plan.final_store if last else plan.steps[t].store:
                off_chip = n + 1 == count
                moves.append(Move("store", name, n + 2, None if off_chip else room[n + 1][name]))
                if not off_chip:
                    there[n + 1].add(name)
        if last:
            final = moves
            break
        for n, plan in enumerate(plans):
            for name in plan.steps[t].evict:
                room[n].pop(name)
                if name in there[n]:
                    there[n].remove(name)
                    moves.append(Move("evict", name, n + 1))
        for n in range(count - 1, -1, -1):
            step = plans[n].steps[t]
            for name, offset in step.load.items():
                room[n][name] = offset
                there[n].add(name)
                moves.append(Move("load", name, n + 1, offset))
            room[n].update(step.produce)
        there[0].update(plans[0].steps[t].produce)
        steps.append(LevelStep(tuple(moves), plans[0].steps[t].operator, plans[0].steps[t].produce))
    traffic = tuple(plan.traffic for plan in plans)
    return LevelsPlan(tuple(levels), tuple(steps), tuple(final), traffic, proof)


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
