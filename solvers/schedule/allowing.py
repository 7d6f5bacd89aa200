"""Schedules that may bypass, overwrite inputs or run operators again.

First the best plan that uses no option (but to pass by what is read once); then, where operators never run again, the
problem in which each operator saves the most that options may save it: its bound holds, and its order is a good one.
Small problems are searched exactly; others get sequences of runs with the best replacement in each, improved by moving
runs and by running again. The best of all that has addresses is the plan.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from peakline.solvers.dag import Dag
from peakline.solvers.limits import check_capacity, check_time_limit
from peakline.solvers.plan import ALLOWED, Certificate, Plan, Traffic
from peakline.solvers.problem import Problem
from peakline.solvers.schedule.allowing_bounds import relieved, remaking_bound, savings, traffic_bound_allowing
from peakline.solvers.schedule.episodes import order_of
from peakline.solvers.schedule.options import search
from peakline.solvers.schedule.options_plan import place_in_turn, placed, written
from peakline.solvers.schedule.runs import Runs, as_steps, furthest_event, non_compulsory
from peakline.solvers.schedule.runs_program import best_runs
from peakline.solvers.schedule.runs_search import improve_runs
from peakline.solvers.schedule.solve import Infeasible, NotFound, Progress, schedule

__all__ = ["schedule_allowing"]

_MOST_EXACT = 14  # operators of a problem that is searched before sequences are; the states of more are too many
_MOST_PROVEN = 64  # operators of one that is searched after them, for its bound
_MOST_MOVED = 1_200  # operators of a problem whose sequences are improved
_TRIES = 20_000  # of that, divided by the number of operators over 50
_SLACKS = (0, 64, 16)  # parts of the capacity that are left free where addresses are hard to find; 0: none
_ROUNDS = 4  # of annealing, each from the best sequence so far
_KEPT = 4  # sequences that are given addresses

_NONE = Certificate(0, 0, "", 0.0)


def schedule_allowing(
    problem: Problem,
    capacity: int,
    allow: Sequence[str],
    *,
    time_limit: float = 60.0,
    seed: int = 0,
    progress: Callable[[Progress], None] | None = None,
) -> Plan:
    """The least non-compulsory traffic found within `capacity` bytes if plans may use the options in `allow`.

    Options: bypass, in-place, recompute (see `options.py`). Never more than `schedule` finds in half of the time.
    A keyboard interrupt ends the work early, and the best plan so far is returned with its gap.

    Raises ValueError for an unknown option; Infeasible, NotFound and ValueError as `schedule`.
    """
    unknown = [name for name in allow if name not in ALLOWED]
    if unknown:
        raise ValueError(f"allow: must be of {', '.join(ALLOWED)}, got {unknown[0]!r}")
    check_time_limit(time_limit)
    check_capacity(capacity)
    options = tuple(name for name in ALLOWED if name in allow)
    work = _Work(problem, capacity, options, time_limit, seed, progress or (lambda _: None))
    work.refuse_too_small()
    work.without_options()
    try:
        if not work.interrupted:
            work.improve()
    except KeyboardInterrupt:
        work.interrupted = True
    return work.result()


class _Work:
    """Incumbent and bound of one solve."""

    def __init__(
        self, problem: Problem, capacity: int, options: tuple[str, ...], time_limit: float, seed: int,
        report: Callable[[Progress], None],
    ) -> None:  # fmt: skip
        self.dag, self.capacity, self.options = Dag.of(problem), capacity, options
        self.time_limit, self.seed, self.report = time_limit, seed, report
        self.began = time.perf_counter()
        reads = [name for operator in problem.operators for name in operator.inputs]
        once = {problem.tensors[a].name for a, made in enumerate(self.dag.maker) if made < 0}
        self.passed = {name for name in once if reads.count(name) == 1} if "bypass" in options else set[str]()
        self.reduced = Problem(
            tuple(t for t in problem.tensors if t.name not in self.passed),
            tuple(operator.without(self.passed) for operator in problem.operators),
        )
        self.best: Plan | None = None
        self.candidates: list[tuple[int, str, Runs]] = []
        self.bound, self.proved_by, self.found_by = 0, "none above 0", ""
        self.refusal = "none fits without options"
        self.interrupted = False

    # -- what is there without options --------------------------------------------------------------------------------

    def refuse_too_small(self) -> None:
        """Raise Infeasible where an operator does not fit with all that its options save."""
        rooms = [size - less for size, less in zip(self.dag.working_sets, savings(self.dag, self.options))]
        smallest = max(rooms)
        if smallest > self.capacity:
            name = self.dag.problem.operators[rooms.index(smallest)].name
            raise Infeasible(
                f"capacity {self.capacity}: too small even with {', '.join(self.options)}; operator {name!r} takes "
                f"{smallest} bytes at least",
                self.capacity, smallest, name,
            )  # fmt: skip

    def without_options(self) -> None:
        """The best plan that uses none, and bounds that cost little."""
        try:
            plan = schedule(
                self.reduced, self.capacity, time_limit=self.time_limit / 2, seed=self.seed,
                progress=lambda at: self.tell(at.incumbent),  # its bound is none where options are allowed
            )  # fmt: skip
        except (Infeasible, NotFound) as error:
            self.refusal = str(error)
        else:
            self.offer(self.passing_by(plan), plan.certificate.method.split("; bound")[0].removesuffix(", interrupted"))
            if plan.interrupted:
                self.interrupted, self.time_limit = True, time.perf_counter() - self.began
        floor = traffic_bound_allowing(self.dag, self.capacity, self.options)
        self.prove(floor, f"what must leave at the fullest operator, with {', '.join(self.options)}")
        if not self.done():
            floor = remaking_bound(self.dag, self.capacity, self.options, deadline=self.until(0.55))
            self.prove(floor, f"what must be derived from what stays, with {', '.join(self.options)}")

    def passing_by(self, plan: Plan) -> Plan:
        """A plan of the reduced problem as one of the whole, in which what is read once is bypassed."""
        if not self.passed:
            return replace(plan, allow=self.options)
        problem = self.dag.problem
        beside = {o.name: tuple(n for n in o.inputs if n in self.passed) for o in problem.operators}
        size = {tensor.name: tensor.bytes for tensor in problem.tensors}
        moved = plan.traffic.load + sum(size[name] for name in self.passed)
        steps = tuple(replace(step, bypass=beside[step.operator]) for step in plan.steps)
        traffic = Traffic(moved, plan.traffic.store, problem.compulsory)
        return replace(plan, steps=steps, traffic=traffic, allow=self.options)

    # -- what options add ---------------------------------------------------------------------------------------------

    def improve(self) -> None:
        """Search, exactly or for better sequences."""
        orders = [] if self.best is None else [order_of(self.dag, self.best)]
        if not self.done() and "recompute" not in self.options:
            orders += self.relieve()
        if not self.done() and len(self.dag) <= _MOST_EXACT:
            self.search_all(self.until(0.7))
        if not self.done():
            self.move_runs([*orders, self.dag.problem.given_order])
            self.place()
        if not self.done() and _MOST_EXACT < len(self.dag) <= _MOST_PROVEN:
            self.search_all(time.perf_counter() + 0.2 * self.time_limit)

    def move_runs(self, orders: Sequence[tuple[int, ...]]) -> None:
        """The best replacement in these orders and in sequences near them."""
        starts = [self.replaced(order, "replacement with options") for order in dict.fromkeys(orders)]
        fitting = [runs for runs in starts if runs is not None]
        if not fitting or len(self.dag) > _MOST_MOVED:
            return
        best = min(fitting, key=lambda runs: non_compulsory(self.dag, runs)).order
        alone = [("recompute",)] if "recompute" in self.options and len(self.options) > 1 else []
        rounds = [*alone, *[self.options] * _ROUNDS]
        for n, options in enumerate(rounds):
            left = self.until(0.75) - time.perf_counter()
            moved = improve_runs(
                self.dag, best, self.capacity, options, tries=_TRIES * 50 // max(50, len(self.dag)),
                seed=self.seed + n, deadline=time.perf_counter() + left / (len(rounds) - n),
            )  # fmt: skip
            if moved is None:
                continue
            best = moved.order
            self.keep(moved, "moved runs")
            if non_compulsory(self.dag, moved) <= self.bound:
                return
        self.replaced(best, "moved runs, replacement with options")

    def relieve(self) -> list[tuple[int, ...]]:
        """Solve the problem in which each operator saves the most that it may; its order."""
        problem, capacity = relieved(Dag.of(self.reduced), self.capacity, self.options)
        left = min(self.time_limit / 4, self.until(0.7) - time.perf_counter())
        try:
            plan = schedule(problem, capacity, time_limit=max(0.05, left), seed=self.seed)
        except (Infeasible, NotFound):
            return []
        proof = plan.certificate
        how = proof.method.split("bound: ")[-1]
        self.prove(
            proof.lower_bound, f"{how}, each operator saving the most that {', '.join(self.options)} may save it"
        )
        return [order_of(self.dag, plan)]

    def search_all(self, deadline: float) -> None:
        """The exact search over all plans."""
        known = self.best.traffic.non_compulsory if self.best is not None else None
        how = f"Dijkstra over plans with {', '.join(self.options)}"
        found = search(self.dag, self.capacity, self.options, known, deadline=deadline)
        if found.ended and found.steps is None and known is None:
            smallest = max(self.dag.working_sets)
            worst = self.dag.working_sets.index(smallest)
            name = self.dag.problem.operators[worst].name
            raise Infeasible(
                f"capacity {self.capacity}: proven too small even with {', '.join(self.options)}; {smallest} bytes "
                f"would do without, for operator {name!r}",
                self.capacity, smallest, name,
            )  # fmt: skip
        self.prove(found.bound, how)
        if found.steps is not None:
            plan = placed(self.dag, found.steps, self.capacity, self.options, _NONE, 0.1 * self.time_limit)
            if plan is not None:
                self.offer(plan, how)

    def replaced(self, order: tuple[int, ...], name: str, capacity: int | None = None) -> Runs | None:
        """The best replacement in a sequence, kept as a candidate."""
        capacity = self.capacity if capacity is None else capacity
        left = min(0.15 * self.time_limit, self.until(0.9) - time.perf_counter())
        ruled = furthest_event(self.dag, order, capacity, self.options)
        solved = best_runs(self.dag, order, capacity, self.options, time_limit=left)
        found = [runs for runs in (ruled, solved) if runs is not None]
        for runs in found:
            self.keep(runs, name)
        return min(found, key=lambda runs: non_compulsory(self.dag, runs), default=None)

    def keep(self, runs: Runs, name: str) -> None:
        """A sequence that may be given addresses."""
        self.candidates.append((non_compulsory(self.dag, runs), name, runs))

    # -- addresses ----------------------------------------------------------------------------------------------------

    def place(self) -> None:
        """Addresses for the sequences with the least traffic, as long as that is less than what there is."""
        for slack in _SLACKS:
            if slack:
                room = self.capacity - self.capacity // slack
                for order in dict.fromkeys(runs.order for _, _, runs in self.ranked()):
                    self.replaced(order, "replacement with options, some room left", room)
            for cost, name, runs in self.ranked():
                if self.best is not None and cost >= self.best.traffic.non_compulsory:
                    break
                steps, share = as_steps(self.dag, runs), 0.05 * self.time_limit
                plan = placed(self.dag, steps, self.capacity, self.options, _NONE, share)
                if plan is None:
                    final, offsets = place_in_turn(self.dag, runs, self.capacity)
                    name += ", more so that addresses exist"
                    plan = written(self.dag, as_steps(self.dag, final), offsets, self.capacity, self.options, _NONE)
                self.offer(plan, name)
                if plan.traffic.non_compulsory == cost:
                    return
            if time.perf_counter() > self.until(1.0):
                return

    def ranked(self) -> list[tuple[int, str, Runs]]:
        """Those with the least traffic, of equal ones with the fewest runs."""
        return sorted(self.candidates, key=lambda entry: (entry[0], entry[2].again()))[:_KEPT]

    # -- incumbent and bound ------------------------------------------------------------------------------------------

    def result(self) -> Plan:
        """The best plan with its certificate."""
        if self.best is None:
            raise NotFound(f"capacity {self.capacity}: no plan with addresses was found in time; {self.refusal}")
        cost = self.best.traffic.non_compulsory
        method = f"{self.found_by}{', interrupted' if self.interrupted else ''}; bound: {self.proved_by}"
        proof = Certificate(cost, min(self.bound, cost), method, time.perf_counter() - self.began)
        return replace(self.best, certificate=proof)

    def offer(self, plan: Plan, method: str) -> None:
        """A plan with addresses, the best one if it moves less than that."""
        if self.best is None or plan.traffic.non_compulsory < self.best.traffic.non_compulsory:
            self.best, self.found_by = plan, method
        self.tell()

    def prove(self, bound: int, method: str) -> None:
        """No plan moves less than this."""
        if bound > self.bound:
            self.bound, self.proved_by = bound, method
        self.tell()

    def done(self) -> bool:
        """Whether the best plan is proven to be that."""
        return self.best is not None and self.best.traffic.non_compulsory <= self.bound

    def tell(self, incumbent: float | None = None) -> None:
        elapsed = time.perf_counter() - self.began
        if self.best is not None:
            incumbent = self.best.traffic.non_compulsory
        self.report(Progress(incumbent, self.bound, elapsed, max(0.0, self.time_limit - elapsed)))

    def until(self, share: float) -> float:
        return self.began + share * self.time_limit
