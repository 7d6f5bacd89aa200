"""A keyboard interrupt returns the best plan so far, whichever of the solvers within was at work."""

from __future__ import annotations

import random
import signal
import threading
from typing import NoReturn

import pulp
import pytest
from schedule_cases import wired, working_set

from peakline.solvers.levels import Level, schedule_levels
from peakline.solvers.levels import solve as levels
from peakline.solvers.linear import highs
from peakline.solvers.replay import replay
from peakline.solvers.replay_levels import replay_levels
from peakline.solvers.schedule import schedule
from peakline.solvers.schedule import solve as joint


def interrupted(*_: object, **__: object) -> NoReturn:
    raise KeyboardInterrupt


PROBLEM = wired(3, 16)


def test_levels_keep_the_orders_that_they_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levels, "best_homes", interrupted)
    capacity = working_set(PROBLEM)
    plan = schedule_levels(PROBLEM, (Level(capacity), Level(2 * capacity)), time_limit=10)
    replay_levels(PROBLEM, plan)
    assert "interrupted" in plan.certificate.method


def test_the_joint_problem_keeps_its_first_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joint, "traffic_bound", interrupted)
    plan = schedule(PROBLEM, working_set(PROBLEM), time_limit=10)
    assert plan.interrupted
    assert replay(PROBLEM, plan).non_compulsory == plan.certificate.objective


def test_addresses_are_found_after_an_interrupt_of_their_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joint, "pack", interrupted)
    plan = schedule(PROBLEM, working_set(PROBLEM), time_limit=10)
    assert plan.interrupted
    assert replay(PROBLEM, plan).non_compulsory == plan.certificate.objective


def test_the_smallest_peak_names_the_operator_that_reaches_it() -> None:
    least = schedule(PROBLEM, objective="peak", time_limit=10).peak
    with pytest.raises(joint.Infeasible, match=f"over all orders is {least}, at operator") as refused:
        schedule(PROBLEM, least - 1, objective="peak", time_limit=10)
    assert refused.value.operator in {o.name for o in PROBLEM.operators}


def test_a_program_that_is_interrupted_has_ended_when_the_interrupt_arrives() -> None:
    draw, count = random.Random(1), 60
    program = pulp.LpProblem("knapsacks", pulp.LpMaximize)
    taken = [pulp.LpVariable(f"x_{i}", cat="Binary") for i in range(count)]
    program.setObjective(pulp.lpSum(draw.randint(400, 600) * x for x in taken))
    for _ in range(30):
        program.addConstraint(pulp.lpSum(draw.randint(400, 600) * x for x in taken) <= 250 * count)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Timer(0.5, signal.pthread_kill, [threading.get_ident(), signal.SIGINT]).start()
        with pytest.raises(KeyboardInterrupt):
            program.solve(highs(timeLimit=60))
    finally:
        signal.signal(signal.SIGINT, before)
    assert "peakline HiGHS" not in {thread.name for thread in threading.enumerate()}
