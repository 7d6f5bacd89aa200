"""Keep, move, pack or recompute: the program of `program`, built, solved and rounded."""

from __future__ import annotations

from collections.abc import Set
from functools import cached_property
from itertools import accumulate
from typing import Any

from peakline.solvers.offload.engine import Engine
from peakline.solvers.offload.problem import Decisions, Problem
from peakline.solvers.offload.program import CONSTRAINTS, MEGA, MILLI, Model

__all__ = ["NEVER", "Infeasible", "Programs", "bound", "least_budget", "solve", "tightest"]

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


class Programs:
    """The two programs of a problem, each built once and asked for one budget after the other.

    Args:
        problem: its own budget is of no concern.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    @cached_property
    def _hopeful(self) -> _Asked:
        return _Asked(Model(self.problem, hopeful=True))

    @cached_property
    def _cautious(self) -> _Asked:
        return _Asked(Model(self.problem, hopeful=False))

    def bound(self, budget: int, *, time_limit: float = 60.0) -> float:
        """Seconds that no plan of the class can beat: the optimum of the hopeful program, relaxed.

        Raises:
            Infeasible: not even that fits; `least` then is a floor for every plan.
        """
        asked = self._hopeful
        asked.within(budget)
        found = asked.engine.run(time_limit)
        if found == "none":
            raise Infeasible(budget, self.least_budget(hopeful=True))
        if found != "optimal":  # the time was up: nothing is proven
            return self.problem.seconds
        return self.problem.seconds + MILLI * asked.engine.objective

    def least_budget(self, *, hopeful: bool = False, limit: float | None = None) -> int:
        """The smallest budget in bytes at which there is a (fractional) decision.

        Args:
            limit: seconds that the program may take; None without bound.

        Raises:
            Infeasible: no budget is enough: what must move finds no room in the tiers, or the limit is too short.
        """
        asked = self._hopeful if hopeful else self._cautious
        asked.smallest(limit)
        if asked.engine.run(60.0) == "none":
            raise Infeasible(self.problem.budget, NEVER)
        return self.problem.budget + round(MEGA * asked.engine.value(asked.model.over))

    def tightest(self, *, limit: float | None = None, time_limit: float = 20.0) -> tuple[Decisions, int]:
        """Decisions for the smallest budget there is (cautious, groups rounded), the fastest at it; and that budget.

        Args:
            limit: seconds that the program may take; None without bound.

        Raises:
            Infeasible: no budget is enough.
        """
        asked = self._cautious
        asked.smallest(limit)
        if asked.engine.run(60.0) == "none":
            raise Infeasible(self.problem.budget, NEVER)
        shares = asked.shares()
        best: tuple[float, set[int]] | None = None
        for threshold in (1e-6, 0.5, 1.0 - 1e-6):
            chosen = _closed(self.problem, {g for g, share in enumerate(shares) if share >= threshold})
            asked.executing(chosen)
            if asked.engine.run(60.0) != "none":
                over = asked.engine.value(asked.model.over)
                if best is None or over < best[0]:
                    best = over, chosen
        if best is None:
            raise Infeasible(self.problem.budget, NEVER)
        least = self.problem.budget + round(MEGA * best[0])
        asked.within(least + SLACK, limit)
        asked.executing(best[1])
        if asked.engine.run(time_limit) == "none":
            raise Infeasible(self.problem.budget, least)
        method = "linear program (HiGHS) for the smallest budget, rounded"
        return asked.decisions(self.problem.seconds, method), least + SLACK

    def solve(
        self, budget: int, *, time_limit: float = 20.0, gap: float = 0.01, lower_bound: float | None = None,
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
        lower = self.bound(budget, time_limit=time_limit) if lower_bound is None else lower_bound
        asked = self._cautious
        asked.within(budget)
        if asked.engine.run(time_limit) == "none":
            raise Infeasible(budget, self.least_budget())
        shares = asked.shares()
        if all(share < 1e-6 or share > 1 - 1e-6 for share in shares):
            return asked.decisions(lower, "linear program (HiGHS), integral by itself")
        optimum = asked.seconds()
        best: Decisions | None = None
        tried: set[frozenset[int]] = set()
        for threshold in THRESHOLDS:
            chosen = frozenset(_closed(self.problem, {g for g, share in enumerate(shares) if share >= threshold}))
            if chosen in tried or (best is not None and best.seconds <= optimum * (1 + gap * ENOUGH)):
                continue
            tried.add(chosen)
            asked.executing(chosen)
            if asked.engine.run(time_limit) != "none":
                found = asked.decisions(lower, "linear program (HiGHS), rounded")
                best = found if best is None or found.seconds < best.seconds else best
        if best is None or (integers and best.seconds > optimum * (1 + gap)):
            asked.in_whole()
            if asked.engine.run(time_limit, gap / 2) != "none":
                found = asked.decisions(lower, "mixed-integer linear program (HiGHS)")
                best = found if best is None or found.seconds < best.seconds else best
        if best is None:
            raise Infeasible(budget, self.least_budget())
        return best


class _Asked:
    """A program and what it is asked: the least seconds within a budget, or the smallest budget within seconds."""

    def __init__(self, model: Model) -> None:
        for forbid in CONSTRAINTS:
            forbid(model)
        self.model, self._longer = model, model.longer()
        self._limit = len(model.rows)
        model.add(self._longer <= 0.0, "no_time_beyond_the_limit")
        self.engine = Engine(model.columns, model.rows)

    def within(self, budget: int, limit: float | None = None) -> None:
        """The least seconds within these bytes, any share of groups executed; a bound's objective is time alone."""
        over = (budget - self.model.p.budget) / MEGA
        self.engine.bounds([self.model.over], over, over)
        self.engine.minimise(self._longer if self.model.hopeful else self._longer + self.model.haste())
        self._free(limit)

    def smallest(self, limit: float | None) -> None:
        """The smallest budget within `limit` seconds, any share of groups executed."""
        self.engine.bounds([self.model.over], None, None)
        self.engine.minimise({self.model.over: 1.0})
        self._free(limit)

    def _free(self, limit: float | None) -> None:
        self.engine.at_most(self._limit, None if limit is None else (limit - self.model.p.seconds) / MILLI)
        self.engine.whole(())
        self.engine.bounds(self.model.r, 0.0, 1.0)

    def executing(self, chosen: Set[int]) -> None:
        """Exactly these groups are executed again."""
        self.engine.bounds([r for g, r in enumerate(self.model.r) if g in chosen], 1.0, 1.0)
        self.engine.bounds([r for g, r in enumerate(self.model.r) if g not in chosen], 0.0, 0.0)

    def in_whole(self) -> None:
        """Every group is executed or not, as the solver sees fit."""
        self.engine.bounds(self.model.r, 0.0, 1.0)
        self.engine.whole(self.model.r)

    def shares(self) -> list[float]:
        """How much of each group is executed."""
        return [self.engine.value(r) for r in self.model.r]

    def seconds(self) -> float:
        """What the step takes."""
        return self.model.p.seconds + MILLI * self.engine.worth(self._longer)

    def decisions(self, lower: float, method: str) -> Decisions:
        """The solution in plain numbers."""
        value = self.engine.value

        def share(variable: Any) -> float:
            found = value(variable) if variable is not None else 0.0
            return 0.0 if found < 1e-7 else 1.0 if found > 1 - 1e-7 else found

        m = self.model
        return Decisions(
            moved=tuple(tuple(share(y) for y in row) for row in m.y),
            executed=tuple(share(r) > 0.5 for r in m.r),
            kept=tuple(share(k) for k in m.k),
            incoming=tuple([tuple(accumulate(MEGA * value(v) for v in row)) for row in m.back]),
            seconds=self.seconds(),
            lower_bound=lower,
            method=method,
            packed=tuple(share(c) for c in m.c) if any(c is not None for c in m.c) else (),
        )


