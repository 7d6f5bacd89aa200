"""The referee refuses whatever is wrong with a plan, and the problem's own faults are named."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from schedule_cases import problems, working_set

from peakline.solvers.plan import Plan, PlanError, Step
from peakline.solvers.problem import Operator, Problem, ProblemError, Tensor
from peakline.solvers.replay import ReplayError, replay
from peakline.solvers.schedule import schedule


@st.composite
def planned(draw: st.DrawFn) -> tuple[Problem, Plan]:
    """A random problem and its plan at the largest working set, or a little above it."""
    problem = draw(problems(6))
    return problem, schedule(problem, working_set(problem) + draw(st.integers(0, 4)), time_limit=20)


def _with_step(plan: Plan, position: int, step: Step) -> Plan:
    return replace(plan, steps=(*plan.steps[:position], step, *plan.steps[position + 1 :]))


@settings(max_examples=80, deadline=None)
@given(planned())
def test_plans_survive_json_and_replay_to_what_they_state(case: tuple[Problem, Plan]) -> None:
    problem, plan = case
    again = Plan.from_json(plan.to_json())
    assert again == plan
    done = replay(problem, again)
    assert (done.load, done.store, done.peak) == (plan.traffic.load, plan.traffic.store, plan.peak)
    assert done.arena <= plan.capacity


@settings(max_examples=80, deadline=None)
@given(planned(), st.data())
def test_a_dropped_load_is_refused(case: tuple[Problem, Plan], data: st.DataObject) -> None:
    problem, plan = case
    position, name = data.draw(st.sampled_from([(t, n) for t, s in enumerate(plan.steps) for n in s.load]))
    step = plan.steps[position]
    mutated = _with_step(plan, position, replace(step, load={n: o for n, o in step.load.items() if n != name}))
    with pytest.raises(ReplayError, match="not resident") as caught:
        replay(problem, mutated)
    assert caught.value.tensor == name


@settings(max_examples=80, deadline=None)
@given(planned(), st.data())
def test_two_tensors_of_a_step_at_one_offset_are_refused(case: tuple[Problem, Plan], data: st.DataObject) -> None:
    problem, plan = case
    crowded = [t for t, s in enumerate(plan.steps) if len(s.load) + len(s.produce) > 1]
    assume(crowded)
    position = data.draw(st.sampled_from(crowded))
    step = plan.steps[position]
    offset = {**step.load, **step.produce}[next(iter({**step.load, **step.produce}))]
    same = replace(step, load=dict.fromkeys(step.load, offset), produce=dict.fromkeys(step.produce, offset))
    with pytest.raises(ReplayError, match=r"overlaps|passes the capacity"):
        replay(problem, _with_step(plan, position, same))


def test_swapped_offsets_of_unequal_tensors_are_refused() -> None:
    tensors = (Tensor("x", 4, "input"), Tensor("w", 8, "parameter"), Tensor("y", 2, "output"))
    problem = Problem(tensors, (Operator("f", ("x", "w"), ("y",)),))
    plan = schedule(problem, 14)
    step = plan.steps[0]
    swapped = replace(step, load={"x": step.load["w"], "w": step.load["x"]})
    with pytest.raises(ReplayError, match=r"overlaps|passes the capacity"):
        replay(problem, _with_step(plan, 0, swapped))


@settings(max_examples=80, deadline=None)
@given(planned(), st.data())
def test_an_exchange_of_a_maker_and_its_reader_is_refused(case: tuple[Problem, Plan], data: st.DataObject) -> None:
    problem, plan = case
    reads = {o.name: set(o.inputs) for o in problem.operators}
    pairs = [
        (p, q)
        for p in range(len(plan.steps))
        for q in range(p + 1, len(plan.steps))
        if reads[plan.steps[q].operator] & set(plan.steps[p].produce)
    ]
    assume(pairs)
    p, q = data.draw(st.sampled_from(pairs))
    steps = list(plan.steps)
    steps[p], steps[q] = steps[q], steps[p]
    with pytest.raises(ReplayError):
        replay(problem, replace(plan, steps=tuple(steps)))


@settings(max_examples=60, deadline=None)
@given(planned(), st.data())
def test_a_dropped_store_is_refused(case: tuple[Problem, Plan], data: st.DataObject) -> None:
    problem, plan = case
    stores = [(t, n) for t, s in enumerate(plan.steps) for n in s.store]
    assume(stores)
    position, name = data.draw(st.sampled_from(stores))
    step = plan.steps[position]
    mutated = _with_step(plan, position, replace(step, store=tuple(n for n in step.store if n != name)))
    with pytest.raises(ReplayError, match=r"not off-chip|does not end off-chip"):
        replay(problem, mutated)


@settings(max_examples=60, deadline=None)
@given(planned())
def test_a_capacity_below_the_highest_address_is_refused(case: tuple[Problem, Plan]) -> None:
    problem, plan = case
    with pytest.raises(ReplayError, match="passes the capacity"):
        replay(problem, replace(plan, capacity=replay(problem, plan).arena - 1))


@settings(max_examples=60, deadline=None)
@given(planned(), st.integers(1, 9))
def test_misstated_figures_are_refused(case: tuple[Problem, Plan], error: int) -> None:
    problem, plan = case
    for wrong in (
        replace(plan, peak=plan.peak + error),
        replace(plan, traffic=replace(plan.traffic, load=plan.traffic.load + error)),
        replace(plan, traffic=replace(plan.traffic, store=plan.traffic.store + error)),
        replace(plan, traffic=replace(plan.traffic, compulsory=plan.traffic.compulsory + error)),
    ):
        with pytest.raises(ReplayError, match="the plan states"):
            replay(problem, wrong)


@settings(max_examples=40, deadline=None)
@given(planned(), st.data())
def test_a_missing_or_repeated_operator_is_refused(case: tuple[Problem, Plan], data: st.DataObject) -> None:
    problem, plan = case
    position = data.draw(st.integers(0, len(plan.steps) - 1))
    with pytest.raises(ReplayError):
        replay(problem, replace(plan, steps=plan.steps[:position] + plan.steps[position + 1 :]))
    with pytest.raises(ReplayError):
        replay(problem, replace(plan, steps=(*plan.steps, plan.steps[position])))


GOOD = {
    "tensors": [
        {"name": "x", "bytes": 4, "role": "input"},
        {"name": "a", "bytes": 4, "role": "activation"},
        {"name": "y", "bytes": 4, "role": "output"},
    ],
    "operators": [
        {"name": "f", "inputs": ["x"], "outputs": ["a"]},
        {"name": "g", "inputs": ["a"], "outputs": ["y"]},
    ],
}


def test_a_hand_written_problem_survives_a_round_trip_whatever_its_order() -> None:
    problem = Problem.from_dict({**GOOD, "operators": GOOD["operators"][::-1]})
    assert Problem.from_json(problem.to_json()) == problem
    assert [problem.operators[i].name for i in problem.given_order] == ["f", "g"]


@pytest.mark.parametrize(
    ("field", "position", "change", "message"),
    [
        ("operators", 0, {"inputs": ["y"]}, r"a cycle: 'f' needs 'g' needs 'f'"),
        ("operators", 0, {"inputs": ["a"]}, r"reads 'a', which it makes itself"),
        ("operators", 0, {"outputs": []}, r"operator 'g': reads 'a', an activation that nobody makes"),
        ("operators", 0, {"outputs": ["a", "y"]}, r"tensor 'y': has two producers, 'f' and 'g'"),
        ("operators", 0, {"inputs": ["q"]}, r"tensor 'q' is not among the tensors"),
        ("operators", 1, {"outputs": ["x"]}, r"makes 'x', whose role input"),
        ("operators", 1, {"outputs": []}, r"tensor 'y': an output that nobody makes"),
        ("operators", 1, {"name": "f"}, r"operator 'f': is given twice"),
        ("operators", 1, {"inputs": "a"}, r"inputs must be a list of tensor names"),
        ("operators", 1, {"reads": ["a"]}, r"unknown field 'reads'"),
        ("tensors", 1, {"bytes": 0}, r"tensor 'a': bytes must be a whole number from 1 to [0-9,]+, got 0"),
        ("tensors", 1, {"bytes": -4}, r"tensor 'a': bytes must be a whole number from 1 to [0-9,]+, got -4"),
        ("tensors", 1, {"bytes": 1.5}, r"tensor 'a': bytes must be a whole number from 1 to [0-9,]+, got 1.5"),
        ("tensors", 1, {"bytes": True}, r"tensor 'a': bytes must be a whole number"),
        ("tensors", 1, {"role": "weight"}, r"role must be one of input, parameter, activation, output, got 'weight'"),
        ("tensors", 1, {"name": "x"}, r"tensor 'x': is given twice"),
        ("tensors", 1, {"name": 3}, r"tensors\[1\]: name must be a text, got 3"),
    ],
)
def test_each_fault_of_a_problem_is_named(field: str, position: int, change: dict[str, object], message: str) -> None:
    entries = [dict(entry) for entry in GOOD[field]]
    entries[position].update(change)
    with pytest.raises(ProblemError, match=message):
        Problem.from_dict({**GOOD, field: entries})


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"tensors": 3, "operators": []}', "[" * 100_000])
def test_a_text_that_is_no_problem_is_refused(text: str) -> None:
    with pytest.raises(ProblemError):
        Problem.from_json(text)


@pytest.mark.parametrize("text", ["", "{}", '{"schema": "peakline.plan/1"}', '{"schema": "peakline.plan/2"}'])
def test_a_text_that_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(PlanError):
        Plan.from_json(text)
