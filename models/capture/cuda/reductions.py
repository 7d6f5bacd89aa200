"""The buffer in which blocks of a reduction leave their partial results for one another.

`gpu_reduce_kernel` (aten/src/ATen/native/cuda/Reduce.cuh) lets several thread blocks share the inputs of an output when
there are too few outputs to fill the device, as in a bias's gradient. The buffer they meet in is an accumulator per
output and block, and, where neighbouring threads work on different outputs, that again for each of these threads and
vector elements (`ReduceConfig::global_memory_size` counts outputs there as if each thread had all of them).
"""

from __future__ import annotations

from dataclasses import dataclass

from peakline.models.capture.calls import Call, View
from peakline.models.capture.target import Target
from peakline.models.dims import ceil_div, prod

__all__ = ["Reduction", "reduction", "reduction_blocks", "staging"]

MAX_THREADS = 512
"""Threads of a block (`mnt_wrapper<T>::MAX_NUM_THREADS`)."""
WARP = 32
VECTOR = 4
"""Elements loaded at once (`input_vec_size`, and the start of `get_output_vec_size`)."""
LEAST, MOST = 16, 256
"""Inputs a thread should add up (`min_values_per_thread`, `max_values_per_thread`)."""


@dataclass(frozen=True, slots=True)
class Reduction:
    """A reduction as `TensorIterator` hands it over: dimensions ordered by stride and merged where they follow on.

    Attributes:
        outputs, inputs: number of results, and of elements that make one.
        reduced, kept: (size, stride) of the dimensions, the fastest first.
    """

    outputs: int
    inputs: int
    reduced: tuple[tuple[int, int], ...]
    kept: tuple[tuple[int, int], ...]

    @property
    def along_fastest(self) -> bool:
        """Whether elements that lie side by side are added to one another."""
        return not self.kept or bool(self.reduced and self.reduced[0][1] < self.kept[0][1])

    def output_vector(self) -> int:
        """Neighbouring outputs that one thread works on (`get_output_vec_size`)."""
        vector = VECTOR
        for n in (self.kept[0][0], *(stride for _, stride in (*self.reduced, *self.kept[1:]))):
            while n % vector:
                vector //= 2
        return vector


def reduction(view: View, axes: tuple[int, ...]) -> Reduction:
    """The reduction of a tensor over some of its dimensions; no dimension means all."""
    rank = len(view.shape)
    over = {axis % rank for axis in axes} if axes and rank else set(range(rank))
    pairs = [(view.shape[i], view.strides[i], i in over) for i in range(rank) if view.shape[i] != 1]
    reduced = _merged([(n, stride) for n, stride, inside in pairs if inside])
    kept = _merged([(n, stride) for n, stride, inside in pairs if not inside])
    inputs = int(prod(n for n, _ in reduced))
    return Reduction(int(prod(n for n, _ in kept)), inputs, reduced, kept)


def _merged(dimensions: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Sorted by stride, with dimensions that continue one another made one (`coalesce_dimensions`)."""
    merged: list[tuple[int, int]] = []
    for size, stride in sorted(dimensions, key=lambda pair: pair[1]):
        if merged and merged[-1][0] * merged[-1][1] == stride:
            merged[-1] = (merged[-1][0] * size, merged[-1][1])
        else:
            merged.append((size, stride))
    return tuple(merged)


def _power_below(n: int, limit: int) -> int:
    """The largest power of two that is at most n and the limit (`last_pow2`)."""
    return min(1 << (max(n, 1).bit_length() - 1), limit)


def _threads_per_multiprocessor(target: Target) -> int:
    """CUDA C++ Programming Guide, table of technical specifications per compute capability."""
    return {(7, 5): 1024}.get(target.capability, 1536 if target.capability in _SMALL else 2048)


_SMALL = {(8, 6), (8, 7), (8, 9), (12, 0), (12, 1)}


def staging(work: Reduction, accumulator: int, target: Target) -> int:
    """Bytes of the buffer, 0 where no blocks share an output (`setReduceConfig`).

    Args:
        accumulator: bytes of one partial result.
    """
    if not work.inputs or not work.outputs:
        return 0
    fastest = (work.reduced if work.along_fastest else work.kept)[:1]
    wide, high = (work.inputs, work.outputs) if work.along_fastest else (work.outputs, work.inputs)
    vector = 1
    if fastest and fastest[0][1] == 1:
        if not work.along_fastest:
            vector = work.output_vector()
            wide //= vector
        elif wide > 128 and len(work.reduced) == 1:
            wide //= VECTOR
    most = MAX_THREADS // vector
    across, down = _power_below(wide, most), _power_below(high, most)
    width = min(across, WARP)
    height = min(down, most // width)
    width = min(across, most // height)
    step_input, step_output = (width, 1) if work.along_fastest else (1, width)
    each = int(ceil_div(work.inputs, step_input))
    if each < height * LEAST and each < MOST:  # every warp has an output to itself
        return 0
    each = int(ceil_div(work.inputs, step_input * height))
    places = target.multiprocessors * (_threads_per_multiprocessor(target) // (width * height))
    grid = int(ceil_div(work.outputs // vector, step_output))
    if each < MOST or grid > places:
        return 0
    shares = max(min(int(ceil_div(places, grid)), int(ceil_div(each, LEAST))), int(ceil_div(each, MOST)))
    if shares <= 1:
        return 0
    return accumulator * work.outputs * shares * (1 if work.along_fastest else width * vector)


ACCUMULATORS = {"aten.max": 16, "aten.min": 16, "aten.argmax": 16, "aten.argmin": 16, "aten.var": 16, "aten.std": 16,
                "aten.var_mean": 16, "aten.std_mean": 16, "aten.any": 1, "aten.all": 1}  # fmt: skip
"""Bytes of a partial result where it is no plain number: a value and its index, a mean with its deviation, a bool."""


def reduction_blocks(call: Call, target: Target) -> tuple[int, ...]:
    """The buffer of a reduction operator (and its 4-byte counters, one block of threads each, of which 512 bytes hold
    all but the largest); plain sums are accumulated in float32, or in float64 and int64 for those."""
    view = call.arguments.get("self")
    if not isinstance(view, View):
        return ()
    found = call.arguments.get("dim", ())
    axes = (found,) if isinstance(found, int) else tuple(found) if isinstance(found, tuple) else ()
    width = ACCUMULATORS.get(call.packet, max(view.dtype.bits // 8, 4) if view.dtype.bits > 8 else 8)
    size = staging(reduction(view, axes), width, target)
    return (size, 4) if size else ()
