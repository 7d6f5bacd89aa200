"""The joint problem: order, residency and addresses with the least traffic, or the smallest peak, and a certificate.

Bounds first; then the smallest peak (if it fits, nothing need move twice); then each independent piece by beam and A*,
isomorphic pieces once; then for the best orders the exact replacement; last the addresses.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from peakline.solvers.bounds import largest_working_set, traffic_bound
from peakline.solvers.contest import Answer, Entry, contest, cores
from peakline.solvers.dag import Dag, bits
from peakline.solvers.limits import check_capacity, check_time_limit
from peakline.solvers.linear import PROGRAM_SOLVERS, available, require
from peakline.solvers.order import Order, smallest_peak
from peakline.solvers.plan import Certificate, Plan
from peakline.solvers.problem import Problem
from peakline.solvers.schedule.contract import contract
from peakline.solvers.schedule.entries import a_star, by_beam, by_layers, by_meeting, by_stretches
from peakline.solvers.schedule.episodes import Schedule, to_plan, traffic
from peakline.solvers.schedule.fixed_order import best_replacement, furthest_use
from peakline.solvers.schedule.gap_program import solver_available
from peakline.solvers.schedule.local_search import improve
from peakline.solvers.schedule.neighbourhoods import Path, improve_piece
from peakline.solvers.schedule.pack import pack
from peakline.solvers.schedule.postpone import postpone
from peakline.solvers.schedule.rolling import place_at_least_cost
from peakline.solvers.schedule.search import Found, beam, search
from peakline.solvers.schedule.spare import Placed, place_with_spare
from peakline.solvers.schedule.states import Moves
from peakline.solvers.schedule.timed import by_program, small_enough
from peakline.solvers.segments import Segment, in_order, segments, signature, tensors_in_order
from peakline.solvers.symmetry import in_listed_order
from peakline.solvers.threads import one_thread

__all__ = ["METHODS", "OBJECTIVES", "Infeasible", "NotFound", "Objective", "Progress", "schedule"]

Objective = Literal["traffic", "peak"]
OBJECTIVES: tuple[Objective, ...] = ("traffic", "peak")

METHODS: tuple[str, ...] = ("auto", "search", *PROGRAM_SOLVERS)

_WIDTHS = (4, 32)  # of the first beams, as long as the bound is not met
_WIDE = 256  # of the beam that takes part in a contest
_MOST_OPERATORS = 20_000  # of a problem: sets of operators are masks, and their memory grows with the square
_MOST_BOUNDED = 8_000  # operators of a problem whose order-free floors and pieces are computed
_MOST_SEARCHED = 1_200  # operators of a piece; the states of larger ones take too much memory
_FIRST_STATES = 2_000  # of A* before other processes are started
_STRETCHED = 0.3  # of a piece's time: to improve the beam's plan stretch by stretch before the contest, at most
_WEIGHT = 3.0  # of improving it further, among the contest's entries
_ANY = 1 << 62  # bytes: whatever a plan moves
_CRUMBS = 1_000  # part of the traffic that addresses may add without another attempt
_MOST_STATES = 1_000_000  # of A*, about 2 kB each
_MOST_REST = 30.0  # seconds that orders and addresses get after the search, and a quarter of all at most
_HURRY = 4.0  # seconds: the time limit whose shares addresses have after an interrupt
_TRIES = 30_000  # moves of the local search, divided by the number of operators over 50


class Infeasible(ValueError):
    """No plan exists within the capacity. `smallest` bytes would do; `operator` is what forces them (None: many)."""

    def __init__(self, message: str, capacity: int, smallest: int, operator: str | None) -> None:
        super().__init__(message)
        self.capacity, self.smallest, self.operator = capacity, smallest, operator


class NotFound(ValueError):
    """Neither a plan within the capacity was found nor that there is none was proven."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a solve is: best plan so far (None: none yet) and proven bound, in the objective's unit; seconds."""

    incumbent: float | None
    bound: float
    seconds: float
    seconds_left: float


