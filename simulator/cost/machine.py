"""A device reduced to the plain figures that cost formulas read: counts, rates in SI units, capacities in bytes.

`machine(device)` reads them once from a `peakline.hardware.Device`; formulas then touch floats only. A `Machine` can
also be written by hand, which is how tests scale one rate at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from peakline.cost.mcu import Micro, micro_of
from peakline.cost.pim import Banks, banks_of
from peakline.models.dtypes import DType

__all__ = ["POWER_AT_1GHZ", "Level", "Machine", "machine", "sustained_fraction"]

POWER_AT_1GHZ = 0.275e-12
"""Joules per dense 16-bit matrix FLOP at 1 GHz, whole board; rises with clock² (voltage follows clock).

See `sustained_fraction`. Fitted on the H100 and A100 rows of aiconfigurator 0.12's GEMM table."""


BUS_BYTES = 4
"""Bytes per cycle between a microcontroller's core and its SRAM where no bandwidth is published: the 32-bit AHB of
Arm Cortex-M (Armv7-M Architecture Reference Manual)."""


@dataclass(frozen=True)
class Level:
    """A level of memory: `capacity` bytes in all (None unknown), `private` if each unit has its own part of it.

    `bandwidth` is bytes/s over the whole device, None where nobody publishes it.
    """

    name: str
    capacity: float | None
    bandwidth: float | None = None
    private: bool = False


@dataclass(frozen=True, eq=False)
class Machine:
    """What a cost formula may know of a device. Rates per second over the whole device; None where unknown.

    Attributes:
        name, kind: of the device (`gpu`, `npu`, `pim`, `fpga`, `mcu`, `cpu`).
        units: compute units (SMs, cores, ...).
        clock: hertz.
        matrix, vector: peak operations/s by number format of the matrix engine and of the ordinary units.
        levels: memory from nearest to `main`, inclusive.
        sustained: fraction of the matrix peak that the power limit allows (`sustained_fraction`).
        capability: NVIDIA compute capability, (0, 0) for others.
        shared: bytes of software-managed memory in one unit.
        launch: seconds between the starts of consecutive empty kernels, if measured for this device.
        array: rows and columns of one systolic array, and how many there are; None if there is none.
        dataflow: which operand waits in the arrays, as the device file says; "" if it does not.
        attainable: calibrated constants by kind of kernel (`gemm.main_share`, `peakline.cost.gpu.constants`), empty if
            uncalibrated.
        banks: what products beside memory banks depend on (PIM), None elsewhere.
        micro: core, library and memories of a microcontroller whose kernels are described, None elsewhere.
    """

    name: str
    kind: str
    units: int
    clock: float
    matrix: Mapping[str, float]
    vector: Mapping[str, float]
    levels: tuple[Level, ...]
    sustained: float = 1.0
    capability: tuple[int, int] = (0, 0)
    shared: float = 0.0
    launch: float | None = None
    array: tuple[int, int, int] | None = None
    dataflow: str = ""
    attainable: Mapping[str, float] = field(default_factory=dict)
    banks: Banks | None = None
    micro: Micro | None = None

    @property
    def main(self) -> Level:
        """The level that holds tensors."""
        return self.levels[-1]

    @cached_property
    def bandwidth(self) -> float:
        """Bytes/s of main memory. Raises ValueError where unknown."""
        if not self.main.bandwidth:
            raise ValueError(f"{self.name}: memory.{self.main.name}.bandwidth is unknown, so no time can be computed")
        return self.main.bandwidth

    @cached_property
    def supply(self) -> float:
        """Bytes/s at which main memory can feed arithmetic: inside the banks for processing in memory."""
        return max(self.bandwidth, self.banks.inside if self.banks else 0.0)

    @cached_property
    def cache(self) -> Level | None:
        """The last shared level before main memory (a GPU's L2), None if there is none."""
        near = [level for level in self.levels[:-1] if not level.private]
        return near[-1] if near else None

    @cached_property
    def private_bytes(self) -> float:
        """Bytes of fast memory in one unit (registers, shared memory), 0 if unknown."""
        return sum((level.capacity or 0.0) for level in self.levels[:-1] if level.private) / max(self.units, 1)

    @cached_property
    def onchip_bytes(self) -> float:
        """Bytes of all memory nearer than main memory, 0 if unknown."""
        return sum((level.capacity or 0.0) for level in self.levels[:-1])

    def rate(self, kind: DType | str) -> tuple[float, str, bool]:
        """Peak operations/s of products in a format, the format they run in, and whether the matrix engine runs them.

        A format that the device cannot multiply is widened (`nvfp4`→fp8→bf16, `int4-g128`→bf16, bf16→fp32), as
        libraries do. fp32 runs on the vector units: PyTorch leaves TF32 off for matmuls by default.

        Raises:
            ValueError: if the device multiplies in none of the formats that could hold it.
        """
        name = str(kind)
        for candidate in _WIDENED.get(name, (name, "fp32", "fp16")):
            if candidate in self.matrix:
                return self.matrix[candidate], candidate, True
            if candidate in self.vector:
                return self.vector[candidate], candidate, False
        known = ", ".join(sorted({*self.matrix, *self.vector})) or "none"
        raise ValueError(f"{self.name} cannot multiply in {name!r} nor in a wider format; it computes in: {known}")

    def vector_rate(self, kind: DType | str) -> float:
        """Peak scalar operations/s of the ordinary units in a format, widened to fp32 where needed.

        Falls back to the slowest matrix rate for a device that lists no vector rates.
        """
        name = str(kind)
        for candidate in _VECTOR.get(name, (name, "fp32", "int32")):
            if candidate in self.vector:
                return self.vector[candidate]
        rates = list(self.vector.values()) or list(self.matrix.values())
        if not rates:
            raise ValueError(f"{self.name} does not compute: it lists no peak rates")
        return min(rates)


