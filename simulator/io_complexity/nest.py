"""Traffic of a tiled loop nest, exactly: one tile of every operand in the fast memory, loops over tiles around it.

    for the tiles of the first dimension of `order`
        ...
            for the tiles of the last
                bring in the tiles of all operands that are not there; compute

A step holds one tile of every operand. Between two steps what both need stays; all else leaves, and what was written
goes back to memory. Where the tiles fill the memory there is no other choice, so least-recently-used and optimal
replacement count the same (tests run both, element by element).

The bytes follow in closed form. An operand's tiles over all steps, less what consecutive steps share:

    moved = Σ_steps |tile| − Σ_steps |tile ∩ tile before|.

When a loop moves on, loops outside it stand still and loops inside start over, so the shared part is a product over
the operand's axes: whole for an axis that stands still or has one tile, nothing for a plain axis that moves, and the
overlap of two windows for an axis of a convolution's input, which keeps its halo if nothing else of it has changed.

References: J. Ragan-Kelley et al. (Halide), PLDI 2013; A. Parashar et al., "Timeloop", ISPASS 2019 (the same count
for one tile per operand); A. Olivry et al., "IOOpt", PLDI 2021 (upper bounds from such tilings).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from peakline.io_complexity.work import Tiling, splits

__all__ = ["Nest", "Operand", "Window", "best_tiling", "footprint", "traffic"]

Values: TypeAlias = NDArray[np.float64]
Tiles: TypeAlias = Mapping[str, Values]

_SMALL = 250_000
"""Tilings tried one by one; beyond, tile sizes are thinned out evenly."""


@dataclass(frozen=True)
class Window:
    """An axis of a convolution's input: positions of dimension `dim` see `taps` entries each, `stride` apart."""

    dim: str
    taps: int
    stride: int = 1

    def span(self, positions: Values) -> Values:
        """Entries under so many neighbouring positions; those that a long stride leaves out do not count."""
        if self.stride >= self.taps:
            return positions * self.taps
        return (positions - 1) * self.stride + self.taps


@dataclass(frozen=True)
class Operand:
    """An array of the nest: `axes` name dimensions, or are windows over them; `element` bytes each, times `each`.

    An `out` operand is summed up: what leaves half done comes back. `scratch` takes room and never moves.
    """

    name: str
    axes: tuple[str | Window, ...]
    element: float
    role: Literal["in", "out", "scratch"] = "in"
    each: int = 1

    @property
    def dims(self) -> tuple[str, ...]:
        """The dimensions whose loops change its tile."""
        return tuple(a.dim if isinstance(a, Window) else a for a in self.axes)


@dataclass(frozen=True)
class Nest:
    """Extents by dimension, and the operands."""

    sizes: Mapping[str, int]
    operands: tuple[Operand, ...]

    @property
    def compulsory(self) -> float:
        """Bytes of every operand once."""
        return sum(float(o.element * _elements(o, self.whole)) for o in self.operands if o.role != "scratch")

    @property
    def whole(self) -> Tiles:
        """One tile as large as the nest."""
        return {name: np.array(float(size)) for name, size in self.sizes.items()}


def _elements(operand: Operand, tiles: Mapping[str, Values]) -> Values:
    count = operand.each + 0.0 * next(iter(tiles.values()))
    for axis in operand.axes:
        count = count * (axis.span(tiles[axis.dim]) if isinstance(axis, Window) else tiles[axis])
    return count


def footprint(nest: Nest, tiles: Tiles) -> Values:
    """Bytes held in a step: one tile of every operand."""
    total = 0.0 * next(iter(tiles.values()))
    for operand in nest.operands:
        total = total + operand.element * _elements(operand, tiles)
    return total


def traffic(nest: Nest, tiles: Tiles, order: Sequence[str]) -> dict[str, Values]:
    """Bytes that each operand moves, loads and stores; see the module's docstring. Tiles may be arrays."""
    trips = {d: np.ceil(nest.sizes[d] / tiles[d]) for d in nest.sizes}
    out = {}
    for operand in nest.operands:
        if operand.role == "scratch":
            continue
        entered = _entered(nest, operand, tiles, trips, order)
        if operand.role == "out":
            entered = 2 * entered - _elements(
                operand, nest.whole
            )  # every tile leaves; all but its first visit comes back
        out[operand.name] = operand.element * entered
    return out


