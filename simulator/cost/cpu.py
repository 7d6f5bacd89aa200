"""Matrix products on processor cores: register blocks shared out over cores.

References:
    [1] K. Goto, R. van de Geijn, "Anatomy of high-performance matrix multiplication", ACM TOMS 34 (2008).
    [2] F. Van Zee, R. van de Geijn, "BLIS: a framework for rapidly instantiating BLAS functionality", TOMS 41 (2015).
"""

from __future__ import annotations

from peakline.cost.machine import Machine
from peakline.cost.numeric import Real, ops_for
from peakline.models.dtypes import DType

__all__ = ["packing_seconds", "product_seconds", "start_seconds", "streamed_seconds"]

BLOCK_ROWS, BLOCK_COLS = 8.0, 32.0
"""Rows and columns of C held in vector registers: 6×16 to 14×32 in BLIS's kernels for AVX2, AVX-512 and Neon [2]."""


def product_seconds(machine: Machine, batch: Real, m: Real, n: Real, k: Real, kind: DType) -> Real:
    """Seconds of `batch` products: whole register blocks, in whole rounds over the cores.

        ⌈batch·⌈m/8⌉·⌈n/32⌉ / cores⌉ · 2·8·32·k / (peak/cores)

    A product of one row or column streams instead of blocking, so its m (or n) is not rounded up.
    """
    ops = ops_for(batch, m, n, k)
    peak, _, _ = machine.rate(kind)
    down = ops.where(m < BLOCK_ROWS, 1.0, ops.ceil(m / BLOCK_ROWS))
    across = ops.where(n < BLOCK_COLS, 1.0, ops.ceil(n / BLOCK_COLS))
    block = ops.minimum(ops.maximum(m, 1.0), BLOCK_ROWS) * ops.minimum(ops.maximum(n, 1.0), BLOCK_COLS)
    blocks = batch * down * across
    rounds = ops.maximum(ops.ceil(blocks / machine.units) * machine.units, blocks)
    # fewer blocks than cores: libraries cut k as well
    rounds = ops.where(blocks < machine.units, blocks, rounds)
    return rounds * block * 2.0 * k / peak


def packing_seconds(
    machine: Machine, batch: Real, m: Real, n: Real, k: Real, a: Real, b: Real, c: Real, kind: DType
) -> Real:
    """Seconds of laying both operands out in panels before they are multiplied: read and written once each ([1], §4).

    A product with a vector reads its matrix where it is. `a`, `b`, `c`: bytes of one element. A calibrated machine may
    say at which rate its library packs (`gemm.panels_fp32`, bytes/s): fewer cores pack than multiply.
    """
    ops = ops_for(batch, m, n, k)
    packed = ops.where(ops.minimum(m, n) > 1.0, batch * (a * m * k + b * k * n), 0.0)
    return packed / machine.attainable.get(f"gemm.panels_{kind.name}", machine.supply)


def streamed_seconds(machine: Machine, moved: Real, m: Real, n: Real) -> Real:
    """Seconds of the bytes of a product: from all cores, or as many as a product with a vector gets.

    Cores keep a limited number of cache lines on their way (Little's law), so a library that gives a product with a
    vector to one core sees that core's share of the bandwidth: `gemm.vector` in bytes/s, where a calibration says so.
    """
    alone = machine.attainable.get("gemm.vector")
    if alone is None:
        return moved / machine.supply
    ops = ops_for(moved, m, n)
    return moved / ops.where(ops.minimum(m, n) > 1.0, machine.supply, min(alone, machine.supply))


def start_seconds(machine: Machine, kind: DType) -> float:
    """Seconds to start a product: a library's own in a format (`gemm.start_bf16`), else an operator's."""
    return float(machine.attainable.get(f"gemm.start_{kind.name}", machine.launch or 0.0))
