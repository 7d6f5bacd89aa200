"""The best blocked matrix product under a fast memory of given size: which tile stays, and what it makes the rest move.

A blocked C[m,n] = A[m,k]·B[k,n] keeps one tile resident while the innermost loop streams the other two operands past
it in thin slices. With the tile of C resident (tm × tn), A is read once per tile column and B once per tile row:

    Q = a·m·k·⌈n/tn⌉ + b·k·n·⌈m/tm⌉ + c·m·n

With a tile of A resident (tm × tk), B is read ⌈m/tm⌉ times and C goes out, and comes back, once per slice of k:

    Q = a·m·k + b·k·n·⌈m/tm⌉ + c·m·n·(2·⌈k/tk⌉ − 1)

and with a tile of B likewise. The resident tile takes the fast memory but for one slice of each streamed operand.

References: J.-W. Hong, H. T. Kung, STOC 1981; K. Goto, R. van de Geijn, "Anatomy of high-performance matrix
multiplication", ACM TOMS 34 (2008), §4; G. Kwasniewski et al., "Red-blue pebbling revisited" (COSMA), SC 2019.
"""

from __future__ import annotations

from collections.abc import Iterator

from peakline.cost.numeric import Ops, Real, ops_for

__all__ = ["blocked_traffic", "resident_traffic"]


def blocked_traffic(m: Real, n: Real, k: Real, capacity: float, a: Real, b: Real, c: Real) -> Real:
    """Least bytes that a blocked product moves through a fast memory of `capacity` bytes.

    Tries the three resident tiles, each as wide, as tall and as square as the memory allows. What fits whole moves
    once.

    Args:
        capacity: bytes of fast memory; 0 or less than a row and a column leaves every product to move its operands.
        a, b, c: bytes of one element of A, B, C (C's are those of the partial sums that leave).
    """
    ops = ops_for(m, n, k, a)
    least: Real = a * m * k * n + b * m * k * n + c * m * n  # no reuse at all
    for tile_m, tile_n in _tiles(ops, m, n, capacity, c, a, b):
        least = ops.minimum(least, resident_traffic(m, n, k, tile_m, tile_n, a, b, c))
    for tile_m, tile_k in _tiles(ops, m, k, capacity, a, c, b):
        moved = a * m * k + b * k * n * ops.ceil(m / tile_m) + c * m * n * (2.0 * ops.ceil(k / tile_k) - 1.0)
        least = ops.minimum(least, moved)
    for tile_n, tile_k in _tiles(ops, n, k, capacity, b, c, a):
        moved = b * k * n + a * m * k * ops.ceil(n / tile_n) + c * m * n * (2.0 * ops.ceil(k / tile_k) - 1.0)
        least = ops.minimum(least, moved)
    return least


def resident_traffic(m: Real, n: Real, k: Real, tile_m: Real, tile_n: Real, a: Real, b: Real, c: Real) -> Real:
    """Bytes moved with a `tile_m` × `tile_n` tile of C resident; see the module's docstring."""
    ops = ops_for(m, n, k, tile_m, tile_n)
    return a * m * k * ops.ceil(n / tile_n) + b * k * n * ops.ceil(m / tile_m) + c * m * n


def _tiles(
    ops: Ops, rows: Real, columns: Real, capacity: float, tile: Real, beside: Real, under: Real
) -> Iterator[tuple[Real, Real]]:
    """Tiles p × q with tile·p·q + beside·p + under·q ≤ capacity: square, evened out, all rows, all columns.

    `beside` and `under` are the bytes of an element of the streamed slices that lie along p and along q. Each tile is
    as wide as its height allows, then as tall as that width does. One element of each operand always fits.
    """
    edges = beside + under
    square = ((edges**2 + 4.0 * tile * capacity) ** 0.5 - edges) / (2.0 * tile)
    pieces = ops.ceil(rows / ops.maximum(square, 1.0))
    all_columns = (capacity - under * columns) / (tile * columns + beside)
    for height in (ops.minimum(rows, square), ops.ceil(rows / pieces), rows, all_columns):
        p = ops.maximum(ops.minimum(rows, ops.floor(height)), 1.0)
        q = ops.floor((capacity - beside * p) / (tile * p + under))
        p = ops.where(q < 1.0, 1.0, p)
        q = ops.maximum(ops.minimum(columns, q), 1.0)
        taller = ops.floor((capacity - under * q) / (tile * q + beside))
        yield ops.maximum(p, ops.minimum(rows, taller)), q
