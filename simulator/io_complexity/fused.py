"""Attention, fused MLPs and chains of products or convolutions: cascades with a name, and what each may choose.

Attention's softmax needs a row's maximum and sum before a score is final, and a *pass* is a walk over the row's scores
that must end before the next begins (FuseMax, [1]):

    3 passes: the maximum; the sum of exponentials; the quotients times V
    2 passes: local maxima and sums per tile; correction and product with V
    1 pass:   running maximum, sum and product with V, corrected whenever the maximum moves ([2])

With more than one pass a row of scores must wait for the passes to come: on the chip (a footprint that grows with the
keys), in memory, or it is formed again from Q and K. One pass holds O instead, whose size does not grow. So one pass
moves less unless a row of scores is shorter than the row of Q and O it saves.

References:
    [1] N. Nayak et al., "FuseMax: leveraging extended einsums to optimize attention accelerator design", MICRO 2024,
        arXiv:2406.10491: passes, and attention algorithms by them.
    [2] M. Milakov, N. Gimelshein, arXiv:1805.02867, alg. 3; T. Dao, arXiv:2307.08691, alg. 1.
    [3] J. Demmel, G. Dinh, arXiv:1802.06905. M. Alwani et al., "Fused-layer CNN accelerators", MICRO 2016.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

from peakline.cost.io_bounds import attention_backward_traffic, cascade_traffic
from peakline.io_complexity.cascade import Cascade, best_cascade, spilled
from peakline.io_complexity.mask import Mask
from peakline.io_complexity.products import Matmul
from peakline.io_complexity.work import Tiling, splits

__all__ = ["Attention", "MatmulChain", "Mlp"]


def _least(*found: Tiling | None) -> Tiling | None:
    return min((t for t in found if t is not None), key=lambda t: (t.traffic, t.footprint), default=None)


@dataclass(frozen=True)
class Attention:
    """softmax(Q·Kᵀ)·V, forward or backward.

    Attributes:
        queries, keys, dim, v_dim: sizes of one head; `v_dim` 0 means `dim`.
        heads, kv_heads, batch: `heads / kv_heads` heads share keys.
        causal, window: the mask.
        element, kv_element: bytes of Q, O and scores, and of K and V (0: the same).
        passes: walks over a row's scores, None for the best of one, two and three.
        backward: gradients of Q, K and V instead.
        latent: V is a part of K.
    """

    queries: int
    keys: int
    dim: int
    v_dim: int = 0
    heads: int = 1
    kv_heads: int = 1
    batch: int = 1
    causal: bool = False
    window: int | None = None
    element: float = 2
    kv_element: float = 0
    passes: int | None = None
    backward: bool = False
    latent: bool = False

    @property
    def name(self) -> str:
        """Sizes."""
        what = "attention backward" if self.backward else "attention"
        passes = f", {self.passes} pass{'es' if self.passes > 1 else ''}" if self.passes else ""
        mask = ", causal" if self.causal else ""
        heads = f"{self.heads} heads" + (f" over {self.kv_heads}" if self.kv_heads != self.heads else "")
        return f"{what} {self.batch} × {heads}, {self.queries} × {self.keys} × {self.dim}{mask}{passes}"

    @cached_property
    def cascade(self) -> Cascade:
        """The forward pass as two products."""
        mask = Mask(self.queries, self.keys, self.causal, self.window)
        q, k = self.element, self.kv_element or self.element
        return Cascade(
            mask, self.dim, self.v_dim or self.dim, self.batch * self.kv_heads, self.heads // self.kv_heads,
            stats=2, l=q, r=k, v=k, o=q, score=q, latent=self.latent,
            names=("Q", "K", "V", "O"),
        )  # fmt: skip

    @property
    def compulsory(self) -> float:
        """Q, K, V and O once; backward Q, K, V, dO and the three gradients."""
        if not self.backward:
            return self.cascade.compulsory
        c = self.cascade
        rows, columns = c.count * c.rows, c.count * c.mask.keys
        return 2 * rows * c.of_row[0] + rows * c.of_row[1] + 2 * columns * sum(c.of_column)

    def bound(self, capacity: float, copies: int = 1) -> float:
        """The largest bound that holds: `Cascade.bound`, and backward that of the three gradients."""
        if not self.backward:
            return self.cascade.bound(capacity, copies)
        c = self.cascade
        pairs = float(c.count * c.pairs)
        gradients = attention_backward_traffic(pairs, c.inner, c.outer, capacity, c.l, c.r, c.v, c.o, copies)
        # the compulsory part of `Cascade.bound` is the forward pass's, and less than this one's
        return float(max(self.compulsory, c.bound(capacity, copies), gradients))

    def best(self, capacity: float) -> Tiling | None:
        """The best tiling for the number of passes, scores stored or not."""
        if self.backward:
            return _best_backward(self, capacity)
        if self.passes is not None:
            return self.with_passes(capacity, self.passes)
        return _least(*(self.with_passes(capacity, p) for p in (1, 2, 3)))

    def with_passes(self, capacity: float, passes: int) -> Tiling | None:
        """The best tiling with so many passes over the scores.

        Raises ValueError for other numbers than 1, 2 and 3.
        """
        return _with_passes(self, capacity, passes)

    def footprint(self, rows: int, passes: int, columns: int = 1) -> float:
        """Bytes alive while a block of so many rows is worked on: constant in the keys with one pass, else not.

        One pass: Q, O, running figures, a tile of scores. Two or three: a row of scores each instead of O, or of Q.
        """
        c = self.cascade
        row = c.of_row[0] + c.of_row[1] if passes == 1 else max(c.of_row) + self.keys * c.score
        scores = columns * c.score if passes == 1 else 0
        return rows * (row + scores + c.stats * c.score)


@lru_cache(maxsize=2048)
def _with_passes(work: Attention, capacity: float, passes: int) -> Tiling | None:
    if passes not in (1, 2, 3):
        raise ValueError(f"passes: 1, 2 or 3, got {passes}")
    never = best_cascade(work.cascade, capacity, passes)
    return never if passes == 1 else _least(never, spilled(work.cascade, capacity, passes))


@lru_cache(maxsize=1024)
def _best_backward(work: Attention, capacity: float) -> Tiling | None:
    return _least(*backward_tilings(work, capacity))


def backward_tilings(work: Attention, capacity: float) -> list[Tiling]:
    """The best of each way to form attention's gradients, those that fit.

    Two kernels, one that keeps columns (K, V, dK, dV) and one that keeps rows (Q, dO, dQ); or one that keeps columns
    and moves dQ in and out (FlashAttention-2, [2], §3.1). Beside the gradients the log-sum-exp and Σ dO·O of each row
    are read, 4 bytes each, the latter formed from O and dO and written once.
    """
    c = work.cascade
    (left, out), (right, value) = c.of_row, c.of_column
    value = value or c.outer * c.v
    rows, keys = c.rows, c.mask.keys
    sums = rows * (2 * out + 4)  # O and dO in, Σ dO·O out
    figures = 8
    of_columns: tuple[float, float, int] | None = None
    joint: tuple[float, float, int] | None = None
    for columns in splits(keys, 256).astype(int).tolist():
        walked = c.mask.seeing(columns).total() * c.group
        held = columns * (2 * (right + value) + 2 * c.score) + left + out + figures
        if held <= capacity:
            moved = 2 * keys * (right + value) + walked * (left + out + figures)
            of_columns = min(of_columns or (moved, held, columns), (moved, held, columns))
        if held + left <= capacity:
            moved = 2 * keys * (right + value) + walked * (left + out + figures) + (2 * walked - rows) * left
            joint = min(joint or (moved, held + left, columns), (moved, held + left, columns))
    of_rows: tuple[float, float, int] | None = None
    for positions in splits(c.mask.queries, 256).astype(int).tolist():
        seen = c.mask.seen(positions).total()
        for heads in dict.fromkeys((c.group, 1)):
            block = positions * heads
            walked = seen * -(-c.group // heads)
            held = block * (2 * left + out + 2 * c.score + figures) + right + value
            if held <= capacity:
                moved = rows * (2 * left + out + figures) + walked * (right + value)
                of_rows = min(of_rows or (moved, held, block), (moved, held, block))
    found = []
    if of_columns and of_rows:
        moved = c.count * (of_columns[0] + of_rows[0] + sums)
        tile = {"columns": of_columns[2], "rows": of_rows[2]}
        found.append(Tiling("two kernels, one keeps columns, one rows", tile, max(of_columns[1], of_rows[1]), moved))
    if joint:
        moved = c.count * (joint[0] + sums)
        found.append(Tiling("columns kept, dQ in and out", {"columns": joint[2]}, joint[1], moved))
    return found


@dataclass(frozen=True)
class Mlp:
    """act(X·G) ⊙ (X·U) · D, or act(X·U) · D without a gate: `rows` × `width` through `hidden` to `out` (0: `width`).

    The activation and the product of the two halves happen where a hidden value is whole.
    """

    rows: int
    width: int
    hidden: int
    gated: bool = True
    out: int = 0
    element: float = 2
    weight: float = 0

    @property
    def name(self) -> str:
        """Sizes."""
        kind = "gated MLP" if self.gated else "MLP"
        return f"{kind} {self.rows} × {self.width} → {self.hidden} → {self.out or self.width}"

    @cached_property
    def cascade(self) -> Cascade:
        """Rows of X over hidden columns."""
        x, w = self.element, self.weight or self.element
        mask, gates = Mask(self.rows, self.hidden), 2 if self.gated else 1
        names = ("X", "G and U" if self.gated else "U", "D", "Y")
        return Cascade(
            mask, self.width, self.out or self.width, gates=gates, l=x, r=w, v=w, o=x, score=x, names=names,
            between="hidden values",
        )  # fmt: skip

    @property
    def compulsory(self) -> float:
        """Input, weights and output once."""
        return self.cascade.compulsory

    def bound(self, capacity: float, copies: int = 1) -> float:
        """`Cascade.bound`: a hidden value takes a whole row of X and a whole column of G and of U."""
        return self.cascade.bound(capacity, copies)

    def best(self, capacity: float) -> Tiling | None:
        """The better of fused and not."""
        return _least(self.fused(capacity), self.unfused(capacity))

    def fused(self, capacity: float) -> Tiling | None:
        """The best tiling that never stores the hidden values."""
        return _fused(self.cascade, capacity)

    def unfused(self, capacity: float) -> Tiling | None:
        """The products one after the other; activation and gate are applied before the hidden values leave."""
        return spilled(self.cascade, capacity)


@lru_cache(maxsize=1024)
def _fused(cascade: Cascade, capacity: float) -> Tiling | None:
    return best_cascade(cascade, capacity)


@dataclass(frozen=True)
class MatmulChain:
    """A[rows, w₀]·B₁[w₀, w₁]·B₂[w₁, w₂]·… from the left; intermediates need not be stored.

    Attributes:
        rows, widths: sizes; at least two products, three widths.
        element, weight: bytes of one element of activations, and of the B's (0: the same).
    """

    rows: int
    widths: tuple[int, ...]
    element: float = 2
    weight: float = 0

    def __post_init__(self) -> None:
        if len(self.widths) < 3:
            raise ValueError(f"widths: a chain has at least two products, three widths; got {self.widths}")

    @property
    def name(self) -> str:
        """Sizes."""
        return f"chain {self.rows} × {' → '.join(map(str, self.widths))}"

    @property
    def _weight(self) -> float:
        return self.weight or self.element

    @property
    def compulsory(self) -> float:
        """First operand, all weights, last result."""
        weights = sum(x * y for x, y in pairwise(self.widths))
        return self.rows * (self.widths[0] + self.widths[-1]) * self.element + weights * self._weight

    def bound(self, capacity: float, copies: int = 1) -> float:
        """Compulsory traffic, or `cascade_traffic` of the last two products.

        A column of the next-to-last intermediate takes a whole column of its matrix. A row of what it is formed from is
        held or read whole at some width of the chain, so it costs at least the narrowest of them.
        """
        *before, inner, hidden, outer = self.widths
        row = min(*before, inner) * self.element if before else inner * self.element
        least = cascade_traffic(
            float(self.rows) * hidden * outer, row, inner * self._weight, capacity, min(self.element, self._weight),
            self._weight, self.element, copies,
        )  # fmt: skip
        return float(max(self.compulsory, least))

    def best(self, capacity: float) -> Tiling | None:
        """The best way to cut the chain into fused stretches and single products."""
        return _best_chain(self, capacity)

    def fused(self, capacity: float) -> Tiling | None:
        """The whole chain in one stretch, no intermediate stored."""
        found = _stretch(self, 0, len(self.widths) - 1, capacity)
        return None if found is None else Tiling(*found)

    def unfused(self, capacity: float) -> Tiling | None:
        """Every product by itself."""
        parts = [_stretch(self, i, i + 1, capacity) for i in range(len(self.widths) - 1)]
        whole = [p for p in parts if p is not None]
        if len(whole) < len(parts):
            return None
        return Tiling("every product by itself", {}, max(p[2] for p in whole), sum(p[3] for p in whole))


@lru_cache(maxsize=4096)
def _stretch(
    work: MatmulChain, first: int, last: int, capacity: float
) -> tuple[str, dict[str, int], float, float] | None:
    """Products first+1 … last fused: strategy, tile, footprint and traffic.

    One product is blocked; two are a cascade; more keep a block of r rows of every intermediate in turn: while one is
    formed from the one before, both and a slice of the weights are held, and the ends pass in slices.
    """
    widths, e, w = work.widths[first : last + 1], work.element, work._weight
    if len(widths) == 2:
        found = Matmul(work.rows, widths[1], widths[0], a=e, b=w, c=e).best(capacity)
    elif len(widths) == 3:
        names = ("A", f"B{first + 1}", f"B{first + 2}", "the result")
        cascade = Cascade(
            Mask(work.rows, widths[1]), widths[0], widths[2], l=e, r=w, v=w, o=e, score=e, names=names,
            between="the intermediate",
        )  # fmt: skip
        found = _fused(cascade, capacity)
    else:
        found = None
    if found is not None or len(widths) <= 3:
        return None if found is None else (found.strategy, dict(found.tile), found.footprint, found.traffic)
    inside = widths[1:-1]
    held = [widths[1] * e + e, widths[-2] * e + e, *((x + y) * e for x, y in pairwise(inside))]
    slices = [widths[1] * w, widths[-2] * w, *(y * w for y in inside[1:])]
    rows = min(int((capacity - s) // h) for h, s in zip(held, slices, strict=True))
    if rows < 1:
        return None
    rows = -(-work.rows // -(-work.rows // rows))
    blocks = -(-work.rows // rows)
    weights = sum(x * y for x, y in pairwise(widths)) * w
    moved = work.rows * (widths[0] + widths[-1]) * e + blocks * weights
    footprint = max(rows * h + s for h, s in zip(held, slices, strict=True))
    return f"{len(widths) - 1} products over blocks of rows", {"rows": rows}, footprint, moved


@lru_cache(maxsize=1024)
def _best_chain(work: MatmulChain, capacity: float) -> Tiling | None:
    last = len(work.widths) - 1
    best: list[tuple[float, float, tuple[str, ...]] | None] = [(0.0, 0.0, ())] + [None] * last
    for end in range(1, last + 1):
        for start in range(end):
            part, before = _stretch(work, start, end, capacity), best[start]
            if part is None or before is None:
                continue
            moved, room = before[0] + part[3], max(before[1], part[2])
            found = best[end]
            if found is None or (moved, room) < found[:2]:
                named = f"products {start + 1} to {end} fused" if end > start + 1 else f"product {end} by itself"
                best[end] = (moved, room, (*before[2], f"{named} ({part[0]})"))
    found = best[last]
    return None if found is None else Tiling("; ".join(found[2]), {}, found[1], found[0])
