"""The closed forms against caches simulated tile by tile, and against the least that any schedule moves."""

from __future__ import annotations

from itertools import product
from typing import Literal

import pytest
from caches import Use, cache_traffic
from hypothesis import given, settings
from hypothesis import strategies as st

from peakline.cost.io_bounds import fused_attention_traffic, matmul_traffic
from peakline.cost.price import price
from peakline.cost.tiled.attention import (
    attention,
    attention_backward,
    attention_footprint,
    keys_walked,
    queries_walked,
)
from peakline.cost.tiled.matmul import dequantised_matmul, matmul, matmul_footprint
from peakline.hardware import device
from peakline.models.dtypes import dtype
from peakline.models.kernels import Attention, Gemm

POLICIES = ("lru", "belady")
Policy = Literal["lru", "belady"]
counts = st.integers(1, 5)
several = st.integers(2, 5)


def matmul_steps(down: int, across: int, deep: int) -> list[Use]:
    """The loop nest of the tiled product: every tile of C in turn, and for each all slices of k."""
    return [([f"A{i},{l}", f"B{l},{j}"], [f"C{i},{j}"])
            for i, j, l in product(range(down), range(across), range(deep))]  # fmt: skip


@pytest.mark.parametrize("policy", POLICIES)
@given(down=counts, across=counts, deep=several, side=st.sampled_from([16, 32]))
def test_a_cache_of_one_tile_of_each_matrix_moves_what_the_matmul_formula_says(
    policy: Policy, down: int, across: int, deep: int, side: int
) -> None:
    """With tiles of one size there is no room to keep anything else, so even optimal replacement moves as much."""
    steps = matmul_steps(down, across, deep)
    size = 4 * side * side
    moved = cache_traffic(steps, {t: size for reads, works in steps for t in (*reads, *works)}, 3 * size, policy)
    formula = matmul(down * side, across * side, deep * side, rows=side, cols=side, a=4, b=4, c=4)
    assert matmul_footprint(side, side, side, a=4, b=4) == 3 * size
    assert moved == (formula.loaded, formula.stored)


