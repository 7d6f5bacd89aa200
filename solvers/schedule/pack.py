"""Addresses for the episodes of a schedule: traffic first, packing second.

A reloaded tensor may come back elsewhere, so every episode is a rectangle of its own, and residents never exceed the
capacity; what remains is dynamic storage allocation within it. Where no placement is found, `place_in_turn` takes the
steps one after the other and drops a little more where the free bytes do not lie together.
"""

from __future__ import annotations

from peakline.solvers.allocation import Instance, allocate
from peakline.solvers.allocation.portfolio import Method
from peakline.solvers.dag import Dag, bits
from peakline.solvers.schedule.episodes import Schedule, episodes, uses

__all__ = ["pack", "place_in_turn"]

_MOST_SEARCHED = 600  # episodes; the exact search goes one level deeper for each, and its clock ticks slowly then


def pack(
    dag: Dag, schedule: Schedule, capacity: int | None, *, time_limit: float, seed: int = 0
) -> tuple[tuple[int, ...], int] | None:
    """Offsets of the schedule's episodes in the order of `episodes`, and the arena they need, in bytes.

    Within `capacity`, or None if no such placement was found in time; without a capacity in the smallest arena found.
    """
    boxes = episodes(dag, schedule)
    instance = Instance.of([(box.first, box.last + 1, dag.size[box.tensor]) for box in boxes])
    method: Method = "auto" if len(boxes) <= _MOST_SEARCHED else "heuristics"
    found = allocate(instance, capacity, time_limit=max(time_limit, 0.1), seed=seed, method=method)
    if found.offsets is None or found.peak is None:
        return None
    return found.offsets, found.peak


def place_in_turn(dag: Dag, schedule: Schedule, capacity: int) -> tuple[Schedule, tuple[int, ...]]:
    """The schedule with further drops such that addresses exist, and the offsets of its episodes.

    Step by step each arrival goes to the smallest hole that holds it; if there is none, to the window whose idle
    residents cost least to drop; if every window meets a tensor in use, all residents leave and what is in use comes
    back side by side. This succeeds whenever the capacity holds the largest working set.
    """
    turn = _Turn(dag, schedule, capacity)
    for step, i in enumerate(schedule.order):
        turn.run(step, i)
    placed = Schedule(schedule.order, frozenset(turn.dropped))
    return placed, tuple(turn.offsets[box.tensor, box.first] for box in episodes(dag, placed))


class _Turn:
    """The scratchpad while the steps are taken one after the other."""

    def __init__(self, dag: Dag, schedule: Schedule, capacity: int) -> None:
        self.dag, self.capacity = dag, capacity
        self.dropped = set(schedule.dropped)
        self.count = [len(steps) for steps in uses(dag, schedule.order)]
        self.used = [0] * len(dag.size)
        self.at: dict[int, int] = {}  # offset of each resident
        self.offsets: dict[tuple[int, int], int] = {}  # by tensor and first step of the episode

    def run(self, step: int, i: int) -> None:
        touched = set(bits(self.dag.touch[i]))
        arrivals = sorted(touched - self.at.keys(), key=lambda a: (-self.dag.size[a], a))
        if not all(self._arrive(a, step, touched) for a in arrivals):
            self._start_afresh(step, touched)
        for a in touched:
            self.used[a] += 1
            if self.used[a] == self.count[a] or (a, self.used[a] - 1) in self.dropped:
                del self.at[a]

    def _arrive(self, a: int, step: int, touched: set[int]) -> bool:
        """Place one tensor, dropping idle residents if need be; False if tensors in use lie in every window."""
        size = self.dag.size
        edges = [0, *(bottom + size[b] for b, bottom in self.at.items())]
        edges += [bottom - size[a] for bottom in self.at.values()] + [self.capacity - size[a]]
        best: tuple[int, int, int, list[int]] | None = None
        for bottom in edges:
            if bottom < 0 or bottom + size[a] > self.capacity:
                continue
            inside = [b for b, low in self.at.items() if low < bottom + size[a] and bottom < low + size[b]]
            if touched.intersection(inside):
                continue
            key = (sum(self._price(b) for b in inside), self._hole(bottom, inside), bottom, inside)
            if best is None or key[:3] < best[:3]:
                best = key
        if best is None:
            return False
        for b in best[3]:
            self._drop(b)
        self.at[a] = self.offsets[a, step] = best[2]
        return True

    def _hole(self, bottom: int, leaving: list[int]) -> int:
        """Free bytes around an address once some residents have left."""
        size = self.dag.size
        stay = [(low, low + size[b]) for b, low in self.at.items() if b not in leaving]
        above = min((low for low, high in stay if high > bottom), default=self.capacity)
        below = max((high for _, high in stay if high <= bottom), default=0)
        return above - below

    def _price(self, a: int) -> int:
        """Bytes that dropping `a` adds: the reload, and a store if it is an activation never dropped before."""
        stored = any((a, k) in self.dropped for k in range(self.used[a]))
        return self.dag.size[a] * (2 if self.dag.dear >> a & 1 and not stored else 1)

    def _drop(self, a: int) -> None:
        self.dropped.add((a, self.used[a] - 1))
        del self.at[a]

    def _start_afresh(self, step: int, touched: set[int]) -> None:
        for a in list(self.at):
            if (a, step) not in self.offsets:
                self._drop(a)
        bottom = 0
        for a in sorted(touched):
            self.at[a] = self.offsets[a, step] = bottom
            bottom += self.dag.size[a]
