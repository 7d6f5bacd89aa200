"""Replay a recorded history of CUDA's caching allocator, and compare block for block.

The program's requests are taken from the recording; where they land, and what is asked of the driver for them, is
decided by peakline's own allocator (`peakline.memory.caching_allocator`). Segments are compared in the order in which
the driver gave them, blocks by segment and offset. Two free blocks of one size are told apart by their addresses, and
those of segments are the driver's choice: the same program may then be laid out differently and reserve the same.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from peakline.memory.caching_allocator import Allocator
from peakline.memory.events import EventBuilder, EventStream
from peakline.memory.options import AllocatorOptions
from peakline.record.streams import AllocationTrace, Event

__all__ = ["AllocatorComparison", "Difference", "compare_allocator"]


@dataclass(frozen=True)
class Difference:
    """The first place where recording and replay part: `event` of the recording, and what each says there."""

    event: int
    what: str
    recorded: str
    replayed: str

    def __str__(self) -> str:
        return f"event {self.event}: {self.what}: recorded {self.recorded}, replayed {self.replayed}"


@dataclass(frozen=True)
class AllocatorComparison:
    """A recorded history beside its replay; sizes in bytes.

    Attributes:
        complete: the recording begins with an empty allocator and lost nothing. Otherwise agreement is not expected.
        allocations: allocations in the recording.
        placed_alike: of these, how many the replay puts at the same offset of the same segment.
        recorded_peak_reserved, replayed_peak_reserved: the most held from the driver.
        recorded_end_reserved, replayed_end_reserved: held at the end.
        recorded_segments, replayed_segments: sizes of the segments, in the order in which the driver gave them.
        out_of_memory: why the replay stopped, in PyTorch's words; None if it did not run out of memory.
        first_difference: None if segments and blocks agree throughout.
    """

    complete: bool
    allocations: int
    placed_alike: int
    recorded_peak_reserved: int
    replayed_peak_reserved: int
    recorded_end_reserved: int
    replayed_end_reserved: int
    recorded_segments: tuple[int, ...]
    replayed_segments: tuple[int, ...]
    out_of_memory: str | None
    first_difference: Difference | None

    @property
    def exact(self) -> bool:
        """Whether every segment and every block agrees."""
        return self.first_difference is None and self.placed_alike == self.allocations

    @property
    def reserved_error(self) -> float:
        """(replayed − recorded) / recorded peak reserved; 0 if nothing was reserved."""
        if not self.recorded_peak_reserved:
            return 0.0
        return (self.replayed_peak_reserved - self.recorded_peak_reserved) / self.recorded_peak_reserved


def compare_allocator(
    trace: AllocationTrace, options: AllocatorOptions | None = None, *, capacity: int | None = None
) -> AllocatorComparison:
    """Replay the requests of a recorded CUDA run and compare segments and blocks.

    Args:
        trace: of a CUDA device, from `Trace.events`, `read_events` or `from_snapshot`.
        options: of the replay; default: those the recording names.
        capacity: bytes that the driver could give. With it, segments given back are left to the replay; without,
            each run of them is taken for a `torch.cuda.empty_cache`.

    Raises:
        ValueError: the trace is of a CPU, or a block is freed that is not live.
    """
    if trace.header.device != "cuda":
        raise ValueError(f"trace: {trace.header.case!r} was recorded on a CPU; accepted: one of a CUDA device")
    allocator = Allocator(capacity, AllocatorOptions.parse(trace.header.allocator) if options is None else options)
    recorded, replayed = _Layout(), _Layout()
    peak = total = alike = 0
    failed: str | None = None
    first: Difference | None = None
    for piece in _pieces(trace.events, split=capacity is None):
        if piece.emptied:
            allocator.empty_cache()
            replayed.keep_only([(segment.address, segment.size) for segment in allocator.segments()])
        result = allocator.run(piece.stream, record=True)
        assert result.addresses is not None
        peak = max(peak, result.peak_reserved)
        calls = deque(result.driver_calls)
        for number, position, event in piece.events:
            recorded.see(event.action, event.address, event.size)
            if event.action != "alloc" or (result.oom is not None and position >= result.oom.event):
                continue
            while calls and calls[0].event <= position:
                call = calls.popleft()
                replayed.see(call.action, call.address, call.size)
            total += 1
            here, there = recorded.place(event.address), replayed.place(result.addresses[piece.blocks[event.block]])
            alike += here == there
            if first is None and here != there:
                first = Difference(number, f"a block of {event.size} bytes", _words(here), _words(there))
        for call in calls:
            replayed.see(call.action, call.address, call.size)
        if result.oom is not None:
            failed = str(result.oom)
            break
    return AllocatorComparison(
        complete=trace.header.complete,
        allocations=total,
        placed_alike=alike,
        recorded_peak_reserved=recorded.peak,
        replayed_peak_reserved=peak,
        recorded_end_reserved=recorded.held,
        replayed_end_reserved=allocator.reserved,
        recorded_segments=tuple(recorded.sizes),
        replayed_segments=tuple(replayed.sizes),
        out_of_memory=failed,
        first_difference=first,
    )


@dataclass(frozen=True)
class _Piece:
    """Events between two times the cache was emptied.

    Attributes:
        stream: the program's requests.
        events: (number in the recording, number in the stream, event); segments' events stand where they were.
        blocks: number in the stream of each block of the recording that it allocates.
        emptied: the cache was emptied before it.
    """

    stream: EventStream
    events: list[tuple[int, int, Event]]
    blocks: dict[int, int]
    emptied: bool


def _pieces(events: Iterable[Event], *, split: bool) -> Iterator[_Piece]:
    """The recording as streams that follow one another; with `split`, a new one where segments are given back."""
    builder, before = EventBuilder(), None
    seen: list[tuple[int, int, Event]] = []
    blocks: dict[int, int] = {}
    position, emptied = 0, False
    for number, event in enumerate(events):
        if split and event.action in ("segment_free", "segment_unmap") and (position or not emptied):
            before = builder.build()
            yield _Piece(before, seen, blocks, emptied)
            builder, seen, blocks, position, emptied = EventBuilder(after=before), [], {}, 0, True
        seen.append((number, position, event))
        if event.action == "alloc":
            inherited = 0 if before is None else len(before.live_at_end)
            blocks[event.block] = inherited + len(blocks)
            builder.alloc(event.block, event.size, event.stream)
        elif event.action == "free_requested":
            builder.use(event.block, _another(event.block))
            builder.free(event.block)
        elif event.action == "free_completed":
            builder.sync(_another(event.block))
        elif event.action == "free":
            builder.free(event.block)
        position += event.action in ("alloc", "free", "free_requested")
    yield _Piece(builder.build(), seen, blocks, emptied)


def _another(block: int) -> int:
    """A stream of its own for a block that another stream was using: the recording does not say which."""
    return -1 - block


class _Layout:
    """The memory held from the driver: contiguous runs, each part of the n-th segment that was asked for.

    Attributes:
        sizes: of the segments (of mappings: the first page's) in the order in which the driver gave them.
        held, peak: bytes now, and at most.
    """

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.held = self.peak = 0
        self._runs: list[tuple[int, int, int, int]] = []  # (start, end, number, address where that number began)

    def see(self, action: str, address: int, size: int) -> None:
        """Take note of a segment's event; others change nothing."""
        if action == "segment_alloc":
            self._add(address, size)
        elif action == "segment_map":
            self._add(address, size, extend=True)
        elif action in ("segment_free", "segment_unmap"):
            self._cut(address, address + size)

    def place(self, address: int) -> tuple[int, int] | None:
        """Number of the segment and offset in it; None if no segment holds the address."""
        at = bisect_right(self._runs, (address, _FAR, 0, 0)) - 1
        if at < 0 or address >= self._runs[at][1]:
            return None
        _, _, number, begin = self._runs[at]
        return number, address - begin

    def keep_only(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Give back everything outside some (address, size) ranges."""
        kept = [
            (max(start, address), min(end, address + size), number, begin)
            for address, size in ranges
            for start, end, number, begin in self._runs
            if start < address + size and address < end
        ]
        self._runs = sorted(kept)
        self.held = sum(end - start for start, end, _, _ in kept)

    def _add(self, address: int, size: int, *, extend: bool = False) -> None:
        at = bisect_right(self._runs, (address, _FAR, 0, 0)) - 1
        if extend and at >= 0 and self._runs[at][1] == address:
            start, end, number, begin = self._runs[at]
            self._runs[at] = (start, end + size, number, begin)
        else:
            insort(self._runs, (address, address + size, len(self.sizes), address))
            self.sizes.append(size)
        self.held += size
        self.peak = max(self.peak, self.held)

    def _cut(self, first: int, last: int) -> None:
        found: list[tuple[int, int, int, int]] = []
        for start, end, number, begin in self._runs:
            if end <= first or start >= last:
                found.append((start, end, number, begin))
                continue
            self.held -= min(end, last) - max(start, first)
            found += [(start, first, number, begin)] if start < first else []
            found += [(last, end, number, begin)] if end > last else []
        self._runs = found


_FAR = 1 << 62


def _words(place: tuple[int, int] | None) -> str:
    return "outside every segment" if place is None else f"segment {place[0]} at offset {place[1]}"
