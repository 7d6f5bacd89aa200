"""Simulated annealing (Kirkpatrick, Gelatt & Vecchi, Science 220, 1983) for whatever has a cost and neighbours."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

__all__ = ["Cooling", "anneal"]

State = TypeVar("State")

_COLDEST = 1e-300  # a temperature of 0 would divide by it


@dataclass(frozen=True, slots=True)
class Cooling:
    """Temperatures that fall geometrically from `first` to `last`, as shares of a cost.

    The cost is the start's; `of_least`: the least found so far, so that it cools faster the more it finds.
    """

    first: float = 0.02
    last: float = 0.0005
    of_least: bool = False

    def at(self, progress: float, start: float, least: float) -> float:
        """The temperature once `progress`, from 0 to 1, of the attempts have been made."""
        fallen: float = (self.last / self.first) ** progress
        return (least if self.of_least else start) * self.first * fallen


def anneal(
    start: State,
    cost: Callable[[State], float],
    near: Callable[[State, random.Random], State | None],
    *,
    tries: int,
    seed: int,
    deadline: float,
    cooling: Cooling = Cooling(),
    enough: float = 0.0,
) -> Iterator[State]:
    """The start, then each state that costs less than all before it: the last one is the best.

    `near` gives a state close to another, or None where the attempt leads nowhere. What costs no more is always
    accepted, what costs δ more with probability exp(−δ / temperature). It ends after `tries` attempts, at the
    `deadline` (of `time.perf_counter`), or once a state costs no more than `enough`. What it finds depends on the
    seed alone, unless the deadline cuts it short.
    """
    chance = random.Random(seed)
    current = start
    paid = least = first = cost(start)
    yield start
    for attempt in range(tries):
        if least <= enough or time.perf_counter() > deadline:
            return
        new = near(current, chance)
        if new is None:
            continue
        price = cost(new)
        heat = max(cooling.at(attempt / tries, first, least), _COLDEST)
        if price <= paid or chance.random() < math.exp((paid - price) / heat):
            current, paid = new, price
            if paid < least:
                least = paid
                yield current
