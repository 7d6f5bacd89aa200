"""Least traffic by dynamic programming over layers: all states with equally many executed operators at once.

The states and moves are those of `states.py`, held in arrays instead of objects, so that millions of them are
affordable: a state is the number of its set of executed operators (an ideal of the graph), a word of evicted tensors
and a word of stored ones, the bytes resident and the traffic paid. Tensors share a bit of these words if no set of
executed operators leaves both alive (a colouring of their conflicts), so 64 bits suffice for long graphs that are
narrow: a layer is a separator, and what lies on either side of it meets through its states alone.

Of two states with the same ideal one is dropped if the other, having evicted and stored what only the first has, has
still paid no more. With `width` states an ideal at most, it is a beam; if nothing was cut, what it finds is optimal.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from peakline.solvers.dag import Dag, bits
from peakline.solvers.floors import NEVER
from peakline.solvers.schedule.search import Found
from peakline.solvers.schedule.states import Moves
from peakline.solvers.segments import Segment

__all__ = ["layers", "slots"]

Words = npt.NDArray[np.int64]

_MOST_SLOTS = 62
_MOST_STATES = 8_000_000  # about 60 bytes each
_COMPARED = 8  # times the width: states of an ideal that are compared with each other
_BLOCK = 256  # states of an ideal, the best first, against which the others are compared


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
class _Ideal:
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


@dataclass(slots=True)
class _Layer:
    """States, sorted by ideal; `parent` and `operator` lead back."""

    ideals: list[_Ideal]
    ideal: Words
    out: Words
    stored: Words
    held: Words
    paid: Words
    parent: Words
    operator: Words

    def __len__(self) -> int:
        return len(self.ideal)

    def take(self, which: npt.NDArray[np.intp]) -> _Layer:
        return _Layer(
            self.ideals, self.ideal[which], self.out[which], self.stored[which], self.held[which], self.paid[which],
            self.parent[which], self.operator[which],
        )  # fmt: skip


class _Graph:
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

    def ideal(self, executed: int, live: int, ready: int, excess: Words, cheap: Words) -> _Ideal:
        listed = sorted(bits(live), key=lambda a: (-self.size[a], self.slot[a]))
        return _Ideal(
            executed, live, ready,
            np.array([self.slot[a] for a in listed], dtype=np.int64),
            np.array([self.size[a] for a in listed], dtype=np.int64),
            np.array([self.dag.dear >> a & 1 for a in listed], dtype=np.int64),
            tuple(listed), excess, cheap,
        )  # fmt: skip

    def after(self, ideal: _Ideal, i: int) -> tuple[Words, Words]:
        """Excess and cheap part once `i` has run as well."""
        dag, floors = self.dag, self.floors
        excess, cheap = ideal.excess + floors.grows[i], ideal.cheap
        for a in bits(dag.touch[i] & ~ideal.live & dag.off_chip):
            excess += floors.off_chip_live[a]
            cheap = cheap + floors.off_chip_live[a]
        excess[floors.column[i]] = NEVER
        return excess, cheap

    def vectors(self, ideal: _Ideal) -> tuple[Words, Words, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Excess, cheap part, and for each live tensor what flows out of it, all and as far as it may stay outside."""
        left = ~ideal.executed
        pairs = [self.floors.remaining(a, left) for a in ideal.tensors]
        shape = (len(pairs), len(self.floors.operators))
        flow = np.array([full for full, _ in pairs], dtype=np.float64).reshape(shape)
        outside = np.array([out for _, out in pairs], dtype=np.float64).reshape(shape)
        return ideal.excess, ideal.cheap, flow, outside

    def first(self) -> _Layer:
        dag, segment = self.dag, self.segment
        inside = segment.stop & ~segment.start
        ready = sum(1 << i for i in bits(inside) if not dag.before[i] & ~segment.start)
        zero = np.zeros(1, dtype=np.int64)
        held = np.array([sum(self.size[a] for a in bits(segment.live))], dtype=np.int64)
        start = self.ideal(segment.start, segment.live, ready, self.floors.excess, self.floors.cheap)
        return _Layer([start], zero, zero, zero, held, zero, zero, zero)


@dataclass(slots=True)
class _Runs:
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


