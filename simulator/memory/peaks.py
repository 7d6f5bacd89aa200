"""The largest of many sums of sizes, for every configuration at once: max over rows of counts · sizes.

Each row says how many storages of each tensor are alive while one operator runs. Tensors whose sizes are multiples of
one another in every configuration are added up first, which leaves a handful of columns. Of the rows only
those matter that no other exceeds in every column. Sums of whole numbers below 2**53 are
exact in float64 in whatever order; beyond, int64 adds up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from peakline.models.dims import Dim

__all__ = ["Highest", "highest"]

_EXACT, _MOST = 2.0**53, 2.0**62
_FEW = 256
"""Configurations up to which all rows are summed rather than those that others exceed left out."""
_AT_ONCE = 1 << 17
"""Sums held at a time: 1 MiB."""


class Highest(NamedTuple):
    """The largest sum of every configuration, its row, and its parts by kind of column (`[kinds, *shape]`)."""

    total: NDArray[np.int64]
    row: NDArray[np.int64]
    by_kind: NDArray[np.int64]


class _Columns(NamedTuple):
    """Columns by what they are multiples of: `bases[of[j]] · multiple[j]` is the size in column j.

    `bases` is `[bases, configurations]`; int64, and float64 where no sum passes 2**53.
    """

    bases: NDArray[Any]
    of: NDArray[np.int64]
    multiple: NDArray[Any]

    def weights(self, counts: NDArray[Any]) -> NDArray[Any]:
        """How many of each base a row adds up: `[rows, bases]`."""
        found = np.zeros((len(counts), len(self.bases)), dtype=self.bases.dtype)
        for j in range(len(self.bases)):
            members = self.of == j
            found[:, j] = counts[:, members] @ self.multiple[members]
        return found


def highest(
    counts: NDArray[Any], sizes: Sequence[Dim], kinds: NDArray[np.int64], most: int, shape: tuple[int, ...]
) -> Highest:
    """The largest of `counts` · `sizes` over the rows, of equal ones the first.

    Args:
        counts: `[rows, columns]`, whole numbers.
        sizes: of each column; arrays broadcast to `shape`.
        kinds: number of each column's kind, below `most`.
        shape: of the configurations.

    Raises:
        ValueError: sums that int64 does not hold.
    """
    whole = _columns(sizes, shape)
    columns = _Columns(whole.bases.astype(np.float64), whole.of, whole.multiple.astype(np.float64))
    counts = counts.astype(np.float64, copy=False)
    weights = columns.weights(counts)
    room = float(weights.max(axis=0) @ columns.bases.max(axis=1))
    if room >= _MOST:
        raise ValueError(f"sizes: too large, {room:.2g} bytes live at once (at most 2**62)")
    if room >= _EXACT:
        columns, counts = whole, counts.astype(np.int64)
        weights = columns.weights(counts)
    rows = _front(weights) if columns.bases.shape[1] > _FEW else np.arange(len(weights))
    best, total = _best(weights[rows], columns.bases)
    by_kind = np.empty((most, len(best)), dtype=total.dtype)
    found = np.flatnonzero(np.bincount(best)).tolist()
    for row in found:
        shares = np.zeros((most, len(columns.bases)), dtype=total.dtype)
        np.add.at(shares, (kinds, columns.of), counts[rows[row]] * columns.multiple)
        if len(found) == 1:
            by_kind = shares @ columns.bases
        else:
            here = np.flatnonzero(best == row)
            by_kind[:, here] = shares @ columns.bases[:, here]
    parts = by_kind.astype(np.int64).reshape(most, *shape)
    return Highest(total.astype(np.int64).reshape(shape), rows[best].reshape(shape), parts)


def _best(weights: NDArray[Any], bases: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Row of the largest of `weights @ bases`, of equal ones the first, and that sum, for each configuration."""
    count = bases.shape[1]
    best, total = np.empty(count, dtype=np.int64), np.empty(count, dtype=weights.dtype)
    step = max(_AT_ONCE // len(weights), 1)
    for start in range(0, count, step):
        cut = slice(start, start + step)
        sums = bases[:, cut].T @ weights.T
        best[cut] = chosen = sums.argmax(axis=1)
        total[cut] = sums[np.arange(len(chosen)), chosen]
    return best, total


def _front(weights: NDArray[Any]) -> NDArray[np.int64]:
    """Rows that no other row exceeds or equals in every column, of equal ones the first; in ascending order.

    The blocks of a large sweep ask for the same weights again and again; the last answers are kept.
    """
    key = weights.shape, weights.tobytes()
    known = _fronts.get(key)
    if known is not None:
        return known
    left = np.arange(len(weights))
    front: list[int] = []
    sums = weights.sum(axis=1)
    while len(left):
        best = left[sums[left].argmax()]
        front.append(int(best))
        left = left[(weights[left] > weights[best]).any(axis=1)]
    found = np.asarray(sorted(front), dtype=np.int64)
    while len(_fronts) >= _FRONTS_KEPT:
        for oldest in list(_fronts)[:1]:  # a copy: other threads may be at it
            _fronts.pop(oldest, None)
    _fronts[key] = found
    return found


_fronts: dict[Any, NDArray[np.int64]] = {}
_FRONTS_KEPT = 32


def _columns(sizes: Sequence[Dim], shape: tuple[int, ...]) -> _Columns:
    """Each size as a whole multiple of a base: 1 for plain numbers, for arrays one divided by its common divisor."""
    bases: list[NDArray[np.int64]] = [np.asarray(1)]
    known: dict[int, tuple[int, int]] = {}
    of, multiple = np.zeros(len(sizes), dtype=np.int64), np.empty(len(sizes), dtype=np.int64)
    for j, size in enumerate(sizes):
        if not isinstance(size, np.ndarray):
            multiple[j] = size
            continue
        if id(size) not in known:
            known[id(size)] = _multiple_of(bases, size)
        of[j], multiple[j] = known[id(size)]
    flat = np.empty((len(bases), *shape), dtype=np.int64)
    for i, base in enumerate(bases):
        flat[i] = base
    return _Columns(flat.reshape(len(bases), -1), of, multiple)


def _multiple_of(bases: list[NDArray[np.int64]], size: NDArray[np.int64]) -> tuple[int, int]:
    """(number of the base, factor) of an array; one that is a multiple of none becomes a base itself."""
    last = size.flat[-1]
    for i, base in enumerate(bases[1:], 1):
        if base.shape != size.shape or base.flat[-1] == 0:
            continue
        factor, rest = divmod(last, base.flat[-1])
        if rest == 0 and np.array_equal(base * factor, size):
            return i, int(factor)
    divisor = _common(size)
    bases.append(size // divisor if divisor > 1 else size)
    return len(bases) - 1, divisor


def _common(size: NDArray[np.int64]) -> int:
    """Greatest common divisor of all elements, 1 if all are 0; that of a few is tried first."""
    flat = size.reshape(-1)
    few = int(np.gcd.reduce(flat[:: max(len(flat) // 4, 1)]))
    if few <= 1 or not (flat % few).any():
        return max(few, 1)
    return max(int(np.gcd.reduce(flat)), 1)
