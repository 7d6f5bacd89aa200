"""Sets of executed operators that are closed under predecessors (ideals), and how one leads to the next.

What is alive, what may run and what running it brings and frees depends on the ideal alone; the states of `layers.py`
with the same ideal share all of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from peakline.solvers.dag import Dag, bits
from peakline.solvers.floors import NEVER
from peakline.solvers.schedule.states import Moves
from peakline.solvers.segments import Segment

__all__ = ["Graph", "Ideal", "Runs", "Words", "next_ideals", "previous_ideals", "slots"]

Words = npt.NDArray[np.int64]

_MOST_SLOTS = 62


def slots(dag: Dag, segment: Segment) -> dict[int, int]:
    """A bit for each tensor that may be alive between two operators of the segment; unlike where both may be.

    Tensors a and b may be alive together if a has a reader that need not run before what brings b in, and b one that
    need not run before what brings a in. What brings a tensor in is its maker, or for one from off-chip any reader.
    """
    inside = segment.stop & ~segment.start
    down = {i: dag.ancestors[i] | 1 << i for i in bits(inside)}
    lasting: dict[int, list[int]] = {}
    for a in range(len(dag.size)):
        here = dag.users[a] & inside
        if not dag.readers[a] & ~segment.start or not (here or segment.live >> a & 1):
            continue
        if segment.live >> a & 1:
            lasting[a] = [segment.start]
        elif dag.maker[a] >= 0:
            lasting[a] = [down[dag.maker[a]]]
        elif dag.readers[a].bit_count() > 1:
            lasting[a] = [down[i] for i in bits(here)]
    taken: dict[int, int] = {}
    together: dict[int, list[int]] = {}
    for a, brought in lasting.items():
        busy = 0
        for slot, others in together.items():
            for b in others:
                if any(dag.readers[a] & ~v for v in lasting[b]) and any(dag.readers[b] & ~u for u in brought):
                    busy |= 1 << slot
                    break
        slot = (~busy & (busy + 1)).bit_length() - 1
        taken[a] = slot
        together.setdefault(slot, []).append(a)
    return taken


class Ideal:
    """A set of executed operators, and what it means for every state with it: worked out where there are any."""

    def __init__(self, graph: Graph, executed: int, live: int, ready: int, seen: int) -> None:
        self.graph, self.executed, self.live, self.ready = graph, executed, live, ready
        self.seen = seen  # what has come from off-chip since the segment began

    @cached_property
    def tensors(self) -> tuple[int, ...]:
        """The live ones, the largest first, of equal ones those that are read last, as far as the listing tells."""
        readers, left, rank = self.graph.dag.readers, ~self.executed, self.graph.rank

        def order(a: int) -> tuple[int, int, int, int]:
            waiting = readers[a] & left
            size, slot = rank[a]
            return size, -(waiting & -waiting), -waiting.bit_count(), slot

        return tuple(sorted(bits(self.live), key=order))

    @cached_property
    def places(self) -> Words:
        """Their slots."""
        return np.array([self.graph.slot[a] for a in self.tensors], dtype=np.int64)

    @cached_property
    def sizes(self) -> Words:
        """Their grains."""
        return np.array([self.graph.size[a] for a in self.tensors], dtype=np.int64)

    @cached_property
    def dear(self) -> Words:
        """1 for activations."""
        return np.array([self.graph.dag.dear >> a & 1 for a in self.tensors], dtype=np.int64)

    @cached_property
    def read_later(self) -> tuple[Words, Words]:
        """For each tensor the slots of those before it that may as well leave in its stead: off-chip ones, activations.

        Let a and b have equal sizes. If one operator alone has yet to read a, and whoever has yet to read b is that
        operator or must follow it, then evicting b is no worse than evicting a, if it costs no more: let b be out where
        a would be, and come back when a would; a is not needed any more then, and b has been stored. If the same
        operators have yet to read both, they can change places for good.
        """
        dag, left, inside = self.graph.dag, ~self.executed, self.graph.floors.inside
        waiting = [dag.readers[a] & left for a in self.tensors]
        found: tuple[list[int], list[int]] = ([], [])
        for n, (a, last) in enumerate(zip(self.tensors, waiting)):
            alone = not last & (last - 1) and bool(last & inside)
            after = dag.descendants[last.bit_length() - 1] | last if alone else 0
            words = [0, 0]
            for m in range(n - 1, -1, -1):
                b = self.tensors[m]
                if self.graph.size[b] != self.graph.size[a]:
                    break
                if waiting[m] == last or (alone and not waiting[m] & ~after):
                    words[dag.dear >> b & 1] |= 1 << self.graph.slot[b]
            found[0].append(words[0])
            found[1].append(words[1])
        return np.array(found[0], dtype=np.int64), np.array(found[1], dtype=np.int64)

    @cached_property
    def excess(self) -> Words:
        """Of each operator of the segment, nothing being out (see `Floors`)."""
        floors = self.graph.floors
        columns = [floors.column[i] for i in bits(self.executed & floors.inside)]
        excess = floors.excess + self.graph.grows[columns].sum(axis=0) + self._from_off_chip
        excess[columns] = NEVER
        return np.asarray(excess, dtype=np.int64)

    @cached_property
    def cheap(self) -> Words:
        """What costs no store of that."""
        return self.graph.floors.cheap + self._from_off_chip

    @cached_property
    def _from_off_chip(self) -> Words:
        floors = self.graph.floors
        return sum((floors.off_chip_live[a] for a in bits(self.seen)), floors.zero())


class Graph:
    """The segment in slots and grains."""

    def __init__(self, moves: Moves) -> None:
        self.moves, self.dag, self.segment = moves, moves.dag, moves.segment
        self.floors = moves.floors
        self.unit = self.floors.unit
        self.capacity = moves.capacity // self.unit
        self.size = self.floors.size
        self.slot = slots(self.dag, self.segment)
        self.possible = len(set(self.slot.values())) <= _MOST_SLOTS
        self.rank = {a: (-self.size[a], slot) for a, slot in self.slot.items()}
        self.grows = np.array([self.floors.grows[i] for i in self.floors.operators], dtype=np.int64)
        self._kinds: dict[tuple[int, int, int], _Kind] = {}
        self._undone: dict[tuple[int, int, int], _Kind] = {}

    def word(self, tensors: int) -> int:
        """The bits of a set of tensors."""
        return sum(1 << self.slot[a] for a in bits(tensors))

    def grains(self, tensors: int) -> int:
        """What a set of tensors weighs."""
        return sum(self.size[a] for a in bits(tensors))

    def run(self, i: int, alive: int, dead: int) -> _Kind:
        """Running `i` where `alive` of what it touches is alive already, and nobody reads `dead` of it any more."""
        key = (i, alive, dead)
        found = self._kinds.get(key)
        if found is None:
            new = self.dag.touch[i] & ~alive
            found = self._kinds[key] = _Kind(
                i, self.grains(new), self.grains(dead), self.word(dead & alive), self.word(alive),
                *_stand_ins(self, i, new, dead), tuple(bits(alive)),
            )  # fmt: skip
        return found

    def undo(self, i: int, alive: int, gone: int) -> _Kind:
        """Going back before `i`, where `alive` of what it touches is alive after it, and `gone` is not before it."""
        key = (i, alive, gone)
        found = self._undone.get(key)
        if found is None:
            new = self.dag.touch[i] & ~alive
            found = self._undone[key] = _Kind(
                i, self.grains(new), self.grains(gone), self.word(gone & alive), self.word(alive), -1, 0,
                tuple(bits(alive)),
            )  # fmt: skip
        return found

    def runs(self, ideal: list[int], to: list[int], kinds: list[_Kind]) -> Runs:
        """Their table."""
        number: dict[int, int] = {}
        which = np.array([number.setdefault(id(kind), len(number)) for kind in kinds], dtype=np.int64)
        listed = list({id(kind): kind for kind in kinds}.values())
        rows = np.array([kind.row() for kind in listed], dtype=np.int64).T[:, which]
        most = max(1, max(len(kind.reads) for kind in listed))
        places = np.full((len(listed), most), -1, dtype=np.int64)
        sizes = np.zeros((len(listed), most), dtype=np.int64)
        for n, kind in enumerate(listed):
            places[n, : len(kind.reads)] = [self.slot[a] for a in kind.reads]
            sizes[n, : len(kind.reads)] = [self.size[a] for a in kind.reads]
        operator, fresh, dying, gone, touched, always, unstored = rows
        return Runs(
            np.array(ideal, dtype=np.int64), operator, np.array(to, dtype=np.int64), fresh, dying, gone, touched,
            places[which], sizes[which], always, unstored,
        )  # fmt: skip

    def vectors(self, ideal: Ideal) -> tuple[Words, Words, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Excess, cheap part, and for each live tensor what flows out of it, all and as far as it may stay outside."""
        left = ~ideal.executed
        pairs = [self.floors.remaining(a, left) for a in ideal.tensors]
        shape = (len(pairs), len(self.floors.operators))
        flow = np.array([full for full, _ in pairs], dtype=np.float64).reshape(shape)
        outside = np.array([out for _, out in pairs], dtype=np.float64).reshape(shape)
        return ideal.excess, ideal.cheap, flow, outside

    def held_at_first(self) -> Words:
        """Grains resident before the segment, as a vector of one number."""
        return np.array([self.grains(self.segment.live)], dtype=np.int64)

    def first(self) -> Ideal:
        """Nothing of the segment has run."""
        dag, segment = self.dag, self.segment
        ready = sum(1 << i for i in bits(segment.stop & ~segment.start) if not dag.before[i] & ~segment.start)
        return Ideal(self, segment.start, segment.live, ready, 0)

    def last(self) -> Ideal:
        """All of the segment has run; `ready` is what may be undone."""
        dag, segment = self.dag, self.segment
        ready = sum(1 << i for i in bits(self.floors.inside) if not dag.after[i] & segment.stop)
        live = 0
        for a, users in enumerate(dag.users):
            if users & segment.stop and dag.readers[a] & ~segment.stop:
                live |= 1 << a
        return Ideal(self, segment.stop, live, ready, 0)


