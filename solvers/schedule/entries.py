"""What competes for a piece of the traffic problem (see `peakline.solvers.contest`)."""

from __future__ import annotations

import time

from peakline.solvers.contest import Answer, Report
from peakline.solvers.dag import Dag
from peakline.solvers.schedule.layers import layers
from peakline.solvers.schedule.meeting import meet
from peakline.solvers.schedule.neighbourhoods import Path, improve_piece
from peakline.solvers.schedule.search import beam, search
from peakline.solvers.schedule.states import Moves
from peakline.solvers.segments import Segment

__all__ = ["a_star", "by_beam", "by_layers", "by_meeting", "by_stretches"]

_EVERY = 1 << 40
_WIDTHS = (_EVERY, 8, _EVERY, 64, _EVERY, 512, 4096)  # states of an ideal; all of them again once a plan is better
_HALVINGS = 3  # of the way from the bound to the known cost, before that cost itself is tried
_SLOWER = 3  # times as long a wider run takes, at least
_FINE = 0.005  # of a cost that was too much to try: bounds are not brought nearer to it than that
_SHARE = 0.4  # of the time left, for a run that cuts nothing


def a_star(
    report: Report, seconds: float, dag: Dag, piece: Segment, capacity: int, floor: int, known: int, most_states: int
) -> Answer:
    """A* for a plan cheaper than `known` bytes, the bound being `floor` at least."""
    deadline = time.perf_counter() + seconds
    found = search(
        Moves(dag, piece, capacity), floor, known, deadline=deadline, most_states=most_states,
        tick=lambda bound: report(Answer(None, 0, bound)),
    )  # fmt: skip
    return Answer(found.moves, found.cost, found.bound)


def by_meeting(
    report: Report, seconds: float, dag: Dag, piece: Segment, capacity: int, floor: int, known: int
) -> Answer:
    """Layers from both ends, for plans below costs that rise from `floor` to `known` bytes.

    Half of what is left up to `known` at a time: a cost that no plan is below is a bound, and is found to be one the
    faster the lower it is.
    """
    deadline = time.perf_counter() + seconds
    best = Answer(None, known, floor)

    def tick() -> None:
        report(best)

    moves = Moves(dag, piece, capacity)
    above, tried = known, 0
    while best.bound < above and time.perf_counter() < deadline:
        target = known if above == known and tried == _HALVINGS else (best.bound + above + 1) // 2
        until = deadline if target == known else time.perf_counter() + 0.5 * (deadline - time.perf_counter())
        found = meet(moves, target, deadline=until, tick=tick)
        if found is not None and found.moves is not None:
            return Answer(found.moves, found.cost, found.cost)
        if found is None:
            above, tried = target, 0
        else:
            best, tried = Answer(None, known, found.bound), tried + 1
            report(best)
        if above < known and above - best.bound < _FINE * above:
            break
    return best


def by_layers(
    report: Report, seconds: float, dag: Dag, piece: Segment, capacity: int, floor: int, known: int
) -> Answer:
    """Dynamic programming over layers with ever more states an ideal, for plans ever cheaper than `known` bytes."""
    deadline = time.perf_counter() + seconds
    moves = Moves(dag, piece, capacity)
    best = Answer(None, known, floor)

    def tick() -> None:
        report(best)

    tried = -1  # the cost that the last run with all states was to better
    for width in _WIDTHS:
        began = time.perf_counter()
        if width == _EVERY:
            if tried == best.cost:
                continue
            tried = best.cost
        until = began + (_SHARE if width == _EVERY else 1.0) * (deadline - began)
        found = layers(moves, known=best.cost, width=width, deadline=until, tick=tick)
        if found is None:
            if width == _EVERY:
                continue
            break
        bound = max(best.bound, found.bound)
        best = Answer(found.moves, found.cost, bound) if found.moves is not None else Answer(*_still(best), bound)
        report(best)
        now = time.perf_counter()
        if best.cost <= best.bound or (width > 8 and now + _SLOWER * (now - began) > deadline):
            break
    return best


def _still(answer: Answer) -> tuple[object, int]:
    return answer.solution, answer.cost


def by_beam(report: Report, seconds: float, dag: Dag, piece: Segment, capacity: int, width: int) -> Answer:
    """A beam of `width` states."""
    found = beam(Moves(dag, piece, capacity), width, deadline=time.perf_counter() + seconds)
    return Answer(found.moves, found.cost, found.bound)


def by_stretches(
    report: Report, seconds: float, dag: Dag, piece: Segment, capacity: int, floor: int, path: Path, seed: int
) -> Answer:
    """The moves of a plan, improved stretch by stretch as long as there is time."""

    def heard(better: Path, cost: int) -> None:
        report(Answer(better, cost, floor))

    better, cost = improve_piece(
        dag, piece, capacity, path, floor=floor, deadline=time.perf_counter() + seconds, seed=seed, heard=heard
    )
    return Answer(better, cost, floor)
