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

from peakline.solvers.floors import NEVER
from peakline.solvers.schedule.ideals import Graph, Ideal, Runs, Words, next_ideals
from peakline.solvers.schedule.search import Found
from peakline.solvers.schedule.states import Moves

__all__ = ["Crowded", "Layer", "distinct", "expand", "layers", "to_come", "trace", "undominated"]

_MOST_STATES = 12_000_000  # 32 bytes each
_MOST_WAYS = 40_000_000  # to make room in all states of a layer, 60 bytes each
_COMPARED = 8  # times the width: states of an ideal that are compared with each other
_BLOCK = 256  # states of an ideal, the best first, against which the others are compared
_ROWS = 16_384  # states whose bits are taken apart at a time
_TILE = 4096  # of the others at a time, so that what is compared stays in the cache


_Grains = npt.NDArray[np.signedinteger]
"""Bytes in units: 32 bits where they suffice."""


class Crowded(Exception):
    """There are more ways to make room than asked for."""


@dataclass(slots=True)
class Layer:
    """States, sorted by ideal, in grains; `parent` and `operator` lead back."""

    ideals: list[Ideal]
    ideal: Words
    out: Words
    stored: Words
    held: Words
    paid: Words
    parent: Words
    operator: Words

    def __len__(self) -> int:
        return len(self.ideal)

    def starts(self) -> npt.NDArray[np.intp]:
        """Where the states of each ideal begin, and after them the end of the last."""
        return np.searchsorted(self.ideal, np.arange(len(self.ideals) + 1))

    def forget(self) -> None:
        """Keep what leads back alone."""
        self.stored = self.held = self.paid = np.zeros(0, dtype=np.int64)

    def take(self, which: npt.NDArray[np.intp]) -> Layer:
        return Layer(
            self.ideals, self.ideal[which], self.out[which], self.stored[which], self.held[which], self.paid[which],
            self.parent[which], self.operator[which],
        )  # fmt: skip


def expand(
    graph: Graph,
    layer: Layer,
    runs: Runs,
    ideals: list[Ideal],
    below: Words,
    *,
    forward: bool = True,
    most: int = _MOST_WAYS,
) -> Layer:
    """All states one operator further, before any is compared; `runs` lead from the layer's ideals to `ideals`.

    A state of the k-th of these has paid less than `below[k]`. `forward`: of tensors that may leave in each other's
    stead only the first ones do (`Ideal.read_later`).

    Raises Crowded if it takes more than `most` ways to make room.
    """
    ends = layer.starts()
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
    keep &= layer.paid[state] < below[runs.to[run]]
    run, state, out, stored, held, back, short = (v[keep] for v in (run, state, out, stored, held, back, short))

    which, number = np.unique(layer.ideal, return_inverse=True)
    used, at = [layer.ideals[g] for g in which], number.ravel()[state]
    spare = below[runs.to[run]] - layer.paid[state]
    pair, evicted, freed, price = _evictions(used, at, runs.touched[run], out, stored, short, spare, forward, most)
    run, state, out, stored, held, back = (v[pair] for v in (run, state, out, stored, held, back))
    dear = _dear(used)[at[pair]]
    return Layer(
        ideals,
        runs.to[run],
        (out & ~runs.touched[run]) | evicted,
        (stored | (evicted & dear)) & ~runs.gone[run],
        held + back - freed + runs.fresh[run] - runs.dying[run],
        layer.paid[state] + price,
        state,
        runs.operator[run],
    )


def _dear(ideals: list[Ideal]) -> Words:
    return np.array([int(((1 << i.places) * i.dear).sum()) for i in ideals], dtype=np.int64)


