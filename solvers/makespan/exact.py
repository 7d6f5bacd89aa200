"""The shortest time by best-first search over moments at which something ends; exact if it ends, for small graphs.

A state is what has run, what is resident, what lies off-chip, what the unit and the link are busy with and for how
much longer. At each moment an idle unit takes an operator or waits for the next end, and so does an idle link; whoever
needs room evicts a set of residents no part of which would make enough. What is evicted is dead or lies off-chip.
Starting anything between two ends gains nothing. Times are whole numbers of a common unit, so nothing is rounded.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import inf, lcm
from typing import NamedTuple

from peakline.solvers.dag import Dag, bits
from peakline.solvers.evictions import minimal_sets
from peakline.solvers.makespan.timed import Stay, Timed

__all__ = ["Found", "search"]

_CHECK_CLOCK = 256
_NEVER = 1 << 4000  # ticks: more than any plan takes, however short a tick


class _State(NamedTuple):
    """Masks, and what is in progress: `running` (−1: nothing) for `run_left`, `moving` (0: nothing) for `move_left`.

    `moving` is a + 1 for a load of tensor a, −(a + 1) for a store.
    """

    executed: int
    resident: int
    off_chip: int
    running: int
    run_left: int
    moving: int
    move_left: int


class _Act(NamedTuple):
    """What begins at a moment: an operator (−1: none) after evicting `for_run`, a transfer after `for_move`."""

    run: int
    for_run: int
    move: int
    for_move: int


@dataclass(frozen=True, slots=True)
class Found:
    """The shortest schedule (None: none below the known time, or out of time) and a bound on all, in seconds."""

    timed: Timed | None
    bound: float
    ended: bool


def search(
    dag: Dag, capacity: int, seconds: Sequence[float], bandwidth: float, *, known: float, deadline: float,
    most_states: int = 400_000,
) -> Found:  # fmt: skip
    """The schedule with the least time if it is below `known` seconds; addresses are not looked at."""
    work = _Work(dag, capacity, seconds, bandwidth)
    first = _State(0, 0, dag.off_chip, -1, 0, 0, 0)
    reached = {first: 0}
    came: dict[_State, tuple[_State, _Act]] = {}
    least = work.to_come(first)
    heap = [(least, 0, 0, first)]
    limit = work.ticks(known)
    serial = pops = 0
    while heap:
        least, _, _, state = heapq.heappop(heap)
        if least >= limit:
            return Found(None, known, True)
        now = reached[state]
        if least > now + work.to_come(state):
            continue
        if work.done(state):
            return Found(work.schedule(state, came), least / work.unit, True)
        pops += 1
        if pops % _CHECK_CLOCK == 0 and (time.perf_counter() > deadline or serial > most_states):
            return Found(None, least / work.unit, False)
        for act, new, spent in work.moves(state):
            if now + spent < reached.get(new, _NEVER):
                reached[new] = now + spent
                came[new] = (state, act)
                serial += 1
                heapq.heappush(heap, (now + spent + work.to_come(new), -new.executed.bit_count(), serial, new))
    return Found(None, known, True)


class _Work:
    """Moves and bounds of one problem; durations in ticks, `unit` of which are a second."""

    def __init__(self, dag: Dag, capacity: int, seconds: Sequence[float], bandwidth: float) -> None:
        self.dag, self.capacity = dag, capacity
        runs = [Fraction(p) for p in seconds]
        moves = [Fraction(size) / Fraction(bandwidth) for size in dag.size]
        self.unit = lcm(*(f.denominator for f in (*runs, *moves)))
        self.run_ticks = [int(p * self.unit) for p in runs]
        self.move_ticks = [int(p * self.unit) for p in moves]

    def ticks(self, seconds: float) -> int:
        """Whole ticks in a time; more than any plan takes for no end of it."""
        return int(Fraction(seconds) * self.unit) if seconds != inf else _NEVER

    def done(self, state: _State) -> bool:
        """Whether everything has run and every output lies off-chip."""
        return (
            state.executed == self.dag.everything and state.running < 0 and not state.moving
            and not self.dag.results & ~state.off_chip
        )  # fmt: skip

    def to_come(self, state: _State) -> int:
        """Ticks that must follow: the operators left; the transfers left; the stores after the last operator."""
        executed = state.executed | (1 << state.running if state.running >= 0 else 0)
        compute = state.run_left + sum(self.run_ticks[i] for i in bits(self.dag.everything & ~executed))
        coming = state.resident | (1 << (state.moving - 1) if state.moving > 0 else 0)
        missing = self.dag.read_by(~executed) & state.off_chip & ~coming
        unstored = self.dag.results & ~state.off_chip
        if state.moving < 0:
            unstored &= ~(1 << (-state.moving - 1))
        moving = state.move_left + sum(self.move_ticks[a] for a in bits(missing | unstored))
        return max(compute, moving)

    def moves(self, state: _State) -> Iterator[tuple[_Act, _State, int]]:
        """What may begin now, the state at the next end, and the ticks until then."""
        for run, for_run, begun in self._runs(state):
            for move, for_move, busy in self._transfers(begun):
                if busy.running < 0 and not busy.moving:
                    continue
                ends = [left for left, on in ((busy.run_left, busy.running >= 0), (busy.move_left, busy.moving)) if on]
                yield _Act(run, for_run, move, for_move), self._later(busy, min(ends)), min(ends)

    def _runs(self, state: _State) -> Iterator[tuple[int, int, _State]]:
        """(operator, evicted for it, state): what an idle unit may begin, or that it waits (−1)."""
        yield -1, 0, state
        if state.running >= 0:
            return
        for i in range(len(self.dag)):
            if state.executed >> i & 1 or self.dag.reads[i] & ~state.resident:
                continue
            for evict in self._evictions(state, self.dag.reads[i], self.dag.makes[i]):
                resident = state.resident & ~evict
                yield i, evict, state._replace(running=i, run_left=self.run_ticks[i], resident=resident)

    def _transfers(self, state: _State) -> Iterator[tuple[int, int, _State]]:
        """(move, evicted for it, state): what an idle link may begin, or that it waits (0)."""
        yield 0, 0, state
        if state.moving:
            return
        executed = state.executed | (1 << state.running if state.running >= 0 else 0)
        wanted = self.dag.read_by(~executed)
        busy = self.dag.reads[state.running] if state.running >= 0 else 0
        for a in bits(wanted & state.off_chip & ~state.resident & ~busy):
            for evict in self._evictions(state, busy, 1 << a):
                resident = state.resident & ~evict
                yield a + 1, evict, state._replace(moving=a + 1, move_left=self.move_ticks[a], resident=resident)
        for a in bits(state.resident & ~state.off_chip & (wanted | self.dag.results)):
            yield -(a + 1), 0, state._replace(moving=-(a + 1), move_left=self.move_ticks[a])

    def _evictions(self, state: _State, busy: int, fresh: int) -> Iterator[int]:
        """Sets of idle residents that lie off-chip and make room for `fresh`, none of them superfluous."""
        held = state.resident
        if state.running >= 0:
            held |= self.dag.makes[state.running]
            busy |= self.dag.reads[state.running]
        if state.moving > 0:
            held |= 1 << (state.moving - 1)
        excess = self.dag.weigh(held) + self.dag.weigh(fresh) - self.capacity
        return minimal_sets(self.dag, state.resident & state.off_chip & ~busy, excess)

    def _later(self, state: _State, ticks: int) -> _State:
        """After that many ticks, the dead gone."""
        executed, resident, off_chip, running, run_left, moving, move_left = state
        if running >= 0:
            run_left -= ticks
            if not run_left:
                executed |= 1 << running
                resident |= self.dag.makes[running]
                running = -1
        if moving:
            move_left -= ticks
            if not move_left:
                if moving > 0:
                    resident |= 1 << (moving - 1)
                else:
                    off_chip |= 1 << (-moving - 1)
                moving = 0
        return _State(
            executed, resident & ~self._dead(executed, running, resident, off_chip, moving), off_chip, running,
            run_left, moving, move_left,
        )  # fmt: skip

    def _dead(self, executed: int, running: int, resident: int, off_chip: int, moving: int) -> int:
        """Residents that nobody reads or stores any more."""
        kept = self.dag.read_by(~executed) | (self.dag.results & ~off_chip)
        if running >= 0:
            kept |= self.dag.reads[running]
        if moving < 0:
            kept |= 1 << (-moving - 1)
        return resident & ~kept

    def schedule(self, state: _State, came: dict[_State, tuple[_State, _Act]]) -> Timed:
        """The way to a state as stays and transfers, by the number of operators that have begun."""
        path: list[tuple[_State, _Act, _State]] = []
        while state in came:
            before, act = came[state]
            path.append((before, act, state))
            state = before
        order: list[int] = []
        open_: dict[int, tuple[int, bool, int]] = {}
        clock = 0
        stays: list[Stay] = []
        stores: list[tuple[int, int]] = []
        queue: list[tuple[bool, int]] = []

        def leave(mask: int) -> None:
            for a in bits(mask):
                first, loaded, since = open_.pop(a)
                if first > len(order) - 1 and loaded:  # brought in and dropped before any operator began
                    del queue[max(n for n, entry in enumerate(queue) if entry == (True, a))]
                    continue
                stays.append(Stay(a, first, len(order) - 1, loaded, since, clock + 1))

        for _, act, after in reversed(path):
            leave(act.for_run)
            if act.run >= 0:
                for a in self.dag.outputs[act.run]:
                    clock += 1
                    open_[a] = (len(order), False, clock)
                order.append(act.run)
            leave(act.for_move)
            if act.move > 0:
                clock += 1
                open_[act.move - 1] = (len(order), True, clock)
                queue.append((True, act.move - 1))
            elif act.move < 0:
                stores.append((-act.move - 1, len(order)))
                queue.append((False, -act.move - 1))
            there = after.resident | (self.dag.makes[after.running] if after.running >= 0 else 0)
            there |= 1 << (after.moving - 1) if after.moving > 0 else 0
            leave(sum(1 << a for a in open_ if not there >> a & 1))
        leave(sum(1 << a for a in open_))
        return Timed(tuple(order), tuple(sorted(stays, key=lambda s: (s.first, s.tensor))), tuple(stores), tuple(queue))
