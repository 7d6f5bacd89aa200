"""Operators that run in parts: the format, its faults, the best choice against exhaustive search, always replayed."""

from __future__ import annotations

import json
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_cases import least_traffic_by_enumeration, problems, working_set

from peakline.solvers.alternatives import Alternative, Choices, Split
from peakline.solvers.plan import Plan
from peakline.solvers.problem import Operator, Problem, ProblemError
from peakline.solvers.replay import ReplayError, replay
from peakline.solvers.schedule import Infeasible
from peakline.solvers.schedule.choosing import schedule_choosing, smallest_capacity, traffic_of_any_choice

MATMUL: dict[str, Any] = {
    "tensors": [
        {"name": "x", "bytes": 8, "role": "input"},
        {"name": "w", "bytes": 40, "role": "parameter"},
        {"name": "y", "bytes": 10},
        {"name": "z", "bytes": 4, "role": "output"},
    ],
    "operators": [
        {
            "name": "matmul",
            "inputs": ["x", "w"],
            "outputs": ["y"],
            "seconds": 4,
            "alternatives": [
                {
                    "name": "columns/2",
                    "split": {"w": [20, 20], "y": {"axis": "columns", "bytes": [5, 5]}},
                    "parts": [
                        {"inputs": ["x", "w[0]"], "outputs": ["y[0]"]},
                        {"inputs": ["x", "w[1]"], "outputs": ["y[1]"]},
                    ],
                },
                {
                    "name": "rows/2",
                    "split": {"x": {"axis": "rows", "bytes": [4, 4]}, "y": {"axis": "rows", "bytes": [5, 5]}},
                    "parts": [
                        {"inputs": ["x[0]", "w"], "outputs": ["y[0]"]},
                        {"inputs": ["x[1]", "w"], "outputs": ["y[1]"]},
                    ],
                },
                {
                    "name": "sums/2",
                    "split": {"w": [20, 20], "x": {"axis": "k", "bytes": [4, 4]}},
                    "tensors": [{"name": "sum", "bytes": 10}],
                    "parts": [
                        {"inputs": ["x[0]", "w[0]"], "outputs": ["sum"]},
                        {"inputs": ["x[1]", "w[1]", "sum"], "outputs": ["y"]},
                    ],
                },
            ],
        },
        {"name": "relu", "inputs": ["y"], "outputs": ["z"], "seconds": 1},
    ],
}


def test_a_choice_becomes_a_plain_problem_of_slices_and_parts() -> None:
    choices = Choices.from_dict(MATMUL)
    problem = choices.expand({"matmul": "columns/2"})
    assert [(t.name, t.bytes, t.role) for t in problem.tensors] == [
        ("x", 8, "input"),
        ("w[0:20]", 20, "parameter"),
        ("w[20:40]", 20, "parameter"),
        ("y[columns=0:5]", 5, "activation"),
        ("y[columns=5:10]", 5, "activation"),
        ("z", 4, "output"),
    ]
    assert problem.operators == (
        Operator("matmul/0", ("x", "w[0:20]"), ("y[columns=0:5]",), 2.0),
        Operator("matmul/1", ("x", "w[20:40]"), ("y[columns=5:10]",), 2.0),
        Operator("relu", ("y[columns=0:5]", "y[columns=5:10]"), ("z",), 1),
    )
    assert problem.compulsory == choices.problem.compulsory
    assert choices.expand({}) is choices.problem


def test_partial_sums_are_tensors_of_the_alternative() -> None:
    problem = Choices.from_dict(MATMUL).expand({"matmul": "sums/2"})
    assert problem.operators[0].outputs == problem.operators[1].inputs[2:] == ("matmul/sum",)


