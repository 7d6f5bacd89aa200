"""Dimension arithmetic that reads the same for one size and for a million.

A *dimension* (`Dim`) is a Python int or a NumPy int64 array. Every formula in `peakline.models` is plain
arithmetic over dimensions, so a graph built with `batch=np.arange(1, 129)` is 128 configurations at once;
arrays of different axes broadcast against each other.

Bytes stay integers (Python int, or int64 array). FLOPs are exact Python ints for scalars and float64 for
arrays, because a training step passes 2**63; each array element is the correctly rounded scalar result.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Dim: TypeAlias = int | NDArray[np.int64]
"""A size: a Python int, or an int64 array of sizes."""

Flops: TypeAlias = int | NDArray[np.float64]
"""A count of floating-point operations: exact int, or float64 array."""

Shape: TypeAlias = tuple[Dim, ...]

_INT64_LIMIT = 2.0**62


class MixedSizes(ValueError):
    """An array of sizes for which the workload is not one program: some meet a condition and some do not.

    Attributes:
        condition: bool array; each part of the sizes, met or not, is one program by itself.
    """

    def __init__(self, what: str, condition: NDArray[np.bool_]) -> None:
        super().__init__(what)
        self.condition = condition


def decided(condition: bool | NDArray[np.bool_], what: str) -> bool:
    """A condition on sizes that changes the program, which all configurations must agree on.

    Raises:
        MixedSizes: they do not; the message starts with `what`.
    """
    if not isinstance(condition, np.ndarray):
        return bool(condition)
    if condition.all() or not condition.any():
        return bool(condition.flat[0])
    raise MixedSizes(f"{what} in some of the configurations only; accepted: sizes on one side, or a sweep", condition)


def as_dim(value: Any) -> Dim:
    """Turn a user's number or array into a `Dim`.

    Raises:
        TypeError: if `value` is not integral.
    """
    if isinstance(value, bool):
        raise TypeError(f"a size must be an integer, not {value!r}")
    if isinstance(value, int):
        return value
    if isinstance(value, np.ndarray | list | tuple | range):
        array = np.asarray(value)
        if array.dtype.kind not in "iu" or array.size == 0:
            raise TypeError(f"an array of sizes must hold integers, at least one; got dtype {array.dtype}")
        return array.astype(np.int64)
    if isinstance(value, np.integer):
        return int(value)
    raise TypeError(f"a size must be an integer or an array of integers, not {value!r}")


def is_array(*values: Any) -> bool:
    """Whether any of the values is a NumPy array (the graph is then a sweep)."""
    return any(isinstance(v, np.ndarray) for v in values)


def prod(factors: Iterable[Dim]) -> Dim:
    """Product of dimensions, as a `Dim`; the empty product is 1.

    Plain numbers are multiplied first, then arrays from the smallest on, so that a product over broadcasting axes
    passes over an array of the full size once.
    """
    plain = 1
    arrays: list[NDArray[np.int64]] = []
    for factor in factors:
        if isinstance(factor, np.ndarray):
            arrays.append(factor)
        else:
            plain *= factor
    if not arrays:
        return plain
    if len(arrays) > 1:
        arrays.sort(key=_size)
    result = arrays[0] if plain == 1 else arrays[0] * plain
    for array in arrays[1:]:
        result = result * array
    return result


_size = attrgetter("size")


def ceil_div(numerator: Dim, denominator: Dim) -> Dim:
    """⌈numerator / denominator⌉ in integer arithmetic."""
    return -(-numerator // denominator)


def round_up(value: Dim, multiple: Dim) -> Dim:
    """The least multiple of `multiple` that is at least `value`."""
    return ceil_div(value, multiple) * multiple


def minimum(a: Dim, b: Dim) -> Dim:
    """Element-wise minimum of two dimensions."""
    return np.minimum(a, b) if is_array(a, b) else min(a, b)


def maximum(a: Dim, b: Dim) -> Dim:
    """Element-wise maximum of two dimensions."""
    return np.maximum(a, b) if is_array(a, b) else max(a, b)


def flops(*factors: Dim) -> Flops:
    """Product of factors as a FLOP count: exact int for scalars, float64 for arrays.

    The array path multiplies in int64 while that cannot overflow, so that each element equals the correctly
    rounded scalar result; only beyond 2**62 does it multiply in float64.
    """
    whole = prod(factors)
    if not isinstance(whole, np.ndarray):
        return int(whole)
    bound = 1.0
    for factor in factors:
        bound *= float(factor.max()) if isinstance(factor, np.ndarray) else float(factor)
    if bound < _INT64_LIMIT:
        return whole.astype(np.float64)
    result: Any = 1.0
    for factor in factors:
        result = result * np.asarray(factor, dtype=np.float64)
    return np.asarray(result, dtype=np.float64)


def to_flops(value: Dim) -> Flops:
    """Mark an integer count as FLOPs: arrays become float64, scalars stay int."""
    return value.astype(np.float64) if isinstance(value, np.ndarray) else value


def same_shape(a: Shape, b: Shape) -> bool:
    """Whether two shapes are equal, in every configuration."""
    return len(a) == len(b) and all(bool(np.all(x == y)) for x, y in zip(a, b))
