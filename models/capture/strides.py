"""Strides of elementwise results, as ATen's kernels lay them out.

Fake tensors compute an elementwise result's strides by a rule of their own, which differs from ATen's where operands
are broadcast and permuted at once; a wrong layout turns views into copies further on.
"""

from __future__ import annotations

from collections.abc import Sequence

from peakline.models.capture.calls import View

__all__ = ["elementwise_strides"]

Sizes = tuple[int, ...]


def elementwise_strides(shape: Sizes, operands: Sequence[View]) -> Sizes:
    """Strides of a new elementwise result (`aten/src/ATen/TensorIterator.cpp`).

    Operands of one shape that are all contiguous, all channels-last or all dense with equal strides hand their layout
    on (`compute_fast_setup_type`). Otherwise dimensions are sorted by the operands' strides, the first operand that
    tells two dimensions apart deciding and broadcast ones abstaining (`reorder_dimensions`), and the result is dense in
    that order (`allocate_or_resize_outputs`).
    """
    if all(view.shape == shape for view in operands):
        strides = [view.strides for view in operands]
        if all(s == contiguous(shape) or _dense_as(shape, s, range(len(shape))) for s in strides):
            return contiguous(shape)
        last = (*range(2, len(shape)), 1) if len(shape) in (4, 5) else ()
        if last and all(_dense_as(shape, s, (0, *last)) for s in strides):
            return _dense(shape, (0, *last))
        if all(s == strides[0] for s in strides) and _is_dense(shape, strides[0]):
            return strides[0]
    order = _sorted_dimensions(shape, [_broadcast(view, shape) for view in operands])
    return _dense(shape, order)


def contiguous(shape: Sizes) -> Sizes:
    """Strides of a contiguous tensor."""
    return _dense(shape, range(len(shape)))


def _dense(shape: Sizes, order: Sequence[int]) -> Sizes:
    """Strides of a dense tensor whose dimensions lie in memory in `order`, outermost first."""
    strides, step = [0] * len(shape), 1
    for dimension in reversed(order):
        strides[dimension] = step
        step *= max(shape[dimension], 1)
    return tuple(strides)


def _dense_as(shape: Sizes, strides: Sizes, order: Sequence[int]) -> bool:
    """Whether the elements lie densely in `order`; dimensions of one element may have any stride."""
    step = 1
    for dimension in reversed(order):
        if shape[dimension] != 1:
            if strides[dimension] != step:
                return False
            step *= shape[dimension]
    return True


def _is_dense(shape: Sizes, strides: Sizes) -> bool:
    order = sorted(range(len(shape)), key=lambda d: -strides[d])
    return _dense_as(shape, strides, [d for d in order if shape[d] != 1] or order)


def _broadcast(view: View, shape: Sizes) -> Sizes:
    """The operand's strides over the result's dimensions; 0 where it is broadcast."""
    missing = len(shape) - len(view.shape)
    own = [0 if n == 1 and shape[missing + d] != 1 else view.strides[d] for d, n in enumerate(view.shape)]
    return (*(0 for _ in range(missing)), *own)


def _sorted_dimensions(shape: Sizes, operands: Sequence[Sizes]) -> list[int]:
    """Dimensions outermost first: an insertion sort that abides undecided comparisons."""
    order = list(range(len(shape)))[::-1]
    for i in range(1, len(shape)):
        at = i
        for other in range(i - 1, -1, -1):
            compared = _compare(shape, operands, order[other], order[at])
            if compared > 0:
                order[other], order[at] = order[at], order[other]
                at = other
            elif compared < 0:
                break
    return order[::-1]


def _compare(shape: Sizes, operands: Sequence[Sizes], first: int, second: int) -> int:
    for strides in operands:
        if strides[first] == 0 or strides[second] == 0:
            continue
        if strides[first] != strides[second]:
            return -1 if strides[first] < strides[second] else 1
        if shape[first] > shape[second]:
            return 1
    return 0
