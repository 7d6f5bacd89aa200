"""Several levels of memory: against exhaustive search, always replayed by a referee of their own."""

from __future__ import annotations

import heapq
import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from cli_command import Run, run
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from schedule_cases import problems, working_set

import peakline as pk
from peakline.scheduling import part_of, problem_of
from peakline.solvers.dag import Dag
from peakline.solvers.levels import Level, LevelsPlan, Move, schedule_levels
from peakline.solvers.levels.exclusive import best_homes, of_homes
from peakline.solvers.levels.plan import Bound
from peakline.solvers.plan import PlanError
from peakline.solvers.problem import Operator, Problem, Tensor
from peakline.solvers.replay import ReplayError
from peakline.solvers.replay_levels import replay_levels
from peakline.solvers.schedule import Infeasible, schedule

__all__ = ["run"]  # a fixture


def least_by_enumeration(problem: Problem, levels: tuple[Level, ...]) -> float:
    """Weighted non-compulsory bytes of the best plan, by Dijkstra's algorithm over everything that the levels may hold:
    one copy comes, goes or is dropped at a time, or an operator runs. Addresses are not looked at."""
    size = {t.name: t.bytes for t in problem.tensors}
    outputs = frozenset(t.name for t in problem.tensors if t.role == "output")
    off = frozenset(t.name for t in problem.tensors if t.role in ("input", "parameter"))
    start = (frozenset[str](), tuple(frozenset[str]() for _ in levels), off)
    best = {start: 0.0}
    heap: list[Any] = [(0.0, 0, start)]
    serial = 0
    while heap:
        paid, _, state = heapq.heappop(heap)
        if paid > best[state]:
            continue
        done, held, off = state
        if len(done) == len(problem.operators) and outputs <= off:
            return paid - problem.compulsory * sum(level.weight for level in levels)
        following = []
        for n, level in enumerate(levels):
            room = level.capacity - sum(size[name] for name in held[n])
            following += [(0.0, (done, _with(held, n, held[n] - {name}), off)) for name in held[n]]
            beyond = held[n + 1] if n + 1 < len(levels) else off
            for name in beyond - held[n]:
                if size[name] <= room:
                    following.append((level.weight * size[name], (done, _with(held, n, held[n] | {name}), off)))
            for name in held[n] - beyond:
                if n + 1 == len(levels):
                    following.append((level.weight * size[name], (done, held, off | {name})))
                elif size[name] + sum(size[other] for other in beyond) <= levels[n + 1].capacity:
                    after = (done, _with(held, n + 1, beyond | {name}), off)
                    following.append((level.weight * size[name], after))
        for o in problem.operators:
            fits = sum(size[n] for n in held[0] | set(o.outputs)) <= levels[0].capacity
            if o.name not in done and held[0].issuperset(o.inputs) and fits:
                following.append((0.0, (done | {o.name}, _with(held, 0, held[0] | set(o.outputs)), off)))
        for price, new in following:
            if paid + price < best.get(new, float("inf")):
                best[new] = paid + price
                serial += 1
                heapq.heappush(heap, (paid + price, serial, new))
    raise AssertionError("no plan")


def _with(held: tuple[frozenset[str], ...], n: int, names: frozenset[str]) -> tuple[frozenset[str], ...]:
    return (*held[:n], names, *held[n + 1 :])


@st.composite
def cases(draw: st.DrawFn, most: int = 3) -> tuple[Problem, tuple[Level, ...]]:
    """A random problem and two levels a little above its largest working set, whole weights."""
    problem = draw(problems(most))
    first = working_set(problem) + draw(st.integers(0, 3))
    weights = st.sampled_from((1.0, 2.0, 5.0))
    return problem, (Level(first, draw(weights)), Level(first + draw(st.integers(1, 4)), draw(weights)))


@settings(max_examples=25, deadline=None)
@given(cases())
def test_the_least_over_two_levels_is_what_exhaustive_search_finds(case: tuple[Problem, tuple[Level, ...]]) -> None:
    problem, levels = case
    assume(len(problem.tensors) <= 7)
    plan = schedule_levels(problem, levels, time_limit=30)
    done = replay_levels(problem, plan)
    least = least_by_enumeration(problem, levels)
    assert plan.certificate.lower_bound == pytest.approx(least)
    assert done.cost == pytest.approx(least)


@settings(max_examples=40, deadline=None)
@given(cases(6))
def test_plans_over_levels_survive_json_and_replay_to_what_they_state(
    case: tuple[Problem, tuple[Level, ...]],
) -> None:
    problem, levels = case
    plan = schedule_levels(problem, levels, time_limit=5)
    again = LevelsPlan.from_json(plan.to_json())
    assert again == plan
    done = replay_levels(problem, again)
    assert all(peak <= level.capacity for peak, level in zip(done.peak, levels))
    assert plan.certificate.lower_bound <= done.cost * (1 + 1e-9)


