"""Silicon: how much area memory and arithmetic take, and what one can be traded for.

Memory and 8-bit arithmetic are counted by the shares they take of a finished die, with all that wires and feeds them;
other formats by how much larger their circuits are, and other nodes by how bit cells and logic shrank.

Sources
    [1] Jouppi et al., In-Datacenter Performance Analysis of a Tensor Processing Unit, ISCA 2017, table 2 and figure 2:
        28 nm, die ≤ 331 mm²; unified buffer of 24 MiB 29 % of it, matrix unit of 65,536 8-bit MACs 24 %.
    [2] Horowitz, Computing's Energy Problem, ISSCC 2014, with the areas of the same circuits in Dally, High-Performance
        Hardware for Machine Learning, NIPS 2015 tutorial: 45 nm, µm² of adders and multipliers by format.
    [3] High-density 6T bit cells as the foundry reported them: 28 nm 0.127 µm² (Wu et al., IEDM 2009, TSMC), 16 nm 0.07
        (Chen et al., ISSCC 2014), 7 nm 0.027 (Chang et al., ISSCC 2017), 5 nm 0.021 (Chang et al., ISSCC 2020),
        3 nm 0.0199 (Wu et al., IEDM 2022).
    [4] Logic density from node to node as TSMC states it on its technology pages: 40→28 nm 2×, 28→16 2×, 16→10 2×,
        10→7 1.6×, 7→5 1.8×, 5→3 1.6×; 45→40 nm is a half node, 1.23× by its (45/40)² ≈ 1.27 shrink.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peakline.hardware import Device
from peakline.hardware import device as find_device

__all__ = ["NODES", "area", "arithmetic_area", "same_area", "sram_area"]

NODES = ("28nm", "16nm", "7nm", "5nm", "3nm")

BIT_CELL = {"28nm": 0.127, "16nm": 0.07, "7nm": 0.027, "5nm": 0.021, "3nm": 0.0199}
"""µm² of a high-density bit cell [3]."""

LOGIC = {"45nm": 1 / (1.23 * 2.0), "28nm": 1.0, "16nm": 2.0, "7nm": 6.4, "5nm": 6.4 * 1.8, "3nm": 6.4 * 1.8 * 1.6}
"""Logic density relative to 28 nm [4]."""

DIE_28NM = 331.0
"""mm² [1], an upper bound, so that the two areas below are as well; their ratio is exact."""

BUFFER_MM2_PER_MIB = 0.29 * DIE_28NM / 24
"""mm² of a MiB of on-chip memory at 28 nm, with its ports and wires [1]: 4.0."""

MAC_MM2 = 0.24 * DIE_28NM / 65_536
"""mm² of an 8-bit multiply-accumulate at 28 nm, with its registers and wires [1]: 0.0012."""

CIRCUITS_45NM = {
    "int8": (282.0, 137.0),
    "fp16": (1640.0, 4184.0),
    "bf16": (1640.0, 4184.0),
    "fp32": (7700.0, 4184.0),
    "int32": (3495.0, 137.0),
}
"""µm² of a multiplier and of the adder it accumulates in (32 bits wide) at 45 nm [2]; bf16 is taken as fp16."""

NODE_OF_YEAR = ((2023, "5nm"), (2022, "5nm"), (2018, "7nm"), (2016, "16nm"))
"""Node taken where none is given: what most accelerators of that year or later were made in."""


def sram_area(size: float, node: str) -> float:
    """mm² of `size` bytes of on-chip memory, scaled from 28 nm by the bit cell."""
    _known(node)
    return size / 2**20 * BUFFER_MM2_PER_MIB * BIT_CELL[node] / BIT_CELL["28nm"]


def arithmetic_area(macs: float, fmt: str, node: str) -> float:
    """mm² of `macs` multiply-accumulates per cycle in a format: the die's 8-bit ones, by the ratio of the circuits."""
    _known(node)
    if fmt not in CIRCUITS_45NM:
        raise ValueError(f"area: no circuit is published for {fmt!r}; known: {', '.join(CIRCUITS_45NM)}")
    ratio = sum(CIRCUITS_45NM[fmt]) / sum(CIRCUITS_45NM["int8"])
    return macs * MAC_MM2 * ratio / LOGIC[node]


def area(device: Device | str, node: str | None = None) -> dict[str, float]:
    """mm² of a device's on-chip memory and of its matrix arithmetic, and their sum.

    A model of these two alone: control, links, memory controllers and yield are in nobody's published shares.

    Raises:
        ValueError: no units, clock or rates to count arithmetic by; an unknown node.
    """
    found = find_device(device)
    chosen = _node(found, node)
    memory = sum(_capacity(found, level) for level in found.onchip)
    parts = {"memory_mm2": sram_area(memory, chosen), "arithmetic_mm2": _arithmetic(found, chosen)}
    return parts | {"total_mm2": sum(parts.values())}


def same_area(
    base: Device | str, changes: Mapping[str, Any], *, pay_with: str = "compute.units", node: str | None = None
) -> Device:
    """`base` with `changes` and as many compute units as then fit its area.

    Args:
        base: the device whose modelled area is the budget.
        changes: fields and values, as for `peakline.device`.
        pay_with: the field that gives or takes the silicon; `compute.units`.
        node: one of `NODES`; None: by the device's year.

    Raises:
        ValueError: another field to pay with; changes that leave no room for one unit.
    """
    if pay_with != "compute.units":
        raise ValueError(f"same_area: {pay_with!r} cannot pay for silicon; accepted: 'compute.units'")
    found = find_device(base)
    chosen = _node(found, node)
    budget = area(found, chosen)["total_mm2"]
    units = found.units
    assert units is not None
    least = area(find_device(found, **{**changes, "compute.units": 1}), chosen)["total_mm2"]
    if least > budget:
        raise ValueError(
            f"same_area: {dict(changes)!r} take {least:.0f} mm² with one unit; {found.name} has {budget:.0f}"
        )
    low, high = 1, 2 * units
    while area(find_device(found, **{**changes, "compute.units": high}), chosen)["total_mm2"] <= budget:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        fits = area(find_device(found, **{**changes, "compute.units": middle}), chosen)["total_mm2"] <= budget
        low, high = (middle, high) if fits else (low, middle)
    return find_device(found, **{**changes, "compute.units": low})


def _arithmetic(device: Device, node: str) -> float:
    """Area of the matrix engine by its fastest wide format: half its operations per cycle are multiply-accumulates."""
    if not device.units or not device.clock:
        raise ValueError(f"area: {device.name}: compute.units and compute.clock are needed to count its arithmetic")
    rates = device.rates("matrix") or device.rates("vector")
    for fmt in ("bf16", "fp16", "fp32", "int8", "int32"):
        if fmt in rates:
            return arithmetic_area(rates[fmt] / device.clock / 2, fmt, node)
    raise ValueError(f"area: {device.name} states no rate in a format whose circuits are published")


def _capacity(device: Device, level: Any) -> float:
    if level.capacity is not None:
        return float(level.capacity)
    return float((level.capacity_per_unit or 0) * (device.units or 1))


def _node(device: Device, node: str | None) -> str:
    if node is None:
        return next((name for year, name in NODE_OF_YEAR if (device.year or 0) >= year), "28nm")
    _known(node)
    return node


def _known(node: str) -> None:
    if node not in NODES:
        raise ValueError(f"node: {node!r} is unknown; accepted: {', '.join(NODES)}")