def _evictions(
    ideals: list[Ideal],
    at: Words,
    touched: Words,
    out: Words,
    stored: Words,
    short: Words,
    spare: Words,
    forward: bool,
    limit: int,
) -> tuple[Words, Words, Words, Words]:
    """For every (run, state) all minimal evictions that make room: the pair's number, slots, grains freed, price.

    `at` is the position in `ideals` of each pair's ideal; what is evicted costs less than `spare`, and at least a grain
    a grain.

    Tensors are taken or not from the largest to the smallest, until enough is free: then the last one taken is the
    smallest, and without it too little would be.
    """
    most = max(1, max(len(i.places) for i in ideals))
    small = np.int32 if all(4 * int(i.sizes.sum()) < 1 << 31 for i in ideals) else np.int64
    place = np.zeros((len(ideals), most), dtype=np.int64)
    size: _Grains = np.zeros((len(ideals), most), dtype=small)
    dear: _Grains = np.zeros((len(ideals), most), dtype=small)
    first = np.zeros((2, len(ideals), most), dtype=np.int64)
    for g, one in enumerate(ideals):
        if forward:
            first[:, g, : len(one.places)] = one.read_later
        place[g, : len(one.places)], size[g, : len(one.places)] = one.places, one.sizes
        dear[g, : len(one.places)] = one.dear
    none = np.flatnonzero(short <= 0)
    zero = np.zeros(len(none), dtype=np.int64)
    done = [(none, zero, zero, zero)]
    pair = np.flatnonzero(short > 0)
    ideal = at[pair]
    fixed, mask = out[pair] | touched[pair], np.zeros(len(pair), dtype=np.int64)
    missing: _Grains = short[pair].astype(small)
    price: _Grains = np.zeros(len(pair), dtype=small)
    rest: _Grains = np.zeros(len(pair), dtype=small)  # grains that may still leave
    cheap: _Grains = np.zeros(len(pair), dtype=small)  # those of them that cost no store
    for k in range(most):
        bit = place[ideal, k]
        amount = size[ideal, k] * (1 - _bit(fixed, bit, small))
        rest += amount
        cheap += amount * (1 - dear[ideal, k] * (1 - _bit(stored[pair], bit, small)))
    ways = 0
    for k in range(most):
        possible = (rest >= missing) & (missing + np.maximum(missing - cheap, 0) < spare[pair] - price)
        pair, ideal, fixed, mask, missing, price, rest, cheap = (
            v[possible] for v in (pair, ideal, fixed, mask, missing, price, rest, cheap)
        )
        ways += len(pair)
        if not len(pair):
            break
        if ways > limit:
            raise Crowded
        bit = place[ideal, k]
        amount = size[ideal, k] * (1 - _bit(fixed, bit, small))
        unstored = dear[ideal, k] * (1 - _bit(stored[pair], bit, small))
        cost = amount * (1 + unstored)
        rest -= amount
        cheap -= amount * (1 - unstored)
        free = amount > 0
        if forward:  # those that leave before it, as far as they cost no more
            before = first[0, ideal, k] | first[1, ideal, k] & (stored[pair] | -unstored.astype(np.int64))
            free &= (before & ~(mask | fixed)) == 0
        enough = np.flatnonzero(free & (amount >= missing) & (cost < spare[pair] - price))
        done.append(
            (
                pair[enough],
                mask[enough] | 1 << bit[enough],
                short[pair[enough]] - missing[enough] + amount[enough],
                price[enough].astype(np.int64) + cost[enough],
            )
        )
        more = np.flatnonzero(free & (amount < missing))
        taken = mask[more] | 1 << bit[more], missing[more] - amount[more], price[more] + cost[more]
        pair, ideal, fixed, rest, cheap = (np.concatenate([v, v[more]]) for v in (pair, ideal, fixed, rest, cheap))
        mask, missing, price = (np.concatenate([v, new]) for v, new in zip((mask, missing, price), taken))
    return tuple(np.concatenate(column) for column in zip(*done))  # type: ignore[return-value]


def _bit(words: Words, places: Words, kind: type[np.signedinteger]) -> _Grains:
    """1 where a word's bit is set."""
    return ((words >> places) & 1).astype(kind)


def distinct(layer: Layer, most: int) -> Layer:
    """Sorted by ideal and paid; of equal states the cheapest; those that cost `most` or more left out."""
    layer = layer.take(np.flatnonzero(layer.paid < most))
    if not len(layer):
        return layer
    here, stored = _joined(layer.ideal, layer.out), _joined(layer.stored, layer.paid)
    order = np.lexsort((*stored[::-1], *here[::-1]))
    fresh = np.zeros(len(order), dtype=np.bool_)
    fresh[0] = True
    for column in (layer.ideal, layer.out, layer.stored):
        values = column[order]
        fresh[1:] |= values[1:] != values[:-1]
    order = order[fresh]
    return layer.take(order[np.lexsort(_joined(layer.ideal[order], layer.paid[order])[::-1])])


def _joined(major: Words, minor: Words) -> tuple[Words, ...]:
    """Two columns of numbers from 0 on as one that sorts as they do, where it has room for both."""
    bits = int(minor.max()).bit_length()
    return (major << bits | minor,) if int(major.max()).bit_length() + bits < 63 else (major, minor)


@dataclass(slots=True)
class _Cut:
    """What a layer lost: states of an ideal beyond its width, and the least value among them."""

    states: int = 0
    least: int = 1 << 60


