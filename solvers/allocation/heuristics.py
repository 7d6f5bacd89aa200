"""Placements in milliseconds: the incumbents that the search starts from, with alignment and fixed offsets honoured."""

from __future__ import annotations

import time
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from contextlib import suppress
from math import inf

from peakline.solvers.allocation.greedy import Placement
from peakline.solvers.allocation.instance import Instance

__all__ = ["ORDERS", "by_birth", "in_order", "quick"]

_MOST_FOR_LISTS = 3_000  # buffers; the rules by order look at all pairs, about 2 s each at this size
_MANY = 500  # buffers from which on the quickest rule comes first
_CHECK_CLOCK = 32  # buffers
_Gap = tuple[int, int | None]  # offset and end; None: open above


def _size(item: Instance, i: int) -> tuple[float, ...]:
    return (-item.buffers[i].size, item.buffers[i].lower - item.buffers[i].upper, i)


def _area(item: Instance, i: int) -> tuple[float, ...]:
    return (item.buffers[i].size * (item.buffers[i].lower - item.buffers[i].upper), i)


def _length(item: Instance, i: int) -> tuple[float, ...]:
    return (item.buffers[i].lower - item.buffers[i].upper, -item.buffers[i].size, i)


def _birth(item: Instance, i: int) -> tuple[float, ...]:
    return (item.buffers[i].lower, -item.buffers[i].size, i)


ORDERS: dict[str, Callable[[Instance, int], tuple[float, ...]]] = {
    "size": _size,
    "area": _area,
    "length": _length,
    "birth": _birth,
}
"""Which buffer goes first: the largest, the largest size × lifetime, the longest lived, the earliest."""


def quick(instance: Instance, deadline: float = inf) -> Iterator[tuple[str, Placement]]:
    """Placements by every rule that is quick enough for so many buffers, with the rule's name.

    The first one of many buffers is the quickest; past the `deadline` (`time.monotonic()` seconds) no other is begun
    or finished.
    """
    count = len(instance.buffers)
    if count > _MANY:
        yield "best fit by birth", by_birth(instance)
    if count <= _MOST_FOR_LISTS:
        with suppress(TimeoutError):
            yield from _lists(instance, deadline if count > _MANY else inf)


def _lists(instance: Instance, deadline: float) -> Iterator[tuple[str, Placement]]:
    """Placements by the rules that look at all pairs. Raises TimeoutError past the deadline."""
    if any(hint is not None for hint in instance.hints):
        far = max((hint for hint in instance.hints if hint is not None), default=0) + 1
        rank = [far if hint is None else hint for hint in instance.hints]
        order = sorted(range(len(rank)), key=lambda i: (rank[i], i))
        yield "hints", in_order(instance, order, tight=False, deadline=deadline)
    for name, key in ORDERS.items():
        order = sorted(range(len(instance.buffers)), key=lambda i: key(instance, i))
        yield f"greedy by {name}", in_order(instance, order, tight=False, deadline=deadline)
        yield f"best fit by {name}", in_order(instance, order, tight=True, deadline=deadline)


def in_order(instance: Instance, order: list[int], *, tight: bool, deadline: float = inf) -> Placement:
    """Fixed buffers first, then one by one in `order` at the lowest offset that is free, or in the smallest gap if
    `tight`. O(n²). Raises TimeoutError past the deadline."""
    offsets = [0] * len(instance.buffers)
    placed: list[tuple[int, int, int, int]] = []  # (bottom, top, lower, upper), by bottom
    pinned = [i for i in order if instance.fixed[i] is not None]
    for turn, i in enumerate(pinned + [i for i in order if instance.fixed[i] is None]):
        if turn % _CHECK_CLOCK == 0 and time.monotonic() > deadline:
            raise TimeoutError
        b = instance.buffers[i]
        fixed = instance.fixed[i]
        if fixed is None:
            busy = ((low, high) for low, high, since, until in placed if since < b.upper and b.lower < until)
            gaps = _gaps(busy, b.size, instance.alignments[i])
            offsets[i] = _smallest(gaps) if tight else gaps[0][0]
        else:
            offsets[i] = fixed
        insort(placed, (offsets[i], offsets[i] + b.size, b.lower, b.upper))
    return _placement(instance, offsets)


def by_birth(instance: Instance) -> Placement:
    """The earliest first, each in the smallest hole between the living: what an allocator does at run time.

    Looks only at what is alive and at fixed buffers still to come, so that 100,000 buffers take seconds.
    """
    offsets = [0] * len(instance.buffers)
    pinned = sorted(
        (offset, offset + b.size, b.lower, b.upper)
        for b, offset in zip(instance.buffers, instance.fixed)
        if offset is not None
    )
    alive: list[tuple[int, int]] = []  # (bottom, top), by bottom
    events = [(b.lower, 1, -b.size, i) for i, b in enumerate(instance.buffers)]
    events += [(b.upper, 0, 0, i) for i, b in enumerate(instance.buffers)]
    for _, born, _, i in sorted(events):
        b, fixed = instance.buffers[i], instance.fixed[i]
        if not born:
            if fixed is None:
                del alive[bisect_left(alive, (offsets[i], offsets[i] + b.size))]
        elif fixed is not None:
            offsets[i] = fixed
        else:
            walls = [(low, high) for low, high, since, until in pinned if since < b.upper and b.lower < until]
            offsets[i] = _smallest(_gaps(sorted(alive + walls) if walls else alive, b.size, instance.alignments[i]))
            insort(alive, (offsets[i], offsets[i] + b.size))
    return _placement(instance, offsets)


def _gaps(busy: Iterator[tuple[int, int]] | list[tuple[int, int]], size: int, alignment: int) -> list[_Gap]:
    """Free ranges that hold `size` bytes, lowest first, their starts aligned; `busy` ranges come by bottom."""
    gaps: list[_Gap] = []
    free = 0
    for bottom, top in busy:
        if bottom - free >= size:
            gaps.append((free, bottom))
        if top > free:
            free = -(-top // alignment) * alignment
    gaps.append((free, None))
    return gaps


def _smallest(gaps: list[_Gap]) -> int:
    closed = [(end - start, start) for start, end in gaps if end is not None]
    return min(closed)[1] if closed else gaps[-1][0]


def _placement(instance: Instance, offsets: list[int]) -> Placement:
    arena = max((offset + b.size for offset, b in zip(offsets, instance.buffers)), default=0)
    return Placement(tuple(offsets), arena)
