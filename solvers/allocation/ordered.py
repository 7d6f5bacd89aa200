"""A sorted collection for sweeps over many buffers."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from itertools import islice

__all__ = ["Ordered"]

_BLOCK = 512  # entries; a block of twice as many is split


class Ordered:
    """Distinct pairs of integers in ascending order, in blocks: one among 100,000 comes and goes in microseconds.

    A single sorted list moves half of its entries for each that comes or goes.
    """

    def __init__(self) -> None:
        self._blocks: list[list[tuple[int, int]]] = [[]]
        self._last: list[tuple[int, int]] = []  # of each block; empty while there is nothing

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for block in self._blocks:
            yield from block

    def add(self, entry: tuple[int, int]) -> None:
        """Take a pair that is not there yet."""
        if not self._last:
            self._blocks[0].append(entry)
            self._last.append(entry)
            return
        at = min(bisect_left(self._last, entry), len(self._last) - 1)
        block = self._blocks[at]
        insort(block, entry)
        if len(block) >= 2 * _BLOCK:
            self._blocks[at : at + 1] = block[:_BLOCK], block[_BLOCK:]
            self._last[at : at + 1] = block[_BLOCK - 1], block[-1]
        else:
            self._last[at] = block[-1]

    def remove(self, entry: tuple[int, int]) -> None:
        """Drop a pair that is there."""
        at = bisect_left(self._last, entry)
        block = self._blocks[at]
        del block[bisect_left(block, entry)]
        if block:
            self._last[at] = block[-1]
        else:
            del self._last[at]
            if len(self._blocks) > 1:
                del self._blocks[at]

    def from_(self, entry: tuple[int, int]) -> Iterator[tuple[int, int]]:
        """The pairs that are not below `entry`, ascending."""
        at = bisect_left(self._last, entry)
        if at == len(self._last):
            return
        place = bisect_left(self._blocks[at], entry)
        for block in islice(self._blocks, at, None):
            for k in range(place, len(block)):
                yield block[k]
            place = 0

    def below(self, entry: tuple[int, int]) -> tuple[int, int] | None:
        """The largest pair below `entry`."""
        at = bisect_left(self._last, entry)
        if at < len(self._last):
            block = self._blocks[at]
            place = bisect_left(block, entry)
            if place:
                return block[place - 1]
        return self._last[at - 1] if at else None
