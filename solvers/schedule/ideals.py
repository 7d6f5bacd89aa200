"""Sets of executed operators that are closed under predecessors (ideals), and how one leads to the next.

What is alive, what may run and what running it brings and frees depends on the ideal alone; the states of `layers.py`
with the same ideal share all of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from peakline.solvers.dag import Dag, bits
from peakline.solvers.floors import NEVER
from peakline.solvers.schedule.states import Moves
from peakline.solvers.segments import Segment

__all__ = ["Graph", "Ideal", "Runs", "Words", "next_ideals", "slots"]

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


@dataclass(slots=True)
class Ideal:
    """A set of executed operators, and what it means for every state with it."""

    executed: int
    live: int
    ready: int
    places: Words  # slots of the live tensors, the largest tensor first
    sizes: Words  # their grains
    dear: Words  # 1 for activations
    tensors: tuple[int, ...]
    excess: Words  # of each operator of the segment, nothing being out (see `Floors`)
    cheap: Words


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

    def word(self, tensors: int) -> int:
        """The bits of a set of tensors."""
        return sum(1 << self.slot[a] for a in bits(tensors))

    def table(self, listed: list[list[int]]) -> tuple[Words, Words]:
        """Slots and grains of the tensors of each list, a row each; −1 and 0 beyond a list's end."""
        most = max(1, max(len(tensors) for tensors in listed))
        places = np.full((len(listed), most), -1, dtype=np.int64)
        sizes = np.zeros((len(listed), most), dtype=np.int64)
        for n, tensors in enumerate(listed):
            places[n, : len(tensors)] = [self.slot[a] for a in tensors]
            sizes[n, : len(tensors)] = [self.size[a] for a in tensors]
        return places, sizes

    def ideal(self, executed: int, live: int, ready: int, excess: Words, cheap: Words) -> Ideal:
        listed = sorted(bits(live), key=lambda a: (-self.size[a], self.slot[a]))
        return Ideal(
            executed, live, ready,
            np.array([self.slot[a] for a in listed], dtype=np.int64),
            np.array([self.size[a] for a in listed], dtype=np.int64),
            np.array([self.dag.dear >> a & 1 for a in listed], dtype=np.int64),
            tuple(listed), excess, cheap,
        )  # fmt: skip

    def after(self, ideal: Ideal, i: int) -> tuple[Words, Words]:
        """Excess and cheap part once `i` has run as well."""
        dag, floors = self.dag, self.floors
        excess, cheap = ideal.excess + floors.grows[i], ideal.cheap
        for a in bits(dag.touch[i] & ~ideal.live & dag.off_chip):
            excess += floors.off_chip_live[a]
            cheap = cheap + floors.off_chip_live[a]
        excess[floors.column[i]] = NEVER
        return excess, cheap

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
        return np.array([sum(self.size[a] for a in bits(self.segment.live))], dtype=np.int64)

    def first(self) -> Ideal:
        """Nothing of the segment has run."""
        dag, segment = self.dag, self.segment
        ready = sum(1 << i for i in bits(segment.stop & ~segment.start) if not dag.before[i] & ~segment.start)
        return self.ideal(segment.start, segment.live, ready, self.floors.excess, self.floors.cheap)


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


def next_ideals(graph: Graph, ideals: list[Ideal]) -> tuple[Runs, list[Ideal]]:
    dag, size = graph.dag, graph.size
    numbers: dict[int, int] = {}
    found: list[Ideal] = []
    rows: list[tuple[int, ...]] = []
    reads: list[list[int]] = []
    stop = graph.segment.stop
    for g, ideal in enumerate(ideals):
        for i in bits(ideal.ready):
            executed = ideal.executed | 1 << i
            left = ~executed
            touch = dag.touch[i]
            new = touch & ~ideal.live
            dead = sum(1 << a for a in bits(touch) if not dag.readers[a] & left)
            number = numbers.get(executed)
            if number is None:
                number = numbers[executed] = len(found)
                ready = ideal.ready ^ 1 << i
                for j in bits(dag.after[i] & stop):
                    if not dag.before[j] & left:
                        ready |= 1 << j
                found.append(graph.ideal(executed, (ideal.live | touch) & ~dead, ready, *graph.after(ideal, i)))
            always, unstored = _stand_ins(graph, i, new, dead, left)
            rows.append(
                (
                    g,
                    i,
                    number,
                    sum(size[a] for a in bits(new)),
                    sum(size[a] for a in bits(dead)),
                    graph.word(dead & ideal.live),
                    graph.word(touch & ideal.live),
                    always,
                    unstored,
                )
            )
            reads.append(list(bits(touch & ideal.live)))
    table = np.array(rows, dtype=np.int64).T
    places, sizes = graph.table(reads)
    g, i, to, fresh, dying, gone, touched, always, unstored = table
    return Runs(g, i, to, fresh, dying, gone, touched, places, sizes, always, unstored), found


def _stand_ins(graph: Graph, i: int, new: int, dead: int, left: int) -> tuple[int, int]:
    """See `Moves._safe`: which dying inputs all results of `i` can stand in for."""
    dag, size = graph.dag, graph.size
    made = sum(1 << a for a in dag.outputs[i])
    if any(dag.readers[a] & left for a in bits(new & ~made)):
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
