"""An allocator's own account of a run, compactly: what was allocated and freed, where, and in which phase.

One gzip'd JSON Lines file per run. The first line is a `StreamHeader`; then each event is an array whose first entry
names it (`Event`). Addresses count from the lowest one of the run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from pydantic import Field

from peakline.record.schema import Bytes, Name, Row, Text

__all__ = ["ARITY", "AllocationTrace", "Event", "FinalSegment", "Span", "StreamHeader", "from_snapshot"]

LARGEST = 1 << 60
ARITY: Mapping[str, tuple[int, int]] = {
    # name of the event: fewest and most entries of its line
    "alloc": (3, 6),
    "free": (2, 2),
    "free_requested": (2, 2),
    "free_completed": (2, 2),
    "segment_alloc": (5, 5),
    "segment_free": (5, 5),
    "segment_map": (5, 5),
    "segment_unmap": (5, 5),
    "oom": (3, 3),
    "mark": (2, 2),
}


class Event(NamedTuple):
    """One event.

    Attributes:
        action: `alloc`; `free` (at once); `free_requested` and later `free_completed` (another CUDA stream was using
            the block); `segment_alloc`, `segment_free` (cudaMalloc, cudaFree); `segment_map`, `segment_unmap` (pages
            of expandable segments); `oom` (`size` could not be had); `mark` (from here on, phase `text`).
        block: number of the block, in order of allocation; −1 where there is none. Segments have none.
        size: bytes as requested by the program, or of the segment.
        stream: CUDA stream by order of appearance.
        address: bytes above the lowest address of the run; for `oom`, bytes free on the device.
        text: name of a mark; of an allocation, the operator that ran (where known).
    """

    action: str
    block: int = -1
    size: int = 0
    stream: int = 0
    address: int = 0
    text: str = ""

    def to_line(self) -> str:
        """The event as a JSON array, without trailing zeros of an allocation."""
        row: list[Any]
        if self.action == "alloc":
            row = [self.action, self.block, self.size, self.stream, self.address, self.text]
            while len(row) > ARITY["alloc"][0] and not row[-1]:
                row.pop()
        elif self.action.startswith("free"):
            row = [self.action, self.block]
        elif self.action == "oom":
            row = [self.action, self.size, self.address]
        elif self.action == "mark":
            row = [self.action, self.text]
        else:
            row = [self.action, self.block, self.size, self.stream, self.address]
        return json.dumps(row, separators=(",", ":"))

    @classmethod
    def from_row(cls, row: object) -> Event:
        """The event of a parsed line. Raises ValueError naming what is wrong."""
        if not isinstance(row, list) or not row or not isinstance(row[0], str) or row[0] not in ARITY:
            raise ValueError(f"an event must be an array that begins with one of {', '.join(ARITY)}")
        action, *rest = row
        fewest, most = ARITY[action]
        if not fewest <= len(row) <= most:
            raise ValueError(f"{action}: expected {fewest} to {most} entries, got {len(row)}")
        text = ""
        if action == "mark" or (action == "alloc" and len(row) == ARITY["alloc"][1]):
            text = rest.pop()
            if not isinstance(text, str) or len(text) > 200:
                raise ValueError(f"{action}: the name must be a text of at most 200 characters")
        for number in rest:
            if type(number) is not int or not -1 <= number < LARGEST:
                raise ValueError(f"{action}: expected whole numbers from 0 up to 2^60, got {str(number)[:40]!r}")
        if action == "oom":
            return cls(action, size=rest[0], address=rest[1])
        if action == "mark":
            return cls(action, text=text)
        block, size, stream, address = [*rest, 0, 0, 0][:4]
        return cls(action, block, size, stream, address, text)


class FinalSegment(Row):
    """A segment when the recording ended (`segments` of torch's snapshot)."""

    total_bytes: Bytes
    allocated_bytes: Bytes
    stream: Bytes = 0
    pool: Literal["small", "large"] = "large"
    address: Bytes = 0


class StreamHeader(Row):
    """First line of an event stream.

    Attributes:
        case: name of the case.
        device: `cuda` (the caching allocator) or `cpu` (torch's profiler).
        complete: the history begins with an empty allocator and nothing was overwritten, so a replay can agree block
            for block; otherwise blocks of unknown origin are missing.
        start_bytes: allocated before the first event (of blocks that the stream does not know).
        allocator: settings, as in PYTORCH_CUDA_ALLOC_CONF.
        segments: the segments at the end.
    """

    kind: Literal["events"] = "events"
    format: str = Field(alias="schema", pattern=r"^peakline\.trace/[0-9]{1,6}$")
    case: Name
    device: Literal["cuda", "cpu"]
    complete: bool = True
    start_bytes: Bytes = 0
    events: Bytes
    allocator: Text = ""
    segments: tuple[FinalSegment, ...] = ()


class Span(NamedTuple):
    """The events under one mark: its name, the most bytes live under it, and those live at its end."""

    name: str
    peak_bytes: int
    end_bytes: int


@dataclass(frozen=True)
class AllocationTrace:
    """A whole event stream: `header`, and `events` in order of time."""

    header: StreamHeader
    events: tuple[Event, ...]

    def lines(self) -> Iterator[str]:
        """The file's lines."""
        yield self.header.to_line()
        for event in self.events:
            yield event.to_line()

    def live_bytes(self) -> list[int]:
        """Bytes requested and not freed after each event, `start_bytes` included."""
        live, total, found = {}, self.header.start_bytes, []
        for event in self.events:
            if event.action == "alloc":
                live[event.block] = event.size
                total += event.size
            elif event.action in ("free", "free_requested"):
                total -= live.pop(event.block, 0)
            found.append(total)
        return found

    def peak_live_bytes(self) -> int:
        """The highest of `live_bytes`; `start_bytes` if nothing happened."""
        return max(self.live_bytes(), default=self.header.start_bytes)

    def spans(self) -> list[Span]:
        """What happened from each mark to the next, in order; what came before the first mark is left out."""
        found: list[Span] = []
        name, peak, live = "", 0, self.header.start_bytes
        for event, after in zip(self.events, self.live_bytes()):
            if event.action == "mark":
                if name:
                    found.append(Span(name, peak, live))
                name, peak = event.text, live
            peak, live = max(peak, after), after
        return [*found, Span(name, peak, live)] if name else found


def from_snapshot(
    snapshot: Mapping[str, Any],
    *,
    case: str = "snapshot",
    device: int = 0,
    marks: Sequence[tuple[int, str]] = (),
    capacity: int | None = None,
    allocator: str = "",
) -> AllocationTrace:
    """The event stream in a snapshot of `torch.cuda.memory._snapshot()` taken while history was recorded.

    Args:
        snapshot: the dictionary torch returns (never a file: torch writes pickles, and none is opened here).
        case: name for the stream.
        device: index of the GPU.
        marks: (microseconds since the epoch, name) in order: where phases begin.
        capacity: entries that the history could hold; a full history has lost its beginning.
        allocator: settings, as in PYTORCH_CUDA_ALLOC_CONF.

    Raises:
        ValueError: the dictionary is not such a snapshot.
    """
    traces, segments = snapshot.get("device_traces"), snapshot.get("segments")
    if not isinstance(traces, list) or not isinstance(segments, list) or len(traces) <= device:
        raise ValueError(f"snapshot: expected torch.cuda.memory._snapshot() with a device {device}")
    trace = [entry for entry in traces[device] if entry.get("action") in ARITY]
    segments = [segment for segment in segments if segment.get("device", device) == device]
    known = [entry["addr"] for entry in trace if entry["action"] != "oom"]
    base = min([*known, *(segment["address"] for segment in segments)], default=0)
    numbered = _Numbering(base)
    found: list[Event] = []
    waiting = list(marks)
    for position, entry in enumerate(trace):
        while waiting and waiting[0][0] <= entry.get("time_us", 0):
            found.append(Event("mark", text=waiting.pop(0)[1]))
        at_once = _completes(trace, position)
        if entry["action"] == "free_completed" and position and _completes(trace, position - 1):
            continue
        found += numbered.event(entry, at_once)
    found += [Event("mark", text=name) for _, name in waiting]
    header = StreamHeader(
        schema="peakline.trace/1",
        case=case,
        device="cuda",
        complete=numbered.unknown == 0 and (capacity is None or len(traces[device]) < capacity),
        events=len(found),
        allocator=allocator,
        segments=tuple(_final(segment, base, numbered) for segment in segments),
    )
    return AllocationTrace(header, tuple(found))


def _completes(trace: Sequence[Mapping[str, Any]], position: int) -> bool:
    """Whether the free requested here completes at once, in the next entry."""
    if position + 1 >= len(trace) or trace[position]["action"] != "free_requested":
        return False
    after = trace[position + 1]
    return after["action"] == "free_completed" and bool(after["addr"] == trace[position]["addr"])


def _final(segment: Mapping[str, Any], base: int, numbered: _Numbering) -> FinalSegment:
    return FinalSegment(
        total_bytes=segment["total_size"],
        allocated_bytes=segment["allocated_size"],
        stream=numbered.stream(segment.get("stream", 0)),
        pool=segment.get("segment_type", "large"),
        address=segment["address"] - base,
    )


class _Numbering:
    """Blocks and CUDA streams by order of appearance, addresses from the lowest."""

    def __init__(self, base: int) -> None:
        self.base = base
        self.unknown = 0  # frees of blocks that the history did not see allocated
        self._live: dict[int, int] = {}
        self._streams: dict[int, int] = {}
        self._next = 0

    def stream(self, handle: int) -> int:
        return self._streams.setdefault(handle, len(self._streams))

    def event(self, entry: Mapping[str, Any], at_once: bool) -> Iterable[Event]:
        """The event of one entry of the history; none for the free of an unknown block."""
        action, size = entry["action"], entry["size"]
        if action == "oom":
            return [Event(action, size=size, address=entry.get("device_free", 0))]
        address, stream = entry["addr"] - self.base, self.stream(entry.get("stream", 0))
        if action == "alloc":
            self._live[address] = self._next
            self._next += 1
            return [Event(action, self._live[address], size, stream, address)]
        if action.startswith("segment"):
            return [Event(action, -1, size, stream, address)]
        block = self._live.get(address)
        if block is None:
            self.unknown += action == "free_requested"
            return []
        if action == "free_completed" or at_once:
            del self._live[address]
        return [Event("free" if at_once else action, block)]
