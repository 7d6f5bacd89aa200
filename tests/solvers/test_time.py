"""The shortest time on one compute unit and one link: against exhaustive search, replayed by a referee of its own."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from schedule_cases import problems, working_set

from peakline.solvers.makespan import fastest
from peakline.solvers.plan import Plan, PlanError
from peakline.solvers.problem import Operator, Problem, Tensor
from peakline.solvers.replay import ReplayError, replay
from peakline.solvers.replay_time import replay_time
from peakline.solvers.schedule import Infeasible, schedule

Doing = tuple[str, int] | None  # an operator or a transfer in progress, and the ticks that it still takes


@st.composite
def timed_problems(draw: st.DrawFn, most: int = 4) -> Problem:
    """Random problems whose operators take 0 to 6 seconds: at 1 byte/s everything takes whole seconds."""
    problem = draw(problems(most))
    seconds = [float(draw(st.integers(0, 6))) for _ in problem.operators]
    return replace(
        problem, operators=tuple(replace(o, seconds=s) for o, s in zip(problem.operators, seconds, strict=True))
    )


def least_seconds_by_enumeration(problem: Problem, capacity: int) -> int:
    """The shortest time at 1 byte/s, second by second: everything that may begin or leave at each tick. Addresses are
    not looked at; outputs are stored once, and what nobody reads again leaves at once."""
    size = {t.name: t.bytes for t in problem.tensors}
    at_rest = frozenset(t.name for t in problem.tensors if t.role in ("input", "parameter"))
    outputs = frozenset(t.name for t in problem.tensors if t.role == "output")
    operators = {o.name: o for o in problem.operators}
    layer = {(frozenset[str](), frozenset[str](), at_rest, None, None)}
    ticks = 0
    seen = set(layer)
    while layer:
        following = set()
        for state in layer:
            for begun in _beginnings(state, operators, size, capacity, outputs):
                done, _, off, running, moving = begun
                if len(done) == len(operators) and outputs <= off and running is None and moving is None:
                    return ticks
                if running is not None or moving is not None:
                    after = _tick(begun, operators, size)
                    if after not in seen:
                        seen.add(after)
                        following.add(after)
        layer = following
        ticks += 1
    raise AssertionError("no schedule")


def _beginnings(state, operators, size, capacity, outputs):  # type: ignore[no-untyped-def]
    """The states that a state may turn into within no time."""
    found, stack = {state}, [state]
    while stack:
        done, resident, off, running, moving = stack.pop()
        used = set(operators[running[0]].inputs) if running else set()
        fresh = set(operators[running[0]].outputs) if running else set()
        if moving:
            (used if moving[0][0] == "store" else fresh).add(moving[0][1])
        held = sum(size[n] for n in resident | fresh)
        wanted = {n for o in operators.values() if o.name not in done for n in o.inputs}
        new = []
        idle = resident - used
        dead = frozenset(n for n in idle if n not in wanted and (n in off or n not in outputs))
        if dead:
            new.append((done, resident - dead, off, running, moving))
        else:
            for count in range(1, len(idle & off) + 1):
                for gone in combinations(sorted(idle & off), count):
                    new.append((done, resident - set(gone), off, running, moving))
            if running is None:
                for o in operators.values():
                    if o.name in done or not resident.issuperset(o.inputs):
                        continue
                    if held + sum(size[n] for n in o.outputs) > capacity:
                        continue
                    if o.seconds:
                        new.append((done, resident, off, (o.name, int(o.seconds)), moving))
                    else:
                        new.append((done | {o.name}, resident | set(o.outputs), off, None, moving))
            if moving is None:
                for name in off - resident:
                    if name in wanted and held + size[name] <= capacity:
                        new.append((done, resident, off, running, (("load", name), size[name])))
                for name in resident - off:
                    new.append((done, resident, off, running, (("store", name), size[name])))
        for entry in new:
            if entry not in found:
                found.add(entry)
                stack.append(entry)
    return found


def _tick(state, operators, size):  # type: ignore[no-untyped-def]
    done, resident, off, running, moving = state
    if running is not None:
        name, left = running
        running = (name, left - 1)
        if left == 1:
            done, resident, running = done | {name}, resident | set(operators[name].outputs), None
    if moving is not None:
        (kind, name), left = moving
        moving = ((kind, name), left - 1)
        if left == 1:
            moving = None
            if kind == "load":
                resident = resident | {name}
            else:
                off = off | {name}
    return done, resident, off, running, moving


@settings(max_examples=120, deadline=None)
@given(timed_problems(), st.integers(0, 8))
def test_no_plan_is_shorter_than_the_bound_nor_longer_than_what_exhaustive_search_finds(
    problem: Problem, spare: int
) -> None:
    capacity = working_set(problem) + spare
    plan = fastest(problem, capacity, bandwidth=1.0, time_limit=20)
    assert plan.time is not None
    least = least_seconds_by_enumeration(problem, capacity)
    taken = replay_time(problem, plan)
    assert taken.makespan == pytest.approx(plan.time.makespan)
    # the search proves its optimum, which addresses may make unattainable
    assert plan.time.lower_bound == pytest.approx(least)
    assert taken.makespan >= least - 1e-9
    assert taken.makespan <= least * 1.5


@st.composite
def planned(draw: st.DrawFn) -> tuple[Problem, Plan]:
    """A random problem and its shortest plan at the largest working set, or a little above it."""
    problem = draw(timed_problems(6))
    capacity = working_set(problem) + draw(st.integers(0, 6))
    return problem, fastest(problem, capacity, bandwidth=1.0, time_limit=20)


@settings(max_examples=60, deadline=None)
@given(planned())
def test_a_timed_plan_survives_json_and_is_a_plan_like_any_other(case: tuple[Problem, Plan]) -> None:
    problem, plan = case
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert replay(problem, again).load == plan.traffic.load
    assert replay_time(problem, again).stall == pytest.approx(again.time.makespan - again.time.compute)  # type: ignore[union-attr]


@settings(max_examples=60, deadline=None)
@given(planned())
def test_prefetching_is_never_slower_than_one_thing_at_a_time(case: tuple[Problem, Plan]) -> None:
    problem, plan = case
    in_turn = fastest(problem, plan.capacity, bandwidth=1.0, overlap=False, time_limit=20)
    assert plan.time is not None
    assert in_turn.time is not None
    taken = replay_time(problem, in_turn)
    assert taken.makespan == pytest.approx(taken.compute + taken.transfer)
    assert plan.time.makespan <= in_turn.time.makespan * (1 + 1e-9)
    # one thing at a time is shortest where the least is moved
    least = schedule(problem, plan.capacity, time_limit=20).traffic
    assert taken.transfer == pytest.approx(least.load + least.store)


@settings(max_examples=60, deadline=None)
@given(planned(), st.sampled_from(["makespan", "compute", "transfer"]), st.floats(0.01, 2.0))
def test_misstated_times_are_refused(case: tuple[Problem, Plan], field: str, error: float) -> None:
    problem, plan = case
    assert plan.time is not None
    wrong = replace(plan, time=replace(plan.time, **{field: getattr(plan.time, field) + error}))
    with pytest.raises(ReplayError, match="the replay takes"):
        replay_time(problem, wrong)


@settings(max_examples=60, deadline=None)
@given(planned(), st.data())
def test_a_queue_that_is_not_the_plans_transfers_is_refused(case: tuple[Problem, Plan], data: st.DataObject) -> None:
    problem, plan = case
    assert plan.time is not None
    queue = plan.time.queue
    assume(queue)
    dropped = data.draw(st.integers(0, len(queue) - 1))
    short = replace(plan.time, queue=queue[:dropped] + queue[dropped + 1 :])
    if short.queue:
        with pytest.raises(ReplayError, match="missing in the queue"):
            replay_time(problem, replace(plan, time=short))
    twice = replace(plan.time, queue=(*queue, queue[dropped]))
    with pytest.raises(ReplayError, match="that no step makes"):
        replay_time(problem, replace(plan, time=twice))


@settings(max_examples=80, deadline=None)
@given(planned(), st.data())
def test_another_order_of_the_link_is_refused_or_takes_what_the_replay_says(
    case: tuple[Problem, Plan], data: st.DataObject
) -> None:
    problem, plan = case
    assert plan.time is not None
    assume(len(plan.time.queue) > 1)
    mixed = replace(plan.time, queue=tuple(data.draw(st.permutations(plan.time.queue))))
    try:
        outcome = str(replay_time(problem, replace(plan, time=mixed)).makespan == pytest.approx(plan.time.makespan))
    except ReplayError as refused:
        outcome = refused.args[0]
    assert outcome == "True" or "comes behind it" in outcome or "the replay takes" in outcome


X, W, A, B, Y = (
    Tensor("x", 2, "input"),
    Tensor("w", 6, "parameter"),
    Tensor("a", 2),
    Tensor("b", 2),
    Tensor("y", 2, "output"),
)
CHAIN = Problem(
    (X, W, A, B, Y),
    (
        Operator("f", ("x",), ("a",), seconds=5.0),
        Operator("g", ("a",), ("b",), seconds=4.0),
        Operator("h", ("b", "w"), ("y",), seconds=1.0),
    ),
)


def test_a_weight_streams_in_beside_operators_that_leave_room_for_it() -> None:
    """2 s for x, then f, g and h at 5 + 4 + 1 s while w takes 6 s of the link, then 2 s for y."""
    plan = fastest(CHAIN, 12, bandwidth=1.0)
    assert plan.time is not None
    assert (plan.time.makespan, plan.time.stall, plan.time.status) == (14.0, 4.0, "optimal")


def test_without_room_beside_them_operators_wait() -> None:
    """10 bytes hold h's working set. Beside g, which holds 3 + 2 bytes, the 6 of w do not fit: w waits for g's end."""
    tight = replace(CHAIN, tensors=(X, W, Tensor("a", 3), B, Y))
    plan = fastest(tight, 10, bandwidth=1.0)
    assert plan.time is not None
    assert (plan.time.makespan, plan.time.status) == (2.0 + 5 + 4 + 6 + 1 + 2, "optimal")


def test_flops_become_seconds_at_a_rate() -> None:
    work = replace(
        CHAIN, operators=tuple(replace(o, seconds=None, flops=10 * (o.seconds or 0)) for o in CHAIN.operators)
    )
    plan = fastest(work, 12, bandwidth=1.0, compute_rate=10.0)
    assert plan.time is not None
    assert plan.time.makespan == 14.0
    assert replay_time(work, Plan.from_json(plan.to_json())).makespan == 14.0
    with pytest.raises(ReplayError, match="neither seconds nor flops"):
        replay_time(work, replace(plan, time=replace(plan.time, compute_rate=None)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seconds": -1}, "seconds must be a finite number from 0 on, got -1"),
        ({"seconds": "2"}, "seconds must be a finite number"),
        ({"seconds": True}, "seconds must be a finite number"),
        ({"seconds": float("nan")}, "seconds must be a finite number"),
        ({"flops": -5}, "flops must be a finite number from 0 on, got -5"),
        ({"seconds": 1, "flops": 1}, "gives seconds and flops"),
    ],
)
def test_bad_work_is_named(change: dict[str, object], message: str) -> None:
    operators = [{"name": "f", "inputs": ["x"], "outputs": ["y"], **change}]
    tensors = [{"name": "x", "bytes": 1, "role": "input"}, {"name": "y", "bytes": 1, "role": "output"}]
    with pytest.raises(ValueError, match=message):
        Problem.from_dict({"tensors": tensors, "operators": operators})


def test_bad_rates_and_missing_work_are_named() -> None:
    with pytest.raises(ValueError, match="bandwidth: must be a rate above 0"):
        fastest(CHAIN, 12, bandwidth=0.0)
    with pytest.raises(ValueError, match="compute: must be a rate above 0"):
        fastest(CHAIN, 12, bandwidth=1.0, compute_rate=-2.0)
    silent = replace(CHAIN, operators=tuple(replace(o, seconds=None) for o in CHAIN.operators))
    with pytest.raises(ValueError, match="operator 'f': gives neither seconds nor flops"):
        fastest(silent, 12, bandwidth=1.0)
    with pytest.raises(ValueError, match="time limit: must be above 0"):
        fastest(CHAIN, 12, bandwidth=1.0, time_limit=0)
    with pytest.raises(Infeasible):
        fastest(CHAIN, 9, bandwidth=1.0)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("queue", [["load"]], "queue must be a list"),
        ("overlap", 1, "overlap must be true or false"),
        ("makespan", "4", "makespan must not be"),
        ("bandwidth", None, "bandwidth must not be"),
    ],
)
def test_a_malformed_time_is_no_plan(field: str, value: object, message: str) -> None:
    import json

    document = fastest(CHAIN, 12, bandwidth=1.0).to_dict()
    document["time"][field] = value
    with pytest.raises(PlanError, match=message):
        Plan.from_json(json.dumps(document))