@dataclass(slots=True)
class Runs:
    """One entry for each ideal and operator ready in it."""

    ideal: Words
    operator: Words
    to: Words  # the ideal afterwards, in the next layer
    fresh: Words  # grains that come into being or from off-chip for the first time
    dying: Words  # grains that nobody reads any more afterwards
    gone: Words  # their slots
    touched: Words  # slots of live tensors that the operator touches
    reads: Words  # their slots one by one, −1 beyond the last
    read_sizes: Words
    stands_in: Words  # 1 if an input that dies is always as good as all results; −1: no input can be
    if_not_stored: Words  # slots of inputs that are if they are not stored


@dataclass(frozen=True, slots=True)
class _Kind:
    """What running an operator does in all ideals that have the same of it alive; named as in `Runs`."""

    operator: int
    fresh: int
    dying: int
    gone: int
    touched: int
    stands_in: int
    if_not_stored: int
    reads: tuple[int, ...]

    def row(self) -> tuple[int, ...]:
        return (
            self.operator, self.fresh, self.dying, self.gone, self.touched, self.stands_in, self.if_not_stored,
        )  # fmt: skip


def next_ideals(graph: Graph, ideals: list[Ideal]) -> tuple[Runs, list[Ideal]]:
    """What may run in each ideal, and the ideals with one operator more."""
    dag = graph.dag
    numbers: dict[int, int] = {}
    found: list[Ideal] = []
    from_, to, kinds = [], [], []
    stop = graph.segment.stop
    for g, ideal in enumerate(ideals):
        for i in bits(ideal.ready):
            executed = ideal.executed | 1 << i
            touch = dag.touch[i]
            number = numbers.get(executed)
            if number is None:
                left = ~executed
                number = numbers[executed] = len(found)
                ready = ideal.ready ^ 1 << i
                for j in bits(dag.after[i] & stop):
                    if not dag.before[j] & left:
                        ready |= 1 << j
                dead = sum(1 << a for a in bits(touch) if not dag.readers[a] & left)
                seen = ideal.seen | (touch & dag.off_chip & ~graph.segment.live)
                found.append(Ideal(graph, executed, (ideal.live | touch) & ~dead, ready, seen))
            from_.append(g)
            to.append(number)
            kinds.append(graph.run(i, touch & ideal.live, touch & ~found[number].live))
    return graph.runs(from_, to, kinds), found


