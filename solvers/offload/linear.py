"""Keep, move, pack or recompute: the program of `program`, built, solved and rounded."""

from __future__ import annotations

from collections.abc import Set
from itertools import accumulate
from typing import Any

from peakline.solvers.offload.problem import Decisions, Problem
from peakline.solvers.offload.program import CONSTRAINTS, MEGA, MILLI, Model

__all__ = ["NEVER", "Infeasible", "bound", "least_budget", "solve", "tightest"]

NEVER = 1 << 62
"""Bytes beyond any budget."""

SLACK = 1 << 12
"""Bytes by which the smallest budget is passed: the solver meets its limits within a tolerance."""


THRESHOLDS = (1e-6, 0.3, 0.5, 0.7)
"""Shares from which on a group of the relaxation is executed; each is tried."""

ENOUGH = 0.1
"""Rounding within this part of the gap that is allowed is not tried again."""


class Infeasible(ValueError):
    """No decision fits the budget; `least` is the smallest that something would fit, `NEVER` where none is enough."""

    def __init__(self, budget: int, least: int) -> None:
        self.least = least
        more = "no budget is enough" if least >= NEVER else f"the least that would is {least:,}"
        super().__init__(f"nothing fits a budget of {budget:,} bytes; {more}")


def _built(problem: Problem, *, hopeful: bool, free_budget: bool = False, limit: float | None = None) -> Model:
    """The program; with `free_budget` it asks for the smallest budget, within `limit` seconds where one is given."""
    model = Model(problem, hopeful=hopeful, free_budget=free_budget)
    for forbid in CONSTRAINTS:
        forbid(model)
    if limit is not None:
        model.add(model.longer() <= (limit - problem.seconds) / MILLI, "no_time_beyond_the_limit")
    model.program.setObjective(model.over if free_budget else _shortest(model))
    return model


def _shortest(model: Model) -> Any:
    """What is minimised where time is: a bound's objective is time alone."""
    return model.longer() if model.hopeful else model.longer() + model.haste()


def _run(model: Model, time_limit: float, gap: float) -> bool:
    """Solve; whether there is a solution."""
    solver = model.pulp.HiGHS(msg=False, timeLimit=max(time_limit, 0.5), gapRel=gap, threads=1)
    model.program.solve(solver)
    return model.program.sol_status in (model.pulp.LpSolutionOptimal, model.pulp.LpSolutionIntegerFeasible)


def bound(problem: Problem, *, time_limit: float = 60.0) -> float:
    """Seconds that no plan of the class can beat: the optimum of the hopeful program, relaxed.

    Raises:
        Infeasible: not even that fits; `least` then is a floor for every plan.
    """
    model = _built(problem, hopeful=True)
    if not _run(model, time_limit, 0.0):
        raise Infeasible(problem.budget, least_budget(problem, hopeful=True))
    return problem.seconds + MILLI * float(model.pulp.value(model.program.objective))


def least_budget(problem: Problem, *, hopeful: bool = False, limit: float | None = None) -> int:
    """The smallest budget in bytes at which there is a (fractional) decision, whatever the problem's own budget is.

    Args:
        limit: seconds that the program may take; None without bound.

    Raises:
        Infeasible: no budget is enough: what must move finds no room in the tiers, or the limit is too short.
    """
    model = _built(problem, hopeful=hopeful, free_budget=True, limit=limit)
    if not _run(model, 60.0, 0.0):
        raise Infeasible(problem.budget, NEVER)
    return problem.budget + round(MEGA * float(model.pulp.value(model.over)))


def tightest(problem: Problem, *, limit: float | None = None, time_limit: float = 20.0) -> tuple[Decisions, int]:
    """Decisions for the smallest budget there is (cautious, groups rounded), the fastest at it; and that budget.

    They depend on the problem alone, not on its budget.

    Args:
        limit: seconds that the program may take; None without bound.

    Raises:
        Infeasible: no budget is enough.
    """
    model = _built(problem, hopeful=False, free_budget=True, limit=limit)
    if not _run(model, 60.0, 0.0):
        raise Infeasible(problem.budget, NEVER)
    shares = [float(model.pulp.value(r) or 0.0) for r in model.r]
    best: tuple[float, set[int]] | None = None
    for threshold in (1e-6, 0.5, 1.0 - 1e-6):
        chosen = _closed(problem, {g for g, share in enumerate(shares) if share >= threshold})
        if _run(_fixed(model, chosen), 60.0, 0.0):
            over = float(model.pulp.value(model.over))
            if best is None or over < best[0]:
                best = over, chosen
    if best is None:
        raise Infeasible(problem.budget, NEVER)
    over, chosen = best
    model.over.upBound = over + SLACK / MEGA
    model.program.setObjective(_shortest(model))
    if not _run(_fixed(model, chosen), time_limit, 0.0):
        raise Infeasible(problem.budget, problem.budget + round(MEGA * over))
    decisions = _decisions(model, problem.seconds, "linear program (HiGHS) for the smallest budget, rounded")
    return decisions, problem.budget + round(MEGA * over) + SLACK


