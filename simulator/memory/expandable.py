"""Reserved but unmapped address space of expandable segments.

An expandable segment reserves 9/8 of the device's memory as addresses, and maps pages into it as they are needed
(`ExpandableSegment`, `find_expandable_block` in `c10/cuda/CUDACachingAllocator.cpp`). A *hole* is a maximal
unmapped range; its ends lie on page boundaries.
"""

from __future__ import annotations

from bisect import bisect_left, insort

from peakline.memory.free_list import FreeList, PoolKey

__all__ = ["Holes", "align_down", "align_up"]

# Without a known device: 2 TiB, more than any accelerator has.
_DEFAULT_RESERVATION = 1 << 41


def align_up(value: int, step: int) -> int:
    """Smallest multiple of `step` that is at least `value`."""
    return -(-value // step) * step


def align_down(value: int, step: int) -> int:
    """Largest multiple of `step` that is at most `value`."""
    return value // step * step


class Holes:
    """The holes of all reservations.

    Attributes:
        sizes: bytes of the hole that starts at an address.
        reservations: bytes of the reservation that starts at an address.
    """

    def __init__(self, device_total: int | None) -> None:
        self.device_total = device_total
        self.sizes: dict[int, int] = {}
        self.reservations: dict[int, int] = {}
        self._ends: dict[int, int] = {}
        self._of_pool: dict[PoolKey, list[int]] = {}

    def reservation_size(self, page: int, request: int) -> int:
        """Bytes of a new reservation: 9/8 of the device's memory in whole pages.

        Without a known device, enough for the request in any case.
        """
        if self.device_total is None:
            return align_up(max(_DEFAULT_RESERVATION, request), page) + page
        return align_up(self.device_total + self.device_total // 8, page)

    def find(self, size: int, pool: PoolKey, free: FreeList) -> int | None:
        """Lowest address from which free blocks and holes together give `size` bytes; None if there is none.

        Only runs that begin at a hole, or at the free block just before one, are looked at
        (`find_expandable_block`).
        """
        for hole in self._of_pool.get(pool, ()):
            start = at = free.ends.get(hole, hole)
            while at - start < size:
                step = free.starts.get(at) or self.sizes.get(at)
                if step is None:
                    break
                at += step
            if at - start >= size:
                return start
        return None

    def reserve(self, base: int, size: int, pool: PoolKey) -> None:
        """A new reservation, all of it a hole."""
        self.reservations[base] = size
        self._add(base, size, pool)

    def fill(self, start: int, size: int, pool: PoolKey) -> None:
        """Map the first `size` bytes of the hole at `start`."""
        whole = self._remove(start, pool)
        if whole > size:
            self._add(start + size, whole - size, pool)

    def open(self, start: int, size: int, pool: PoolKey) -> None:
        """Unmap a range; a reservation that is all hole again is given up (`release_expandable_segment`)."""
        end = start + size
        if start in self._ends:
            start = self._ends[start]
            self._remove(start, pool)
        if end in self.sizes:
            end += self._remove(end, pool)
        if self.reservations.get(start) == end - start:
            del self.reservations[start]
        else:
            self._add(start, end - start, pool)

    def mapped_ranges(self) -> int:
        """Number of contiguous mapped ranges: each ends at a hole, and a hole at a reservation's base ends none."""
        return sum(1 for start in self.sizes if start not in self.reservations)

    def copy(self) -> Holes:
        """An independent copy."""
        other = Holes(self.device_total)
        other.sizes, other.reservations = dict(self.sizes), dict(self.reservations)
        other._ends = dict(self._ends)
        other._of_pool = {pool: list(starts) for pool, starts in self._of_pool.items()}
        return other

    def _add(self, start: int, size: int, pool: PoolKey) -> None:
        self.sizes[start] = size
        self._ends[start + size] = start
        insort(self._of_pool.setdefault(pool, []), start)

    def _remove(self, start: int, pool: PoolKey) -> int:
        size = self.sizes.pop(start)
        del self._ends[start + size]
        starts = self._of_pool[pool]
        del starts[bisect_left(starts, start)]
        return size
