"""Lower bounds on the time of every plan: one unit, one link, and what a capacity leaves free for prefetches.

Each operator j has a *head*, before which it cannot start whatever the order, and a *tail*, which must follow it:

    head(j) ≥ head(i) + p(i)                       for what makes its inputs
    head(j) ≥ bytes that j or its ancestors read of inputs and parameters / bandwidth
    tail(j) ≥ p(k) + tail(k)                       for what reads its results
    tail(j) ≥ bytes of the outputs that j or its descendants make / bandwidth

and both grow by what must be loaded between two operators beside those that run there (`windows`).

Operators with heads and tails on one unit need at least what Jackson's preemptive schedule takes (Carlier 1982), and
so do the transfers on the link: compulsory loads (tail: their latest reader's p + tail), compulsory stores (head:
their maker's head + p), and the transfers that no plan within the capacity avoids.
"""

from __future__ import annotations

import heapq
import time
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from math import inf
from operator import or_

from peakline.solvers.dag import Dag, bits

__all__ = ["ROUNDING", "heads", "jackson", "tails", "time_bound", "windows"]

_MOST_QUEUED = 800  # operators; the ancestors of all of them are queued one operator at a time
_LONGEST_WINDOW = 40  # descendants, the first in the given order, to which windows are drawn
_MOST_SUMMED = 10  # tensors whose subset sums are listed

ROUNDING = 1 - 1e-12
"""Sums of floats may come out above the true ones by less than this."""


def time_bound(
    dag: Dag,
    capacity: int,
    seconds: Sequence[float],
    bandwidth: float,
    avoidable: int = 0,
    *,
    deadline: float = inf,
) -> tuple[float, str]:
    """Seconds that every plan takes that moves at least `avoidable` non-compulsory bytes; and what says so.

    Past the `deadline` (of `time.perf_counter`) no more windows are drawn.
    """
    apart = windows(dag, capacity, seconds, bandwidth, deadline) if len(dag) <= _MOST_QUEUED else {}
    early, late = heads(dag, seconds, bandwidth, apart), tails(dag, seconds, bandwidth, apart)
    found = [
        (jackson([(early[i], p, late[i]) for i, p in enumerate(seconds)]), "heads and tails on the compute unit"),
        (jackson(_transfers(dag, seconds, bandwidth, early, late, avoidable)), "heads and tails on the link"),
        (_beside(dag, capacity, seconds, bandwidth, avoidable), "what the capacity leaves free beside operators"),
    ]
    bound, method = max(found, key=lambda entry: entry[0])
    return bound * ROUNDING, method


def windows(
    dag: Dag, capacity: int, seconds: Sequence[float], bandwidth: float, deadline: float = inf
) -> dict[int, list[tuple[int, float]]]:
    """For each operator j the descendants k with the seconds that lie between j's end and k's start in every plan.

    With B the operators on paths from j to k, which run in between, and N the tensors that B or k read and j does not
    touch, which lie off-chip from the start or are made before j: what of N is not resident when j ends is loaded in
    between. A tensor takes all its bytes from the moment its load begins, so beside i lie at most
    f_i(N) = max { |X| : X ⊆ N, |X| ≤ M − working set(i) } bytes of N, and

        start(k) − end(j) ≥ Σ_{i ∈ B} p_i + max(0, (|N| − f_j(N)) / bandwidth − Σ_{i ∈ B} min(p_i, f_i(N) / bandwidth))

    (an operator outside B that runs in between as well takes at least the time that it hides). Windows without such
    loads are left out: precedence says the same.
    """
    found: dict[int, list[tuple[int, float]]] = {}
    place = {i: n for n, i in enumerate(dag.problem.given_order)}
    fits: dict[tuple[int, int], int] = {}
    by_size = sorted((size, 1 << a) for a, size in enumerate(dag.size))
    below = [0, *accumulate((mask for _, mask in by_size), or_)]
    small = [below[bisect_right(by_size, (capacity - own, inf))] for own in dag.working_sets]  # tensors that fit alone

    def beside(i: int, tensors: int) -> int:
        tensors &= small[i]
        if (i, tensors) not in fits:
            fits[i, tensors] = _largest_fit(dag, tensors, capacity - dag.working_sets[i])
        return fits[i, tensors]

    for j in range(len(dag)):
        if time.perf_counter() > deadline:
            break
        there = dag.off_chip
        for i in bits(dag.ancestors[j]):
            there |= dag.makes[i]
        there &= ~dag.touch[j]
        pairs = []
        for k in sorted(bits(dag.descendants[j]), key=place.__getitem__)[:_LONGEST_WINDOW]:
            between = list(bits(dag.descendants[j] & dag.ancestors[k]))
            needed = dag.reads[k]
            for i in between:
                needed |= dag.reads[i]
            needed &= there
            moving = (dag.weigh(needed) - beside(j, needed)) / bandwidth
            for i in between:
                if moving <= 0:
                    break
                moving -= min(seconds[i], beside(i, needed & ~dag.touch[i]) / bandwidth)
            if moving > 0:
                pairs.append((k, sum(seconds[i] for i in between) + moving))
        found[j] = pairs
    return found