def test_cuts_of_two_operators_meet_in_the_slices_between_all_of_them() -> None:
    problem = Problem.from_dict(
        {
            "tensors": [
                {"name": "x", "bytes": 12, "role": "input"},
                {"name": "y", "bytes": 12},
                {"name": "z", "bytes": 12, "role": "output"},
            ],
            "operators": [
                {"name": "f", "inputs": ["x"], "outputs": ["y"]},
                {"name": "g", "inputs": ["y"], "outputs": ["z"]},
            ],
        }
    )

    def cut(name: str, inside: str, outside: str, sizes: tuple[int, ...], axis: str) -> Alternative:
        splits = (Split(inside, sizes, axis), Split(outside, sizes, axis))
        parts = tuple(Operator(str(k), (f"{inside}[{k}]",), (f"{outside}[{k}]",)) for k in range(len(sizes)))
        return Alternative(name, splits, parts)

    def slices(f: Alternative, g: Alternative) -> list[tuple[str, int]]:
        expanded = Choices(problem, {"f": (f,), "g": (g,)}).expand({"f": f.name, "g": g.name})
        return [(t.name, t.bytes) for t in expanded.tensors if t.name.startswith("y")]

    thirds = cut("3", "x", "y", (4, 4, 4), "rows")
    assert slices(thirds, cut("2", "y", "z", (6, 6), "rows")) == [
        ("y[rows=0:4]", 4), ("y[rows=4:6]", 2), ("y[rows=6:8]", 2), ("y[rows=8:12]", 4),
    ]  # fmt: skip
    assert [size for _, size in slices(thirds, cut("2", "y", "z", (6, 6), "columns"))] == [2] * 6
    with pytest.raises(ProblemError, match="'y': its cuts along 'columns' and 'rows' do not meet in whole bytes"):
        slices(thirds, cut("2", "y", "z", (5, 7), "columns"))


def test_an_alternative_makes_a_capacity_below_the_largest_working_set_do() -> None:
    choices = Choices.from_dict(MATMUL)
    assert working_set(choices.problem) == 58
    assert smallest_capacity(choices) == (33, "matmul")
    with pytest.raises(Infeasible, match="also in each of its 3 alternatives; 33 bytes would do"):
        schedule_choosing(choices, 32)
    plan = schedule_choosing(choices, 38)
    assert plan.alternatives == {"matmul": "columns/2"}
    assert plan.certificate.objective == plan.certificate.lower_bound == 0
    assert replay(choices.expand(plan.alternatives), Plan.from_json(plan.to_json())).non_compulsory == 0
    with pytest.raises(ReplayError, match="not an operator of the problem"):
        replay(choices.problem, plan)


def test_the_format_survives_a_round_trip() -> None:
    choices = Choices.from_dict(MATMUL)
    assert Choices.from_dict(json.loads(choices.to_json())) == choices


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": {"w": [20, 21], "y": [5, 5]}}, r"slices of 'w' must have at least 1 byte each and 40 together"),
        ({"split": {"w": [40, 0], "y": [5, 5]}}, r"slices of 'w' must have at least 1 byte each"),
        ({"split": {"q": [1]}}, r"splits 'q', which the operator does not touch"),
        ({"split": {"w": "all"}}, r"split of 'w' must be a list of bytes"),
        ({"split": [1]}, r"split must give the slices' bytes"),
        ({"parts": []}, r"there must be at least one part"),
        ({"parts": 3}, r"parts must be a list of objects"),
        ({"parts": [{"inputs": ["x", "w[0]"], "outputs": ["y[0]"]}]}, r"no part reads 'w\[1\]'"),
        ({"parts": [{"inputs": ["x", "w"], "outputs": ["y[0]"]}]}, r"no part makes 'y\[1\]'"),
        ({"parts": [{"inputs": ["x", "w"], "outputs": ["y[0]", "y[1]", "y"]}]}, r"makes 'y' whole and splits it"),
        ({"parts": [{"inputs": ["x", "w"], "outputs": ["y[0]", "y[1]", "w[0]"]}]}, r"makes 'w\[0\]', an input"),
        ({"parts": [{"inputs": ["x", "w", "z"], "outputs": ["y[0]", "y[1]"]}]}, r"part '0' touches 'z'"),
        ({"parts": [{"inputs": ["x", "w[2]"], "outputs": ["y[0]", "y[1]"]}]}, r"touches 'w\[2\]'"),
        ({"parts": [{"inputs": ["x", "w"], "outputs": ["y[0]", "y[1]"], "seconds": -1}]}, r"seconds must be a finite"),
        ({"tensors": [{"name": "w", "bytes": 3}]}, r"the name 'w' has two meanings"),
        ({"tensors": [{"name": "s", "bytes": 3, "role": "output"}]}, r"'s' must be an activation"),
        ({"name": ""}, r"alternatives\[0\] must be an object with a name"),
        ({"tiles": 2}, r"unknown field 'tiles'"),
    ],
)
def test_each_fault_of_an_alternative_is_named(change: dict[str, object], message: str) -> None:
    data = json.loads(json.dumps(MATMUL))
    data["operators"][0]["alternatives"][0].update(change)
    with pytest.raises(ProblemError, match=message):
        Choices.from_dict(data)


