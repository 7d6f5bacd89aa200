"""Matrix products beside the memory banks: every row of A streams the matrix out of the banks again.

Reference: S. Lee et al., "Hardware architecture and software stack for PIM based on commercial DRAM technology", ISCA
2021: units beside the banks multiply a vector by a matrix at the banks' own bandwidth and keep no matrix.
"""

from __future__ import annotations

from peakline.cost.machine import Machine
from peakline.cost.numeric import Real, ops_for
from peakline.models.dtypes import DType

__all__ = ["product_seconds"]


def product_seconds(machine: Machine, batch: Real, m: Real, n: Real, k: Real, kind: DType) -> Real:
    """Seconds of `batch` products: the slower of the units' arithmetic and m passes over k·n elements in the banks.

    The bank bandwidth is the main memory's where a device states none of its own.
    """
    peak, _, _ = machine.rate(kind)
    passes = batch * m * n * k * (kind.bits / 8.0) / machine.supply
    return ops_for(batch, m, n, k).maximum(2.0 * batch * m * n * k / peak, passes)
