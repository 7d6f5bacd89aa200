"""Bypass, outputs in place of inputs, operators that run again: against exhaustive search, always replayed."""

from __future__ import annotations

import heapq
import json
import random
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_cases import least_traffic_by_enumeration, problems, wired, working_set

import peakline as pk
from peakline.cli import main
from peakline.scheduling import part_of, problem_of
from peakline.solvers.dag import Dag
from peakline.solvers.plan import ALLOWED, Certificate, Plan
from peakline.solvers.problem import Operator, Problem, ProblemError, Tensor
from peakline.solvers.replay import ReplayError, replay
from peakline.solvers.schedule import Infeasible, schedule
from peakline.solvers.schedule.allowing import schedule_allowing
from peakline.solvers.schedule.allowing_bounds import relieved, remaking_bound, traffic_bound_allowing
from peakline.solvers.schedule.options_plan import place_in_turn, written
from peakline.solvers.schedule.runs import as_steps, furthest_event, non_compulsory, valid
from peakline.solvers.schedule.runs_program import best_runs, fits

Moment = tuple[frozenset[str], frozenset[str], frozenset[str]]


def least_by_enumeration(problem: Problem, capacity: int, allow: tuple[str, ...]) -> int | None:
    """Non-compulsory bytes of the best plan: everything that a scratchpad may hold at every moment, one small action
    (store, evict, load, run) at a time, by Dijkstra's algorithm; None if there is no plan."""
    size = {t.name: t.bytes for t in problem.tensors}
    at_rest = frozenset(t.name for t in problem.tensors if t.role in ("input", "parameter"))
    outputs = frozenset(t.name for t in problem.tensors if t.role == "output")
    best: dict[Moment, int] = {(frozenset(), frozenset(), at_rest): 0}
    heap = [(0, n, moment) for n, moment in enumerate(best)]
    while heap:
        paid, _, moment = heapq.heappop(heap)
        if len(moment[0]) == len(problem.operators) and outputs <= moment[2]:
            return paid - problem.compulsory
        if paid > best[moment]:
            continue
        for price, after in _actions(problem, moment, capacity, allow, size, outputs):
            if paid + price < best.get(after, 1 << 60):
                best[after] = paid + price
                heapq.heappush(heap, (paid + price, len(best), after))
    return None


def _actions(problem, moment, capacity, allow, size, outputs):  # type: ignore[no-untyped-def]
    done, resident, off = moment
    held = sum(size[n] for n in resident)
    for name in resident:
        yield 0, (done, resident - {name}, off)
        if name not in off:
            yield size[name], (done, resident, off | {name})
    for name in off - resident:
        if held + size[name] <= capacity:
            yield size[name], (done, resident | {name}, off)
    for operator in problem.operators:
        if operator.name in done and "recompute" not in allow:
            continue
        if resident & set(operator.outputs):
            continue
        absent = [n for n in operator.inputs if n not in resident]
        if absent and ("bypass" not in allow or not off.issuperset(absent)):
            continue
        here = [n for n in operator.inputs if n in resident]
        options = [[None, *here] if "in-place" in allow else [None] for _ in operator.outputs]
        for chosen in product(*options):
            over = [(b, a) for b, a in zip(operator.outputs, chosen) if a is not None]
            under = [a for _, a in over]
            if len(set(under)) < len(under) or any(size[b] > size[a] for b, a in over):
                continue
            if operator.in_place is not None and not set(over) <= set(operator.in_place):
                continue
            fresh = sum(size[b] for b, a in zip(operator.outputs, chosen) if a is None)
            if held + fresh <= capacity:
                after = (resident | set(operator.outputs)) - set(under)
                yield sum(size[n] for n in absent), (done | {operator.name}, after, off)


@st.composite
def offering(draw: st.DrawFn) -> Problem:
    """Up to three operators, some of which say which inputs their outputs may overwrite."""
    problem = draw(problems(3))
    operators = []
    for operator in problem.operators:
        pairs = [(made, read) for made in operator.outputs for read in operator.inputs]
        offered = draw(st.none() | st.lists(st.sampled_from(pairs), unique=True)) if pairs else None
        operators.append(replace(operator, in_place=None if offered is None else tuple(offered)))
    return Problem(problem.tensors, tuple(operators))


