"""The run on a time line: every executed operator with its start and duration, as tiled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peakline.cost.program import OperatorCost
    from peakline.memory.lifetimes import Step
    from peakline.result import Estimate

__all__ = ["Execution", "executions", "step_seconds"]


@dataclass(frozen=True, slots=True)
class Execution:
    """One execution of one operator.

    Attributes:
        position: the step's number in the unrolled program.
        step: the operator, its block and its layer.
        price: what it costs; None for operators without kernels (views).
        round: which time around its loop, from 0 (later microbatches of gradient accumulation).
        start, seconds: when it starts and how long it runs, as tiled.
    """

    position: int
    step: Step
    price: OperatorCost | None
    round: int
    start: float
    seconds: float


def executions(est: Estimate) -> Iterator[Execution]:
    """Every execution in order: layers unrolled, loops run round by round; the last one ends at the tiled time.

    Raises:
        ValueError: for a sweep.
    """
    if est.graph.is_sweep:
        raise ValueError("a sweep has no single time line; estimate one configuration")
    prices = _prices(est)
    now = 0.0
    for position, step, round_ in _in_order(est.memory.program.steps):
        price = prices.get(id(step.operator))
        seconds = float(price.seconds("tiled")) if price is not None else 0.0
        yield Execution(position, step, price, round_, now, seconds)
        now += seconds


def step_seconds(est: Estimate) -> list[float]:
    """Seconds of each step of the unrolled program, as tiled; 0 for views.

    Raises:
        ValueError: for a sweep.
    """
    if est.graph.is_sweep:
        raise ValueError("a sweep has no single time line; estimate one configuration")
    prices = _prices(est)
    found = [prices.get(id(step.operator)) for step in est.memory.program.steps]
    return [float(price.seconds("tiled")) if price is not None else 0.0 for price in found]


def _in_order(steps: list[Step]) -> Iterator[tuple[int, Step, int]]:
    """(position, step, round): consecutive blocks of equal `times` form the loop that is executed so often."""
    start = 0
    for times, group in groupby(steps, key=lambda step: step.block.times):
        members = list(group)
        for round_ in range(times):
            for offset, step in enumerate(members):
                yield start + offset, step, round_
        start += len(members)


def _prices(est: Estimate) -> dict[int, OperatorCost]:
    """Each operator's price by `id`: prices are in program order and leave out operators without kernels."""
    costs = iter(est.cost.operators)
    upcoming = next(costs, None)
    found: dict[int, OperatorCost] = {}
    for _, operator in est.graph.operators():
        if upcoming is None:
            break
        if (operator.name, operator.type, operator.phase) == (upcoming.name, upcoming.type, upcoming.phase):
            found[id(operator)] = upcoming
            upcoming = next(costs, None)
    return found