def _largest_fit(dag: Dag, tensors: int, room: int) -> int:
    """Most bytes of tensors, each of which fits alone, that fit together; of many tensors a bound on it."""
    total = dag.weigh(tensors)
    if total <= room:
        return total
    if tensors.bit_count() > _MOST_SUMMED:
        return room
    sums = {0}
    for a in bits(tensors):
        sums |= {have + dag.size[a] for have in sums if have + dag.size[a] <= room}
    return max(sums)


def heads(
    dag: Dag, seconds: Sequence[float], bandwidth: float, apart: dict[int, list[tuple[int, float]]] | None = None
) -> list[float]:
    """Seconds before which no plan starts each operator; `apart` as `windows` gives it."""
    found, needed = [0.0] * len(dag), [0] * len(dag)
    for j in dag.problem.given_order:
        needed[j] = dag.touch[j] & dag.off_chip
        for i in bits(dag.before[j]):
            needed[j] |= needed[i]
            found[j] = max(found[j], found[i] + seconds[i])
        found[j] = max(found[j], dag.weigh(needed[j]) / bandwidth)
        if len(dag) <= _MOST_QUEUED and dag.before[j].bit_count() > 1:  # the ancestors one after the other
            found[j] = max(found[j], jackson([(found[i], seconds[i], 0.0) for i in bits(dag.ancestors[j])]))
        for k, gap in (apart or {}).get(j, ()):
            found[k] = max(found[k], found[j] + seconds[j] + gap)
    return found


def tails(
    dag: Dag, seconds: Sequence[float], bandwidth: float, apart: dict[int, list[tuple[int, float]]] | None = None
) -> list[float]:
    """Seconds that follow each operator in every plan; `apart` as `windows` gives it."""
    found, made = [0.0] * len(dag), [0] * len(dag)
    for j in reversed(dag.problem.given_order):
        made[j] = dag.makes[j] & dag.results
        for k in bits(dag.after[j]):
            made[j] |= made[k]
            found[j] = max(found[j], seconds[k] + found[k])
        found[j] = max(found[j], dag.weigh(made[j]) / bandwidth)
        if dag.after[j].bit_count() > 1:  # the descendants one after the other
            found[j] = max(found[j], sum(seconds[i] for i in bits(dag.descendants[j])))
        for k, gap in (apart or {}).get(j, ()):
            found[j] = max(found[j], gap + seconds[k] + found[k])
    return found


def jackson(jobs: Sequence[tuple[float, float, float]]) -> float:
    """Least makespan of jobs (head, seconds, tail) on one machine that may interrupt them: of all that have arrived
    the one with the longest tail goes on. No schedule without interruption is shorter.
    """
    waiting: list[tuple[float, float]] = []  # (−tail, seconds left)
    arriving = sorted(jobs)
    now = longest = 0.0
    n = 0
    while n < len(arriving) or waiting:
        if not waiting:
            now = max(now, arriving[n][0])
        while n < len(arriving) and arriving[n][0] <= now:
            heapq.heappush(waiting, (-arriving[n][2], arriving[n][1]))
            n += 1
        tail, left = heapq.heappop(waiting)
        until = arriving[n][0] if n < len(arriving) else inf
        if now + left <= until:
            now += left
            longest = max(longest, now - tail)
        else:
            heapq.heappush(waiting, (tail, left - (until - now)))
            now = until
    return longest


def _transfers(
    dag: Dag, seconds: Sequence[float], bandwidth: float, early: Sequence[float], late: Sequence[float], avoidable: int
) -> list[tuple[float, float, float]]:
    """Compulsory loads and stores as jobs of the link; what else must move may do so at any time."""
    jobs = [(0.0, avoidable / bandwidth, 0.0)]
    for a, tensor in enumerate(dag.problem.tensors):
        readers = list(bits(dag.readers[a]))
        if dag.off_chip >> a & 1 and readers:
            jobs.append((0.0, dag.size[a] / bandwidth, max(seconds[j] + late[j] for j in readers)))
        elif tensor.role == "output":
            jobs.append((early[dag.maker[a]] + seconds[dag.maker[a]], dag.size[a] / bandwidth, 0.0))
    return jobs


def _beside(dag: Dag, capacity: int, seconds: Sequence[float], bandwidth: float, avoidable: int) -> float:
    """C + max(first loads, all loads − Σ_j min(p_j, (M − working set_j) / bandwidth)) + last stores.

    Whatever is loaded while j runs lies beside its working set when j ends (to load and to drop it unread in that
    time serves nobody), so j hides at most (M − working set_j) bytes of loads. Before the first operator its inputs
    are loaded; after the last one what it makes is stored. Of x non-compulsory bytes at least half are loads.
    """
    used = sum(1 << a for a in bits(dag.off_chip) if dag.readers[a])
    loads = (dag.weigh(used) + (avoidable + 1) // 2) / bandwidth
    hidden = sum(min(p, (capacity - dag.working_sets[j]) / bandwidth) for j, p in enumerate(seconds))
    first = min(dag.weigh(dag.touch[j] & dag.off_chip) for j in range(len(dag)) if not dag.before[j])
    last = min(dag.weigh(dag.makes[j] & dag.results) for j in range(len(dag)) if not dag.after[j])
    return sum(seconds) + max(first / bandwidth, loads - hidden) + last / bandwidth
