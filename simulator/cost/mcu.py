"""Matrix products on a microcontroller: multiply-accumulates per cycle of one in-order core.

Reference: L. Lai, N. Suda, V. Chandra, "CMSIS-NN: efficient neural network kernels for Arm Cortex-M CPUs",
arXiv:1801.06601: 16-bit SIMD pairs, so k is rounded up to even, and 2 × 2 outputs per pass.
"""

from __future__ import annotations

from peakline.cost.machine import Machine
from peakline.cost.numeric import Real, ops_for
from peakline.models.dtypes import DType

__all__ = ["product_seconds"]

SIMD_PAIR = 2.0
"""Products of one SMLAD instruction (Armv7E-M Architecture Reference Manual)."""


def product_seconds(machine: Machine, batch: Real, m: Real, n: Real, k: Real, kind: DType) -> Real:
    """Seconds of `batch` products at the core's MACs per cycle, k rounded up to whole SIMD pairs.

    Loads are not hidden by an in-order core; `generic` adds them.
    """
    ops = ops_for(batch, m, n, k)
    peak, _, _ = machine.rate(kind)
    return 2.0 * batch * m * n * (ops.ceil(k / SIMD_PAIR) * SIMD_PAIR) / peak
