"""Lower bounds on traffic stay below the optimum found by brute force, and not far below good schedules."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pebbles import accesses, cache_traffic, least_traffic, tilings

from peakline.cost.io_bounds import (
    attention_backward_traffic,
    attention_traffic,
    convolution_traffic,
    fused_attention_traffic,
    matmul_traffic,
)

capacities = st.floats(1, 1e9)
sizes = st.integers(1, 10**6)


@pytest.mark.parametrize("capacity", [3, 4])
@pytest.mark.parametrize(("m", "n", "k"), [(2, 2, 2), (1, 3, 2), (3, 2, 1), (1, 2, 3)])
def test_no_schedule_of_a_tiny_product_beats_the_matmul_bound(m, n, k, capacity):
    optimum = least_traffic(m, n, k, capacity)
    assert optimum >= m * k + k * n + m * n
    assert matmul_traffic(m * n * k, capacity, 1, 1, 1) <= optimum


def test_the_pebble_game_itself_finds_a_known_optimum():
    """With room for everything, each operand once and each result once; with less room, more."""
    assert least_traffic(1, 2, 2, 8) == 2 + 4 + 2
    assert least_traffic(2, 2, 2, 3) > least_traffic(2, 2, 2, 4) > 12


@pytest.mark.parametrize("capacity", [8, 24, 60])
def test_no_tiling_under_optimal_replacement_beats_the_matmul_bound_and_the_best_comes_close(capacity):
    size = 8
    traffic = [
        cache_traffic(accesses(size, tile, order), capacity, 2 * size**2)
        for tile, order in tilings(size)
        if max(tile) < size or tile == (size, size, size)
    ]
    bound = max(matmul_traffic(size**3, capacity, 1, 1, 1), 3 * size**2)
    assert bound <= min(traffic) <= 1.9 * bound


def test_the_matmul_constant_is_attained_by_a_square_block_of_results():
    """Hold a b × b block of C, stream A and B past it: 2mnk/b + mn elements with S = b² + 2b."""
    size, block = 2**14, 2**7
    schedule = 2 * size**3 / block + size**2
    bound = matmul_traffic(float(size) ** 3, block**2 + 2 * block, 1, 1, 1)
    assert bound <= schedule <= 1.02 * bound


@pytest.mark.parametrize("capacity", [3, 4])
@pytest.mark.parametrize(("queries", "keys", "dim"), [(2, 2, 2), (2, 3, 1), (1, 2, 3), (3, 2, 1)])
def test_no_schedule_of_tiny_scores_beats_the_attention_bound(queries, keys, dim, capacity):
    """Scores need not be stored: the pebble game lets them vanish once whole."""
    optimum = least_traffic(queries, keys, dim, capacity, consumed=True)
    assert attention_traffic(queries * keys, dim, capacity, 1, 1) <= optimum


def flash_traffic(n: int, d: int, rows: int, cols: int) -> tuple[int, int]:
    """(elements held, elements moved) by FlashAttention with tiles of `rows` queries and `cols` keys, one head."""
    held = 2 * rows * d + 2 * cols * d + rows * cols
    return held, 2 * n * d + -(-n // rows) * 2 * n * d


@pytest.mark.parametrize("d", [4, 16, 64])
def test_no_flash_tiling_beats_the_attention_bound(d):
    n = 1024
    for rows in (1, 2, 8, 32, 128, 1024):
        for cols in (1, 2, 8, 32, 128):
            held, moved = flash_traffic(n, d, rows, cols)
            assert attention_traffic(float(n * n), d, held, 1, 1) <= moved


def test_attention_traffic_falls_as_one_over_s_above_d_squared_and_as_one_over_root_s_below():
    """The two regimes of Saha and Ye."""
    d, pairs = 64, 1e24
    large = attention_traffic(pairs, d, 1e6 * d * d, 1, 1) / attention_traffic(pairs, d, 4e6 * d * d, 1, 1)
    small = attention_traffic(pairs, d, d * d / 4e3, 1, 1) / attention_traffic(pairs, d, d * d / 1e3, 1, 1)
    assert large == pytest.approx(4, rel=0.01)
    assert small == pytest.approx(2, rel=0.05)


def direct_convolution(width: int, taps: int, channels: int, outputs: int) -> list[int]:
    """Accesses of a 1-D convolution that holds one output and walks channels and taps; results last in numbering."""
    places = width - taps + 1
    weights = width * channels
    results = weights + outputs * channels * taps
    touched = []
    for o in range(outputs):
        for q in range(places):
            for c in range(channels):
                for t in range(taps):
                    touched += [
                        c * width + q + t,
                        weights + (o * channels + c) * taps + t,
                        results + o * places + q,
                    ]
    return touched


@pytest.mark.parametrize("capacity", [4, 8, 16, 40])
def test_a_convolution_that_reuses_its_inputs_does_not_beat_the_convolution_bound(capacity):
    width, taps, channels, outputs = 18, 3, 4, 6
    touched = direct_convolution(width, taps, channels, outputs)
    moved = cache_traffic(touched, capacity, width * channels + outputs * channels * taps)
    products = len(touched) / 3
    assert convolution_traffic(products, taps, capacity, 1, 1, 1) <= moved


@given(sizes, sizes, sizes, capacities, st.floats(1, 100))
def test_more_fast_memory_never_raises_a_bound(m, n, k, capacity, factor):
    products = float(m) * n * k
    larger = capacity * factor
    assert matmul_traffic(products, larger, 2, 2, 2) <= matmul_traffic(products, capacity, 2, 2, 2)
    # the subtracted term counts copies of S once; allow for it
    before, after = (attention_traffic(products, 64, s, 2, 2) for s in (capacity, larger))
    assert after <= before or after == pytest.approx(before)


@given(sizes, sizes, st.integers(1, 200), capacities)
def test_dividing_the_work_among_private_memories_never_helps(m, n, copies, capacity):
    """The sum over units is at least what one memory as large as all of them needs."""
    products = float(m) * n * 128
    apart = matmul_traffic(products, capacity, 2, 2, 2, copies)
    together = matmul_traffic(products, capacity * copies, 2, 2, 2)
    assert apart >= together * (1 - 1e-12) or together == pytest.approx(apart, rel=1e-6)


def test_narrow_elements_move_fewer_bytes():
    wide, narrow = (matmul_traffic(1e12, 1e6, e, e, e) for e in (4.0, 1.0))
    assert narrow < wide


def test_bounds_of_arrays_are_the_bounds_of_their_elements():
    products = np.array([1e6, 1e9, 1e12])
    together = matmul_traffic(products, 1e5, 2, 2, 2)
    assert list(together) == [matmul_traffic(p, 1e5, 2, 2, 2) for p in products.tolist()]


def backward_traffic(n: int, d: int, rows: int, cols: int) -> tuple[int, int]:
    """(elements held, elements moved) by the two kernels of FlashAttention's split backward pass, one head.

    One keeps `cols` rows of K, V, dK, dV and streams Q and dO; the other keeps `rows` of Q, dO and dQ and streams K, V.
    """
    held = max(4 * cols * d + 2 * d, 3 * rows * d + 2 * d)
    of_keys = 4 * n * d + -(-n // cols) * 2 * n * d
    of_queries = 3 * n * d + -(-n // rows) * 2 * n * d
    return held, of_keys + of_queries


@pytest.mark.parametrize("d", [4, 64])
def test_the_backward_bound_stands_below_every_tiling_and_within_a_third_of_a_good_one(d):
    n = 1 << 20
    ratios = []
    for rows in (1, 4, 64, 1024, 8192):
        for cols in (1, 3, 48, 768, 6144):
            held, moved = backward_traffic(n, d, rows, cols)
            least = max(attention_backward_traffic(float(n * n), d, d, held, 1, 1, 1, 1), 7 * n * d)
            assert least <= moved
            ratios.append(moved / least)
    assert min(ratios) < 1.4


def test_the_backward_bound_is_two_and_a_half_times_that_of_the_forward_pass_above_d_squared():
    d, pairs, capacity = 64, 1e24, 1e6 * 64 * 64
    back = attention_backward_traffic(pairs, d, d, capacity, 1, 1, 1, 1)
    assert back / fused_attention_traffic(pairs, d, d, capacity, 1, 1, 1, 1) == pytest.approx(2 * 3**0.25, rel=0.01)


@given(st.lists(st.floats(0.01, 1), min_size=4, max_size=4))
def test_no_split_of_a_segments_bytes_forms_more_gradients_than_the_bound_allows(parts):
    """The share-out behind the constant: G never exceeds s³/(12√3)."""
    q, o, k, v = parts
    formed = q * k * o + min(q, o) * min(k, v) * (q + k)
    assert formed <= sum(parts) ** 3 / (12 * 3**0.5) * (1 + 1e-12)


@given(sizes, sizes, capacities, st.sampled_from([1, 8]))
def test_values_that_are_part_of_the_keys_lower_the_bound(pairs, dim, capacity, copies):
    apart, together = (
        fused_attention_traffic(float(pairs) * 1e6, dim, dim, capacity, 2, 2, 2, 2, copies, latent=latent)
        for latent in (1.0, 2.0)
    )
    assert together <= apart


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 64), min_size=1, max_size=12), st.integers(2, 20_000), st.sampled_from([1, 2, 4]))
def test_no_division_among_private_memories_beats_the_bound(blocks, elements, width):
    """Units that each form a cube of products of some size, from the least elements it can be formed from."""
    capacity, traffic = float(elements * width), 0.0
    for side in blocks:
        p = float(side**3)
        touched = 3 * side**2 * width
        traffic += max(touched, 2 * p * width**1.5 / capacity**0.5 - 2 * capacity)
    products = float(sum(side**3 for side in blocks))
    assert matmul_traffic(products, capacity, width, width, width, len(blocks)) <= traffic * (1 + 1e-9)


def test_many_private_memories_still_leave_five_sixths_of_the_leading_term():
    products, capacity = 1e15, 1e6
    alone = matmul_traffic(products, capacity, 1, 1, 1)
    assert matmul_traffic(products, capacity, 1, 1, 1, 1 << 20) == pytest.approx(0.830 * alone, rel=0.01)
