"""The buffer in which thread blocks of a CUDA sum leave their partial results for one another.

`gpu_reduce_kernel` (aten/src/ATen/native/cuda/Reduce.cuh) lets several thread blocks share the inputs of an output when
there are too few outputs to fill the device, as in a bias's gradient. The buffer they meet in is an accumulator per
output and block, and, where neighbouring threads work on different outputs, that again for each of these threads and
vector elements (`ReduceConfig::global_memory_size` counts outputs there as if each thread had all of them).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from peakline.models.dims import Dim, ceil_div, is_array, maximum, minimum, prod

__all__ = ["LOADS", "Multiprocessors", "Reduction", "contiguous_sum", "meeting_blocks", "output_vector", "staging"]

Where: TypeAlias = bool | NDArray[np.bool_]
"""A condition; of a sweep, configuration by configuration."""

MAX_THREADS = 512
"""Threads of a block (`mnt_wrapper<T>::MAX_NUM_THREADS`)."""
WARP = 32
LOADS = 4
"""Elements loaded at once (`input_vec_size`, and the start of `get_output_vec_size`)."""
LONG = 128
"""Inputs above which they are loaded so (`setReduceConfig`: `dim0 > 128`)."""
LEAST, MOST = 16, 256
"""Inputs a thread should add up (`min_values_per_thread`, `max_values_per_thread`)."""


@dataclass(frozen=True, slots=True)
class Multiprocessors:
    """A GPU as far as PyTorch's reductions look at it.

    Attributes:
        count: number of streaming multiprocessors.
        threads: threads resident on one (`maxThreadsPerMultiProcessor`).
    """

    count: int
    threads: int


@dataclass(frozen=True, slots=True)
class Reduction:
    """A reduction as `TensorIterator` hands it over.

    Attributes:
        outputs, inputs: number of results, and of elements that make one.
        along_fastest: whether elements that lie side by side are added to one another.
        vector: neighbouring outputs that one thread works on; 1 along the fastest dimension.
        loads: inputs of one output that a thread loads at once.
    """

    outputs: Dim
    inputs: Dim
    along_fastest: Where
    vector: Dim
    loads: Dim


def output_vector(*extents: Dim) -> Dim:
    """Neighbouring outputs that one thread works on: the largest power of two up to 4 that divides the outputs' fastest
    dimension and all other strides (`get_output_vec_size`)."""
    vector: Any = LOADS
    for n in extents:
        vector = np.gcd(vector, n)
    return vector if is_array(*extents) else int(vector)


def contiguous_sum(shape: Sequence[Dim], kept: Sequence[bool]) -> Reduction:
    """The sum of a contiguous tensor over the dimensions that are not `kept`, of which those that follow on one another
    are merged (`coalesce_dimensions`); sizes may be arrays."""
    if shape and is_array(shape[-1]) and np.equal(shape[-1], 1).any() and not all(kept):
        whole, flat = _contiguous_sum(shape, kept), contiguous_sum(shape[:-1], kept[:-1])
        names = (f.name for f in fields(Reduction))
        return Reduction(*(np.where(np.equal(shape[-1], 1), getattr(flat, n), getattr(whole, n)) for n in names))
    return _contiguous_sum(shape, kept)


def _contiguous_sum(shape: Sequence[Dim], kept: Sequence[bool]) -> Reduction:
    """… where a last dimension that is 1 in some configurations stays a dimension."""
    runs: list[tuple[Dim, bool]] = []
    for size, stays in zip(shape, kept):
        if runs and runs[-1][1] == stays:
            runs[-1] = (runs[-1][0] * size, stays)
        elif not (isinstance(size, int) and size == 1):
            runs.append((size, stays))
    outputs = prod(size for size, stays in runs if stays)
    inputs = prod(size for size, stays in runs if not stays)
    inner = runs.pop()[0] if runs and not runs[-1][1] else 1
    columns = runs[-1][0] if runs else 1
    outer = inputs // maximum(inner, 1)
    alone: Any = np.equal(outputs, 1)
    along: Any = np.logical_or(alone, np.greater(inner, 1))
    in_one_run = np.logical_or(alone, np.equal(outer, 1))
    long = along & in_one_run & np.greater(inputs, LONG)
    return Reduction(
        outputs, inputs, _plain(along), _chosen(along, 1, output_vector(columns)), _chosen(long, LOADS, 1)
    )  # fmt: skip


def staging(work: Reduction, accumulator: int, on: Multiprocessors) -> Dim:
    """Bytes of the buffer, 0 where no blocks share an output (`setReduceConfig`).

    Args:
        accumulator: bytes of one partial result.
    """
    wide = _chosen(work.along_fastest, work.inputs // work.loads, work.outputs // work.vector)
    high = _chosen(work.along_fastest, work.outputs, work.inputs)
    most = MAX_THREADS // work.vector
    across, down = _power_below(wide, most), _power_below(high, most)
    width = minimum(across, WARP)
    height = minimum(down, most // width)
    width = minimum(across, most // height)
    step_input, step_output = _chosen(work.along_fastest, width, 1), _chosen(work.along_fastest, 1, width)
    each = ceil_div(work.inputs, step_input)
    warps_share = np.logical_or(np.greater_equal(each, height * LEAST), np.greater_equal(each, MOST))
    each = ceil_div(work.inputs, step_input * height)
    places = on.count * (on.threads // (width * height))
    grid = maximum(ceil_div(work.outputs // work.vector, step_output), 1)
    blocks_share = warps_share & np.greater_equal(each, MOST) & np.less_equal(grid, places)
    shares = maximum(minimum(ceil_div(places, grid), ceil_div(each, LEAST)), ceil_div(each, MOST))
    size = accumulator * work.outputs * shares * _chosen(work.along_fastest, 1, width * work.vector)
    return _chosen(blocks_share & np.greater(shares, 1), size, 0)


def meeting_blocks(work: Reduction, accumulator: int, on: Multiprocessors) -> tuple[Dim, ...]:
    """What a reduction allocates for its blocks to meet: the buffer and 4-byte counters, one block of threads each, of
    which the 512 bytes that an allocation has at least hold all but the most; nothing where no output is shared."""
    size = staging(work, accumulator, on)
    shared = np.greater(size, 0)
    return (size, _chosen(shared, 4, 0)) if np.any(shared) else ()


def _power_below(n: Dim, limit: Dim) -> Dim:
    """The largest power of two that is at most n and the limit, a power of two; 1 for 0 (`last_pow2`)."""
    if not is_array(n, limit):
        return min(1 << (max(int(n), 1).bit_length() - 1), int(limit))
    n = np.maximum(np.minimum(n, limit), 1)
    return np.left_shift(1, np.frexp(n.astype(np.float64))[1].astype(np.int64) - 1)


def _chosen(where: Any, this: Dim, that: Dim) -> Dim:
    if np.ndim(where):
        return np.where(where, this, that)
    return this if where else that


def _plain(where: Any) -> Where:
    return where if np.ndim(where) else bool(where)
