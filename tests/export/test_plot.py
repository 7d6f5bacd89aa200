"""The picture of memory over the run says what the estimate says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection

import peakline as pk
from peakline.plot import save_memory

CASES = {
    "training with recomputation": ("training_step", "llama-3.1-8b", {"seq": 8192, "recompute": "full"}, "h100-sxm"),
    "training an image model": ("training_step", "resnet-50", {"batch": 64}, "h100-sxm"),
    "prefill": ("prefill", "llama-2-7b", {"batch": 8, "seq": 2048}, "a100-80gb"),
    "decode that does not fit": ("decode", "llama-2-7b", {"batch": 16, "context": 4096}, "rtx-4090"),
    "a microcontroller": ("inference", "mobilenet-v2", {"dtype": "int8"}, "stm32h743"),
}


def _estimate(case: str) -> pk.Estimate:
    build, model, options, device = CASES[case]
    return pk.estimate(getattr(pk, build)(model, **options), device)


def _highest(ax: Axes) -> float:
    """The top of the stacked areas."""
    return max(path.vertices[:, 1].max() for area in ax.collections if isinstance(area, PolyCollection)
               for path in area.get_paths())  # fmt: skip


def _unit(ax: Axes) -> int:
    return {"GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10}[ax.get_ylabel().split()[-1]]


@pytest.mark.parametrize("case", CASES)
def test_the_areas_rise_to_the_live_peak(case: str) -> None:
    est = _estimate(case)
    ax = est.plot_memory()
    assert _highest(ax) * _unit(ax) == pytest.approx(est.memory.live, rel=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_the_peak_is_named_with_its_operator(case: str) -> None:
    est = _estimate(case)
    assert any(est.memory.peak_operator in text.get_text() for text in est.plot_memory().texts)


@pytest.mark.parametrize("case", CASES)
def test_the_time_axis_ends_with_the_run(case: str) -> None:
    est = _estimate(case)
    ax = est.plot_memory()
    scale = {"s": 1.0, "ms": 1e-3, "µs": 1e-6}[ax.get_xlabel().split()[-1]]
    assert ax.get_xlim()[1] * scale == pytest.approx(est.time)


def test_the_capacity_is_a_line_where_it_is_near_and_words_where_it_is_far() -> None:
    near = _estimate("decode that does not fit").plot_memory()
    capacity = pk.device("rtx-4090").main.capacity / 2**30
    assert any(np.allclose(line.get_ydata(), capacity) for line in near.lines)
    far = _estimate("training an image model").plot_memory()
    assert any("capacity" in text.get_text() and "beyond" in text.get_text() for text in far.get_legend().texts)


def test_phases_are_named_and_recomputation_belongs_to_the_backward_pass() -> None:
    words = {text.get_text() for text in _estimate("training with recomputation").plot_memory().texts}
    assert {"forward", "backward", "optimizer"} <= words


def test_drawing_touches_no_global_state_of_matplotlib() -> None:
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    _estimate("prefill").plot_memory()
    assert plt.get_fignums() == before


def test_it_draws_where_it_is_told() -> None:
    from matplotlib.figure import Figure

    figure = Figure()
    ax = figure.add_subplot(2, 1, 1)
    assert _estimate("prefill").plot_memory(ax) is ax
    assert len(figure.axes) == 1


@pytest.mark.parametrize(("ending", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_the_ending_chooses_the_format(tmp_path: Path, ending: str, start: bytes) -> None:
    save_memory(_estimate("a microcontroller"), tmp_path / f"memory.{ending}")
    assert (tmp_path / f"memory.{ending}").read_bytes().startswith(start)


def test_a_sweep_has_no_single_picture() -> None:
    sweep = pk.estimate(pk.prefill("llama-3.2-1b", batch=[1, 2], seq=128), "h100-sxm")
    with pytest.raises(ValueError, match="sweep"):
        sweep.plot_memory()
