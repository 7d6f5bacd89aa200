"""The machine itself as a device: what the system says, and rates fitted on a recording of real operators."""

from pathlib import Path

import numpy as np
import pytest

import peakline as pk
from peakline.calibration.local import fit_local, system
from peakline.cost.price import price
from peakline.hardware.files import read_device
from peakline.models.dtypes import dtype
from peakline.models.kernels import Gemm
from peakline.record import read_trace

TRACE = Path(__file__).parents[1] / "traces" / "cpu-amd-epyc"


@pytest.fixture(scope="module")
def fitted():
    return fit_local(read_trace(TRACE))


def test_the_system_tells_cores_caches_and_memory():
    tree = system()
    assert tree["compute"]["units"] >= 1
    assert int(tree["memory"]["dram"]["capacity"].split()[0]) > 2**30


def test_half_of_the_operators_predict_the_other_half(fitted):
    held = [row for row in fitted.rows if row[-1]]
    assert 0.25 * len(fitted.rows) < len(held) < 0.75 * len(fitted.rows)
    assert fitted.median < 0.15


def test_large_products_reach_the_fitted_rate(fitted):
    form = dtype("fp32")
    gemm = Gemm(1, 2048, 2048, 2048, form, form, form)
    seconds = price(gemm, 8 * 2048**2, 4 * 2048**2, fitted.device).tiled
    measured = next(m for name, *_, m, _, _ in fitted.rows if name == "gemm_fp32_m2048_n2048_k2048")
    assert seconds == pytest.approx(measured, rel=0.3)


def test_a_product_with_a_vector_gets_the_bandwidth_of_one_core(fitted):
    assert fitted.device.calibration.constants["gemm.vector"] == pytest.approx(
        fitted.device.main.bandwidth / 2, rel=0.3
    )
    products = [
        abs(p / m - 1) for name, *_, m, p, held in fitted.rows if held and name.startswith("gemm") and "_m1_" in name
    ]
    assert np.median(products) < 0.2


def test_what_is_left_out_is_counted_with_its_reason(fitted):
    recorded = len(read_trace(TRACE).operators)
    assert len(fitted.rows) + sum(fitted.left_out.values()) == recorded
    assert any("pages" in reason for reason in fitted.left_out)


def test_the_fitted_host_is_a_device_file_like_any_other(fitted, tmp_path):
    fitted.write(tmp_path / "local.yaml")
    found = read_device(tmp_path / "local.yaml")
    assert found.kind == "cpu"
    assert np.isclose(found.main.bandwidth, fitted.device.main.bandwidth)
    assert pk.estimate(pk.inference("resnet-50", batch=1, dtype="fp32"), found).time > 0


def test_a_trace_without_operators_is_refused(fitted):
    empty = read_trace(TRACE)
    with pytest.raises(ValueError, match="operators are usable; record more"):
        fit_local(type(empty)(**{**empty.__dict__, "rows": []}))
