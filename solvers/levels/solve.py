"""The least weighted traffic over several levels: a bound for each link, nested replacement, exact search if small.

*Bound.* Levels 1 to l together are a scratchpad of C_1 + … + C_l bytes: whatever a plan does, over link l it moves at
least what a plan of that scratchpad moves. The links' bounds add up by their weights.

*Plans.* Orders that are good for one link each, also where operators need room for what passes through the next level,
and others near the best of them get the best replacement in all levels at once (`exclusive.py`, `fixed_order.py`);
small graphs the exact search over single moves (`exact.py`).
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

from peakline.solvers.annealing import anneal
from peakline.solvers.bounds import largest_working_set
from peakline.solvers.dag import Dag, bits
from peakline.solvers.levels.build import of_acts, of_drops
from peakline.solvers.levels.exact import search
from peakline.solvers.levels.exclusive import Homes, best_homes, of_homes
from peakline.solvers.levels.fixed_order import Drops, best_drops, nested
from peakline.solvers.levels.plan import Bound, Level, LevelsPlan
from peakline.solvers.limits import check_time_limit
from peakline.solvers.problem import Problem
from peakline.solvers.schedule.episodes import Schedule, order_of, traffic
from peakline.solvers.schedule.fixed_order import furthest_use
from peakline.solvers.schedule.local_search import moved
from peakline.solvers.schedule.pack import pack
from peakline.solvers.schedule.rolling import place_at_least_cost
from peakline.solvers.schedule.solve import Infeasible, NotFound, Progress, schedule
from peakline.solvers.schedule.workspace import with_workspaces

__all__ = ["schedule_levels"]

_MOST_EXACT = 14  # operators; the states of more are too many
_SLACKS = (0, 64, 24, 12)  # parts of each level that stay free where addresses are hard to find; 0: none
_HURRY = 4.0  # seconds: the time limit whose shares addresses have after an interrupt
_TRIES = 20_000  # order moves, divided by the number of operators over 50


def schedule_levels(
    problem: Problem,
    levels: Sequence[Level],
    *,
    time_limit: float = 60.0,
    seed: int = 0,
    progress: Callable[[Progress], None] | None = None,
) -> LevelsPlan:
    """The plan with the least Σ weight · non-compulsory bytes over all links.

    `levels` from the operators outwards, each larger than the one before; beyond the last one lies what has no end.
    `progress` is told of the least so far and the bound, in bytes times weight; a keyboard interrupt ends the work
    early, and the best plan so far is returned with its gap.

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
    check_time_limit(time_limit)
    dag = Dag.of(problem)
    smallest, worst = largest_working_set(dag)
    if smallest > levels[0].capacity:
        name = problem.operators[worst].name
        raise Infeasible(
            f"capacity {levels[0].capacity}: operator {name!r} computes in level 1 and needs {smallest} bytes there",
            levels[0].capacity, smallest, name,
        )  # fmt: skip
    return _Work(dag, tuple(levels), time_limit, seed, progress or (lambda _: None)).result()


