"""Matrix products on systolic arrays (TPU, Inferentia, Edge TPU): array quantisation, filling and draining.

References:
    [1] N. Jouppi et al., "In-datacenter performance analysis of a tensor processing unit", ISCA 2017.
    [2] A. Samajdar et al., "SCALE-Sim: systolic CNN accelerator simulator", arXiv:1811.02883, eq. 1-4.
"""

from __future__ import annotations

from peakline.cost.machine import Machine
from peakline.cost.numeric import Real, ops_for
from peakline.models.dtypes import DType

__all__ = ["product_seconds"]


def product_seconds(machine: Machine, batch: Real, m: Real, n: Real, k: Real, kind: DType) -> Real:
    """Seconds of `batch` products [m,k]·[k,n] on weight-stationary arrays of R × C multiply-accumulators.

    A pass holds an R × C piece of the weights while m rows stream through: max(m, R) cycles, because the next weights
    load behind in R cycles ([1], double-buffered weights). ⌈k/R⌉·⌈n/C⌉·batch passes go round the arrays; filling and
    draining cost R + C once ([2]). Formats faster than the array's own shape (int8 on a bf16 array) scale the clock's
    work per cycle, read from the peak. Without an array, the peak itself.
    """
    peak, _, _ = machine.rate(kind)
    if machine.array is None:
        return 2.0 * batch * m * n * k / peak
    rows, cols, arrays = machine.array
    ops = ops_for(batch, m, n, k)
    pace = peak / (2.0 * rows * cols * arrays * machine.clock)
    passes = batch * ops.maximum(ops.ceil(k / rows), 1.0) * ops.maximum(ops.ceil(n / cols), 1.0)
    # passes fewer than arrays are cut along m
    cycles = ops.maximum(
        ops.ceil(passes / arrays) * float(rows),
        passes * ops.maximum(m, float(rows)) / arrays,
    )
    return (cycles / pace + float(rows + cols)) / machine.clock
