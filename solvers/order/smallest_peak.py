"""The topological order with the smallest peak: bounds, pieces, exact search; where it does not end soon, a contest.

Who takes part: the same search with more states, beams of growing width, and for small pieces the integer program of
`timed.py` by every solver that is installed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from peakline.solvers.bounds import live_floors
from peakline.solvers.contest import Answer, Entry, Report, contest, cores
from peakline.solvers.dag import Dag, bits
from peakline.solvers.floors import peak_floor
from peakline.solvers.linear import PROGRAM_SOLVERS, ProgramSolver, available, require
from peakline.solvers.order.search import beam, search
from peakline.solvers.order.timed import by_program, small_enough
from peakline.solvers.problem import Problem
from peakline.solvers.segments import Segment, in_order, segments, signature
from peakline.solvers.symmetry import in_listed_order

__all__ = ["Order", "smallest_peak"]

_BEAM_WIDTHS = (1, 8, 64, 512)
_FIRST_STATES = 10_000  # of the search before other processes are started
_FIRST_SHARE = 0.2  # of the time, at most
_MOST_STATES = 2_000_000
_MOST_FLOWS = 1_200  # operators for each of which a flow is drawn
_MOST_OPERATORS = 8_000  # masks of more are too long: the given order and the largest working set


@dataclass(frozen=True, slots=True)
class Order:
    """An order of the operators (positions in the problem), its peak, and a bound on all orders' peaks; bytes.

    `method` says what found the order and what proved the bound; `seconds` is the time it took.
    """

    operators: tuple[int, ...]
    peak: int
    bound: int
    method: str
    seconds: float

    @property
    def proven(self) -> bool:
        """Whether no order has a smaller peak."""
        return self.peak == self.bound

    @property
    def interrupted(self) -> bool:
        """Whether a keyboard interrupt ended the search early."""
        return "interrupted" in self.method


def smallest_peak(
    problem: Problem | Dag,
    *,
    time_limit: float = 60.0,
    jobs: int | None = None,
    method: str = "auto",
    progress: Callable[[int, int], None] = lambda incumbent, bound: None,
) -> Order:
    """The order whose most crowded moment is the least crowded, every tensor staying until its last reader has run.

    Exact where a solver ends within `time_limit` seconds; a keyboard interrupt ends it like the clock. The graph is
    cut at operators that every order passes through; a piece needs no better order than what another piece needs
    anyway. Hard pieces are contested in `jobs` processes (default: two, where there are as many processors); `method`
    leaves them to one solver: search, highs, cbc or cp-sat. `progress(incumbent, bound)` is called now and then, in
    bytes.

    Raises ImportError if the method's solver is not installed, ValueError if a piece is too large for it.
    """
    began = time.perf_counter()
    if method in PROGRAM_SOLVERS:
        require(method)
    dag = problem if isinstance(problem, Dag) else Dag.of(problem)
    given = dag.problem.given_order
    best, found_by = list(given), "given order"
    by: list[str] = []
    peak = dag.peak_of(best)
    if len(dag) > _MOST_OPERATORS:
        return Order(given, peak, max(dag.working_sets), found_by + ", largest working set", _since(began))
    floor, proof = max(live_floors(dag)), "order-free floor"
    if peak == floor:
        return Order(given, peak, floor, f"{found_by}, {proof}", _since(began))
    dag = in_listed_order(dag)
    floor = max(live_floors(dag))  # precedences may raise it
    pieces = segments(dag, independent=False)
    orders = [in_order(dag, piece) for piece in pieces]

    def tell(bound: int) -> None:
        progress(peak, max(floor, bound))

    try:
        needed = floor
        unsolved = 0
        solved: dict[tuple[object, ...], int] = {}
        for k, piece in enumerate(pieces):
            if _piece_peak(dag, piece, orders[k]) <= needed:
                continue
            twin = solved.setdefault(signature(dag, piece), k)
            if twin != k:
                place = {i: n for n, i in enumerate(in_order(dag, pieces[twin]))}
                own = in_order(dag, piece)
                orders[k] = [own[place[i]] for i in orders[twin]]
                continue
            seconds = max(0.0, began + time_limit - time.perf_counter())
            known = _piece_peak(dag, piece, orders[k])
            answer = _solve(dag, piece, needed, known, seconds, jobs or cores(), method, tell)
            if answer.bound > floor:
                floor, proof = answer.bound, answer.proof
            if answer.solution is not None and answer.cost < _piece_peak(dag, piece, orders[k]):
                orders[k] = list(answer.solution)
                by.append(answer.by)
            unsolved += _piece_peak(dag, piece, orders[k]) > max(needed, answer.bound)
            needed = max(needed, _piece_peak(dag, piece, orders[k]))
        if unsolved and len(dag) <= _MOST_FLOWS:
            flows = peak_floor(dag)
            if flows > floor:
                floor, proof = flows, "order-free floor by flows"
    except KeyboardInterrupt:
        by.append("interrupted")
    found_by = " and ".join(dict.fromkeys(by)) or found_by
    joined = [i for order in orders for i in order]
    reached = dag.peak_of(joined)
    if reached < peak:
        best, peak = joined, reached
    return Order(tuple(best), peak, min(floor, peak), f"{found_by}, {proof}", _since(began))


def _solve(
    dag: Dag,
    piece: Segment,
    needed: int,
    known: int,
    seconds: float,
    jobs: int,
    method: str,
    tell: Callable[[int], None],
) -> Answer:
    """The piece's order with the smallest peak, `needed` bytes being as good as fewer and `known` reached already."""
    deadline = time.perf_counter() + seconds
    entries = [
        Entry("best-first search", by_search, (dag, piece, needed)),
        Entry("beam search", by_beams, (dag, piece, needed)),
    ]
    if method in PROGRAM_SOLVERS:
        if not small_enough(dag, piece):
            count = (piece.stop & ~piece.start).bit_count()
            raise ValueError(f"method {method}: a piece of {count} operators is too large for it; auto takes any")
        entries = [Entry(method, by_program, (dag, piece, needed, known, method))]
    else:
        first = time.perf_counter() + _FIRST_SHARE * seconds
        found = search(dag, piece, needed, deadline=first, most_states=_FIRST_STATES, tick=tell)
        if found.order is not None:
            return Answer(found.order, found.peak, found.bound, "best-first search", "best-first search")
        if method == "auto" and small_enough(dag, piece):
            entries += [_program(dag, piece, needed, known, name) for name in PROGRAM_SOLVERS if available(name)]
    left = deadline - time.perf_counter()
    answer = contest(entries, jobs=jobs, seconds=max(0.0, left), known=known, heard=lambda heard: tell(heard.bound))
    return answer or Answer(None, known, needed)


