"""Matrix products on systolic arrays (TPU, Inferentia, Edge TPU): array quantisation, filling and draining.

The array's dataflow decides which operand waits in it (`systolic`). A device whose file names none of the three, a
reconfigurable fabric or a row-stationary array, is given the best of them for each product, as its compiler would.

References:
    [1] N. Jouppi et al., "In-datacenter performance analysis of a tensor processing unit", ISCA 2017.
    [2] A. Samajdar et al., "SCALE-Sim: systolic CNN accelerator simulator", arXiv:1811.02883, eq. 1-4.
"""

from __future__ import annotations

from typing import get_args

from peakline.cost.machine import Machine
from peakline.cost.numeric import Real, ops_for
from peakline.cost.systolic import Dataflow, overlapped_cycles
from peakline.models.dtypes import DType

__all__ = ["product_seconds"]


def product_seconds(machine: Machine, batch: Real, m: Real, n: Real, k: Real, kind: DType) -> Real:
    """Seconds of `batch` products [m,k]·[k,n] on the device's arrays, the next fold loading behind the present one.

    Formats faster than the array's own shape (int8 on a bf16 array) do more work per cycle, read from the peak.
    Without an array, the peak itself.
    """
    peak, _, _ = machine.rate(kind)
    if machine.array is None:
        return 2.0 * batch * m * n * k / peak
    rows, columns, arrays = machine.array
    pace = peak / (2.0 * rows * columns * arrays * machine.clock)
    skew = float(rows + columns)
    ops = ops_for(batch, m, n, k)
    least: Real | None = None
    for dataflow in dataflows(machine):
        cycles = overlapped_cycles(m, n, k, rows, columns, dataflow, batch=batch, arrays=arrays) - skew
        least = cycles if least is None else ops.minimum(least, cycles)
    assert least is not None  # there is at least one dataflow
    return (least / pace + skew) / machine.clock


def dataflows(machine: Machine) -> tuple[Dataflow, ...]:
    """The dataflow the device is built for, or all three."""
    known: tuple[Dataflow, ...] = get_args(Dataflow)
    return tuple([d for d in known if d == machine.dataflow]) or known