_FLOAT16 = ("bf16", "fp16", "fp32")
_WIDENED: dict[str, tuple[str, ...]] = {
    "fp64": ("fp64",),
    "fp32": ("fp32", "tf32", "fp16", "bf16", "int8"),
    "tf32": ("tf32", "fp32"),
    "bf16": _FLOAT16,
    "fp16": ("fp16", "bf16", "fp32"),
    "fp8": ("fp8", *_FLOAT16, "int8"),
    "mxfp8": ("fp8", *_FLOAT16),
    "adam8bit": ("fp32",),
    "nvfp4": ("fp4", "fp8", *_FLOAT16),
    "mxfp4": ("fp4", "fp8", *_FLOAT16),
    "int4": ("int4", "int8", *_FLOAT16),
    "int4-g128": _FLOAT16,
    "nf4": _FLOAT16,
    "nf4-dq": _FLOAT16,
    "int8": ("int8", "int16", "int32", "fp16", "fp32"),
    "uint8": ("int8", "int16", "int32", "fp16", "fp32"),
    "int16": ("int16", "int32", "fp32", "int8"),
    "int32": ("int32", "fp32", "int8"),
    "int64": ("int32", "fp32", "int8"),
    "bool": ("int8", "int32", "fp32"),
}
_VECTOR: dict[str, tuple[str, ...]] = {
    # elementwise kernels compute 16- and 8-bit floats in fp32 registers
    **dict.fromkeys(("bf16", "fp16", "fp8", "mxfp8", "tf32", "nvfp4", "mxfp4", "nf4", "adam8bit"), ("fp32", "fp16")),
    "int64": ("int32", "fp32"),
    "int8": ("int8", "int32", "fp32"),
    "uint8": ("int8", "int32", "fp32"),
    "bool": ("int32", "fp32", "int8"),
}


def sustained_fraction(tdp: float | None, matrix: Mapping[str, float], clock: float) -> float:
    """Fraction of the matrix peak that a board can keep up within its power limit.

    Dynamic power is C·V²·f and voltage follows clock, so running at the peak's clock f needs about
    P = e·f²·peak with e the energy of one FLOP at 1 GHz (`POWER_AT_1GHZ`); where P exceeds the limit, the clock falls
    until P·(f'/f)³ = TDP, so the rate falls to (TDP/P)^(1/3) of peak (Burd & Brodersen, "Processor design for portable
    systems", 1996: energy per operation scales with V², power with V³). Narrower formats do proportionally
    more operations in the same power, so the 16-bit rate speaks for all of them.

    Returns 1 where the TDP or a 16-bit rate is unknown.
    """
    peak = matrix.get("bf16") or matrix.get("fp16")
    if not tdp or not peak or not clock:
        return 1.0
    needed = POWER_AT_1GHZ * (clock / 1e9) ** 2 * peak
    return float(min(1.0, (tdp / needed) ** (1 / 3)))