def _program(dag: Dag, piece: Segment, needed: int, known: int, solver: ProgramSolver) -> Entry:
    return Entry(solver, by_program, (dag, piece, needed, known, solver))


def by_search(report: Report, seconds: float, dag: Dag, piece: Segment, floor: int) -> Answer:
    """The best-first search; an entry of a contest."""
    found = search(
        dag, piece, floor, deadline=time.perf_counter() + seconds, most_states=_MOST_STATES,
        tick=lambda bound: report(Answer(None, 0, bound)),
    )  # fmt: skip
    return Answer(found.order, found.peak, found.bound)


def by_beams(report: Report, seconds: float, dag: Dag, piece: Segment, floor: int) -> Answer:
    """Beams of growing width; an entry of a contest."""
    deadline = time.perf_counter() + seconds
    best = Answer(None, 0, floor)
    for width in _BEAM_WIDTHS:
        found = beam(dag, piece, floor, width, deadline=deadline)
        if found.order is None:
            break
        if best.solution is None or found.peak < best.cost:
            best = Answer(found.order, found.peak, floor)
            report(best)
        if found.peak <= floor or time.perf_counter() > deadline:
            break
    return best


def _piece_peak(dag: Dag, piece: Segment, order: list[int]) -> int:
    """Most bytes alive at once while the piece runs in this order."""
    executed, live = piece.start, piece.live
    alive = dag.weigh(live)
    peak = 0
    for i in order:
        fresh = dag.touch[i] & ~live
        alive += dag.weigh(fresh)
        live |= fresh
        peak = max(peak, alive)
        executed |= 1 << i
        dead = sum(1 << a for a in bits(dag.touch[i]) if not dag.readers[a] & ~executed)
        alive -= dag.weigh(dead)
        live ^= dead
    return peak


def _since(began: float) -> float:
    return time.perf_counter() - began
