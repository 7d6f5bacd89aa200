"""Which columns a block of rows sees, and which rows a block of columns: causal and windowed masks in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["Blocks", "Mask", "Values"]

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Blocks:
    """Blocks of one extent: how long each is, how much of the other extent it meets, how many there are of its kind."""

    length: Values
    meets: Values
    times: Values

    def total(self) -> float:
        """Σ over blocks of what they meet."""
        return float((self.meets * self.times).sum())

    def tiles(self, size: int) -> float:
        """Σ over tiles of their length, where what a block meets is cut into tiles of `size`."""
        return float((self.length * np.ceil(self.meets / size) * self.times).sum())


@dataclass(frozen=True)
class Mask:
    """`queries` rows over `keys` columns. Row i stands at position p = i + keys − queries.

    Attributes:
        queries, keys: extents.
        causal: a row sees columns up to its own position.
        window: how many of those at most, None for all.
    """

    queries: int
    keys: int
    causal: bool = False
    window: int | None = None

    @property
    def pairs(self) -> int:
        """(row, column) pairs that remain."""
        if not self.causal:
            return self.queries * self.keys
        ahead = self.keys - self.queries
        seen = self.keys if self.window is None else min(self.window, self.keys)
        ramp = min(max(seen - ahead - 1, 0), self.queries)  # rows that see fewer than `seen`
        return sum((ramp * (2 * ahead + ramp + 1) // 2, (self.queries - ramp) * seen))

    def seen(self, rows: int) -> Blocks:
        """Blocks of so many rows, and the columns that any row of a block sees."""
        return _seen(self, rows)

    def seeing(self, columns: int) -> Blocks:
        """Blocks of so many columns, and the rows that see any column of a block."""
        return _seeing(self, columns)


@lru_cache(maxsize=512)
def _seen(mask: Mask, rows: int) -> Blocks:
    if not mask.causal:
        return _even(mask.queries, rows, mask.keys)
    first = np.arange(0, mask.queries, rows, dtype=np.float64)
    count = np.minimum(rows, mask.queries - first)
    ahead = mask.keys - mask.queries
    end = np.minimum(mask.keys, first + count + ahead)
    start = 0.0 if mask.window is None else np.maximum(first + ahead - mask.window + 1, 0.0)
    return Blocks(count, end - start, np.ones_like(first))


@lru_cache(maxsize=512)
def _seeing(mask: Mask, columns: int) -> Blocks:
    if not mask.causal:
        return _even(mask.keys, columns, mask.queries)
    first = np.arange(0, mask.keys, columns, dtype=np.float64)
    count = np.minimum(columns, mask.keys - first)
    ahead = mask.keys - mask.queries
    start = np.maximum(first - ahead, 0.0)
    end = np.full_like(first, float(mask.queries))
    if mask.window is not None:  # the last row that sees the block's last column
        end = np.minimum(end, first + count - 1 - ahead + mask.window)
    return Blocks(count, np.maximum(end - start, 0.0), np.ones_like(first))


def _even(extent: int, size: int, meets: int) -> Blocks:
    whole, rest = divmod(extent, size)
    return Blocks(np.array([size, rest], float), np.full(2, float(meets)), np.array([whole, 1.0 if rest else 0.0]))