def _entered(nest: Nest, operand: Operand, tiles: Tiles, trips: Tiles, order: Sequence[str]) -> Values:
    """Elements that come into the fast memory over all steps."""
    axes = {a.dim if isinstance(a, Window) else a: a for a in operand.axes}
    one = np.ones_like(next(iter(trips.values())))
    everything = operand.each * one
    for d in order:
        everything = everything * (_sum_of(axes[d], nest.sizes[d], tiles[d], trips[d]) if d in axes else trips[d])
    shared = 0.0 * one
    for level in range(len(order)):
        part = operand.each * one
        for at, d in enumerate(order):
            axis, size, tile, count = axes.get(d), nest.sizes[d], tiles[d], trips[d]
            if at < level:
                part = part * (count if axis is None else _sum_of(axis, size, tile, count))
            elif at == level:
                part = part * (count - 1 if axis is None else _overlap(axis, tile, count) * (count - 1))
            elif axis is not None:
                part = part * _start_over(axis, size, tile, count)
        shared = shared + part
    return everything - shared


def _sum_of(axis: str | Window, size: int, tile: Values, count: Values) -> Values:
    """Σ over the tiles of an axis of their lengths."""
    if not isinstance(axis, Window):
        return size + 0.0 * tile
    if axis.stride >= axis.taps:
        return size * axis.taps + 0.0 * tile
    return (size - count) * axis.stride + count * axis.taps


def _overlap(axis: str | Window, tile: Values, count: Values) -> Values:
    """Entries that a tile shares with the next one."""
    return (max(axis.taps - axis.stride, 0) if isinstance(axis, Window) else 0) + 0.0 * tile


def _start_over(axis: str | Window, size: int, tile: Values, count: Values) -> Values:
    """Entries that the last tile shares with the first one: all of them if there is but one."""
    if not isinstance(axis, Window):
        return np.where(count == 1, float(size), 0.0)
    apart = np.maximum(axis.taps - axis.stride - (count - 2) * tile * axis.stride, 0.0)
    if axis.stride >= axis.taps:
        apart = 0.0 * tile
    return np.where(count == 1, axis.span(np.array(float(size))), apart)


def best_tiling(
    nest: Nest,
    capacity: float,
    *,
    orders: Iterable[Sequence[str]] | None = None,
    fixed: Mapping[str, int] | None = None,
    most: int = _SMALL,
) -> Tiling | None:
    """The tiling with the least traffic within `capacity` bytes, over all orders of the loops or those of `orders`.

    All tile sizes that can matter (`splits`) if they make at most `most` combinations, else so many of each dimension,
    evenly spread. `fixed` gives the tile of some dimensions. None if the smallest tiles do not fit.
    """
    fixed = dict(fixed or {})
    free = [d for d in nest.sizes if d not in fixed]
    lists = {d: splits(nest.sizes[d]) for d in free}
    while np.prod([len(x) for x in lists.values()], dtype=float) > most:
        longest = max(lists, key=lambda d: len(lists[d]))
        lists[longest] = splits(nest.sizes[longest], max(len(lists[longest]) * 3 // 4, 2))
    grid = np.meshgrid(*(lists[d] for d in free), indexing="ij") if free else [np.ones(1)]
    tiles = {d: g.ravel() for d, g in zip(free, grid, strict=True)} if free else {}
    shape = next(iter(tiles.values())).shape if tiles else (1,)
    tiles |= {d: np.full(shape, float(t)) for d, t in fixed.items()}
    held = footprint(nest, tiles)
    fits = held <= capacity
    if not fits.any():
        return None
    tiles = {d: t[fits] for d, t in tiles.items()}
    held = held[fits]
    best: Tiling | None = None
    for order in permutations(nest.sizes) if orders is None else orders:
        moved = np.sum([*traffic(nest, tiles, order).values()], axis=0)
        least = int(np.lexsort((held, moved))[0])
        if best is None or moved[least] < best.traffic:
            chosen = {d: int(tiles[d][least]) for d in nest.sizes}
            best = Tiling(_in_words(nest, order, chosen), chosen, float(held[least]), float(moved[least]))
    return best


def _in_words(nest: Nest, order: Sequence[str], tile: Mapping[str, int]) -> str:
    """What stays while the innermost loop runs."""
    loops = [d for d in order if tile[d] < nest.sizes[d]]
    if not loops:
        return "everything fits"
    stays = [o.name for o in nest.operands if o.role != "scratch" and loops[-1] not in o.dims]
    return f"{' and '.join(stays) or 'nothing'} stays, loops {' '.join(loops)}"


def steps(nest: Nest, tile: Mapping[str, int], order: Sequence[str]) -> Iterator[dict[str, tuple[int, int]]]:
    """The steps of a tiling, each as the range of every dimension: what tests walk."""

    def walk(depth: int, ranges: dict[str, tuple[int, int]]) -> Iterator[dict[str, tuple[int, int]]]:
        if depth == len(order):
            yield dict(ranges)
            return
        d = order[depth]
        for start in range(0, nest.sizes[d], tile[d]):
            yield from walk(depth + 1, {**ranges, d: (start, min(start + tile[d], nest.sizes[d]))})

    yield from walk(0, {})