def previous_ideals(graph: Graph, ideals: list[Ideal]) -> tuple[Runs, list[Ideal]]:
    """What may be undone in each ideal, and the ideals with one operator less; `ready` is what may be undone there."""
    dag, inside = graph.dag, graph.floors.inside
    numbers: dict[int, int] = {}
    found: list[Ideal] = []
    from_, to, kinds = [], [], []
    for g, ideal in enumerate(ideals):
        for i in bits(ideal.ready):
            executed = ideal.executed ^ 1 << i
            touch = dag.touch[i]
            number = numbers.get(executed)
            if number is None:
                number = numbers[executed] = len(found)
                ready = ideal.ready ^ 1 << i
                for j in bits(dag.before[i] & inside):
                    if not dag.after[j] & executed:
                        ready |= 1 << j
                live = ideal.live & ~touch
                for a in dag.inputs[i]:
                    if dag.users[a] & executed:
                        live |= 1 << a
                found.append(Ideal(graph, executed, live, ready, 0))
            from_.append(g)
            to.append(number)
            kinds.append(graph.undo(i, touch & ideal.live, touch & ~found[number].live))
    return graph.runs(from_, to, kinds), found


def _stand_ins(graph: Graph, i: int, new: int, dead: int) -> tuple[int, int]:
    """See `Moves._safe`: which dying inputs all results of `i` can stand in for."""
    dag, size = graph.dag, graph.size
    made = sum(1 << a for a in dag.outputs[i])
    if new & ~made & ~dead:
        return -1, 0
    staying = [a for a in dag.outputs[i] if dag.readers[a]]
    if not staying:
        return 1, 0
    needed = sum(size[a] for a in staying)
    price = sum(size[a] * (1 + (dag.dear >> a & 1)) for a in staying)
    always, unstored = -1, 0
    for a in dag.inputs[i]:
        if dead >> a & 1 and not new >> a & 1 and size[a] >= needed:
            if size[a] >= price:
                always = 1
            elif dag.dear >> a & 1 and 2 * size[a] >= price:
                unstored |= 1 << graph.slot[a]
    return (1, 0) if always > 0 else (0 if unstored else -1, unstored)
