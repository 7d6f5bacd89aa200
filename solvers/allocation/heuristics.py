"""Placements without search: the incumbents that the search starts from, alignment and fixed offsets honoured."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from math import gcd, inf

import numpy as np

from peakline.solvers.allocation.greedy import Placement
from peakline.solvers.allocation.instance import Column, Instance
from peakline.solvers.allocation.ordered import Ordered

__all__ = ["ORDERS", "by_birth", "in_order", "quick"]

ORDERS = ("size", "area", "length", "birth")
"""Which buffer goes first: the largest, the largest size × lifetime, the longest lived, the earliest."""

_MANY = 500  # buffers from which on the quickest rule comes first
_TRIED = 16  # holes large enough but for their alignment, after which one is taken that is large enough anyhow


def quick(instance: Instance, deadline: float = inf) -> Iterator[tuple[str, Placement]]:
    """Placements by every rule, with the rule's name.

    The first one of many buffers is the quickest; past the `deadline` (`time.monotonic()` seconds) no other is begun
    or finished.
    """
    many = len(instance.buffers) > _MANY
    if many:
        yield "best fit by birth", by_birth(instance)
    with suppress(TimeoutError):
        yield from _lists(instance, deadline if many else inf)


def _lists(instance: Instance, deadline: float) -> Iterator[tuple[str, Placement]]:
    """Placements by the rules that look at all neighbours. Raises TimeoutError past the deadline."""
    if any(hint is not None for hint in instance.hints):
        order = ordered(instance, "hint")
        yield "hints as given", in_order(instance, order, tight=False, hints=instance.hints, deadline=deadline)
        yield "hints", in_order(instance, order, tight=False, deadline=deadline)
    for name in ORDERS:
        order = ordered(instance, name)
        yield f"greedy by {name}", in_order(instance, order, tight=False, deadline=deadline)
        yield f"best fit by {name}", in_order(instance, order, tight=True, deadline=deadline)


def ordered(instance: Instance, name: str) -> list[int]:
    """The buffers in one of `ORDERS`, or by "hint": the lowest first, then those without one, the largest first."""
    if name == "hint":
        far, hints = max(hint for hint in (0, *instance.hints) if hint is not None) + 1, instance.hints
        rank = [(far, -b.size) if hint is None else (hint, 0) for hint, b in zip(hints, instance.buffers)]
        return sorted(range(len(rank)), key=rank.__getitem__)
    lower, upper, size = instance.columns
    life = upper - lower
    keys = {
        "size": (-life, -size),
        "area": (-size * life if size.dtype == object else -size.astype(float) * life,),
        "length": (-size, -life),
        "birth": (-size, lower),
    }
    order: list[int] = np.lexsort(keys[name]).tolist() if size.dtype != object else _sorted(keys[name])
    return order


def _sorted(keys: tuple[Column, ...]) -> list[int]:
    """As `np.lexsort`, which does not take Python's integers: the last key first."""
    return sorted(range(len(keys[0])), key=lambda i: tuple(key[i] for key in reversed(keys)))


def in_order(
    instance: Instance,
    order: list[int],
    *,
    tight: bool,
    hints: Sequence[int | None] = (),
    deadline: float = inf,
) -> Placement:
    """Fixed buffers first, then one by one in `order`: where `hints` want it if that is free; else at the lowest
    offset that is, or in the smallest gap if `tight`. Raises TimeoutError past the deadline.

    By date of birth, the buffers that may be alive with one are consecutive: born before its end, and after its birth
    less the longest life.
    """
    lower, upper, size = instance.columns
    birth = np.argsort(lower, kind="stable")
    rank = np.empty(len(birth), dtype=np.int64)
    rank[birth] = np.arange(len(birth))
    born, longest = lower[birth], (upper - lower).max(initial=0)
    since = np.searchsorted(born, lower - longest, side="right").tolist()
    until = np.searchsorted(born, upper, side="left").tolist()
    begin = lower.min(initial=0)
    dies = np.full_like(lower, begin)  # by birth, as all below; not placed yet: as if dead before anybody's birth
    bottom, top = np.zeros_like(size), np.zeros_like(size)
    pinned = [i for i, offset in enumerate(instance.fixed) if offset is not None]
    for i in pinned:
        k, offset = rank[i], instance.fixed[i]
        dies[k], bottom[k], top[k] = upper[i], offset, offset + size[i]
    starts, ends, sizes, places = lower.tolist(), upper.tolist(), size.tolist(), rank.tolist()
    free = [i for i in order if instance.fixed[i] is None] if pinned else order
    for i in free:
        if time.monotonic() > deadline:
            raise TimeoutError
        near = slice(since[i], until[i])
        met = np.flatnonzero(dies[near] > starts[i])
        lows, highs = bottom[near][met], top[near][met]
        offset = _hinted(lows, highs, sizes[i], instance.alignments[i], hints[i]) if hints else None
        if offset is None:
            offset = _free(lows, highs, sizes[i], instance.alignments[i], tight) if len(met) else 0
        k = places[i]
        dies[k], bottom[k], top[k] = ends[i], offset, offset + sizes[i]
    return _placement(instance, bottom[rank].tolist())


