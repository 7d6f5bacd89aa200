"""Annealing on a landscape small enough to know: the numbers 0 to 99, each next to two others."""

from __future__ import annotations

import random
import time
from math import inf

from peakline.solvers.annealing import Cooling, anneal


def bumpy(x: int) -> float:
    """Least, 0, at 70; a step down leads there only over hills of 5."""
    return abs(x - 70) + (5 if x % 3 == 0 else 0) - (5 if x == 70 else 0) + 5


def beside(x: int, chance: random.Random) -> int | None:
    to = x + chance.choice((-1, 1))
    return to if 0 <= to < 100 else None


def found(seed: int = 0, *, tries: int = 3000, deadline: float = inf, enough: float = 0.0) -> list[int]:
    cooling = Cooling(first=0.1, last=0.01)
    return list(
        anneal(5, bumpy, beside, tries=tries, seed=seed, deadline=deadline, cooling=cooling, enough=enough),
    )


def test_it_crosses_hills_and_tells_of_ever_better_states() -> None:
    costs = [bumpy(x) for x in found()]
    assert costs[0] == bumpy(5)
    assert costs == sorted(set(costs), reverse=True)
    assert costs[-1] == 0 == min(map(bumpy, range(100)))


def test_the_seed_decides() -> None:
    assert found(3) == found(3)


def test_it_ends_where_enough_is_found() -> None:
    *before, last = found(enough=30)
    assert bumpy(last) <= 30 < min(map(bumpy, before))


def test_past_the_deadline_there_is_only_the_start() -> None:
    assert found(deadline=time.perf_counter() - 1) == [5]


def test_a_start_that_costs_nothing_is_the_end() -> None:
    assert list(anneal(70, bumpy, beside, tries=100, seed=0, deadline=inf)) == [70]
