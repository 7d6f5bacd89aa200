"""Traffic against capacity, its knee, and the pictures of plans."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from schedule_cases import least_traffic_by_enumeration, problems, smallest_peak_by_enumeration, working_set

from peakline.cli import main
from peakline.plot_schedule import plot_addresses, plot_capacity
from peakline.solvers.plan import Plan
from peakline.solvers.problem import Operator, Problem, Tensor
from peakline.solvers.schedule import schedule
from peakline.solvers.schedule.sweep import Point, capacity_sweep, knee

CROSSING = Problem(
    (Tensor("x", 4, "input"), Tensor("a", 4), Tensor("b", 6), Tensor("c", 5), Tensor("y", 2, "output")),
    (
        Operator("f", ("x",), ("a",)),
        Operator("g", ("x",), ("b",)),
        Operator("h", ("b",), ("c",)),
        Operator("k", ("a", "c"), ("y",)),
    ),
)


@settings(max_examples=25, deadline=None)
@given(problems(5))
def test_every_point_brackets_the_optimum_and_traffic_falls_as_capacity_grows(problem: Problem) -> None:
    curve = capacity_sweep(problem, points=3, time_limit=20)
    assert curve.points[0].capacity == curve.largest_working_set == working_set(problem)
    assert curve.smallest_peak == smallest_peak_by_enumeration(problem)
    for point in curve.points:
        assert point.bound <= least_traffic_by_enumeration(problem, point.capacity) <= point.non_compulsory
    found = [point.non_compulsory for point in curve.points]
    assert found == sorted(found, reverse=True)


def test_the_knee_lies_furthest_below_the_chord() -> None:
    bent = [Point(0, 100, 0), Point(10, 20, 0), Point(20, 15, 0), Point(100, 0, 0)]
    assert knee(bent) == 1
    assert knee([Point(0, 100, 0), Point(50, 50, 0), Point(100, 0, 0)]) is None
    assert knee([Point(0, 0, 0), Point(100, 0, 0)]) is None


def test_a_sweep_from_the_command_line_is_a_table_json_and_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph, picture = tmp_path / "graph.json", tmp_path / "curve.png"
    graph.write_text(CROSSING.to_json())
    assert main(["schedule", str(graph), "--capacity-sweep", "--points", "3", "--plot", str(picture)]) == 0
    assert "largest working set" in capsys.readouterr().out
    assert picture.stat().st_size > 5000
    assert main(["schedule", str(graph), "--capacity-sweep", "--points", "3", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "peakline.capacity-sweep/1"
    assert document["points"][0]["capacity"] == working_set(CROSSING)
    assert main(["schedule", str(graph), "--capacity-sweep", "--capacity", "20"]) == 2


def test_the_map_shows_every_stay_within_the_capacity() -> None:
    plan = schedule(CROSSING, working_set(CROSSING))
    ax = plot_addresses(CROSSING, plan)
    stays = sum(len(collection.get_paths()) for collection in ax.collections)
    assert stays == sum(len(step.load) + len(step.produce) for step in plan.steps)
    tops = [path.get_extents().y1 for collection in ax.collections for path in collection.get_paths()]
    assert max(tops) <= plan.capacity
    assert plot_capacity(capacity_sweep(CROSSING, points=2)).get_xlabel() == "scratchpad in B"


def test_an_interrupted_sweep_keeps_the_points_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = capacity_sweep(CROSSING, points=3)

    def interrupted_at_once(problem: Problem, capacity: int, **options: object) -> Plan:
        plan = schedule(problem, capacity)
        proof = replace(plan.certificate, method=f"{plan.certificate.method}, interrupted")
        return replace(plan, certificate=proof)

    monkeypatch.setattr("peakline.solvers.schedule.sweep.schedule", interrupted_at_once)
    assert capacity_sweep(CROSSING, points=3).points == whole.points[:1]


def test_names_in_the_map_keep_to_their_rectangles() -> None:
    long = "encoder.layer_{}.attention.self.query.weight_gradient"
    chain = Problem(
        (
            Tensor("x", 8, "input"),
            *(Tensor(long.format(k), 2 + 3 * (k % 4)) for k in range(12)),
            Tensor("y", 4, "output"),
        ),
        tuple(
            Operator(f"f{k}", ("x" if k == 0 else long.format(k - 1),), (long.format(k) if k < 12 else "y",))
            for k in range(13)
        ),
    )
    plan = schedule(chain, 24)
    ax = plot_addresses(chain, plan)
    ax.get_figure().canvas.draw()
    boxes = [path.get_extents() for collection in ax.collections for path in collection.get_paths()]
    named = [text for text in ax.texts if text.get_text()]
    assert len(named) > len(boxes) / 2
    for text in named:
        drawn = text.get_window_extent().transformed(ax.transData.inverted())
        assert any(
            box.x0 <= drawn.x0 and drawn.x1 <= box.x1 and box.y0 <= drawn.y0 and drawn.y1 <= box.y1 for box in boxes
        ), text.get_text()
