"""Order and traffic as integer programs over slots of time: every solver against exhaustive search."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_cases import least_traffic_by_enumeration, problems, smallest_peak_by_enumeration, wired, working_set

from peakline.solvers.contest import Answer
from peakline.solvers.dag import Dag
from peakline.solvers.linear import PROGRAM_SOLVERS, ProgramSolver, available, require, solve
from peakline.solvers.order import smallest_peak
from peakline.solvers.order import timed as order
from peakline.solvers.problem import Operator, Problem, Tensor
from peakline.solvers.replay import replay
from peakline.solvers.schedule import schedule
from peakline.solvers.schedule import timed as traffic
from peakline.solvers.segments import Segment


def told(answer: Answer) -> None:
    """Programs report nothing before their end."""


def needs(solver: ProgramSolver) -> None:
    if not available(solver):
        pytest.skip(f"{solver} is not installed")


@pytest.mark.parametrize("solver", PROGRAM_SOLVERS)
def test_the_program_of_traffic_agrees_with_exhaustive_search(solver: ProgramSolver) -> None:
    needs(solver)

    @settings(max_examples=5 if solver == "cbc" else 15, deadline=None)
    @given(problems(6), st.integers(0, 4))
    def agree(problem: Problem, spare: int) -> None:
        dag, capacity = Dag.of(problem), working_set(problem) + spare
        found = traffic.by_program(told, 60, dag, Segment(0, dag.everything, 0), capacity, 0, solver)
        assert found.cost == found.bound == least_traffic_by_enumeration(problem, capacity)

    agree()


@pytest.mark.parametrize("solver", PROGRAM_SOLVERS)
def test_the_program_of_the_peak_agrees_with_trying_every_order(solver: ProgramSolver) -> None:
    needs(solver)

    @settings(max_examples=5 if solver == "cbc" else 15, deadline=None)
    @given(problems(6))
    def agree(problem: Problem) -> None:
        dag = Dag.of(problem)
        most = dag.peak_of(problem.given_order)
        found = order.by_program(told, 60, dag, Segment(0, dag.everything, 0), 0, most, solver)
        assert found.cost == found.bound == dag.peak_of(found.solution) == smallest_peak_by_enumeration(problem)

    agree()


DECISIVE = (
    traffic.no_operator_without_its_tensors,
    traffic.no_return_without_a_load,
    traffic.no_load_of_what_was_never_stored,
    traffic.no_more_than_the_capacity,
)


@pytest.mark.parametrize("left_out", DECISIVE, ids=lambda forbid: forbid.__name__)
def test_each_kind_of_row_forbids_something(left_out: Callable[[traffic.Traffic], None]) -> None:
    """Without it a program promises less traffic than any plan moves; the others only tighten its relaxation."""
    missed = 0
    for seed in range(8):
        problem = wired(seed, 6)
        dag, capacity = Dag.of(problem), working_set(problem)
        model = traffic.Traffic(dag, Segment(0, dag.everything, 0), capacity, 0)
        model.program += model.moved
        for forbid in (*traffic.ORDER_CONSTRAINTS, *traffic.CONSTRAINTS):
            if forbid is not left_out:
                forbid(model)
        least = least_traffic_by_enumeration(problem, capacity)
        missed += solve(model.program, "highs", seconds=60, least=-(10**6)).bound < least
    assert missed


def test_a_method_is_named_in_the_certificate() -> None:
    tensors = [Tensor("x", 2, "input"), *(Tensor(f"t{i}", 2 + i % 3) for i in range(7)), Tensor("y", 1, "output")]
    operators = [Operator(f"f{i}", ("x",) if i < 3 else (f"t{i - 3}", f"t{i // 2}"), (f"t{i}",)) for i in range(7)]
    problem = Problem(tuple(tensors), (*operators, Operator("end", ("t4", "t5", "t6"), ("y",))))
    capacity = working_set(problem)
    best = schedule(problem, capacity, time_limit=60)
    by_highs = schedule(problem, capacity, time_limit=60, method="highs", jobs=1)
    assert by_highs.certificate.objective == best.certificate.objective
    assert replay(problem, by_highs).non_compulsory == best.certificate.objective
    assert smallest_peak(problem, method="highs", jobs=1).peak == smallest_peak(problem).peak


def test_a_missing_solver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ortools", None)
    with pytest.raises(ImportError, match="method cp-sat: needs the package ortools, which is not installed"):
        require("cp-sat")
    problem = Problem((Tensor("x", 1, "input"), Tensor("y", 1, "output")), (Operator("f", ("x",), ("y",)),))
    with pytest.raises(ImportError, match="ortools"):
        schedule(problem, 2, method="cp-sat")


def test_a_method_that_is_none_is_refused() -> None:
    problem = Problem((Tensor("x", 1, "input"), Tensor("y", 1, "output")), (Operator("f", ("x",), ("y",)),))
    with pytest.raises(ValueError, match="method: must be one of auto, search, highs, cbc, cp-sat, got 'gurobi'"):
        schedule(problem, 2, method="gurobi")
    with pytest.raises(ValueError, match="jobs: must be at least 1, got 0"):
        schedule(problem, 2, jobs=0)
