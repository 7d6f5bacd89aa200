"""The memory that a caching allocator holds, and the rules by which it finds, splits, grows and gives back.

The rules are those of `DeviceCachingAllocator` in `c10/cuda/CUDACachingAllocator.cpp` (torch 2.5 to 2.13); each
method names the function it follows. The data structures are not PyTorch's: see `free_list` and `expandable`.

The driver is modelled by its capacity alone. Its addresses ascend in order of request and are never handed out
again; a real driver may order segments differently, which decides only between free blocks of equal size.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from peakline.memory.expandable import Holes, align_down, align_up
from peakline.memory.free_list import ADDRESS_BITS, ADDRESS_MASK, FreeList, PoolKey
from peakline.memory.options import MIN_BLOCK, ROUND_LARGE, SMALL_SIZE, AllocatorOptions
from peakline.memory.replay import SegmentAction

__all__ = ["CachedMemory", "Held"]

_BASE_ADDRESS = 0x7F0000000000  # where CUDA's mappings usually lie on Linux; any multiple of 2 MiB would do


@dataclass(frozen=True, slots=True)
class Held:
    """A block in the program's hands, or awaiting another stream: address, bytes, bytes asked for, pool."""

    address: int
    size: int
    requested: int
    pool: PoolKey


class CachedMemory:
    """Memory held from the driver: cached free blocks, segments, reservations.

    Attributes:
        options, capacity: as for `caching_allocator.replay`.
        limit: bytes that the memory fraction allows to reserve; None without one.
        reserved: bytes held from the driver.
        free: the cached free blocks.
        holes: unmapped address space of expandable segments.
        segments: bytes and pool of each segment by address.
        waiting: blocks freed but in use on another stream, by (run, block number).
        event: index of the event under way, to date what follows.
        retries, actions, completed, reserved_steps, active_steps: what happened since `start_run`: releases of
            all cached memory, dealings with the driver, (event, block number) of blocks that waited no longer,
            and (event, bytes) changes of reserved and of waiting memory.
    """

    def __init__(
        self, options: AllocatorOptions, capacity: int | None, device_total: int | None, limit: int | None
    ) -> None:
        self.options = options
        self.capacity = capacity
        self.limit = limit
        self.reserved = 0
        self.free = FreeList(track_age=limit is not None and options.garbage_collection_threshold > 0)
        self.holes = Holes(device_total)
        self.segments: dict[int, tuple[int, PoolKey]] = {}
        self.waiting: dict[tuple[int, int], Held] = {}
        self._next_address = _BASE_ADDRESS
        self.start_run()

    def start_run(self) -> None:
        """Begin a new account."""
        self.event = -1
        self.retries = 0
        self.actions: list[SegmentAction] = []
        self.completed: list[tuple[int, int]] = []
        self.reserved_steps: list[tuple[int, int]] = []
        self.active_steps: list[tuple[int, int]] = []

    def copy(self) -> CachedMemory:
        """An independent copy with an empty account."""
        other = CachedMemory(self.options, self.capacity, self.holes.device_total, self.limit)
        other.reserved, other._next_address = self.reserved, self._next_address
        other.free, other.holes = self.free.copy(), self.holes.copy()
        other.segments, other.waiting = dict(self.segments), dict(self.waiting)
        return other

    def segment_count(self) -> int:
        """Segments held; contiguous mapped ranges, for expandable segments."""
        return self.holes.mapped_ranges() if self.options.expandable_segments else len(self.segments)

    def synchronize(self) -> None:
        """All streams finish, and the blocks that waited for them come back (`synchronize_and_free_events`)."""
        for waiting in list(self.waiting):
            self.complete(waiting)

    def find(self, size: int, pool: PoolKey) -> tuple[int, int] | None:
        """Best fit among the cached blocks, taken out of them (`get_free_block`): its address and size."""
        options, free = self.options, self.free
        if free.track_age and not pool[1]:
            free.large_searches += 1
        keys = free.keys_of(pool)
        at = bisect_left(keys, size << ADDRESS_BITS)
        if at == len(keys):
            return None
        if options.expandable_segments:
            # A block before unmapped space counts with that space, which is kept for larger requests.
            while at + 1 < len(keys) and self._reach(keys[at + 1]) < self._reach(keys[at]):
                at += 1
        start, have = keys[at] & ADDRESS_MASK, keys[at] >> ADDRESS_BITS
        if options.max_split_size is not None:
            if size < options.max_split_size <= have:
                return None
            if size >= options.max_split_size and have >= size + options.rounding_limit:
                return None
        free.remove(start, have, keys)
        return start, have

    def _reach(self, key: int) -> int:
        """Bytes of a free block and of the hole after it (`expandable_size` in `get_free_block`)."""
        size = key >> ADDRESS_BITS
        return size + self.holes.sizes.get((key & ADDRESS_MASK) + size, 0)

    def split(self, start: int, have: int, size: int, pool: PoolKey) -> tuple[int, int]:
        """Keep `size` bytes at the low end and cache the rest where the rules allow (`should_split`).

        Returns address and size of the block handed out.
        """
        rest = have - size
        if pool[1] or self.options.expandable_segments:
            splits = rest >= MIN_BLOCK
        else:
            limit = self.options.max_split_size
            splits = rest > SMALL_SIZE and (limit is None or size < limit)
        if not splits:
            return start, have
        self.free.add(start + size, rest, self.free.keys_of(pool))
        return start, size

    def grow(self, size: int, pool: PoolKey) -> tuple[int, int] | None:
        """Memory from the driver, giving back cached memory as far as needed (second half of `malloc`)."""
        if self.free.track_age:
            self._collect_garbage()
        found = self._ask_driver(size, pool)
        if found is None and self._release_oversize(size, pool):
            found = self._ask_driver(size, pool)
        if found is None:
            self.release_cached()
            self.retries += 1
            found = self._ask_driver(size, pool)
        return found

    def _ask_driver(self, size: int, pool: PoolKey) -> tuple[int, int] | None:
        """A new segment, or pages for an expandable one; None if refused (`alloc_block`)."""
        segment = self.options.segment_size(size)
        if self.limit is not None and self.reserved + segment > self.limit:
            return None
        if self.options.expandable_segments:
            return self._expand(size, pool)
        if self.capacity is not None and self.reserved + segment > self.capacity:
            return None
        start = self._new_address(segment, ROUND_LARGE)
        self.segments[start] = (segment, pool)
        self._account("segment_alloc", start, segment, pool)
        return start, segment

    def _expand(self, size: int, pool: PoolKey) -> tuple[int, int] | None:
        """Map the pages that are missing at the lowest place with room (`try_allocate_expandable_block`)."""
        holes, free = self.holes, self.free
        start = holes.find(size, pool, free)
        if start is None:
            page = self.options.page_size(pool[1])
            total = holes.reservation_size(page, size)
            if total < size:
                return None
            start = self._new_address(total, page)
            holes.reserve(start, total, pool)
        have = free.starts.get(start, 0)
        while have < size:
            hole = start + have
            block = self._map(hole, min(size - have, holes.sizes[hole]), pool)
            if block is None:
                return None
            start, have = block
        free.remove(start, have, free.keys_of(pool))
        return start, have

    def _map(self, hole: int, size: int, pool: PoolKey) -> tuple[int, int] | None:
        """Map whole pages over `size` bytes from a hole's start; the free block they join (`map_block`)."""
        size = align_up(size, self.options.page_size(pool[1]))
        if self.capacity is not None and self.reserved + size > self.capacity:
            return None
        self.holes.fill(hole, size, pool)
        self._account("segment_map", hole, size, pool)
        return self.free.merge(hole, size, self.free.keys_of(pool))

    def _collect_garbage(self) -> None:
        """Give back unsplit large blocks of at least average age while over the threshold
        (`garbage_collect_cached_blocks`)."""
        assert self.limit is not None
        target = self.reserved - int(self.options.garbage_collection_threshold * float(self.limit))
        unsplit = [block for pool in self._pools(small=False) for block in self._unsplit(pool)]
        if target <= 0 or not unsplit:
            return
        ages = {start: self.free.age(start) for start, _, _ in unsplit}
        total_age, reclaimed = sum(ages.values()), 0
        while unsplit and reclaimed < target:
            average = total_age / len(unsplit)
            old = [block for block in unsplit if ages[block[0]] >= average]
            if not old:
                return
            for start, size, pool in old:
                reclaimed += size
                total_age -= ages[start]
                self._release_segment(start, size, pool)
            unsplit = [block for block in unsplit if ages[block[0]] < average]

    def _release_oversize(self, size: int, pool: PoolKey) -> bool:
        """Give back one oversize block that is large enough, else the largest downward until enough
        (`release_available_cached_blocks`). Whether enough was given back."""
        limit = self.options.max_split_size
        if limit is None or self.options.expandable_segments:
            return False
        keys, wanted, released = self.free.keys_of(pool), max(size, limit), 0
        at = bisect_left(keys, wanted << ADDRESS_BITS)
        if at < len(keys):
            self._release_segment(keys[at] & ADDRESS_MASK, keys[at] >> ADDRESS_BITS, pool)
            return True
        while at > 0 and released < wanted and keys[at - 1] >> ADDRESS_BITS >= limit:
            at -= 1
            released += keys[at] >> ADDRESS_BITS
            self._release_segment(keys[at] & ADDRESS_MASK, keys[at] >> ADDRESS_BITS, pool)
        return released >= wanted

    def release_cached(self) -> None:
        """Synchronise, then give back every unused segment and page (`release_cached_blocks`)."""
        self.synchronize()
        for small in (False, True):
            for pool in self._pools(small):
                for key in list(self.free.pools[pool]) if self.options.expandable_segments else ():
                    self._unmap(key & ADDRESS_MASK, key >> ADDRESS_BITS, pool)
                for start, size, _ in self._unsplit(pool):
                    self._release_segment(start, size, pool)

    def _unmap(self, start: int, size: int, pool: PoolKey) -> None:
        """Unmap the pages that lie wholly in a free block (`unmap_block`)."""
        page = self.options.page_size(pool[1])
        first, last = align_up(start, page), align_down(start + size, page)
        if first >= last:
            return
        keys = self.free.keys_of(pool)
        self.free.remove(start, size, keys)
        if start < first:
            self.free.add(start, first - start, keys)
        if last < start + size:
            self.free.add(last, start + size - last, keys)
        self.holes.open(first, last - first, pool)
        self._account("segment_unmap", first, first - last, pool)

    def _release_segment(self, start: int, size: int, pool: PoolKey) -> None:
        """Give a whole free segment back to the driver (`release_block`)."""
        self.free.remove(start, size, self.free.keys_of(pool))
        del self.segments[start]
        self._account("segment_free", start, -size, pool)

    def complete(self, waiting: tuple[int, int]) -> None:
        """A block's other streams have finished: it is free at last (`process_events`)."""
        held = self.waiting.pop(waiting, None)
        if held is not None:
            self.active_steps.append((self.event, -held.size))
            self.completed.append((self.event, waiting[1]))
            self.free.merge(held.address, held.size, self.free.keys_of(held.pool))

    def _pools(self, small: bool) -> list[PoolKey]:
        return sorted(pool for pool in self.free.pools if pool[1] == small)

    def _unsplit(self, pool: PoolKey) -> list[tuple[int, int, PoolKey]]:
        """Free blocks that are whole segments, by ascending size and address."""
        blocks = [(key & ADDRESS_MASK, key >> ADDRESS_BITS, pool) for key in self.free.pools[pool]]
        return [block for block in blocks if self.segments.get(block[0], (0, pool))[0] == block[1]]

    def _new_address(self, size: int, alignment: int) -> int:
        """Addresses for `size` bytes, apart from all others."""
        start = align_up(self._next_address, alignment)
        if start + size > ADDRESS_MASK:
            raise OverflowError(f"the stream needs {size} more bytes, beyond the 4 PiB that a replay can address")
        self._next_address = start + align_up(size, ROUND_LARGE) + ROUND_LARGE
        return start

    def _account(self, action: str, start: int, change: int, pool: PoolKey) -> None:
        self.reserved += change
        self.reserved_steps.append((self.event, change))
        self.actions.append(SegmentAction(self.event, action, start, abs(change), pool[0]))