def schedule(
    problem: Problem,
    capacity: int | None = None,
    *,
    objective: Objective = "traffic",
    time_limit: float = 60.0,
    seed: int = 0,
    jobs: int | None = None,
    method: str = "auto",
    progress: Callable[[Progress], None] | None = None,
) -> Plan:
    """The plan with the least non-compulsory traffic within `capacity` bytes, or the order with the smallest peak.

    `objective` "peak" needs no capacity: the plan's is then the arena that it fills. A keyboard interrupt ends the
    work early and the best plan so far is returned with its gap. The same seed gives the same plan unless the time
    limit cuts the work short; addresses may take up to a third of the limit more.

    What simple means leave open is contested by several solvers in `jobs` processes (default: two, where there are as
    many processors); `method` leaves the exact part to one of them: search, highs, cbc or cp-sat.

    Raises Infeasible if proven that no plan exists, NotFound if none was found, ValueError for a capacity below 1, a
    time limit not above 0, jobs below 1, an unknown objective or method, traffic without a capacity, more than 20,000
    operators, or too many for the method; ImportError if the method's solver is not installed.
    """
    if method not in METHODS:
        raise ValueError(f"method: must be one of {', '.join(METHODS)}, got {method!r}")
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs: must be at least 1, got {jobs}")
    if method in PROGRAM_SOLVERS:
        require(method)
    if objective not in OBJECTIVES:
        raise ValueError(f"objective: must be one of {', '.join(OBJECTIVES)}, got {objective!r}")
    check_time_limit(time_limit)
    if capacity is not None:
        check_capacity(capacity)
    elif objective == "traffic":
        raise ValueError("capacity: the least traffic needs one, in bytes")
    if len(problem.operators) > _MOST_OPERATORS:
        raise ValueError(f"operators: at most {_MOST_OPERATORS}, got {len(problem.operators)}; schedule a part of it")
    work = _Work(Dag.of(problem), capacity, time_limit, seed, jobs or cores(), method, progress or (lambda _: None))
    with one_thread():
        return work.peak() if objective == "peak" else work.traffic()