@settings(max_examples=120, deadline=None)
@given(offering(), st.integers(-2, 3), st.sets(st.sampled_from(ALLOWED), min_size=1, max_size=2))
def test_each_option_agrees_with_exhaustive_search(problem: Problem, spare: int, chosen: set[str]) -> None:
    if len(problem.tensors) > 7:
        return
    capacity, allow = max(1, working_set(problem) + spare), tuple(sorted(chosen))
    least = least_by_enumeration(problem, capacity, allow)
    if least is None:
        with pytest.raises(Infeasible):
            schedule_allowing(problem, capacity, allow, time_limit=30)
        return
    plan = schedule_allowing(problem, capacity, allow, time_limit=30)
    assert plan.certificate.lower_bound == least
    done = replay(problem, plan)
    assert done.non_compulsory == plan.certificate.objective >= least
    assert replay(problem, Plan.from_json(plan.to_json())) == done
    if spare >= 0:
        assert least <= least_traffic_by_enumeration(problem, capacity)


@settings(max_examples=100, deadline=None)
@given(offering(), st.integers(-2, 3), st.sets(st.sampled_from(ALLOWED), min_size=1))
def test_no_plan_moves_less_than_the_bounds(problem: Problem, spare: int, chosen: set[str]) -> None:
    if len(problem.tensors) > 7:
        return
    capacity, allow = max(1, working_set(problem) + spare), tuple(sorted(chosen))
    least = least_by_enumeration(problem, capacity, allow)
    if least is None:
        return
    dag = Dag.of(problem)
    assert traffic_bound_allowing(dag, capacity, allow) <= least
    assert remaking_bound(dag, capacity, allow) <= least
    if "recompute" not in allow:
        easier, room = relieved(dag, capacity, allow)
        assert schedule(easier, room, time_limit=30).certificate.lower_bound <= least


@settings(max_examples=150, deadline=None)
@given(problems(6), st.integers(0, 3), st.sets(st.sampled_from(ALLOWED)), st.randoms(use_true_random=False))
def test_every_sequence_of_runs_has_addresses(
    problem: Problem, spare: int, chosen: set[str], chance: random.Random
) -> None:
    dag, capacity = Dag.of(problem), working_set(problem) + spare
    order = list(problem.given_order)
    if "recompute" in chosen:
        for _ in range(3):
            more = list(order)
            more.insert(chance.randrange(1, len(order) + 1), chance.choice(order))
            order = more if valid(dag, more) else order
    for runs in (
        furthest_event(dag, order, capacity, tuple(chosen)),
        best_runs(dag, order, capacity, tuple(chosen), time_limit=5),
    ):
        assert runs is not None
        assert fits(dag, runs, capacity)
        final, offsets = place_in_turn(dag, runs, capacity)
        cost = non_compulsory(dag, final)
        proof = Certificate(cost, 0, "", 0.0)
        plan = written(dag, as_steps(dag, final), offsets, capacity, ALLOWED, proof)
        assert replay(problem, plan).non_compulsory == cost >= non_compulsory(dag, runs)


def test_the_best_replacement_moves_no_more_than_the_rule() -> None:
    for seed in range(20):
        problem = wired(seed, 12)
        dag, capacity = Dag.of(problem), working_set(problem)
        order = (*problem.given_order, 3, 5)
        for allow in (("in-place", "recompute"), ("bypass", "recompute"), ALLOWED):
            ruled = furthest_event(dag, order, capacity, allow)
            solved = best_runs(dag, order, capacity, allow, time_limit=5)
            assert ruled is not None
            assert solved is not None
            assert non_compulsory(dag, solved) <= non_compulsory(dag, ruled)


CHEAP = Problem(
    (Tensor("x", 2, "input"), Tensor("a", 6), Tensor("b", 5), Tensor("c", 5), Tensor("y", 1, "output")),
    (
        Operator("grow", ("x",), ("a",)),
        Operator("use", ("a",), ("b",)),
        Operator("turn", ("b",), ("c",)),
        Operator("join", ("a", "c"), ("y",)),
    ),
)


def test_running_an_operator_again_saves_a_store_and_a_reload() -> None:
    stored = schedule_allowing(CHEAP, 13, ("bypass",)).traffic.non_compulsory
    again = schedule_allowing(CHEAP, 13, ("recompute",))
    assert (again.traffic.non_compulsory, stored) == (0, 10)
    assert [step.operator for step in again.steps].count("grow") == 2
    assert replay(CHEAP, again).non_compulsory == 0
    with pytest.raises(ReplayError, match="runs a second time"):
        replay(CHEAP, replace(again, allow=()))