def _runs(graph: _Graph, ideals: list[_Ideal]) -> tuple[_Runs, list[_Ideal]]:
    dag, size = graph.dag, graph.size
    numbers: dict[int, int] = {}
    found: list[_Ideal] = []
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
    most = max(1, max(len(r) for r in reads))
    places = np.full((len(reads), most), -1, dtype=np.int64)
    sizes = np.zeros((len(reads), most), dtype=np.int64)
    for n, listed in enumerate(reads):
        places[n, : len(listed)] = [graph.slot[a] for a in listed]
        sizes[n, : len(listed)] = [size[a] for a in listed]
    g, i, to, fresh, dying, gone, touched, always, unstored = table
    return _Runs(g, i, to, fresh, dying, gone, touched, places, sizes, always, unstored), found


def _stand_ins(graph: _Graph, i: int, new: int, dead: int, left: int) -> tuple[int, int]:
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


def _expand(graph: _Graph, layer: _Layer) -> _Layer:
    """All states one operator further, before any is compared."""
    runs, ideals = _runs(graph, layer.ideals)
    ends = np.searchsorted(layer.ideal, np.arange(len(layer.ideals) + 1))
    counts = (ends[1:] - ends[:-1])[runs.ideal]
    run = np.repeat(np.arange(len(counts)), counts)
    offset = np.arange(len(run)) - np.repeat(np.cumsum(counts) - counts, counts)
    state = ends[:-1][runs.ideal][run] + offset

    out, stored, held = layer.out[state], layer.stored[state], layer.held[state]
    back = np.zeros(len(run), dtype=np.int64)
    for k in range(runs.reads.shape[1]):
        place = runs.reads[run, k]
        back += runs.read_sizes[run, k] * ((out >> np.maximum(place, 0)) & 1)
    short = held + back + runs.fresh[run] - graph.capacity
    always, unstored = runs.stands_in[run], runs.if_not_stored[run]
    safe = (back == 0) & (short <= 0) & ((always > 0) | ((always == 0) & ((unstored & ~stored) != 0)))
    chosen = np.flatnonzero(safe)
    _, once = np.unique(state[chosen], return_index=True)
    bound_to = np.zeros(len(layer), dtype=np.bool_)
    bound_to[state[chosen]] = True
    keep = ~bound_to[state]
    keep[chosen[once]] = True
    run, state, out, stored, held, back, short = (v[keep] for v in (run, state, out, stored, held, back, short))

    pair, evicted, freed, price = _evictions(layer.ideals, runs, run, out, stored, short)
    run, state, out, stored, held, back = (v[pair] for v in (run, state, out, stored, held, back))
    dear = _dear(layer.ideals)[runs.ideal[run]]
    return _Layer(
        ideals,
        runs.to[run],
        (out & ~runs.touched[run]) | evicted,
        (stored | (evicted & dear)) & ~runs.gone[run],
        held + back - freed + runs.fresh[run] - runs.dying[run],
        layer.paid[state] + price,
        state,
        runs.operator[run],
    )


def _dear(ideals: list[_Ideal]) -> Words:
    return np.array([int(((1 << i.places) * i.dear).sum()) for i in ideals], dtype=np.int64)


