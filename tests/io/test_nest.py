"""Tiled loop nests: the closed form against a memory simulated element by element, and the best tiling against all."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replays import replay

from peakline.io_complexity.nest import Nest, Operand, Window, best_tiling, footprint, steps, traffic
from peakline.io_complexity.products import Convolution, Matmul, best_matmul
from peakline.io_complexity.work import splits

ROLES = {"in": "loaded", "out": "stored", "scratch": "scratch"}


def touched(nest: Nest, operand: Operand, ranges: dict[str, tuple[int, int]]) -> set[tuple[object, ...]]:
    """The elements of an operand that a step needs, listed one by one."""
    axes = []
    for axis in operand.axes:
        if isinstance(axis, Window):
            first, last = ranges[axis.dim]
            axes.append(sorted({p * axis.stride + tap for p in range(first, last) for tap in range(axis.taps)}))
        else:
            axes.append(list(range(*ranges[axis])))
    return {(operand.name, *place, n) for place in product(*axes) for n in range(operand.each)}


def simulated(nest: Nest, tile: dict[str, int], order: tuple[str, ...], policy: str) -> float:
    walk = [set().union(*(touched(nest, o, ranges) for o in nest.operands)) for ranges in steps(nest, tile, order)]
    roles = {o.name: ROLES[o.role] for o in nest.operands}
    sizes = {o.name: o.element for o in nest.operands}
    room = max(sum(sizes[str(e[0])] for e in step) for step in walk)
    return replay(walk, room, policy, roles, sizes)


def formula(nest: Nest, tile: dict[str, int], order: tuple[str, ...]) -> float:
    return float(sum(traffic(nest, {d: np.float64(t) for d, t in tile.items()}, order).values()))


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


@pytest.mark.parametrize("policy", ["lru", "belady"])
def test_lru_and_belady_fetch_what_the_formula_says_for_every_tiling_of_a_small_product(policy):
    """The memory holds one tile of A, of B and of C; tiles divide the product, so it is always full."""
    nest = Matmul(4, 6, 4, a=2, b=1, c=4).nest()
    for tile in product(divisors(4), divisors(6), divisors(4)):
        sizes = dict(zip("mnk", tile, strict=True))
        for order in permutations("mnk"):
            assert simulated(nest, sizes, order, policy) == formula(nest, sizes, order)


@settings(max_examples=80, deadline=None)
@given(st.tuples(*[st.integers(1, 6)] * 3), st.tuples(*[st.integers(1, 6)] * 3), st.permutations("mnk"))
def test_ragged_tiles_are_counted_exactly_too(sizes, tile, order):
    """With nothing kept but what two steps share; what a ragged tile leaves free would serve a cache for more."""
    nest = Matmul(*sizes).nest()
    cut = {d: min(t, nest.sizes[d]) for d, t in zip("mnk", tile, strict=True)}
    assert simulated(nest, cut, tuple(order), "leave") == formula(nest, cut, tuple(order))
    assert simulated(nest, cut, tuple(order), "belady") <= formula(nest, cut, tuple(order))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_convolutions_halo_is_counted_exactly(data):
    stride, taps = data.draw(st.integers(1, 3)), data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    space = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    channels, filters, batch = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2))
    nest = Convolution(batch, channels, filters, space, taps, stride, c=4).nest()
    tile = {d: data.draw(st.integers(1, size), label=d) for d, size in nest.sizes.items()}
    order = tuple(data.draw(st.permutations(list(nest.sizes))))
    assert simulated(nest, tile, order, "leave") == formula(nest, tile, order)


@pytest.mark.parametrize("policy", ["lru", "belady"])
@pytest.mark.parametrize("order", ["bpqfc", "fbpqc", "fcbpq", "bcpqf"])
def test_lru_and_belady_fetch_what_the_formula_says_for_a_convolution_of_even_tiles(order, policy):
    """One tap, so that there is no halo: with one, tiles at the image's edge and inside share different amounts."""
    nest = Convolution(2, 4, 4, (4, 2), (1, 1)).nest()
    tile = {"b": 1, "p": 2, "q": 1, "f": 2, "c": 2}
    assert simulated(nest, tile, tuple(order), policy) == formula(nest, tile, tuple(order))


