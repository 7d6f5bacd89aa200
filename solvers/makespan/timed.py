"""Schedules in time before they have addresses: an order, stays in the scratchpad by step, and the link's order.

A stay of a loaded tensor may begin steps before its first reader: that is a prefetch. A stay may last beyond its last
reader: until its store has ended. Steps are coarser than time: a load listed at a step may begin while the operator of
the step before runs. So addresses are first sought for the stays as they follow each other in time; then nothing holds
any transfer up. Only if there are none the steps alone decide who may share bytes, and hazards may cost time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf

from peakline.solvers.allocation import Instance, allocate
from peakline.solvers.dag import Dag
from peakline.solvers.schedule.episodes import Episode

__all__ = ["Stay", "Timed", "makespan", "pack", "trimmed"]

_MOST_SEARCHED = 600  # stays; beyond it the exact search's clock ticks too slowly


@dataclass(frozen=True, slots=True)
class Stay(Episode):
    """An episode that may begin before its tensor is read, and last until its store has ended.

    `since` and `until` number the moments at which bytes are taken and given back: what is given back at a moment may
    be taken at that moment.
    """

    since: int = 0
    until: int = 0


@dataclass(frozen=True)
class Timed:
    """A schedule: `stores` are (tensor, step before whose operator it is listed; the number of steps: at the end).

    `queue` holds (is a load, tensor) in the link's order.
    """

    order: tuple[int, ...]
    stays: tuple[Stay, ...]
    stores: tuple[tuple[int, int], ...]
    queue: tuple[tuple[bool, int], ...]


def pack(
    dag: Dag, timed: Timed, capacity: int, *, by_step: bool, time_limit: float, seed: int = 0
) -> tuple[int, ...] | None:
    """An offset for each stay within `capacity` bytes, or None if none were found.

    `by_step`: stays without a step in common may share bytes; else those without a moment in common.
    """
    boxes = [
        (s.first, s.last + 1, dag.size[s.tensor]) if by_step else (s.since, s.until, dag.size[s.tensor])
        for s in timed.stays
    ]
    few = len(boxes) <= _MOST_SEARCHED
    found = allocate(
        Instance.of(boxes), capacity, time_limit=max(time_limit, 0.05), seed=seed,
        method="auto" if few else "heuristics",
    )  # fmt: skip
    if found.offsets is None and found.interrupted:
        raise KeyboardInterrupt
    return found.offsets


def trimmed(dag: Dag, timed: Timed, *, prefetches: bool, waits: bool) -> Timed:
    """The schedule with its stays cut to where their tensor is used, so that addresses are found more easily.

    `prefetches`: no load is listed before its reader's step; `waits`: what waits for its store gives its bytes away at
    once. Whoever gets them waits then, so it may take longer.
    """
    used: dict[int, list[int]] = {}
    for t, i in enumerate(timed.order):
        for a in (*dag.inputs[i], *dag.outputs[i]):
            used.setdefault(a, []).append(t)
    stays = []
    for stay in timed.stays:
        inside = [t for t in used[stay.tensor] if stay.first <= t <= stay.last]
        first = inside[0] if prefetches and inside else stay.first
        last = inside[-1] if waits and inside else stay.last
        stays.append(replace(stay, first=first, last=last))
    stays.sort(key=lambda stay: (stay.first, stay.tensor))
    stores = sorted((timed.order.index(dag.maker[a]) + 1, a) for a, _ in timed.stores)
    return Timed(timed.order, tuple(stays), tuple((a, step) for step, a in stores), timed.queue)


def makespan(dag: Dag, timed: Timed, offsets: Sequence[int], seconds: Sequence[float], bandwidth: float) -> float:
    """Seconds that the schedule takes at these addresses, each task as soon as it can: a longest path.

    Tasks are the operators, the loads and the stores; a task follows its predecessor on its own line, what makes its
    data, and all that used the bytes that it fills. Infinite if the link's order waits for itself.
    """
    tasks = _Tasks(dag, timed, seconds, bandwidth)
    tasks.load()
    tasks.store()
    tasks.run()
    tasks.overwrite(offsets)
    tasks.queue()
    return tasks.longest()


class _Tasks:
    """What is to be done, how long it takes and what it waits for; operators have the numbers of their steps."""

    def __init__(self, dag: Dag, timed: Timed, seconds: Sequence[float], bandwidth: float) -> None:
        self.dag, self.timed, self.bandwidth = dag, timed, bandwidth
        self.spent = [seconds[i] for i in timed.order]
        self.after: list[list[int]] = [[t - 1] if t else [] for t in range(len(timed.order))]
        self.by_first = sorted(range(len(timed.stays)), key=lambda n: timed.stays[n].first)
        self.stays_of: dict[int, list[int]] = {}
        for n, stay in enumerate(timed.stays):
            self.stays_of.setdefault(stay.tensor, []).append(n)
        self.users: list[list[int]] = [[] for _ in timed.stays]  # tasks; of a loaded stay its load is the first
        self.loads: dict[int, list[int]] = {}  # of each tensor, by step
        self.stores: dict[int, int] = {}

    def transfer(self, a: int, after: list[int]) -> int:
        """One more task: a tensor over the link."""
        self.spent.append(self.dag.size[a] / self.bandwidth)
        self.after.append(after)
        return len(self.spent) - 1

    def load(self) -> None:
        """The loads, one for each stay that begins with one."""
        for n in self.by_first:
            stay = self.timed.stays[n]
            if stay.loaded:
                task = self.transfer(stay.tensor, [])
                self.users[n].append(task)
                self.loads.setdefault(stay.tensor, []).append(task)

    def store(self) -> None:
        """The stores, each after what brought its tensor in; every load of that waits for it."""
        stays = self.timed.stays
        for a, step in self.timed.stores:
            holder = max((n for n in self.stays_of[a] if stays[n].first < step), key=lambda n: stays[n].first)
            made = self.loads[a][0] if stays[holder].loaded else self.timed.order.index(self.dag.maker[a])
            task = self.stores[a] = self.transfer(a, [made])
            self.users[holder].append(task)
            for load in self.loads.get(a, ()):
                self.after[load].append(task)

    def run(self) -> None:
        """Operators wait for the loads of what they read."""
        stays = self.timed.stays
        for t, i in enumerate(self.timed.order):
            for a in (*self.dag.inputs[i], *self.dag.outputs[i]):
                n = next(n for n in self.stays_of[a] if stays[n].first <= t <= stays[n].last)
                if stays[n].loaded:
                    self.after[t].append(self.users[n][0])
                self.users[n].append(t)

    def overwrite(self, offsets: Sequence[int]) -> None:
        """Whatever fills bytes waits for all who used what lay there before."""
        turn = {a: iter(tasks) for a, tasks in self.loads.items()}
        past: list[tuple[int, int, int]] = []  # (low, high, stay), none of them overwritten whole
        for n in self.by_first:
            stay = self.timed.stays[n]
            low, high = offsets[n], offsets[n] + self.dag.size[stay.tensor]
            filler = next(turn[stay.tensor]) if stay.loaded else stay.first
            kept = []
            for bottom, top, other in past:
                if bottom < high and low < top:
                    self.after[filler] += [task for task in self.users[other] if task != filler]
                if not (low <= bottom and top <= high):
                    kept.append((bottom, top, other))
            past = [*kept, (low, high, n)]

    def queue(self) -> None:
        """The link takes its transfers in the order of the queue."""
        waiting = {(True, a): tasks[::-1] for a, tasks in self.loads.items()}
        waiting |= {(False, a): [task] for a, task in self.stores.items()}
        for one, other in pairwise([waiting[entry].pop() for entry in self.timed.queue]):
            self.after[other].append(one)

    def longest(self) -> float:
        """When the last task ends; infinite if some wait for each other."""
        followers: list[list[int]] = [[] for _ in self.spent]
        missing = [len(before) for before in self.after]
        for task, before in enumerate(self.after):
            for other in before:
                followers[other].append(task)
        ready = [task for task, count in enumerate(missing) if not count]
        end = [0.0] * len(self.spent)
        done = 0
        while ready:
            task = ready.pop()
            done += 1
            end[task] = max((end[other] for other in self.after[task]), default=0.0) + self.spent[task]
            for other in followers[task]:
                missing[other] -= 1
                if not missing[other]:
                    ready.append(other)
        return max(end) if done == len(self.spent) else inf
