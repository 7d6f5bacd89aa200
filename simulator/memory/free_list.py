"""The cached free blocks of an allocator: best fit by size and merging of neighbours.

A free block is known by its two ends in two dictionaries, so that merging needs no list of neighbours: segments
never touch in the address space, hence two blocks that touch lie in one segment. Best fit is one bisection in a
list of integers `size << 52 | address` per stream and pool, which is the order of `BlockComparatorSize` in
`c10/cuda/CUDACachingAllocator.cpp`: by stream, size, address.
"""

from __future__ import annotations

from bisect import bisect_left, insort

__all__ = ["ADDRESS_BITS", "ADDRESS_MASK", "FreeList", "PoolKey"]

PoolKey = tuple[int, bool]  # (CUDA stream, small pool?)
ADDRESS_BITS = 52  # 4 PiB: beyond a CUDA device's 48-bit addresses, within a double's whole numbers
ADDRESS_MASK = (1 << ADDRESS_BITS) - 1


class FreeList:
    """Free blocks of all pools.

    Attributes:
        pools: ascending `size << 52 | address` of the free blocks of each (stream, small) pool.
        starts: size of the free block that starts at an address.
        ends: start of the free block that ends at an address.
        born: with `track_age`, how many searches of the large pools had been made when the block at an address
            became free (`gc_count_base`).
        large_searches: those searches so far (`get_free_blocks_call_count`).
    """

    def __init__(self, *, track_age: bool = False) -> None:
        self.pools: dict[PoolKey, list[int]] = {}
        self.starts: dict[int, int] = {}
        self.ends: dict[int, int] = {}
        self.track_age = track_age
        self.born: dict[int, int] = {}
        self.large_searches = 0

    def keys_of(self, pool: PoolKey) -> list[int]:
        """The list of a pool, made when first asked for."""
        return self.pools.setdefault(pool, [])

    def add(self, start: int, size: int, keys: list[int]) -> None:
        """Add a free block that has no free neighbour."""
        self.starts[start] = size
        self.ends[start + size] = start
        insort(keys, size << ADDRESS_BITS | start)
        if self.track_age:
            self.born[start] = self.large_searches

    def remove(self, start: int, size: int, keys: list[int]) -> None:
        """Take a free block out."""
        del self.starts[start]
        del self.ends[start + size]
        del keys[bisect_left(keys, size << ADDRESS_BITS | start)]

    def merge(self, start: int, size: int, keys: list[int]) -> tuple[int, int]:
        """Free a block, merged with the free blocks before and after it (`free_block`, `try_merge_blocks`).

        Returns address and size of the free block that it is now part of.
        """
        end = start + size
        if start in self.ends:
            before = self.ends[start]
            self.remove(before, start - before, keys)
            start = before
        if end in self.starts:
            after = self.starts[end]
            self.remove(end, after, keys)
            end += after
        self.add(start, end - start, keys)
        return start, end - start

    def age(self, start: int) -> int:
        """Searches of the large pools since the block became free (`Block::gc_count`)."""
        return self.large_searches - self.born[start]

    def copy(self) -> FreeList:
        """An independent copy."""
        other = FreeList(track_age=self.track_age)
        other.pools = {pool: list(keys) for pool, keys in self.pools.items()}
        other.starts, other.ends, other.born = dict(self.starts), dict(self.ends), dict(self.born)
        other.large_searches = self.large_searches
        return other
