"""Export of a replay as a memory snapshot that PyTorch's memory visualiser opens (pytorch.org/memory_viz).

The file is what `torch.cuda.memory._dump_snapshot` writes: a pickle of a dictionary with "segments",
"device_traces" and "allocator_settings", field by field as in `torch/csrc/cuda/memory_snapshot.cpp`
(`_memory_snapshot_pickled`). The visualiser (`torch/utils/viz/MemoryViz.js`) reads it with an unpickler of its own
that knows protocols 2 to 4 and plain values alone. This module only writes; nothing here reads a pickle.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from peakline.files import written_whole
from peakline.memory.events import EventStream
from peakline.memory.replay import Replay, Segment

__all__ = ["Label", "snapshot", "write_snapshot"]

_PROTOCOL = 4  # the newest that MemoryViz.js reads
_NO_POOL = (0, 0)  # the default pool's id


@dataclass(frozen=True, slots=True)
class Label:
    """What the visualiser shows for a block: the tensor, the operator that allocated it, and its module's path."""

    tensor: str
    operator: str = ""
    module: str = ""


def write_snapshot(
    path: str | os.PathLike[str],
    replay: Replay,
    events: EventStream,
    labels: Mapping[Hashable, Label] | None = None,
) -> None:
    """Write the snapshot of a replay, whole or not at all.

    `labels` gives what to show by the stream's keys; a block without one shows its key and the operator marked in
    the stream. Raises ValueError if the replay was made without record=True, OSError if the file cannot be written.
    """
    data = snapshot(replay, events, labels)
    with written_whole(path) as temporary, temporary.open("wb") as file:
        pickle.dump(data, file, protocol=_PROTOCOL)


def snapshot(replay: Replay, events: EventStream, labels: Mapping[Hashable, Label] | None = None) -> dict[str, Any]:
    """The snapshot as a dictionary of plain values; arguments and errors as for `write_snapshot`."""
    if replay.addresses is None or replay.final_segments is None:
        raise ValueError("replay: a snapshot needs every address; replay with record=True")
    frames = _Frames(events, labels or {})
    return {
        "segments": [_segment(segment, frames) for segment in replay.final_segments],
        "device_traces": [_trace(replay, events, frames)],
        "external_annotations": [],
        "allocator_settings": _settings(replay),
    }


class _Frames:
    """Stack frames, innermost first, that name tensor, operator and module; made once per block."""

    def __init__(self, events: EventStream, labels: Mapping[Hashable, Label]) -> None:
        self._events = events
        self._labels = labels
        self._born = {op: event for event, op in enumerate(events.ops) if op >= 0}
        self._made: dict[int, list[dict[str, Any]]] = {}
        self._number = {key: number for number, key in enumerate(events.keys)}

    def of_block(self, number: int) -> list[dict[str, Any]]:
        """Frames of a block by its number."""
        if number not in self._made:
            key = self._events.keys[number]
            event = self._born.get(number, 0)
            operator = self._events.operator_at(event) if number in self._born else None
            label = self._labels.get(key) or Label(_text(key), operator or "")
            frames = [{"filename": "tensor", "line": event, "name": label.tensor}]
            if label.operator or operator:
                frames.append({"filename": "operator", "line": event, "name": label.operator or operator or ""})
            if label.module:
                frames.append({"filename": "module", "line": event, "name": label.module})
            self._made[number] = frames
        return self._made[number]

    def of_key(self, key: Hashable) -> list[dict[str, Any]]:
        """Frames of the block that last had a key; none for a block from before the stream."""
        return self.of_block(self._number[key]) if key in self._number else []


def _text(key: Hashable) -> str:
    return key if isinstance(key, str) else "/".join(map(str, key)) if isinstance(key, tuple) else str(key)


def _segment(segment: Segment, frames: _Frames) -> dict[str, Any]:
    """One segment with its blocks (`segmentInfoToDict`)."""
    active = [block for block in segment.blocks if block.state != "inactive"]
    return {
        "device": 0,
        "address": segment.address,
        "total_size": segment.size,
        "allocated_size": sum(block.size for block in active if block.state == "active_allocated"),
        "active_size": sum(block.size for block in active),
        "requested_size": sum(block.requested for block in active),
        "stream": segment.stream,
        "segment_type": "small" if segment.small else "large",
        "segment_pool_id": _NO_POOL,
        "is_expandable": segment.expandable,
        "frames": [],
        "blocks": [
            {
                "address": block.address,
                "size": block.size,
                "requested_size": block.requested,
                "state": block.state,
                "frames": frames.of_key(block.key) if block.state == "active_allocated" else [],
            }
            for block in segment.blocks
        ],
    }


def _trace(replay: Replay, events: EventStream, frames: _Frames) -> list[dict[str, Any]]:
    """Everything the allocator did, in order (`record_trace`); the time is the event's index in microseconds."""
    assert replay.addresses is not None
    addresses = replay.addresses
    before: dict[int, list[dict[str, Any]]] = {}  # what happens within an event before its block is handed out
    for event, number in replay.completed:
        before.setdefault(event, []).append(_entry("free_completed", event, number, events, addresses, frames))
    for call in replay.driver_calls:
        entry = {"action": call.action, "addr": call.address, "size": call.size, "stream": call.stream}
        before.setdefault(call.event, []).append({**entry, "frames": [], "time_us": call.event})
    deferred = set(events.deferred)
    trace: list[dict[str, Any]] = []
    replayed = len(events) if replay.oom is None else replay.oom.event
    for event, op in enumerate(events.ops[:replayed]):
        trace += before.get(event, ())
        if op >= 0:
            trace.append(_entry("alloc", event, op, events, addresses, frames))
        else:
            trace.append(_entry("free_requested", event, ~op, events, addresses, frames))
            if event not in deferred:
                trace.append(_entry("free_completed", event, ~op, events, addresses, frames))
    trace += before.get(replayed, ())
    if replay.oom is not None:
        number = events.block_at(replay.oom.event)
        trace.append(
            {
                "action": "oom",
                "device_free": replay.oom.free or 0,
                "size": replay.oom.requested,
                "stream": events.streams[number],
                "frames": frames.of_block(number),
                "time_us": replay.oom.event,
            }
        )
    return trace


def _entry(
    action: str, event: int, number: int, events: EventStream, addresses: Any, frames: _Frames
) -> dict[str, Any]:
    return {
        "action": action,
        "addr": addresses[number],
        "size": events.sizes[number],
        "stream": events.streams[number],
        "frames": frames.of_block(number),
        "time_us": event,
    }


def _settings(replay: Replay) -> dict[str, Any]:
    """The allocator's settings as PyTorch writes them (no limit on splitting is −1 there)."""
    options = replay.options
    return {
        "PYTORCH_CUDA_ALLOC_CONF": "",
        "max_split_size": -1 if options.max_split_size is None else options.max_split_size,
        "garbage_collection_threshold": float(options.garbage_collection_threshold),
        "expandable_segments": options.expandable_segments,
        "roundup_power2_divisions": {
            str(1 << interval): divisions for interval, divisions in enumerate(options.roundup_power2_divisions)
        },
    }