def bound(problem: Problem, *, time_limit: float = 60.0) -> float:
    """`Programs.bound` at the problem's own budget."""
    return Programs(problem).bound(problem.budget, time_limit=time_limit)


def least_budget(problem: Problem, *, hopeful: bool = False, limit: float | None = None) -> int:
    """`Programs.least_budget`, whatever the problem's own budget is."""
    return Programs(problem).least_budget(hopeful=hopeful, limit=limit)


def tightest(problem: Problem, *, limit: float | None = None, time_limit: float = 20.0) -> tuple[Decisions, int]:
    """`Programs.tightest`, whatever the problem's own budget is."""
    return Programs(problem).tightest(limit=limit, time_limit=time_limit)


def solve(
    problem: Problem, *, time_limit: float = 20.0, gap: float = 0.01, lower_bound: float | None = None,
    integers: bool = True,
) -> Decisions:  # fmt: skip
    """`Programs.solve` at the problem's own budget."""
    return Programs(problem).solve(
        problem.budget, time_limit=time_limit, gap=gap, lower_bound=lower_bound, integers=integers
    )


def _closed(problem: Problem, chosen: set[int]) -> set[int]:
    """The groups, and those whose results they need that are no items."""
    found, pending = set(chosen), list(chosen)
    while pending:
        for h in problem.groups[pending.pop()].groups:
            if h not in found:
                found.add(h)
                pending.append(h)
    return found
