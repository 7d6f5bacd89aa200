"""Layers of states from both ends: against exhaustive search and A*, and on a stage of RandWire."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_cases import least_traffic_by_enumeration, problems, wired, working_set

from peakline.solvers.dag import Dag, bits
from peakline.solvers.problem import Operator, Problem, Tensor
from peakline.solvers.schedule.episodes import traffic
from peakline.solvers.schedule.layers import layers
from peakline.solvers.schedule.meeting import meet
from peakline.solvers.schedule.search import Found, beam, search
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


@settings(max_examples=80, deadline=None)
@given(problems(), st.sampled_from(((1,), (2, 3))), st.integers(0, 3))
def test_which_of_equal_tensors_leaves_is_left_open_at_no_cost(
    problem: Problem, sizes: tuple[int, ...], spare: int
) -> None:
    """Of equal ones that are read last in any order only the first leave."""
    equal = tuple(replace(t, bytes=sizes[n % len(sizes)]) for n, t in enumerate(problem.tensors))
    alike = Problem(equal, problem.operators)
    moves = whole(alike, spare)
    found, all_states = least_below(moves, ANY), layers(moves, known=ANY, width=1 << 40, deadline=inf)
    least = least_traffic_by_enumeration(alike, working_set(alike) + spare)
    assert all_states is not None
    assert found.cost == all_states.cost == carried_out(moves, found) == least


def test_an_end_with_too_many_ways_to_make_room_waits_for_the_other() -> None:
    """A recurrent network, unrolled: from the end any of its states may have been out, forwards it hardly matters."""
    tensors = [Tensor("y", 24)]
    operators = []
    for layer, below in (("a", "x"), ("b", "ha")):
        tensors += [Tensor(f"w{layer}", 32, "parameter"), *(Tensor(f"{s}{layer}-1", 1, "input") for s in "hc")]
        for t in range(24):
            before = (f"h{layer}{t - 1}", f"c{layer}{t - 1}")
            if below == "x":
                tensors.append(Tensor(f"x{t}", 1, "input"))
            tensors += [Tensor(f"g{layer}{t}", 4), Tensor(f"c{layer}{t}", 1), Tensor(f"h{layer}{t}", 1)]
            operators += [
                Operator(f"gates {layer}{t}", (f"{below}{t}", before[0], f"w{layer}"), (f"g{layer}{t}",)),
                Operator(f"cell {layer}{t}", (f"g{layer}{t}", before[1]), (f"c{layer}{t}",)),
                Operator(f"hidden {layer}{t}", (f"g{layer}{t}", f"c{layer}{t}"), (f"h{layer}{t}",)),
            ]
    operators.append(Operator("all", tuple(f"hb{t}" for t in range(24)), ("y",)))
    moves = whole(Problem(tuple(tensors), tuple(operators)))
    known = beam(moves, 4, deadline=inf).cost
    found = least_below(moves, known + 1)
    assert found.states < 20_000
    assert 0 < found.cost == carried_out(moves, found) <= known


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
