"""The whole trade of memory for time: a plan at every budget from the floor to where nothing needs to leave."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peakline.hardware import Device
from peakline.models.graph import Graph
from peakline.planning.plan import NothingFits, OffloadPlan, plan

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Curve", "curve"]


@dataclass(frozen=True)
class Curve:
    """Plans by budget, smallest budget first; budgets in bytes, None where nothing fits."""

    budgets: tuple[int, ...]
    plans: tuple[OffloadPlan | None, ...]

    @property
    def table(self) -> pd.DataFrame:
        """One row per budget: bytes, seconds, the bound, and what was done."""
        import pandas as pd

        return pd.DataFrame([{"budget_bytes": b, **_row(p)} for b, p in zip(self.budgets, self.plans)])


def _row(found: OffloadPlan | None) -> dict[str, Any]:
    if found is None:
        return {"fits": False}
    kinds = found.timeline.by_kind("compute")
    return {
        "fits": True,
        "peak_bytes": found.peak,
        "seconds": found.seconds,
        "lower_bound_seconds": found.lower_bound,
        "overhead": found.overhead,
        "gap": found.gap,
        "recompute_seconds": kinds.get("recompute", 0.0),
        "stall_seconds": sum(found.timeline.stalled("compute").values()),
        "moved_bytes": max(found.moved.values(), default=0),
    }


def curve(
    workload: Graph, device: str | Device, budgets: Sequence[int] | int = 8, **options: Any
) -> Iterator[tuple[int, OffloadPlan | None]]:
    """Plans one budget after the other, as they are found; `Curve` collects them.

    Args:
        budgets: bytes, or how many to spread evenly from the floor to the step's own need, at most the device's bytes.
        options: of `plan`.

    Yields:
        (budget, plan), from the largest budget to the smallest; None where nothing fits.
    """
    if isinstance(budgets, int):
        whole = plan(workload, device, **options)
        top = min(whole.baseline_peak + whole.budget - whole.room, whole.budget)
        floor = _floor(workload, device, options)
        given: list[int] = [floor + (top - floor) * i // max(budgets - 1, 1) for i in range(budgets)]
    else:
        given = sorted(budgets)
    for budget in reversed(given):
        try:
            yield budget, plan(workload, device, budget=budget, **options)
        except NothingFits:
            yield budget, None


def _floor(workload: Graph, device: str | Device, options: dict[str, Any]) -> int:
    """The smallest budget at which there is a plan."""
    try:
        plan(workload, device, budget=1 << 20, **options)
    except NothingFits as error:
        return error.floor
    return 1 << 20
