"""Better plans by solving one stretch after another anew, what is before and after it staying as it is.

The steps [p, q) of a schedule are a problem of their own: what is resident when they begin is the result of an operator
that has run, what must be resident when they end is read by one that runs last, and nothing else of the rest matters:

* a tensor that is out at the beginning is an input, the reload that it has there anyway its first load;
* a tensor that is dropped elsewhere is stored anyway, so that dropping it in the stretch costs no store;
* a tensor kept throughout the stretch may be dropped for it, at its price, and comes back before the end.

What a plan of that problem moves less than the schedule does there, the whole schedule gains, to the byte.

Most stretches have too many orders for all of their states. So they are solved within a *band*: operators more than
so many places apart stay in the order in which they are. That is a problem with more precedences, and the programme
over layers, contraction and bounds by flows hold for it as they do for any; the narrower the band, the fewer ideals
there are and the more the bounds know. It is widest around one place of the stretch. As in variable neighbourhood
search (Mladenović and Hansen 1997) bands and beams widen as long as nothing is gained and are narrow again after a
gain; of equal plans the new one is taken, and ties fall differently every time.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from itertools import chain, cycle, repeat

from peakline.solvers.dag import Dag, Ordered, bits
from peakline.solvers.problem import Operator, Problem, Role, Tensor
from peakline.solvers.schedule.contract import contract
from peakline.solvers.schedule.episodes import Schedule, traffic, uses
from peakline.solvers.schedule.ideals import Graph
from peakline.solvers.schedule.layers import layers
from peakline.solvers.schedule.states import Moves
from peakline.solvers.segments import Segment, in_order

__all__ = ["Path", "Stretch", "improve_by_stretches", "improve_piece"]

Path = tuple[tuple[int, int], ...]
"""Moves of a piece: (operator, mask of tensors evicted before it), in order."""

_LEVELS = ((2, 1, 120), (8, 8, 120), (16, 8, 120), (24, 8, 120), (32, 8, 120))
"""Band (places), width (states of an ideal) and length (steps) of the stretches, from the narrowest on."""

_FURTHER_LEVELS = ((8, 32, 120), (16, 32, 120), (48, 8, 120), (24, 32, 120))
"""Those tried once the first ones gain nothing."""

_TRIES = 3  # without a gain before the level is left
_FOCUS = 0.35  # of a stretch's length: how far from its middle a band has narrowed
_AWAY = 4  # times narrower is the band there
_MOST_STATES = 60_000  # of one stretch
_SHORTEST = 12  # steps of a stretch that is divided if too much is alive in it
_MOST_IDLE = 16  # tensors that only lie there during a stretch, beyond which the others have to stay


def _banded(dag: Dag, order: list[int], band: int, middle: int) -> Ordered:
    """Each operator after all that are more than a band before it in the order, the last one after all.

    The band is widest around the place `middle`.
    """
    passed = [0]
    for i in order:
        passed.append(passed[-1] | 1 << i)
    earlier = [0] * len(order)
    for place, i in enumerate(order):
        wide = int(band * (1 - abs(place - middle) / (_FOCUS * len(order))))
        earlier[i] = passed[max(0, place - max(1, band // _AWAY, wide))]
    earlier[order[-1]] = dag.everything & ~(1 << order[-1])
    return Ordered.by(dag, tuple(earlier))


class _TooMuchAlive(ValueError):
    """More tensors than the programme over layers has bits for."""


class Stretch:
    """The steps `first` to `end` (excluded) of a schedule as a problem of its own.

    Attributes:
        dag: operator 0 has made what is resident at the beginning; the last one reads what must be at the end; those
            between are the schedule's, in its order.
        tensors: those of the whole problem that its tensors are; `chance` shuffles them.
        cost: non-compulsory bytes of the schedule there.
        set_aside: bytes of what stays throughout.
    """

    def __init__(self, dag: Dag, schedule: Schedule, first: int, end: int, chance: random.Random) -> None:
        self.whole, self.schedule, self.first, self.end, self.chance = dag, schedule, first, end, chance
        self.operators = schedule.order[first:end]
        self.passed: dict[int, int] = {}  # uses before the stretch, of each tensor in it
        self.within: dict[int, int] = {}
        self.resident: set[int] = set()  # at the beginning
        self.staying: set[int] = set()  # at the end
        self.set_aside = 0
        roles = self._boundaries()
        self.tensors = list(self.passed)
        chance.shuffle(self.tensors)
        self.dag = Dag.of(self._problem(roles))
        number = {a: n for n, a in enumerate(self.tensors)}
        self.cost = traffic(self.dag, [(number[a], k - self._shift(a)) for a, k in self._inner_drops()])

    def _boundaries(self) -> dict[int, Role]:
        """What is resident at the beginning and at the end, and the roles of all tensors concerned."""
        dag, dropped = self.whole, self.schedule.dropped
        drops: dict[int, list[int]] = {}
        for a, k in dropped:
            drops.setdefault(a, []).append(k)
        idle = []
        roles: dict[int, Role] = {}
        for a, steps in enumerate(uses(dag, self.schedule.order)):
            passed = sum(1 for s in steps if s < self.first)
            within = sum(1 for s in steps if self.first <= s < self.end)
            kept = 0 < passed < len(steps) and (a, passed - 1) not in dropped
            if not within and not kept:
                continue
            self.passed[a], self.within[a] = passed, within
            if kept:
                self.resident.add(a)
            if passed + within < len(steps) and (a, passed + within - 1) not in dropped:
                self.staying.add(a)
            stored = any(not passed <= k < passed + within - 1 for k in drops.get(a, ()))
            if not kept and (passed or dag.maker[a] < 0):
                roles[a] = "input"
            else:
                roles[a] = "activation" if dag.dear >> a & 1 and not stored else "output"
            if not within:
                idle.append(a)
        for a in self.chance.sample(idle, max(0, len(idle) - _MOST_IDLE)):
            self.set_aside += dag.size[a]
            self.resident.remove(a)
            self.staying.remove(a)
            del self.passed[a], self.within[a], roles[a]
        return roles

    def _problem(self, roles: dict[int, Role]) -> Problem:
        dag = self.whole
        operators = [
            Operator("first", (), tuple(str(a) for a in self.tensors if a in self.resident)),
            *(
                Operator(f"operator {i}", tuple(map(str, dag.inputs[i])), tuple(map(str, dag.outputs[i])))
                for i in self.operators
            ),
            Operator("last", tuple(str(a) for a in self.tensors if a in self.staying), ()),
        ]
        return Problem(tuple(Tensor(str(a), dag.size[a], roles[a]) for a in self.tensors), tuple(operators))

    def _shift(self, a: int) -> int:
        """What number of the whole schedule's uses the first one here has."""
        return self.passed[a] - (a in self.resident)

    def _inner_drops(self) -> set[tuple[int, int]]:
        """The schedule's drops between two steps of the stretch."""
        passed, within = self.passed, self.within
        return {(a, k) for a, k in self.schedule.dropped if a in passed and passed[a] <= k < passed[a] + within[a] - 1}

    def solve(self, capacity: int, *, most: int, band: int, width: int, deadline: float) -> Schedule | None:
        """The whole schedule with a stretch of less than `most` bytes in place of this one; None if none was found.

        Operators more than `band` places apart keep their order, and closer ones away from some place that `chance`
        chooses; `width` states are kept for each ideal.
        """
        small = contract(self.dag)
        place = {operator.name: n for n, operator in enumerate(self.dag.problem.operators)}
        order = sorted(range(len(small.dag)), key=lambda i: place[small.dag.problem.operators[i].name])
        start = 1 << order[0]
        if len(order) < 3:
            return None
        dag = _banded(small.dag, order, band, self.chance.randrange(len(order)))
        moves = Moves(dag, Segment(start, dag.everything, dag.live_after(start)), capacity - self.set_aside)
        if not Graph(moves).possible:
            raise _TooMuchAlive
        found = layers(moves, known=most, width=width, deadline=deadline, most_states=_MOST_STATES)
        if found is None or found.moves is None:
            return None
        return self._joined(small.expand(self.dag, [(order[0], 0), *found.moves]))

    def _joined(self, here: Schedule) -> Schedule:
        """The whole schedule with another stretch."""
        new = {(self.tensors[n], k + self._shift(self.tensors[n])) for n, k in here.dropped}
        order = tuple(self.operators[i - 1] for i in here.order if 0 < i <= len(self.operators))
        whole = self.schedule
        return Schedule(
            (*whole.order[: self.first], *order, *whole.order[self.end :]), (whole.dropped - self._inner_drops()) | new
        )


