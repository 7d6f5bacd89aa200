"""The largest of many sums, against adding all of them up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peakline.memory.peaks import highest

SHAPES = [(), (5,), (3, 2), (40, 30)]


@st.composite
def tables(draw: st.DrawFn) -> tuple[np.ndarray[Any, Any], list[Any], np.ndarray[Any, Any], tuple[int, ...]]:
    """Counts, sizes that are plain, along one axis or full, and often multiples of each other; kinds; shape."""
    shape = draw(st.sampled_from(SHAPES))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    columns = draw(st.integers(1, 8))
    base = [rng.integers(0, 50, [n if rng.random() < 0.7 else 1 for n in shape]) for _ in range(3)]
    sizes: list[Any] = []
    for _ in range(columns):
        factor = int(rng.integers(0, 4) * draw(st.sampled_from([1, 1000])))
        sizes.append(factor if rng.random() < 0.3 or not shape else base[rng.integers(0, 3)] * factor)
    return rng.integers(0, 4, (draw(st.integers(1, 30)), columns)), sizes, rng.integers(0, 3, columns), shape


@settings(max_examples=150, deadline=None)
@given(tables())
def test_the_highest_is_the_largest_of_all_sums(
    table: tuple[np.ndarray[Any, Any], list[Any], np.ndarray[Any, Any], tuple[int, ...]],
) -> None:
    counts, sizes, kinds, shape = table
    found = highest(counts, sizes, kinds, 3, shape)
    full = np.stack([np.broadcast_to(size, shape) for size in sizes]).reshape(len(sizes), -1).astype(np.int64)
    sums = counts @ full
    assert (found.total.reshape(-1) == sums.max(axis=0)).all()
    rows = found.row.reshape(-1)
    assert (sums[rows, np.arange(len(rows))] == sums.max(axis=0)).all()
    for kind in range(3):
        of_kind = (counts * (kinds == kind))[rows].T
        assert (found.by_kind[kind].reshape(-1) == (of_kind * full).sum(axis=0)).all()


def test_of_equal_rows_the_first_is_named() -> None:
    counts = np.array([[1, 0], [2, 1], [1, 2], [2, 1]])
    assert highest(counts, [np.array([5, 1]), np.array([5, 3])], np.zeros(2, np.int64), 1, (2,)).row.tolist() == [1, 2]


def test_sums_beyond_float64_are_exact_and_beyond_int64_refused() -> None:
    size = np.array([2**58 + 1, 2**57 + 1])
    counts = np.array([[3, 1], [3, 0]])
    assert highest(counts, [size, 1], np.zeros(2, np.int64), 1, (2,)).total.tolist() == [3 * int(s) + 1 for s in size]
    with pytest.raises(ValueError, match="too large"):
        highest(counts * 100, [size, 1], np.zeros(2, np.int64), 1, (2,))
