"""The shortest time on one compute unit and one link: bounds, the least traffic, prefetches, better orders, exactness.

First the plan with the least traffic, whose bound also bounds the link; then for its order and others the transfers in
the order that list scheduling gives; orders improved by annealing; for small graphs the exact search. Every candidate
is priced at its real addresses.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from peakline.solvers.annealing import anneal
from peakline.solvers.dag import Dag
from peakline.solvers.limits import check_rate, check_time_limit
from peakline.solvers.makespan.bounds import ROUNDING, time_bound
from peakline.solvers.makespan.exact import search
from peakline.solvers.makespan.link import POLICIES, streamed
from peakline.solvers.makespan.timed import Timed, makespan, pack, trimmed
from peakline.solvers.order import smallest_peak
from peakline.solvers.plan import Certificate, Plan, Timing
from peakline.solvers.problem import Problem
from peakline.solvers.schedule.episodes import Schedule, of_stays, schedule_of
from peakline.solvers.schedule.fixed_order import furthest_use
from peakline.solvers.schedule.local_search import moved
from peakline.solvers.schedule.solve import Progress, schedule

__all__ = ["fastest", "seconds_of"]

_MOST_EXACT = 16  # operators; the states of more are too many
_MOST_BOUNDED = 8_000  # operators whose ancestors are listed
_LOOKAHEADS = (1 << 30, 4, 1, 0)
_TRIES = 20_000  # order moves, divided by the number of operators over 50
_KEPT_MOVES = 3  # orders found by them that get transfers, the best ones
_KEPT = 12  # schedules that are given addresses
_PACKINGS = 8  # attempts at each
_MOST_REPACKED = 300  # operators of a problem for which there is more than one
_SAME = 1 + 1e-9


def fastest(
    problem: Problem,
    capacity: int,
    *,
    bandwidth: float,
    compute_rate: float | None = None,
    overlap: bool = True,
    time_limit: float = 60.0,
    seed: int = 0,
    progress: Callable[[Progress], None] | None = None,
) -> Plan:
    """The plan with the least makespan within `capacity` bytes, its `time` filled in.

    The link moves `bandwidth` bytes/s; an operator that gives `flops` takes flops / `compute_rate` seconds. Without
    `overlap` nothing moves while an operator runs. The plan's certificate speaks of its traffic, `time` of its time.
    `progress` is told of the shortest plan so far and the bound, in seconds. A keyboard interrupt ends the work early,
    and the best plan so far is returned with its gap.

    Raises ValueError for a rate or a time limit not above 0, an operator that says neither seconds nor flops, and as
    `schedule`.
    """
    check_rate("bandwidth", bandwidth)
    check_rate("compute", compute_rate)
    check_time_limit(time_limit)
    seconds = seconds_of(problem, compute_rate)
    began = time.perf_counter()
    least = schedule(problem, capacity, time_limit=(0.35 if overlap else 1.0) * time_limit, seed=seed)
    if stopped := least.interrupted:
        time_limit = time.perf_counter() - began
    work = _Work(Dag.of(problem), capacity, seconds, bandwidth, compute_rate, least, began, time_limit, seed)
    work.report, work.stopped = progress or work.report, stopped
    return work.overlapped() if overlap else work.in_turn()


def seconds_of(problem: Problem, compute_rate: float | None) -> tuple[float, ...]:
    """Seconds of each operator. Raises ValueError naming one that does not say."""
    found = []
    for operator in problem.operators:
        if operator.seconds is not None:
            found.append(float(operator.seconds))
        elif operator.flops is not None and compute_rate is not None:
            found.append(operator.flops / compute_rate)
        else:
            has = "flops but no rate to divide them by" if operator.flops is not None else "neither seconds nor flops"
            raise ValueError(f"operator {operator.name!r}: gives {has}; the objective time needs how long it computes")
    return tuple(found)


class _Work:
    """Incumbent and bound of one solve."""

    def __init__(
        self, dag: Dag, capacity: int, seconds: Sequence[float], bandwidth: float, compute_rate: float | None,
        least: Plan, began: float, time_limit: float, seed: int,
    ) -> None:  # fmt: skip
        self.dag, self.capacity, self.seconds, self.bandwidth = dag, capacity, seconds, bandwidth
        self.compute_rate, self.least, self.seed = compute_rate, least, seed
        self.began, self.time_limit = began, time_limit
        self.report: Callable[[Progress], None] = lambda progress: None
        self.best: tuple[Timed, tuple[int, ...]] | None = None
        self.time = math.inf
        self.bound, self.proved_by, self.found_by = 0.0, "", ""
        self.stopped = False  # by the keyboard, before any look at time

    # -- one thing at a time ------------------------------------------------------------------------------------------

    def in_turn(self) -> Plan:
        """Without overlap the time is compute + traffic / bandwidth: least where traffic is."""
        least, compute = self.least, math.fsum(self.seconds)
        moved_bytes = least.traffic.load + least.traffic.store
        bound = compute + (least.traffic.compulsory + least.certificate.lower_bound) / self.bandwidth
        transfer = moved_bytes / self.bandwidth
        timing = Timing(
            self.bandwidth, self.compute_rate, False, (), compute + transfer, compute, transfer,
            min(bound, compute + transfer), f"the least traffic: {least.certificate.method}",
        )  # fmt: skip
        return replace(least, time=timing)

    # -- transfers beside operators -----------------------------------------------------------------------------------

    def overlapped(self) -> Plan:
        """The best schedule found, with addresses."""
        dag = self.dag
        if len(dag) <= _MOST_BOUNDED:
            avoidable = self.least.certificate.lower_bound
            common = (dag, self.capacity, self.seconds, self.bandwidth, avoidable)
            try:
                self.bound, self.proved_by = time_bound(*common, deadline=self._until(0.55))
            except KeyboardInterrupt:
                self.stopped = True
                self.bound, self.proved_by = time_bound(*common, deadline=0.0)
        self._as_it_is()
        try:
            if not self.stopped:
                self._improve()
        except KeyboardInterrupt:
            self.stopped = True
        if self.stopped:
            self.found_by += ", interrupted"
        assert self.best is not None
        timed, offsets = self.best
        size = dag.size
        transfer = sum(size[a] for _, a in timed.queue) / self.bandwidth
        timing = Timing(
            self.bandwidth, self.compute_rate, True,
            tuple(("load" if load else "store", dag.problem.tensors[a].name) for load, a in timed.queue),
            self.time, math.fsum(self.seconds), transfer, min(self.bound, self.time),
            f"{self.found_by}; bound: {self.proved_by or 'none at this size'}",
        )  # fmt: skip
        extra = sum(size[a] for _, a in timed.queue) - dag.problem.compulsory
        proof = Certificate(
            extra, min(extra, self.least.certificate.lower_bound),
            f"the shortest time; bound on traffic: {self.least.certificate.method.split('bound: ')[-1]}",
            time.perf_counter() - self.began,
        )  # fmt: skip
        return of_stays(dag, timed.order, timed.stays, timed.stores, offsets, self.capacity, proof, timing)

    def _as_it_is(self) -> None:
        """The plan with the least traffic at its own addresses, its transfers in the order of its steps."""
        base = schedule_of(self.dag, self.least)
        made = streamed(self.dag, base, self.capacity, self.seconds, self.bandwidth, lookahead=0)
        assert made is not None
        timed = _in_order_of_steps(trimmed(self.dag, made[0], prefetches=True, waits=True))
        number = {tensor.name: a for a, tensor in enumerate(self.dag.problem.tensors)}
        at = {
            (number[name], t): offset
            for t, step in enumerate(self.least.steps)
            for name, offset in (*step.load.items(), *step.produce.items())
        }
        stays = timed.stays  # without a look ahead a load is listed at its reader's step, as in the plan
        self._offer(timed, tuple(at[stay.tensor, stay.first] for stay in stays), "the least traffic")

    def _improve(self) -> None:
        """Prefetches for the least traffic and for other orders, the exact search, and orders near the best of them."""
        base = schedule_of(self.dag, self.least)
        self._place(self._streams([("the least traffic", base)]))
        if self._done():
            return
        others = [("given order", furthest_use(self.dag, self.dag.problem.given_order, self.capacity).schedule)]
        if len(self.dag) <= _MOST_BOUNDED:
            order = smallest_peak(self.dag, time_limit=0.1 * self.time_limit)
            if order.interrupted:
                raise KeyboardInterrupt
            others.append(("smallest-peak order", furthest_use(self.dag, order.operators, self.capacity).schedule))
        self._place(self._streams(others))
        if self._done():
            return
        if len(self.dag) <= _MOST_EXACT:
            self._search(self._until(0.7))
        if not self._done():
            start = min([("", base), *others], key=lambda entry: self._price(entry[1]))[1]
            self._place(self._streams(self._anneal(start)))

    def _price(self, schedule: Schedule) -> float:
        """Seconds of a schedule where addresses do not matter."""
        made = streamed(self.dag, schedule, self.capacity, self.seconds, self.bandwidth)
        return made[1] if made is not None else math.inf

    def _streams(self, schedules: Sequence[tuple[str, Schedule]]) -> list[tuple[float, str, Timed]]:
        """Each schedule under each policy, shortest first where addresses do not matter."""
        found = []
        for name, one in schedules:
            for policy in POLICIES:
                for lookahead in _LOOKAHEADS:
                    made = streamed(
                        self.dag, one, self.capacity, self.seconds, self.bandwidth,
                        policy=policy, lookahead=lookahead,
                    )  # fmt: skip
                    if made is not None:
                        found.append((made[1], f"{name}, {policy} first", made[0]))
                if len(self.dag) > 1_000 or time.perf_counter() > self._until(0.8):
                    break
        return sorted(found, key=lambda entry: entry[0])

    def _place(self, candidates: Sequence[tuple[float, str, Timed]]) -> None:
        """Addresses for the most promising, as long as they can be shorter than what there is."""
        seen: set[Timed] = set()
        for promised, name, timed in candidates:
            if len(seen) >= _KEPT or self._done() or promised >= self.time:
                return
            if timed not in seen:
                seen.add(timed)
                self._place_one(timed, name, promised)

    def _place_one(self, timed: Timed, name: str, promised: float) -> None:
        """Addresses for a schedule, or for the same with less time for its stays.

        First bytes are shared by moments, then by steps; then prefetches, waits, or both are cut, with other seeds.
        """
        for n in range(-1, _PACKINGS):
            cut = trimmed(self.dag, timed, prefetches=bool(n & 2), waits=bool(n & 1)) if n > 0 else timed
            left = min(0.05 * self.time_limit, max(0.05, self._until(0.95) - time.perf_counter()))
            offsets = pack(self.dag, cut, self.capacity, by_step=n >= 0, time_limit=left, seed=self.seed + max(n, 0))
            if offsets is not None:
                self._offer(cut, offsets, name)
            if self.time <= promised * _SAME or self._done() or len(self.dag) > _MOST_REPACKED:
                return

    def _search(self, deadline: float) -> None:
        """The exact search, and addresses for what it finds."""
        found = search(self.dag, self.capacity, self.seconds, self.bandwidth, known=self.time, deadline=deadline)
        if found.bound > self.bound:
            self.bound, self.proved_by = min(found.bound * ROUNDING, self.time), "best-first search over moments"
        if found.timed is not None:
            self._place_one(found.timed, "best-first search over moments", found.bound)

    def _anneal(self, start: Schedule) -> list[tuple[str, Schedule]]:
        """Orders near `start` with ever less time where addresses do not matter."""

        def near(found: Schedule, chance: random.Random) -> Schedule | None:
            order = moved(self.dag, found.order, chance)
            return furthest_use(self.dag, order, self.capacity).schedule if order is not None else None

        _, *better = anneal(
            start, self._price, near, tries=_TRIES * 50 // max(50, len(self.dag)), seed=self.seed,
            deadline=self._until(0.8), enough=self.bound * _SAME,
        )  # fmt: skip
        return [("order moves", new) for new in better[-_KEPT_MOVES:]]

    # -- incumbent and bound ------------------------------------------------------------------------------------------

    def _offer(self, timed: Timed, offsets: tuple[int, ...], method: str) -> None:
        """A candidate at its real addresses, also with its transfers in the order of its steps."""
        for variant in (timed, _in_order_of_steps(timed)):
            taken = makespan(self.dag, variant, offsets, self.seconds, self.bandwidth)
            if taken < self.time:
                self.best, self.time, self.found_by = (variant, offsets), taken, method
        elapsed = time.perf_counter() - self.began
        best = self.time if self.best else None
        self.report(Progress(best, self.bound, elapsed, max(0.0, self.time_limit - elapsed)))

    def _done(self) -> bool:
        """Whether the shortest time meets the bound, or it is late for more."""
        return self.time <= self.bound * _SAME or time.perf_counter() > self._until(0.95)

    def _until(self, share: float) -> float:
        return self.began + share * self.time_limit


def _in_order_of_steps(timed: Timed) -> Timed:
    """The schedule with its transfers in the order of its steps, which never waits for itself."""
    listed = [(step, 0, n, False, a) for n, (a, step) in enumerate(timed.stores)]
    listed += [(stay.first, 1, n, True, stay.tensor) for n, stay in enumerate(timed.stays) if stay.loaded]
    return replace(timed, queue=tuple((load, a) for _, _, _, load, a in sorted(listed)))
