"""The order with the smallest peak: best-first search over sets of executed operators, exact if it ends.

What is alive depends on the set S of executed operators alone, so a state is a set closed under predecessors, and the
peak of an order is a bottleneck along a path of states: Dijkstra's algorithm with max for plus. Two rules keep it
small.

* *Floor.* No order is better than the order-free floor of any operator, so all states below it are equal, and among
  equals the search dives.
* *Safe closure.* If an operator fits under the peak that the state has anyway, and afterwards no more bytes are alive
  than before, running it at once loses nothing: move it forward in any completion; what it makes was made later
  anyway, what it frees nobody else reads, so at no later moment more is alive.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass

from peakline.solvers.dag import Dag, bits
from peakline.solvers.segments import Segment

__all__ = ["Found", "beam", "search"]

_CHECK_CLOCK = 64


@dataclass(frozen=True, slots=True)
class Found:
    """`order` of the segment's operators (None: none found) with its `peak`; no order has less than `bound` bytes."""

    order: tuple[int, ...] | None
    peak: int
    bound: int
    states: int


class _State:
    """A set of executed operators, what is alive after it, and how it was reached."""

    __slots__ = ("alive", "executed", "live", "parent", "peak", "ran", "ready")

    def __init__(
        self, executed: int, live: int, alive: int, ready: int, peak: int, ran: tuple[int, ...], parent: _State | None
    ) -> None:
        self.executed, self.live, self.alive, self.ready = executed, live, alive, ready
        self.peak, self.ran, self.parent = peak, ran, parent

    def path(self) -> tuple[int, ...]:
        """Operators in the order in which they ran."""
        parts: list[tuple[int, ...]] = []
        state: _State | None = self
        while state is not None:
            parts.append(state.ran)
            state = state.parent
        return tuple(i for part in reversed(parts) for i in part)


class _Moves:
    """Running operators within one segment."""

    def __init__(self, dag: Dag, segment: Segment) -> None:
        self.dag, self.segment = dag, segment

    def start(self, peak: int) -> _State:
        dag, segment = self.dag, self.segment
        inside = segment.stop & ~segment.start
        ready = sum(1 << i for i in bits(inside) if not dag.before[i] & ~segment.start)
        first = _State(segment.start, segment.live, dag.weigh(segment.live), ready, peak, (), None)
        return self.close(first)

    def effect(self, state: _State, i: int) -> tuple[int, int, int]:
        """Bytes alive while `i` runs, bytes alive after it, and the tensors alive after it."""
        dag = self.dag
        size, readers = dag.size, dag.readers
        left = ~(state.executed | (1 << i))
        during = state.alive
        fresh = dag.touch[i] & ~state.live
        live = state.live | fresh
        while fresh:
            low = fresh & -fresh
            during += size[low.bit_length() - 1]
            fresh ^= low
        after = during
        for a in dag.inputs[i]:
            if not readers[a] & left:
                live ^= 1 << a
                after -= size[a]
        for a in dag.outputs[i]:
            if not readers[a]:
                live ^= 1 << a
                after -= size[a]
        return during, after, live

    def run(self, state: _State, i: int, during: int, after: int, live: int) -> _State:
        return _State(
            state.executed | (1 << i), live, after, self._ready(state, i), max(state.peak, during), (i,), state
        )

    def _ready(self, state: _State, i: int) -> int:
        dag = self.dag
        executed = state.executed | (1 << i)
        ready = state.ready ^ (1 << i)
        opened = dag.after[i] & self.segment.stop
        while opened:
            low = opened & -opened
            if not dag.before[low.bit_length() - 1] & ~executed:
                ready |= low
            opened ^= low
        return ready

    def close(self, state: _State) -> _State:
        """Run whatever is safe to run; changes the state in place."""
        again = True
        while again:
            again = False
            for i in bits(state.ready):
                during, after, live = self.effect(state, i)
                if during <= state.peak and after <= state.alive:
                    state.ready = self._ready(state, i)
                    state.executed |= 1 << i
                    state.live, state.alive = live, after
                    state.ran += (i,)
                    again = True
        return state


def search(
    dag: Dag,
    segment: Segment,
    floor: int,
    *,
    deadline: float = float("inf"),
    most_states: int = 2_000_000,
    tick: Callable[[int], None] = lambda bound: None,
) -> Found:
    """The segment's order with the smallest peak, if states and time suffice.

    `floor` bytes are known to be needed; a peak up to it is as good as none. `tick(bound)` is called now and then.
    """
    moves = _Moves(dag, segment)
    first = moves.start(floor)
    heap: list[tuple[int, int, int, int, _State]] = [(first.peak, 0, first.alive, 0, first)]
    best = {first.executed: first.peak}
    serial = pops = 0
    bound = first.peak
    while heap:
        peak, _, _, _, state = heapq.heappop(heap)
        bound = peak
        pops += 1
        if state.executed == segment.stop:
            return Found(state.path(), peak, peak, len(best))
        if len(best) > most_states:
            break
        if pops % _CHECK_CLOCK == 0:
            tick(bound)
            if time.perf_counter() > deadline:
                break
        if best[state.executed] < peak:
            continue
        for i in bits(state.ready):
            during, after, live = moves.effect(state, i)
            new = moves.close(moves.run(state, i, during, after, live))
            known = best.get(new.executed)
            if known is None or new.peak < known:
                best[new.executed] = new.peak
                serial += 1
                heapq.heappush(heap, (new.peak, -new.executed.bit_count(), new.alive, serial, new))
    return Found(None, 0, bound, len(best))


def beam(dag: Dag, segment: Segment, floor: int, width: int, *, deadline: float = float("inf")) -> Found:
    """A good order: of all states with the same number of executed operators only the `width` best go on.

    Best is the smallest peak, then the fewest bytes alive. Past the deadline there is no order.
    """
    moves = _Moves(dag, segment)
    layers: dict[int, dict[int, _State]] = {}
    first = moves.start(floor)
    layers[first.executed.bit_count()] = {first.executed: first}
    seen = 0
    for count in range(first.executed.bit_count(), segment.stop.bit_count()):
        states = sorted(layers.pop(count, {}).values(), key=lambda s: (s.peak, s.alive, s.executed))[:width]
        for state in states:
            if time.perf_counter() > deadline:
                return Found(None, 0, floor, seen)
            for i in bits(state.ready):
                new = moves.close(moves.run(state, i, *moves.effect(state, i)))
                seen += 1
                layer = layers.setdefault(new.executed.bit_count(), {})
                known = layer.get(new.executed)
                if known is None or new.peak < known.peak:
                    layer[new.executed] = new
    last = layers[segment.stop.bit_count()][segment.stop]
    return Found(last.path(), last.peak, floor, seen)