@pytest.mark.parametrize("order", ["bpqfc", "fbpqc", "fcbpq", "bcpqf"])
def test_lru_fetches_what_the_formula_says_for_a_convolution_with_a_halo(order):
    nest = Convolution(1, 4, 4, (6, 4), (3, 3)).nest()
    tile = {"b": 1, "p": 2, "q": 4, "f": 2, "c": 2}
    assert simulated(nest, tile, tuple(order), "lru") == formula(nest, tile, tuple(order))


@settings(max_examples=60, deadline=None)
@given(st.tuples(*[st.integers(1, 24)] * 3), st.integers(3, 300), st.sampled_from([(1, 1, 1), (2, 1, 4), (1, 2, 2)]))
def test_the_blocking_of_a_product_is_the_best_of_all_tiles_and_orders(sizes, elements, widths):
    capacity = float(elements * max(widths))
    found = best_matmul(*sizes, capacity, *widths)
    nest = Matmul(*sizes, a=widths[0], b=widths[1], c=widths[2]).nest()
    best = best_tiling(nest, capacity)
    assert (found is None) == (best is None)
    if found is not None and best is not None:
        assert found.traffic == best.traffic
        assert found.footprint <= capacity


@given(st.integers(1, 3000))
def test_no_number_of_pieces_is_left_out(size):
    tried = {-(-size // int(t)) for t in splits(size)}
    assert tried == {-(-size // t) for t in range(1, size + 1)}


@settings(max_examples=150, deadline=None)
@given(st.tuples(*[st.integers(1, 40)] * 3), st.tuples(*[st.integers(1, 40)] * 3), st.permutations("mnk"))
def test_no_tiling_of_a_product_beats_the_bound(sizes, tile, order):
    work = Matmul(*sizes)
    nest = work.nest()
    cut = {d: min(t, nest.sizes[d]) for d, t in zip("mnk", tile, strict=True)}
    room = float(footprint(nest, {d: np.float64(t) for d, t in cut.items()}))
    assert formula(nest, cut, tuple(order)) >= work.bound(room)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_tiling_of_a_convolution_beats_the_bound(data):
    stride = data.draw(st.integers(1, 3))
    taps = data.draw(st.sampled_from([(1, 1), (3, 3), (1, 5)]))
    space = (data.draw(st.integers(1, 14)), data.draw(st.integers(1, 14)))
    batch, channels, filters = (data.draw(st.integers(1, most)) for most in (3, 16, 16))
    work = Convolution(batch, channels, filters, space, taps, stride)
    nest = work.nest()
    tile = {d: data.draw(st.integers(1, size), label=d) for d, size in nest.sizes.items()}
    order = tuple(data.draw(st.permutations(list(nest.sizes))))
    room = float(footprint(nest, {d: np.float64(t) for d, t in tile.items()}))
    assert formula(nest, tile, order) >= work.bound(room)


@pytest.mark.parametrize("capacity", [2**12, 2**16, 2**20])
def test_large_products_come_within_a_twentieth_of_the_bounds_constant(capacity):
    work = Matmul(16384, 16384, 16384, a=1, b=1, c=1)
    found = work.best(capacity)
    assert found is not None
    assert 1 <= found.traffic / work.bound(capacity) < 1.07


@pytest.mark.parametrize("size", [64, 512, 4096])
def test_a_product_is_always_within_twice_its_bound(size):
    work = Matmul(size, size, size)
    for power in range(8, 26):
        found = work.best(2.0**power)
        assert found is not None
        assert found.traffic <= 2 * work.bound(2.0**power)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(2, 5), st.integers(20, 200))
def test_the_few_loop_orders_tried_for_a_convolution_lose_little_against_all(batch, channels, filters, side, elements):
    work = Convolution(batch, channels, filters, (side, side), a=1, b=1, c=1)
    found, best = work.best(float(elements)), best_tiling(work.nest(), float(elements))
    assert (found is None) == (best is None)
    if found is not None and best is not None:
        assert best.traffic <= found.traffic <= 1.25 * best.traffic