def _hinted(bottom: Column, top: Column, size: int, alignment: int, hint: int | None) -> int | None:
    """The hint, if `size` bytes may lie there between the ranges; else None."""
    if hint is None or hint < 0 or hint % alignment:
        return None
    return None if ((bottom < hint + size) & (top > hint)).any() else hint


def _free(bottom: Column, top: Column, size: int, alignment: int, tight: bool) -> int:
    """Where `size` bytes fit between ranges: lowest, or in the smallest gap (of equal ones the lowest) if `tight`."""
    by_address = np.argsort(bottom, kind="stable")
    bottom, reached = bottom[by_address], np.maximum.accumulate(top[by_address])
    if alignment > 1:
        reached = -(-reached // alignment) * alignment
    start = np.empty_like(bottom)
    start[0], start[1:] = 0, reached[:-1]
    room = bottom - start
    fits = np.flatnonzero(room >= size)
    if not len(fits):
        return int(reached[-1])
    return int(start[fits[room[fits].argmin()] if tight else fits[0]])


def by_birth(instance: Instance) -> Placement:
    """The earliest first, each in the smallest hole between the living: what an allocator does at run time.

    Holes are kept by size and by their ends, so that 100,000 buffers take less than a second however many are alive.
    Where offsets are fixed, the others stay above them.
    """
    size = instance.columns[2]
    step = gcd(*instance.alignments)
    wide: list[int] = (-(-size // step) * step).tolist()
    pinned = [offset + b.size for b, offset in zip(instance.buffers, instance.fixed) if offset is not None]
    holes = _Holes(-(-max(pinned, default=0) // step) * step)
    offsets = [0 if offset is None else offset for offset in instance.fixed]
    left = len(offsets) - len(pinned)
    for event in instance.events:
        i = event if event >= 0 else ~event
        if pinned and instance.fixed[i] is not None:
            continue
        if event < 0:
            holes.give(offsets[i], offsets[i] + wide[i])
            continue
        offsets[i] = holes.take(wide[i], instance.alignments[i])
        left -= 1
        if not left:
            break
    return _placement(instance, offsets)


class _Holes:
    """Free ranges below a top above which all is free."""

    def __init__(self, base: int) -> None:
        self.top = base
        self.end: dict[int, int] = {}  # of the hole that starts there
        self.start: dict[int, int] = {}  # of the hole that ends there
        self.by_size = Ordered()  # (bytes, start)

    def take(self, size: int, alignment: int) -> int:
        """An offset for `size` bytes: in the smallest hole that holds them, else at the top."""
        hole = next(self.by_size.from_((size, -1)), None) if alignment == 1 else self._aligned(size, alignment)
        if hole is None:
            offset, end, start = -(-self.top // alignment) * alignment, 0, self.top
            self.top = offset + size
        else:
            start = hole[1]
            end = start + hole[0]
            self._close(start, end)
            offset = -(-start // alignment) * alignment
        self._open(start, offset)
        self._open(offset + size, end)
        return offset

    def _aligned(self, size: int, alignment: int) -> tuple[int, int] | None:
        """A small hole that holds `size` bytes from a multiple of `alignment` on."""
        for tried, (room, start) in enumerate(self.by_size.from_((size, -1))):
            if room - -start % alignment >= size:
                return room, start
            if tried == _TRIED:
                break
        return next(self.by_size.from_((size + alignment - 1, -1)), None)

    def give(self, start: int, end: int) -> None:
        """A range is free again: joined with the holes beside it, or part of what is above the top."""
        if (low := self.start.get(start)) is not None:
            self._close(low, start)
            start = low
        if end == self.top:
            self.top = start
            return
        if (high := self.end.get(end)) is not None:
            self._close(end, high)
            end = high
        self._open(start, end)

    def _open(self, start: int, end: int) -> None:
        if start < end:
            self.end[start], self.start[end] = end, start
            self.by_size.add((end - start, start))

    def _close(self, start: int, end: int) -> None:
        del self.end[start], self.start[end]
        self.by_size.remove((end - start, start))


def _placement(instance: Instance, offsets: list[int]) -> Placement:
    arena = max((offset + b.size for offset, b in zip(offsets, instance.buffers)), default=0)
    return Placement(tuple(offsets), arena)