def _evictions(
    ideals: list[_Ideal], runs: _Runs, run: Words, out: Words, stored: Words, short: Words
) -> tuple[Words, Words, Words, Words]:
    """For every (run, state) all minimal evictions that make room: the pair's number, slots, grains freed, price.

    Tensors are taken or not from the largest to the smallest, until enough is free: then the last one taken is the
    smallest, and without it too little would be.
    """
    most = max(1, max(len(i.places) for i in ideals))
    place = np.zeros((len(ideals), most), dtype=np.int64)
    size = np.zeros((len(ideals), most), dtype=np.int64)
    dear = np.zeros((len(ideals), most), dtype=np.int64)
    for g, ideal in enumerate(ideals):
        place[g, : len(ideal.places)], size[g, : len(ideal.places)] = ideal.places, ideal.sizes
        dear[g, : len(ideal.places)] = ideal.dear
    none = np.flatnonzero(short <= 0)
    zero = np.zeros(len(none), dtype=np.int64)
    done = [(none, zero, zero, zero)]
    pair = np.flatnonzero(short > 0)
    ideal = runs.ideal[run[pair]]
    missing, mask, price = short[pair], np.zeros(len(pair), dtype=np.int64), np.zeros(len(pair), dtype=np.int64)
    fixed = out[pair] | runs.touched[run[pair]]
    rest = np.zeros(len(pair), dtype=np.int64)
    for k in range(most):
        rest += size[ideal, k] * (1 - ((fixed >> place[ideal, k]) & 1))
    alive = rest >= missing
    pair, ideal, missing, mask, price, fixed, rest = (
        v[alive] for v in (pair, ideal, missing, mask, price, fixed, rest)
    )
    for k in range(most):
        if not len(pair):
            break
        bit, amount = place[ideal, k], size[ideal, k]
        free = (amount > 0) & (((fixed >> bit) & 1) == 0)
        rest = rest - amount * free
        cost = amount * (1 + (dear[ideal, k] & ~(stored[pair] >> bit) & 1))
        enough = free & (amount >= missing)
        done.append(
            (
                pair[enough],
                mask[enough] | 1 << bit[enough],
                short[pair[enough]] - missing[enough] + amount[enough],
                price[enough] + cost[enough],
            )
        )
        skip = rest >= missing
        more = free & ~enough & (rest >= missing - amount)
        pair, ideal, fixed, rest, missing, mask, price = (
            np.concatenate([pair[skip], pair[more]]),
            np.concatenate([ideal[skip], ideal[more]]),
            np.concatenate([fixed[skip], fixed[more]]),
            np.concatenate([rest[skip], rest[more]]),
            np.concatenate([missing[skip], (missing - amount)[more]]),
            np.concatenate([mask[skip], (mask | 1 << bit)[more]]),
            np.concatenate([price[skip], (price + cost)[more]]),
        )
    return tuple(np.concatenate(column) for column in zip(*done))  # type: ignore[return-value]


def _distinct(layer: _Layer, most: int) -> _Layer:
    """Sorted by ideal and paid; of equal states the cheapest; those that cost `most` or more left out."""
    order = np.lexsort((layer.paid, layer.stored, layer.out, layer.ideal))
    g, out, stored = layer.ideal[order], layer.out[order], layer.stored[order]
    fresh = np.ones(len(order), dtype=np.bool_)
    fresh[1:] = (g[1:] != g[:-1]) | (out[1:] != out[:-1]) | (stored[1:] != stored[:-1])
    order = order[fresh & (layer.paid[order] < most)]
    return layer.take(order[np.lexsort((layer.paid[order], layer.ideal[order]))])


@dataclass(slots=True)
class _Cut:
    """What a layer lost: states of an ideal beyond its width, and the least value among them."""

    states: int = 0
    least: int = 1 << 60


def _select(graph: _Graph, layer: _Layer, most: int, width: int, cut: _Cut) -> _Layer:
    """States that no other is as good as and whose value stays below `most`; at most `width` of an ideal."""
    ends = np.searchsorted(layer.ideal, np.arange(len(layer.ideals) + 1))
    kept: list[npt.NDArray[np.intp]] = []
    for g, ideal in enumerate(layer.ideals):
        low, high = int(ends[g]), int(ends[g + 1])
        if low == high:
            continue
        value = layer.paid[low:high] + _to_come(graph, ideal, layer.out[low:high], layer.stored[low:high])
        chosen = np.flatnonzero(value < most)
        chosen = chosen[np.argsort(value[chosen], kind="stable")]
        for most_kept, sieve in ((_COMPARED * width, False), (width, True)):
            if sieve:
                chosen = _undominated(ideal, layer, chosen + low) - low
            if len(chosen) > most_kept:
                cut.states += len(chosen) - most_kept
                cut.least = min(cut.least, int(value[chosen[most_kept:]].min()))
                chosen = chosen[:most_kept]
        kept.append(chosen + low)
    return layer.take(np.concatenate(kept) if kept else np.zeros(0, dtype=np.intp))