class _Work:
    """Incumbent and bound of one solve."""

    def __init__(
        self, dag: Dag, levels: tuple[Level, ...], time_limit: float, seed: int, report: Callable[[Progress], None]
    ) -> None:
        self.dag, self.levels, self.seed, self.report = dag, levels, seed, report
        self.began = time.perf_counter()
        self.time_limit = time_limit
        self.best: tuple[tuple[int, ...], Drops] | None = None
        self.cost = math.inf
        self.orders: dict[tuple[int, ...], str] = {}
        self.homes: list[tuple[Homes, str]] = []
        self.stopped = False  # by the keyboard
        self.least = math.inf  # cost of anything found, with addresses or not
        self.found_by = ""
        self.crossed = Dag.of(_crossed(dag))
        self.bound, self.proved_by = 0.0, "the links' bounds, each for the levels before it together"

    def result(self) -> LevelsPlan:
        """The best plan found, with addresses."""
        try:
            self._improve()
        except KeyboardInterrupt:
            self._hurry()
        try:
            plan = self._placed()
            if plan.certificate.status == "feasible" and len(self.dag) <= _MOST_EXACT and not self.stopped:
                plan = self._searched(plan.certificate.objective) or plan
        except KeyboardInterrupt:
            self._hurry()
            plan = self._placed_drops()
        proof = plan.certificate
        method = proof.method.split("; bound")[0] + (", interrupted" if self.stopped else "")
        return replace(plan, certificate=self._proof(proof.objective, method))

    def _hurry(self) -> None:
        """After an interrupt: what remains are addresses, soon."""
        self.stopped = True
        self.time_limit = min(self.time_limit, _HURRY)
        for order, name in {**self.orders, self.dag.problem.given_order: "given order"}.items():
            self._offer(order, best_drops(self.dag, order, self.levels, time_limit=0.0), name)

    def _improve(self) -> None:
        """The best replacements in orders that are good for one link, and in orders near them."""
        orders = sorted(self._links(), key=lambda entry: self._estimate(entry[1]))
        for name, order in orders:
            if self._done():
                break
            self._replace(order, name)
        if not self._done() and len(self.levels) > 1:
            near = self._annealed(orders[0][1])
            if near != orders[0][1]:
                self._replace(near, "order moves")

    def _replace(self, order: tuple[int, ...], name: str) -> None:
        """Offer the best replacements in an order."""
        if len(self.levels) > 1:
            self._offer_homes(best_homes(self.dag, order, self.levels, time_limit=self._share()), name)
        if not self._done():
            self._offer(order, best_drops(self.dag, order, self.levels, time_limit=self._share()), name)

    def _share(self) -> float:
        """Seconds for one integer program."""
        return min(self._until(0.85) - time.perf_counter(), 0.25 * self.time_limit)

    def _links(self) -> list[tuple[str, tuple[int, ...]]]:
        """Bound each link by itself; the orders found on the way, also where what passes through takes room."""
        share = 0.5 * self.time_limit / (2 * len(self.levels) - 1)
        orders, total = self.orders, 0
        for n, level in enumerate(self.levels):
            total += level.capacity
            together = schedule(self.dag.problem, total, time_limit=share, seed=self.seed)
            self.bound += level.weight * together.certificate.lower_bound
            orders.setdefault(order_of(self.dag, together), f"order of link {n + 1}")
            self._tell()
            if together.interrupted:
                raise KeyboardInterrupt
            if n and together.traffic.non_compulsory:
                try:
                    crossed = schedule(self.crossed.problem, total, time_limit=share, seed=self.seed)
                except (Infeasible, NotFound):
                    continue
                orders.setdefault(order_of(self.dag, crossed), f"order of link {n + 1} with room for what passes")
                if crossed.interrupted:
                    raise KeyboardInterrupt
        orders.setdefault(self.dag.problem.given_order, "given order")
        return [(name, order) for order, name in orders.items()]

    def _estimate(self, order: Sequence[int]) -> float:
        """About what an order costs: over each link what it moves if the levels before that were one."""
        total, cost = 0, 0.0
        for n, level in enumerate(self.levels):
            total += level.capacity
            dag = self.crossed if n and total >= largest_working_set(self.crossed)[0] else self.dag
            cost += level.weight * furthest_use(dag, order, total).cost
        return cost

    def _annealed(self, order: tuple[int, ...]) -> tuple[int, ...]:
        """An order near this one with the least estimate found by annealing."""

        def near(found: tuple[int, ...], chance: random.Random) -> tuple[int, ...] | None:
            new = moved(self.dag, found, chance)
            return tuple(new) if new is not None else None

        tries = _TRIES * 50 // max(50, len(self.dag))
        *_, best = anneal(order, self._estimate, near, tries=tries, seed=self.seed, deadline=self._until(0.7))
        return best

    def _searched(self, known: float) -> LevelsPlan | None:
        """The plan of the exact search, if it costs less than `known` and addresses exist."""
        found = search(self.dag, self.levels, known, deadline=self._until(0.9))
        if found.bound > self.bound:
            self.bound, self.proved_by = min(found.bound, known), "best-first search over moves"
        if found.acts is None:
            return None
        proof = self._proof(found.cost, "best-first search over moves")
        return of_acts(self.dag, self.levels, found.acts, proof, time_limit=0.1 * self.time_limit, seed=self.seed)

    def _placed(self) -> LevelsPlan:
        """The cheapest plan that has addresses: one copy of each tensor at a time, or room kept for inner levels."""
        plan = self._placed_homes()
        late = time.perf_counter() > self._until(1.0)
        if plan is not None and (late or plan.certificate.objective <= self.cost):
            return plan
        if self.best is None:  # plans with one copy met the bound, but have no addresses
            for homes, name in self.homes:
                self._offer(homes.order, best_drops(self.dag, homes.order, self.levels, time_limit=self._share()), name)
        other = self._placed_drops()
        return other if plan is None or other.certificate.objective < plan.certificate.objective else plan

    def _placed_homes(self) -> LevelsPlan | None:
        """The plan with one copy of each tensor at a time and addresses, some room left free if that is what it takes;
        None if it is no better than what keeps room for inner levels, or none is found.
        """
        best: LevelsPlan | None = None
        for homes, name in sorted(self.homes, key=lambda entry: entry[0].cost):
            for slack in _SLACKS:
                if homes.cost >= min(self.cost, best.certificate.objective if best is not None else math.inf):
                    break
                plan = self._homes_with_slack(homes, name, slack)
                if plan is not None:
                    best = plan if best is None else min(best, plan, key=lambda one: one.certificate.objective)
                    break
                if time.perf_counter() > self._until(1.0 if best is not None else 1.2):
                    return best
        return best

    def _homes_with_slack(self, homes: Homes, name: str, slack: int) -> LevelsPlan | None:
        """The plan of these homes, or of the best ones in their order that leave a part of each level free."""
        if slack:
            spare = [level.capacity // slack for level in self.levels]
            limit = 0.1 * self.time_limit
            tighter = best_homes(self.dag, homes.order, self.levels, time_limit=limit, spare=spare)
            if tighter is None:
                return None
            homes, name = tighter, f"{name}, some room left"
        proof = self._proof(homes.cost, f"{name}, one copy of each tensor at a time")
        return of_homes(self.dag, self.levels, homes, proof, time_limit=0.1 * self.time_limit, seed=self.seed)

    def _offer_homes(self, homes: Homes | None, name: str) -> None:
        """Homes that may be given addresses."""
        if homes is not None:
            self.homes.append((homes, name))
            self.least = min(self.least, homes.cost)
            self._tell()

    def _placed_drops(self) -> LevelsPlan:
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
        """The certificate of a plan of this cost."""
        elapsed = time.perf_counter() - self.began
        return Bound(cost, min(self.bound, cost), f"{method}; bound: {self.proved_by}", elapsed)

    def _price(self, drops: Drops) -> float:
        """Weighted non-compulsory bytes."""
        return sum(level.weight * traffic(self.dag, dropped) for level, dropped in zip(self.levels, drops))

    def _offer(self, order: tuple[int, ...], drops: Drops, name: str) -> None:
        """Drops in an order, the best ones if they cost less than those."""
        drops = nested(drops)
        cost = self._price(drops)
        if cost < self.cost:
            self.cost, self.best, self.found_by = cost, (order, drops), f"{name}, replacement in all levels"
            self.least = min(self.least, cost)
            self._tell()

    def _tell(self) -> None:
        elapsed = time.perf_counter() - self.began
        least = self.least if math.isfinite(self.least) else None
        self.report(Progress(least, self.bound, elapsed, max(0.0, self.time_limit - elapsed)))

    def _done(self) -> bool:
        """Whether what is found meets the bound, or it is late for more."""
        late = self.best is not None and time.perf_counter() > self._until(0.8)
        return late or self.least <= self.bound * (1 + 1e-9)

    def _until(self, share: float) -> float:
        return self.began + share * self.time_limit


def _crossed(dag: Dag) -> Problem:
    """The problem in which an operator also needs room for the largest input, parameter or output that it touches.

    That one passes through the level behind the first beside the operator, and has a copy on either side meanwhile.
    """
    passing = (bits(touched & (dag.off_chip | dag.results)) for touched in dag.touch)
    most = [max((dag.size[a] for a in tensors), default=0) for tensors in passing]
    return with_workspaces(dag.problem, most, "passes")
