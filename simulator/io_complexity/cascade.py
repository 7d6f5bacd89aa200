"""Two products after each other without their intermediate in memory: (L·R) → scores → (scores·V) → O.

Attention, a gated or plain MLP and a chain of two products are this one cascade. Rows are cut into blocks of r,
columns into blocks of c; a tile of r × c scores is formed by streaming L and R in slices along the inner extent, then
used up by streaming V and O in slices along the outer one:

    for a block of rows, for a block of columns (or the other way around)
        for each slice of `inner`    add to the tile of scores
        for each slice of `outer`    add scores·V to the block of O

L and O of the block of rows may stay while the columns pass (FlashAttention-2 keeps both; a row of scores held whole,
c = all columns, is FLAT's tiling); R and V of the block of columns may stay while the rows pass (FlashAttention). What
does not stay comes in again for every tile, and O goes out and back. With `touches` Σ over tiles of their rows,
`walked` Σ of their columns per block of rows, the bytes are

    rows outside:     L·(rows or touches) + O·(rows or 2·touches − rows) + (R + V)·walked,
    columns outside:  L·touches + O·(2·touches − rows) + R·(columns or walked) + V·(columns or walked),

and the room is that of the tile of scores, what stays, and the larger of the two phases' slices.

References:
    [1] T. Dao, "FlashAttention-2", arXiv:2307.08691, alg. 1. T. Dao et al., "FlashAttention", arXiv:2205.14135, alg. 1
        (columns outside) and thm. 2: Θ(N²d²/S).
    [2] S.-C. Kao et al., "FLAT: an optimized dataflow for mitigating attention bottlenecks", ASPLOS 2023.
    [3] B. Saha, C. Ye, arXiv:2402.07443: the orders of the lower bounds for S ≥ d² and below.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from peakline.cost.io_bounds import attention_traffic, both_products_traffic, cascade_traffic
from peakline.io_complexity.mask import Mask, Values
from peakline.io_complexity.products import best_matmul
from peakline.io_complexity.work import Tiling, splits

__all__ = ["Cascade", "best_cascade", "spilled", "tiled"]

_MOST = 48
"""Sizes of a block that are tried."""

_KEEPS = ((True, True), (True, False), (False, True), (False, False))


@dataclass(frozen=True)
class Cascade:
    """`count` equal cascades.

    Attributes:
        mask: rows and columns of scores, and which of them count.
        inner, outer: extents of a row of L and of a row of V.
        group: rows that stand at the same position (query heads sharing a key head); `mask.queries` counts positions.
        gates: products that make one score (2: gate and up).
        stats: running figures beside a row (2: maximum and sum).
        l, r, v, o, score: bytes of one element.
        latent: V is the first `outer` elements of R's columns.
        names, between: what L, R, V, O and the scores are called.
    """

    mask: Mask
    inner: int
    outer: int
    count: int = 1
    group: int = 1
    gates: int = 1
    stats: int = 0
    l: float = 2
    r: float = 2
    v: float = 2
    o: float = 2
    score: float = 2
    latent: bool = False
    names: tuple[str, str, str, str] = ("L", "R", "V", "O")
    between: str = "scores"

    @property
    def rows(self) -> int:
        """Rows of L and O in one cascade."""
        return self.mask.queries * self.group

    @property
    def pairs(self) -> int:
        """Scores in one cascade."""
        return self.mask.pairs * self.group

    @property
    def of_row(self) -> tuple[float, float]:
        """Bytes of a row of L and of O."""
        return self.inner * self.l, self.outer * self.o

    @property
    def of_column(self) -> tuple[float, float]:
        """Bytes of a column of R (all gates) and of V."""
        return self.gates * self.inner * self.r, 0.0 if self.latent else self.outer * self.v

    @property
    def compulsory(self) -> float:
        """L, R, V and O once."""
        return self.count * (self.rows * sum(self.of_row) + self.mask.keys * sum(self.of_column))

    def bound(self, capacity: float, copies: int = 1) -> float:
        """The largest of compulsory traffic and the bounds from the first product, the second, and both ([3])."""
        pairs = float(self.count * self.pairs)
        shared = 2.0 if self.latent else 1.0
        begun = min(self.l, self.r, self.score)
        (row, _), (column, _) = self.of_row, self.of_column
        first = attention_traffic(pairs, self.inner, capacity, self.l, self.r, copies)
        second = cascade_traffic(
            pairs * self.outer, row, column, capacity, begun, self.v, self.o, copies, shared=shared
        )  # fmt: skip
        both = both_products_traffic(
            pairs, self.inner, self.outer, capacity, self.l, self.r, self.v, self.o, begun, copies, gates=self.gates,
            latent=shared,
        )  # fmt: skip
        return float(max(self.compulsory, first, second, both))


def tiled(
    work: Cascade, rows: tuple[int, int], columns: int, keep: tuple[bool, bool], outside: str, passes: int = 1
) -> Tiling:
    """One tiling: its room and its traffic.

    Args:
        rows: positions in a block, and heads of the group in it.
        columns: columns in a block.
        keep: whether L and O stay (rows outside), or R and V (columns outside).
        outside: `rows` or `columns`.
        passes: walks over the columns: all but the last form the scores again for the row's statistics alone.
    """
    moved = _moved(work, rows, columns, keep, outside, passes) * work.count
    (left, right, value, out), which = work.names, outside == "rows"
    kept = [n for n, yes in zip((left, out) if which else (right, value), keep, strict=True) if yes]
    whole = [f"whole rows of {work.between}"] if columns >= work.mask.keys and which else []
    what = " and ".join([*kept, *whole] or [f"a tile of {work.between}"])
    tile = {"rows": rows[0] * rows[1], "columns": columns}
    return Tiling(f"{what} kept, blocks of {outside} outside", tile, room(work, rows, columns, keep, outside), moved)


def room(work: Cascade, rows: tuple[int, int], columns: int, keep: tuple[bool, bool], outside: str) -> float:
    """Bytes that a tiling holds: the tile of scores, what stays, and the larger of the two phases' slices."""
    held_rows = rows[0] * rows[1]
    (left, out), (right, value) = work.of_row, work.of_column
    tile = held_rows * columns * work.score
    slices = [held_rows * work.l, columns * work.gates * work.r, columns * work.v, held_rows * work.o]
    held = held_rows * work.stats * work.score
    if outside == "rows":
        held += (held_rows * left if keep[0] else 0.0) + (held_rows * out if keep[1] else 0.0)
        gone = (keep[0], False, work.latent, keep[1])
        held += columns * work.outer * work.r if work.latent else 0.0  # V waits in the columns of R
    else:
        held += columns * ((right if keep[0] else 0.0) + (value if keep[1] else 0.0))
        gone = (False, keep[0], keep[1] or work.latent, False)
    left, right, value, out = (0.0 if stays else size for size, stays in zip(slices, gone, strict=True))
    return held + max(work.gates * tile + left + right, tile + value + out)


