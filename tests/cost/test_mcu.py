"""Time on a microcontroller: what the libraries' kernels cost, and measured inferences."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import peakline as pk
from peakline.calibration.microcontrollers import Inference, chosen_for_fit, fit, predicted
from peakline.cost import mcu_kernels as kernels
from peakline.cost.mcu import micro_of
from peakline.validation.microcontrollers import inferences, microcontrollers

REFERENCE = Path(__file__).parents[2].parent / "shared" / "reference"
measured = pytest.mark.skipif(
    not (REFERENCE / "measured" / "tinyengine_stm32h743.csv").exists(), reason="the measured tables are not at hand"
)


def _time(network: str, device: str = "stm32h743", runtime: str | None = None, dtype: str = "int8") -> float:
    return float(pk.estimate(pk.inference(network, dtype=dtype), device, runtime=runtime).time)


def test_reference_kernels_are_an_order_slower_than_optimised_ones() -> None:
    times = [_time("mcunet-vww2", runtime=r) for r in ("tinyengine", "cmsis-nn", "tflm")]
    assert times == sorted(times)
    assert times[2] > 10 * times[1]


def test_a_depthwise_product_is_dearer_than_one_of_a_matrix() -> None:
    """The same multiply-accumulates: nine taps of 64 channels, and 64 × 9 inputs to one channel."""
    window = kernels.Window(1.0, 64.0, 1.0, 9.0, 1024.0, 1024.0)
    matrix = kernels.product(kernels.DSP, 1.0, 1024.0, 64.0, 9.0)
    assert kernels.depthwise(kernels.DSP, window) > 2 * matrix


@pytest.mark.parametrize("side", [3, 5, 7])
def test_two_neighbouring_outputs_share_the_loads_of_a_row(side: int) -> None:
    """Loads and products counted one by one in the generated loop of TinyEngine's depthwise kernel."""
    instructions = 0
    for _ in range(side):
        inputs = {column + output for output in (0, 1) for column in range(side)}
        instructions += len(inputs) + side + 2 * side
    bare = kernels.Kernels(0, 0, 0, requantise=0.0, depthwise_mac=0, by_channel=True, move=0.0)
    found = kernels.depthwise(bare, kernels.Window(1.0, 1.0, 1.0, float(side * side), 2.0, 2.0))
    assert found == pytest.approx(instructions)


def test_packed_weights_are_unpacked_before_they_multiply() -> None:
    eight = kernels.product(kernels.DSP, 1.0, 16.0, 16.0, 64.0)
    assert kernels.product(kernels.DSP, 1.0, 16.0, 16.0, 64.0, four_bit=True) > eight


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["tflm", "cmsis-nn", "x-cube-ai", "tinyengine"]),
    st.sampled_from(["stm32l4r5", "stm32u575", "stm32h743", "stm32g0b1", "ra8d1"]),
    st.sampled_from(["resnet-8", "ds-cnn", "fc-autoencoder", "mcunet-vww0"]),
)
def test_twice_the_clock_takes_half_the_cycles_time(runtime: str, device: str, network: str) -> None:
    base = pk.device(device)
    slow = _time(network, device, runtime)
    graph = pk.inference(network, dtype="int8")
    fast = pk.device(base, **{"compute.clock": f"{2 * (base.clock or 0) / 1e6} MHz"})
    assert float(pk.estimate(graph, fast, runtime=runtime).time) == pytest.approx(slow / 2, rel=1e-6)


@pytest.mark.parametrize("runtime", ["tflm", "cmsis-nn", "x-cube-ai", "tinyengine"])
def test_bound_io_and_tiled_stand_in_order(runtime: str) -> None:
    cost = pk.estimate(pk.inference("mcunet-in1", dtype="int8"), "stm32h743", runtime=runtime).cost
    assert 0 < cost.bound <= cost.io <= cost.tiled


def test_a_larger_data_cache_never_slows_a_network() -> None:
    graph = pk.inference("mcunet-in3", dtype="int8")
    boards = [pk.device("stm32h743", **{"mcu.data_cache": f"{k} KiB"}) for k in (4, 16, 64, 512)]
    times = [float(pk.estimate(graph, board).time) for board in boards]
    assert times == sorted(times, reverse=True)
    assert times[0] > times[-1]


def test_a_core_whose_kernels_are_not_described_keeps_its_peak_rate() -> None:
    assert micro_of(pk.device("esp32")) is None
    assert micro_of(pk.device("h100-sxm")) is None


def test_an_unknown_library_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"runtime: must be one of bare, tflm, .*got 'tvm'"):
        pk.estimate(pk.inference("ds-cnn", dtype="int8"), "stm32h743", runtime="tvm")
    with pytest.raises(ValueError, match=r"inference library of microcontrollers, and h100-sxm is none"):
        pk.estimate(pk.inference("ds-cnn", dtype="int8"), "h100-sxm", runtime="tflm")


def test_fitting_on_predictions_gives_the_constants_back() -> None:
    rows = [
        Inference("stm32l4r5", "x-cube-ai", network, "int8", 1.0)
        for network in ("resnet-8", "ds-cnn", "fc-autoencoder")
    ]
    exact = [row._replace(seconds=1.25 * predicted(row)) for row in rows]
    again = fit(exact)
    for row in exact:
        assert predicted(row, again) == pytest.approx(row.seconds, rel=0.03)


@measured
def test_latency_is_within_a_quarter_of_what_boards_measure() -> None:
    rows = [row for row in inferences(REFERENCE) if row.dtype == "int8" and not chosen_for_fit(row)]
    errors = sorted(abs(predicted(row) / row.seconds - 1) for row in rows)
    assert len(errors) >= 15
    assert errors[len(errors) // 2] < 0.12
    assert errors[int(0.9 * len(errors))] < 0.25


@measured
def test_whether_a_network_fits_is_right_on_every_row() -> None:
    table = microcontrollers(REFERENCE)
    verdicts = table[table["what"] == "fits"]
    assert len(verdicts) >= 20
    assert (verdicts["measured"] == verdicts["predicted"]).all()


@measured
def test_every_row_is_predicted_or_says_why_not() -> None:
    table = microcontrollers(REFERENCE)
    assert ((table["predicted"].notna()) ^ (table["reason"] != "")).all()
