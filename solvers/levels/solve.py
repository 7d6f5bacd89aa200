"""The least weighted traffic over several levels: a bound for each link, nested replacement, exact search if small.

*Bound.* Levels 1 to l together are a scratchpad of C_1 + … + C_l bytes: whatever a plan does, over link l it moves at
least what a plan of that scratchpad moves. The links' bounds add up by their weights.

*Plans.* Orders that are good for one capacity each get the best replacement in all levels at once (`fixed_order.py`);
small graphs the exact search over single moves (`exact.py`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from peakline.solvers.bounds import largest_working_set
from peakline.solvers.dag import Dag
from peakline.solvers.levels.build import of_acts, of_drops
from peakline.solvers.levels.exact import search
from peakline.solvers.levels.exclusive import Homes, best_homes, of_homes
from peakline.solvers.levels.fixed_order import Drops, best_drops, nested
from peakline.solvers.levels.plan import Bound, Level, LevelsPlan
from peakline.solvers.plan import Plan
from peakline.solvers.problem import Problem
from peakline.solvers.schedule.episodes import Schedule, traffic
from peakline.solvers.schedule.pack import pack
from peakline.solvers.schedule.rolling import place_at_least_cost
from peakline.solvers.schedule.solve import Infeasible, schedule

__all__ = ["schedule_levels"]

_MOST_EXACT = 14  # operators; the states of more are too many


def schedule_levels(
    problem: Problem, levels: Sequence[Level], *, time_limit: float = 60.0, seed: int = 0
) -> LevelsPlan:
    """The plan with the least Σ weight · non-compulsory bytes over all links.

    `levels` from the operators outwards, each larger than the one before; beyond the last one lies what has no end.

    Raises Infeasible where an operator does not fit the first level, ValueError for no levels, capacities that do not
    grow, a time limit not above 0, and as `schedule`.
    """
    if not levels:
        raise ValueError("levels: there must be at least one")
    for one, other in pairwise(levels):
        if other.capacity <= one.capacity:
            raise ValueError(
                f"capacity: levels must grow from the operators outwards, got {other.capacity} after {one.capacity}"
            )
    if not (math.isfinite(time_limit) and time_limit > 0):
        raise ValueError(f"time limit: must be above 0 seconds, got {time_limit:g}")
    dag = Dag.of(problem)
    smallest, worst = largest_working_set(dag)
    if smallest > levels[0].capacity:
        name = problem.operators[worst].name
        raise Infeasible(
            f"capacity {levels[0].capacity}: operator {name!r} computes in level 1 and needs {smallest} bytes there",
            levels[0].capacity, smallest, name,
        )  # fmt: skip
    return _Work(dag, tuple(levels), time_limit, seed).result()


class _Work:
    """Incumbent and bound of one solve."""

    def __init__(self, dag: Dag, levels: tuple[Level, ...], time_limit: float, seed: int) -> None:
        self.dag, self.levels, self.seed = dag, levels, seed
        self.began = time.perf_counter()
        self.time_limit = time_limit
        self.best: tuple[tuple[int, ...], Drops] | None = None
        self.cost = math.inf
        self.homes: Homes | None = None
        self.found_by = self.homes_by = ""
        self.bound, self.proved_by = 0.0, "the links' bounds, each for the levels before it together"

    def result(self) -> LevelsPlan:
        """The best plan found, with addresses."""
        orders = self._links()
        for name, order in orders:
            if self._done():
                break
            left = min(self._until(0.8) - time.perf_counter(), 0.15 * self.time_limit)
            self._offer(order, best_drops(self.dag, order, self.levels, time_limit=left), name)
            if not self._done() and len(self.levels) > 1:
                left = min(self._until(0.8) - time.perf_counter(), 0.15 * self.time_limit)
                self._offer_homes(best_homes(self.dag, order, self.levels, time_limit=left), name)
        plan = self._placed_homes()
        if plan is not None:
            self.cost = plan.certificate.objective
        better = self._searched() if not self._done() and len(self.dag) <= _MOST_EXACT else None
        if better is None and plan is not None:
            better = replace(plan, certificate=self._proof(self.cost, plan.certificate.method.split("; bound")[0]))
        return better or self._placed()

    def _links(self) -> list[tuple[str, tuple[int, ...]]]:
        """Bound each link by itself; the orders found on the way."""
        share = 0.5 * self.time_limit / (2 * len(self.levels) - 1)
        orders: dict[tuple[int, ...], str] = {}
        total = 0
        for n, level in enumerate(self.levels):
            total += level.capacity
            together = schedule(self.dag.problem, total, time_limit=share, seed=self.seed)
            self.bound += level.weight * together.certificate.lower_bound
            orders.setdefault(self._order(together), f"order of link {n + 1}")
            if n:
                alone = schedule(self.dag.problem, level.capacity, time_limit=share, seed=self.seed)
                orders.setdefault(self._order(alone), f"order of level {n + 1}")
        orders.setdefault(self.dag.problem.given_order, "given order")
        return [(name, order) for order, name in orders.items()]

    def _order(self, plan: Plan) -> tuple[int, ...]:
        place = {operator.name: i for i, operator in enumerate(self.dag.problem.operators)}
        return tuple(place[step.operator] for step in plan.steps)

    def _searched(self) -> LevelsPlan | None:
        """The plan of the exact search, if it is better and addresses exist."""
        found = search(self.dag, self.levels, self.cost, deadline=self._until(0.9))
        if found.bound > self.bound:
            self.bound, self.proved_by = min(found.bound, self.cost), "best-first search over moves"
        if found.acts is None:
            return None
        proof = self._proof(found.cost, "best-first search over moves")
        return of_acts(self.dag, self.levels, found.acts, proof, time_limit=0.1 * self.time_limit, seed=self.seed)

    def _placed_homes(self) -> LevelsPlan | None:
        """The plan with one copy of each tensor at a time, if it is better and addresses exist."""
        if self.homes is None or self.homes.cost >= self.cost:
            return None
        proof = self._proof(self.homes.cost, f"{self.homes_by}, one copy of each tensor at a time")
        share = 0.05 * self.time_limit
        return of_homes(self.dag, self.levels, self.homes, proof, time_limit=share, seed=self.seed)

    def _offer_homes(self, homes: Homes | None, name: str) -> None:
        if homes is not None and (self.homes is None or homes.cost < self.homes.cost):
            self.homes, self.homes_by = homes, name

    def _placed(self) -> LevelsPlan:
        """Addresses level by level from the outside; what finds none drops a little more, and so do levels within."""
        assert self.best is not None
        order, drops = self.best
        offsets: list[tuple[int, ...]] = []
        placed: list[frozenset[tuple[int, int]]] = []
        for n in range(len(self.levels) - 1, -1, -1):
            outer = placed[-1] if placed else frozenset[tuple[int, int]]()
            one = Schedule(order, drops[n] | outer)
            capacity = self.levels[n].capacity
            found = pack(self.dag, one, capacity, time_limit=0.1 * self.time_limit, seed=self.seed)
            if found is None:
                limit = time.perf_counter() + 0.2 * self.time_limit
                one, at = place_at_least_cost(self.dag, one, capacity, deadline=limit, seed=self.seed)
            else:
                at = found[0]
            placed.append(one.dropped)
            offsets.append(tuple(at))
        final = tuple(reversed(placed))
        more = self._price(final) - self.cost
        method = self.found_by + (f", {more:g} more so that addresses exist" if more > 0 else "")
        proof = self._proof(self._price(final), method)
        return of_drops(self.dag, self.levels, order, final, tuple(reversed(offsets)), proof)

    def _proof(self, cost: float, method: str) -> Bound:
        elapsed = time.perf_counter() - self.began
        return Bound(cost, min(self.bound, cost), f"{method}; bound: {self.proved_by}", elapsed)

    def _price(self, drops: Drops) -> float:
        return sum(level.weight * traffic(self.dag, dropped) for level, dropped in zip(self.levels, drops))

    def _offer(self, order: tuple[int, ...], drops: Drops, name: str) -> None:
        drops = nested(drops)
        cost = self._price(drops)
        if cost < self.cost:
            self.cost, self.best, self.found_by = cost, (order, drops), f"{name}, replacement in all levels"

    def _done(self) -> bool:
        late = self.best is not None and time.perf_counter() > self._until(0.8)
        return late or self.cost <= self.bound * (1 + 1e-9)

    def _until(self, share: float) -> float:
        return self.began + share * self.time_limit
