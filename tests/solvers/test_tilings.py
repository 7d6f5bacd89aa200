"""Operators of models in parts, and the command line that offers them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_command import Run, run
from test_alternatives import MATMUL

import peakline as pk
from peakline.scheduling import part_of, problem_of
from peakline.solvers.alternatives import Choices
from peakline.solvers.bounds import largest_working_set
from peakline.solvers.dag import Dag
from peakline.solvers.plan import Plan
from peakline.solvers.replay import replay
from peakline.solvers.replay_time import replay_time
from peakline.solvers.schedule.choosing import schedule_choosing
from peakline.tilings import with_tilings

__all__ = ["run"]  # a fixture


@pytest.mark.parametrize("model", ["resnet-18", "mobilenet-v2", "bert-base-uncased", "gpt2"])
def test_every_tiling_offered_is_the_operator_in_parts_that_fit(model: str) -> None:
    """`Choices` has checked that each alternative reads every input and makes every output; nothing is moved twice."""
    # GPT-2's 50,257 words are not divisible by 2
    graph = pk.inference(model, dtype="int8", **({"seq": 64} if model in ("bert-base-uncased", "gpt2") else {}))
    problem = problem_of(graph)
    capacity = int(0.6 * largest_working_set(Dag.of(problem))[0])
    choices = with_tilings(graph, problem, capacity)
    assert choices.alternatives
    size = {t.name: t.bytes for t in problem.tensors}
    for name, listed in choices.alternatives.items():
        for alternative in listed:
            expanded = choices.expand({name: alternative.name})
            assert alternative.largest_part(size) <= capacity
            assert expanded.compulsory == problem.compulsory
            assert sum(t.bytes for t in expanded.tensors) == sum(size.values())
            parts = [o for o in expanded.operators if o.name.startswith(f"{name}/")]
            assert len(parts) == int(alternative.name.split("/")[1])


def test_weights_stream_in_blocks_through_a_third_of_the_largest_working_set() -> None:
    graph = pk.inference("resnet-18", dtype="int8")
    problem = problem_of(graph)
    capacity = largest_working_set(Dag.of(problem))[0] // 3
    choices = with_tilings(graph, problem, capacity)
    plan = schedule_choosing(choices, capacity, time_limit=20)
    assert replay(choices.expand(plan.alternatives), plan).non_compulsory == 0
    assert plan.certificate.status == "optimal"


def test_a_depthwise_convolution_takes_its_channels_from_the_same_share_of_its_input() -> None:
    graph = pk.inference("mobilenet-v2", dtype="int8")
    problem = part_of(problem_of(graph), "features.2.conv.1.0.")
    choices = with_tilings(graph, problem, 800_000)
    (listed,) = choices.alternatives.values()
    parts = choices.expand({problem.operators[0].name: listed[0].name}).operators
    assert len({name for part in parts for name in part.inputs if "[features=" in name}) == 2 * len(parts) + sum(
        len(part.inputs) - 2 for part in parts
    )


def test_the_command_line_takes_alternatives_of_a_file(tmp_path: Path, run: Run) -> None:
    path, out = tmp_path / "graph.json", tmp_path / "plan.json"
    path.write_text(json.dumps(MATMUL), encoding="utf-8")
    done = run("schedule", str(path), "--capacity", "38", "--out", str(out), "--json")
    assert done.code == 0
    assert json.loads(done.out)["alternatives"] == {"matmul": "columns/2"}
    plan = Plan.from_json(out.read_text(encoding="utf-8"))
    replay(Choices.from_dict(MATMUL).expand(plan.alternatives), plan)
    timed = run("schedule", str(path), "--capacity", "38", "--objective", "time", "--bandwidth", "1", "--out", str(out))
    assert timed.code == 0
    plan = Plan.from_json(out.read_text(encoding="utf-8"))
    replay_time(Choices.from_dict(MATMUL).expand(plan.alternatives), plan)


def test_too_small_for_every_alternative_ends_in_1(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(MATMUL), encoding="utf-8")
    done = run("schedule", str(path), "--capacity", "32", "--json")
    assert done.code == 1
    answer = json.loads(done.out)
    assert (answer["smallest_capacity"], answer["forced_by"]) == (33, "matmul")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--capacity", "38", "--allow", "bypass"], "--allow: does not go with alternatives"),
        (["--capacity", "38", "--objective", "peak"], "alternatives serve traffic and time"),
        (["--objective", "peak"], "--capacity: alternatives need one"),
        (["--capacity-sweep"], "--capacity-sweep: does not go with alternatives"),
        (["--capacity", "38", "--only", "relu"], "offers alternatives"),
        (["--capacity", "38", "--time-limit", "0"], "time limit: must be above 0"),
    ],
)
def test_what_alternatives_do_not_go_with_is_named(
    tmp_path: Path, run: Run, arguments: list[str], message: str
) -> None:
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(MATMUL), encoding="utf-8")
    done = run("schedule", str(path), *arguments)
    assert done.code == 2
    assert message in done.err
