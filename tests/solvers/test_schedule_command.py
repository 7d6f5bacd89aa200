"""`peakline schedule`, and graphs as scheduling problems."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_command import Run, run

import peakline as pk
from peakline.scheduling import part_of, problem_of
from peakline.solvers.plan import Plan
from peakline.solvers.problem import Problem
from peakline.solvers.replay import replay

__all__ = ["run"]  # a fixture

BY_HAND = {
    "tensors": [
        {"name": "x", "bytes": 4, "role": "input"},
        {"name": "a", "bytes": 4, "role": "activation"},
        {"name": "b", "bytes": 6, "role": "activation"},
        {"name": "c", "bytes": 5, "role": "activation"},
        {"name": "y", "bytes": 2, "role": "output"},
    ],
    "operators": [
        {"name": "f", "inputs": ["x"], "outputs": ["a"]},
        {"name": "g", "inputs": ["x"], "outputs": ["b"]},
        {"name": "h", "inputs": ["b"], "outputs": ["c"]},
        {"name": "k", "inputs": ["a", "c"], "outputs": ["y"]},
    ],
}


@pytest.fixture
def by_hand(tmp_path: Path) -> Path:
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(BY_HAND), encoding="utf-8")
    return path


def test_a_plan_written_to_a_file_replays(by_hand: Path, tmp_path: Path, run: Run) -> None:
    done = run("schedule", str(by_hand), "--capacity", "12", "--out", str(tmp_path / "plan.json"), "--json")
    assert done.code == 0
    answer = json.loads(done.out)
    plan = Plan.from_json((tmp_path / "plan.json").read_text(encoding="utf-8"))
    counted = replay(Problem.from_dict(BY_HAND), plan)
    assert answer["traffic"]["non_compulsory"] == counted.non_compulsory == answer["certificate"]["lower_bound"]
    assert (answer["status"], answer["peak"]) == ("optimal", counted.peak)


def test_too_small_a_capacity_ends_in_1_and_says_what_would_do(by_hand: Path, run: Run) -> None:
    done = run("schedule", str(by_hand), "--capacity", "10", "--json")
    assert done.code == 1
    answer = json.loads(done.out)
    assert (answer["status"], answer["smallest_capacity"], answer["forced_by"]) == ("infeasible", 11, "h")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--capacity"),
        (["--capacity", "0"], "capacity: must be at least 1"),
        (["--capacity", "12", "--time-limit", "0"], "time limit: must be above 0"),
        (["--capacity", "12", "--objective", "speed"], "objective: must be one of"),
        (["--capacity", "12", "--objective", "time"], "--bandwidth: time needs the link's"),
        (["--capacity", "12", "--objective", "time", "--bandwidth", "1"], "neither seconds nor flops"),
        (["--objective", "time", "--bandwidth", "1"], "--capacity: the least time needs one"),
        (["--capacity", "12", "--bandwidth", "1"], "rates matter to --objective time"),
        (["--capacity", "12", "--objective", "time", "--bandwidth", "0"], "must be a rate above 0"),
        (["--capacity", "12", "--only", "q"], "no operator's name starts with 'q'"),
        (["--capacity", "12", "--batch", "2"], "scheduled as it is"),
        (["--capacity", "twelve"], "twelve"),
        (["--capacity", "12", "--tile"], "says nothing of how operators split"),
    ],
)
def test_bad_input_ends_in_2_with_one_line(by_hand: Path, run: Run, arguments: list[str], message: str) -> None:
    done = run("schedule", str(by_hand), *arguments)
    assert done.code == 2
    assert message in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize("text", ["", "[1]", '{"tensors": []}', '{"tensors": [], "operators": []}'])
def test_a_file_that_is_no_problem_ends_in_2(tmp_path: Path, run: Run, text: str) -> None:
    path = tmp_path / "graph.json"
    path.write_text(text, encoding="utf-8")
    assert run("schedule", str(path), "--capacity", "12").code == 2


def test_a_catalogued_model_is_scheduled_with_its_weights(run: Run) -> None:
    done = run("schedule", "resnet-50", "--capacity", "9938944", "--json")
    assert done.code == 0
    assert json.loads(done.out)["status"] == "optimal"


def test_batch_norm_and_relu_in_place_are_one_operator_and_views_none() -> None:
    problem = problem_of(pk.inference("resnet-50"))
    names = [operator.name for operator in problem.operators]
    assert "bn1.batch_norm+relu" in names
    assert not any("view" in name for name in names)
    assert [t.name for t in problem.tensors if t.role == "output"] == ["fc.linear.out"]


def test_every_parameter_of_a_model_is_in_its_problem_once() -> None:
    graph = pk.inference("mobilenet-v2")
    problem = problem_of(graph)
    weights = sum(t.bytes for t in problem.tensors if t.role == "parameter")
    assert weights == graph.total_bytes("parameter")  # running statistics lie in the batch norms' scales and shifts
    assert all(t.role != "parameter" for t in problem_of(graph, scope="activations").tensors)


def test_gradients_end_off_chip_and_the_loss_backward_follows_the_forward() -> None:
    graph = pk.training_step("bert-base-uncased", batch=1, seq=32, optimizer="none")
    problem = problem_of(graph)
    outputs = sum(t.bytes for t in problem.tensors if t.role == "output")
    assert outputs >= 2 * graph.trainable_parameters  # bfloat16
    plan_order = [problem.operators[i].name for i in problem.given_order]
    assert plan_order.index("loss.log_softmax") < plan_order.index("loss.log_softmax.backward")


def test_a_part_reads_inputs_and_makes_outputs_where_it_is_cut() -> None:
    whole = problem_of(pk.inference("inception-v3"), scope="activations")
    part = part_of(whole, "Mixed_5b")
    assert {o.name for o in part.operators} == {o.name for o in whole.operators if o.name.startswith("Mixed_5b")}
    assert [t.role for t in part.tensors].count("input") == 1
    assert [t.role for t in part.tensors].count("output") >= 1


def test_a_sweep_has_no_single_schedule() -> None:
    import numpy as np

    with pytest.raises(ValueError, match="a sweep has no single schedule"):
        problem_of(pk.inference("resnet-50", batch=np.array([1, 2])))
