"""Reductions of a recorded program as `Reduce.cuh` sees them: dimensions by stride, and what the blocks meet in."""

from __future__ import annotations

from peakline.models.capture.calls import Call, View
from peakline.models.capture.target import Target
from peakline.models.dims import prod
from peakline.models.operators.reductions import (
    LOADS,
    LONG,
    Multiprocessors,
    Reduction,
    meeting_blocks,
    output_vector,
)

__all__ = ["reduction", "reduction_blocks"]


def reduction(view: View, axes: tuple[int, ...]) -> Reduction:
    """The reduction of a tensor over some of its dimensions; no dimension means all."""
    rank = len(view.shape)
    over = {axis % rank for axis in axes} if axes and rank else set(range(rank))
    pairs = [(view.shape[i], view.strides[i], i in over) for i in range(rank) if view.shape[i] != 1]
    reduced = _merged([(n, stride) for n, stride, inside in pairs if inside])
    kept = _merged([(n, stride) for n, stride, inside in pairs if not inside])
    inputs, outputs = int(prod(n for n, _ in reduced)), int(prod(n for n, _ in kept))
    along = not kept or bool(reduced and reduced[0][1] < kept[0][1])
    if along:
        vectorised = len(reduced) == 1 and reduced[0][1] == 1 and inputs > LONG
        return Reduction(outputs, inputs, True, 1, LOADS if vectorised else 1)
    strides = (stride for _, stride in (*reduced, *kept[1:]))
    vector = output_vector(kept[0][0], *strides) if kept[0][1] == 1 else 1
    return Reduction(outputs, inputs, False, vector, 1)


def _merged(dimensions: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Sorted by stride, with dimensions that continue one another made one (`coalesce_dimensions`)."""
    merged: list[tuple[int, int]] = []
    for size, stride in sorted(dimensions, key=lambda pair: pair[1]):
        if merged and merged[-1][0] * merged[-1][1] == stride:
            merged[-1] = (merged[-1][0] * size, merged[-1][1])
        else:
            merged.append((size, stride))
    return tuple(merged)


ACCUMULATORS = {"aten.max": 16, "aten.min": 16, "aten.argmax": 16, "aten.argmin": 16, "aten.var": 16, "aten.std": 16,
                "aten.var_mean": 16, "aten.std_mean": 16, "aten.any": 1, "aten.all": 1}  # fmt: skip
"""Bytes of a partial result where it is no plain number: a value and its index, a mean with its deviation, a bool."""


def reduction_blocks(call: Call, target: Target) -> tuple[int, ...]:
    """What the blocks of a reduction operator meet in; plain sums are accumulated in float32, or in float64 and int64
    for those."""
    view = call.arguments.get("self")
    if not isinstance(view, View) or not all(view.shape):
        return ()
    found = call.arguments.get("dim", ())
    axes = (found,) if isinstance(found, int) else tuple(found) if isinstance(found, tuple) else ()
    width = ACCUMULATORS.get(call.packet, max(view.dtype.bits // 8, 4) if view.dtype.bits > 8 else 8)
    on = Multiprocessors(target.multiprocessors, target.threads)
    return tuple([int(size) for size in meeting_blocks(reduction(view, axes), width, on)])
