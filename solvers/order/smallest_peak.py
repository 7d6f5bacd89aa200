"""The topological order with the smallest peak: bounds, pieces, exact search, beam where it does not end."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from peakline.solvers.bounds import live_floors
from peakline.solvers.dag import Dag, bits
from peakline.solvers.floors import peak_floor
from peakline.solvers.order.search import Found, beam, search
from peakline.solvers.problem import Problem
from peakline.solvers.segments import Segment, in_order, segments, signature

__all__ = ["Order", "smallest_peak"]

_BEAM_WIDTHS = (1, 8, 64, 512)
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


def smallest_peak(
    problem: Problem | Dag,
    *,
    time_limit: float = 60.0,
    progress: Callable[[int, int], None] = lambda incumbent, bound: None,
) -> Order:
    """The order whose most crowded moment is the least crowded, every tensor staying until its last reader has run.

    Exact where the search ends within `time_limit` seconds; a keyboard interrupt ends it like the clock. The graph is
    cut at operators that every order passes through; a piece needs no better order than what another piece needs
    anyway. `progress(incumbent, bound)` is called now and then, in bytes.
    """
    began = time.perf_counter()
    dag = problem if isinstance(problem, Dag) else Dag.of(problem)
    given = dag.problem.given_order
    best, method = list(given), "given order"
    peak = dag.peak_of(best)
    if len(dag) > _MOST_OPERATORS:
        return Order(given, peak, max(dag.working_sets), method + ", largest working set", _since(began))
    floor, proof = max(live_floors(dag)), "order-free floor"
    if peak == floor:
        return Order(given, peak, floor, f"{method}, {proof}", _since(began))
    pieces = segments(dag, independent=False)
    orders = [in_order(dag, piece) for piece in pieces]

    def tell(bound: int) -> None:
        progress(peak, max(floor, bound))

    try:
        needed = floor
        unsolved: list[int] = []
        solved: dict[tuple[object, ...], int] = {}
        share = began + 0.6 * time_limit
        for k, piece in enumerate(pieces):
            if _piece_peak(dag, piece, orders[k]) <= needed:
                continue
            twin = solved.setdefault(signature(dag, piece), k)
            if twin != k:
                place = {i: n for n, i in enumerate(in_order(dag, pieces[twin]))}
                own = in_order(dag, piece)
                orders[k] = [own[place[i]] for i in orders[twin]]
                continue
            found = search(dag, piece, needed, deadline=share, tick=tell)
            floor = max(floor, found.bound)
            if found.order is None:
                unsolved.append(k)
                _improve(dag, piece, orders, k, floor, began + time_limit)
            else:
                orders[k] = list(found.order)
            needed = max(needed, _piece_peak(dag, piece, orders[k]))
        method = "best-first search" if not unsolved else "beam search"
        proof = "best-first search over sets of executed operators" if floor > max(live_floors(dag)) else proof
        if unsolved and len(dag) <= _MOST_FLOWS:
            flows = peak_floor(dag)
            if flows > floor:
                floor, proof = flows, "order-free floor by flows"
    except KeyboardInterrupt:
        method += ", interrupted"
    joined = [i for order in orders for i in order]
    reached = dag.peak_of(joined)
    if reached < peak:
        best, peak = joined, reached
    return Order(tuple(best), peak, min(floor, peak), f"{method}, {proof}", _since(began))


def _improve(dag: Dag, piece: Segment, orders: list[list[int]], k: int, floor: int, deadline: float) -> None:
    """Replace the piece's order by the best that beams of growing width find."""
    for width in _BEAM_WIDTHS:
        if time.perf_counter() > deadline:
            break
        found: Found = beam(dag, piece, floor, width, deadline=deadline)
        if found.order is None:
            break
        if _piece_peak(dag, piece, list(found.order)) < _piece_peak(dag, piece, orders[k]):
            orders[k] = list(found.order)
        if found.peak <= floor:
            break


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
