"""Order and replacement with the least traffic: A* over the states of `states.py`, exact if it ends, and a beam."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass

from peakline.solvers.dag import bits
from peakline.solvers.schedule.states import Moves, State

__all__ = ["Found", "beam", "search"]

_CHECK_CLOCK = 64


@dataclass(frozen=True, slots=True)
class Found:
    """`moves`: (operator, mask evicted before it) in order, None if none found; their traffic; a bound on all."""

    moves: tuple[tuple[int, int], ...] | None
    cost: int
    bound: int
    states: int


def search(
    moves: Moves,
    floor: int,
    known: int,
    *,
    deadline: float,
    most_states: int = 1_000_000,
    tick: Callable[[int], None] = lambda bound: None,
) -> Found:
    """A*: the least traffic through the segment if it is below `known`; else, or out of time, what is proven.

    States wait in the order of paid + bound to come, which never overestimates and never falls short of `floor`; the
    smallest value waiting bounds every plan. A plan found has `cost == bound`; without one the bound is the smallest
    value waiting, or `known` if nothing below it is left.
    """
    first = moves.start()
    fronts: dict[int, list[State]] = {first.executed: [first]}
    bound = max(floor, first.to_come)
    heap = [(bound, 0, 0, 0, first)]
    serial = pops = 0
    while heap and heap[0][0] < known:
        bound, _, _, _, state = heapq.heappop(heap)
        pops += 1
        if state.executed == moves.segment.stop:
            return Found(tuple(state.path()), state.paid, state.paid, serial)
        if serial > most_states:
            return Found(None, known, bound, serial)
        if pops % _CHECK_CLOCK == 0:
            tick(bound)
            if time.perf_counter() > deadline:
                return Found(None, known, bound, serial)
        if state not in fronts[state.executed]:
            continue  # another state has turned out at least as good
        try:
            for i in bits(state.ready):
                for evict in moves.evictions(state, i, deadline):
                    new = moves.run(state, i, evict)
                    serial += 1
                    value = max(bound, new.paid + new.to_come)
                    if value < known and _admit(moves, fronts.setdefault(new.executed, []), new):
                        heapq.heappush(heap, (value, -new.executed.bit_count(), new.held, serial, new))
                    if serial % _CHECK_CLOCK == 0 and time.perf_counter() > deadline:
                        raise TimeoutError
        except TimeoutError:
            return Found(None, known, bound, serial)
    return Found(None, known, known, serial)


def _admit(moves: Moves, front: list[State], new: State) -> bool:
    """Add a state to those with the same operators executed, unless one of them is as good; drop what it betters."""
    for old in front:
        if _as_good(moves, old, new):
            return False
    front[:] = [old for old in front if not _as_good(moves, new, old)]
    front.append(new)
    return True


def _as_good(moves: Moves, one: State, other: State) -> bool:
    """Whether `one` can do whatever `other` can, at no more: by evicting what only `other` has evicted.

    What only `one` has evicted costs it nothing further: its reload is paid.
    """
    if one.paid > other.paid:
        return False
    extra = other.evicted & ~one.evicted
    if other.stored & ~(one.stored | extra):
        return False
    spent = one.paid
    for a in bits(extra):
        spent += moves.cost(one, a)
    return spent <= other.paid


def beam(moves: Moves, width: int, *, deadline: float) -> Found:
    """A good plan: of all states with the same number of executed operators only the `width` best go on.

    Best is paid + bound to come, then the fewest bytes resident; each move tries a few evictions. Past the deadline
    the beam narrows to one state.
    """
    stop = moves.segment.stop
    first = moves.start()
    layers: dict[int, dict[int, list[State]]] = {first.executed.bit_count(): {first.executed: [first]}}
    seen = 0
    for count in range(first.executed.bit_count(), stop.bit_count()):
        states = [state for front in layers.pop(count, {}).values() for state in front]
        states.sort(key=lambda s: (s.paid + s.to_come, s.held, s.executed, s.evicted))
        for rank, state in enumerate(states[:width]):
            if rank and time.perf_counter() > deadline:
                break
            for i in bits(state.ready):
                for evict in moves.some_evictions(state, i):
                    new = moves.run(state, i, evict)
                    seen += 1
                    _admit(moves, layers.setdefault(new.executed.bit_count(), {}).setdefault(new.executed, []), new)
    last = min(layers[stop.bit_count()][stop], key=lambda s: s.paid)
    return Found(tuple(last.path()), last.paid, first.to_come, seen)
