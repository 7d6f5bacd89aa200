"""Dynamic programming over layers of states: against exhaustive search and A*, and what a beam of it may claim."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_cases import least_traffic_by_enumeration, problems, wired, working_set

from peakline.solvers.dag import Dag
from peakline.solvers.plan import Plan
from peakline.solvers.problem import Operator, Problem, Tensor
from peakline.solvers.replay import replay
from peakline.solvers.schedule import schedule, solve
from peakline.solvers.schedule.ideals import slots
from peakline.solvers.schedule.layers import layers
from peakline.solvers.schedule.search import search
from peakline.solvers.schedule.states import Moves
from peakline.solvers.segments import Segment

EVERY = 1 << 40


def whole(problem: Problem, spare: int = 0) -> Moves:
    dag = Dag.of(problem)
    return Moves(dag, Segment(0, dag.everything, 0), working_set(problem) + spare)


@settings(max_examples=80, deadline=None)
@given(problems(), st.integers(0, 4))
def test_all_states_of_every_layer_give_the_least_traffic(problem: Problem, spare: int) -> None:
    found = layers(whole(problem, spare), known=10_000, width=EVERY, deadline=inf)
    assert found is not None
    least = least_traffic_by_enumeration(problem, working_set(problem) + spare)
    assert found.cost == found.bound == least


@pytest.mark.parametrize("seed", range(12))
def test_it_agrees_with_a_star_where_much_moves(seed: int) -> None:
    moves = whole(wired(seed, 14))
    one, other = layers(moves, known=10_000, width=EVERY, deadline=inf), search(moves, 0, 10_000, deadline=inf)
    assert one is not None
    assert one.cost == other.cost


@pytest.mark.parametrize("width", [1, 2, 8])
def test_a_narrow_run_brackets_the_least_traffic(width: int) -> None:
    for seed in range(8):
        moves = whole(wired(seed, 12))
        least, narrow = (
            search(moves, 0, 10_000, deadline=inf).cost,
            layers(moves, known=10_000, width=width, deadline=inf),
        )
        assert narrow is not None
        assert narrow.bound <= least <= narrow.cost


def test_nothing_is_found_below_the_least() -> None:
    moves = whole(wired(3, 14))
    least = search(moves, 0, 10_000, deadline=inf).cost
    found = layers(moves, known=least, width=EVERY, deadline=inf)
    assert found is not None
    assert (found.moves, found.bound) == (None, least)


def test_tensors_that_may_be_alive_together_have_slots_of_their_own() -> None:
    """Along a chain two slots do, however long it is."""
    names = [f"t{i}" for i in range(50)]
    operators = tuple(Operator(f"f{i}", (names[i],), (names[i + 1],)) for i in range(49))
    chain = Dag.of(Problem(tuple(Tensor(n, 1, "input" if n == "t0" else "activation") for n in names), operators))
    assert len(set(slots(chain, Segment(0, chain.everything, 0)).values())) <= 2
    for seed in range(5):
        dag = Dag.of(wired(seed, 10))
        taken = slots(dag, Segment(0, dag.everything, 0))
        executed = 0
        for i in dag.problem.given_order:
            executed |= 1 << i
            alive = [taken[a] for a in range(len(dag.size)) if dag.live_after(executed) >> a & 1]
            assert len(alive) == len(set(alive))


@pytest.mark.parametrize("seed", [1, 5])
def test_one_process_and_two_give_the_same_plan(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing left to the first search, the solvers' contest decides."""
    monkeypatch.setattr(solve, "_FIRST_STATES", 0)
    monkeypatch.setattr(solve, "_WIDTHS", (1,))
    problem = wired(seed, 18)
    capacity = working_set(problem)
    plans: list[Plan] = [schedule(problem, capacity, time_limit=60, jobs=jobs) for jobs in (1, 2)]
    assert plans[0].steps == plans[1].steps
    assert "layers from both ends" in plans[0].certificate.method
    for plan in plans:
        assert plan.certificate.status == "optimal"
        assert replay(problem, plan).non_compulsory == plan.certificate.objective
