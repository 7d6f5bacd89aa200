"""What integer programs over gaps are made of, and when their answer is one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from schedule_cases import problems

from peakline.solvers.dag import Dag
from peakline.solvers.problem import Problem
from peakline.solvers.schedule.episodes import uses
from peakline.solvers.schedule.gap_program import chosen, enough_leaves, minimised, slots

pulp = pytest.importorskip("pulp", reason="PuLP is not installed")
pytest.importorskip("highspy", reason="HiGHS is not installed")


@settings(max_examples=40, deadline=None)
@given(problems())
def test_alive_in_a_slot_is_whatever_is_used_before_and_after_it_or_in_it(problem: Problem) -> None:
    dag = Dag.of(problem)
    used = uses(dag, problem.given_order)
    for t, (i, alive, around) in enumerate(slots(dag, problem.given_order)):
        assert i == problem.given_order[t]
        assert alive == sum(dag.size[a] for a, steps in enumerate(used) if steps and steps[0] <= t <= steps[-1])
        assert {a for a, *_ in around} == {
            a for a, steps in enumerate(used) if steps and steps[0] < t < steps[-1] and t not in steps
        }


def test_of_what_may_leave_the_cheapest_that_makes_enough_room_does() -> None:
    sizes = {"big": 60, "middle": 40, "small": 30}
    leave = {name: pulp.LpVariable(name, cat="Binary") for name in sizes}
    program = pulp.LpProblem("room", pulp.LpMinimize)
    program += pulp.lpSum(size * leave[name] for name, size in sizes.items())
    program += enough_leaves([(size, leave[name]) for name, size in sizes.items()], excess=65, unit=10)
    assert minimised(program, seconds=10, apart=10)
    assert [name for name in sizes if chosen(leave[name])] == ["middle", "small"]


def test_what_has_no_solution_has_no_values() -> None:
    x = pulp.LpVariable("x", cat="Binary")
    program = pulp.LpProblem("impossible", pulp.LpMinimize)
    program += x
    program += enough_leaves([(1, x)], excess=1, unit=1)
    program += x <= 0
    assert not minimised(program, seconds=10)


def test_a_variable_in_no_row_is_not_chosen() -> None:
    assert not chosen(pulp.LpVariable("idle", cat="Binary"))
