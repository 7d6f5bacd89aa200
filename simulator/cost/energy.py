"""Energy of a program: arithmetic, data movement and idle power.

E = Σ operations · J/op  +  Σ_levels bytes moved · J/B  +  idle watts · seconds

(Horowitz, "Computing's energy problem", ISSCC 2014, for why the first two are kept apart; J. Choi et al., "A roofline
model of energy", IPDPS 2013.) `energy` takes the figures that the device's file names, and nothing else. `consumption`
takes what the process and the memory's technology cost where the file names none (`peakline.hardware.technology`), part
by part. Either is a lower bound on what a meter reads: nothing is counted for formats and levels without a figure, for
registers, wires, clock trees, voltage regulators and fans. The board's limit times the seconds is an upper bound. Where
the power drawn while computing was measured (a microcontroller's, `power.active`), E = active watts · seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from peakline.cost.program import ProgramCost
from peakline.hardware import Device
from peakline.hardware.technology import memory_energy, operation_energy, sram_energy
from peakline.models.dtypes import DType
from peakline.models.graph import Graph
from peakline.models.kernels import Attention, Convolution, Gemm, GroupedGemm, Kernel
from peakline.models.operators import Node, operator_type

__all__ = ["INSTRUCTION", "MATRIX_OVERHEAD", "Energy", "consumption", "energy", "energy_per_byte"]

_WIDER = {
    "int4": ("int8", "int16", "int32"),
    "int8": ("int16", "int32"),
    "uint8": ("int8", "int16", "int32"),
    "int16": ("int32",),
    "fp4": ("fp8", "bf16", "fp16", "fp32"),
    "fp8": ("bf16", "fp16", "fp32"),
    "bf16": ("fp16", "fp32"),
    "fp16": ("bf16", "fp32"),
    "tf32": ("fp32",),
}
"""Where a format's own energy is not published, the energy of the narrowest wider format that is."""


def energy(cost: ProgramCost, device: Device, graph: Graph) -> Any:
    """Joules of one run of `graph`, or None where the device names no energy of arithmetic or of main memory.

    Args:
        cost: the graph's price on the device: traffic in bytes per level and seconds, as tiled.
        device: energies in J/op (a multiply-add is two operations) and J/B, idle power in W.
        graph: for the number format of each operator.

    Returns:
        Joules: a float, or a float64 array in a sweep.
    """
    if device.power.active is not None:
        return cost.tiled * device.power.active
    levels = {name: level.energy_per_byte for name, level in device.memory.items() if level.energy_per_byte is not None}
    arithmetic = _per_operation(device)
    if not arithmetic or device.main.name not in levels:
        return None
    total: Any = 0.0
    for name, per_byte in levels.items():
        total = total + cost.traffic.get(name, 0) * per_byte
    for operations, format_name in _work(graph):
        total = total + operations * _lookup(arithmetic, format_name)
    if device.power.idle is not None:
        total = total + cost.tiled * device.power.idle
    return total


def _per_operation(device: Device) -> dict[str, float]:
    """J/op by format, those published."""
    if device.compute is None:
        return {}
    figures = device.compute.energy
    named = {name: getattr(figures, name) for name in type(figures).model_fields if name not in ("cited", "notes")}
    return {name: joules for name, joules in named.items() if isinstance(joules, float)}


def _lookup(arithmetic: dict[str, float], name: str) -> float:
    for candidate in (name, *_WIDER.get(name, ())):
        if candidate in arithmetic:
            return arithmetic[candidate]
    return 0.0


def _work(graph: Graph) -> Iterator[tuple[Any, str]]:
    """(operations over the whole run, format of the arithmetic) for every kernel."""
    families = graph.families
    for block, operator in graph.operators():
        kernels = operator_type(operator.type).kernels(Node.of(graph, operator, families))
        for kernel in kernels:
            yield kernel.flops * (block.repeat * block.times), _format(kernel).name


def _format(kernel: Kernel) -> DType:
    """The format a kernel computes in: the wider of the operands of a product."""
    if isinstance(kernel, Gemm | GroupedGemm | Convolution):
        return kernel.a if kernel.a.bits >= kernel.b.bits else kernel.b
    return kernel.kind


INSTRUCTION = 30e-12
"""Joules of fetching, decoding and finding the operands of one instruction of a GPU's lane at 45 nm, for one fused
multiply-add: 20 times what fp16 arithmetic takes (W. Dally, "Hardware for deep learning", Hot Chips 2023 keynote)."""

MATRIX_OVERHEAD = 0.22
"""The same of a matrix instruction, as a share of its arithmetic (HMMA, ibid.)."""


