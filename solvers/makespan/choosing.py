"""The shortest time where operators may run in parts (`peakline.solvers.alternatives`)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace

from peakline.solvers.alternatives import Choices
from peakline.solvers.dag import Dag
from peakline.solvers.limits import check_rate, check_time_limit
from peakline.solvers.makespan.bounds import ROUNDING, time_bound
from peakline.solvers.makespan.link import streamed
from peakline.solvers.makespan.solve import fastest, seconds_of
from peakline.solvers.plan import Plan
from peakline.solvers.problem import Problem
from peakline.solvers.schedule.choosing import best_choice, refuse_too_small, traffic_of_any_choice
from peakline.solvers.schedule.fixed_order import furthest_use
from peakline.solvers.schedule.solve import Progress

__all__ = ["fastest_choosing"]

_MOST_BOUNDED = 400  # operators of a choice that is bounded before it is solved


def fastest_choosing(
    choices: Choices,
    capacity: int,
    *,
    bandwidth: float,
    compute_rate: float | None = None,
    overlap: bool = True,
    time_limit: float = 60.0,
    seed: int = 0,
    progress: Callable[[Progress], None] | None = None,
) -> Plan:
    """The least makespan over alternatives and plans; `Plan.alternatives` says which.

    Interrupts and errors as `fastest`.
    """
    check_rate("bandwidth", bandwidth)
    check_rate("compute", compute_rate)
    check_time_limit(time_limit)
    refuse_too_small(choices, capacity)
    seconds_of(choices.problem, compute_rate)
    began = time.perf_counter()

    def solve(problem: Problem, seconds: float) -> Plan:
        return fastest(
            problem, capacity, bandwidth=bandwidth, compute_rate=compute_rate, overlap=overlap,
            time_limit=seconds, seed=seed,
        )  # fmt: skip

    def value(plan: Plan) -> tuple[float, float]:
        assert plan.time is not None
        return plan.time.makespan, plan.time.lower_bound

    def floor(problem: Problem, quick: bool) -> float:
        if len(problem.operators) > _MOST_BOUNDED:
            return 0.0
        deadline = 0.0 if quick else math.inf  # windows take long
        return time_bound(Dag.of(problem), capacity, seconds_of(problem, compute_rate), bandwidth, deadline=deadline)[0]

    def estimate(problem: Problem) -> float:
        dag, seconds = Dag.of(problem), seconds_of(problem, compute_rate)
        made = streamed(dag, furthest_use(dag, problem.given_order, capacity).schedule, capacity, seconds, bandwidth)
        return made[1] if made is not None else math.inf

    avoidable = traffic_of_any_choice(choices, capacity)
    least = _of_any_choice(choices, bandwidth, compute_rate, avoidable)
    report = progress or (lambda _: None)
    found = best_choice(choices, capacity, solve, value, floor, estimate, least, time_limit, report)
    timing, proof = found.plan.time, found.plan.certificate
    assert timing is not None
    method = f"{timing.method.split('; bound')[0].removesuffix(', interrupted')}, {found.method}"
    timing = replace(timing, lower_bound=min(found.bound, timing.makespan), method=method)
    proof = replace(proof, lower_bound=min(avoidable, proof.objective), seconds=time.perf_counter() - began)
    return replace(found.plan, time=timing, certificate=proof)


def _of_any_choice(choices: Choices, bandwidth: float, compute_rate: float | None, avoidable: int) -> float:
    """Seconds that every choice takes: what its operators compute at least, what the link moves at least."""
    whole = dict(zip((o.name for o in choices.problem.operators), seconds_of(choices.problem, compute_rate)))
    compute = 0.0
    for name, seconds in whole.items():
        ways = [seconds]
        for alternative in choices.alternatives.get(name, ()):
            said = any(part.seconds is not None or part.flops is not None for part in alternative.parts)
            if said:
                expanded = choices.expand({name: alternative.name})
                spent = dict(zip((o.name for o in expanded.operators), seconds_of(expanded, compute_rate)))
                ways.append(math.fsum(spent[f"{name}/{part.name}"] for part in alternative.parts))
        compute += min(ways)
    return max(compute, (choices.problem.compulsory + avoidable) / bandwidth) * ROUNDING
