"""Convolutions after each other whose maps between stay on the chip: tiles of rows with a halo, or lines kept.

A tile of t rows of the last map needs (t − 1)·stride + taps rows of the map before, and so on to the input. Either the
rows that two tiles share are formed again (tiles by themselves), or they are kept (line buffers, Alwani et al.), or
nothing is fused. The input passes channel by channel and the last map filter by filter; what lies between is held
whole. Weights pass in slices, once for each tile, or all of them stay.

References: M. Alwani, H. Chen, M. Ferdman, P. Milder, "Fused-layer CNN accelerators", MICRO 2016. For the
bound, `cost.io_bounds.cascade_traffic` with J. Demmel and G. Dinh's reuse of inputs (arXiv:1802.06905).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

from peakline.cost.io_bounds import cascade_traffic
from peakline.io_complexity.products import Convolution
from peakline.io_complexity.work import Tiling, splits

__all__ = ["ConvolutionChain", "Layer"]


@dataclass(frozen=True)
class Layer:
    """One convolution of a chain: filters, taps down and across, stride."""

    filters: int
    taps: tuple[int, int] = (3, 3)
    stride: int = 1


@dataclass(frozen=True)
class ConvolutionChain:
    """Convolutions without padding, each reading the map of the one before.

    Attributes:
        batch, channels: images and their channels.
        space: height and width of the last map.
        layers: at least two; strides no larger than the taps.
        element, weight: bytes of one element of maps, and of weights (0: the same).
    """

    batch: int
    channels: int
    space: tuple[int, int]
    layers: tuple[Layer, ...]
    element: float = 2
    weight: float = 0

    def __post_init__(self) -> None:
        if len(self.layers) < 2:
            raise ValueError(f"layers: a chain has at least two convolutions; got {len(self.layers)}")
        for layer in self.layers:
            if layer.stride > min(layer.taps):
                raise ValueError(f"layers: a stride beyond its taps leaves values unread; got {layer}")

    @property
    def name(self) -> str:
        """Sizes."""
        path = " → ".join(str(c) for c in (self.channels, *(x.filters for x in self.layers)))
        return f"convolutions {path}, output {self.batch} × {self.space[0]}×{self.space[1]}"

    @cached_property
    def maps(self) -> tuple[tuple[int, int, int], ...]:
        """Rows, columns and channels of the input, of every map between, and of the output."""
        rows, columns = self.space
        found = [(rows, columns, self.layers[-1].filters)]
        for i in reversed(range(len(self.layers))):
            layer = self.layers[i]
            rows, columns = ((n - 1) * layer.stride + t for n, t in zip((rows, columns), layer.taps, strict=True))
            found.append((rows, columns, self.layers[i - 1].filters if i else self.channels))
        return tuple(reversed(found))

    @cached_property
    def weights(self) -> tuple[float, ...]:
        """Bytes of the weights of each layer."""
        w = self.weight or self.element
        return tuple(
            source[2] * layer.filters * layer.taps[0] * layer.taps[1] * w
            for source, layer in zip(self.maps, self.layers, strict=False)
        )

    @property
    def compulsory(self) -> float:
        """Input, weights and output once."""
        ends = sum(rows * columns * c for rows, columns, c in (self.maps[0], self.maps[-1]))
        return self.batch * ends * self.element + sum(self.weights)

    def bound(self, capacity: float, copies: int = 1) -> float:
        """Compulsory traffic, or `cascade_traffic` of the last two layers.

        A value of the last map between takes a whole filter, and the channels of the pixel in the middle of its window;
        those were held or read whole at some map of the chain, so they cost at least the narrowest. It stands in at
        most as many products with one weight as the last layer's windows overlap.
        """
        before, last = self.layers[-2], self.layers[-1]
        w = self.weight or self.element
        rows, columns, filters = self.maps[-1]
        products = float(self.batch) * rows * columns * filters * before.filters * last.taps[0] * last.taps[1]
        pixel = min(m[2] for m in self.maps[:-2]) * self.element
        column = self.maps[-3][2] * before.taps[0] * before.taps[1] * w
        reuse = -(-last.taps[0] // last.stride) * -(-last.taps[1] // last.stride)
        least = cascade_traffic(
            products, pixel, column, capacity, min(self.element, w), w, self.element, copies, reuse=float(reuse)
        )
        return float(max(self.compulsory, least))

    def best(self, capacity: float) -> Tiling | None:
        """The better of fused and not."""
        found = [t for t in (self.fused(capacity), self.unfused(capacity)) if t is not None]
        return min(found, key=lambda t: (t.traffic, t.footprint), default=None)

    def unfused(self, capacity: float) -> Tiling | None:
        """Every layer by itself, its maps in memory."""
        w = self.weight or self.element
        parts = [
            Convolution(self.batch, source[2], target[2], (target[0], target[1]), layer.taps, layer.stride,
                        a=self.element, b=w, c=self.element).best(capacity)
            for (source, target), layer in zip(pairwise(self.maps), self.layers, strict=True)
        ]  # fmt: skip
        whole = [p for p in parts if p is not None]
        if len(whole) < len(parts):
            return None
        return Tiling("every layer by itself", {}, max(p.footprint for p in whole), sum(p.traffic for p in whole))

    def fused(self, capacity: float) -> Tiling | None:
        """The best tiling that stores no map between."""
        return _best_fused(self, capacity)

    def rows(self, tile: int) -> tuple[int, ...]:
        """Rows of every map, input first, that a tile of so many rows of the last one needs."""
        found = [tile]
        for layer in reversed(self.layers):
            found.append((found[-1] - 1) * layer.stride + layer.taps[0])
        return tuple(reversed(found))


@lru_cache(maxsize=1024)
def _best_fused(work: ConvolutionChain, capacity: float) -> Tiling | None:
    fitting = (t for t in fused_tilings(work) if t.footprint <= capacity)
    return min(fitting, key=lambda t: (t.traffic, t.footprint), default=None)


def fused_tilings(work: ConvolutionChain) -> Iterator[Tiling]:
    """Every way to fuse the chain: tiles by themselves or lines kept, weights passing or staying."""
    for tile in splits(work.space[0], 64).astype(int).tolist():
        for lines in (False, True):
            for stay in (False, True):
                yield _fused(work, tile, lines=lines, stay=stay)


def _fused(work: ConvolutionChain, tile: int, *, lines: bool, stay: bool) -> Tiling:
    """Footprint and traffic of one of them."""
    e, w = work.element, work.weight or work.element
    line = [columns * channels * e for _, columns, channels in work.maps]
    needed = work.rows(tile)
    strides = [1]
    for layer in reversed(work.layers):
        strides.append(strides[-1] * layer.stride)
    fresh = [tile * s for s in reversed(strides)]  # rows that a tile adds to each map
    kept = [max(layer.taps[0] - layer.stride, 0) for layer in work.layers] + [0]
    heights = [m[0] for m in work.maps]
    standing = sum(k * x for k, x in zip(kept, line, strict=True)) if lines else 0.0
    busiest = 0.0
    last = len(work.layers) - 1
    for i, layer in enumerate(work.layers):
        source = min(fresh[i] if lines else needed[i], heights[i]) * line[i]
        target = min(fresh[i + 1] if lines else needed[i + 1], heights[i + 1]) * line[i + 1]
        taps = layer.taps[0] * layer.taps[1] * w
        if i == 0:  # the input passes channel by channel, every map's partial sums wait
            source, passing = source / work.maps[0][2], taps * layer.filters
        else:
            passing = taps * work.maps[i][2]
            target = target / layer.filters if i == last else target
        busiest = max(busiest, source + target + (0.0 if stay else passing))
    tiles = -(-work.space[0] // tile)
    footprint = standing + busiest + (sum(work.weights) if stay else 0.0)
    if lines:
        read = heights[0] * line[0]
    else:
        sizes = [tile] * (tiles - 1) + [work.space[0] - tile * (tiles - 1)]
        read = sum(work.rows(size)[0] for size in sizes) * line[0]
    weights = sum(work.weights) * (1 if stay else tiles * work.batch)
    moved = work.batch * (read + heights[-1] * line[-1]) + weights
    what = "lines kept" if lines else "tiles by themselves"
    return Tiling(f"fused, {what}, weights {'stay' if stay else 'pass'}", {"rows": tile}, footprint, moved)
