"""Layers of states from both ends: against exhaustive search and A*, and on a stage of RandWire."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_cases import least_traffic_by_enumeration, problems, wired, working_set

from peakline.solvers.dag import Dag, bits
from peakline.solvers.problem import Problem
from peakline.solvers.schedule.episodes import traffic
from peakline.solvers.schedule.meeting import meet
from peakline.solvers.schedule.search import Found, search
from peakline.solvers.schedule.states import Moves
from peakline.solvers.segments import Segment, segments

ANY = 10_000


def whole(problem: Problem, spare: int = 0) -> Moves:
    dag = Dag.of(problem)
    return Moves(dag, Segment(0, dag.everything, 0), working_set(problem) + spare)


def least_below(moves: Moves, known: int) -> Found:
    found = meet(moves, known, deadline=inf)
    assert found is not None
    return found


def carried_out(moves: Moves, found: Found) -> int:
    """Traffic of what was found, by an account of its own: it fits, and each operator has what it reads."""
    assert found.moves is not None
    dag, used, dropped = moves.dag, [0] * len(moves.dag.size), set()
    for i, evicted in found.moves:
        assert all(used[a] for a in dag.inputs[i] if dag.maker[a] >= 0)
        dropped |= {(a, used[a] - 1) for a in bits(evicted)}
        for a in bits(dag.touch[i]):
            used[a] += 1
    seen = [0] * len(dag.size)
    for i, _ in found.moves:
        kept = sum(dag.size[a] for a, times in enumerate(seen) if 0 < times < used[a] and (a, times - 1) not in dropped)
        idle = sum(dag.size[a] for a in bits(dag.touch[i]) if not 0 < seen[a] < used[a] or (a, seen[a] - 1) in dropped)
        assert kept + idle <= moves.capacity
        for a in bits(dag.touch[i]):
            seen[a] += 1
    return traffic(dag, dropped)


@settings(max_examples=80, deadline=None)
@given(problems(), st.integers(0, 4))
def test_both_ends_meet_at_the_least_traffic(problem: Problem, spare: int) -> None:
    moves = whole(problem, spare)
    found = least_below(moves, ANY)
    least = least_traffic_by_enumeration(problem, working_set(problem) + spare)
    assert found.cost == found.bound == carried_out(moves, found) == least


@pytest.mark.parametrize("seed", range(20))
def test_they_agree_with_a_star_where_much_moves(seed: int) -> None:
    moves = whole(wired(seed, 15))
    found = least_below(moves, ANY)
    assert found.cost == carried_out(moves, found) == search(moves, 0, ANY, deadline=inf).cost


@pytest.mark.parametrize("seed", range(12))
def test_nothing_is_found_below_the_least_and_the_least_below_any_more(seed: int) -> None:
    """Each end prunes the other by what is known: by the very least, or by a byte more."""
    moves = whole(wired(seed, 14))
    least = search(moves, 0, ANY, deadline=inf).cost
    if least:
        nothing = least_below(moves, least)
        assert (nothing.moves, nothing.bound) == (None, least)
    assert least_below(moves, least + 1).cost == least


def test_pieces_between_other_pieces_meet_as_well() -> None:
    """What is alive where a piece begins and ends is resident there."""
    compared = 0
    for seed in range(60):
        problem = wired(seed, 16)
        dag = Dag.of(problem)
        for piece in segments(dag, independent=True):
            moves = Moves(dag, piece, working_set(problem))
            least = search(moves, 0, ANY, deadline=inf).cost
            assert least_below(moves, ANY).cost == least
            compared += least > 0 and (piece.start, piece.stop) != (0, dag.everything)
    assert compared > 5


def test_no_time_means_no_answer() -> None:
    assert meet(whole(wired(3, 15)), ANY, deadline=-inf) is None
