"""Energy of a program: arithmetic, data movement and idle power, from the figures that the device's file names.

E = Σ operations · J/op  +  Σ_levels bytes moved · J/B  +  idle watts · seconds

(Horowitz, "Computing's energy problem", ISSCC 2014, for why the first two are kept apart.) Without published energies
of both arithmetic and main memory there is no answer, unless the power drawn while computing was measured (a
microcontroller's, `power.active`), E = active watts · seconds; other levels and formats that nobody published count as
nothing, so the sum is a lower bound on what a meter would read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from peakline.cost.program import ProgramCost
from peakline.hardware import Device
from peakline.models.dtypes import DType
from peakline.models.graph import Graph
from peakline.models.kernels import Convolution, Gemm, GroupedGemm, Kernel
from peakline.models.operators import Node, operator_type

__all__ = ["energy"]

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
