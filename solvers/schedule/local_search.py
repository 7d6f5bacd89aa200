"""Better orders by moving one operator at a time, each order priced by the furthest-use rule."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence

from peakline.solvers.dag import Dag
from peakline.solvers.schedule.fixed_order import Replacement, furthest_use

__all__ = ["improve", "moved"]

_START, _END = 0.02, 0.0005  # temperatures, as shares of the first order's traffic


def improve(dag: Dag, order: Sequence[int], capacity: int, *, tries: int, seed: int, deadline: float) -> Replacement:
    """Simulated annealing over orders: an operator moves anywhere between its last maker and its first reader.

    The result depends on the seed alone, unless the deadline cuts it short.
    """
    chance = random.Random(seed)
    current = best = furthest_use(dag, order, capacity)
    for attempt in range(tries):
        if best.cost == 0 or time.perf_counter() > deadline:
            break
        new = moved(dag, current.schedule.order, chance)
        if new is None:
            continue
        priced = furthest_use(dag, new, capacity)
        heat = best.cost * _START * (_END / _START) ** (attempt / tries)
        if priced.cost <= current.cost or chance.random() < math.exp((current.cost - priced.cost) / max(heat, 1e-9)):
            current = priced
            if current.cost < best.cost:
                best = current
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
