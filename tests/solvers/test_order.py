"""The order with the smallest peak."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from schedule_cases import INSTANCES, cell, problems, profiled, smallest_peak_by_enumeration

from peakline.solvers.bounds import largest_working_set, live_floors
from peakline.solvers.dag import Dag
from peakline.solvers.floors import peak_floor
from peakline.solvers.order import smallest_peak
from peakline.solvers.problem import Operator, Problem, Tensor


@settings(max_examples=300, deadline=None)
@given(problems())
def test_the_exact_search_agrees_with_trying_every_order(problem: Problem) -> None:
    order = smallest_peak(problem)
    assert order.proven
    assert order.peak == smallest_peak_by_enumeration(problem)
    assert Dag.of(problem).peak_of(order.operators) == order.peak


@settings(max_examples=100, deadline=None)
@given(problems())
def test_no_order_is_below_the_order_free_floor(problem: Problem) -> None:
    dag = Dag.of(problem)
    assert max(live_floors(dag)) <= peak_floor(dag) <= smallest_peak_by_enumeration(problem)


PROVEN_KIB = {
    "darts_cifar_s1_f36": 1568,
    "darts_cifar_s6_f36": 1584,
    "darts_imagenet_s4_f12": 4508,
    "amoebanet_cifar_s1_f36": 1280,
    "amoebanet_cifar_s6_f36": 1440,
}


@pytest.mark.parametrize("name", PROVEN_KIB)
def test_irregular_cells_are_proven_within_ten_seconds(name: str) -> None:
    if not INSTANCES.exists():
        pytest.skip(f"{INSTANCES} is not here")
    began = time.process_time()
    order = smallest_peak(cell(name), time_limit=60)
    assert time.process_time() - began < 10
    assert (order.peak, order.bound) == (PROVEN_KIB[name] * 1024, PROVEN_KIB[name] * 1024)


def test_a_search_cut_short_still_proves_a_bound_below_its_order() -> None:
    ladder = [Tensor("x", 3, "input")]
    operators = []
    for i in range(12):
        ladder += [Tensor(f"wide{i}", 9 + i), Tensor(f"thin{i}", 2)]
        operators += [Operator(f"grow{i}", ("x",), (f"wide{i}",)), Operator(f"cut{i}", (f"wide{i}",), (f"thin{i}",))]
    ladder.append(Tensor("y", 1, "output"))
    operators.append(Operator("join", tuple(f"thin{i}" for i in range(12)), ("y",)))
    problem = Problem(tuple(ladder), tuple(operators))
    hurried, calm = smallest_peak(problem, time_limit=1e-6), smallest_peak(problem)
    assert hurried.bound <= calm.peak <= hurried.peak
    assert calm.proven


@pytest.mark.parametrize(
    ("name", "working_set", "least", "most"),
    [
        ("resnet50_inference", 301_056, 301_056, 301_056),
        ("bert_l-12_inference", 467_136, 467_136, 467_136),
        ("bert_l-3_training", 732_672, 1_000_000, 1_030_050),
    ],
)
def test_profiled_graphs_are_as_published(name: str, working_set: int, least: int, most: int) -> None:
    """KiB; of BERT's training graph the floor by names alone is 949,272."""
    if not INSTANCES.exists():
        pytest.skip(f"{INSTANCES} is not here")
    problem = profiled(name)
    order = smallest_peak(problem, time_limit=5)
    assert largest_working_set(Dag.of(problem))[0] == working_set
    assert least <= order.bound <= order.peak <= most
