"""The smallest budget that anything fits, and the plan there."""

from __future__ import annotations

from typing import Any

from peakline.hardware import Device
from peakline.models.graph import Graph
from peakline.planning.plan import NothingFits, OffloadPlan, plan

__all__ = ["smallest"]

GROWTH = 1.01
"""From one budget that the replay refuses to the next."""


def smallest(workload: Graph, device: str | Device, **options: Any) -> OffloadPlan:
    """The plan at the least budget that the solver knows a decision for and whose replay agrees, within a percent.

    Args:
        options: of `plan`, without `budget`.

    Raises:
        NothingFits: no budget up to twice the first floor was enough.
    """
    budget = floor = 1 << 20
    while True:
        try:
            return plan(workload, device, budget=budget, **options)
        except NothingFits as error:
            if floor == 1 << 20:
                floor = error.floor
            elif budget > 2 * floor:
                raise
            budget = max(error.floor, int(budget * GROWTH))
