"""Memory of a program on a microcontroller: activations in one static SRAM arena, constants in flash.

Two walls: the arena must fit the SRAM, and what never changes while the program runs must fit the flash. In inference
that is every parameter and buffer; in training only the frozen parameters, since what an optimizer updates cannot lie
in flash. The arena is planned as TensorFlow Lite Micro plans it (`peakline.memory.arena`); what the device's inference
library adds and saves follows `peakline.memory.micro`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from peakline.hardware import Device
from peakline.hardware.sections import MemoryLevel
from peakline.hardware.units import format_bytes
from peakline.memory.arena import Lifetime, StaticArena, plan_arena
from peakline.memory.footprint import REPLAY_LIMIT, Memory
from peakline.memory.lifetimes import Program
from peakline.memory.live import Occupancy, live_peak, occupancy
from peakline.memory.micro import LIBRARIES, Library, holds_for, operators, weight_window
from peakline.memory.micro_spans import Span, library_spans, overwritten
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
    library = _library(program, device)
    constants = _constants(program) if flash is not None else frozenset[int]()
    last_use = _last_use_of_inputs(program)
    table = _in_main_memory(occupancy(program), program, constants, last_use)
    if library is not None:
        table = _overwriting(table, program, library)
    peak = live_peak(table)
    structures, code = _structures(program, library)
    fits_flash: Any = True
    stores: dict[str, tuple[Any, int]] = {}
    if flash is not None and flash.capacity is not None:
        held: Any = sum((program.sizes[key] for key in constants), code)
        stores[flash.name] = (held, flash.capacity)
        fits_flash = held <= flash.capacity
    spans = _spans(program, constants, last_use) if library is None else library_spans(program, constants, library)
    beside: Any = structures
    if library is not None and library.shared_windows:
        windows = [size for name, size, _, _ in spans if name.endswith(".window")]
        spans = [span for span in spans if not span[0].endswith(".window")]
        for size in windows:
            beside = np.maximum(beside, structures + size)
        beside = beside + weight_window(program, library)
        beside = int(beside) if np.ndim(beside) == 0 else beside
    closed = library is not None and library.planner == "unknown"
    plan, arena = _plan(spans, np.shape(peak.bytes), peak.bytes, _smallest if closed else plan_arena)
    context = device.software.context_bytes + beside
    needed = arena + context
    wall = _wall(device, main.capacity)
    fits = (needed <= wall) & np.asarray(fits_flash)
    return Memory(
        program,
        peak.bytes,
        arena,
        arena,
        needed,
        wall,
        bool(fits) if np.ndim(fits) == 0 else fits,
        peak.by_role,
        peak.step,
        stores=stores,
        context=context,
        occupied=table,
        arena=plan,
        notes=_notes(device, arena, library, wall),
    )


def _library(program: Program, device: Device) -> Library | None:
    """The inference library of the device, None for the tensors alone: nothing named, `bare`, or not what it runs."""
    name = device.mcu.runtime if device.mcu is not None else None
    return LIBRARIES[name] if name in LIBRARIES and holds_for(program) else None


def _structures(program: Program, library: Library | None) -> tuple[Any, Any]:
    """(SRAM of the library's structures, flash of its program and parameters of quantisation), bytes."""
    if library is None:
        return 0, 0
    count, channels = operators(program, library)
    return (
        count * library.per_operator + channels * library.per_channel,
        library.code + count * library.flash_per_operator + channels * library.flash_per_channel,
    )


def _wall(device: Device, capacity: int) -> int:
    """Bytes that one static arena may take: the largest contiguous bank, where the memory is cut up."""
    bank = device.mcu.largest_bank if device.mcu is not None else None
    return min(capacity, bank) if bank is not None else capacity


def _overwriting(table: Occupancy, program: Program, library: Library) -> Occupancy:
    """The occupancy where outputs take the place of inputs: of the two only the larger counts."""
    column = {name: index for index, name in enumerate(table.names)}
    counts = table.counts.copy()
    for position, step in enumerate(program.steps):
        pair = overwritten(program, position, step, library)
        if pair is not None:
            x, y = pair
            smaller = x if bool(np.all(np.asarray(program.sizes[y]) > np.asarray(program.sizes[x]))) else y
            counts[position, column[program.storages[smaller].tensor.name]] -= 1
    return Occupancy(counts, table.roles, table.names, table.sizes)


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
    spans: list[Span], shape: tuple[int, ...], live: Any, planner: Callable[[list[Lifetime]], StaticArena]
) -> tuple[StaticArena | None, Any]:
    """The plan and its bytes; for a sweep the bytes of each configuration's plan, or of live bytes for very many."""
    if not is_array(*(size for _, size, _, _ in spans)):
        plan = planner([Lifetime(name, int(size), first, last) for name, size, first, last in spans])
        return plan, plan.size
    configurations = int(np.prod(shape))
    if configurations > REPLAY_LIMIT:
        return None, live
    flat = [np.broadcast_to(np.asarray(size), shape).reshape(-1) for _, size, _, _ in spans]
    sizes = [
        planner(
            [Lifetime(name, int(column[i]), first, last) for (name, _, first, last), column in zip(spans, flat)]
        ).size
        for i in range(configurations)
    ]
    return None, np.asarray(sizes, dtype=np.int64).reshape(shape)


def _smallest(lifetimes: list[Lifetime]) -> StaticArena:
    """The smallest of three plans, for a library whose planner is not known."""
    plans = (plan_arena(lifetimes), plan_arena(lifetimes[::-1]), plan_arena(lifetimes, rule="best_fit"))
    return min(plans, key=lambda plan: plan.size)


def _spans(program: Program, constants: frozenset[int], last_use: dict[int, int]) -> list[Span]:
    """(name, bytes, first step, last step) of everything that needs a place in the arena."""
    end = len(program.steps) - 1
    resident = set(program.resident)
    spans: list[Span] = []
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


def _notes(device: Device, arena: Any, library: Library | None, wall: int) -> tuple[str, ...]:
    if library is None:
        notes = ["the interpreter's own structures and the program's code are not counted"]
    else:
        notes = [
            f"runtime {library.name}: its structures, windows and code are counted (name another with "
            "mcu.runtime: bare, tflm, cmsis-nn, x-cube-ai, tinyengine)"
        ]
    if wall < (device.main.capacity or 0):
        notes.append(f"one arena needs contiguous memory: the largest bank is {format_bytes(wall)}")
    if np.ndim(arena) and np.size(arena) > REPLAY_LIMIT:
        notes.append(f"no arena is planned for more than {REPLAY_LIMIT} configurations: its size is the live bytes")
    return tuple(notes)
