"""What arithmetic and memory cost in energy, by process and technology: published tables, interpolated between nodes.

Arithmetic and small memories were tabulated for 45 nm and 7 nm [1, 2]. Between and beyond them energies follow the
power of the node that joins the two, E(ν) = E₇ · (E₄₅/E₇)^(ln(ν/7)/ln(45/7)): about ν^0.5, because voltages no longer
fall with sizes. Below 7 nm this extrapolates.

Energies of a datum's way through a chip (instruction, operand collection, wires) are not in these tables, so sums of
them are lower bounds on what a meter reads.

References:
    [1] M. Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014: 45 nm.
    [2] N. Jouppi et al., "Ten lessons from three generations shaped Google's TPUv4i", ISCA 2021, table 2: 45 and 7 nm.
    [3] M. O'Connor et al., "Fine-grained DRAM: energy-efficient DRAM for extreme bandwidth systems", MICRO 2017: HBM2
        and GDDR5.
"""

from __future__ import annotations

from math import log

__all__ = ["SOURCE", "memory_energy", "operation_energy", "sram_energy"]

SOURCE = "Horowitz, ISSCC 2014, and Jouppi et al., ISCA 2021, table 2, between and beyond their 45 and 7 nm"

_PJ = 1e-12

_ADD = {"int8": (0.03, 0.007), "int32": (0.1, 0.03), "fp16": (0.4, 0.16), "fp32": (0.9, 0.38)}
_MULTIPLY = {"int8": (0.2, 0.07), "int32": (3.1, 1.48), "fp16": (1.1, 0.34), "fp32": (3.7, 1.31)}
"""pJ of one addition and one multiplication at 45 and at 7 nm [2]."""

_BF16_MULTIPLY_7NM = 0.21
"""pJ [2], which has no figure for 45 nm: taken to scale as fp16's."""

_ACCUMULATOR = {
    "int4": "int32", "int8": "int32", "int16": "int32", "int32": "int32", "fp4": "fp16", "fp8": "fp16", "fp16": "fp32",
    "bf16": "fp32", "tf32": "fp32", "fp32": "fp32",
}  # fmt: skip
"""What products are summed up in: matrix engines accumulate in 32 bits, products of 8 bits and less in about 14 of
mantissa (DeepSeek-V3, arXiv:2412.19437, §3.3.2), for which fp16's addition stands."""

_BITS = {"int4": 4, "int8": 8, "int16": 16, "int32": 32}
_MANTISSA = {"fp4": 2, "fp8": 4, "bf16": 8, "fp16": 11, "tf32": 11, "fp32": 24}
"""Bits of the factors that a multiplier sees, the leading one included (E4M3 for fp8, E2M1 for fp4)."""

_SRAM = {8 << 10: (10.0, 7.5), 32 << 10: (20.0, 8.5), 1 << 20: (100.0, 14.0)}
"""pJ of reading 64 bits from a memory of that many bytes, at 45 and at 7 nm [2]."""

_DRAM = {"HBM": 31.4, "GDDR5": 112.0, "GDDR6": 51.9, "DDR3": 162.5, "DDR4": 162.5, "DDR5": 162.5}
"""pJ per byte. HBM2 3.92 and GDDR5 14.0 pJ/bit [3], which stand for later stacks too; GDDR6 350 to 480 pJ per 64 bits,
the middle, and DDR3 and DDR4 1300 pJ per 64 bits [2]."""


def _between(at: tuple[float, float], nm: float) -> float:
    old, new = at
    return float(new * (old / new) ** (log(nm / 7.0) / log(45.0 / 7.0)))


def operation_energy(dtype: str, nm: float) -> float | None:
    """Joules of one operation (half a multiply-accumulate) in a format at a node; None for formats without a figure.

    Products that the tables lack follow from the nearest one by the area of the multiplier, the square of its factors'
    bits. Sums are wider (`_ACCUMULATOR`).

    Raises:
        ValueError: a node that is no length above zero.
    """
    if not nm > 0:
        raise ValueError(f"nm: a process node is a number of nanometres above 0; got {nm!r}")
    wide = _ACCUMULATOR.get(dtype)
    if wide is None:
        return None
    if dtype in _MULTIPLY:
        product = _between(_MULTIPLY[dtype], nm)
    elif dtype == "bf16":
        product = _between((_BF16_MULTIPLY_7NM * _MULTIPLY["fp16"][0] / _MULTIPLY["fp16"][1], _BF16_MULTIPLY_7NM), nm)
    elif dtype in _BITS:
        product = _between(_MULTIPLY["int8"], nm) * (_BITS[dtype] / 8) ** 2
    else:
        product = _between(_MULTIPLY["fp16"], nm) * (_MANTISSA[dtype] / 11) ** 2
    return (product + _between(_ADD[wide], nm)) / 2 * _PJ


def sram_energy(capacity: float, nm: float) -> float:
    """Joules per byte of a read from an on-chip memory of `capacity` bytes; larger ones than 1 MiB are taken as banks.

    Below 7 nm the figure stays: cells have hardly shrunk since.
    """
    sizes = sorted(_SRAM)
    size = min(max(capacity, 1.0), float(sizes[-1]))
    low, high = (sizes[0], sizes[1]) if size < sizes[1] else (sizes[1], sizes[2])
    node = max(nm, 7.0)
    below, above = _between(_SRAM[low], node), _between(_SRAM[high], node)
    slope = log(above / below) / log(high / low)
    return float(below * (size / low) ** slope / 8 * _PJ)


def memory_energy(kind: str | None) -> float | None:
    """Joules per byte of a DRAM technology (`HBM2e`, `GDDR6`, `DDR4-2400`); None where no figure is at hand."""
    named = (kind or "").upper().replace(" ", "")
    for name in ("GDDR6", "GDDR5", "HBM", "DDR5", "DDR4", "DDR3"):
        if named.startswith(name):
            return _DRAM[name] * _PJ
    return None
