"""Fitting constants: known ones are found again from noisy rows, and what the fit leaves is what held-out rows show."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peakline.calibration.calibrate import fit, with_section
from peakline.calibration.device import calibrated, fit_kind, held_out, uncalibrated
from peakline.calibration.fit import robust_fit
from peakline.calibration.parameters import PARAMETERS
from peakline.calibration.shared import calibrations, shared_constants, table_of_shared
from peakline.cost.gpu import constants
from peakline.cost.gpu_shared import SHARED
from peakline.cost.samples import gemm_samples
from peakline.hardware import device
from peakline.hardware.files import read_device

TRUE = {"gemm.main_share": 0.71, "gemm.launch_fixed": 4.0e-6, "gemm.tensor_share": 0.8, "gemm.sustained": 0.7}


def rows(seed, count=1200):
    """Shapes of linear layers, as a table of an H100 measured in microseconds."""
    random = np.random.default_rng(seed)
    sizes = [16, 64, 256, 512, 1024, 2048, 4096, 8192, 12288]
    table = pd.DataFrame({name: random.choice(sizes, count) for name in ("m", "n", "k")}).drop_duplicates()
    return table.assign(gpu="h100_sxm", gemm_dtype="bfloat16", latency_us=1.0).reset_index(drop=True)


def measured_on(machine, seed, noise=0.05, outliers=0.03):
    """Those shapes as a machine would run them, with noise and some rows three times too slow."""
    (sample,) = gemm_samples(rows(seed))
    random = np.random.default_rng(seed + 1)
    seconds = sample.predicted(machine) * np.exp(noise * random.standard_normal(len(sample)))
    seconds = np.where(random.random(len(sample)) < outliers, 3.0 * seconds, seconds)
    object.__setattr__(sample, "measured", seconds)
    return sample


def test_a_line_is_fitted_in_spite_of_outliers():
    x = np.linspace(0.0, 1.0, 50)
    y = 2.0 + 3.0 * x
    y[::7] += 5.0
    found = robust_fit(lambda p: p[0] + p[1] * x, y, np.zeros(2), np.full(2, -10.0), np.full(2, 10.0), pull=1e-6)
    assert found == pytest.approx([2.0, 3.0], abs=0.05)


@settings(max_examples=25, deadline=None)
@given(st.floats(-3, 3), st.floats(-1, 0), st.floats(0, 1))
def test_a_fit_stays_between_its_bounds(target, low, high):
    found = robust_fit(lambda p: np.full(20, p[0]), np.full(20, target), np.zeros(1), np.array([low]), np.array([high]))
    assert low - 1e-12 <= found[0] <= high + 1e-12


def test_constants_that_made_the_rows_are_found_again():
    start = uncalibrated(device("h100-sxm"))
    base = {f"gemm.{name}": getattr(constants(start, "gemm"), name) for name in PARAMETERS["gemm"] if name != "issue"}
    truth = calibrated(start, {**base, **TRUE})
    found = fit_kind("gemm", [measured_on(truth, seed=3)], start)
    assert found["gemm.main_share"] == pytest.approx(TRUE["gemm.main_share"], rel=0.06)
    assert found["gemm.launch_fixed"] == pytest.approx(TRUE["gemm.launch_fixed"], rel=0.10)
    (others,) = gemm_samples(rows(seed=77))
    assert np.median(np.abs(others.predicted(calibrated(start, found)) / others.predicted(truth) - 1.0)) < 0.02
    assert np.median(np.abs(others.predicted(start) / others.predicted(truth) - 1.0)) > 0.10


def test_residuals_are_of_shapes_that_took_no_part():
    truth = calibrated(uncalibrated(device("h100-sxm")), {"gemm.main_share": 0.6})
    sample = measured_on(truth, seed=5, noise=0.2, outliers=0.0)
    found = fit(device("h100-sxm"), [sample], "made rows")
    residual = found.residuals["gemm"]
    assert residual.rows == held_out(sample).sum() < len(sample)
    # noise of 20 %: 80 % of the rows lie within ±1.28 standard deviations
    assert residual.low == pytest.approx(np.exp(-1.28 * 0.2), rel=0.08)
    assert residual.high == pytest.approx(np.exp(1.28 * 0.2), rel=0.08)
    assert residual.median < residual.p90


def test_half_of_the_shapes_are_held_out_and_the_same_ones_on_every_gpu():
    table = rows(seed=1)
    (here,) = gemm_samples(table)
    (there,) = gemm_samples(table.assign(gpu="a100_sxm"))
    assert (held_out(here) == held_out(there)).all()
    assert 0.4 < held_out(here).mean() < 0.6


def test_too_few_rows_are_refused():
    with pytest.raises(ValueError, match="at least 30 rows, got 5"):
        fit_kind(
            "gemm",
            [measured_on(uncalibrated(device("h100-sxm")), 1).take(np.arange(5))],
            uncalibrated(device("h100-sxm")),
        )


def test_a_calibration_survives_the_way_through_a_file(tmp_path):
    sample = measured_on(calibrated(uncalibrated(device("h100-sxm")), TRUE), seed=9)
    found = fit(device("h100-sxm"), [sample], "made rows: a test's")
    path = tmp_path / "mine.yaml"
    found.write(path)
    again = read_device(path)
    assert again.calibration.fitted == found.device.calibration.fitted
    assert again.calibration.residual == found.device.calibration.residual
    assert again.calibration.fitted_on == "made rows: a test's"
    before = path.read_text()
    found.write(path)  # replaced, not added a second time
    assert path.read_text() == before
    assert "#" in before or "sources:" in before


def test_a_file_of_another_device_is_left_alone(tmp_path):
    path = tmp_path / "other.yaml"
    found = fit(device("h100-sxm"), [measured_on(uncalibrated(device("h100-sxm")), 2)], "rows")
    found.write(tmp_path / "h100.yaml")
    path.write_text((tmp_path / "h100.yaml").read_text().replace("name: h100-sxm", "name: other-gpu"))
    with pytest.raises(ValueError, match="other-gpu"):
        found.write(path)


def test_only_the_section_changes_in_a_file():
    text = "name: a\ncalibration:\n  fitted_on: old\n  constants: {gemm.x: 1.0}\npower: {}\n"
    section = {"fitted_on": "new", "attainable": {}, "constants": {"gemm.y": 2.0}, "residual": {}}
    changed = with_section(text, section)
    assert "old" not in changed
    assert "name: a\npower: {}" in changed
    assert "fitted_on: new" in changed


def test_shared_constants_are_the_medians_of_the_calibrations_in_the_catalogue():
    assert dict(SHARED) == table_of_shared()


def test_a_gpu_left_out_has_no_say_in_the_constants_it_gets():
    fits = dict(calibrations())
    machine, _ = fits["l40s"]
    without = shared_constants(fits, machine, leave="l40s")
    strange = {key: value * 3.0 for key, value in fits["l40s"][1].items()}
    assert shared_constants({**fits, "l40s": (machine, strange)}, machine, leave="l40s") == without


def test_a_constant_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match=r"gemm\.speed.*main_share"):
        constants(calibrated(uncalibrated(device("h100-sxm")), {"gemm.speed": 1.0}), "gemm")
