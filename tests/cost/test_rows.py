"""Kernels that reduce rows: what later passes over a row cost, by what the caches hold, and what few rows cost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peakline.cost.machine import machine
from peakline.cost.price import price
from peakline.hardware import device
from peakline.models.dtypes import dtype
from peakline.models.kernels import Stream
from peakline.models.operators.rows import layer_norm_rows, softmax_backward_rows, softmax_rows

FP32, BF16 = dtype("fp32"), dtype("bf16")
A100, V100 = device("a100-pcie-80gb"), device("v100-pcie-32gb")


def softmax(rows, n, target, *, staged=True):
    """A float32 softmax over [rows, n]."""
    kernel = Stream(8 * rows * n, FP32, **softmax_rows(rows, n, FP32, staged=staged))
    return price(kernel, 4 * rows * n, 4 * rows * n, target)


def test_a_row_that_a_warp_holds_costs_what_any_elementwise_kernel_costs():
    rows, n = 100_000, 1024
    plain = price(Stream(8 * rows * n, FP32), 4 * rows * n, 4 * rows * n, A100)
    assert softmax(rows, n, A100).tiled == plain.tiled


def test_three_passes_over_rows_that_no_cache_holds_read_them_three_times():
    cost = softmax(8192, 131_072, A100)
    assert cost.traffic["hbm"] == pytest.approx(4 * 4 * 8192 * 131_072)


def test_a_row_staged_in_shared_memory_is_read_once():
    cost = softmax(8192, 8192, V100)
    assert cost.traffic["hbm"] == 2 * 4 * 8192 * 8192
    assert softmax(8192, 8192, V100, staged=False).traffic["hbm"] > 1.8 * cost.traffic["hbm"]


def test_a_larger_l2_keeps_more_of_the_rows_in_flight():
    """A second pass over 6,400-element rows misses on V100 (6 MiB of L2) and mostly hits on A100 (40 MiB)."""
    kernel = Stream(1, FP32, **layer_norm_rows(32_768, 6400 // 2))
    moved = 4 * 32_768 * 3200
    ratio = {gpu.name: price(kernel, moved, moved, gpu).traffic["hbm"] / (2 * moved) for gpu in (V100, A100)}
    assert ratio[V100.name] > 1.4
    assert ratio[A100.name] < 1.3


def test_one_long_row_leaves_all_but_one_unit_idle():
    one, full = softmax(1, 128_256, device("h100-sxm")), softmax(132, 128_256, device("h100-sxm"))
    assert one.tiled > 0.3 * full.tiled
    assert one.tiled > 3 * price(Stream(8 * 128_256, FP32), 4 * 128_256, 4 * 128_256, device("h100-sxm")).tiled


def test_a_wave_more_of_rows_costs_a_wave():
    """What latency holds back grows by whole waves of the rows that fit on the SMs at once."""
    gpu = replace(machine(A100), launch=None)
    in_flight = gpu.units * 2048 // 128
    walk = layer_norm_rows(in_flight, 64)
    first, second = (
        price(Stream(1, BF16, **(walk | {"rows": rows})), 2 * rows * 64, 2 * rows * 64, gpu, cuda_graph=True).tiled
        for rows in (in_flight, in_flight + 1)
    )
    assert second > 1.2 * first


def test_batch_statistics_that_outgrow_l2_cost_a_second_reading():
    small, large = 2**20, 2**30
    for size, readings in ((small, 2.0), (large, 3.0)):
        cost = price(Stream(size, BF16, 2, again=size), size, size, A100)
        assert cost.traffic["hbm"] == pytest.approx(readings * size)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["h100-sxm", "a100-80gb", "v100-pcie-32gb", "t4", "mi300x", "xeon-8480plus"]),
    st.lists(st.tuples(st.integers(1, 100_000), st.integers(1, 200_000)), min_size=1, max_size=5),
    st.booleans(),
)
def test_an_array_of_row_shapes_costs_exactly_what_its_elements_cost(name, shapes, staged):
    rows, n = (np.array(column) for column in zip(*shapes, strict=True))
    walks = {
        "softmax": lambda r, c: softmax_rows(r, c, BF16, staged=staged),
        "backward": lambda r, c: softmax_backward_rows(r, c, BF16),
        "norm": layer_norm_rows,
    }
    for walk in walks.values():
        together = price(Stream(5 * rows * n, BF16, 2, again=rows, **walk(rows, n)), 2 * rows * n, rows, device(name))
        for i, (r, c) in enumerate(shapes):
            alone = price(Stream(5 * r * c, BF16, 2, again=r, **walk(r, c)), 2 * r * c, r, device(name))
            assert together.tiled[i] == alone.tiled >= alone.io >= alone.bound
            assert {level: moved[i] for level, moved in together.traffic.items()} == alone.traffic


def test_threads_per_row_follow_the_library():
    """Grid and block sizes recorded with PyTorch 2.0 kernels: 256 threads for 1,280 floats, 512 from 2,560 on."""
    for n, threads in ((1280, 256), (2048, 256), (2560, 512), (16_384, 512)):
        assert softmax_rows(8, n, FP32, staged=False)["threads"] == threads