def _select(graph: Graph, layer: Layer, most: int, width: int, cut: _Cut) -> Layer:
    """States that no other is as good as and whose value stays below `most`; at most `width` of an ideal."""
    ends = layer.starts()
    kept: list[npt.NDArray[np.intp]] = []
    for g, ideal in enumerate(layer.ideals):
        low, high = int(ends[g]), int(ends[g + 1])
        if low == high:
            continue
        value = layer.paid[low:high] + to_come(graph, ideal, layer.out[low:high], layer.stored[low:high])
        chosen = np.flatnonzero(value < most)
        chosen = chosen[np.argsort(value[chosen], kind="stable")]
        for most_kept, sieve in ((_COMPARED * width, False), (width, True)):
            if sieve:
                chosen = undominated(ideal, layer, chosen + low) - low
            if len(chosen) > most_kept:
                cut.states += len(chosen) - most_kept
                cut.least = min(cut.least, int(value[chosen[most_kept:]].min()))
                chosen = chosen[:most_kept]
        kept.append(chosen + low)
    return layer.take(np.concatenate(kept) if kept else np.zeros(0, dtype=np.intp))


def undominated(ideal: Ideal, layer: Layer, which: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """Those of `which` (the best first) that none before them is as good as."""
    if len(which) < 2 or not len(ideal.places):
        return which[:1] if not len(ideal.places) else which
    ones, others = _weights(ideal, layer, which)
    kept = which[:0]
    while len(which):
        here, which = which[:_BLOCK], which[_BLOCK:]
        block, ones = ones[:_BLOCK], ones[_BLOCK:]
        better = block @ others[:_BLOCK].T <= 0
        others = others[_BLOCK:]
        np.fill_diagonal(better, False)
        mutual = better & better.T
        better &= ~(mutual & (np.arange(len(here))[:, None] > np.arange(len(here))))
        alone = ~better.any(axis=0)
        kept, block = np.concatenate([kept, here[alone]]), block[alone]
        if len(which):
            left = ~np.concatenate(
                [(block @ others[k : k + _TILE].T <= 0).any(axis=0) for k in range(0, len(others), _TILE)]
            )
            which, ones, others = which[left], ones[left], others[left]
    return kept


def _weights(
    ideal: Ideal, layer: Layer, which: npt.NDArray[np.intp]
) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]]:
    """Rows of numbers: row i of the first times row j of the second is not above 0 if state i is as good as state j.

    State i, having evicted and stored what only state j has, has then paid no more. The numbers are whole, and in the
    smallest type of floating point that holds all their sums exactly.
    """
    paid = layer.paid[which] - layer.paid[which].min()
    size, dear = ideal.sizes, ideal.dear
    exact = np.float32 if 2 * int(size.sum()) + int(paid.max()) < 1 << 24 else np.float64
    ones, others = (np.empty((len(which), 2 * len(size) + 2), dtype=exact) for _ in range(2))
    for k in range(0, len(which), _ROWS):
        rows = slice(k, k + _ROWS)
        out = (layer.out[which[rows]][:, None] >> ideal.places) & 1
        stored = (layer.stored[which[rows]][:, None] >> ideal.places) & 1
        evicting, storing = size * (1 + dear * (1 - stored)) * (1 - out), size * (1 - stored)
        one, own = np.ones((len(out), 1), dtype=np.int64), paid[rows, None]
        ones[rows] = np.concatenate([evicting, storing, own, one], axis=1)
        others[rows] = np.concatenate([out, stored * (1 - out), one, -own], axis=1)
    return ones, others


def to_come(graph: Graph, ideal: Ideal, out: Words, stored: Words) -> Words:
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
    graph = Graph(moves)
    if not graph.possible:
        return None
    most = -(-known // graph.unit)
    zero = np.zeros(1, dtype=np.int64)
    layer = Layer([graph.first()], zero, zero, zero, graph.held_at_first(), zero, zero, zero)
    passed = [layer]
    cut = _Cut()
    seen = 1
    for _ in range((moves.segment.stop & ~moves.segment.start).bit_count()):
        runs, ideals = next_ideals(graph, layer.ideals)
        try:
            expanded = expand(graph, layer, runs, ideals, np.full(len(ideals), most, dtype=np.int64))
        except Crowded:
            return None
        layer.forget()
        layer = _select(graph, distinct(expanded, most), most, width, cut)
        seen += len(layer)
        passed.append(layer)
        tick()
        if not len(layer):
            return Found(None, known, min(known, cut.least * graph.unit), seen)
        if time.perf_counter() > deadline or seen > most_states:
            return None
    cost = int(layer.paid[0]) * graph.unit
    return Found(tuple(reversed(trace(graph, passed, 0))), cost, min(cost, cut.least * graph.unit), seen)


def trace(graph: Graph, passed: list[Layer], at: int) -> list[tuple[int, int]]:
    """Operators and evictions from state `at` of the last layer back to the first layer."""
    found: list[tuple[int, int]] = []
    for before, layer in zip(reversed(passed[:-1]), reversed(passed[1:])):
        parent = int(layer.parent[at])
        ideal = before.ideals[int(before.ideal[parent])]
        left = int(layer.out[at]) & ~int(before.out[parent])
        found.append((int(layer.operator[at]), sum(1 << a for a in ideal.tensors if left >> graph.slot[a] & 1)))
        at = parent
    return found
