"""Time on a microcontroller: instructions of the library's kernels, cycles of the core, stalls of its memories.

    cycles = instructions · CPI + line fills · fill + flash bytes · wait / line

An in-order core hides nothing, so the terms add. Instructions are counted in the libraries' sources
(`peakline.cost.mcu_kernels`); cycles per instruction belong to the core, once; stalls to the device's memories.

References: L. Lai, N. Suda, V. Chandra, "CMSIS-NN: efficient neural network kernels for Arm Cortex-M CPUs",
arXiv:1801.06601; J. Lin et al., "MCUNet: tiny deep learning on IoT devices", arXiv:2007.10319.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from peakline.cost import mcu_kernels as kernels
from peakline.cost.mcu_kernels import Kernels, Window
from peakline.cost.numeric import Real, ops_for
from peakline.models.dtypes import DType

__all__ = [
    "CORES",
    "FITTED",
    "Constants",
    "Core",
    "Micro",
    "Window",
    "convolution",
    "micro_of",
    "product_seconds",
    "products",
    "stream",
]

SIMD_PAIR = 2.0
"""Products of one SMLAD instruction (Armv7E-M Architecture Reference Manual)."""

CACHE_LINE = 32.0
"""Bytes of a Cortex-M7 or M85 data cache line (Technical Reference Manuals)."""


@dataclass(frozen=True)
class Core:
    """A processor core.

    Attributes:
        isa: `dsp` (16-bit pairs), `helium` (128-bit vectors), `scalar`.
        macs: int8 multiply-accumulates per cycle at peak, which the device files state as its rate.
        cpi: cycles per instruction of compiled kernels whose data are in the nearest memory.
    """

    isa: str
    macs: float
    cpi: float


CORES = {
    "Arm Cortex-M0+": Core("scalar", 1.0, 8 / 6),
    "Arm Cortex-M4": Core("dsp", 2.0, 1.15),
    "Arm Cortex-M33": Core("dsp", 2.0, 0.97),
    "Arm Cortex-M7": Core("dsp", 2.0, 0.63),
    "Arm Cortex-M85": Core("helium", 8.0, 2.0),
}
"""Cycles per instruction. M0+: two loads of two cycles among six instructions (Technical Reference Manual). M85: a
128-bit instruction takes two beats (Technical Reference Manual). M4, M33 and M7 (dual issue): fitted."""

LINE_FILL = 12.0
"""Bus clocks to bring one cache line from on-chip SRAM: four beats of 64 bits and the way there and back. Fitted."""


@dataclass(frozen=True)
class Constants:
    """What was fitted (docs/microcontrollers.md), so that it can be fitted again on other rows.

    Attributes:
        cores: by name.
        fill: bus clocks of a cache line fill.
        libraries: kernels of each runtime on a core with the DSP extension.
    """

    cores: Mapping[str, Core] = field(default_factory=lambda: CORES)
    fill: float = LINE_FILL
    libraries: Mapping[str, Kernels] = field(default_factory=lambda: kernels.RUNTIMES)


FITTED = Constants()


@dataclass(frozen=True)
class Micro:
    """What the time model needs of a microcontroller.

    Attributes:
        core: the processor core.
        runtime: the inference library.
        library: its kernels on a core with the DSP extension.
        cache: bytes of data cache.
        fill: cycles of a line fill from SRAM, 0 without a cache.
        flash_per_byte: cycles that reading weights from flash waits for each byte; 0 with a data cache, whose line
            fills run ahead of a sequential reader.
    """

    core: Core
    runtime: str
    library: Kernels
    cache: float
    fill: float
    flash_per_byte: float

    def kernels(self, kind: DType) -> Kernels:
        """The kernels that the runtime executes in a format."""
        if kind.is_float:
            return kernels.FLOAT
        if self.core.isa != "dsp" and self.runtime != "tflm":
            return kernels.HELIUM if self.core.isa == "helium" else kernels.SCALAR
        return self.library


def micro_of(device: Any, constants: Constants = FITTED) -> Micro | None:
    """The time model's figures of a device; None where it is no microcontroller, or core or library are not known."""
    section = device.mcu
    core = constants.cores.get(section.core) if section is not None else None
    library = constants.libraries.get(section.runtime) if section is not None else None
    if core is None or library is None:
        return None
    cache = float(section.data_cache or 0)
    if cache:
        fill = constants.fill * (section.bus_ratio or 1)
        return Micro(core, section.runtime, library, cache, fill, 0.0)
    return Micro(core, section.runtime, library, 0.0, 0.0, (section.flash_wait or 0) / (section.flash_line or 1))


def products(micro: Micro, batch: Real, m: Real, n: Real, k: Real, kind: DType, weight: DType) -> tuple[Real, Real]:
    """(cycles of instructions, cycles of stalls) of matrix products whose second operand lies in flash."""
    library = micro.kernels(kind)
    found = kernels.product(library, batch, m, n, k, four_bit=weight.bits == 4)
    return found * library.executed * micro.core.cpi, batch * n * k * weight.bits / 8.0 * micro.flash_per_byte


def convolution(micro: Micro, w: Window, groups: Real, kind: DType, weight: DType) -> tuple[Real, Real]:
    """(cycles of instructions, cycles of stalls) of a convolution; depthwise where each channel is its own group.

    A depthwise convolution by channel walks a feature map of interleaved channels with a stride of all of them: where
    the map is larger than the data cache, every element read and every element written back brings a whole line. Dense
    kernels take two positions at a time, and weights larger than the cache come again for each pair.
    """
    ops = ops_for(w.batch, w.channels, w.narrow, w.taps, w.in_space, w.space, groups)
    k = micro.kernels(kind)
    four = weight.bits == 4
    alone = (w.narrow <= 1.0) & (groups > 1.0)
    separate = kernels.depthwise(k, w, four_bit=four)
    joint = kernels.dense(k, w, four_bit=four)
    size = kind.bits / 8.0
    held = w.channels * ops.maximum(w.in_space, w.space) * size
    strided = w.batch * w.channels * (w.in_space + w.space) * micro.fill if k.by_channel else 0.0
    missed = ops.where(alone & (held > micro.cache), strided, 0.0) if micro.cache else 0.0
    weights = w.channels * w.narrow * w.taps * weight.bits / 8.0
    again = ops.where(alone | (weights <= micro.cache), 0.0, w.batch * w.space / 2.0)
    refills = weights * again / CACHE_LINE * micro.fill if k.by_channel else 0.0
    return ops.where(
        alone, separate, joint
    ) * k.executed * micro.core.cpi, missed + refills + weights * micro.flash_per_byte


def stream(micro: Micro, reads: Real, writes: Real, kind: DType) -> tuple[Real, Real]:
    """(cycles of instructions, 0) of additions, poolings and copies."""
    size, library = max(kind.bits, 8) / 8.0, micro.kernels(kind)
    return kernels.scalar_work(library, reads / size, writes / size) * library.executed * micro.core.cpi, 0.0


def product_seconds(machine: Any, batch: Real, m: Real, n: Real, k: Real, kind: DType) -> Real:
    """Seconds of `batch` products at the core's peak MACs per cycle, k rounded up to whole SIMD pairs.

    For cores whose kernels are not described (`micro_of`). Loads are not hidden by an in-order core; `generic` adds
    them.
    """
    ops = ops_for(batch, m, n, k)
    peak = float(machine.rate(kind)[0])
    return 2.0 * batch * m * n * (ops.ceil(k / SIMD_PAIR) * SIMD_PAIR) / peak
