"""Matrix products and convolutions: lower bounds, and the best blocking.

A blocked product holds one tile of A, B or C and streams slices of the other two past it (`cost.tiling`):

    C stays:  Q = a·m·k·⌈n/tn⌉ + b·k·n·⌈m/tm⌉ + c·m·n,                 c·tm·tn + a·tm + b·tn ≤ S
    A stays:  Q = a·m·k + b·k·n·⌈m/tm⌉ + c·m·n·(2⌈k/tk⌉ − 1),          a·tm·tk + c·tm + b·tk ≤ S
    B stays:  Q = b·k·n + a·m·k·⌈n/tn⌉ + c·m·n·(2⌈k/tk⌉ − 1),          b·tn·tk + c·tn + a·tk ≤ S

The other extent of a tile only lowers Q, so it is as large as fits; the first is tried at every size that changes the
number of pieces. That is the optimum over all tiles and loop orders that hold one tile of each operand: tests compare
with every one of them.

References:
    [1] J.-W. Hong, H. T. Kung, STOC 1981, cor. 6.2. D. Irony, S. Toledo, A. Tiskin, JPDC 64 (2004).
    [2] T. M. Smith et al., arXiv:1702.02017, eq. 2mnk/√S − 2S. G. Kwasniewski et al., "Red-blue pebbling revisited",
        SC 2019, thm. 1: Q ≥ 2mnk/√S + mn where no intermediate is computed twice.
    [3] J. Demmel, G. Dinh, arXiv:1802.06905. A. Olivry et al., "IOOpt", PLDI 2021, for tiled convolutions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from peakline.cost.io_bounds import matmul_traffic
from peakline.io_complexity.nest import Nest, Operand, Window, best_tiling
from peakline.io_complexity.work import Tiling, splits

__all__ = ["Convolution", "Matmul", "best_matmul"]


@dataclass(frozen=True)
class Matmul:
    """`batch` independent products C[m,n] = A[m,k]·B[k,n]; `a`, `b`, `c` are bytes of one element."""

    m: int
    n: int
    k: int
    batch: int = 1
    a: float = 2
    b: float = 2
    c: float = 2

    @property
    def name(self) -> str:
        """Sizes m × n × k."""
        many = f"{self.batch} × " if self.batch > 1 else ""
        return f"matmul {many}[{self.m}, {self.k}]·[{self.k}, {self.n}]"

    @property
    def compulsory(self) -> float:
        """A, B and C once."""
        return self.batch * (self.a * self.m * self.k + self.b * self.k * self.n + self.c * self.m * self.n)

    def bound(self, capacity: float, copies: int = 1) -> float:
        """The larger of compulsory traffic and 2·mnk·√(abc)/√S − 2S ([1], [2])."""
        products = float(self.batch) * self.m * self.n * self.k
        return float(max(self.compulsory, matmul_traffic(products, capacity, self.a, self.b, self.c, copies)))

    def best(self, capacity: float) -> Tiling | None:
        """The best of all blockings; each product of a batch by itself."""
        found = best_matmul(self.m, self.n, self.k, capacity, self.a, self.b, self.c)
        if found is None or self.batch == 1:
            return found
        return Tiling(found.strategy, found.tile, found.footprint, found.traffic * self.batch)

    def nest(self) -> Nest:
        """The loops of one product of the batch."""
        operands = (
            Operand("A", ("m", "k"), self.a),
            Operand("B", ("k", "n"), self.b),
            Operand("C", ("m", "n"), self.c, "out"),
        )
        return Nest({"m": self.m, "n": self.n, "k": self.k}, operands)


@lru_cache(maxsize=8192)
def best_matmul(m: int, n: int, k: int, capacity: float, a: float, b: float, c: float) -> Tiling | None:
    """The blocking of one product with the least traffic; None if not one element of each operand fits."""
    found = [
        *_staying("C", ("m", "n", "k"), (m, n, k), (c, a, b), capacity),
        *_staying("A", ("m", "k", "n"), (m, k, n), (a, c, b), capacity),
        *_staying("B", ("n", "k", "m"), (n, k, m), (b, c, a), capacity),
    ]
    return min(found, key=lambda t: (t.traffic, t.footprint), default=None)


def _staying(
    name: str, dims: tuple[str, str, str], sizes: tuple[int, int, int], widths: tuple[float, float, float],
    capacity: float,
) -> Iterator[Tiling]:  # fmt: skip
    """The best tile p × q of the operand that stays, while slices along p (bytes `beside`) and q (`under`) pass by.

    Each extent in turn takes all sizes that matter, and the other what room is left.
    """
    own, beside, under = widths
    for flipped in (False, True):
        if flipped:
            p, q, x, y = sizes[1], sizes[0], under, beside
        else:
            p, q, x, y = sizes[0], sizes[1], beside, under
        tall = splits(p)
        wide = np.minimum(np.floor((capacity - x * tall) / (own * tall + y)), q)
        tall, wide = tall[wide >= 1], wide[wide >= 1]
        if not len(tall):
            continue
        wide = np.ceil(q / np.ceil(q / wide))  # no wider than its number of pieces asks for
        rows, columns = (wide, tall) if flipped else (tall, wide)
        down, across = np.ceil(sizes[0] / rows), np.ceil(sizes[1] / columns)
        whole = float(sizes[0]) * sizes[1], float(sizes[0]) * sizes[2], float(sizes[1]) * sizes[2]
        if name == "C":
            moved = beside * whole[1] * across + under * whole[2] * down + own * whole[0]
        else:  # p × q of A or B; results lie along p, the other operand along q
            moved = own * whole[0] + under * whole[2] * down + beside * whole[1] * (2 * across - 1)
        held = own * rows * columns + beside * rows + under * columns
        i = int(np.lexsort((held, moved))[0])
        tile = {dims[0]: int(rows[i]), dims[1]: int(columns[i]), dims[2]: 1}
        yield Tiling(f"{name} stays", tile, float(held[i]), float(moved[i]))


@dataclass(frozen=True)
class Convolution:
    """A convolution of `batch` images: `channels` → `filters`, kernel `taps` = (down, across), in `groups`.

    `space` is the output's height and width, `padding` the zeros above and left of the input, which nobody moves;
    `extent` is the input's height and width, where not all that the windows reach but for as much padding on the other
    sides. `a`, `b`, `c` are bytes of an input, a weight, a result.
    """

    batch: int
    channels: int
    filters: int
    space: tuple[int, int]
    taps: tuple[int, int] = (3, 3)
    stride: int = 1
    groups: int = 1
    a: float = 2
    b: float = 2
    c: float = 2
    padding: tuple[int, int] = (0, 0)
    extent: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """Sizes."""
        (p, q), (r, s) = self.space, self.taps
        groups = f", {self.groups} groups" if self.groups > 1 else ""
        by = f", stride {self.stride}" if self.stride > 1 else ""
        return f"convolution {r}×{s}, {self.channels} → {self.filters}, output {self.batch} × {p}×{q}{by}{groups}"

    @property
    def reach(self) -> tuple[int, int]:
        """Height and width that the windows cover, padding included."""
        rows, columns = ((n - 1) * self.stride + t for n, t in zip(self.space, self.taps, strict=True))
        return rows, columns

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the input."""
        rows, columns = (n - 2 * p for n, p in zip(self.reach, self.padding, strict=True))
        return self.extent or (rows, columns)

    @property
    def inside(self) -> int:
        """(output position, tap) pairs that meet an input rather than padding."""
        found = 1
        for positions, taps, before, extent in zip(self.space, self.taps, self.padding, self.size, strict=True):
            entries = np.arange(positions)[:, None] * self.stride + np.arange(taps)[None, :] - before
            found *= int(((entries >= 0) & (entries < extent)).sum())
        return found

    @property
    def compulsory(self) -> float:
        """Input, weights and output once."""
        return self.groups * (self.nest().compulsory - self._padding)

    @property
    def _padding(self) -> float:
        """Bytes of one group's input that the loops count and nobody moves."""
        (rows, columns), (down, across) = self.size, (
            float(axis.span(np.array(float(n)))) for axis, n in zip(self._windows, self.space, strict=True)
        )  # fmt: skip
        seen = min(rows, down) * min(columns, across)
        return self.a * self.batch * (self.channels // self.groups) * max(down * across - seen, 0.0)

    @property
    def _windows(self) -> tuple[Window, Window]:
        return Window("p", self.taps[0], self.stride), Window("q", self.taps[1], self.stride)

    def bound(self, capacity: float, copies: int = 1) -> float:
        """The larger of compulsory traffic and `least`."""
        return max(self.compulsory, self.least(capacity, copies))

    def least(self, capacity: float, copies: int = 1) -> float:
        """The matmul bound over √reuse ([3]); 0 where it says nothing.

        One input stands for at most ⌈r/stride⌉·⌈s/stride⌉ entries of the unrolled matrix.
        """
        (r, s) = self.taps
        products = float(self.batch) * self.inside * self.filters * (self.channels // self.groups)
        reuse = -(-r // self.stride) * -(-s // self.stride)
        return float(matmul_traffic(products / reuse**0.5, capacity, self.a, self.b, self.c, copies))

    def best(self, capacity: float) -> Tiling | None:
        """The best tiling of the loops; groups one after the other."""
        found = _best_convolution(self, capacity)
        if found is None:
            return None
        moved = self.groups * (found.traffic - self._padding)
        return Tiling(found.strategy, found.tile, found.footprint, moved)

    def nest(self) -> Nest:
        """The loops of one group: images, rows, columns, filters, channels; taps are never cut."""
        (p, q), (r, s) = self.space, self.taps
        sizes = {"b": self.batch, "p": p, "q": q, "f": self.filters // self.groups, "c": self.channels // self.groups}
        operands = (
            Operand("input", ("b", *self._windows, "c"), self.a),
            Operand("weights", ("f", "c"), self.b, each=r * s),
            Operand("output", ("b", "p", "q", "f"), self.c, "out"),
        )
        return Nest(sizes, operands)


_ORDERS = tuple(
    tuple(order)
    for order in ("bpqfc", "bpfqc", "fbpqc", "fcbpq", "cfbpq", "bcpqf", "bpqcf", "bpcqf", "bfpqc", "bcfpq")
)  # fmt: skip
"""Orders of the loops that each leave another operand in place; every order of five is tried in tests."""


@lru_cache(maxsize=1024)
def _best_convolution(work: Convolution, capacity: float) -> Tiling | None:
    nest = work.nest()
    found = None
    for images in dict.fromkeys((1, work.batch)):
        one = best_tiling(nest, capacity, orders=_ORDERS, fixed={"b": images}, most=2_500)
        if one is not None and (found is None or one.traffic < found.traffic):
            found = one
    return found