class _Work:
    """Incumbent and bound of one solve, and the steps that improve them."""

    def __init__(
        self,
        dag: Dag,
        capacity: int | None,
        time_limit: float,
        seed: int,
        jobs: int,
        method: str,
        report: Callable[[Progress], None],
    ) -> None:
        self.dag, self.seed, self.jobs, self.method, self.report = dag, seed, jobs, method, report
        self.interrupted = False
        self.won: list[str] = []  # by whom the pieces' plans and bounds are
        self.proofs: list[str] = []
        self.began = time.perf_counter()
        self.time_limit = time_limit
        self.capacity = capacity if capacity is not None else 0
        self.limited = capacity is not None
        self.best: Schedule | None = None
        self.cost: int | None = None
        self.bound = 0
        self.found_by, self.proved_by = "", "order-free floors"

    # -- the smallest peak ------------------------------------------------------------------------------------------

    def peak(self) -> Plan:
        """The smallest-peak order with addresses."""
        order = smallest_peak(
            self.dag, time_limit=0.8 * self.time_limit, jobs=self.jobs, method=self.method, progress=self._tell
        )
        if self.limited and order.bound > self.capacity:
            alive = self.dag.alive_along(order.operators)
            fullest = self.dag.problem.operators[order.operators[alive.index(order.peak)]].name
            reached = "" if order.proven else f"; {order.peak} bytes would do"
            raise Infeasible(
                f"capacity {self.capacity}: no order fits without evicting; the smallest peak over all orders is "
                f"{'' if order.proven else 'at least '}{order.bound}, at operator {fullest!r}{reached}",
                self.capacity, order.bound, fullest,
            )  # fmt: skip
        result = Schedule(order.operators, frozenset())
        placed = None
        if not self.limited or order.peak <= self.capacity:
            placed = self._pack(result, self.capacity if self.limited else None)
        if placed is None:
            raise NotFound(
                f"capacity {self.capacity}: no placement found; best peak {order.peak}, proven bound {order.bound}"
            )
        offsets, arena = placed
        proof = Certificate(order.peak, order.bound, order.method, self._elapsed())
        return to_plan(self.dag, result, offsets, self.capacity if self.limited else arena, proof)

    # -- the least traffic ------------------------------------------------------------------------------------------

    def traffic(self) -> Plan:
        """Order, replacement and addresses with the least traffic found."""
        self._refuse_too_small()
        dag = self.dag
        self._offer(furthest_use(dag, dag.problem.given_order, self.capacity).schedule, "given order, furthest use")
        try:
            self._improve()
        except KeyboardInterrupt:
            self._hurry()
        try:
            assert self.best is not None
            return self._placed(self._pack(self.best, self.capacity))
        except KeyboardInterrupt:
            self._hurry()
            return self._placed(None)

    def _hurry(self) -> None:
        """After an interrupt: what remains are addresses, soon."""
        self.found_by += ", interrupted"
        self.time_limit = min(self.time_limit, _HURRY)

    def _refuse_too_small(self) -> None:
        smallest, worst = largest_working_set(self.dag)
        if smallest > self.capacity:
            operator = self.dag.problem.operators[worst]
            names = [self.dag.problem.tensors[a].name for a in bits(self.dag.touch[worst])]
            raise Infeasible(
                f"capacity {self.capacity}: too small by {smallest - self.capacity} bytes; operator {operator.name!r} "
                f"needs {', '.join(names[:8])}{' …' if len(names) > 8 else ''} at once: {smallest} bytes would do",
                self.capacity, smallest, operator.name,
            )  # fmt: skip

    def _improve(self) -> None:
        dag = self.dag
        order = smallest_peak(dag, time_limit=0.25 * self.time_limit, jobs=self.jobs)
        if order.peak <= self.capacity:
            self._offer(Schedule(order.operators, frozenset()), f"smallest peak by {order.method}")
            return
        if order.interrupted:
            raise KeyboardInterrupt
        if len(dag) > _MOST_BOUNDED:
            self.found_by += f"; more than {_MOST_BOUNDED} operators: no search"
            return
        self._prove(traffic_bound(dag, self.capacity, order.bound), "order-free floors and the smallest peak")
        self._offer(furthest_use(dag, order.operators, self.capacity).schedule, "smallest-peak order, furthest use")
        if not self._done():
            self._solve_pieces()
        for name, candidate in self._orders(order):
            if self._done():
                return
            self._replace(candidate, name)
        if not self._done() and self.best is not None and len(dag) <= _MOST_SEARCHED:
            tries = _TRIES * 50 // max(50, len(dag))
            moved = improve(dag, self.best.order, self.capacity, tries=tries, seed=self.seed, deadline=self._until(0.9))
            if self._offer(moved.schedule, "order moves, furthest use"):
                self._replace(moved.schedule.order, "order moves")

    def _orders(self, order: Order) -> list[tuple[str, tuple[int, ...]]]:
        """Orders worth the exact replacement: the best so far, then the others."""
        assert self.best is not None
        listed = [
            (self.found_by.split(",")[0], self.best.order),
            ("smallest-peak order", order.operators),
            ("given order", self.dag.problem.given_order),
        ]
        return [entry for n, entry in enumerate(listed) if entry[1] not in [o for _, o in listed[:n]]]

    def _replace(self, order: tuple[int, ...], name: str) -> None:
        """Offer the best replacement for an order."""
        left = min(self._until(0.9) - time.perf_counter(), 0.3 * self.time_limit)
        found = best_replacement(self.dag, order, self.capacity, time_limit=left)
        how = "exact replacement (HiGHS)" if solver_available() else "furthest use (HiGHS is not installed)"
        self._offer(found.schedule, f"{name}, {how}")

    def _solve_pieces(self) -> None:
        """Beam and A* on each piece of the contracted problem; isomorphic pieces share one solution."""
        small = postpone(contract(self.dag), self.capacity)
        dag = in_listed_order(small.dag)
        pieces = segments(dag, independent=True)
        if max((p.stop & ~p.start).bit_count() for p in pieces) > _MOST_SEARCHED:
            return
        kinds: dict[tuple[object, ...], list[Segment]] = {}
        for piece in pieces:
            kinds.setdefault(signature(dag, piece), []).append(piece)
        solved: dict[int, tuple[tuple[int, int], ...]] = {}
        total = bound = 0
        weights = {key: (twins[0].stop & ~twins[0].start).bit_count() for key, twins in kinds.items()}
        single = len(pieces) == 1
        for key in sorted(kinds, key=lambda k: weights[k]):
            twins = kinds[key]
            left = max(self._until(0.75), self._until(1.0) - _MOST_REST) - time.perf_counter()
            share = left * weights[key] / max(1, sum(weights.values()))
            del weights[key]
            found = self._solve_piece(dag, twins[0], share, self.bound if single else 0)
            assert found.moves is not None
            total += found.cost * len(twins)
            bound += found.bound * len(twins)
            for twin in twins:
                solved[twin.start] = _translated(dag, twins[0], twin, found.moves)
        where = "" if single else f" on {len(pieces)} independent pieces"
        self._prove(bound, _joined(self.proofs) + where)
        moves = [move for piece in pieces for move in solved[piece.start]]
        self._offer(small.expand(self.dag, moves), _joined(self.won) + where)
        if self.interrupted:
            raise KeyboardInterrupt

    def _solve_piece(self, dag: Dag, piece: Segment, seconds: float, floor: int) -> Found:
        began = time.perf_counter()
        moves = Moves(dag, piece, self.capacity)
        best: Found | None = None
        for width in _WIDTHS:
            found = beam(moves, width, deadline=began + 0.3 * seconds)
            if best is None or found.cost < best.cost:
                best = found
            if best.cost <= max(floor, best.bound) or time.perf_counter() - began > 0.2 * seconds:
                break
        assert best is not None
        floor = max(floor, best.bound)
        if best.cost > floor and self.method not in PROGRAM_SOLVERS:
            exact = search(
                moves, floor, best.cost, deadline=began + seconds, most_states=_FIRST_STATES,
                tick=lambda bound: self._tell(self.cost, bound),
            )  # fmt: skip
            self.proofs.append("A*")
            if exact.moves is not None:
                self.won.append("A*")
                return exact
            floor = max(floor, exact.bound)
        by = "beam search"
        if best.cost > floor and self.method == "auto":
            better = self._by_stretches(dag, piece, best, floor, began + seconds)
            if better.cost < best.cost:
                best, by = better, "stretches"
        if best.cost > floor and not self.interrupted:
            return self._compete(dag, piece, best, by, floor, began + seconds)
        self.won.append(by)
        return Found(best.moves, best.cost, min(floor, best.cost), best.states)

    def _by_stretches(self, dag: Dag, piece: Segment, best: Found, floor: int, deadline: float) -> Found:
        """The first levels of improving a plan stretch by stretch, in a part of the time."""
        assert best.moves is not None
        now = time.perf_counter()
        found = [best]

        def heard(path: Path, cost: int) -> None:
            found.append(replace(best, moves=path, cost=cost))

        try:
            improve_piece(
                dag, piece, self.capacity, best.moves, floor=floor, deadline=now + _STRETCHED * (deadline - now),
                seed=self.seed, further=False, heard=heard,
            )  # fmt: skip
        except KeyboardInterrupt:
            self.interrupted = True
        return found[-1]

    def _compete(self, dag: Dag, piece: Segment, best: Found, by: str, floor: int, deadline: float) -> Found:
        """The least traffic of a piece by whatever solver is first in the contest's order; `by`: whose `best` is."""
        common = (dag, piece, self.capacity, floor, best.cost)
        entries = [
            Entry("layers from both ends", by_meeting, common),
            Entry("dynamic programming", by_layers, common),
            Entry("stretches", by_stretches, (*common[:4], best.moves, self.seed + 1), _WEIGHT),
            Entry("A*", a_star, (*common, _MOST_STATES)),
        ]
        if self.method in PROGRAM_SOLVERS:
            self._refuse_too_large(dag, piece)
            entries = [Entry(self.method, by_program, (*common[:4], self.method))]
        elif self.method == "auto" and small_enough(dag, piece):
            entries += [Entry(name, by_program, (*common[:4], name)) for name in PROGRAM_SOLVERS if available(name)]
        else:
            entries.append(Entry("wide beam search", by_beam, (*common[:3], _WIDE)))
        known = [Answer(None, best.cost, floor)]

        def heard(answer: Answer) -> None:
            if answer.solution is not None and answer.cost < known[0].cost:
                known[0] = answer
            self._tell(self.cost, answer.bound)

        left = max(0.0, deadline - time.perf_counter())
        answer: Answer | None
        try:
            answer = contest(entries, jobs=self.jobs, seconds=left, known=best.cost, heard=heard)
        except KeyboardInterrupt:
            self.interrupted, answer = True, replace(known[0], bound=floor)
        if answer is None:
            self.won.append(by)
            return Found(best.moves, best.cost, floor, best.states)
        bound = max(floor, answer.bound)
        if answer.bound > floor:
            self.proofs.append(answer.proof)
        if answer.solution is None or answer.cost >= best.cost:
            self.won.append(by)
            return Found(best.moves, best.cost, min(bound, best.cost), best.states)
        self.won.append(answer.by)
        return Found(answer.solution, answer.cost, bound, best.states)

    def _refuse_too_large(self, dag: Dag, piece: Segment) -> None:
        if not small_enough(dag, piece):
            count = (piece.stop & ~piece.start).bit_count()
            raise ValueError(f"method {self.method}: a piece of {count} operators is too large for it; auto takes any")

    # -- addresses --------------------------------------------------------------------------------------------------

    def _placed(self, placed: tuple[tuple[int, ...], int] | None) -> Plan:
        """The best schedule at these addresses, or if there are none at others, at the price of further drops."""
        assert self.best is not None
        best, method = self.best, self.found_by
        if placed is None:
            best, offsets = self._placed_dearer(best)
            more = traffic(self.dag, best.dropped) - traffic(self.dag, self.best.dropped)
            method += f", {more} bytes more so that addresses exist" if more else ""
        else:
            offsets = placed[0]
        proof = Certificate(
            traffic(self.dag, best.dropped), self.bound, f"{method}; bound: {self.proved_by}", self._elapsed()
        )
        return to_plan(self.dag, best, offsets, self.capacity, proof)

    def _placed_dearer(self, best: Schedule) -> Placed:
        """The cheaper of two ways: with some of the capacity left free, and step by step with further drops."""
        now = time.perf_counter()
        left = max(0.0, self.began + self.time_limit - now)
        middle = now + 0.12 * self.time_limit + 0.5 * left
        end = middle + 0.13 * self.time_limit
        common = (self.dag, best, self.capacity)
        spared = place_with_spare(*common, most=_ANY, deadline=middle, seed=self.seed)
        if spared is not None and self._dearer(spared, best) * _CRUMBS <= traffic(self.dag, best.dropped):
            return spared
        turned = place_at_least_cost(*common, deadline=end, seed=self.seed)
        return turned if spared is None or self._dearer(turned, best) < self._dearer(spared, best) else spared

    def _dearer(self, placed: Placed, best: Schedule) -> int:
        return traffic(self.dag, placed[0].dropped) - traffic(self.dag, best.dropped)

    def _pack(self, candidate: Schedule, capacity: int | None) -> tuple[tuple[int, ...], int] | None:
        return pack(self.dag, candidate, capacity, time_limit=0.1 * self.time_limit, seed=self.seed)

    # -- incumbent and bound ----------------------------------------------------------------------------------------

    def _offer(self, candidate: Schedule, method: str) -> bool:
        cost = traffic(self.dag, candidate.dropped)
        better = self.cost is None or cost < self.cost
        if better:
            self.best, self.cost, self.found_by = candidate, cost, method
        self._tell(self.cost, self.bound)
        return better

    def _prove(self, bound: int, method: str) -> None:
        if bound > self.bound:
            self.bound, self.proved_by = bound, method
        self._tell(self.cost, self.bound)

    def _done(self) -> bool:
        return self.cost == self.bound or time.perf_counter() > self._until(0.9)

    def _tell(self, incumbent: int | None, bound: int) -> None:
        elapsed = self._elapsed()
        self.report(Progress(incumbent, max(bound, self.bound), elapsed, max(0.0, self.time_limit - elapsed)))

    def _elapsed(self) -> float:
        return time.perf_counter() - self.began

    def _until(self, share: float) -> float:
        return self.began + share * self.time_limit


def _joined(names: list[str]) -> str:
    """Each name once; what bounds at the start of a piece settle has none."""
    return " and ".join(dict.fromkeys(names)) or "floors by flows"


def _translated(
    dag: Dag, solved: Segment, twin: Segment, moves: tuple[tuple[int, int], ...]
) -> tuple[tuple[int, int], ...]:
    """The moves of one piece as moves of an isomorphic one."""
    operators = dict(zip(in_order(dag, solved), in_order(dag, twin)))
    tensors = dict(zip(tensors_in_order(dag, solved), tensors_in_order(dag, twin)))
    return tuple((operators[i], sum(1 << tensors[a] for a in bits(evicted))) for i, evicted in moves)