def _moved(
    work: Cascade, rows: tuple[int, int], columns: int, keep: tuple[bool, bool], outside: str, passes: int
) -> float:
    """Bytes of one cascade."""
    positions, heads = rows
    (left, out), (right, value) = work.of_row, work.of_column
    among = -(-work.group // heads)
    stats = work.stats * work.score
    if outside == "rows":
        seen = work.mask.seen(positions)
        walked, touches = seen.total() * among, seen.tiles(columns) * work.group
        of_l = work.rows if keep[0] else passes * touches
        of_o = work.rows if keep[1] else 2 * touches - work.rows
        return left * of_l + out * of_o + right * passes * walked + value * walked
    seeing = work.mask.seeing(columns)
    touches, walked = seeing.total() * work.group, seeing.tiles(positions) * among
    again = 2 * (touches - work.rows)
    of_r = work.mask.keys if keep[0] else walked
    of_v = work.mask.keys if keep[1] else walked
    return left * touches + out * (again + work.rows) + stats * again + right * of_r + value * of_v


def best_cascade(work: Cascade, capacity: float, passes: int = 1) -> Tiling | None:
    """The tiling with the least traffic that never stores scores; None if nothing fits.

    Statistics kept by one pass over the columns (`passes` 1), or by walking them again and forming the scores anew; or,
    for any number of passes, whole rows of scores held.
    """
    return min(_candidates(work, capacity, passes), key=lambda t: (t.traffic, t.footprint), default=None)


def _candidates(work: Cascade, capacity: float, passes: int) -> Iterator[Tiling]:
    for keep in _KEEPS:
        for rows in _row_blocks(work, keep, capacity):
            for columns in _columns_that_fit(work, rows, keep, capacity):
                whole = columns == work.mask.keys  # then every further pass finds its scores
                yield tiled(work, rows, columns, keep, "rows", 1 if whole else passes)
    if passes > 1:
        if room(work, (1, 1), work.mask.keys, (True, True), "columns") <= capacity:  # a row's scores are all there
            yield tiled(work, (1, 1), work.mask.keys, (True, True), "columns")
        return
    for keep in ((True, True),) if work.latent else ((True, True), (True, False), (False, True)):
        sizes = _that_fit(splits(work.mask.keys), partial(_beside_columns, work, keep), capacity)
        for columns in sizes[-1:] if keep == (True, True) else _thinned(sizes):
            yield tiled(work, (_rows_that_fit(work, columns, keep, capacity), 1), columns, keep, "columns")


def _row_blocks(work: Cascade, keep: tuple[bool, bool], capacity: float) -> Iterator[tuple[int, int]]:
    """Positions with every head of the group, or with one; heads of one position.

    Where both L and O stay, the largest that fit with one column or with all.
    """
    ways: list[tuple[Values, Callable[[int], tuple[int, int]]]] = [(splits(work.mask.queries), lambda t: (t, 1))]
    if work.group > 1:
        ways += [(ways[0][0], lambda t: (t, work.group)), (splits(work.group), lambda h: (1, h))]
    for sizes, block in ways:
        for columns in (1, work.mask.keys):
            fit = _that_fit(sizes, partial(_beside_rows, work, keep, block, columns), capacity)
            yield from map(block, fit[-1:] if keep == (True, True) or columns > 1 else _thinned(fit))


def _beside_columns(work: Cascade, keep: tuple[bool, bool], columns: int) -> float:
    return room(work, (1, 1), columns, keep, "columns")


def _beside_rows(
    work: Cascade, keep: tuple[bool, bool], block: Callable[[int], tuple[int, int]], columns: int, size: int
) -> float:
    return room(work, block(size), columns, keep, "rows")


def _that_fit(sizes: Values, needs: Callable[[int], float], capacity: float) -> list[int]:
    """The sizes whose room, which grows with them, is at most the capacity."""
    known: list[int] = sizes.astype(int).tolist()
    return known[: bisect_right(known, capacity, key=needs)]


def _thinned(sizes: list[int]) -> list[int]:
    if len(sizes) <= _MOST:
        return sizes
    return [sizes[i * (len(sizes) - 1) // (_MOST - 1)] for i in range(_MOST)]


def _columns_that_fit(work: Cascade, rows: tuple[int, int], keep: tuple[bool, bool], capacity: float) -> list[int]:
    """All columns if they fit; else one where more save nothing, and else the most that fit, evened out."""
    every = work.mask.keys
    if room(work, rows, every, keep, "rows") <= capacity:
        return [every]
    if room(work, rows, 1, keep, "rows") > capacity:
        return []
    if keep == (True, True):
        return [1]
    low, high = 1, every
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if room(work, rows, middle, keep, "rows") <= capacity else (low, middle - 1)
    return list(dict.fromkeys((-(-every // -(-every // low)), low)))


def _rows_that_fit(work: Cascade, columns: int, keep: tuple[bool, bool], capacity: float) -> int:
    """The most positions in a block beside this many columns that stay; one where more save nothing."""
    if keep == (True, True):
        return 1
    low, high = 1, work.mask.queries
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (
            (middle, high) if room(work, (middle, 1), columns, keep, "columns") <= capacity else (low, middle - 1)
        )
    return low


def spilled(work: Cascade, capacity: float, passes: int = 1) -> Tiling | None:
    """The two products one after the other with the scores in memory, every score formed, the mask's zeros too.

    More than two passes read the scores again for their sums. None if not one element of each operand fits.
    """
    rows, keys = work.rows, work.mask.keys
    first = best_matmul(rows, work.gates * keys, work.inner, capacity, work.l, work.r, work.score)
    second = best_matmul(rows, work.outer, keys, capacity, work.score, work.v, work.o)
    if first is None or second is None:
        return None
    again = (max(passes - 2, 0) - (work.gates - 1)) * rows * keys * work.score  # gates are joined before they leave
    moved = work.count * (first.traffic + second.traffic + again)
    tile = {f"{d} of the first": t for d, t in first.tile.items()}
    return Tiling(f"{work.between} stored; {first.strategy}, then {second.strategy}", tile,
                  max(first.footprint, second.footprint), moved)  # fmt: skip
