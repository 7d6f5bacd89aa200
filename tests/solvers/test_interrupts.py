"""A keyboard interrupt returns the best plan so far, whichever of the solvers within was at work."""

from __future__ import annotations

import signal
import sys
import threading
import time
from types import SimpleNamespace
from typing import NoReturn

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


class Running:
    """A model that is interrupted as it runs, and takes a while to end."""

    HandleUserInterrupt = False

    def __init__(self) -> None:
        self.main, self.cancelled, self.ended = threading.get_ident(), threading.Event(), False

    def run(self) -> None:
        time.sleep(0.1)
        signal.pthread_kill(self.main, signal.SIGINT)
        self.cancelled.wait(30)
        time.sleep(0.2)
        self.ended = True

    def cancelSolve(self) -> None:
        self.cancelled.set()


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_program_has_ended_when_its_interrupt_arrives() -> None:
    model = Running()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            highs().callSolver(SimpleNamespace(solverModel=model))
    finally:
        signal.signal(signal.SIGINT, before)
    assert model.HandleUserInterrupt
    assert model.ended