def improve_by_stretches(
    dag: Dag,
    schedule: Schedule,
    capacity: int,
    *,
    floor: int,
    deadline: float,
    seed: int,
    begin: int = 0,
    further: bool = True,
    heard: Callable[[Schedule, int], None] = lambda schedule, cost: None,
) -> Schedule:
    """A schedule that moves no more bytes than the given one, of the same problem within the same capacity.

    The first `begin` steps stay as they are. Goes on until the deadline (`time.perf_counter`) or until only `floor`
    bytes are left; without `further` no longer than until the first levels gain nothing. `heard` is told of each gain.
    """
    chance = random.Random(seed)
    cost = traffic(dag, schedule.dropped)
    levels = _rounds(further)
    level = next(levels, None)
    while level is not None and cost > floor:
        band, width, length = level
        gained = False
        waiting = _windows(begin, len(dag), length, chance)
        while waiting:
            first, end = waiting.pop()
            if time.perf_counter() > deadline:
                return schedule
            stretch = Stretch(dag, schedule, first, end, chance)
            if not stretch.cost:
                continue
            try:
                new = stretch.solve(capacity, most=stretch.cost + 1, band=band, width=width, deadline=deadline)
            except _TooMuchAlive:
                middle = (first + end) // 2
                waiting += [(first, middle), (middle, end)] if end - first >= _SHORTEST else []
                continue
            if new is None:
                continue
            schedule, moved = new, traffic(dag, new.dropped)
            if moved < cost:
                gained, cost = True, moved
                heard(schedule, cost)
        if gained:
            levels = _rounds(further)
        level = next(levels, None)
    return schedule


