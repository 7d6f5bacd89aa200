"""What a replay of a stream through the caching allocator says."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from peakline.memory.events import EventStream, Int64Array
from peakline.memory.options import AllocatorOptions

__all__ = ["Block", "Moment", "OutOfMemory", "Replay", "Segment", "SegmentAction", "Timelines"]

_GIB = float(1 << 30)


@dataclass(frozen=True)
class Moment:
    """Bytes held just after one event (`event` −1: before the first).

    Attributes:
        requested: bytes the program asked for and has not freed.
        allocated: bytes of the blocks it was given (`torch.cuda.memory_allocated`): requested plus rounding and
            what was not split off.
        active: allocated plus blocks freed but still in use on another stream.
        reserved: bytes held from the driver (`torch.cuda.memory_reserved`).
    """

    event: int
    requested: int
    allocated: int
    active: int
    reserved: int

    @property
    def internal_fragmentation(self) -> int:
        """Bytes inside blocks that nobody asked for: allocated − requested."""
        return self.allocated - self.requested

    @property
    def external_fragmentation(self) -> int:
        """Bytes held from the driver and not in use: reserved − active."""
        return self.reserved - self.active


@dataclass(frozen=True)
class OutOfMemory:
    """The request that could not be served after everything that could be given back was given back.

    Attributes:
        event: index of the allocation.
        requested: bytes the program asked for.
        segment: bytes asked of the driver for it; PyTorch's message reports this figure ("Tried to allocate").
        free: bytes the driver could still have given; None without a capacity.
        capacity: bytes the driver had to give in all; None if only the memory fraction was limited.
        limit: bytes the memory fraction allows; None without one.
        allocated, reserved: bytes at that moment.
    """

    event: int
    requested: int
    segment: int
    free: int | None
    capacity: int | None
    limit: int | None
    allocated: int
    reserved: int

    def __str__(self) -> str:
        parts = [f"Tried to allocate {_human(self.segment)}."]
        if self.capacity is not None and self.free is not None:
            parts.append(f"The device gives {_human(self.capacity)} of which {_human(self.free)} is free.")
        if self.limit is not None:
            parts.append(f"{_human(self.limit)} allowed.")
        parts.append(
            f"Of the allocated memory {_human(self.allocated)} is allocated, and "
            f"{_human(self.reserved - self.allocated)} is reserved but unallocated."
        )
        return " ".join(parts)


@dataclass(frozen=True)
class SegmentAction:
    """One dealing with the driver, just before or within `event`.

    `action` is as in PyTorch's traces: "segment_alloc", "segment_free", "segment_map" or "segment_unmap".
    """

    event: int
    action: str
    address: int
    size: int
    stream: int


@dataclass(frozen=True)
class Block:
    """A piece of a segment: `state` is "active_allocated", "active_pending_free" or "inactive"; sizes in bytes.

    `requested` is what the program asked for (0 if inactive), `key` its name for the block.
    """

    address: int
    size: int
    requested: int
    state: str
    key: Hashable = None


@dataclass(frozen=True)
class Segment:
    """Memory held from the driver (for expandable segments: a contiguous mapped range), with its blocks in order."""

    address: int
    size: int
    stream: int
    small: bool
    expandable: bool
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Replay:
    """Peaks, ends and, if recorded, the whole course of one replay.

    Peaks are the highest values after any event, the state before the first event included. When memory ran out
    (`oom`), the replay stopped there and the figures are those until then.

    Attributes:
        peak_allocated, peak_reserved, peak_active, peak_requested: bytes.
        peak_allocated_event, …: index of the first event after which the peak stood (−1: before the first event).
        at_peak_allocated, at_peak_reserved: all figures at these moments.
        end: all figures after the last event replayed.
        alloc_retries: how often everything cached was given back and the driver asked once more
            (`num_alloc_retries`).
        segments: segments held at the end (contiguous mapped ranges, for expandable segments).
        driver_calls: allocations and mappings, releases and unmappings, in order.
        completed: (event, block) pairs: just before this event took its memory, a block that other streams had
            used came back.
        options: the allocator's settings.
        addresses: address of each block by block number, 0 if it was never placed; None unless recorded.
        block_bytes: bytes of each block by block number; None unless recorded.
        final_segments: the memory held at the end, block by block; None unless recorded.
    """

    peak_allocated: int
    peak_reserved: int
    peak_active: int
    peak_requested: int
    peak_allocated_event: int
    peak_reserved_event: int
    peak_active_event: int
    peak_requested_event: int
    at_peak_allocated: Moment
    at_peak_reserved: Moment
    end: Moment
    alloc_retries: int
    oom: OutOfMemory | None
    segments: int
    driver_calls: tuple[SegmentAction, ...]
    completed: tuple[tuple[int, int], ...]
    options: AllocatorOptions
    addresses: Sequence[int] | None = None
    block_bytes: Sequence[int] | None = None
    final_segments: tuple[Segment, ...] | None = field(default=None, repr=False)
    recorded: Timelines | None = field(default=None, repr=False)

    @property
    def allocated(self) -> int:
        """Bytes allocated at the end."""
        return self.end.allocated

    @property
    def reserved(self) -> int:
        """Bytes reserved at the end."""
        return self.end.reserved

    @property
    def ooms(self) -> int:
        """1 if memory ran out, else 0: a replay stops at the first."""
        return int(self.oom is not None)

    @property
    def timelines(self) -> Timelines:
        """Bytes after each event. Raises ValueError unless the replay was made with record=True."""
        if self.recorded is None:
            raise ValueError("record: this replay kept no timelines; replay with record=True")
        return self.recorded


@dataclass(frozen=True)
class Timelines:
    """Bytes after each replayed event: int64 arrays of shape (events,), computed when first read."""

    events: EventStream
    replayed: int
    start: Moment
    block_bytes: Sequence[int]
    reserved_steps: tuple[tuple[int, int], ...]
    active_steps: tuple[tuple[int, int], ...]

    @cached_property
    def requested(self) -> Int64Array:
        """Bytes asked for and not freed."""
        return self.events.running_total(self.events.sizes_array, at_start=self.start.requested)[: self.replayed]

    @cached_property
    def allocated(self) -> Int64Array:
        """Bytes of the blocks in the program's hands."""
        return self.events.running_total(self.block_bytes, at_start=self.start.allocated)[: self.replayed]

    @cached_property
    def active(self) -> Int64Array:
        """Allocated bytes plus blocks freed but still in use on another stream."""
        waiting = np.zeros(self.replayed + 1, dtype=np.int64)
        for event, change in self.active_steps:
            waiting[min(max(event, 0), self.replayed)] += change
        pending: Int64Array = self.start.active - self.start.allocated + np.cumsum(waiting)[: self.replayed]
        return self.allocated + pending

    @cached_property
    def reserved(self) -> Int64Array:
        """Bytes held from the driver."""
        change = np.zeros(self.replayed + 1, dtype=np.int64)
        for event, step in self.reserved_steps:
            change[min(max(event, 0), self.replayed)] += step
        total: Int64Array = self.start.reserved + np.cumsum(change)[: self.replayed]
        return total

    def moment(self, event: int) -> Moment:
        """All figures just after `event`; −1 means before the first."""
        if event < 0:
            return self.start
        return Moment(
            event,
            int(self.requested[event]),
            int(self.allocated[event]),
            int(self.active[event]),
            int(self.reserved[event]),
        )


def _human(size: int) -> str:
    """Bytes as PyTorch prints them (`c10::CachingAllocator::format_size`)."""
    if size <= 1024:
        return f"{size} bytes"
    if size <= 1 << 20:
        return f"{size / 1024:.2f} KiB"
    if size <= 1 << 30:
        return f"{size / (1 << 20):.2f} MiB"
    return f"{size / _GIB:.2f} GiB"
