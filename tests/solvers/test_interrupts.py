"""A keyboard interrupt returns the best plan so far, whichever of the solvers within was at work."""

from __future__ import annotations

from typing import NoReturn

import pytest
from schedule_cases import wired, working_set

from peakline.solvers.levels import Level, schedule_levels
from peakline.solvers.levels import solve as levels
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