def solve(
    problem: Problem, *, time_limit: float = 20.0, gap: float = 0.01, lower_bound: float | None = None,
    integers: bool = True,
) -> Decisions:  # fmt: skip
    """Decide: the cautious program, with whole groups.

    The relaxation first; its groups are rounded and the rest solved again. Where that is more than `gap` above the
    relaxation, HiGHS looks for better integers within the time limit.

    Args:
        lower_bound: `bound` of the problem, if known.
        integers: look for better integers at all.

    Raises:
        Infeasible: nothing fits.
    """
    lower = bound(problem, time_limit=time_limit) if lower_bound is None else lower_bound
    relaxed = _built(problem, hopeful=False)
    if not _run(relaxed, time_limit, 0.0):
        raise Infeasible(problem.budget, least_budget(problem))
    value = relaxed.pulp.value
    shares = [float(value(r) or 0.0) for r in relaxed.r]
    if all(share < 1e-6 or share > 1 - 1e-6 for share in shares):
        return _decisions(relaxed, lower, "linear program (HiGHS), integral by itself")
    optimum = problem.seconds + MILLI * float(value(relaxed.longer()))
    best: Decisions | None = None
    tried: set[frozenset[int]] = set()
    for threshold in THRESHOLDS:
        chosen = frozenset(_closed(problem, {g for g, share in enumerate(shares) if share >= threshold}))
        if chosen in tried or (best is not None and best.seconds <= optimum * (1 + gap * ENOUGH)):
            continue
        tried.add(chosen)
        if _run(_fixed(relaxed, chosen), time_limit, 0.0):
            found = _decisions(relaxed, lower, "linear program (HiGHS), rounded")
            best = found if best is None or found.seconds < best.seconds else best
    wanted = best is None or (integers and best.seconds > optimum * (1 + gap))
    if wanted and _run(_whole(relaxed), time_limit, gap / 2):
        found = _decisions(relaxed, lower, "mixed-integer linear program (HiGHS)")
        best = found if best is None or found.seconds < best.seconds else best
    if best is None:
        raise Infeasible(problem.budget, least_budget(problem))
    return best


def _closed(problem: Problem, chosen: set[int]) -> set[int]:
    """The groups, and those whose results they need that are no items."""
    found, pending = set(chosen), list(chosen)
    while pending:
        for h in problem.groups[pending.pop()].groups:
            if h not in found:
                found.add(h)
                pending.append(h)
    return found


def _fixed(model: Model, chosen: Set[int]) -> Model:
    """The model with exactly these groups executed."""
    for g, r in enumerate(model.r):
        r.lowBound = r.upBound = 1.0 if g in chosen else 0.0
    return model


def _whole(model: Model) -> Model:
    """The model with every group executed or not, as the solver sees fit."""
    for r in model.r:
        r.lowBound, r.upBound, r.cat = 0.0, 1.0, model.pulp.LpInteger
    return model


def _decisions(model: Model, lower: float, method: str) -> Decisions:
    value, p = model.pulp.value, model.p

    def share(variable: Any) -> float:
        found = float(value(variable) or 0.0) if variable is not None else 0.0
        return 0.0 if found < 1e-7 else 1.0 if found > 1 - 1e-7 else found

    return Decisions(
        moved=tuple(tuple(share(y) for y in row) for row in model.y),
        executed=tuple(share(r) > 0.5 for r in model.r),
        kept=tuple(share(k) for k in model.k),
        incoming=tuple([tuple(accumulate(MEGA * float(value(v) or 0.0) for v in row)) for row in model.back]),
        seconds=p.seconds + MILLI * float(value(model.longer())),
        lower_bound=lower,
        method=method,
        packed=tuple(share(c) for c in model.c) if any(c is not None for c in model.c) else (),
    )
