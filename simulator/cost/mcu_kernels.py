"""Instructions that microcontroller libraries execute for one operator, counted in their inner loops.

Armv7E-M has no 8-bit multiply-accumulate: int8 operands are widened to 16 bits in pairs (SXTB16) and multiplied in
pairs (SMLAD). What a kernel costs is therefore loads, widening, multiplication, and what surrounds the loop: gathering
windows (im2col), and requantising each output.

Sources: CMSIS-NN (arXiv:1801.06601; `arm_nn_mat_mult_kernel_s8_s16.c`, `arm_depthwise_conv_s8_opt.c`,
`arm_nn_vec_mat_mult_t_s8.c`, `arm_nn_mat_mult_nt_t_s8.c`, and the s4 kernels), TinyEngine (arXiv:2007.10319;
`mat_mult_kernels.c`, `depthwiseTemplate.py`), TensorFlow Lite Micro (`reference/integer_ops/conv.h`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from peakline.cost.numeric import Real, ops_for

__all__ = ["FLOAT", "HELIUM", "RUNTIMES", "SCALAR", "Kernels", "Window", "dense", "depthwise", "product", "scalar_work"]


@dataclass(frozen=True)
class Kernels:
    """Instructions of one library on one instruction set.

    Attributes:
        mac: per multiply-accumulate of a blocked matrix product, loads and widening included.
        vector_mac: per multiply-accumulate where one operand is used once (a fully connected layer).
        gather: per element copied and widened into a window buffer (im2col).
        requantise: per output: double-width multiplication, rounding shift, offset, two clamps, store.
        depthwise_mac: per multiply-accumulate of a depthwise convolution.
        by_channel: depthwise convolutions run channel after channel over a copied plane, in place: `move` instructions
            per input element, and strided accesses.
        move: instructions to copy one element with a stride.
        unpack4: additional instructions per multiply-accumulate with packed 4-bit weights.
        executed: instructions executed over those counted in the source.
    """

    mac: float
    vector_mac: float
    gather: float
    requantise: float
    depthwise_mac: float
    by_channel: bool = False
    move: float = 4.0
    unpack4: float = 0.25
    executed: float = 1.0


DSP = Kernels(mac=20 / 16, vector_mac=15 / 8, gather=7 / 4, requantise=20.0, depthwise_mac=24 / 8 + 7 / 4, executed=2.3)
"""CMSIS-NN with the DSP extension. 2 outputs × 2 channels × 4 products: 4 loads, 8 SXTB16, 8 SMLAD. Vector times
matrix, 2 rows × 4: 3 loads, 6 SXTB16, 4 SMLAD, 2 of loop. Gathering 4: load, 2 SXTAB16, 2 packs, 2 stores. Depthwise,
4 channels × 2 taps: 6 loads, 4 SXTB16, 6 packs, 4 SMLAD, 4 of addresses and loop, and the gathering of each tap. 4-bit
weights: 4 more shifts and masks for 16 products. As TensorFlow Lite Micro calls the library, the counted loops explain
less than half of what is measured; `executed` is fitted (docs/microcontrollers.md)."""

TINY = Kernels(mac=20 / 16, vector_mac=15 / 8, gather=7 / 4, requantise=20.0, depthwise_mac=0.0, by_channel=True)
"""TinyEngine: the same products, unrolled; depthwise by channel (`depthwise`)."""

CUBE = replace(TINY, executed=1.05)
"""X-CUBE-AI: its source is closed; it is taken to run TinyEngine's kernels, with one fitted factor."""

SCALAR = Kernels(mac=6.0, vector_mac=6.0, gather=4.0, requantise=30.0, depthwise_mac=6.0, unpack4=2.0)
"""Cores without SIMD: 2 loads, multiply, add, 2 of loop; eight low registers leave no room for blocks."""

HELIUM = Kernels(
    mac=12 / 64, vector_mac=20 / 64, gather=1 / 8, requantise=3.5, depthwise_mac=9 / 16 + 1 / 8, unpack4=0.1
)
"""CMSIS-NN with the M-profile vector extension: 4 rows × 16 products in 5 loads, 4 VMLADAVA, 3 of loop; vector times
matrix reloads rows; depthwise, 4 channels × 4 outputs: 5 loads, 4 VMLA; requantising 4 outputs: 14."""

FLOAT = Kernels(mac=5.0, vector_mac=5.0, gather=4.0, requantise=4.0, depthwise_mac=5.0)
"""float32 on a scalar unit: 2 loads, multiply-add, 2 of loop."""

REFERENCE_MAC = 72.0
"""Instructions of TensorFlow Lite Micro's reference kernels per multiply-accumulate: two `Offset()` of four-dimensional
shapes, bounds checks, two loads, product. Fitted."""

REFERENCE = Kernels(
    mac=REFERENCE_MAC, vector_mac=8.0, gather=0.0, requantise=30.0, depthwise_mac=REFERENCE_MAC, unpack4=4.0
)

RUNTIMES = {"tflm": REFERENCE, "cmsis-nn": DSP, "x-cube-ai": CUBE, "tinyengine": TINY}
"""Kernels of each runtime on a core with the DSP extension."""


@dataclass(frozen=True)
class Window:
    """Sizes of a convolution: outputs are `batch` · `space` positions of `channels` channels, `taps` taps in each."""

    batch: Real
    channels: Real
    narrow: Real
    taps: Real
    in_space: Real
    space: Real


def product(k: Kernels, batch: Real, m: Real, n: Real, depth: Real, *, four_bit: bool = False) -> Real:
    """Instructions of `batch` products of m × depth by depth × n: multiply-accumulates and requantisation.

    A single row (m = 1) reuses no weight: `vector_mac`.
    """
    ops = ops_for(batch, m, n, depth)
    each = ops.where(m > 1.0, k.mac, k.vector_mac) + (k.unpack4 if four_bit else 0.0)
    return batch * m * n * (depth * each + k.requantise)


def dense(k: Kernels, w: Window, *, four_bit: bool = False) -> Real:
    """Instructions of a convolution over all input channels: windows gathered once per position, then the product."""
    positions = w.batch * w.space
    depth = w.narrow * w.taps
    return positions * depth * k.gather + product(k, 1.0, positions, w.channels, depth, four_bit=four_bit)


def depthwise(k: Kernels, w: Window, *, four_bit: bool = False) -> Real:
    """Instructions of a depthwise convolution.

    By channel (TinyEngine, arXiv:2007.10319 §3.2), a row of √taps taps for two neighbouring outputs loads √taps + 1
    inputs and √taps weights for 2·√taps products: (4·√taps + 1) / (2·√taps) per product; each input element is moved
    once into the plane.
    """
    outputs = w.batch * w.channels * w.space
    extra = k.unpack4 if four_bit else 0.0
    if not k.by_channel:
        return outputs * (w.taps * (k.depthwise_mac + extra) + k.requantise)
    side = ops_for(w.taps).sqrt(w.taps)
    each = (4.0 * side + 1.0) / (2.0 * side) + extra
    return outputs * (w.taps * each + k.requantise) + w.batch * w.channels * w.in_space * k.move


def scalar_work(k: Kernels, reads: Real, writes: Real) -> Real:
    """Instructions of an addition, a pooling or a copy over bytes: one load each, and a requantised output."""
    return 2.0 * reads + 0.5 * k.requantise * writes