def test_an_unknown_alternative_is_named() -> None:
    choices = Choices.from_dict(MATMUL)
    with pytest.raises(ProblemError, match="has no alternative 'columns/3'; there are 'columns/2', 'rows/2', 'sums/2'"):
        choices.expand({"matmul": "columns/3"})
    with pytest.raises(ProblemError, match="operator 'relu': has no alternative 'x'; there are none"):
        choices.expand({"relu": "x"})
    with pytest.raises(ValueError, match="time limit: must be above 0"):
        schedule_choosing(choices, 38, time_limit=0)


@st.composite
def tiled_problems(draw: st.DrawFn) -> Choices:
    """Random problems, some of whose operators may run in two parts along a random subset of their tensors."""
    problem = draw(problems(3))
    size = {t.name: t.bytes for t in problem.tensors}
    alternatives = {}
    for operator in problem.operators:
        listed = []
        for n in range(draw(st.integers(0, 1))):
            cut = [name for name in (*operator.inputs, *operator.outputs) if size[name] > 1 and draw(st.booleans())]
            splits = tuple(Split(name, (size[name] // 2, size[name] - size[name] // 2)) for name in cut)
            cut_outputs = [name for name in operator.outputs if name in cut]
            parts = []
            for k in range(2):
                inputs = tuple(f"{name}[{k}]" if name in cut else name for name in operator.inputs)
                outputs = [f"{name}[{k}]" if name in cut else name for name in operator.outputs]
                made = tuple(out for out, name in zip(outputs, operator.outputs) if name in cut_outputs or k == 1)
                parts.append(Operator(str(k), inputs, made))
            listed.append(Alternative(f"halves{n}", splits, tuple(parts)))
        if listed:
            alternatives[operator.name] = tuple(listed)
    return Choices(problem, alternatives)


def least_over_all_choices(choices: Choices, capacity: int) -> int | None:
    """Non-compulsory bytes of the best plan of the best choice, by enumeration of both; None if nothing fits."""
    best: int | None = None
    names = list(choices.alternatives)
    for taken in product(*([None, *(a.name for a in choices.alternatives[name])] for name in names)):
        problem = choices.expand({name: one for name, one in zip(names, taken) if one is not None})
        if working_set(problem) <= capacity:
            found = least_traffic_by_enumeration(problem, capacity)
            best = found if best is None else min(best, found)
    return best


@settings(max_examples=25, deadline=None)
@given(tiled_problems(), st.integers(0, 5))
def test_the_best_choice_is_what_exhaustive_search_over_alternatives_finds(choices: Choices, spare: int) -> None:
    capacity = smallest_capacity(choices)[0] + spare
    least = least_over_all_choices(choices, capacity)
    plan = schedule_choosing(choices, capacity, time_limit=30)
    done = replay(choices.expand(plan.alternatives), plan)
    assert done.non_compulsory == plan.certificate.objective == plan.certificate.lower_bound == least


@settings(max_examples=25, deadline=None)
@given(tiled_problems(), st.integers(0, 5))
def test_what_there_is_no_time_to_solve_is_bounded(choices: Choices, spare: int) -> None:
    capacity = smallest_capacity(choices)[0] + spare
    least = least_over_all_choices(choices, capacity)
    plan = schedule_choosing(choices, capacity, time_limit=1e-3)
    assert least is not None
    assert plan.certificate.lower_bound <= least <= replay(choices.expand(plan.alternatives), plan).non_compulsory


@settings(max_examples=40, deadline=None)
@given(tiled_problems(), st.integers(0, 5))
def test_the_bound_over_all_choices_is_below_each_of_them(choices: Choices, spare: int) -> None:
    capacity = smallest_capacity(choices)[0] + spare
    least = least_over_all_choices(choices, capacity)
    assert least is not None
    assert traffic_of_any_choice(choices, capacity) <= least
