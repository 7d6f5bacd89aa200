"""Better orders by moving one operator at a time, each order priced by the furthest-use rule."""

from __future__ import annotations

import random
from collections.abc import Sequence

from peakline.solvers.annealing import Cooling, anneal
from peakline.solvers.dag import Dag
from peakline.solvers.schedule.fixed_order import Replacement, furthest_use

__all__ = ["improve", "moved"]

_COOLING = Cooling(of_least=True)


def improve(dag: Dag, order: Sequence[int], capacity: int, *, tries: int, seed: int, deadline: float) -> Replacement:
    """Simulated annealing over orders: an operator moves anywhere between its last maker and its first reader.

    The result depends on the seed alone, unless the deadline (of `time.perf_counter`) cuts it short.
    """

    def near(found: Replacement, chance: random.Random) -> Replacement | None:
        new = moved(dag, found.schedule.order, chance)
        return furthest_use(dag, new, capacity) if new is not None else None

    start = furthest_use(dag, order, capacity)
    *_, best = anneal(
        start, lambda found: found.cost, near, tries=tries, seed=seed, deadline=deadline, cooling=_COOLING
    )
    return best


def moved(dag: Dag, order: Sequence[int], chance: random.Random) -> list[int] | None:
    """The order with one operator elsewhere; None if the one chosen cannot move."""
    at = chance.randrange(len(order))
    i = order[at]
    low = at
    while low > 0 and not dag.before[i] >> order[low - 1] & 1:
        low -= 1
    high = at
    while high + 1 < len(order) and not dag.after[i] >> order[high + 1] & 1:
        high += 1
    if low == high:
        return None
    to = chance.randrange(low, high)
    to += to >= at
    new = [*order[:at], *order[at + 1 :]]
    new.insert(to, i)
    return new