_built: dict[int, tuple[Any, Machine]] = {}


def machine(device: Any) -> Machine:
    """The plain figures of a `peakline.hardware.Device`; a `Machine` passes through. Remembered per object.

    Where main memory's bandwidth is unpublished, a microcontroller's SRAM is taken to move `BUS_BYTES` per cycle, and
    an accelerator's to feed both edges of its arrays a byte per cycle (SCALE-Sim, arXiv:1811.02883, §2).

    Raises:
        ValueError: if the device does not compute (a drive, a link), or its unit count, clock or main memory's
            bandwidth is unknown in a way no fallback covers.
    """
    if isinstance(device, Machine):
        return device
    known = _built.get(id(device))
    if known is not None and known[0] is device:
        return known[1]
    if len(_built) > 256:
        _built.clear()
    found = _read(device)
    _built[id(device)] = (device, found)
    return found


def _read(device: Any) -> Machine:
    if device.compute is None or not (device.rates("matrix") or device.rates("vector")):
        raise ValueError(f"{device.name} is a {device.kind} and does not compute; choose a device that does")
    units = device.units or 1
    clock = device.clock or 1e9
    levels = tuple(_level(level, units) for level in (*device.onchip, device.main))
    if device.kind == "mcu" and levels[-1].bandwidth is None:
        levels = (*levels[:-1], replace(levels[-1], bandwidth=BUS_BYTES * clock))
    matrix = device.rates("matrix")
    array = _array(device, units, clock, matrix)
    if array is not None and levels[-1].bandwidth is None:
        levels = (*levels[:-1], replace(levels[-1], bandwidth=float((array[0] + array[1]) * array[2]) * clock))
    shared = device.memory.get("shared")
    return Machine(
        name=device.name,
        kind=device.kind,
        units=units,
        clock=clock,
        matrix=matrix,
        vector=device.rates("vector"),
        levels=levels,
        sustained=sustained_fraction(device.tdp, matrix, clock) if device.kind == "gpu" else 1.0,
        capability=device.compute_capability or (0, 0),
        shared=float((shared and shared.capacity_per_unit) or 0.0),
        launch=device.software.launch_seconds,
        array=array,
        dataflow=(device.npu.dataflow or "") if device.npu else "",
        attainable=device.calibration.fitted if device.calibration else {},
        micro=micro_of(device),
        banks=banks_of(device.pim, levels[-1].bandwidth, units) if device.pim else None,
    )


def _level(level: Any, units: int) -> Level:
    private = level.capacity_per_unit is not None
    capacity = level.capacity if level.capacity is not None else (level.capacity_per_unit or 0) * units or None
    bandwidth = level.bandwidth
    if bandwidth is None and level.bandwidth_per_unit is not None:
        bandwidth = level.bandwidth_per_unit * units
    if bandwidth is None:
        bandwidth = level.read_bandwidth
    return Level(level.name, None if capacity is None else float(capacity), bandwidth, private)


def _array(device: Any, units: int, clock: float, matrix: Mapping[str, float]) -> tuple[int, int, int] | None:
    """Rows, columns and number of systolic arrays.

    Where the file does not say how many arrays a unit has, the peak does: peak / (2·rows·columns·clock). Without a
    shape, one square array per unit, of the peak's size.
    """
    if device.npu is None:
        return None
    peak = min((rate for name, rate in matrix.items() if name in ("bf16", "fp16", "int16", "int8")), default=0.0)
    rows, columns, each = device.npu.array_rows, device.npu.array_columns, device.npu.arrays_per_unit
    if rows and columns:
        count = units * each if each else round(peak / (2 * rows * columns * clock))
        return rows, columns, max(count, 1)
    count = units * (each or 1)
    side = round((peak / (2 * clock * count)) ** 0.5)
    return (side, side, count) if side >= 1 else None
