"""Files for other people's viewers: PyTorch's memory visualiser, and Perfetto or Chrome's trace viewer.

Every file is written whole or not at all: into a temporary file beside the target, which then takes its name.
"""

from __future__ import annotations

import json
from collections.abc import Hashable
from os import PathLike
from typing import TYPE_CHECKING, Any

from peakline.files import written_whole
from peakline.memory.events import EventStream
from peakline.timeline import executions

if TYPE_CHECKING:
    from peakline.cost.program import OperatorCost
    from peakline.memory.requests import RequestStream
    from peakline.memory.snapshot import Label
    from peakline.result import Estimate

__all__ = ["joined", "labels", "trace", "write_snapshot", "write_trace"]

_MICROSECONDS = 1e6
_PROCESS = 1


# ---- the allocator's history ----------------------------------------------------------------------------------------
def write_snapshot(est: Estimate, path: str | PathLike[str]) -> None:
    """Write the caching allocator's history of the run for https://pytorch.org/memory_viz.

    A training step appears twice: the first one, in which optimizer states are made, and a steady one. A run that does
    not fit ends with the allocation that failed.

    Raises:
        ValueError: for a sweep, and for a device whose memory is not PyTorch's caching allocator's.
        OSError: the file cannot be written.
    """
    from peakline.memory.caching_allocator import replay
    from peakline.memory.footprint import request_history
    from peakline.memory.snapshot import write_snapshot as write

    if est.graph.is_sweep:
        raise ValueError("a sweep has no single history; estimate one configuration")
    memory = est.memory
    if memory.options is None:
        raise ValueError(
            f"{est.device.name} ({est.device.kind}) has no PyTorch caching allocator to take a snapshot of"
        )
    streams = request_history(memory.program, est.device)
    events = joined(streams)
    room = max(memory.capacity - memory.context, 0)
    history = replay(events, room, memory.options, record=True, device_total=memory.capacity)
    write(path, history, events, labels(est, streams))


def joined(streams: list[RequestStream]) -> EventStream:
    """Consecutive steps as one stream: what the first leaves alive, the second knows by its key."""
    first = streams[0].events
    ops, sizes, keys = list(first.ops), list(first.sizes), list(first.keys)
    alive = {keys[block]: block for block in first.live_at_end}
    for stream in streams[1:]:
        events = stream.events
        number: list[int] = []
        for block, key in enumerate(events.keys):
            if block < events.inherited:
                number.append(alive[key])
            else:
                number.append(len(sizes))
                sizes.append(events.sizes[block])
                keys.append(key)
        ops += [number[op] if op >= 0 else ~number[~op] for op in events.ops]
        alive = {key: number[block] for block in events.live_at_end for key in (events.keys[block],)}
    return EventStream(ops=ops, sizes=sizes, streams=[0] * len(sizes), keys=keys)


def labels(est: Estimate, streams: list[RequestStream]) -> dict[Hashable, Label]:
    """What the visualiser shows of each block: its tensor, operator and module."""
    from peakline.memory.snapshot import Label

    storages = est.memory.program.storages
    found: dict[Hashable, Label] = {}
    for stream in streams:
        for block, key in enumerate(stream.events.keys):
            operator, storage = stream.operator_of_block[block], stream.storage_of_block[block]
            name = storages[storage].name if storage >= 0 else " ".join(map(str, key)) if isinstance(key, tuple) else ""
            if key not in found or operator is not None:
                module = operator.module if operator is not None else ""
                found[key] = Label(name, operator.name if operator is not None else "before the step", module)
    return found


# ---- the time line --------------------------------------------------------------------------------------------------
def write_trace(est: Estimate, path: str | PathLike[str]) -> None:
    """Write the run's operators on a time line, for https://ui.perfetto.dev or chrome://tracing.

    Raises:
        ValueError: for a sweep.
        OSError: the file cannot be written.
    """
    data = trace(est)
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(data), encoding="utf-8")


def trace(est: Estimate) -> dict[str, Any]:
    """The run in the Trace Event Format: one complete event per executed operator, one track per phase, in µs.

    Layers are unrolled and accumulation loops executed, so the last event ends at the estimate's tiled time. A counter
    follows the live bytes by role.

    Raises:
        ValueError: for a sweep.
    """
    held = {role: amounts.tolist() for role, amounts in est.memory.timeline().items()}
    tracks: dict[str, int] = {}
    events: list[dict[str, Any]] = []
    for run in executions(est):
        now = run.start * _MICROSECONDS
        counter = {role: amounts[run.position] for role, amounts in held.items()}
        events.append({"name": "live bytes", "ph": "C", "pid": _PROCESS, "ts": now, "args": counter})
        if run.price is None:
            continue
        track = tracks.setdefault(run.step.operator.phase, len(tracks) + 1)
        events.append(
            {
                "name": run.step.name,
                "cat": run.step.operator.type,
                "ph": "X",
                "pid": _PROCESS,
                "tid": track,
                "ts": now,
                "dur": run.seconds * _MICROSECONDS,
                "args": _arguments(run.price, run.round),
            }
        )
    return {
        "displayTimeUnit": "ms",
        "otherData": {"model": est.graph.name, "device": est.device.name},
        "traceEvents": [*_names(est, tracks), *events],
    }


def _arguments(price: OperatorCost, round_: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "module": price.module,
        "flops": int(price.flops),
        "bytes": int(price.reads + price.writes),
        "limited_by": "/".join(dict.fromkeys(str(cost.limited_by) for cost in price.costs)),
        "io_us": float(price.seconds("io")) * _MICROSECONDS,
        "bound_us": float(price.seconds("bound")) * _MICROSECONDS,
    }
    return found | ({"round": round_} if round_ else {})


def _names(est: Estimate, tracks: dict[str, int]) -> list[dict[str, Any]]:
    """Metadata events: what the process and its tracks are called."""
    process = {"name": "process_name", "ph": "M", "pid": _PROCESS, "args": {"name": est.device.name}}
    named = [
        {"name": "thread_name", "ph": "M", "pid": _PROCESS, "tid": track, "args": {"name": phase}}
        for phase, track in tracks.items()
    ]
    return [process, *named]
