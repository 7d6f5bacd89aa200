"""Replay of PyTorch's CUDA caching allocator.

This module runs a stream of events and keeps the account; the rules are in `cached_memory`.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Hashable

import numpy as np

from peakline.memory.cached_memory import CachedMemory, Held
from peakline.memory.events import EventError, EventStream
from peakline.memory.free_list import ADDRESS_BITS, ADDRESS_MASK, PoolKey
from peakline.memory.options import MIN_BLOCK, SMALL_SIZE, AllocatorOptions
from peakline.memory.replay import Block, Moment, OutOfMemory, Replay, Segment, Timelines

__all__ = ["Allocator", "replay"]


def replay(
    events: EventStream,
    capacity: int | None = None,
    options: AllocatorOptions | None = None,
    *,
    record: bool = False,
    device_total: int | None = None,
) -> Replay:
    """Replay `events` through a fresh caching allocator.

    Args:
        events: the program's allocations and frees.
        capacity: bytes the driver can give to this allocator in all: the device's memory less the context,
            libraries and other processes. None: unlimited.
        options: allocator settings (default: PyTorch's defaults).
        record: keep the address and size of each block, the timelines and the final segments.
        device_total: bytes of the whole device, of which `options.memory_fraction` is a share (default: capacity).

    Returns the peaks; a replay that runs out of memory stops there and says so in `Replay.oom`.
    Raises EventError if the stream inherits blocks, ValueError for an impossible capacity.
    """
    return Allocator(capacity, options, device_total=device_total)._run(events, record=record, keep=record)


class Allocator:
    """A caching allocator whose state lasts from one stream to the next, as it does over training steps.

    Attributes:
        options, capacity, device_total: as for `replay`.
        limit: bytes that the memory fraction allows to reserve; None without one.
        peak_allocated, peak_reserved: highest bytes since the start or `reset_peaks`.
    """

    def __init__(
        self,
        capacity: int | None = None,
        options: AllocatorOptions | None = None,
        *,
        device_total: int | None = None,
    ) -> None:
        """An empty allocator; arguments and errors as for `replay`."""
        if capacity is not None and capacity < 0:
            raise ValueError(f"capacity: must be at least 0 bytes, got {capacity}")
        if capacity is not None and device_total is not None and device_total < capacity:
            raise ValueError(f"device_total: must be at least the capacity ({capacity} bytes), got {device_total}")
        self.options = options if options is not None else AllocatorOptions()
        self.capacity = capacity
        self.device_total = capacity if device_total is None else device_total
        if self.options.memory_fraction not in (None, 1) and self.device_total is None:
            raise ValueError("memory_fraction: a share of the device's memory needs a capacity or device_total")
        self.limit = self.options.allowed(self.device_total)
        self.peak_allocated = 0
        self.peak_reserved = 0
        self._live: dict[Hashable, Held] = {}
        self._memory = CachedMemory(self.options, capacity, self.device_total, self.limit)
        self._runs = 0

    # ---- state between runs ----------------------------------------------------------------------------------

    @property
    def reserved(self) -> int:
        """Bytes held from the driver."""
        return self._memory.reserved

    @property
    def allocated(self) -> int:
        """Bytes of the blocks in the program's hands."""
        return sum(held.size for held in self._live.values())

    @property
    def active(self) -> int:
        """Allocated bytes plus blocks freed but still in use on another stream."""
        return self.allocated + sum(held.size for held in self._memory.waiting.values())

    @property
    def requested(self) -> int:
        """Bytes the program asked for and has not freed."""
        return sum(held.requested for held in self._live.values())

    def reset_peaks(self) -> None:
        """Let the peaks start anew from the present state (`torch.cuda.reset_peak_memory_stats`)."""
        self.peak_allocated, self.peak_reserved = self.allocated, self.reserved

    def empty_cache(self) -> None:
        """Give every unused segment and page back to the driver (`torch.cuda.empty_cache`)."""
        self._memory.release_cached()

    def synchronize(self) -> None:
        """All streams finish, and the blocks that waited for them come back (`synchronize_and_free_events`)."""
        self._memory.synchronize()

    def release(self, key: Hashable) -> None:
        """Free one live block by its key. Raises EventError if the key is not live."""
        held = self._live.pop(key, None)
        if held is None:
            raise EventError(f"{key!r} is not live in this allocator")
        self._memory.free.merge(held.address, held.size, self._memory.free.keys_of(held.pool))

    def copy(self) -> Allocator:
        """An independent allocator in the same state."""
        other = Allocator(self.capacity, self.options, device_total=self.device_total)
        other.peak_allocated, other.peak_reserved = self.peak_allocated, self.peak_reserved
        other._live, other._memory, other._runs = dict(self._live), self._memory.copy(), self._runs
        return other

    def segments(self) -> list[Segment]:
        """The memory held from the driver by ascending address, block by block (`DeviceCachingAllocator::snapshot`)."""
        waiting = self._memory.waiting.values()
        blocks = [
            *((Block(h.address, h.size, h.requested, "active_allocated", k), h.pool) for k, h in self._live.items()),
            *((Block(h.address, h.size, h.requested, "active_pending_free"), h.pool) for h in waiting),
            *(
                (Block(key & ADDRESS_MASK, key >> ADDRESS_BITS, 0, "inactive"), pool)
                for pool, keys in self._memory.free.pools.items()
                for key in keys
            ),
        ]
        blocks.sort(key=lambda entry: entry[0].address)
        runs: list[tuple[PoolKey, list[Block]]] = []
        end = -1
        for block, pool in blocks:
            if block.address != end:
                runs.append((pool, []))
            runs[-1][1].append(block)
            end = block.address + block.size
        expandable = self.options.expandable_segments
        return [
            Segment(run[0].address, sum(block.size for block in run), *pool, expandable, tuple(run))
            for pool, run in runs
        ]

    # ---- one run ---------------------------------------------------------------------------------------------

    def run(self, events: EventStream, *, record: bool = False) -> Replay:
        """Replay `events` on top of the present state.

        The blocks that the stream inherits are looked up among the live ones by key. After running out of memory
        the allocator stands as it did when the request failed. Raises EventError if an inherited block is not
        live, or if a block stays under a key that is live already.
        """
        return self._run(events, record=record, keep=True)

    def _run(self, events: EventStream, *, record: bool, keep: bool) -> Replay:
        self._check_keys(events)
        sizes: list[int] = self.options.round_sizes(events.sizes_array).tolist()
        address = [0] * len(sizes)
        for number, key in enumerate(events.keys[: events.inherited]):
            address[number], sizes[number] = self._live[key].address, self._live[key].size
        begin = Moment(-1, self.requested, self.allocated, self.active, self.reserved)
        self._runs += 1
        self._memory.start_run()
        oom = self._run_in_pieces(events, sizes, address, begin)
        replayed = len(events) if oom is None else oom.event
        steps = tuple(self._memory.reserved_steps), tuple(self._memory.active_steps)
        lines = Timelines(events, replayed, begin, sizes, *steps)
        if keep:
            self._settle(events, replayed, sizes, address)
        return self._result(lines, address, oom, record)

    def _check_keys(self, events: EventStream) -> None:
        """Refuse a stream that does not fit the live blocks, before anything changes."""
        inherited = events.keys[: events.inherited]
        for key in inherited:
            if key not in self._live:
                raise EventError(f"the stream inherits {key!r}, which is not live in this allocator")
        others = self._live.keys() - set(inherited)
        for key in events.keys[events.inherited :] if others else ():
            if key in others:
                raise EventError(f"{key!r} is live already in this allocator; the stream should inherit and free it")

    def _run_in_pieces(
        self, events: EventStream, sizes: list[int], address: list[int], begin: Moment
    ) -> OutOfMemory | None:
        """Plain stretches of events, and between them what concerns other streams."""
        pools = self._pool_lists(events, sizes)
        plain = self.options.max_split_size is None and not self._memory.free.track_age
        stretch = self._run_plain if plain else self._run_general
        position = 0
        stops = [(event, False, block) for event, block in events.completions]
        stops += [(event, True, events.block_at(event)) for event in events.deferred]
        for event, deferred, block in [*sorted(stops), (len(events), False, -1)]:
            failed = stretch(events, sizes, address, pools, position, event)
            if failed is not None:
                return self._out_of_memory(events, sizes, failed, begin)
            position = self._memory.event = event
            if deferred:
                pool = (events.streams[block], True)
                if pools[block] is not self._memory.free.keys_of(pool):
                    pool = (events.streams[block], False)
                held = Held(address[block], sizes[block], events.sizes[block], pool)
                self._memory.waiting[self._runs, block] = held
                self._memory.active_steps.append((event, held.size))
                position += 1
            elif block >= 0:
                self._memory.complete((self._runs, block))
        return None

    def _pool_lists(self, events: EventStream, sizes: list[int]) -> list[list[int]]:
        """The list of free blocks from which each block of the stream comes (`get_pool`)."""
        small = {stream: self._memory.free.keys_of((stream, True)) for stream in set(events.streams)}
        large = {stream: self._memory.free.keys_of((stream, False)) for stream in set(events.streams)}
        if len(small) == 1:
            ((_, one),), ((_, other),) = small.items(), large.items()
            pools = [one if size <= SMALL_SIZE else other for size in sizes]
        else:
            pools = [(small if size <= SMALL_SIZE else large)[s] for s, size in zip(events.streams, sizes)]
        for number, key in enumerate(events.keys[: events.inherited]):
            pools[number] = self._memory.free.keys_of(self._live[key].pool)
        return pools

    def _run_plain(
        self,
        events: EventStream,
        sizes: list[int],
        address: list[int],
        pools: list[list[int]],
        first: int,
        last: int,
    ) -> int | None:
        """Events first…last−1 with no limit on splitting and no garbage collection; the event that ran out of
        memory, if any.

        It does what `_run_general` does and is the whole cost of a replay, so it is written out for speed: local
        names, and no calls but bisections while no segment is asked of the driver.
        """
        memory = self._memory
        starts, ends, holes = memory.free.starts, memory.free.ends, memory.holes.sizes
        bits, mask, least, small = ADDRESS_BITS, ADDRESS_MASK, MIN_BLOCK, SMALL_SIZE
        kept = least - 1 if self.options.expandable_segments else small  # a large block's rest up to this stays
        whole = first == 0 and last == len(events.ops)
        for event, op in enumerate(events.ops if whole else events.ops[first:last], first):
            if op >= 0:
                size = sizes[op]
                keys = pools[op]
                at = bisect_left(keys, size << bits)
                found = None
                if at < len(keys):
                    key = keys[at]
                    start = key & mask
                    end = start + (key >> bits)
                    if end not in holes:  # else the block may be spared for larger requests
                        del keys[at], starts[start]
                        tail = start + size
                        rest = end - tail
                        if rest >= least and (rest > kept or size <= small):
                            starts[tail] = rest
                            ends[end] = tail
                            insort(keys, rest << bits | tail)
                        else:
                            sizes[op] = size + rest
                            del ends[end]
                        address[op] = start
                        continue
                    found = memory.find(size, (events.streams[op], size <= small))
                if found is None:
                    memory.event = event
                    found = memory.grow(size, (events.streams[op], size <= small))
                    if found is None:
                        return event
                address[op], sizes[op] = memory.split(*found, size, (events.streams[op], size <= small))
            else:
                op = ~op
                start = address[op]
                end = start + sizes[op]
                keys = pools[op]
                if start in ends:
                    before = ends.pop(start)
                    del keys[bisect_left(keys, start - before << bits | before)]
                    start = before
                if end in starts:
                    size = starts.pop(end)
                    del keys[bisect_left(keys, size << bits | end)]
                    end += size
                size = end - start
                starts[start] = size
                ends[end] = start
                insort(keys, size << bits | start)
        return None

    def _run_general(
        self,
        events: EventStream,
        sizes: list[int],
        address: list[int],
        pools: list[list[int]],
        first: int,
        last: int,
    ) -> int | None:
        """The same under any options, one method per rule (`malloc`, `free`)."""
        for event in range(first, last):
            op = events.ops[event]
            if op < 0:
                self._memory.free.merge(address[~op], sizes[~op], pools[~op])
                continue
            self._memory.event = event
            pool = (events.streams[op], sizes[op] <= SMALL_SIZE)
            found = self._memory.find(sizes[op], pool) or self._memory.grow(sizes[op], pool)
            if found is None:
                return event
            address[op], sizes[op] = self._memory.split(*found, sizes[op], pool)
        return None

    # ---- the account -----------------------------------------------------------------------------------------

    def _out_of_memory(self, events: EventStream, sizes: list[int], event: int, begin: Moment) -> OutOfMemory:
        allocated = begin.allocated
        for op in events.ops[:event]:
            allocated += sizes[op] if op >= 0 else -sizes[~op]
        block = events.block_at(event)
        return OutOfMemory(
            event=event,
            requested=events.sizes[block],
            segment=self.options.segment_size(sizes[block]),
            free=None if self.capacity is None else self.capacity - self.reserved,
            capacity=self.capacity,
            limit=self.limit,
            allocated=allocated,
            reserved=self.reserved,
        )

    def _settle(self, events: EventStream, replayed: int, sizes: list[int], address: list[int]) -> None:
        """Bring the live blocks up to date after a run."""
        inherited = {key: self._live.pop(key) for key in events.keys[: events.inherited]}
        survivors = events.live_at_end if replayed == len(events) else events.live_after(replayed - 1)
        for block in survivors:
            key = events.keys[block]
            if block < events.inherited:
                self._live[key] = inherited[key]
                continue
            pool = (events.streams[block], self.options.round_size(events.sizes[block]) <= SMALL_SIZE)
            self._live[key] = Held(address[block], sizes[block], events.sizes[block], pool)

    def _result(self, lines: Timelines, address: list[int], oom: OutOfMemory | None, record: bool) -> Replay:
        begin, reserved, most, most_event = lines.start, lines.start.reserved, lines.start.reserved, -1
        for event, change in lines.reserved_steps:
            reserved += change
            if reserved > most:
                most, most_event = reserved, event
        peaks = {
            "requested": _peak(lines.requested, begin.requested),
            "allocated": _peak(lines.allocated, begin.allocated),
            "active": _peak(lines.active if lines.active_steps else lines.allocated, begin.active),
        }
        last = lines.moment(lines.replayed - 1)
        waiting = begin.active - begin.allocated + sum(change for _, change in lines.active_steps)
        end = Moment(lines.replayed - 1, last.requested, last.allocated, last.allocated + waiting, self.reserved)
        self.peak_allocated = max(self.peak_allocated, peaks["allocated"][0])
        self.peak_reserved = max(self.peak_reserved, most)
        return Replay(
            peak_allocated=peaks["allocated"][0],
            peak_reserved=most,
            peak_active=peaks["active"][0],
            peak_requested=peaks["requested"][0],
            peak_allocated_event=peaks["allocated"][1],
            peak_reserved_event=most_event,
            peak_active_event=peaks["active"][1],
            peak_requested_event=peaks["requested"][1],
            at_peak_allocated=lines.moment(peaks["allocated"][1]),
            at_peak_reserved=lines.moment(min(most_event, lines.replayed - 1)),
            end=end,
            alloc_retries=self._memory.retries,
            oom=oom,
            segments=self._memory.segment_count(),
            driver_calls=tuple(self._memory.actions),
            completed=tuple(self._memory.completed),
            options=self.options,
            addresses=address if record else None,
            block_bytes=lines.block_bytes if record else None,
            final_segments=tuple(self.segments()) if record else None,
            recorded=lines if record else None,
        )


def _peak(values: np.ndarray[tuple[int, ...], np.dtype[np.int64]], start: int) -> tuple[int, int]:
    """Highest value and the index where it is first reached; −1 if that is the start."""
    if not len(values):
        return start, -1
    at = int(np.argmax(values))
    return (int(values[at]), at) if values[at] > start else (start, -1)