def test_an_output_in_place_of_its_input_needs_no_room() -> None:
    chain = Problem(
        (Tensor("x", 4, "input"), Tensor("a", 4), Tensor("y", 3, "output")),
        (Operator("f", ("x",), ("a",)), Operator("g", ("a",), ("y",))),
    )
    plan = schedule_allowing(chain, 4, ("in-place",))
    assert (plan.peak, plan.traffic.non_compulsory) == (4, 0)
    assert [dict(step.in_place) for step in plan.steps] == [{"a": "x"}, {"y": "a"}]
    with pytest.raises(ReplayError, match="in-place is used"):
        replay(chain, replace(plan, allow=("bypass",)))
    moved = replace(plan.steps[1], produce={"y": 2})
    with pytest.raises(ReplayError, match="not within the bytes"):
        replay(chain, replace(plan, steps=(plan.steps[0], moved)))


def test_what_is_read_once_streams_past_the_scratchpad() -> None:
    problem = Problem(
        (Tensor("x", 2, "input"), Tensor("w", 50, "parameter"), Tensor("y", 3, "output")),
        (Operator("f", ("x", "w"), ("y",)),),
    )
    plan = schedule_allowing(problem, 5, ("bypass",))
    assert plan.steps[0].bypass[-1] == "w"
    assert replay(problem, plan).load == 52
    with pytest.raises(Infeasible, match="even with bypass"):
        schedule_allowing(problem, 2, ("bypass",))
    with pytest.raises(ReplayError, match="while it is not resident"):
        replay(problem, replace(plan, steps=(replace(plan.steps[0], bypass=()),)))


def test_only_what_an_operator_offers_is_overwritten() -> None:
    problem = Problem(
        (Tensor("x", 4, "input"), Tensor("a", 4), Tensor("y", 4, "output")),
        (Operator("f", ("x",), ("a",), in_place=()), Operator("g", ("a",), ("y",), in_place=(("y", "a"),))),
    )
    assert Problem.from_json(problem.to_json()) == problem
    with pytest.raises(Infeasible, match="even with in-place; operator 'f' takes 8 bytes"):
        schedule_allowing(problem, 7, ("in-place",))
    plan = schedule_allowing(problem, 8, ("in-place",))
    first = replace(plan.steps[0], in_place={"a": "x"}, produce={"a": plan.steps[0].load["x"]})
    with pytest.raises(ReplayError, match="which the operator 'f' does not offer"):
        replay(problem, replace(plan, steps=(first, plan.steps[1])))
    with pytest.raises(ProblemError, match="in_place: 'z' is not an input of it"):
        Problem(problem.tensors, (Operator("f", ("x",), ("a",), in_place=(("a", "z"),)), problem.operators[1]))
    with pytest.raises(ProblemError, match="in_place must be like"):
        Problem.from_json(problem.to_json().replace('{"y": ["a"]}', '["a"]'))


def test_a_residual_network_fits_in_less_where_additions_lie_in_place() -> None:
    problem = problem_of(pk.inference("resnet-50", dtype="int8"), scope="activations")
    whole = working_set(problem)
    plan = schedule_allowing(problem, 2 * whole // 3, ("in-place",), time_limit=20)
    assert replay(problem, plan).non_compulsory == plan.certificate.lower_bound > 0
    assert {made.rsplit(".", 2)[1] for step in plan.steps for made in step.in_place} == {"convolution"}
    assert schedule_allowing(problem, whole - 1, ("in-place",), time_limit=20).traffic.non_compulsory == 0
    with pytest.raises(Infeasible):
        schedule(problem, whole - 1)


def test_a_layer_of_training_moves_less_where_operators_may_run_again() -> None:
    graph = pk.training_step("bert-base-uncased", seq=128, batch=1, optimizer="none")
    problem = part_of(problem_of(graph, scope="activations"), "bert.encoder.layer.0.")
    capacity = working_set(problem)
    stored = schedule(problem, capacity, time_limit=10).traffic.non_compulsory
    again = schedule_allowing(problem, capacity, ("recompute",), time_limit=4)
    assert replay(problem, again).non_compulsory < stored / 2
    ran = [step.operator for step in again.steps]
    assert len(ran) > len(set(ran)) == len(problem.operators)


def test_the_command_takes_options_and_writes_them_into_the_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph, out = tmp_path / "graph.json", tmp_path / "plan.json"
    graph.write_text(CHEAP.to_json())
    command = ["schedule", str(graph), "--capacity", "13", "--allow", "recompute,in-place", "--out", str(out), "--json"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "optimal"
    assert json.loads(out.read_text())["allow"] == ["in-place", "recompute"]
    assert main(["schedule", str(graph), "--capacity", "13", "--allow", "magic"]) == 2
    assert "must be of bypass, in-place, recompute" in capsys.readouterr().err
