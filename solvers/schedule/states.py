"""States of the traffic problem and the moves between them, with an order-free bound on what is still to be paid.

A state is (executed operators E, tensors alive but evicted X, activations stored). A move runs one operator: it
reloads what the operator reads of X, makes room by evicting residents, and drops what nobody reads any more. A tensor
is evicted only when room is needed and reloaded only when it is read, which loses nothing; its reload, certain to
come since it is alive, is paid at once, so that evicting costs s for what lies off-chip (inputs, parameters, outputs
whose store is compulsory, activations stored before) and 2 s for other activations.

The bound on what is still to come is that of `floors.py`: while operator j runs, what it touches and what its
descendants will read, itself or through what is made of it, is alive; what does not fit must be out. What is evicted
already is paid, the rest costs one or two bytes a byte, the cheap ones first.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from peakline.solvers.dag import Dag, bits
from peakline.solvers.floors import NEVER, Floors, Vector
from peakline.solvers.segments import Segment

__all__ = ["Moves", "State"]


class State:
    """Where a plan may stand, the traffic paid and the traffic at least still to come (bytes)."""

    __slots__ = (
        "cheap", "evicted", "excess", "executed", "held", "live", "paid", "parent", "ran", "ready", "stored", "to_come",
    )  # fmt: skip

    def __init__(
        self, executed: int, live: int, evicted: int, stored: int, held: int, ready: int, paid: int,
        parent: State | None, ran: tuple[tuple[int, int], ...], excess: Vector, cheap: Vector,
    ) -> None:  # fmt: skip
        self.executed, self.live, self.evicted, self.stored = executed, live, evicted, stored
        self.held, self.ready, self.paid = held, ready, paid  # held: bytes resident
        self.parent, self.ran = parent, ran  # ran: (operator, tensors evicted before it) since the parent
        self.excess, self.cheap = excess, cheap
        self.to_come = 0

    def path(self) -> list[tuple[int, int]]:
        """Operators in the order in which they ran, each with the mask of what was evicted to make room for it."""
        parts: list[tuple[tuple[int, int], ...]] = []
        state: State | None = self
        while state is not None:
            parts.append(state.ran)
            state = state.parent
        return [move for part in reversed(parts) for move in part]


class Moves:
    """Running operators of one segment within a capacity."""

    def __init__(self, dag: Dag, segment: Segment, capacity: int) -> None:
        self.dag, self.segment, self.capacity = dag, segment, capacity
        self.floors = Floors(dag, segment, capacity)
        self.results = {i: self._results(i) for i in self.floors.operators}

    def _results(self, i: int) -> tuple[int, int, int, int]:
        """What `i` makes: mask, bytes, bytes of what anybody reads, and what evicting that costs."""
        dag = self.dag
        read = [a for a in dag.outputs[i] if dag.readers[a]]
        return (
            sum(1 << a for a in dag.outputs[i]),
            sum(dag.size[a] for a in dag.outputs[i]),
            sum(dag.size[a] for a in read),
            sum(dag.size[a] * (1 + (dag.dear >> a & 1)) for a in read),
        )

    def start(self) -> State:
        """The segment's only initial state: what is alive is resident, and no activation of it is stored."""
        dag, segment = self.dag, self.segment
        inside = segment.stop & ~segment.start
        ready = sum(1 << i for i in bits(inside) if not dag.before[i] & ~segment.start)
        first = State(
            segment.start, segment.live, 0, 0, dag.weigh(segment.live), ready, 0, None, (),
            self.floors.excess.copy(), self.floors.cheap.copy(),
        )  # fmt: skip
        return self._finish(first)

    def cost(self, state: State, a: int) -> int:
        """Bytes that evicting `a` adds."""
        return self.dag.size[a] * (2 if self.dag.dear >> a & ~(state.stored >> a) & 1 else 1)

    def shortage(self, state: State, i: int) -> int:
        """Bytes to be evicted before `i` can run; negative: room to spare."""
        touch = self.dag.touch[i]
        return state.held + self.dag.weigh(touch & ~state.live | touch & state.evicted) - self.capacity

    def some_evictions(self, state: State, i: int) -> list[int]:
        """A few masks of residents whose eviction makes room for `i`, nothing of them being superfluous.

        They follow four rules: what the given order reads last first, the least traffic a byte first, the largest
        first, the smallest that suffices alone.
        """
        short = self.shortage(state, i)
        if short <= 0:
            return [0]
        size, left = self.dag.size, ~state.executed
        idle = list(bits(state.live & ~state.evicted & ~self.dag.touch[i]))
        late = {a: -self._next_read(self.dag.readers[a] & left) for a in idle}
        price = {a: self.cost(state, a) // size[a] for a in idle}
        found: dict[int, None] = {}
        for ranked in (
            sorted(idle, key=lambda a: (late[a], price[a], -size[a])),
            sorted(idle, key=lambda a: (price[a], late[a], -size[a])),
            sorted(idle, key=lambda a: (-size[a], price[a], late[a])),
            sorted(idle, key=lambda a: (size[a] < short, size[a] * price[a], late[a])),
        ):
            taken: list[int] = []
            missing = short
            for a in ranked:
                if missing <= 0:
                    break
                taken.append(a)
                missing -= size[a]
            for a in sorted(taken, key=lambda a: -size[a] * price[a]):
                if missing + size[a] <= 0:
                    taken.remove(a)
                    missing += size[a]
            found[sum(1 << a for a in taken)] = None
        return list(found)

    def evictions(self, state: State, i: int, deadline: float) -> Iterator[int]:
        """All masks of residents whose eviction makes room for `i`, no part of which would do.

        Of tensors with equal size, cost and readers to come only the first ones are evicted.

        Raises TimeoutError past the deadline (`time.perf_counter`).
        """
        short = self.shortage(state, i)
        if short <= 0:
            yield 0
            return
        dag, left = self.dag, ~state.executed
        groups: dict[tuple[int, int, int], list[int]] = {}
        for a in bits(state.live & ~state.evicted & ~dag.touch[i]):
            groups.setdefault((dag.size[a], self.cost(state, a), dag.readers[a] & left), []).append(a)
        # largest first: what is short after some of them may still need any of the rest
        kinds = sorted(groups.items(), key=lambda g: (-g[0][0], -self._next_read(g[0][2]), g[0][1]))
        sizes = [key[0] for key, _ in kinds]
        after = [0] * (len(kinds) + 1)
        for n in range(len(kinds) - 1, -1, -1):
            after[n] = after[n + 1] + sizes[n] * len(kinds[n][1])
        stack = [(0, 0, short)]  # (group, mask, bytes still short)
        looked = 0
        while stack:
            n, mask, missing = stack.pop()
            looked += 1
            if looked % 4096 == 0 and time.perf_counter() > deadline:
                raise TimeoutError
            if n == len(kinds) or after[n] < missing:
                continue
            part = mask
            branches = [(n + 1, mask, missing)]
            for count, a in enumerate(kinds[n][1], 1):
                part |= 1 << a
                if count * sizes[n] >= missing:
                    yield part  # the last one taken is the smallest, and without it too little
                    break
                branches.append((n + 1, part, missing - count * sizes[n]))
            stack.extend(branches)

    def _next_read(self, readers: int) -> int:
        return (readers & -readers).bit_length()

    def run(self, state: State, i: int, evict: int) -> State:
        """The state after evicting `evict` and running `i`, and whatever is safe to run then."""
        dag, size = self.dag, self.dag.size
        paid, held, stored = state.paid, state.held, state.stored
        excess, cheap = state.excess.copy(), state.cheap.copy()
        for a in bits(evict):
            paid += self.cost(state, a)
            held -= size[a]
            flow, outside = self.floors.remaining(a, ~state.executed)
            excess -= outside  # paid for wherever it may still be out
            cheap -= outside
            if dag.dear >> a & ~(stored >> a) & 1:
                cheap += flow
        stored |= evict & dag.dear
        evicted = state.evicted | evict
        new = State(
            state.executed, state.live, evicted, stored, held, state.ready, paid, state, ((i, evict),), excess, cheap
        )
        self._execute(new, i)
        return self._finish(new)

    def _execute(self, state: State, i: int) -> None:
        """Run `i`, for which there is room, in place."""
        dag, size, floors = self.dag, self.dag.size, self.floors
        back = dag.touch[i] & state.evicted
        for a in bits(back):
            state.held += size[a]
            _, outside = floors.remaining(a, ~state.executed)
            state.excess += outside
            state.cheap += outside
        state.evicted ^= back
        for a in bits(dag.touch[i] & ~state.live):
            state.held += size[a]
            if dag.off_chip >> a & 1:
                state.excess += floors.off_chip_live[a]
                state.cheap += floors.off_chip_live[a]
        if state.stored & dag.touch[i]:
            for a in dag.inputs[i]:
                if state.stored >> a & 1:
                    state.cheap -= floors.edge[a, i]
        state.live |= dag.touch[i]
        state.executed |= 1 << i
        state.excess += floors.grows[i]
        state.excess[floors.column[i]] = NEVER
        left = ~state.executed
        for a in (*dag.inputs[i], *dag.outputs[i]):
            if not dag.readers[a] & left:
                state.live ^= 1 << a
                state.held -= size[a]
                if state.stored >> a & 1:
                    state.cheap -= floors.sink[a]
                    state.stored ^= 1 << a
        state.ready ^= 1 << i
        for j in bits(dag.after[i] & self.segment.stop):
            if not dag.before[j] & left:
                state.ready |= 1 << j

    def _finish(self, state: State) -> State:
        """Run what is safe to run, then bound what is still to come."""
        again = True
        while again:
            again = False
            for i in bits(state.ready):
                if self._safe(state, i):
                    self._execute(state, i)
                    state.ran += ((i, 0),)
                    again = True
                    break
        state.to_come = self.floors.to_come(state.excess, state.cheap)
        return state

    def _safe(self, state: State, i: int) -> bool:
        """Whether running `i` now loses nothing: it fits as things are, and its results can stand in for one input.

        If everything that stays of it is no larger, and no dearer to evict, than one resident input that it frees,
        then any plan that runs `i` later can run it now, evicting and reloading the results where it would have
        evicted and reloaded that input.
        """
        dag = self.dag
        touch = dag.touch[i]
        if touch & state.evicted:
            return False
        fresh = touch & ~state.live
        results, needed, size, dear = self.results[i]
        if fresh != results:  # something from off-chip comes in as well
            needed = dag.weigh(fresh)
        if state.held + needed > self.capacity:
            return False
        left = ~(state.executed | (1 << i))
        if fresh != results and any(dag.readers[a] & left for a in bits(fresh & ~results)):
            return False
        if not size:
            return True
        return any(
            dag.size[a] >= size and state.live >> a & 1 and not dag.readers[a] & left and self.cost(state, a) >= dear
            for a in dag.inputs[i]
        )