@pytest.mark.parametrize("policy", POLICIES)
@given(m=st.integers(1, 40), n=st.integers(1, 40), k=st.integers(17, 48), step=st.sampled_from([8, 16]))
@settings(max_examples=60)
def test_ragged_tiles_under_least_recent_use_never_move_more_than_the_formula(
    policy: Policy, m: int, n: int, k: int, step: int
) -> None:
    """Smaller tiles at the edges leave room in which a cache, but not a program, keeps something."""
    rows = cols = 16
    down, across, deep = -(-m // rows), -(-n // cols), -(-k // step)
    high = [min(rows, m - i * rows) for i in range(down)]
    wide = [min(cols, n - j * cols) for j in range(across)]
    long = [min(step, k - l * step) for l in range(deep)]
    sizes = {f"A{i},{l}": 4 * high[i] * long[l] for i in range(down) for l in range(deep)}
    sizes |= {f"B{l},{j}": 4 * long[l] * wide[j] for l in range(deep) for j in range(across)}
    sizes |= {f"C{i},{j}": 4 * high[i] * wide[j] for i in range(down) for j in range(across)}
    footprint = matmul_footprint(rows, cols, step, a=4, b=4)
    loaded, stored = cache_traffic(matmul_steps(down, across, deep), sizes, footprint, policy)
    formula = matmul(m, n, k, rows=rows, cols=cols, a=4, b=4, c=4)
    compulsory = 4 * (m * k + k * n)
    assert stored == formula.stored == 4 * m * n
    assert compulsory <= loaded <= formula.loaded


def attention_steps(tiles: int, walked: list[int]) -> list[Use]:
    """The loop nest of flash attention: every tile of queries in turn walks its tiles of keys."""
    return [([f"Q{i}", f"K{j}", f"V{j}"], [f"O{i}"]) for i in range(tiles) for j in range(walked[i])]


@pytest.mark.parametrize("policy", POLICIES)
@given(tiles=counts, keys=several, causal=st.booleans())
def test_a_cache_of_four_tiles_moves_what_the_attention_formula_says(
    policy: Policy, tiles: int, keys: int, causal: bool
) -> None:
    side, dim = 16, 32
    keys = max(keys, tiles + 1) if causal else keys
    steps = attention_steps(tiles, [min(keys, i + 1 + keys - tiles) if causal else keys for i in range(tiles)])
    size = 4 * side * dim
    loaded, stored = cache_traffic(steps, {t: size for r, w in steps for t in (*r, *w)}, 4 * size, policy)
    formula = attention(1, 1, 1, tiles * side, keys * side, dim, tile_queries=side, tile_keys=side, element=4,
                        causal=causal)  # fmt: skip
    assert loaded == formula.loaded
    assert stored == formula.stores["o"]


@given(st.integers(1, 60), st.integers(0, 60), st.sampled_from([4, 8, 16]), st.sampled_from([4, 8, 16]))
def test_causal_walks_are_those_of_the_loops_written_out(queries: int, more: int, rows: int, cols: int) -> None:
    """A tile is walked if it holds a pair that the mask leaves; of its lanes those of real tokens move."""
    keys = queries + more
    seen = [[j <= i + more for j in range(keys)] for i in range(queries)]
    by_query = by_key = 0
    for i in range(0, queries, rows):
        touched = [j for j in range(0, keys, cols) if any(any(line[j : j + cols]) for line in seen[i : i + rows])]
        by_query += sum(min(cols, keys - j) for j in touched)
    for j in range(0, keys, cols):
        touched = [i for i in range(0, queries, rows) if any(any(line[j : j + cols]) for line in seen[i : i + rows])]
        by_key += sum(min(rows, queries - i) for i in touched)
    full = keys_walked(queries, keys, rows, cols, causal=True)
    assert by_query <= full <= by_query + rows * cols * -(-queries // rows)
    assert queries_walked(queries, keys, rows, cols, causal=True) == by_key
    if queries % rows == 0:
        assert full == by_query


MATMUL_TILES = [(r, c, s) for r, c, s in product((16, 32, 64, 128, 256), (16, 32, 64, 128, 256), (16, 32, 64))]


@pytest.mark.parametrize(("m", "n", "k"), [(4096, 4096, 4096), (1000, 3000, 5000), (8192, 512, 8192)])
def test_no_matmul_tile_beats_the_bound_and_the_best_comes_within_a_fifth(m: int, n: int, k: int) -> None:
    ratios = []
    for rows, cols, step in MATMUL_TILES:
        capacity = matmul_footprint(rows, cols, step, a=4, b=4)
        bound = matmul_traffic(float(m) * n * k, capacity, 4, 4, 4)
        ratios.append(matmul(m, n, k, rows=rows, cols=cols, a=4, b=4, c=4).total / bound)
    assert 1 <= min(ratios) < 1.2


@pytest.mark.parametrize("dim", [16, 64, 128])
@pytest.mark.parametrize("causal", [False, True])
def test_no_attention_tile_beats_the_bound_and_the_best_comes_within_two(dim: int, causal: bool) -> None:
    length = 8192
    pairs = length * (length + 1) / 2 if causal else float(length * length)
    ratios = {}
    for rows, cols in product((16, 32, 64, 128, 256, 512), (16, 32, 64, 128)):
        capacity = attention_footprint(rows, cols, dim, element=4)
        moved = attention(1, 1, 1, length, length, dim, tile_queries=rows, tile_keys=cols, element=4, causal=causal)
        ratios[rows, cols] = moved.total / fused_attention_traffic(pairs, dim, dim, capacity, 4, 4, 4, 4)
    assert 1 <= min(ratios.values()) < 2


def test_flash_attention_attains_the_bounds_constant_when_queries_and_outputs_fill_the_memory() -> None:
    length, dim, rows = 2**20, 128, 2**14
    capacity = 4 * 2 * rows * dim
    least = fused_attention_traffic(float(length) ** 2, dim, dim, capacity, 4, 4, 4, 4)
    moved = attention(1, 1, 1, length, length, dim, tile_queries=rows, tile_keys=16, element=4).loads
    assert least <= moved["k"] + moved["v"] <= 1.02 * least


def element_steps(length: int, dim: int, rows: int, cols: int) -> list[Use]:
    """Attention of one head, element by element: scores of a tile, then its products with the values."""
    steps: list[Use] = []
    for first, start in product(range(0, length, rows), range(0, length, cols)):
        pairs = list(product(range(first, min(first + rows, length)), range(start, min(start + cols, length))))
        steps += [([f"Q{i},{l}", f"K{j},{l}"], [f"S{i},{j}"]) for i, j in pairs for l in range(dim)]
        steps += [([f"S{i},{j}", f"V{j},{l}"], [f"O{i},{l}"]) for i, j in pairs for l in range(dim)]
    return steps


@pytest.mark.parametrize(("dim", "capacity"), [(1, 8), (2, 8), (2, 16)])
def test_no_tiling_of_attention_under_optimal_replacement_beats_the_bound(dim: int, capacity: int) -> None:
    """Every element a byte; scores vanish once used. The bound says more here than the operands' size."""
    length = 16
    moved = []
    for rows, cols in product((1, 2, 4, 8, 16), (1, 2, 4, 8)):
        steps = element_steps(length, dim, rows, cols)
        names = {name for reads, works in steps for name in (*reads, *works)}
        scores = {name for name in names if name.startswith("S")}
        moved.append(sum(cache_traffic(steps, dict.fromkeys(names, 1), capacity, "belady", scores)))
    bound = fused_attention_traffic(float(length * length), dim, dim, capacity, 1, 1, 1, 1)
    assert 4 * length * dim < bound <= min(moved)


@pytest.mark.parametrize("causal", [False, True])
def test_the_backward_pass_does_not_beat_the_bound_of_its_own_products(causal: bool) -> None:
    length, dim = 4096, 64
    pairs = length * (length + 1) / 2 if causal else float(length * length)
    for rows, cols in product((16, 64, 128), (16, 64, 128)):
        moved = attention_backward(1, 1, 1, length, length, dim, tile_queries=rows, tile_keys=cols, element=4,
                                   causal=causal)  # fmt: skip
        capacity = attention_footprint(rows, cols, dim, element=4)
        assert moved.total >= fused_attention_traffic(pairs, dim, dim, capacity, 4, 4, 4, 4)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 300))
