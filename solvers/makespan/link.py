"""Prefetches and early stores for an order and its drops: list scheduling of the link under the capacity.

The link takes transfers one at a time. A load may begin once the bytes are free, if it also fits beside all that the
steps up to its reader hold anyway: so it never blocks an operator for good. Of what could go next a *policy* chooses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from peakline.solvers.dag import Dag
from peakline.solvers.makespan.timed import Stay, Timed
from peakline.solvers.schedule.episodes import Schedule, episodes

__all__ = ["POLICIES", "Policy", "streamed"]

Policy = Literal["loads", "rooms", "stores"]
POLICIES: tuple[Policy, ...] = ("rooms", "loads", "stores")
"""What goes first: the next load; stores that make room, then loads; any store."""


class _Link:
    """The machine while it runs: times in seconds, room in bytes. Boxes are numbers of episodes."""

    def __init__(self, dag: Dag, schedule: Schedule, capacity: int, seconds: Sequence[float], bandwidth: float) -> None:
        self.dag, self.order, self.seconds, self.bandwidth = dag, schedule.order, seconds, bandwidth
        self.capacity = self.free = capacity
        self.boxes = episodes(dag, schedule)
        count = len(self.order)
        self.loads = [n for n, box in enumerate(self.boxes) if box.loaded]
        self.missing = [0] * count  # loads that each step still waits for
        self.held = [0] * (count + 1)  # bytes that each step holds, with prefetches
        self.made: list[list[int]] = [[] for _ in range(count)]
        self.ending: list[list[int]] = [[] for _ in range(count)]
        self.to_store: set[int] = set()  # boxes whose tensor must be stored, and is not yet
        to_store = sum(1 << a for a in {box.tensor for box in self.boxes if box.loaded}) | dag.results
        for n, box in enumerate(self.boxes):
            for t in range(box.first, box.last + 1):
                self.held[t] += self.size(n)
            self.ending[box.last].append(n)
            if box.loaded:
                self.missing[box.first] += 1
            else:
                self.made[box.first].append(n)
                if to_store >> box.tensor & 1:
                    self.to_store.add(n)
        self.storable: list[int] = []  # boxes made, not yet stored
        self.clock = 0  # moments at which bytes were taken
        self.since, self.until = [0] * len(self.boxes), [0] * len(self.boxes)
        self.begun = [box.first for box in self.boxes]
        self.ended = [box.last for box in self.boxes]
        self.next_load = self.next_run = 0
        self.finished = 0  # steps
        self.running: float | None = None  # when the unit is free again
        self.moving: tuple[float, bool, int] | None = None  # when the link is; whether it loads; box
        self.queue: list[tuple[bool, int]] = []

    def size(self, n: int) -> int:
        """Bytes of a box."""
        return self.dag.size[self.boxes[n].tensor]

    def load(self, lookahead: int) -> int | None:
        """The next load, if it may begin now."""
        if self.next_load == len(self.loads):
            return None
        n = self.loads[self.next_load]
        reader, size = self.boxes[n].first, self.size(n)
        steps = range(self.next_run, reader)
        if size > self.free or reader - self.next_run > lookahead:
            return None
        return n if all(self.held[t] + size <= self.capacity for t in steps) else None

    def store(self, only_leaving: bool) -> int | None:
        """The store that makes room, or else whose tensor is read last soonest."""
        found = [n for n in self.storable if not only_leaving or self.boxes[n].last < self.finished]
        return min(found, key=lambda n: (self.boxes[n].last, -self.size(n), n), default=None)

    def choose(self, policy: Policy, lookahead: int, blocked: bool) -> tuple[bool, int] | None:
        """(is a load, box) that the link takes next."""
        load = self.load(lookahead)
        leaving = self.store(only_leaving=True)
        if leaving is not None and (blocked or policy == "rooms" or load is None):
            return False, leaving
        if policy == "stores" and (other := self.store(only_leaving=False)) is not None:
            return False, other
        if load is not None:
            return True, load
        other = self.store(only_leaving=False)
        return (False, other) if other is not None else None

    def take(self, n: int) -> None:
        """The box gets its bytes."""
        self.clock += 1
        self.since[n] = self.clock
        self.free -= self.size(n)

    def give(self, n: int) -> None:
        """The box gives its bytes back."""
        self.until[n] = self.clock + 1
        self.free += self.size(n)

    def begin_run(self, now: float) -> bool:
        """The next operator runs if it can; whether it has its operands, but no room for what it makes."""
        if self.running is not None or self.next_run == len(self.order) or self.missing[self.next_run]:
            return False
        if sum(self.size(n) for n in self.made[self.next_run]) > self.free:
            return True
        for n in self.made[self.next_run]:
            self.take(n)
        self.running = now + self.seconds[self.order[self.next_run]]
        self.next_run += 1
        return False

    def begin_transfer(self, now: float, load: bool, n: int) -> None:
        """A load takes its bytes at once and holds them until its reader; a store leaves what may be stored."""
        if load:
            for t in range(self.next_run, self.boxes[n].first):
                self.held[t] += self.size(n)
            self.begun[n] = self.next_run
            self.take(n)
            self.next_load += 1
        else:
            self.storable.remove(n)
        self.queue.append((load, self.boxes[n].tensor))
        self.moving = (now + self.size(n) / self.bandwidth, load, n)

    def end_run(self) -> None:
        step = self.next_run - 1
        self.running, self.finished = None, self.next_run
        self.storable += [n for n in self.made[step] if n in self.to_store]
        for n in self.ending[step]:
            if n not in self.to_store:
                self.give(n)

    def end_transfer(self, load: bool, n: int) -> None:
        self.moving = None
        if load:
            self.missing[self.boxes[n].first] -= 1
            return
        self.to_store.discard(n)
        if self.boxes[n].last < self.finished:
            self.give(n)
            self.ended[n] = max(self.ended[n], self.next_run - 1)

    def simulate(self, policy: Policy, lookahead: int) -> float | None:
        """Seconds until all is done, or None if it comes to a stop."""
        now = 0.0
        while self.finished < len(self.order) or self.to_store or self.moving is not None:
            blocked = self.begin_run(now)
            if self.moving is None and (chosen := self.choose(policy, lookahead, blocked)) is not None:
                self.begin_transfer(now, *chosen)
            ends = [end for end in (self.running, self.moving[0] if self.moving else None) if end is not None]
            if not ends:
                return None
            now = min(ends)
            if self.running is not None and self.running <= now:
                self.end_run()
            if self.moving is not None and self.moving[0] <= now:
                self.end_transfer(*self.moving[1:])
        return now


def streamed(
    dag: Dag,
    schedule: Schedule,
    capacity: int,
    seconds: Sequence[float],
    bandwidth: float,
    *,
    policy: Policy = "rooms",
    lookahead: int = 1 << 30,
) -> tuple[Timed, float] | None:
    """The schedule with its transfers in the link's order, and its seconds where addresses do not matter.

    No load begins more than `lookahead` steps before its reader's. What waits for its store is resident until then.
    None if the capacity is too small.
    """
    link = _Link(dag, schedule, capacity, seconds, bandwidth)
    stored = sorted((link.boxes[n].first + 1, link.boxes[n].tensor) for n in link.to_store)
    time = link.simulate(policy, lookahead)
    if time is None:
        return None
    last = len(schedule.order) - 1
    stays = tuple(
        Stay(box.tensor, link.begun[n], min(last, link.ended[n]), box.loaded, link.since[n], link.until[n])
        for n, box in enumerate(link.boxes)
    )
    return Timed(schedule.order, stays, tuple((a, step) for step, a in stored), tuple(link.queue)), time
