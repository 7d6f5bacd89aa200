"""How PyTorch's CUDA kernels walk the rows they reduce: threads per row, passes, and rounds of loads per pass.

Each function returns the keyword arguments of `Stream` that describe one launch over `rows` rows of `n` elements.
Sources: aten/src/ATen/native/cuda/ SoftMax.cu, PersistentSoftmax.cuh and layer_norm_kernel.cu.
"""

from __future__ import annotations

from typing import Any

from peakline.models.dims import Dim, ceil_div, minimum, round_up
from peakline.models.dtypes import DType

__all__ = ["layer_norm_rows", "softmax_backward_rows", "softmax_rows"]

WARP = 32
WARP_ROW = 1024
"""Longest row that one warp keeps in its registers (`dim_size <= 1024 && dim_size*sizeof(scalar_t) <= 4096`)."""
VECTOR_BYTES = 16
"""Bytes of one load by one thread (`sizeof(float4)`)."""
STAGING_BYTES = 48 * 1024
"""Shared memory a thread block gets by default (`sharedMemPerBlock`), in which a row is staged."""
NORM_THREADS, NORM_VECTOR = 128, 4
"""Threads per row of layer and RMS norm, and elements of one load (`num_threads()`, `vec_size`)."""


def softmax_rows(rows: Dim, n: Dim, kind: DType, *, staged: bool = True) -> dict[str, Any]:
    """softmax or log-softmax of rows of `n` elements.

    Up to 1,024 elements: one warp per row, which lies in registers. Up to 48 KiB: staged in shared memory by up to
    1,024 threads, read once; the second reduction counts as two rounds of loads. Longer rows: three passes, for
    maximum, sum and result. Releases without staging (`staged` False): three passes for every row above 1,024, by
    blocks as `softmax_backward_rows` has them.
    """
    width = max(kind.bits // 8, 1)
    long = n > WARP_ROW
    if not staged:
        walk = _vectors_and_tail(n, width)
        return _unless(long, {"rows": rows, "passes": 3, **walk}, rows)
    threads = round_up(minimum(n, 1024), WARP)
    fits = n * width < STAGING_BYTES - WARP * 4
    steps = ceil_div(n * width, VECTOR_BYTES * threads) + 2 * fits
    return _unless(long, {"rows": rows, "passes": 3 - 2 * fits, "threads": threads, "steps": steps}, rows)


def softmax_backward_rows(rows: Dim, n: Dim, kind: DType) -> dict[str, Any]:
    """Gradient of (log-)softmax: one pass in registers up to 1,024 elements; above, a sum over the arriving gradient
    alone (half of what is read), then the result from both operands."""
    return _unless(n > WARP_ROW, {"rows": rows, "passes": 1.5, **_vectors_and_tail(n, max(kind.bits // 8, 1))}, rows)


def layer_norm_rows(rows: Dim, n: Dim) -> dict[str, Any]:
    """Layer or RMS norm, forward or gradient of the input: statistics first, then the result; a block per row."""
    return {
        "rows": rows,
        "passes": 2,
        "threads": NORM_THREADS,
        "steps": ceil_div(n, NORM_VECTOR * NORM_THREADS),
    }


def _vectors_and_tail(n: Dim, width: int) -> dict[str, Any]:
    """Threads and rounds of `SoftMax_getBlockSize` and `ilpReduce`: the least power of two of threads (32 to 512) with
    which half the row is read as vectors; what whole rounds of vectors leave over is read element by element."""
    vector = VECTOR_BYTES // width
    half = minimum(n // vector, 1024) // 2
    threads = WARP * (1 + (half > 32) + 2 * (half > 64) + 4 * (half > 128) + 8 * (half > 256))
    whole = n // (vector * threads)
    tail = n - whole * vector * threads
    return {"threads": threads, "steps": whole + ceil_div(tail, threads)}


def _unless(long: Any, walk: dict[str, Any], rows: Dim) -> dict[str, Any]:
    """`walk` where `long` holds, else one warp per row with the row in registers; element by element in a sweep."""
    short: dict[str, Any] = {"rows": rows, "passes": 1, "threads": WARP, "steps": 1}
    return {name: short[name] + (walk[name] - short[name]) * long for name in short}
