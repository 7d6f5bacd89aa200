"""Intervals: how far off a calibrated device's estimates may be, and how often measurements lie inside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import peakline as pk
from peakline.calibration.device import held_out
from peakline.cost.samples import device_of, folder_samples

FOLDER = Path(__file__).parents[2].parent / "shared" / "reference" / "measured"
measured = pytest.mark.skipif(not (FOLDER / "aic_gemm.csv.gz").exists(), reason=f"no measured tables in {FOLDER}")


@pytest.fixture(scope="module")
def step():
    return pk.training_step("llama-3.2-1b", batch=1, seq=1024, dtype="bf16", optimizer="adamw")


def test_the_interval_holds_the_estimate_and_never_goes_below_the_bound(step):
    est = pk.estimate(step, "h100-sxm")
    low, high = est.time_interval
    assert est.cost.bound <= low <= est.time <= high
    assert est.cost.bound <= est.cost.io <= est.cost.tiled <= high
    assert est.to_dict()["time"]["interval"] == [low, high]
    assert "–" in est.explain()


def test_a_device_without_a_calibration_has_no_interval(step):
    est = pk.estimate(step, "rtx-3090")
    assert est.time_interval is None
    assert "–" not in next(line for line in est.explain().splitlines() if line.startswith("Time"))


def test_every_configuration_of_a_sweep_has_its_interval():
    sweep = pk.prefill("llama-3.2-1b", batch=np.array([1, 4, 16]), seq=512, dtype="bf16")
    low, high = pk.estimate(sweep, "a100-80gb").time_interval
    assert low.shape == high.shape == (3,)
    for i, batch in enumerate((1, 4, 16)):
        alone = pk.estimate(pk.prefill("llama-3.2-1b", batch=batch, seq=512, dtype="bf16"), "a100-80gb")
        assert alone.time_interval == pytest.approx((low[i], high[i]))


@pytest.mark.parametrize("gpu", ["a100_sxm", "h100_sxm"])
@measured
def test_four_in_five_held_out_measurements_lie_in_the_interval(gpu):
    """The interval is made on held-out rows of another selection of shapes (the package's tables), at 80 %."""
    for sample in folder_samples(FOLDER):
        if sample.gpu != gpu or sample.source not in ("gemm", "prefill", "decode") or sample.dtype != "bf16":
            continue
        rows = sample.take(held_out(sample))
        low, high = device_of(gpu).calibration.interval(sample.kind)
        ratio = rows.measured / rows.predicted()
        assert 0.7 <= np.mean((ratio >= low) & (ratio <= high)) <= 0.92, sample.source


@pytest.mark.parametrize(("source", "limit"), [("gemm", 0.08), ("prefill", 0.12), ("decode", 0.12)])
@measured
def test_calibrated_kernels_are_right_on_shapes_that_took_no_part(source, limit):
    for sample in folder_samples(FOLDER):
        if sample.source == source and sample.dtype == "bf16":
            rows = sample.take(held_out(sample))
            error = np.abs(rows.predicted() / rows.measured - 1.0)
            assert np.median(error) <= limit, sample.gpu
