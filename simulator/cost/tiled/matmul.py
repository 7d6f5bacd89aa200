"""Traffic of the tiled matrix product: every tile of C reads its rows of A and its columns of B.

    for each tile of C, ROWS × COLS                 ⌈m/ROWS⌉·⌈n/COLS⌉ programs
        for each slice of k, STEP wide
            load ROWS × STEP of A, STEP × COLS of B
        store the tile

A row of A is read by the ⌈n/COLS⌉ tiles beside each other, a column of B by the ⌈m/ROWS⌉ below each other; STEP decides
nothing but the size of what lies on the chip. Ragged edges are masked, so that the sums are exact:

    loads = a·m·k·⌈n/COLS⌉ + b·k·n·⌈m/ROWS⌉ (+ bias·n·⌈m/ROWS⌉),  stores = c·m·n.

With one accumulator tile on the chip this is the schedule of J.-W. Hong, H. T. Kung (STOC 1981) whose square block of
results attains 2mnk/√S (`peakline.cost.io_bounds.matmul_traffic`).

`peakline.cost.gpu_gemm` prices the same loop nest and differs in three ways, all on purpose: it counts what leaves L2,
so blocks of one cluster that share a fetch (TMA multicast, from compute capability 9.0) count once; it counts
whole tiles on ragged edges, because the time of a step does not shrink with its mask; and main memory sees only what L2
cannot hold between waves. Without clusters, splits and ragged edges the two agree to the byte, and a test says so.
"""

from __future__ import annotations

from peakline.cost.tiled.traffic import Traffic, ceil_div

__all__ = ["dequantised_matmul", "dequantised_matmul_footprint", "matmul", "matmul_footprint"]


def matmul(
    m: int,
    n: int,
    k: int,
    *,
    rows: int,
    cols: int,
    a: int,
    b: int,
    c: int,
    bias: int = 0,
    split_k: int = 1,
) -> Traffic:
    """Bytes of C[m,n] = activation(A[m,k]·B[k,n] + bias[n]).

    Args:
        m, n, k: sizes.
        rows, cols: the tile of C that one program computes.
        a, b, c: bytes of one element.
        bias: bytes of one element of the bias, 0 without one. Every tile loads its columns of it; of several slices
            of k the first alone does.
        split_k: slices of k. Each slice adds its partial sums to C atomically, a read and a write of c bytes an
            element. (C is filled with zeros before, m·n·c bytes that are not counted here.)
    """
    down, across = ceil_div(m, rows), ceil_div(n, cols)
    loads = {"a": a * m * k * across, "b": b * k * n * down, "bias": bias * n * down}
    stored = c * m * n * split_k
    return Traffic(loads | {"c": stored if split_k > 1 else 0}, {"c": stored})


def matmul_footprint(rows: int, cols: int, step: int, *, a: int, b: int, accumulator: int = 4) -> int:
    """Bytes that one program holds: a tile of A, one of B, and the accumulators (float32 unless said otherwise)."""
    return a * rows * step + b * step * cols + accumulator * rows * cols


def dequantised_matmul(
    m: int, n: int, k: int, *, rows: int, cols: int, step: int, x: int, y: int, scale: int
) -> Traffic:
    """Bytes of Y[m,n] = X[m,k]·dequantised(W)[n,k]ᵀ with 4-bit weights and a scale per row and group of k.

    The matmul's loop nest. Two weights share a byte, so that a row of W is k/2 bytes; every step of k reads one scale
    for each of its columns of Y, hence ⌈k/STEP⌉ scales a column, of which those of one group are the same.
    The layout is that of AWQ and GPTQ, group-wise symmetric (E. Frantar et al., arXiv:2210.17323; J. Lin et al.,
    arXiv:2306.00978).

    Args:
        step: elements of k in a step; divides the group.
        x, y, scale: bytes of one element.
    """
    down, across = ceil_div(m, rows), ceil_div(n, cols)
    loads = {
        "x": x * m * k * across,
        "packed": n * (k // 2) * down,
        "scales": scale * n * ceil_div(k, step) * down,
    }
    return Traffic(loads, {"y": y * m * n})


def dequantised_matmul_footprint(rows: int, cols: int, step: int, *, x: int, scale: int) -> int:
    """Bytes that one program holds: a tile of X, the packed weights and their scales, and float32 accumulators."""
    return x * rows * step + cols * step // 2 + scale * cols + 4 * rows * cols
