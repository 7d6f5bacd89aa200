"""Addresses for schedules whose episodes do not fit together, by leaving a little of the capacity free.

A schedule with the least traffic fills the scratchpad to the last byte at many steps, and where sizes are unlike each
other its episodes cannot be packed then; dropping whatever is in the way costs a fifth of the traffic or more. The
least traffic of the same order with some bytes less to fill costs about as many bytes more, for a byte less room is a
byte or two to move, and a few per cent are room enough for the exact search to find a packing. So ever larger reserves
are tried until one does, then smaller ones between the last that did not and it.
"""

from __future__ import annotations

import time

from peakline.solvers.dag import Dag
from peakline.solvers.schedule.episodes import Schedule, traffic
from peakline.solvers.schedule.fixed_order import best_replacement
from peakline.solvers.schedule.pack import pack
from peakline.solvers.schedule.rolling import place_in_turn

__all__ = ["Placed", "place_with_spare"]

Placed = tuple[Schedule, tuple[int, ...]]
"""A schedule and the offsets of its episodes."""

_FIRST = 200  # part of the capacity that the first reserve is
_LARGEST = 4  # part of the capacity that the last one is
_GROWTH = 2  # of reserves, until one does
_CLOSE = 1.3  # times a reserve that failed: one that does is small enough
_REPLACING = 0.1  # of the time left, for one replacement
_PACKING = 0.1  # of the time left, for one packing; those that are found are found at once
_GAP = 0.003  # of a replacement's traffic that may be left to gain
_SECONDS = 2.0  # for one replacement at least: less gives none that is good


def place_with_spare(
    dag: Dag, schedule: Schedule, capacity: int, *, most: int, deadline: float, seed: int
) -> Placed | None:
    """A schedule of the same order with addresses that moves less than `most` bytes; None if none was found in time.

    The deadline is `time.perf_counter`'s.
    """
    best: Placed | None = None
    fails, does = 0, 0  # the largest reserve for which no packing was found, the smallest for which one was
    spare = max(1, capacity // _FIRST)
    while spare <= capacity // _LARGEST and time.perf_counter() < deadline:
        smaller = best_replacement(
            dag, schedule.order, capacity, time_limit=max(_SECONDS, _part(_REPLACING, deadline)), spare=spare, gap=_GAP
        ).schedule  # fmt: skip
        if traffic(dag, smaller.dropped) >= most:
            does = spare  # it may, but is too dear
        else:
            found = pack(dag, smaller, capacity, time_limit=_part(_PACKING, deadline), seed=seed)
            placed = (smaller, found[0]) if found is not None else place_in_turn(dag, smaller, capacity)
            if traffic(dag, placed[0].dropped) < most:
                best, most = placed, traffic(dag, placed[0].dropped)
            if found is not None:
                does = spare
            else:
                fails = spare
        if does and does <= max(_CLOSE * fails, fails + 1):
            break
        spare = (fails + does + 1) // 2 if does else _GROWTH * spare
    return best


def _part(share: float, deadline: float) -> float:
    return max(0.05, share * (deadline - time.perf_counter()))
