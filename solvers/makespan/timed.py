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
    data, and all that used the bytes that it fills.
    """
    order, stays = timed.order, timed.stays
    count = len(order)
    spent = [seconds[i] for i in order]  # runs have the numbers of their steps
    after: list[list[int]] = [[t - 1] if t else [] for t in range(count)]
    by_tensor: dict[int, list[int]] = {}
    for n, stay in enumerate(stays):
        by_tensor.setdefault(stay.tensor, []).append(n)
    users: list[list[int]] = [[] for _ in stays]
    loads: dict[int, list[int]] = {}  # tensor → its load tasks by step
    for n in sorted(range(len(stays)), key=lambda n: stays[n].first):
        stay = stays[n]
        if stay.loaded:
            users[n].append(len(spent))
            loads.setdefault(stay.tensor, []).append(len(spent))
            spent.append(dag.size[stay.tensor] / bandwidth)
            after.append([])
    store: dict[int, int] = {}
    for a, step in timed.stores:
        store[a] = len(spent)
        holder = max((n for n in by_tensor[a] if stays[n].first < step), key=lambda n: stays[n].first)
        users[holder].append(len(spent))
        spent.append(dag.size[a] / bandwidth)
        made = loads[a][0] if stays[holder].loaded else _step_of(dag, order, a)
        after.append([made])
    for t, i in enumerate(order):
        for a in (*dag.inputs[i], *dag.outputs[i]):
            n = next(n for n in by_tensor[a] if stays[n].first <= t <= stays[n].last)
            if stays[n].loaded:
                after[t].append(users[n][0])
            users[n].append(t)
    for a, tasks in loads.items():
        if a in store:
            for task in tasks:
                after[task].append(store[a])
    _add_hazards(dag, timed, offsets, users, loads, after)
    queued: dict[tuple[bool, int], list[int]] = {(True, a): tasks[::-1] for a, tasks in loads.items()}
    queued |= {(False, a): [task] for a, task in store.items()}
    line = [queued[entry].pop() for entry in timed.queue]
    for one, other in pairwise(line):
        after[other].append(one)
    return _longest(spent, after)


def _step_of(dag: Dag, order: Sequence[int], a: int) -> int:
    return order.index(dag.maker[a])


def _add_hazards(
    dag: Dag, timed: Timed, offsets: Sequence[int], users: list[list[int]], loads: dict[int, list[int]],
    after: list[list[int]],
) -> None:  # fmt: skip
    """Whatever fills bytes waits for all who used what lay there before."""
    turn = {a: iter(tasks) for a, tasks in loads.items()}
    past: list[tuple[int, int, int]] = []  # (low, high, stay), none of them overwritten whole
    for n in sorted(range(len(timed.stays)), key=lambda n: timed.stays[n].first):
        stay = timed.stays[n]
        low, high = offsets[n], offsets[n] + dag.size[stay.tensor]
        filler = next(turn[stay.tensor]) if stay.loaded else stay.first
        kept = []
        for entry in past:
            if entry[0] < high and low < entry[1]:
                after[filler] += [task for task in users[entry[2]] if task != filler]
            if not (low <= entry[0] and entry[1] <= high):
                kept.append(entry)
        past = [*kept, (low, high, n)]


def _longest(spent: Sequence[float], after: Sequence[Sequence[int]]) -> float:
    followers: list[list[int]] = [[] for _ in spent]
    missing = [len(before) for before in after]
    for task, before in enumerate(after):
        for other in before:
            followers[other].append(task)
    ready = [task for task, count in enumerate(missing) if not count]
    end = [0.0] * len(spent)
    done = 0
    while ready:
        task = ready.pop()
        done += 1
        end[task] = max((end[other] for other in after[task]), default=0.0) + spent[task]
        for other in followers[task]:
            missing[other] -= 1
            if not missing[other]:
                ready.append(other)
    return max(end) if done == len(spent) else float("inf")  # inf: the queue waits for itself
