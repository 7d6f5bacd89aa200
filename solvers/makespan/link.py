"""Prefetches and early stores for an order and its drops: list scheduling of the link under the capacity.

The link takes transfers one at a time. A load may begin once the bytes are free, if it also fits beside all that the
steps up to its reader hold anyway: so it never blocks an operator for good. Of what could go next a *policy* chooses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from peakline.solvers.dag import Dag, bits
from peakline.solvers.makespan.timed import Stay, Timed
from peakline.solvers.schedule.episodes import Episode, Schedule, episodes

__all__ = ["POLICIES", "Policy", "streamed"]

Policy = Literal["loads", "rooms", "stores"]
POLICIES: tuple[Policy, ...] = ("rooms", "loads", "stores")
"""What goes first: the next load; stores that make room, then loads; any store."""


@dataclass
class _Link:
    """The machine while it runs: times in seconds, room in bytes."""

    dag: Dag
    order: tuple[int, ...]
    boxes: list[Episode]
    seconds: Sequence[float]
    bandwidth: float
    free: int

    def __post_init__(self) -> None:
        count = len(self.order)
        self.loads = [n for n, box in enumerate(self.boxes) if box.loaded]
        self.missing = [0] * count  # loads that each step still waits for
        self.held = [0] * (count + 1)  # bytes that each step holds, with prefetches
        self.made: list[list[int]] = [[] for _ in range(count)]
        self.ending: list[list[int]] = [[] for _ in range(count)]
        dropped = {box.tensor for box in self.boxes if box.loaded}
        outputs = set(bits(self.dag.results))
        self.to_store: set[int] = set()  # boxes whose tensor must be stored, and is not yet
        for n, box in enumerate(self.boxes):
            for t in range(box.first, box.last + 1):
                self.held[t] += self.dag.size[box.tensor]
            self.ending[box.last].append(n)
            if box.loaded:
                self.missing[box.first] += 1
            else:
                self.made[box.first].append(n)
                if box.tensor in dropped or box.tensor in outputs:
                    self.to_store.add(n)
        self.clock = 0
        self.since, self.until = [0] * len(self.boxes), [0] * len(self.boxes)
        self.begun = [box.first for box in self.boxes]
        self.ended = [box.last for box in self.boxes]
        self.storable: list[int] = []  # boxes made, not yet stored
        self.next_load = 0
        self.next_run = 0
        self.queue: list[tuple[bool, int]] = []

    def size(self, n: int) -> int:
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
        self.clock += 1
        self.since[n] = self.clock
        self.free -= self.size(n)

    def give(self, n: int) -> None:
        self.until[n] = self.clock + 1
        self.free += self.size(n)

    def begin_load(self, n: int) -> None:
        for t in range(self.next_run, self.boxes[n].first):
            self.held[t] += self.size(n)
        self.begun[n] = self.next_run
        self.take(n)
        self.next_load += 1

    def end_run(self, step: int) -> None:
        self.finished = step + 1
        for n in self.made[step]:
            if n in self.to_store:
                self.storable.append(n)
        for n in self.ending[step]:
            if n not in self.to_store:
                self.give(n)

    def end_store(self, n: int) -> None:
        self.to_store.discard(n)
        if self.boxes[n].last < self.finished:
            self.give(n)
            self.ended[n] = max(self.ended[n], self.next_run - 1)

    finished = 0

    def simulate(self, policy: Policy, lookahead: int) -> float | None:
        """Seconds until all is done, or None if it comes to a stop."""
        self.capacity = self.free
        count = len(self.order)
        now, running, transfer = 0.0, None, None
        while self.finished < count or self.to_store or transfer is not None:
            blocked = False
            if running is None and self.next_run < count and not self.missing[self.next_run]:
                room = sum(self.size(n) for n in self.made[self.next_run])
                blocked = room > self.free
                if not blocked:
                    for n in self.made[self.next_run]:
                        self.take(n)
                    running = now + self.seconds[self.order[self.next_run]]
                    self.next_run += 1
            if transfer is None and (chosen := self.choose(policy, lookahead, blocked)) is not None:
                is_load, n = chosen
                if is_load:
                    self.begin_load(n)
                else:
                    self.storable.remove(n)
                self.queue.append((is_load, self.boxes[n].tensor))
                transfer = (now + self.size(n) / self.bandwidth, is_load, n)
            ends = [end for end in (running, transfer[0] if transfer else None) if end is not None]
            if not ends:
                return None
            now = min(ends)
            if running is not None and running <= now:
                running = None
                self.end_run(self.next_run - 1)
            if transfer is not None and transfer[0] <= now:
                _, is_load, n = transfer
                transfer = None
                if is_load:
                    self.missing[self.boxes[n].first] -= 1
                else:
                    self.end_store(n)
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
    link = _Link(dag, schedule.order, episodes(dag, schedule), seconds, bandwidth, capacity)
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
