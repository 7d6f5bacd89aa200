"""Pictures show what they say: checked on the drawn things, not on pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

import peakline as pk
from peakline.palette import BYTES, CYCLE, ROLES, SECONDS, unit_of
from peakline.pictures import plot_allocations, plot_heat_map, plot_measured, plot_pareto, plot_waterfall
from peakline.plot_roofline import plot_roofline
from peakline.plot_schedule import save_axes
from peakline.roofline import roofline


def labels(ax: Axes) -> list[str]:
    return ax.get_legend_handles_labels()[1]


def texts(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.texts if text.get_text()]


@pytest.fixture(scope="module")
def df() -> pd.DataFrame:
    return pk.sweep(
        model="llama-3.2-1b", device=["l4", "a100-80gb", "h100-sxm"], phase="decode", batch=[1, 16, 4096],
        context=[2048], kv_dtype=["bf16", "fp8"],
    )  # fmt: skip


def contrast(one: str, two: str) -> float:
    """WCAG 2.1's ratio of luminances."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    high, low = sorted((luminance(one), luminance(two)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_no_two_roles_share_a_colour_and_neighbours_differ_in_lightness() -> None:
    assert len(set(ROLES.values())) == len(ROLES)
    assert len(set(CYCLE)) == len(CYCLE)
    assert contrast(ROLES["parameter"], ROLES["activation"]) > 1.5


@pytest.mark.parametrize(
    ("amount", "units", "name"),
    [(1 << 30, BYTES, "GiB"), (1023, BYTES, "B"), (0.0, BYTES, "B"), (1.0, SECONDS, "s"), (0.5, SECONDS, "ms"),
     (0, SECONDS, "µs")],
)  # fmt: skip
def test_the_unit_is_the_largest_that_is_reached(amount: float, units: tuple, name: str) -> None:  # type: ignore[type-arg]
    assert unit_of(amount, units)[0] == name


def test_the_allocator_map_draws_every_allocation_once() -> None:
    from peakline.allocations import allocations

    est = pk.estimate(pk.training_step("gpt2", batch=1, seq=32, overrides={"layers": 2}), "l4")
    ax = plot_allocations(est)
    drawn = sum(len(collection.get_paths()) for collection in ax.collections)
    assert drawn == len([a for a in allocations(est).allocations if a.end > a.start])
    assert "left out" in plot_allocations(est, most=20).get_title(loc="left")


def test_the_front_of_the_picture_is_the_front(df: pd.DataFrame) -> None:
    ax = plot_pareto(df, "time_s", "device_bytes", by="device", label="batch")
    front = pk.pareto(df, ["time_s", "device_bytes"])
    line = next(line for line in ax.lines if line.get_label() == "Pareto front")
    assert len(line.get_xdata()) == len(front)
    assert {"l4", "a100-80gb", "h100-sxm"} <= set(labels(ax))
    assert ax.get_ylabel().endswith("GiB")


def test_a_heat_map_has_a_figure_for_each_cell_that_fits_and_a_cross_for_the_others(df: pd.DataFrame) -> None:
    part = df[df["kv_dtype"] == "fp8"]
    shown = texts(plot_heat_map(part, "batch", "device", "time_s"))
    assert len(shown) == 9
    assert shown.count("×") == int((~part["fits"].astype(bool)).sum()) > 0


def test_of_several_rows_in_a_cell_the_asked_one_counts(df: pd.DataFrame) -> None:
    part = df[df["fits"].astype(bool) & (df["batch"] == 16)]
    for how in ("min", "max"):
        ax = plot_heat_map(part, "batch", "device", "time_s", how=how)
        grid = np.asarray(ax.images[0].get_array(), dtype=float)
        expected = part.groupby("device", sort=False)["time_s"].agg(how).to_numpy(float)
        assert grid[:, 0] / grid[0, 0] == pytest.approx(expected / expected[0])


def test_a_waterfall_starts_at_the_baseline_and_ends_at_the_last_step() -> None:
    def graph(**options: object) -> pk.Graph:
        return pk.training_step("gpt2", batch=4, seq=256, **options)  # type: ignore[arg-type]

    steps = [("as it is", graph()), ("recompute", graph(recompute="full")), ("sgd", graph(optimizer="sgd"))]
    for measure in ("peak", "time"):
        ax = plot_waterfall(steps, device="l4", measure=measure)
        values = [pk.estimate(g, "l4") for _, g in steps]
        wanted = [float(e.peak if measure == "peak" else e.time) for e in values]
        bars = [(bar.get_y(), bar.get_height()) for bar in ax.patches]
        assert len(bars) == 4
        scale = wanted[0] / bars[0][1]
        assert bars[1][0] + bars[1][1] == pytest.approx(wanted[1] / scale)
        assert bars[2][0] + bars[2][1] == pytest.approx(wanted[2] / scale)
        assert bars[3][1] == pytest.approx(wanted[2] / scale)


def test_measured_against_predicted_states_the_error_of_all_rows() -> None:
    rows = pd.DataFrame({"measured": [1.0, 2.0, 4.0], "predicted": [1.1, 2.2, 8.0], "gpu": ["a", "a", "b"]})
    ax = plot_measured(rows)
    assert "3 measurements: median error 10.0%, 67% within a fifth" in ax.get_title(loc="left")
    assert labels(ax)[:2] == ["a (2)", "b (1)"]


def test_the_roofline_numbers_the_slowest_operators_and_no_label_lies_on_another() -> None:
    est = pk.estimate(pk.training_step("llama-3.2-1b", batch=1, seq=2048, dtype="bf16"), "h100-sxm")
    ax = plot_roofline(roofline(est))
    numbered = [text for text in ax.texts if text.get_text().isdigit()]
    assert [int(text.get_text()) for text in numbered] == list(range(1, len(numbered) + 1))
    figure = ax.figure
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in ax.texts]
    middles = [((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2) for box in boxes]
    for i, box in enumerate(boxes):
        assert not any(box.contains(*middle) for j, middle in enumerate(middles) if j != i)


@pytest.mark.parametrize("draw", [
    lambda df: plot_pareto(df, "tme_s", "device_bytes"),
    lambda df: plot_pareto(df, "time_s", "device_bytes", by="devise"),
    lambda df: plot_heat_map(df, "batch", "device", "time"),
    lambda df: plot_heat_map(df, "batch", "device", "time_s", how="most"),
    lambda df: plot_heat_map(df[df["batch"] == 4096], "batch", "device", "energy_j"),
    lambda df: plot_measured(df),
    lambda df: plot_waterfall([("one", pk.decode("gpt2", context=8))], device="l4"),
    lambda df: plot_waterfall([("a", pk.decode("gpt2", context=8)), ("b", pk.decode("gpt2", context=8))]),
])  # fmt: skip
def test_what_cannot_be_drawn_is_said_in_one_line(df: pd.DataFrame, draw: object) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        draw(df)  # type: ignore[operator]
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_a_picture_is_saved_in_the_format_of_its_ending(tmp_path: Path, kind: str) -> None:
    est = pk.estimate(pk.inference("mobilenet-v2-0.35", dtype="int8", image=96), "stm32h743")
    save_axes(plot_allocations(est), tmp_path / f"a.{kind}")
    start = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[kind]
    assert (tmp_path / f"a.{kind}").read_bytes().startswith(start)
