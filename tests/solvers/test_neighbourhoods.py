"""Plans improved stretch by stretch: never worse, always plans, and to the byte what their stretches say."""

from __future__ import annotations

import random
from dataclasses import replace
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_cases import least_traffic_by_enumeration, problems, wired, working_set

from peakline.solvers.dag import Dag
from peakline.solvers.plan import Certificate
from peakline.solvers.problem import Operator, Problem, Tensor
from peakline.solvers.replay import replay
from peakline.solvers.schedule.contract import Contracted
from peakline.solvers.schedule.episodes import Schedule, to_plan, traffic
from peakline.solvers.schedule.fixed_order import furthest_use
from peakline.solvers.schedule.neighbourhoods import Stretch, improve_by_stretches, improve_piece
from peakline.solvers.schedule.pack import pack
from peakline.solvers.schedule.search import beam
from peakline.solvers.schedule.states import Moves
from peakline.solvers.segments import segments

EVERY = 1 << 40


def moved(dag: Dag, schedule: Schedule, capacity: int) -> int:
    """Non-compulsory bytes that the referee counts; the plan holds no more than the capacity at any time.

    Addresses come from an arena as large as they need, which is another matter.
    """
    packed = pack(dag, schedule, None, time_limit=0.1)
    assert packed is not None
    offsets, arena = packed
    plan = to_plan(dag, schedule, offsets, arena, Certificate(traffic(dag, schedule.dropped), 0, "", 0.0))
    assert plan.peak <= capacity
    return replay(dag.problem, plan).non_compulsory


def by_rule(problem: Problem, capacity: int) -> tuple[Dag, Schedule]:
    dag = Dag.of(problem)
    return dag, furthest_use(dag, problem.given_order, capacity).schedule


@settings(max_examples=30, deadline=None)
@given(problems(), st.integers(0, 3))
def test_the_whole_schedule_as_one_stretch_without_a_band_gives_the_least_traffic(problem: Problem, spare: int) -> None:
    capacity = working_set(problem) + spare
    dag, schedule = by_rule(problem, capacity)
    least = least_traffic_by_enumeration(problem, capacity)
    whole = Stretch(dag, schedule, 0, len(dag), random.Random(0))
    new = whole.solve(capacity, most=whole.cost, band=100, width=EVERY, deadline=inf)
    assert (new is None) == (whole.cost == least)
    assert moved(dag, new or schedule, capacity) == least


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 15), st.integers(4, 16), st.sampled_from([1, 3, 100]), st.integers(0, 5))
def test_what_a_stretch_gains_the_whole_schedule_gains(
    seed: int, first: int, length: int, band: int, wanted: int
) -> None:
    problem = wired(seed, 24)
    capacity = working_set(problem)
    dag, schedule = by_rule(problem, capacity)
    end = min(len(dag), first + length)
    stretch = Stretch(dag, schedule, first, end, random.Random(seed))
    new = stretch.solve(capacity, most=stretch.cost - wanted + 1, band=band, width=4, deadline=inf)
    if new is None:
        return
    assert traffic(dag, schedule.dropped) - traffic(dag, new.dropped) >= wanted
    assert new.order[:first] == schedule.order[:first]
    assert new.order[end:] == schedule.order[end:]
    assert moved(dag, new, capacity) == traffic(dag, new.dropped)


@pytest.mark.parametrize("seed", range(3))
def test_of_many_tensors_that_only_lie_there_most_have_to_stay(seed: int) -> None:
    cell = wired(seed, 16)
    aside = [Tensor(f"aside {n}", 2) for n in range(40)]
    problem = Problem(
        (*cell.tensors, *aside),
        (
            Operator("before", (), tuple(t.name for t in aside)),
            *cell.operators,
            *(Operator(f"after {t.name}", (t.name,), ()) for t in aside),
        ),
    )
    dag, capacity = Dag.of(problem), working_set(cell) + 2 * len(aside)
    alone = furthest_use(Dag.of(cell), cell.given_order, working_set(cell)).schedule
    schedule = Schedule(tuple(range(len(dag))), alone.dropped)
    stretch = Stretch(dag, schedule, 1, 17, random.Random(seed))
    assert stretch.cost > 0
    assert stretch.set_aside == 2 * (len(aside) - 16)
    new = stretch.solve(capacity, most=stretch.cost + 1, band=8, width=8, deadline=inf)
    assert new is not None
    assert moved(dag, new, capacity) <= traffic(dag, schedule.dropped)


def test_schedules_of_unequal_sizes_come_closer_to_the_least() -> None:
    for seed in range(2):
        problem = wired(seed, 28)
        capacity = working_set(problem)
        dag, schedule = by_rule(problem, capacity)
        better = improve_by_stretches(dag, schedule, capacity, floor=0, deadline=inf, seed=0, further=False)
        assert moved(dag, better, capacity) < 0.9 * traffic(dag, schedule.dropped)


def test_the_same_seed_gives_the_same_schedule() -> None:
    problem = wired(5, 20)
    capacity = working_set(problem)
    dag, schedule = by_rule(problem, capacity)
    one, other = (
        improve_by_stretches(dag, schedule, capacity, floor=0, deadline=inf, seed=3, further=False) for _ in range(2)
    )
    assert one == other


def test_nothing_is_tried_at_the_floor_or_past_the_deadline() -> None:
    problem = wired(5, 20)
    capacity = working_set(problem)
    dag, schedule = by_rule(problem, capacity)
    cost = traffic(dag, schedule.dropped)
    assert improve_by_stretches(dag, schedule, capacity, floor=cost, deadline=inf, seed=0) is schedule
    assert improve_by_stretches(dag, schedule, capacity, floor=0, deadline=-inf, seed=0) is schedule


def two_cells(seed: int) -> Problem:
    """Two random cells; the second reads one tensor, made of all results of the first."""
    first, second = wired(seed, 12), wired(seed + 1, 12)
    read = {name for o in first.operators for name in o.inputs}
    results = tuple(t.name for t in first.tensors if t.name not in read)
    renamed = {t.name: t.name if t.name == "x" else f"second {t.name}" for t in second.tensors} | {"x": "z"}
    return Problem(
        (*first.tensors, Tensor("z", 3), *(replace(t, name=renamed[t.name]) for t in second.tensors if t.name != "x")),
        (
            *first.operators,
            Operator("join", results, ("z",)),
            *(
                Operator(f"second {o.name}", tuple(renamed[n] for n in o.inputs), tuple(renamed[n] for n in o.outputs))
                for o in second.operators
            ),
        ),
    )


@pytest.mark.parametrize("seed", range(3))
def test_pieces_are_improved_from_the_states_in_which_they_begin(seed: int) -> None:
    problem = two_cells(seed)
    dag, capacity = Dag.of(problem), working_set(problem)
    pieces = segments(dag, independent=True)
    assert any(piece.live for piece in pieces)
    joined: list[tuple[int, int]] = []
    total = 0
    for piece in pieces:
        found = beam(Moves(dag, piece, capacity), 1, deadline=inf)
        assert found.moves is not None
        path, cost = improve_piece(dag, piece, capacity, found.moves, floor=0, deadline=inf, seed=0, further=False)
        assert cost <= found.cost
        total += cost
        joined += path
    alone = Contracted(dag, tuple((i,) for i in range(len(dag))), tuple(range(len(dag.size))))
    assert moved(dag, alone.expand(dag, joined), capacity) == total