@settings(max_examples=40, deadline=None)
@given(cases(6), st.data())
def test_a_dropped_move_is_refused(case: tuple[Problem, tuple[Level, ...]], data: st.DataObject) -> None:
    problem, levels = case
    plan = schedule_levels(problem, levels, time_limit=5)
    moved = [(t, n) for t, s in enumerate(plan.steps) for n, m in enumerate(s.moves) if m.kind != "evict"]
    t, n = data.draw(st.sampled_from(moved))
    step = plan.steps[t]
    shorter = replace(step, moves=step.moves[:n] + step.moves[n + 1 :])
    with pytest.raises(ReplayError):
        replay_levels(problem, replace(plan, steps=(*plan.steps[:t], shorter, *plan.steps[t + 1 :])))


@settings(max_examples=40, deadline=None)
@given(cases(6), st.data())
def test_exchanged_steps_and_smaller_levels_are_refused(
    case: tuple[Problem, tuple[Level, ...]], data: st.DataObject
) -> None:
    problem, levels = case
    plan = schedule_levels(problem, levels, time_limit=5)
    reads = {o.name: set(o.inputs) for o in problem.operators}
    for p, q in product(range(len(plan.steps)), repeat=2):
        if p < q and reads[plan.steps[q].operator] & set(plan.steps[p].produce):
            steps = list(plan.steps)
            steps[p], steps[q] = steps[q], steps[p]
            with pytest.raises(ReplayError):
                replay_levels(problem, replace(plan, steps=tuple(steps)))
    tops = [
        m.offset + _size(problem, m.tensor)
        for s in plan.steps
        for m in s.moves
        if m.level == 2 and m.offset is not None
    ]
    assume(tops and max(tops) > 1)
    small = (levels[0], Level(max(tops) - 1, levels[1].weight))
    with pytest.raises(ReplayError, match="passes level 2's capacity"):
        replay_levels(problem, replace(plan, levels=small))


def _size(problem: Problem, name: str) -> int:
    return next(t.bytes for t in problem.tensors if t.name == name)


@settings(max_examples=80, deadline=None)
@given(cases(7), st.integers(0, 10))
def test_tensors_in_one_level_at_a_time_move_what_their_homes_cost(
    case: tuple[Problem, tuple[Level, ...]], more: int
) -> None:
    problem, levels = case
    levels = (*levels, Level(levels[1].capacity + 1 + more, 3.0))
    dag = Dag.of(problem)
    homes = best_homes(dag, dag.problem.given_order, levels, time_limit=5)
    assert homes is not None
    plan = of_homes(dag, levels, homes, Bound(homes.cost, 0.0, "", 0.0), time_limit=1, seed=0)
    if plan is not None:  # addresses exist
        assert replay_levels(problem, plan).cost == pytest.approx(homes.cost)
    roomier = best_homes(dag, dag.problem.given_order, levels, time_limit=5, spare=(1, 1, 1))
    if roomier is not None:  # the outer levels can leave a byte free
        assert roomier.cost >= homes.cost - 1e-6
        plan = of_homes(dag, levels, roomier, Bound(roomier.cost, 0.0, "", 0.0), time_limit=1, seed=0)
        assert plan is None or replay_levels(problem, plan).cost == pytest.approx(roomier.cost)


SPILL = Problem(
    (Tensor("x", 4, "input"), Tensor("a", 4), Tensor("b", 6), Tensor("c", 5), Tensor("y", 2, "output")),
    (
        Operator("f", ("x",), ("a",)),
        Operator("g", ("x",), ("b",)),
        Operator("h", ("b",), ("c",)),
        Operator("k", ("a", "c"), ("y",)),
    ),
)


def test_what_the_first_level_cannot_hold_waits_in_the_second() -> None:
    """11 bytes hold h's b and c, so the 4 of a (or x) leave and come back; the second level keeps them."""
    plan = schedule_levels(SPILL, (Level(12, 1.0), Level(40, 10.0)))
    done = replay_levels(SPILL, plan)
    assert (done.non_compulsory(2), plan.certificate.status) == (0, "optimal")
    assert done.cost == plan.certificate.objective == schedule(SPILL, 12).traffic.non_compulsory


def test_where_one_copy_of_each_tensor_has_no_addresses_levels_keep_room_for_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("peakline.solvers.levels.solve.of_homes", lambda *_, **__: None)
    plan = schedule_levels(SPILL, (Level(12, 1.0), Level(24, 5.0)), time_limit=5)
    replay_levels(SPILL, plan)
    assert plan.certificate.objective >= plan.certificate.lower_bound


def test_one_level_is_the_problem_without_levels() -> None:
    plan = schedule_levels(SPILL, (Level(12, 3.0),))
    assert plan.certificate.objective == 3 * schedule(SPILL, 12).certificate.objective
    replay_levels(SPILL, plan)


