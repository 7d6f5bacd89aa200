"""Blocked matrix products: the tile that is chosen against every tile there is, and a cache that runs one."""

import math
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peakline.cost.io_bounds import matmul_traffic
from peakline.cost.tiling import blocked_traffic, resident_traffic

sizes = st.integers(1, 36)
widths = st.sampled_from([(1, 1, 1), (2, 2, 2), (1, 1, 4), (2, 1, 4)])


def every_tile(m, n, k, capacity, a, b, c):
    """Least traffic over all resident tiles of A, B or C, by trying each."""
    least = (a + b) * m * k * n + c * m * n

    def tiles(rows, columns, own, beside, under):
        for p in range(1, rows + 1):
            for q in range(1, columns + 1):
                if own * p * q + beside * p + under * q <= capacity:
                    yield p, q

    for p, q in tiles(m, n, c, a, b):
        least = min(least, a * m * k * math.ceil(n / q) + b * k * n * math.ceil(m / p) + c * m * n)
    for p, q in tiles(m, k, a, c, b):
        least = min(least, a * m * k + b * k * n * math.ceil(m / p) + c * m * n * (2 * math.ceil(k / q) - 1))
    for p, q in tiles(n, k, b, c, a):
        least = min(least, b * k * n + a * m * k * math.ceil(n / p) + c * m * n * (2 * math.ceil(k / q) - 1))
    return least


@settings(max_examples=150, deadline=None)
@given(sizes, sizes, sizes, st.integers(4, 1200), widths)
def test_the_chosen_tile_is_within_a_fifth_of_the_best_of_all(m, n, k, elements, width):
    capacity = elements * max(width)
    found = blocked_traffic(float(m), float(n), float(k), float(capacity), *width)
    best = every_tile(m, n, k, capacity, *width)
    assert best <= found <= 1.2 * best


@settings(max_examples=150, deadline=None)
@given(sizes, sizes, sizes, st.integers(4, 1200), widths)
def test_no_tile_beats_the_lower_bound(m, n, k, elements, width):
    capacity = elements * max(width)
    least = every_tile(m, n, k, capacity, *width)
    assert least >= matmul_traffic(float(m * n * k), float(capacity), *width)


@pytest.mark.parametrize("elements", [1 << 12, 1 << 14, 1 << 16])
def test_large_squares_come_within_two_percent_of_the_bounds_leading_term(elements):
    size = 16384.0
    found = blocked_traffic(size, size, size, float(elements), 1.0, 1.0, 1.0)
    assert 1.0 <= found / (2.0 * size**3 / elements**0.5) <= 1.05


@given(sizes, sizes, sizes, st.integers(4, 600), widths)
def test_more_memory_never_moves_more(m, n, k, elements, width):
    small, large = (
        blocked_traffic(float(m), float(n), float(k), float(elements * max(width) * f), *width) for f in (1, 3)
    )
    assert large <= small * 1.2


def test_what_fits_moves_once():
    assert blocked_traffic(30.0, 20.0, 10.0, 1e6, 2.0, 1.0, 4.0) == 2 * 300 + 200 + 4 * 600


def test_an_array_of_sizes_gives_each_its_own_tile():
    m = np.array([3.0, 300.0, 5000.0])
    together = blocked_traffic(m, 700.0, 90.0, 5e4, 2.0, 2.0, 4.0)
    assert together.tolist() == [blocked_traffic(x, 700.0, 90.0, 5e4, 2.0, 2.0, 4.0) for x in m.tolist()]


def lru_misses(addresses, capacity):
    """Elements that a least-recently-used cache of `capacity` elements fetches."""
    cache, misses = OrderedDict(), 0
    for address in addresses:
        if address in cache:
            cache.move_to_end(address)
            continue
        misses += 1
        cache[address] = None
        if len(cache) > capacity:
            cache.popitem(last=False)
    return misses


@pytest.mark.parametrize(("m", "n", "k", "tm", "tn"), [(12, 15, 7, 4, 5), (9, 8, 11, 4, 3), (6, 20, 5, 6, 4)])
def test_a_cache_that_holds_the_tile_fetches_what_the_formula_says(m, n, k, tm, tn):
    """The blocked loop nest, element by element, in a cache of one tile of C and a slice of A and of B (and a way)."""
    addresses = []
    for top in range(0, m, tm):
        for left in range(0, n, tn):
            rows, columns = range(top, min(top + tm, m)), range(left, min(left + tn, n))
            for l in range(k):
                for i in rows:
                    for j in columns:
                        addresses += [("b", l, j), ("a", i, l), ("c", i, j)]
    misses = lru_misses(addresses, tm * tn + 2 * (tm + tn))
    assert misses == resident_traffic(m, n, k, tm, tn, 1, 1, 1)
