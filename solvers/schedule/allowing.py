"""Schedules that may bypass, overwrite inputs or run operators again: the best of a search with and without."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from peakline.solvers.bounds import largest_working_set
from peakline.solvers.dag import Dag
from peakline.solvers.plan import ALLOWED, Certificate, Plan, Traffic
from peakline.solvers.problem import OFF_CHIP, Problem
from peakline.solvers.schedule.allowing_bounds import traffic_bound_allowing
from peakline.solvers.schedule.options import placed, search
from peakline.solvers.schedule.solve import Infeasible, NotFound, Progress, schedule

__all__ = ["schedule_allowing"]


def schedule_allowing(
    problem: Problem,
    capacity: int,
    allow: Sequence[str],
    *,
    time_limit: float = 60.0,
    seed: int = 0,
    progress: Callable[[Progress], None] | None = None,
) -> Plan:
    """The least non-compulsory traffic within `capacity` bytes if plans may use the options in `allow`.

    Options: bypass, in-place, recompute (see `options.py`). Half of the time goes to a plan with none of them, save
    that with bypass whatever is read once from off-chip is never resident; the rest to an exact search over all plans,
    which ends for some ten operators; the bound is that search's, or that of the fullest operator.

    Raises ValueError for an unknown option; Infeasible, NotFound and ValueError as `schedule`.
    """
    unknown = [name for name in allow if name not in ALLOWED]
    if unknown:
        raise ValueError(f"allow: must be of {', '.join(ALLOWED)}, got {unknown[0]!r}")
    options = tuple(name for name in ALLOWED if name in allow)
    began = time.perf_counter()
    dag = Dag.of(problem)
    base, refusal = _base(problem, capacity, options, 0.5 * time_limit, seed, progress)
    if base is not None and base.traffic.non_compulsory == 0:
        proof = replace(base.certificate, lower_bound=0)
        return replace(base, allow=options, certificate=proof)
    known = base.traffic.non_compulsory if base is not None else None
    floor = traffic_bound_allowing(dag, capacity, options)
    if base is not None and base.traffic.non_compulsory == floor:
        how = f"what must leave at the fullest operator, with {', '.join(options)}"
        method = f"{base.certificate.method.split('; bound')[0]}; bound: {how}"
        return replace(base, allow=options, certificate=Certificate(floor, floor, method, time.perf_counter() - began))
    found = search(dag, capacity, options, known, deadline=began + 0.9 * time_limit)
    how = f"Dijkstra over plans with {', '.join(options)}"
    if found.steps is not None:
        proof = Certificate(found.cost, found.cost, how, time.perf_counter() - began)
        plan = placed(dag, found.steps, capacity, options, proof, 0.1 * time_limit)
        if plan is not None:
            return plan
    if base is None:
        if found.ended and found.steps is None:
            smallest, worst = largest_working_set(dag)
            name = problem.operators[worst].name
            raise Infeasible(
                f"capacity {capacity}: proven too small even with {', '.join(options)}; {smallest} bytes would do "
                f"without, for operator {name!r}",
                capacity, smallest, name,
            )  # fmt: skip
        raise NotFound(f"capacity {capacity}: no plan with addresses was found in time; without options: {refusal}")
    if floor > found.bound:
        how = f"what must leave at the fullest operator, with {', '.join(options)}"
    proof = Certificate(
        base.traffic.non_compulsory, min(max(found.bound, floor), base.traffic.non_compulsory),
        f"{base.certificate.method.split('; bound')[0]}; bound: {how}", time.perf_counter() - began,
    )  # fmt: skip
    return replace(base, allow=options, certificate=proof)


def _base(
    problem: Problem,
    capacity: int,
    options: tuple[str, ...],
    seconds: float,
    seed: int,
    progress: Callable[[Progress], None] | None,
) -> tuple[Plan | None, str]:
    """A plan that uses no option but to pass by what is read once, or why there is none."""
    reads = [name for operator in problem.operators for name in operator.inputs]
    roles = {tensor.name: tensor.role for tensor in problem.tensors}
    once = {name for name in reads if roles[name] in OFF_CHIP and reads.count(name) == 1}
    passed = once if "bypass" in options else set()
    reduced = Problem(
        tuple(t for t in problem.tensors if t.name not in passed),
        tuple(replace(o, inputs=tuple(n for n in o.inputs if n not in passed)) for o in problem.operators),
    )
    try:
        plan = schedule(reduced, capacity, time_limit=seconds, seed=seed, progress=progress)
    except (Infeasible, NotFound) as error:
        return None, str(error)
    if not passed:
        return plan, ""
    size = {tensor.name: tensor.bytes for tensor in problem.tensors}
    beside = {o.name: tuple(n for n in o.inputs if n in passed) for o in problem.operators}
    steps = tuple(replace(step, bypass=beside[step.operator]) for step in plan.steps)
    moved = Traffic(plan.traffic.load + sum(size[n] for n in passed), plan.traffic.store, problem.compulsory)
    return replace(plan, steps=steps, traffic=moved, allow=options), ""
