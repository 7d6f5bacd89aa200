"""Invariants of `price` over devices, formats and shapes: order of the three times, scaling, arrays, errors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peakline.cost.machine import Level, Machine, machine
from peakline.cost.price import price
from peakline.hardware import device, devices
from peakline.models.dtypes import dtype, nbytes
from peakline.models.kernels import Attention, Convolution, Gemm, GroupedGemm, Scan, Stream

BF16, FP32, INT8, FP8 = (dtype(name) for name in ("bf16", "fp32", "int8", "fp8"))
GPUS = ("h100-sxm", "a100-80gb", "v100-pcie-32gb", "l40s", "b200", "rtx-4090", "t4", "mi300x")
OTHERS = ("tpu-v4", "xeon-8480plus", "stm32h743", "zcu102", "coral-edge-tpu", "hbm-pim")

dims = st.integers(1, 20_000)
few = st.integers(1, 64)


def gemm(batch, m, n, k, kind=BF16):
    """A product with its compulsory bytes: (kernel, reads, writes)."""
    return (
        Gemm(batch, m, n, k, kind, kind, kind),
        nbytes(batch * (m * k + k * n), kind),
        nbytes(batch * m * n, kind),
    )


def attention(batch, heads, group, queries, keys, dim, kind=BF16):
    """Attention of `queries` last positions over `keys`, causal where all positions are queries."""
    pairs = keys * (keys + 1) // 2 if queries is keys else queries * keys
    kernel = Attention(batch, heads * group, heads, queries, keys, pairs, dim, dim, kind, kind)
    reads = nbytes(batch * heads * dim * (group * queries + 2 * keys), kind)
    return kernel, reads, nbytes(batch * heads * group * queries * dim, kind)


@st.composite
def works(draw, kind=BF16):
    """Any kernel with honest compulsory bytes."""
    choice = draw(st.sampled_from(["gemm", "attention", "stream", "grouped", "convolution", "scan"]))
    m, n, k, b = draw(dims), draw(dims), draw(dims), draw(few)
    if choice == "gemm":
        return gemm(b, m, n, k, kind)
    if choice == "attention":
        queries = 1 if draw(st.booleans()) else m
        return attention(b, draw(few), draw(st.integers(1, 8)), queries, m, 128, kind)
    if choice == "stream":
        return Stream(draw(st.integers(1, 20)) * m * n, kind), nbytes(2 * m * n, kind), nbytes(m * n, kind)
    if choice == "grouped":
        rows = b * m
        return GroupedGemm(b, rows, n, k, kind, kind, kind), nbytes(rows * k + b * n * k, kind), nbytes(rows * n, kind)
    if choice == "convolution":
        side, taps, groups = draw(st.integers(1, 112)), draw(st.sampled_from([1, 9, 25])), draw(st.sampled_from([1, 8]))
        cin, cout = 8 * draw(few), 8 * draw(few)
        kernel = Convolution(b, cin, cout, groups, taps, side**2, side**2, kind, kind, kind, draw(st.booleans()))
        weights = taps * cin * cout // groups
        return kernel, nbytes(b * side**2 * cin + weights, kind), nbytes(b * side**2 * cout, kind)
    return Scan(b, m, 64 * draw(few), 16, kind), nbytes(2 * b * m * n, kind), nbytes(b * m * n, kind)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(GPUS), st.sampled_from([BF16, FP32, INT8, FP8]), st.data())
def test_bound_io_and_tiled_stand_in_order_on_every_gpu(name, kind, data):
    kernel, reads, writes = data.draw(works(kind))
    cost = price(kernel, reads, writes, device(name))
    assert 0 < cost.bound <= cost.io <= cost.tiled < float("inf")
    assert 0 <= cost.launch <= cost.tiled
    for level, least in cost.io_lower_bound.items():
        assert reads + writes <= least <= cost.traffic.get(level, float("inf")) or level == device(name).main.name
    assert cost.limited_by in cost.limits


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(OTHERS), st.data())
def test_bound_io_and_tiled_stand_in_order_on_every_other_kind(name, data):
    kernel, reads, writes = data.draw(works(INT8))
    cost = price(kernel, reads, writes, device(name))
    assert 0 < cost.bound <= cost.io <= cost.tiled < float("inf")


def test_every_device_that_computes_prices_a_product_or_says_in_one_line_why_not():
    refusals = {}
    for name in devices():
        try:
            cost = price(*gemm(1, 64, 64, 64, INT8), device(name))
        except ValueError as error:
            refusals[name] = str(error)
        else:
            assert 0 < cost.bound <= cost.tiled
    assert all(text.startswith(name) and "\n" not in text for name, text in refusals.items())


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(GPUS + OTHERS), st.lists(st.tuples(dims, dims), min_size=1, max_size=5), dims, few)
def test_an_array_of_shapes_costs_exactly_what_its_elements_cost(name, pairs, k, batch):
    m, n = (np.array(column) for column in zip(*pairs, strict=True))
    together = price(*gemm(batch, m, n, k, INT8), device(name))
    for i in range(len(pairs)):
        alone = price(*gemm(batch, int(m[i]), int(n[i]), k, INT8), device(name))
        assert (together.bound[i], together.io[i], together.tiled[i]) == (alone.bound, alone.io, alone.tiled)
        assert {level: moved[i] for level, moved in together.traffic.items()} == alone.traffic
        assert {limit: seconds[i] for limit, seconds in together.limits.items()} == alone.limits
        assert together.limited_by[i] == alone.limited_by


def test_chunks_of_a_large_sweep_join_without_a_seam():
    m = np.arange(1, 40_000)
    cost = price(*gemm(1, m, 4096, 512), device("h100-sxm"))
    for i in (0, 16_383, 16_384, 32_768, 39_998):
        assert cost.tiled[i] == price(*gemm(1, int(m[i]), 4096, 512), device("h100-sxm")).tiled


def test_axes_of_a_sweep_broadcast():
    batch, length = np.arange(1, 5)[:, None], np.array([128, 512, 2048])[None, :]
    cost = price(*attention(batch, 8, 4, length, length, 128), device("a100-80gb"))
    assert cost.tiled.shape == (4, 3)
    assert cost.limited_by.shape == (4, 3)


def test_a_sweep_of_nothing_costs_nothing():
    assert price(*gemm(1, np.array([], dtype=np.int64), 64, 64), device("a100-80gb")).tiled.shape == (0,)


def faster(target: Machine, factor: float) -> Machine:
    """A machine all of whose rates and clocks run `factor` times faster."""
    return replace(
        target,
        clock=target.clock * factor,
        matrix={name: rate * factor for name, rate in target.matrix.items()},
        vector={name: rate * factor for name, rate in target.vector.items()},
        levels=tuple(
            Level(level.name, level.capacity, level.bandwidth and level.bandwidth * factor, level.private)
            for level in target.levels
        ),
        launch=None,
    )


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(GPUS), st.data())
def test_doubling_every_rate_halves_every_time_but_the_fixed_latency(name, data):
    from peakline.cost.gpu import KINDS, constants

    kernel, reads, writes = data.draw(works())
    slow = replace(machine(device(name)), launch=None)
    before, after = (price(kernel, reads, writes, target) for target in (slow, faster(slow, 2.0)))
    assert after.bound == pytest.approx(before.bound / 2)
    assert after.io == pytest.approx(before.io / 2)
    # at most two fixed latencies are left over: the kernel's own and that of joining split work
    fixed = max(constants(slow, kind).launch_fixed for kind in KINDS)
    assert before.tiled / 2 * (1 - 1e-9) <= after.tiled <= before.tiled / 2 + fixed * (1 + 1e-9)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(GPUS), st.floats(1.0, 8.0), st.data())
def test_more_bandwidth_never_costs_time(name, factor, data):
    kernel, reads, writes = data.draw(works())
    slow = machine(device(name))
    levels = [replace(level, bandwidth=level.bandwidth and level.bandwidth * factor) for level in slow.levels]
    fast = replace(slow, levels=tuple(levels))
    assert price(kernel, reads, writes, fast).tiled <= price(kernel, reads, writes, slow).tiled * (1 + 1e-12)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(GPUS), st.floats(1.0, 8.0), st.data())
def test_more_arithmetic_never_costs_time(name, factor, data):
    kernel, reads, writes = data.draw(works())
    slow = machine(device(name))
    fast = replace(
        slow,
        matrix={kind: rate * factor for kind, rate in slow.matrix.items()},
        vector={kind: rate * factor for kind, rate in slow.vector.items()},
    )
    assert price(kernel, reads, writes, fast).tiled <= price(kernel, reads, writes, slow).tiled * (1 + 1e-12)


def test_the_bound_is_the_datasheet_roofline():
    h100 = device("h100-sxm")
    compute, memory = price(*gemm(1, 8192, 8192, 8192), h100), price(*gemm(1, 1, 8192, 8192), h100)
    assert compute.bound == pytest.approx(2 * 8192**3 / 989.4e12)
    assert memory.bound == pytest.approx((8192**2 + 2 * 8192) * 2 / h100.main.bandwidth)
    assert (compute.limited_by, memory.limited_by) == ("compute", "hbm")


def test_a_tiny_kernel_is_limited_by_its_launch():
    cost = price(*gemm(1, 16, 16, 16), device("h100-sxm"), cuda_graph=True)
    assert cost.limited_by == "launch"


def test_outside_a_graph_kernels_follow_no_faster_than_the_stream_lets_empty_ones():
    h100 = machine(device("h100-sxm"))
    slow_host = replace(h100, launch=50e-6)
    tiny = gemm(1, 16, 16, 16)
    assert price(*tiny, slow_host).tiled == 50e-6
    assert price(*tiny, slow_host, cuda_graph=True).tiled < 10e-6
    assert price(Stream(1, BF16, 3), 2, 2, slow_host).tiled == pytest.approx(150e-6)


def test_one_more_row_than_whole_waves_costs_a_wave():
    """132 SMs hold 132 tiles of 128 × 256; the 133rd waits for a second wave."""
    h100 = device("h100-sxm")
    whole = price(*gemm(1, 128 * 12, 256 * 11, 8192), h100).tiled
    more = price(*gemm(1, 128 * 13, 256 * 11, 8192), h100).tiled
    assert more > 1.2 * whole  # 8 % more work


def test_a_thin_product_with_a_long_k_is_split_over_the_idle_units():
    h100 = device("h100-sxm")
    short, long = (price(*gemm(1, 16, 128, k), h100).tiled for k in (2048, 16384))
    assert long < 4 * short


def test_more_on_chip_memory_never_raises_the_least_traffic():
    a100 = machine(device("a100-80gb"))
    work = gemm(1, 30_000, 30_000, 30_000)
    least = []
    for capacity in (1e4, 1e5, 1e6, 1e7, 1e8):
        levels = (Level("l2", capacity), a100.main)
        least.append(price(*work, replace(a100, levels=levels)).io_lower_bound["hbm"])
    assert least == sorted(least, reverse=True)
    assert least[0] > 10 * least[-1]


def test_the_io_bound_can_exceed_the_roofline():
    """A device with much arithmetic and little memory on chip is bound by traffic no schedule avoids."""
    chip = machine(device("a100-80gb"))
    starved = replace(chip, levels=(Level("l2", 64 * 2**10), chip.main), units=1)
    cost = price(*gemm(1, 16384, 16384, 16384), starved)
    assert cost.io > 1.5 * cost.bound


def test_depthwise_convolution_runs_at_memory_speed_not_as_a_padded_gemm():
    channels, side = 256, 56
    kernel = Convolution(32, channels, channels, channels, 9, side**2, side**2, BF16, BF16, BF16)
    moved = 32 * channels * side**2 * 2
    cost = price(kernel, moved + 9 * channels * 2, moved, device("h100-sxm"))
    assert cost.tiled < 4 * cost.bound


def test_weights_stored_in_four_bits_speed_up_decoding_not_prefill():
    h100, narrow = device("h100-sxm"), dtype("int4-g128")
    for m, gains in ((1, True), (8192, False)):
        wide = price(*gemm(1, m, 16384, 16384), h100).tiled
        reads = m * 16384 * 2 + nbytes(16384**2, narrow)
        packed = price(Gemm(1, m, 16384, 16384, BF16, narrow, BF16), reads, m * 16384 * 2, h100).tiled
        assert (packed < 0.5 * wide) == gains


def test_power_holds_back_a_board_whose_limit_is_small_for_its_peak():
    sxm, pcie = machine(device("h100-sxm")), machine(device("h100-pcie"))
    assert pcie.sustained < sxm.sustained <= 1
    assert machine(device("a100-80gb")).sustained == 1


def test_a_systolic_array_wastes_its_width_on_narrow_products():
    tpu = device("tpu-v4")
    narrow, wide = price(*gemm(1, 65536, 8, 4096), tpu), price(*gemm(1, 65536, 128, 4096), tpu)
    assert narrow.limits["compute"] == pytest.approx(wide.limits["compute"])


def test_a_microcontroller_adds_memory_time_to_arithmetic():
    cost = price(*gemm(1, 96, 96, 96, INT8), device("stm32h743"))
    assert cost.tiled == pytest.approx(sum(cost.limits[name] for name in ("compute", "sram")))


def test_a_device_without_arithmetic_is_refused():
    with pytest.raises(ValueError, match=r"samsung-990-pro-2tb .* does not compute"):
        price(*gemm(1, 8, 8, 8), device("samsung-990-pro-2tb"))


def test_a_format_that_a_device_cannot_hold_is_refused_with_those_it_can():
    with pytest.raises(ValueError, match=r"coral-edge-tpu cannot multiply in 'bf16'.*int8"):
        price(*gemm(1, 8, 8, 8), device("coral-edge-tpu"))


def test_latent_attention_reads_its_keys_once_for_all_heads():
    """128 heads over one latent (MLA) decode in about the time of 16; 64 ordinary heads over one key head do not."""
    h100 = device("h100-sxm")

    def decode(heads, qk_dim, v_dim):
        kernel = Attention(16, heads, 1, 1, 8192, 8192, qk_dim, v_dim, BF16, BF16)
        return price(kernel, 2 * 16 * 8192 * qk_dim, 2 * 16 * heads * v_dim, h100).tiled

    assert decode(128, 576, 512) < 4 * decode(16, 576, 512)
    assert decode(64, 128, 128) > 5 * decode(16, 128, 128)
