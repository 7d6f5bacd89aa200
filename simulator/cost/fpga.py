"""Matrix products on programmable logic: DSP blocks as a grid of processing elements.

Reference: C. Zhang et al., "Optimizing FPGA-based accelerator design for deep convolutional neural networks", FPGA
2015: unroll output and input channels by Tm × Tn, whose ceilings are the computational roof's losses (eq. 3-4).
"""

from __future__ import annotations

from peakline.cost.machine import Machine
from peakline.cost.numeric import Real, ops_for
from peakline.models.dtypes import DType

__all__ = ["product_seconds"]

UNROLL = 16.0
"""Unrolling of output and input channels in an overlay's processing element; 16 × 16 in Xilinx's DPU overlays."""


def product_seconds(machine: Machine, batch: Real, m: Real, n: Real, k: Real, kind: DType) -> Real:
    """Seconds of `batch` products with n and k rounded up to the unrolling, at the peak of all DSP blocks."""
    ops = ops_for(batch, m, n, k)
    peak, _, _ = machine.rate(kind)
    return 2.0 * batch * m * (ops.ceil(n / UNROLL) * UNROLL) * (ops.ceil(k / UNROLL) * UNROLL) / peak