def test_larger_tiles_never_move_more(m: int, n: int, k: int) -> None:
    small, large = (matmul(m, n, k, rows=side, cols=side, a=2, b=2, c=2).total for side in (32, 64))
    assert large <= small


def test_four_bit_weights_move_an_eighth_of_float32_ones_and_their_scales() -> None:
    wide = matmul(16, 4096, 4096, rows=16, cols=64, a=4, b=4, c=4)
    narrow = dequantised_matmul(16, 4096, 4096, rows=16, cols=64, step=64, x=4, y=4, scale=4)
    assert narrow.loads["packed"] * 8 == wide.loads["b"]
    assert narrow.loads["scales"] == 4 * 4096 * 4096 // 64


BF16 = dtype("bf16")


@pytest.mark.parametrize(("m", "n", "k"), [(4096, 4096, 4096), (1024, 2048, 512), (8192, 1024, 4096)])
def test_the_gpu_model_draws_from_l2_what_the_formula_says_for_its_tile(m: int, n: int, k: int) -> None:
    """On whole tiles, without clusters and splits, at one of the menu's tiles."""
    from peakline.cost.gpu_gemm import TILES

    cost = price(Gemm(1, m, n, k, BF16, BF16, BF16), 2 * (m * k + n * k), 2 * m * n, device("a100-80gb"))
    assert cost.traffic["l2"] in {matmul(m, n, k, rows=r, cols=c, a=2, b=2, c=2).loaded for r, c in TILES}


@pytest.mark.parametrize("length", [1024, 4096])
def test_the_gpu_model_draws_the_keys_and_values_of_the_attention_formula_from_l2(length: int) -> None:
    heads, dim = 32, 128
    size = 2 * 8 * heads * length * dim
    kernel = Attention(8, heads, heads, length, length, length * length, dim, dim, BF16, BF16)
    cost = price(kernel, 3 * size, size, device("a100-80gb"))
    loads = attention(8, heads, heads, length, length, dim, tile_queries=128, tile_keys=128, element=2).loads
    assert cost.traffic["l2"] == loads["k"] + loads["v"]
