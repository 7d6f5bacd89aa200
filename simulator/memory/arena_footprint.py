"""Memory of a program on a microcontroller: activations in one static SRAM arena, constants in flash.

Two walls: the arena must fit the SRAM, and what never changes while the program runs must fit the flash. In inference
that is every parameter and buffer; in training only the frozen parameters, since what an optimizer updates cannot lie
in flash. The arena is planned as TensorFlow Lite Micro plans it (`peakline.memory.arena`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from peakline.hardware import Device
from peakline.hardware.sections import MemoryLevel
from peakline.hardware.units import format_bytes
from peakline.memory.arena import Lifetime, StaticArena, plan_arena
from peakline.memory.footprint import REPLAY_LIMIT, Memory
from peakline.memory.lifetimes import Program
from peakline.memory.live import Occupancy, live_peak, occupancy
from peakline.models.dims import is_array
from peakline.models.graph import Tensor

__all__ = ["arena_footprint"]

_LEARNING = frozenset({"backward", "recompute", "optimizer"})


def arena_footprint(program: Program, device: Device) -> Memory:
    """Memory of `program` in a static arena of the device's main memory, with constants in its read-only memory.

    A network input holds its place from the first operator to its last use, as in TensorFlow Lite Micro; whatever
    else exists before the run (a cache, weights being trained) holds it throughout. A device without read-only memory
    keeps the constants in main memory.

    Returns:
        live, allocated, reserved and device bytes of main memory (the last three are the arena), with the plan in
        `arena`, and flash in `stores`. In a sweep the figures are arrays and there is no single plan.

    Raises:
        ValueError: the device names no capacity for its main memory.
    """
    main, flash = device.main, _flash(device)
    if main.capacity is None:
        raise ValueError(f"device {device.name}: {main.name} has no capacity; derive a variant that states it")
    constants = _constants(program) if flash is not None else frozenset[int]()
    last_use = _last_use_of_inputs(program)
    table = _in_main_memory(occupancy(program), program, constants, last_use)
    peak = live_peak(table)
    fits_flash: Any = True
    stores: dict[str, tuple[Any, int]] = {}
    if flash is not None and flash.capacity is not None:
        held: Any = sum((program.sizes[key] for key in constants), 0)
        stores[flash.name] = (held, flash.capacity)
        fits_flash = held <= flash.capacity
    plan, arena = _plan(program, constants, last_use, np.shape(peak.bytes), peak.bytes)
    needed = arena + device.software.context_bytes
    fits = (needed <= main.capacity) & np.asarray(fits_flash)
    return Memory(
        program,
        peak.bytes,
        arena,
        arena,
        needed,
        main.capacity,
        bool(fits) if np.ndim(fits) == 0 else fits,
        peak.by_role,
        peak.step,
        stores=stores,
        context=device.software.context_bytes,
        occupied=table,
        arena=plan,
        notes=_notes(device, arena),
    )


def _flash(device: Device) -> MemoryLevel | None:
    """The memory a running program cannot write."""
    return next((level for level in device.memory.values() if level.access == "read-only"), None)


def _constants(program: Program) -> frozenset[int]:
    """Storages that nothing writes while the program runs."""
    learning = any(step.operator.phase in _LEARNING for step in program.steps)

    def constant(tensor: Tensor) -> bool:
        return tensor.role == "parameter" and not tensor.trainable if learning else tensor.role in _FIXED

    return frozenset(key for key in program.resident if constant(program.storages[key].tensor))


_FIXED = frozenset({"parameter", "buffer"})


def _last_use_of_inputs(program: Program) -> dict[int, int]:
    """The last step that touches each network input."""
    inputs = {key for key in program.resident if program.storages[key].tensor.role == "input"}
    last: dict[int, int] = {}
    for position, step in enumerate(program.steps):
        for key in step.touches:
            if key in inputs:
                last[key] = position
    return last


def _in_main_memory(
    table: Occupancy, program: Program, constants: frozenset[int], last_use: dict[int, int]
) -> Occupancy:
    """The occupancy without what lies in flash, and with inputs leaving after their last use."""
    column = {name: index for index, name in enumerate(table.names)}
    counts = table.counts.copy()
    for key in constants:
        counts[:, column[program.storages[key].tensor.name]] -= 1
    for key, position in last_use.items():
        counts[position + 1 :, column[program.storages[key].tensor.name]] -= 1
    return Occupancy(counts, table.roles, table.names, table.sizes)


def _plan(
    program: Program, constants: frozenset[int], last_use: dict[int, int], shape: tuple[int, ...], live: Any
) -> tuple[StaticArena | None, Any]:
    """The plan and its bytes; for a sweep the bytes of each configuration's plan, or of live bytes for very many."""
    spans = _spans(program, constants, last_use)
    if not is_array(*(size for _, size, _, _ in spans)):
        plan = plan_arena(Lifetime(name, int(size), first, last) for name, size, first, last in spans)
        return plan, plan.size
    configurations = int(np.prod(shape))
    if configurations > REPLAY_LIMIT:
        return None, live
    flat = [np.broadcast_to(np.asarray(size), shape).reshape(-1) for _, size, _, _ in spans]
    sizes = [
        plan_arena(
            Lifetime(name, int(column[i]), first, last) for (name, _, first, last), column in zip(spans, flat)
        ).size
        for i in range(configurations)
    ]
    return None, np.asarray(sizes, dtype=np.int64).reshape(shape)


def _spans(program: Program, constants: frozenset[int], last_use: dict[int, int]) -> list[tuple[str, Any, int, int]]:
    """(name, bytes, first step, last step) of everything that needs a place in the arena."""
    end = len(program.steps) - 1
    resident = set(program.resident)
    spans: list[tuple[str, Any, int, int]] = []
    for key, (born, dies) in enumerate(zip(program.births, program.deaths)):
        if key in constants:
            continue
        if key in resident:
            spans.append((program.storages[key].name, program.sizes[key], 0, last_use.get(key, end)))
        elif born >= 0:
            spans.append((program.storages[key].name, program.sizes[key], born, dies))
    for position, step in enumerate(program.steps):
        for i, size in enumerate(program.workspaces.get(id(step.operator), ())):
            spans.append((f"{step.name}.workspace{i}", size, position, position))
    return [span for span in spans if not (np.ndim(span[1]) == 0 and span[1] == 0)]


def _notes(device: Device, arena: Any) -> tuple[str, ...]:
    notes = ["the interpreter's own structures and the program's code are not counted"]
    bank = device.mcu.largest_bank if device.mcu is not None else None
    if bank is not None and bool(np.any(np.asarray(arena) > bank)):
        notes.append(f"the arena is larger than the largest contiguous bank of SRAM ({format_bytes(bank)})")
    if np.ndim(arena) and np.size(arena) > REPLAY_LIMIT:
        notes.append(f"no arena is planned for more than {REPLAY_LIMIT} configurations: its size is the live bytes")
    return tuple(notes)
