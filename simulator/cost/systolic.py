"""Cycles and edge traffic of a matrix product on a systolic array of R × C multiply-accumulators.

One operand (or the result) stays in the array while the others stream through it skewed by a cycle per row and column.
A product that is larger than the array is cut into *folds*. With the stationary matrix [k, n] (weights), [k, m]
(inputs) or [m, n] (results), folds and the length of the stream T of each are

    weight stationary:  ⌈k/R⌉·⌈n/C⌉ folds of T = m
    input stationary:   ⌈k/R⌉·⌈m/C⌉ folds of T = n
    output stationary:  ⌈m/R⌉·⌈n/C⌉ folds of T = k

An array without a second set of registers loads R rows, streams T, and drains the skew: 2R + C + T − 2 cycles a fold
(results that accumulate in place need no loading: R + C + T − 2). One with a second set loads the next fold behind the
present one: max(T, R) cycles a fold, and the skew once.

References:
    [1] A. Samajdar et al., "SCALE-Sim: systolic CNN accelerator simulator", arXiv:1811.02883, eq. 1-4.
    [2] N. Jouppi et al., "In-datacenter performance analysis of a tensor processing unit", ISCA 2017, §2 (weights are
        double-buffered).
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

from peakline.cost.numeric import Real, ops_for

__all__ = [
    "Dataflow",
    "EdgeTraffic",
    "Folds",
    "edge_traffic",
    "folds",
    "overlapped_cycles",
    "serial_cycles",
]

Dataflow: TypeAlias = Literal["weight stationary", "input stationary", "output stationary"]


class Folds(NamedTuple):
    """How often the array is filled (`number`), and how many cycles the moving operand streams each time."""

    number: Real
    stream: Real


class EdgeTraffic(NamedTuple):
    """Elements that cross the edges of the array, from and to its scratchpad."""

    inputs: Real
    weights: Real
    results: Real


def folds(m: Real, n: Real, k: Real, rows: int, columns: int, dataflow: Dataflow) -> Folds:
    """Folds of C[m,n] = A[m,k]·B[k,n], and the stream of each; see the module's docstring."""
    ops = ops_for(m, n, k)
    down, across, stream = {
        "weight stationary": (k, n, m),
        "input stationary": (k, m, n),
        "output stationary": (m, n, k),
    }[dataflow]
    return Folds(ops.ceil(down / rows) * ops.ceil(across / columns), stream)


def serial_cycles(m: Real, n: Real, k: Real, rows: int, columns: int, dataflow: Dataflow) -> Real:
    """Cycles when every fold waits for the one before it to drain ([1]; SCALE-Sim counts the first cycle as 0)."""
    count, stream = folds(m, n, k, rows, columns, dataflow)
    load = 0 if dataflow == "output stationary" else rows
    return count * (load + rows + columns + stream - 2)


def overlapped_cycles(
    m: Real, n: Real, k: Real, rows: int, columns: int, dataflow: Dataflow, *, batch: Real = 1.0, arrays: int = 1
) -> Real:
    """Cycles of `batch` products shared out over `arrays` arrays that load the next fold behind the present one ([2]).

    A fold occupies an array for max(T, R) cycles; where there are fewer folds than arrays, they are cut along the
    stream, but never below R cycles. The skew, R + C, is paid once.
    """
    count, stream = folds(m, n, k, rows, columns, dataflow)
    ops = ops_for(count, stream, batch)
    passes = batch * count
    cycles = ops.maximum(ops.ceil(passes / arrays) * float(rows), passes * ops.maximum(stream, float(rows)) / arrays)
    return cycles + float(rows + columns)


def edge_traffic(m: Real, n: Real, k: Real, rows: int, columns: int, dataflow: Dataflow) -> EdgeTraffic:
    """Elements read into and written out of the array ([1]): what is stationary once, what streams once per fold.

    Results of the weight- and input-stationary dataflows leave as partial sums, once per fold of k.
    """
    ops = ops_for(m, n, k)
    if dataflow == "weight stationary":
        return EdgeTraffic(m * k * ops.ceil(n / columns), k * n, m * n * ops.ceil(k / rows))
    if dataflow == "input stationary":
        return EdgeTraffic(m * k, k * n * ops.ceil(m / columns), m * n * ops.ceil(k / rows))
    return EdgeTraffic(m * k * ops.ceil(n / columns), k * n * ops.ceil(m / rows), m * n)
