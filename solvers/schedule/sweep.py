"""Traffic against capacity: the least traffic found at each, a bound under it, and the knee of the curve.

A plan for a small scratchpad runs in a larger one, and what every plan must move in a large scratchpad every plan must
move in a smaller one: so each point takes over the plan of a smaller capacity, and the bound of a larger, if better.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from peakline.solvers.bounds import largest_working_set
from peakline.solvers.dag import Dag
from peakline.solvers.order import smallest_peak
from peakline.solvers.problem import Problem
from peakline.solvers.replay import replay
from peakline.solvers.schedule.solve import schedule

__all__ = ["Curve", "Point", "capacity_sweep", "knee"]

_BEND = 0.02  # a curve that bends less from its chord, as a share of both axes, has no knee


@dataclass(frozen=True, slots=True)
class Point:
    """Bytes: the scratchpad's `capacity`; the least `non_compulsory` traffic found; no plan moves less than `bound`."""

    capacity: int
    non_compulsory: int
    bound: int


@dataclass(frozen=True)
class Curve:
    """Traffic against capacity, in bytes.

    Attributes:
        points: by capacity, from the largest working set to the smallest peak or beyond.
        compulsory: what any scratchpad moves; added to a point's figures it gives all traffic.
        largest_working_set: M_R; no smaller scratchpad will do.
        smallest_peak: M_P of the best order found; nothing need move twice from here on.
        knee: position of the point from which on growing pays least beside what it has paid before; None for a
            straight line, if nothing moves twice anywhere, or after an interruption.
    """

    points: tuple[Point, ...]
    compulsory: int
    largest_working_set: int
    smallest_peak: int
    knee: int | None


def capacity_sweep(
    problem: Problem,
    *,
    points: int = 9,
    time_limit: float = 60.0,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, points: None,
) -> Curve:
    """The curve from M_R to M_P at `points` evenly spaced capacities, `time_limit` seconds for all of them.

    Every plan is replayed. `progress(done, points)` is called before each point. A keyboard interrupt ends the curve
    with the point that it met, one before the first point ends all.

    Raises ValueError for fewer than 2 points or a time limit not above 0.
    """
    if points < 2:
        raise ValueError(f"points: a curve has at least 2, got {points}")
    dag = Dag.of(problem)
    least = largest_working_set(dag)[0]
    order = smallest_peak(dag, time_limit=0.2 * time_limit)
    if order.interrupted:
        raise KeyboardInterrupt
    most = max(order.peak, least)
    capacities = sorted({least + (most - least) * k // (points - 1) for k in range(points)})
    found: list[Point] = []
    for k, capacity in enumerate(capacities):
        progress(k, len(capacities))
        plan = schedule(problem, capacity, time_limit=0.8 * time_limit / len(capacities), seed=seed)
        found.append(Point(capacity, replay(problem, plan).non_compulsory, plan.certificate.lower_bound))
        if plan.interrupted:
            break
    best = found[0].non_compulsory
    for k, point in enumerate(found):
        best = min(best, point.non_compulsory)
        found[k] = Point(point.capacity, best, point.bound)
    bound = 0
    for k in range(len(found) - 1, -1, -1):
        bound = max(bound, found[k].bound)
        found[k] = Point(found[k].capacity, found[k].non_compulsory, bound)
    bend = knee(found) if len(found) == len(capacities) else None
    return Curve(tuple(found), problem.compulsory, least, order.peak, bend)


def knee(points: Sequence[Point]) -> int | None:
    """Position of the point furthest below the chord from the first to the last (Satopää et al., "Finding a kneedle in
    a haystack", ICDCSW 2011), both axes scaled to 1; None if none lies a fiftieth below: a straight line has none.
    """
    first, last = points[0], points[-1]
    width, height = last.capacity - first.capacity, first.non_compulsory - last.non_compulsory
    if width <= 0 or height <= 0:
        return None
    below = [
        1 - (p.capacity - first.capacity) / width - (p.non_compulsory - last.non_compulsory) / height for p in points
    ]
    best = max(range(len(points)), key=below.__getitem__)
    return best if below[best] >= _BEND else None
