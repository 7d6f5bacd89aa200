"""How much memory a program needs on a device: live, allocated, reserved and device bytes, and where they go.

* live: bytes of storages alive at once, exactly.
* allocated: what the allocator hands out for them (PyTorch's caching allocator rounds to 512 bytes and may leave an
  unsplit remainder in a block).
* reserved: what the allocator holds from the driver.
* device: reserved, plus the context and the libraries outside the allocator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from peakline.hardware import Device
from peakline.memory.caching_allocator import Allocator
from peakline.memory.lifetimes import Program
from peakline.memory.live import LivePeak, Occupancy, occupancy, program_peak
from peakline.memory.options import AllocatorOptions
from peakline.memory.replay import Replay
from peakline.memory.requests import RequestStream, request_streams, script
from peakline.models.dims import is_array
from peakline.models.operators.reductions import Multiprocessors

if TYPE_CHECKING:
    from peakline.memory.arena import StaticArena

__all__ = ["LargestTensor", "Memory", "footprint", "multiprocessors", "request_history"]

REPLAY_LIMIT = 1024
"""Configurations of a sweep up to which the allocator is replayed for each one."""


@dataclass(frozen=True, slots=True)
class LargestTensor:
    """A tensor alive at the peak: its bytes over all layers, and in how many layers it is alive."""

    tensor: str
    bytes: Any
    role: str
    count: int


@dataclass(frozen=True)
class Memory:
    """Memory of a program on a device. In a sweep every figure is an array.

    Attributes:
        live, allocated, reserved, device: bytes at their peaks; allocated, reserved and device are None in a sweep of
            more than `REPLAY_LIMIT` configurations, where the allocator is not replayed.
        capacity: bytes of the device's main memory.
        fits: whether the run completes.
        by_role: live bytes at the live peak by role.
        peak_step: number of the operator executed at the live peak.
        peak_operator, peak_phase: its name and phase.
        stores: further memories with their own walls (an MCU's flash): name → (bytes used, capacity).
        retries: how often the allocator had to give cached memory back to the driver to go on.
        context: bytes outside the allocator.
        arena: where every tensor lies, on a device with a static arena.
        options: settings of the caching allocator, where one was replayed.
        occupied: the table, where it is not simply the program's.
    """

    program: Program
    live: Any
    allocated: Any
    reserved: Any
    device: Any
    capacity: int
    fits: Any
    by_role: Mapping[str, Any]
    peak_step: Any
    stores: Mapping[str, tuple[Any, int]] = field(default_factory=dict)
    retries: Any = 0
    context: int = 0
    arena: StaticArena | None = None
    options: AllocatorOptions | None = None
    notes: tuple[str, ...] = ()
    occupied: Occupancy | None = None

    @cached_property
    def table(self) -> Occupancy:
        """How many storages of each tensor are alive while each step runs (of a large sweep: its last part's)."""
        return self.occupied or occupancy(self.program)

    @property
    def peak_operator(self) -> Any:
        """Name of the operator at the live peak; an array of names in a sweep."""
        return self._at_peak(lambda step: step.name)

    @property
    def peak_phase(self) -> Any:
        """Phase of the operator at the live peak."""
        return self._at_peak(lambda step: step.operator.phase)

    def _at_peak(self, look: Any) -> Any:
        steps = self.program.steps
        if np.ndim(self.peak_step) == 0:
            return look(steps[int(self.peak_step)])
        names = {int(i): look(steps[int(i)]) for i in np.unique(self.peak_step)}
        return np.vectorize(names.__getitem__, otypes=[object])(self.peak_step)

    @cached_property
    def largest(self) -> tuple[LargestTensor, ...]:
        """The ten largest tensors at the peak (of the last configuration, in a sweep), layers added up."""
        step = int(np.asarray(self.peak_step).reshape(-1)[-1])
        counts = self.table.counts[step]
        found = []
        for name, role, size, count in zip(self.table.names, self.table.roles, self.table.sizes, counts.tolist()):
            if count:
                one = int(np.asarray(size).reshape(-1)[-1])
                found.append(LargestTensor(name, one * count, role, count))
        return tuple(sorted(found, key=lambda t: (-t.bytes, t.tensor))[:10])

    def timeline(self) -> dict[str, Any]:
        """Live bytes while each step runs, by role: role → int64 array `[steps]`. Scalar workloads only.

        Raises:
            ValueError: for a sweep.
        """
        if is_array(*self.table.sizes):
            raise ValueError("a sweep has no single timeline; estimate one configuration")
        sizes = np.asarray(self.table.sizes, dtype=np.int64)
        held = self.table.counts * sizes
        roles = np.asarray(self.table.roles)
        return {role: held[:, roles == role].sum(axis=1) for role in dict.fromkeys(self.table.roles)}


def footprint(
    program: Program, device: Device, options: AllocatorOptions | None = None, *, replay: bool = True
) -> Memory:
    """Memory of `program` on `device`, by the allocator of its kind.

    GPUs: PyTorch's caching allocator (unless `replay` is False, or in a sweep of more than `REPLAY_LIMIT`
    configurations). MCUs: a static arena in SRAM with the parameters in flash. Others: exact.

    Raises:
        ValueError: the device names no capacity for its main memory.
    """
    if device.kind == "mcu":
        from peakline.memory.arena_footprint import arena_footprint

        return arena_footprint(program, device)
    capacity = device.main.capacity
    if capacity is None:
        raise ValueError(f"device {device.name}: {device.main.name} has no capacity; derive a variant that states it")
    program = program.on(multiprocessors(device))
    peak = program_peak(program)
    if device.kind != "gpu":
        return _exact(program, peak, capacity)
    memory = _unreplayed(program, peak, device, capacity)
    if not replay or np.size(peak.bytes) > REPLAY_LIMIT:
        return memory
    return _cached(memory, device, options or AllocatorOptions())


def _exact(program: Program, peak: LivePeak, capacity: int) -> Memory:
    """No allocator known for this kind: every figure is the live bytes."""
    fits = peak.bytes <= capacity
    return Memory(
        program, peak.bytes, peak.bytes, peak.bytes, peak.bytes, capacity, fits, peak.by_role, peak.step,
        notes=("allocated, reserved and device bytes are the live bytes: this kind of device has no allocator model",),
    )  # fmt: skip


def _unreplayed(program: Program, peak: LivePeak, device: Device, capacity: int) -> Memory:
    """Live bytes beside the context; what the allocator adds is not known."""
    context = device.software.context_bytes + device.software.library_bytes
    return Memory(
        program, peak.bytes, None, None, None, capacity, peak.bytes + context <= capacity, peak.by_role,
        peak.step, context=context,
        notes=("the allocator was not replayed for this many configurations: fits compares live bytes and context",),
    )  # fmt: skip


def _cached(memory: Memory, device: Device, options: AllocatorOptions) -> Memory:
    """PyTorch's caching allocator over steady state: the first step, and a second on top of what it left."""
    program, room = memory.program, memory.capacity - memory.context
    workspace, repetitions = device.software.cublas_workspace_bytes, _repetitions(program)
    shape = np.shape(memory.live)
    if shape:
        rows = [
            _replay(streams, room, memory.capacity, options)
            for streams in _per_configuration(program, shape, repetitions, workspace)
        ]
        figures: Any = [np.asarray(column).reshape(shape) for column in zip(*rows)]
    else:
        figures = _replay(request_history(program, device), room, memory.capacity, options)
    allocated, reserved, fits, retries = figures
    return replace(
        memory, allocated=allocated, reserved=reserved, device=reserved + memory.context, fits=fits, retries=retries,
        options=options, notes=(),
    )  # fmt: skip


def multiprocessors(device: Device) -> Multiprocessors | None:
    """What of a GPU decides how many thread blocks share a sum; None where PyTorch's CUDA kernels do not run."""
    if device.gpu is None or device.compute_capability is None or not device.units or not device.gpu.threads_per_unit:
        return None
    return Multiprocessors(device.units, device.gpu.threads_per_unit)


def request_history(program: Program, device: Device) -> list[RequestStream]:
    """The requests that the caching allocator of `device` sees: a training step (one that leaves something) twice."""
    workspace, program = device.software.cublas_workspace_bytes, program.on(multiprocessors(device))
    return request_streams(program, repetitions=_repetitions(program), library_workspace=workspace)


def _repetitions(program: Program) -> int:
    """Steps until the state is steady: optimizer states, and what a step leaves to the next, are made within a step."""
    return 2 if program.previous or any(step.operator.phase == "optimizer" for step in program.steps) else 1


def _per_configuration(program: Program, shape: tuple[int, ...], repetitions: int, workspace: int) -> Any:
    """The request streams of each configuration of a sweep, one after the other."""
    flat = [np.broadcast_to(np.asarray(s), shape).reshape(-1) for s in program.sizes]
    inside = {
        key: [np.broadcast_to(np.asarray(s), shape).reshape(-1) for s in sizes]
        for key, sizes in program.workspaces.items()
    }
    written = script(program)
    for i in range(int(np.prod(shape))):
        one = replace(program)
        one.__dict__["sizes"] = [int(s[i]) for s in flat]
        one.__dict__["workspaces"] = {key: tuple(int(s[i]) for s in sizes) for key, sizes in inside.items()}
        yield request_streams(one, repetitions=repetitions, library_workspace=workspace, written=written)


def _replay(
    streams: list[RequestStream], room: int, total: int, options: AllocatorOptions
) -> tuple[int, int, bool, int]:
    """(peak allocated, peak reserved, fits, retries); without a fit, the peaks an unlimited device would see."""
    results = _run(streams, max(room, 0), total, options)
    fits = all(r.oom is None for r in results)
    if not fits:
        results = _run(streams, None, None, replace(options, memory_fraction=None))
    return (
        max(r.peak_allocated for r in results),
        max(r.peak_reserved for r in results),
        fits,
        sum(r.alloc_retries for r in results),
    )


def _run(streams: list[RequestStream], room: int | None, total: int | None, options: AllocatorOptions) -> list[Replay]:
    allocator = Allocator(room, options, device_total=total)
    results = []
    for stream in streams:
        results.append(allocator.run(stream.events))
        if results[-1].oom is not None:
            break
    return results
