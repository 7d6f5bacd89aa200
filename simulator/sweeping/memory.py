"""Memory of a graph's configurations on several devices: live bytes once, the replay shared where it can be.

As long as the driver refuses nothing, the caching allocator behaves the same on every device: a replay on one of them
tells what it reserves on all that have room for that, the same workspace for cuBLAS, and, where thread blocks of sums
meet in buffers, the same number of multiprocessors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peakline.hardware import Device
from peakline.memory.footprint import footprint, multiprocessors
from peakline.memory.lifetimes import Program, unroll
from peakline.memory.options import AllocatorOptions
from peakline.models.graph import Graph
from peakline.models.operators.reductions import Multiprocessors
from peakline.models.select import select
from peakline.sweeping.structure import LiveBytes, Lives
from peakline.sweeping.table import ROLES

__all__ = ["Measured", "memories"]


@dataclass(frozen=True)
class Measured:
    """Bytes of every configuration on a device, as in `peakline.memory.footprint.Memory`; None where not replayed."""

    live: LiveBytes
    allocated: Any
    reserved: Any
    device: Any
    capacity: int
    context: int
    fits: Any
    retries: Any
    replayed: bool


@dataclass
class _Unlimited:
    """What the allocator holds where nothing limits it; `known` marks the configurations this is known of."""

    allocated: NDArray[np.int64]
    reserved: NDArray[np.int64]
    known: NDArray[np.bool_]


class _Unrolled:
    """The graph's program, unrolled when first asked for."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._program: Program | None = None

    @property
    def program(self) -> Program:
        if self._program is None:
            self._program = unroll(self.graph)
        return self._program


def memories(
    graph: Graph,
    shape: tuple[int, ...],
    lives: Lives,
    devices: Sequence[Device],
    allocator: str | None,
    *,
    replay: bool,
) -> list[Measured | Exception]:
    """Memory of `graph` on each device, or why there is none."""
    unrolled = _Unrolled(graph)
    options = AllocatorOptions() if allocator is None else AllocatorOptions.parse(allocator)
    shared: dict[Any, _Unlimited] = {}
    out: list[Measured | Exception] = []
    for device in devices:
        try:
            out.append(_measured(unrolled, shape, lives, device, options, shared, replay))
        except Exception as error:
            out.append(error)
    return out


def _measured(
    unrolled: _Unrolled,
    shape: tuple[int, ...],
    lives: Lives,
    device: Device,
    options: AllocatorOptions,
    shared: dict[Any, _Unlimited],
    replay: bool,
) -> Measured:
    if device.kind == "mcu":
        return _arena(unrolled, shape, device)
    capacity = device.main.capacity
    if capacity is None:
        raise ValueError(f"device {device.name}: {device.main.name} has no capacity; derive a variant that states it")
    on = lives.kind(multiprocessors(device))
    live = lives.bytes(on)
    if device.kind != "gpu":
        return Measured(live, live.live, live.live, live.live, capacity, 0, live.live <= capacity, 0, True)
    context = device.software.context_bytes + device.software.library_bytes
    if replay:
        return _replayed(unrolled, shape, live, device, on, options, shared, capacity, context)
    return Measured(live, None, None, None, capacity, context, live.live + context <= capacity, None, False)


def _arena(unrolled: _Unrolled, shape: tuple[int, ...], device: Device) -> Measured:
    """A microcontroller's arena is planned for each configuration."""
    memory = footprint(unrolled.program, device)
    roles = [np.broadcast_to(memory.by_role.get(role, 0), shape) for role in ROLES]
    own = LiveBytes(np.broadcast_to(memory.live, shape), np.stack(roles))
    figures = (memory.allocated, memory.reserved, memory.device)
    return Measured(own, *figures, memory.capacity, memory.context, memory.fits, memory.retries, True)


def _replayed(
    unrolled: _Unrolled,
    shape: tuple[int, ...],
    live: LiveBytes,
    device: Device,
    on: Multiprocessors | None,
    options: AllocatorOptions,
    shared: dict[Any, _Unlimited],
    capacity: int,
    context: int,
) -> Measured:
    count = live.live.size
    same = device.software.cublas_workspace_bytes, on
    if options.memory_fraction is not None or options.expandable_segments:
        shared = {}  # both look at the device's total
    known = shared.get(same)
    room = max(capacity - context, 0)
    if known is None:
        memory = footprint(unrolled.program, device, options)
        figures = [
            np.broadcast_to(f, shape).reshape(-1)
            for f in (memory.allocated, memory.reserved, memory.fits, memory.retries)
        ]
        allocated, reserved, fits, retries = figures
        # without a fit the figures are those of an unlimited device; with one and no retry nothing was refused
        shared[same] = _Unlimited(allocated, reserved, ~fits | (retries == 0))
    else:
        allocated, reserved = known.allocated.copy(), known.reserved.copy()
        fits, retries = np.ones(count, dtype=np.bool_), np.zeros(count, dtype=np.int64)
        for i in np.flatnonzero(~known.known | (reserved > room)).tolist():
            one = footprint(unroll(select(unrolled.graph, i, i + 1)), device, options)
            allocated[i], reserved[i] = np.ravel(one.allocated)[0], np.ravel(one.reserved)[0]
            fits[i], retries[i] = np.ravel(one.fits)[0], np.ravel(one.retries)[0]
    kept, held, fit, again = (f.reshape(shape) for f in (allocated, reserved, fits, retries))
    return Measured(live, kept, held, held + context, capacity, context, fit, again, True)
