"""The least weighted traffic over several levels by best-first search over single moves; exact if it ends.

A state is what has run, what has a copy in each level, and what lies off-chip. A move runs an operator, or takes a
tensor over a link; it evicts, where it needs room, a set of copies no part of which would make enough. Traffic that
must follow in any case, over each link what is not yet on this side of it, bounds what is to come.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf

from peakline.solvers.dag import Dag, bits
from peakline.solvers.evictions import minimal_sets
from peakline.solvers.levels.plan import Level

__all__ = ["Act", "Found", "search"]

_CHECK_CLOCK = 256
_LESS = 1 - 1e-12  # times a cost: what is below that is less, and not only rounded differently
_STALE = 1e-9  # of a value: what is above a later one by more has been bettered since

State = tuple[int, tuple[int, ...], int]  # executed operators, copies in each level, tensors off-chip


@dataclass(frozen=True, slots=True)
class Act:
    """`evict` (a mask) at `level`, then: operator `run` makes its outputs, or `tensor` comes by load or store."""

    level: int
    evict: int
    run: int = -1
    tensor: int = -1
    load: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """Moves with the least cost (None: none below the known one, or out of time), and a bound on every plan's."""

    acts: tuple[Act, ...] | None
    cost: float
    bound: float
    ended: bool


def search(dag: Dag, levels: Sequence[Level], known: float, *, deadline: float, most_states: int = 400_000) -> Found:
    """The plan with the least weighted non-compulsory traffic, if below `known`."""
    work = _Work(dag, levels)
    start: State = (0, (0,) * len(levels), dag.off_chip)
    compulsory = work.to_come(start)
    cost = {start: 0.0}
    came: dict[State, tuple[State, Act]] = {}
    heap: list[tuple[float, int, int, State]] = [(compulsory, 0, 0, start)]
    serial = pops = 0
    while heap:
        value, _, _, state = heapq.heappop(heap)
        if value - compulsory >= known * _LESS:
            return Found(None, known, known, True)
        paid = cost[state]
        if value > paid + work.to_come(state) + _STALE * value:
            continue
        if state[0] == dag.everything and not dag.results & ~state[2]:
            acts = []
            while state in came:
                state, act = came[state]
                acts.append(act)
            least = max(0.0, value - compulsory)
            return Found(tuple(reversed(acts)), least, least, True)
        pops += 1
        if pops % _CHECK_CLOCK == 0 and (time.perf_counter() > deadline or serial > most_states):
            return Found(None, known, max(0.0, value - compulsory), False)
        for price, new, act in work.moves(state):
            if paid + price < cost.get(new, inf) * _LESS:
                cost[new] = paid + price
                came[new] = (state, act)
                serial += 1
                heapq.heappush(heap, (paid + price + work.to_come(new), -new[0].bit_count(), serial, new))
    return Found(None, known, known, True)


class _Work:
    """Moves and bounds of one problem."""

    def __init__(self, dag: Dag, levels: Sequence[Level]) -> None:
        self.dag, self.levels = dag, levels

    def to_come(self, state: State) -> float:
        """Over link l: what is read later and lies only beyond it; outputs that lie only before it."""
        executed, copies, off = state
        left = self.dag.read_by(~executed)
        unmade = sum(self.dag.makes[i] for i in bits(self.dag.everything & ~executed))
        total, inner = 0.0, 0
        for n, level in enumerate(self.levels):
            inner |= copies[n]
            beyond = off
            for other in copies[n + 1 :]:
                beyond |= other
            coming = left & beyond & ~inner
            going = self.dag.results & ~beyond
            total += level.weight * (self.dag.weigh(coming & ~unmade) + self.dag.weigh(going))
        return total

    def moves(self, state: State) -> Iterator[tuple[float, State, Act]]:
        """(weighted bytes, next state, act): operators that may run, then loads and stores over each link."""
        executed, copies, off = state
        for i in range(len(self.dag)):
            if executed >> i & 1 or self.dag.reads[i] & ~copies[0]:
                continue
            for evict in self._evictions(state, 0, self.dag.makes[i], self.dag.reads[i]):
                kept = (copies[0] & ~evict | self.dag.makes[i], *copies[1:])
                yield 0.0, self._without_dead((executed | 1 << i, kept, off)), Act(1, evict, run=i)
        wanted = self.dag.read_by(~executed)
        for n, level in enumerate(self.levels):
            beyond = copies[n + 1] if n + 1 < len(copies) else off
            for a in bits(wanted & beyond & ~copies[n]):
                price = level.weight * self.dag.size[a]
                for evict in self._evictions(state, n, 1 << a, 1 << a):
                    kept = (*copies[:n], copies[n] & ~evict | 1 << a, *copies[n + 1 :])
                    yield price, (executed, kept, off), Act(n + 1, evict, tensor=a, load=True)
            for a in bits(copies[n] & ~beyond & (wanted | (self.dag.results & ~off))):
                price = level.weight * self.dag.size[a]
                if n + 1 == len(copies):
                    yield price, self._without_dead((executed, copies, off | 1 << a)), Act(n + 2, 0, tensor=a)
                    continue
                for evict in self._evictions(state, n + 1, 1 << a, 1 << a):
                    kept = (*copies[: n + 1], copies[n + 1] & ~evict | 1 << a, *copies[n + 2 :])
                    yield price, (executed, kept, off), Act(n + 2, evict, tensor=a)

    def _evictions(self, state: State, n: int, fresh: int, busy: int) -> Iterator[int]:
        """Sets of copies at level n + 1 that make room for `fresh`, none superfluous, none the last of its tensor.

        A tensor whose copy comes or goes may lose its other copies only by later moves.
        """
        _, copies, off = state
        excess = self.dag.weigh(copies[n] | fresh) - self.levels[n].capacity
        elsewhere = off
        for m, other in enumerate(copies):
            elsewhere |= other if m != n else 0
        return minimal_sets(self.dag, copies[n] & ~busy & elsewhere, excess)

    def _without_dead(self, state: State) -> State:
        """What nobody reads or stores any more has no copies."""
        executed, copies, off = state
        kept = self.dag.read_by(~executed) | (self.dag.results & ~off)
        return executed, tuple(mask & kept for mask in copies), off
