"""Addresses by leaving some of the capacity free: what stays free, and what it costs beside dropping step by step."""

from __future__ import annotations

import random
import time
from itertools import accumulate
from math import inf

import pytest
from schedule_cases import wired, working_set

from peakline.solvers.dag import Dag
from peakline.solvers.plan import Certificate
from peakline.solvers.problem import Operator, Problem, Tensor
from peakline.solvers.replay import replay
from peakline.solvers.schedule.episodes import Schedule, episodes, to_plan, traffic
from peakline.solvers.schedule.fixed_order import best_replacement, furthest_use
from peakline.solvers.schedule.pack import pack
from peakline.solvers.schedule.rolling import place_in_turn
from peakline.solvers.schedule.spare import place_with_spare


def uneven(seed: int, count: int) -> Problem:
    """Operators that read a few recent tensors and now and then an old one; sizes between 10 and 640, none alike."""
    chance = random.Random(seed)
    tensors, operators = [Tensor("x", 300, "input")], []
    for i in range(count):
        near, far = [t.name for t in tensors[-12:]], [t.name for t in tensors[:-12]]
        reads = chance.sample(near, min(len(near), chance.randint(1, 2)))
        if far and chance.random() < 0.3:
            reads.append(chance.choice(far))
        tensors.append(Tensor(f"t{i}", int(10 * 2 ** (6 * chance.random()))))
        operators.append(Operator(f"f{i}", tuple(reads), (f"t{i}",)))
    return Problem(tuple(tensors), tuple(operators))


def held(dag: Dag, schedule: Schedule) -> list[int]:
    """Bytes resident at each step."""
    change = [0] * (len(schedule.order) + 1)
    for episode in episodes(dag, schedule):
        change[episode.first] += dag.size[episode.tensor]
        change[episode.last + 1] -= dag.size[episode.tensor]
    return list(accumulate(change))[:-1]


@pytest.mark.parametrize("replacing", [furthest_use, best_replacement])
@pytest.mark.parametrize("seed", range(3))
def test_what_is_spare_stays_free_wherever_an_operator_needs_less(replacing: object, seed: int) -> None:
    problem = wired(seed, 30)
    dag, capacity = Dag.of(problem), working_set(problem) + 4
    order = problem.given_order
    full = replacing(dag, order, capacity)  # type: ignore[operator]
    spared = replacing(dag, order, capacity, spare=6)  # type: ignore[operator]
    assert max(held(dag, full.schedule)) > capacity - 6
    for bytes_held, i in zip(held(dag, spared.schedule), order, strict=True):
        assert bytes_held <= max(capacity - 6, dag.working_sets[i])
    assert spared.cost >= full.cost


def test_a_little_room_costs_less_than_dropping_what_is_in_the_way() -> None:
    problem = uneven(0, 200)
    dag, capacity = Dag.of(problem), working_set(problem)
    least = best_replacement(dag, problem.given_order, capacity, time_limit=5.0)
    assert pack(dag, least.schedule, capacity, time_limit=1.0) is None
    dropped, _ = place_in_turn(dag, least.schedule, capacity)
    placed = place_with_spare(
        dag, least.schedule, capacity, most=1 << 60, deadline=time.perf_counter() + 12.0, seed=0
    )  # fmt: skip
    assert placed is not None
    schedule, offsets = placed
    cost = traffic(dag, schedule.dropped)
    plan = to_plan(dag, schedule, offsets, capacity, Certificate(cost, 0, "", 0.0))
    assert replay(problem, plan).non_compulsory == cost
    assert least.cost < cost < traffic(dag, dropped.dropped)


def test_nothing_is_given_beyond_the_most_asked_for_or_past_the_deadline() -> None:
    problem = uneven(1, 60)
    dag, capacity = Dag.of(problem), working_set(problem)
    least = best_replacement(dag, problem.given_order, capacity, time_limit=5.0)
    soon = time.perf_counter() + 3.0
    assert place_with_spare(dag, least.schedule, capacity, most=least.cost, deadline=soon, seed=0) is None
    assert place_with_spare(dag, least.schedule, capacity, most=1 << 60, deadline=-inf, seed=0) is None
