"""Schedules with options: bypass, outputs in place of inputs, operators that run again. Exact where the search ends.

* *bypass*: an operator reads an operand from off-chip without its being resident; a load each time.
* *in-place*: an output no larger than one of the inputs lies within that one, which is then gone.
* *recompute*: an operator may run again to make anew what was dropped without a store.

Dijkstra's algorithm over (operators that have run, residents, tensors that lie off-chip). Every option only adds plans,
so the plan without any is the first incumbent, and what the search has proven when it stops is the bound.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from peakline.solvers.dag import Dag, bits
from peakline.solvers.evictions import minimal_sets

__all__ = ["Found", "Taken", "search"]

_CHECK_CLOCK = 256
_MOST_STATES = 400_000  # waiting; about 1 kB each


@dataclass(frozen=True, slots=True)
class Taken:
    """A step: masks of what is stored, evicted, loaded and bypassed, then operator `i` runs; (output, input) pairs."""

    i: int
    store: int
    evict: int
    load: int
    bypass: int
    in_place: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Found:
    """`steps` with the least traffic `cost` (None: nothing below the known one), and a bound on every plan's."""

    steps: tuple[Taken, ...] | None
    cost: int
    bound: int
    ended: bool


State = tuple[int, int, int]  # executed operators, resident tensors, tensors off-chip


class _Moves:
    """Steps that may follow a state."""

    def __init__(self, dag: Dag, capacity: int, allow: tuple[str, ...], deadline: float) -> None:
        self.dag, self.capacity, self.deadline = dag, capacity, deadline
        self.bypass, self.in_place, self.again = (name in allow for name in ("bypass", "in-place", "recompute"))

    def of(self, state: State) -> Iterator[tuple[int, State, Taken]]:
        """(traffic, next state, step), in any order."""
        executed, resident, off = state
        for i, reads in enumerate(self.dag.reads):
            ran = executed >> i & 1
            if ran and not (self.again and self.dag.makes[i] & ~resident):
                continue
            if reads & ~(resident | off):
                continue
            for passed in _subsets(reads) if self.bypass else (0,):
                for pairs in self._overlays(i, passed):
                    yield from self._step(state, i, reads & ~resident & ~passed, passed, pairs)

    def _overlays(self, i: int, passed: int) -> Iterator[tuple[tuple[int, int], ...]]:
        """Ways to put outputs in place of inputs, each input under one output at most."""
        if not self.in_place:
            yield ()
            return
        choices = [
            [None, *(a for made, a in self.dag.overlays[i] if made == b and not passed >> a & 1)]
            for b in self.dag.outputs[i]
        ]
        for chosen in product(*choices):
            under = [a for a in chosen if a is not None]
            if len(set(under)) == len(under):
                yield tuple((b, a) for b, a in zip(self.dag.outputs[i], chosen) if a is not None)

    def _step(
        self, state: State, i: int, load: int, passed: int, pairs: tuple[tuple[int, int], ...]
    ) -> Iterator[tuple[int, State, Taken]]:
        """Ways to make room for operator `i`; with recompute what leaves may be lost, to be made anew."""
        executed, resident, off = state
        dag = self.dag
        needed = (dag.reads[i] & ~passed) | dag.makes[i]
        leaving = resident & passed  # stored if need be, then read from off-chip
        idle = resident & ~needed & ~leaving
        room = self.capacity - dag.weigh(needed) + sum(dag.size[b] for b, _ in pairs)
        anew = resident & dag.makes[i]  # made again, so the old copy may go
        for evict in minimal_sets(dag, idle, dag.weigh(idle) - room, self.deadline):
            under = sum(1 << a for _, a in pairs)
            losing = (evict | under) & ~off
            must = losing if self.again else losing & dag.read_by(~(executed | 1 << i))
            for lost in _subsets(must) if self.again else (0,):
                store = must & ~lost | leaving & ~off
                if store & load:
                    continue
                first = sum(1 << a for a in bits(load | passed) if dag.maker[a] < 0 and not dag.readers[a] & executed)
                paid = dag.weigh(store) + dag.weigh((load | passed) & ~first)
                stays = (resident & ~evict & ~leaving | needed) & ~under
                off_now = off | store | dag.makes[i] & dag.results
                new = (executed | 1 << i, stays, off_now)
                yield paid, new, Taken(i, store, evict | anew | leaving, load, passed, pairs)


def search(dag: Dag, capacity: int, allow: tuple[str, ...], known: int | None, *, deadline: float) -> Found:
    """The least traffic with the options in `allow`, if below `known`; outputs are stored when they are made.

    `deadline`: of `time.perf_counter`. The bound is the smallest traffic still waiting then.
    """
    moves = _Moves(dag, capacity, allow, deadline)
    start: State = (0, 0, dag.off_chip)
    cost = {start: 0}
    came: dict[State, tuple[State, Taken]] = {}
    heap: list[tuple[int, int, int, State]] = [(0, 0, 0, start)]
    serial = pops = looked = 0
    while heap:
        paid, _, _, state = heapq.heappop(heap)
        if known is not None and paid >= known:
            return Found(None, known, known, True)
        if paid > cost[state]:
            continue
        if state[0] == dag.everything:
            steps: list[Taken] = []
            while state in came:
                state, step = came[state]
                steps.append(step)
            return Found(tuple(reversed(steps)), paid, paid, True)
        pops += 1
        if serial > _MOST_STATES or (pops % _CHECK_CLOCK == 0 and time.perf_counter() > deadline):
            return Found(None, known or 0, paid, False)
        try:
            for price, new, taken in moves.of(state):
                looked += 1
                if looked % _CHECK_CLOCK == 0 and time.perf_counter() > deadline:
                    raise TimeoutError
                if paid + price < cost.get(new, 1 << 62):
                    cost[new] = paid + price
                    came[new] = (state, taken)
                    serial += 1
                    heapq.heappush(heap, (paid + price, -new[0].bit_count(), serial, new))
        except TimeoutError:  # amid a state: nothing cheaper than it waits
            return Found(None, known or 0, paid, False)
    return Found(None, known or 0, known or 0, True)


def _subsets(mask: int) -> Iterator[int]:
    """All parts of a set, the whole first."""
    part = mask
    while True:
        yield part
        if not part:
            return
        part = (part - 1) & mask