@pytest.mark.parametrize("train", [False, True])
def test_a_transformer_layer_over_three_levels(train: bool) -> None:
    build = {"seq": 128, "dtype": "bf16"}
    graph = (
        pk.training_step("bert-base-uncased", optimizer="none", **build)
        if train
        else pk.inference("bert-base-uncased", **build)
    )
    problem = part_of(problem_of(graph), "bert.encoder.layer.0.")
    first = max(working_set(problem), 1)
    levels = (Level(first, 1.0), Level(int(1.5 * first), 4.0), Level(4 * first, 50.0))
    plan = schedule_levels(problem, levels, time_limit=10)
    done = replay_levels(problem, plan)
    assert plan.certificate.lower_bound <= done.cost
    assert done.non_compulsory(3) <= done.non_compulsory(2) <= done.non_compulsory(1)


@pytest.mark.parametrize(
    ("move", "message"),
    [
        (Move("load", "q", 1, 0), "is not a tensor"),
        (Move("load", "y", 2, 0), "load from level 3, where it is not"),
        (Move("load", "x", 3, 0), "loads go to 1 to 2"),
        (Move("store", "x", 1, 0), "stores go to 2 to 3"),
        (Move("evict", "x", 2), "evicted from level 2, where it is not"),
        (Move("load", "x", 2), "offset at level 2 must be at least 0, got None"),
        (Move("load", "x", 2, -1), "must be at least 0, got -1"),
        (Move("load", "x", 2, 37), "passes level 2's capacity of 40"),
    ],
)
def test_impossible_moves_are_refused(move: Move, message: str) -> None:
    plan = schedule_levels(SPILL, (Level(12, 1.0), Level(40, 10.0)))
    first = plan.steps[0]
    with pytest.raises(ReplayError, match=message):
        replay_levels(SPILL, replace(plan, steps=(replace(first, moves=(move, *first.moves)), *plan.steps[1:])))


def test_bad_levels_are_named() -> None:
    with pytest.raises(ValueError, match="levels must grow from the operators outwards, got 12 after 12"):
        schedule_levels(SPILL, (Level(12), Level(12)))
    with pytest.raises(ValueError, match="there must be at least one"):
        schedule_levels(SPILL, ())
    with pytest.raises(ValueError, match="weight: must be a finite number above 0, got -1"):
        Level(12, -1)
    with pytest.raises(ValueError, match="capacity: must be at least 1 byte, got 0"):
        Level(0)
    with pytest.raises(ValueError, match="time limit: must be above 0"):
        schedule_levels(SPILL, (Level(12), Level(13)), time_limit=0)
    with pytest.raises(Infeasible, match="'h' computes in level 1 and needs 11 bytes"):
        schedule_levels(SPILL, (Level(10), Level(100)))


@pytest.mark.parametrize("text", ["", "{}", '{"schema": "peakline.levels-plan/1"}', "[" * 100_000])
def test_a_text_that_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(PlanError):
        LevelsPlan.from_json(text)


@pytest.fixture
def by_hand(tmp_path: Path) -> str:
    path = tmp_path / "graph.json"
    path.write_text(SPILL.to_json(), encoding="utf-8")
    return str(path)


def test_the_command_line_takes_capacities_from_the_inside_out(by_hand: str, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "plan.json"
    done = run("schedule", by_hand, "--capacity", "12,40", "--weights", "1,10", "--out", str(out), "--json")
    assert done.code == 0
    answer = json.loads(done.out)
    counted = replay_levels(SPILL, LevelsPlan.from_json(out.read_text(encoding="utf-8")))
    assert [level["capacity"] for level in answer["levels"]] == [12, 40]
    assert answer["certificate"]["objective"] == answer["certificate"]["lower_bound"] == counted.cost
    words = run("schedule", by_hand, "--capacity", "12,40")
    assert words.code == 0
    assert "level 2" in words.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--capacity", "40,12"], "levels must grow from the operators outwards, got 12 after 40"),
        (["--capacity", "12,"], "--capacity"),
        (["--capacity", "12,40", "--weights", "1"], "--weights: one for each of the 2 levels, got 1"),
        (["--capacity", "12,40", "--weights", "1,-2"], "weight: must be a finite number above 0, got -2"),
        (["--capacity", "12,40", "--weights", "1,x"], "--weights: must be numbers"),
        (["--capacity", "12", "--weights", "1"], "--weights: several levels have them"),
        (["--capacity", "12,40", "--objective", "peak"], "several levels: traffic alone"),
        (["--capacity", "12,40", "--allow", "bypass"], "--allow: does not go with several levels"),
        (["--capacity", "12,40", "--tile"], "--tile: does not go with several levels"),
        (["--capacity", "12,40", "--time-limit", "0"], "time limit: must be above 0"),
    ],
)
def test_bad_levels_end_in_2_with_one_line(by_hand: str, run: Run, arguments: list[str], message: str) -> None:
    done = run("schedule", by_hand, *arguments)
    assert done.code == 2
    assert message in done.err
    assert len(done.err.splitlines()) == 1


def test_a_first_level_that_is_too_small_ends_in_1(by_hand: str, run: Run) -> None:
    done = run("schedule", by_hand, "--capacity", "10,40", "--json")
    assert done.code == 1
    assert json.loads(done.out)["smallest_capacity"] == 11