def _rounds(further: bool) -> Iterator[tuple[int, int, int]]:
    """Levels in turn, each as often as it is tried."""
    for listed in chain((_LEVELS,), cycle((_FURTHER_LEVELS, _LEVELS)) if further else ()):
        for level in listed:
            yield from repeat(level, _TRIES)


def _windows(begin: int, end: int, length: int, chance: random.Random) -> list[tuple[int, int]]:
    """Stretches that cover the steps, each half overlapped by the next, in no order."""
    if end - begin <= length:
        return [(begin, end)]
    half = length // 2
    starts = range(begin - chance.randrange(half), end - half // 2, half)
    found = [(max(begin, first), min(end, first + length)) for first in starts]
    chance.shuffle(found)
    return found


def improve_piece(
    dag: Dag,
    piece: Segment,
    capacity: int,
    moves: Path,
    *,
    floor: int,
    deadline: float,
    seed: int,
    further: bool = True,
    heard: Callable[[Path, int], None] = lambda moves, cost: None,
) -> tuple[Path, int]:
    """`improve_by_stretches` for the moves of an independent piece, and its cost."""
    alone = _Alone(dag, piece)
    before = alone.schedule(moves)

    def tell(schedule: Schedule, cost: int) -> None:
        heard(alone.moves(schedule), cost)

    after = improve_by_stretches(
        alone.dag, before, capacity, floor=floor, deadline=deadline, seed=seed, begin=1, further=further, heard=tell
    )
    return alone.moves(after), traffic(alone.dag, after.dropped)


class _Alone:
    """A piece as a problem: operator 0 makes what is alive at its beginning, operator n + 1 is the piece's n-th."""

    def __init__(self, dag: Dag, piece: Segment) -> None:
        self.operators = in_order(dag, piece)
        self.live = list(bits(piece.live))
        touched = {a for i in self.operators for a in (*dag.inputs[i], *dag.outputs[i])}
        self.tensors = sorted(touched | set(self.live))
        listed = dag.problem.tensors
        roles: dict[int, Role] = {
            a: "output" if piece.live >> a & 1 and not dag.dear >> a & 1 else listed[a].role for a in self.tensors
        }
        self.dag = Dag.of(
            Problem(
                tuple(Tensor(str(a), dag.size[a], roles[a]) for a in self.tensors),
                (
                    Operator("first", (), tuple(map(str, self.live))),
                    *(
                        Operator(f"operator {i}", tuple(map(str, dag.inputs[i])), tuple(map(str, dag.outputs[i])))
                        for i in self.operators
                    ),
                ),
            )
        )
        self.number = {a: n for n, a in enumerate(self.tensors)}
        self.place = {i: n + 1 for n, i in enumerate(self.operators)}

    def schedule(self, moves: Path) -> Schedule:
        """Moves of the piece as a schedule."""
        used = [0] * len(self.tensors)
        for a in self.live:
            used[self.number[a]] = 1
        dropped = set()
        for i, evicted in moves:
            dropped |= {(self.number[a], used[self.number[a]] - 1) for a in bits(evicted)}
            for a in (*self.dag.inputs[self.place[i]], *self.dag.outputs[self.place[i]]):
                used[a] += 1
        return Schedule((0, *(self.place[i] for i, _ in moves)), frozenset(dropped))

    def moves(self, schedule: Schedule) -> Path:
        """A schedule as moves of the piece: what is dropped leaves right after its use."""
        leaving = [0] * (len(schedule.order) + 1)
        for n, steps in enumerate(uses(self.dag, schedule.order)):
            for k, step in enumerate(steps):
                if (n, k) in schedule.dropped:
                    leaving[step + 1] |= 1 << self.tensors[n]
        return tuple((self.operators[i - 1], leaving[step]) for step, i in enumerate(schedule.order) if i)