def _undominated(ideal: _Ideal, layer: _Layer, which: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """Those of `which` (the best first) that none before them is as good as."""
    if len(which) < 2 or not len(ideal.places):
        return which[:1] if not len(ideal.places) else which
    kept = which[:0]
    while len(which):
        block, which = which[:_BLOCK], which[_BLOCK:]
        better = _as_good(ideal, layer, block, block)
        np.fill_diagonal(better, False)
        mutual = better & better.T
        better &= ~(mutual & (np.arange(len(block))[:, None] > np.arange(len(block))))
        block = block[~better.any(axis=0)]
        kept = np.concatenate([kept, block])
        if len(which):
            which = which[~_as_good(ideal, layer, block, which).any(axis=0)]
    return kept


def _as_good(
    ideal: _Ideal, layer: _Layer, ones: npt.NDArray[np.intp], others: npt.NDArray[np.intp]
) -> npt.NDArray[np.bool_]:
    """[i, j]: state `ones[i]`, having evicted and stored what only `others[j]` has, has paid no more."""
    size, dear = ideal.sizes.astype(np.float64), ideal.dear

    def split(which: npt.NDArray[np.intp]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        out = (layer.out[which][:, None] >> ideal.places) & 1
        stored = (layer.stored[which][:, None] >> ideal.places) & 1
        return out.astype(np.float64), stored.astype(np.float64)

    out, stored = split(ones)
    evicting = size * (1 + dear * (1 - stored)) * (1 - out)
    storing = size * (1 - stored)
    out_, stored_ = split(others)
    extra = evicting @ out_.T + storing @ (stored_ * (1 - out_)).T
    found: npt.NDArray[np.bool_] = layer.paid[ones][:, None] + extra <= layer.paid[others]
    return found


def _to_come(graph: _Graph, ideal: _Ideal, out: Words, stored: Words) -> Words:
    """`Floors.to_come` of every state of an ideal, in grains."""
    floors = graph.floors
    excess, cheap, flow, outside = graph.vectors(ideal)
    open_ = excess > NEVER // 2
    columns = np.flatnonzero(open_ & ((excess > 0) | (floors.after > 0)))
    if not len(columns):
        return np.zeros(len(out), dtype=np.int64)
    outs = ((out[:, None] >> ideal.places) & 1).astype(np.float64)
    kept = ((stored[:, None] >> ideal.places) & 1).astype(np.float64)
    away = outs @ outside[:, columns]
    e = excess[columns] - away
    c = cheap[columns] + kept @ flow[:, columns] - away
    least = np.maximum(np.maximum(2 * e - c, e), 0) + floors.after[columns]
    return np.asarray(least.max(axis=1), dtype=np.int64)


def layers(
    moves: Moves,
    *,
    known: int,
    width: int,
    deadline: float,
    most_states: int = _MOST_STATES,
    tick: Callable[[], None] = lambda: None,
) -> Found | None:
    """The least traffic through the segment if it is below `known` bytes; `width` states of each ideal are kept.

    The bound holds for every plan of the segment. None past the deadline, if more than `most_states` states would have
    to be kept, or where 62 tensors or more may be alive at once. `tick` is called after every layer.
    """
    graph = _Graph(moves)
    if not graph.possible:
        return None
    most = -(-known // graph.unit)
    layer = graph.first()
    passed = [layer]
    cut = _Cut()
    seen = 1
    for _ in range((moves.segment.stop & ~moves.segment.start).bit_count()):
        layer = _select(graph, _distinct(_expand(graph, layer), most), most, width, cut)
        seen += len(layer)
        passed.append(layer)
        tick()
        if not len(layer):
            return Found(None, known, min(known, cut.least * graph.unit), seen)
        if time.perf_counter() > deadline or seen > most_states:
            return None
    cost = int(layer.paid[0]) * graph.unit
    return Found(_path(graph, passed), cost, min(cost, cut.least * graph.unit), seen)


def _path(graph: _Graph, passed: list[_Layer]) -> tuple[tuple[int, int], ...]:
    moves: list[tuple[int, int]] = []
    at = 0
    for before, layer in zip(reversed(passed[:-1]), reversed(passed[1:])):
        parent = int(layer.parent[at])
        ideal = before.ideals[int(before.ideal[parent])]
        left = int(layer.out[at]) & ~int(before.out[parent])
        mask = sum(1 << a for a in ideal.tensors if left >> graph.slot[a] & 1)
        moves.append((int(layer.operator[at]), mask))
        at = parent
    return tuple(reversed(moves))