@dataclass(frozen=True)
class Energy:
    """Where a run's joules go. A float each, or arrays in a sweep.

    Attributes:
        parts: joules of `arithmetic`, `instructions`, each memory level by name, and `idle`; or `active` where the
            power drawn while computing was measured.
        seconds: of the run.
        tdp: the board's limit in watts, None where unpublished.
        derived: parts whose joules come from the process or the memory's technology, not from the device's file.
    """

    parts: Mapping[str, Any]
    seconds: Any
    tdp: float | None
    derived: tuple[str, ...] = ()

    @property
    def total(self) -> Any:
        """Joules, all parts: a lower bound."""
        total: Any = 0.0
        for joules in self.parts.values():
            total = total + joules
        return total

    @property
    def watts(self) -> Any:
        """Mean power."""
        return self.total / self.seconds

    @property
    def at_limit(self) -> Any:
        """Joules at the board's limit all the time: an upper bound; None where no limit is published."""
        return None if self.tdp is None else self.tdp * self.seconds

    @property
    def capped_seconds(self) -> Any:
        """Seconds within the board's limit: where a run would draw more, it is stretched until it draws no more.

        max(T, E_dynamic / (limit − idle watts)): idle power is drawn for as long as it takes.
        """
        if self.tdp is None or "active" in self.parts:
            return self.seconds
        idle = self.parts.get("idle", 0.0)
        room = self.tdp - idle / self.seconds
        return np.maximum(self.seconds, (self.total - idle) / np.maximum(room, 1e-12))


def consumption(cost: ProgramCost, device: Device, graph: Graph) -> Energy | None:
    """Joules of one run by part; None where nothing says what arithmetic costs, or main memory.

    Args:
        cost: the graph's price on the device: traffic in bytes per level and seconds, as tiled.
        device: energies as in `energy`, or else its process (`process.nm`) and the kind of its memories.
        graph: for the number format of each operator.
    """
    if device.power.active is not None:
        return Energy({"active": cost.tiled * device.power.active}, cost.tiled, device.tdp)
    levels = {name: energy_per_byte(device, name) for name in device.memory}
    published, nm = _per_operation(device), device.process.nm
    if levels[device.main.name] is None or not (published or nm):
        return None
    parts: dict[str, Any] = {"arithmetic": 0.0}
    derived = {name for name, level in device.memory.items() if level.energy_per_byte is None}
    for operations, format_name, product in _work_by_engine(graph):
        joules = _lookup(published, format_name)
        if not joules and nm:
            joules = operation_energy(format_name, nm) or operation_energy("fp32", nm) or 0.0
            derived.add("arithmetic")
        parts["arithmetic"] = parts["arithmetic"] + operations * joules
        if device.kind == "gpu" and nm:
            each = MATRIX_OVERHEAD * joules if product and device.rates("matrix") else _instruction(nm)
            parts["instructions"] = parts.get("instructions", 0.0) + operations * each
            derived.add("instructions")
    for name, per_byte in levels.items():
        if per_byte is not None and name in cost.traffic:
            parts[name] = cost.traffic[name] * per_byte
    if device.power.idle is not None:
        parts["idle"] = cost.tiled * device.power.idle
    return Energy(parts, cost.tiled, device.tdp, tuple(name for name in parts if name in derived))


def energy_per_byte(device: Device, level: str) -> float | None:
    """Joules per byte of a level: its own figure, else that of its technology, or of an SRAM of its size."""
    found = device.level(level)
    if found.energy_per_byte is not None:
        return found.energy_per_byte
    known = memory_energy(found.kind)
    if known is not None or (found is device.main and not (found.kind or "").upper().startswith("SRAM")):
        return known
    capacity, nm = found.capacity_per_unit or found.capacity, device.process.nm
    return sram_energy(capacity, nm) if capacity and nm else None


def _instruction(nm: float) -> float:
    """Joules of a vector instruction's way through a GPU per operation, a fused multiply-add being two."""
    shrink = (operation_energy("fp32", nm) or 0.0) / (operation_energy("fp32", 45.0) or 1.0)
    return INSTRUCTION * shrink / 2


def _work_by_engine(graph: Graph) -> Iterator[tuple[Any, str, bool]]:
    """(operations over the whole run, format, whether a matrix engine does them) for every kernel."""
    families = graph.families
    for block, operator in graph.operators():
        for kernel in operator_type(operator.type).kernels(Node.of(graph, operator, families)):
            product = isinstance(kernel, Gemm | GroupedGemm | Convolution | Attention)
            yield kernel.flops * (block.repeat * block.times), _format(kernel).name, product
