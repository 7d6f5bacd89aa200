"""Plans with the least traffic: against exhaustive search, with their certificates, always replayed."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from schedule_cases import INSTANCES, cell, least_traffic_by_enumeration, problems, working_set

from peakline.solvers.bounds import cheapest_spill, reachable, traffic_bound
from peakline.solvers.dag import Dag
from peakline.solvers.order import smallest_peak
from peakline.solvers.plan import Certificate
from peakline.solvers.problem import Operator, Problem, Tensor
from peakline.solvers.replay import replay
from peakline.solvers.schedule import Infeasible, Progress, schedule
from peakline.solvers.schedule.episodes import gaps, to_plan, traffic
from peakline.solvers.schedule.fixed_order import best_replacement, furthest_use
from peakline.solvers.schedule.rolling import place_in_turn


@settings(max_examples=200, deadline=None)
@given(problems(), st.integers(0, 6))
def test_the_exact_solver_agrees_with_exhaustive_search(problem: Problem, spare: int) -> None:
    capacity = working_set(problem) + spare
    plan = schedule(problem, capacity, time_limit=20)
    done = replay(problem, plan)
    least = least_traffic_by_enumeration(problem, capacity)
    assert plan.certificate.lower_bound == least
    if "addresses exist" not in plan.certificate.method:
        assert done.non_compulsory == least


@settings(max_examples=100, deadline=None)
@given(problems(), st.integers(0, 6))
def test_bounds_hold_for_the_best_plan(problem: Problem, spare: int) -> None:
    capacity = working_set(problem) + spare
    bound = traffic_bound(Dag.of(problem), capacity, smallest_peak(problem).bound)
    assert bound <= least_traffic_by_enumeration(problem, capacity)


@settings(max_examples=60, deadline=None)
@given(problems(), st.integers(0, 3))
def test_the_best_replacement_in_an_order_is_no_worse_than_the_rule(problem: Problem, spare: int) -> None:
    dag, capacity = Dag.of(problem), working_set(problem) + spare
    rule = furthest_use(dag, problem.given_order, capacity)
    best = best_replacement(dag, problem.given_order, capacity)
    assert best.cost == traffic(dag, best.schedule.dropped) <= rule.cost


@settings(max_examples=25, deadline=None)
@given(problems(5))
def test_the_best_replacement_in_an_order_is_the_best_of_all_sets_of_drops(problem: Problem) -> None:
    dag, capacity = Dag.of(problem), working_set(problem)
    between = gaps(dag, problem.given_order)
    assume(len(between) <= 10)

    def fits(kept: tuple[tuple[int, int, int, int], ...]) -> bool:
        held = [sum(dag.size[a] for a, _, first, last in kept if first <= t <= last) for t in range(len(dag))]
        return all(idle + dag.working_sets[i] <= capacity for idle, i in zip(held, problem.given_order))

    least = min(
        traffic(dag, [gap[:2] for gap in between if gap not in kept])
        for count in range(len(between) + 1)
        for kept in combinations(between, count)
        if fits(kept)
    )
    assert best_replacement(dag, problem.given_order, capacity).cost == least


@settings(max_examples=60, deadline=None)
@given(problems())
def test_nothing_moves_twice_at_the_smallest_peak(problem: Problem) -> None:
    peak = smallest_peak(problem).peak
    plan = schedule(problem, peak, time_limit=20)
    assert plan.certificate.lower_bound == 0
    assert replay(problem, plan).non_compulsory == 0 or "addresses" in plan.certificate.method


def test_the_bound_rounds_up_to_what_sizes_can_add_up_to() -> None:
    assert reachable([4, 6, 10], 7) == 10
    assert reachable([4, 6], 0) == 0
    with pytest.raises(ValueError, match="less than 11"):
        reachable([4, 6], 11)


def test_an_activation_costs_a_store_and_a_reload_an_input_a_reload_alone() -> None:
    tensors = (Tensor("x", 5, "input"), Tensor("a", 5), Tensor("y", 1, "output"))
    operators = (Operator("f", ("x",), ("a",)), Operator("g", ("x", "a"), ("y",)))
    dag = Dag.of(Problem(tensors, operators))
    assert cheapest_spill(dag, 0b01, 5) == 5
    assert cheapest_spill(dag, 0b10, 5) == 10
    assert cheapest_spill(dag, 0b11, 6) == 15


CHAIN = Problem(
    (Tensor("x", 4, "input"), Tensor("w", 8, "parameter"), Tensor("a", 4), Tensor("b", 6), Tensor("y", 2, "output")),
    (Operator("f", ("x",), ("a",)), Operator("g", ("a", "w"), ("b",)), Operator("h", ("b", "a"), ("y",))),
)


def test_too_small_a_capacity_names_the_operator_and_what_would_do() -> None:
    with pytest.raises(Infeasible, match=r"operator 'g' needs w, a, b at once: 18 bytes would do") as caught:
        schedule(CHAIN, 17)
    assert (caught.value.smallest, caught.value.operator) == (18, "g")
    assert replay(CHAIN, schedule(CHAIN, 18)).peak == 18


def test_the_smallest_peak_as_the_objective_fills_its_own_arena() -> None:
    plan = schedule(CHAIN, objective="peak")
    done = replay(CHAIN, plan)
    assert (plan.capacity, done.peak, plan.certificate.status) == (18, 18, "optimal")
    with pytest.raises(Infeasible, match="smallest peak over all orders is 18"):
        schedule(CHAIN, 17, objective="peak")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"capacity": 0}, "capacity: must be at least 1"),
        ({"capacity": 20, "time_limit": 0}, "time limit: must be above 0"),
        ({"capacity": 20, "objective": "time"}, "objective: must be one of traffic, peak"),
        ({}, "capacity: the least traffic needs one"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schedule(CHAIN, **arguments)  # type: ignore[arg-type]


def test_the_same_seed_gives_the_same_plan() -> None:
    if not INSTANCES.exists():
        pytest.skip(f"{INSTANCES} is not here")
    problem = cell("darts_cifar_s1_f36")
    one, two = (schedule(problem, 1_217_088, time_limit=30, seed=3) for _ in range(2))
    assert (one.steps, one.final_store) == (two.steps, two.final_store)
    assert one.certificate.status == "optimal"
    assert replay(problem, one).non_compulsory == one.certificate.objective


def test_without_the_solver_plans_are_still_made(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "highspy", None)
    plan = schedule(CHAIN, 18)
    assert replay(CHAIN, plan).non_compulsory == plan.certificate.objective


def test_an_interrupt_returns_the_incumbent_with_its_gap() -> None:
    tensors = [Tensor("x", 2, "input"), *(Tensor(f"t{i}", 2 + i % 3) for i in range(40)), Tensor("y", 1, "output")]
    operators = [Operator(f"f{i}", ("x",) if i < 3 else (f"t{i - 3}", f"t{i // 2}"), (f"t{i}",)) for i in range(40)]
    operators.append(Operator("end", ("t37", "t38", "t39"), ("y",)))
    problem = Problem(tuple(tensors), tuple(operators))

    def interrupt(progress: Progress) -> None:
        if progress.incumbent is not None and progress.seconds > 0:
            raise KeyboardInterrupt

    capacity = working_set(problem)
    plan = schedule(problem, capacity, progress=lambda p: interrupt(p) if p.bound else None)
    assert "interrupted" in plan.certificate.method
    assert replay(problem, plan).non_compulsory == plan.certificate.objective >= plan.certificate.lower_bound


@settings(max_examples=150, deadline=None)
@given(problems(), st.integers(0, 4))
def test_steps_placed_in_turn_always_find_addresses(problem: Problem, spare: int) -> None:
    dag, capacity = Dag.of(problem), working_set(problem) + spare
    rule = furthest_use(dag, problem.given_order, capacity)
    placed, offsets = place_in_turn(dag, rule.schedule, capacity)
    cost = traffic(dag, placed.dropped)
    assert placed.dropped >= rule.schedule.dropped
    assert replay(problem, to_plan(dag, placed, offsets, capacity, Certificate(cost, 0, "", 0.0))).arena <= capacity
