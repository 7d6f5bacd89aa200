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
                done, resident, off, running, moving = begun
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
