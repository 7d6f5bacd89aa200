"""The best hardware under a budget: differential evolution over continuous fields of a device.

The workload's graph, lifetimes and kernels are worked out once; each candidate is a device, and only priced.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from peakline.sweeping.devices import DeviceSpec, spec_of, varied_spec
from peakline.sweeping.expressions import Condition
from peakline.sweeping.table import Table

if TYPE_CHECKING:
    import pandas as pd

    from peakline.hardware import Device

__all__ = ["Optimum", "optimise"]

_COUNTS = ("units", "channels", "count")


@dataclass(frozen=True)
class Optimum:
    """The best device found.

    Attributes:
        device: the variant.
        values: its fields, in SI units.
        objective: what was minimised, summed over the workload's rows.
        row: the workload's rows on it.
        evaluations: devices tried.
        within_budget: whether the budget holds; if not, no device tried keeps it.
    """

    device: Device
    values: Mapping[str, float]
    objective: float
    row: pd.DataFrame
    evaluations: int
    within_budget: bool


def optimise(
    model: Any,
    *,
    device: Any,
    over: Mapping[str, tuple[Any, Any]],
    minimise: str = "time_s",
    budget: str | None = None,
    seed: int = 0,
    generations: int = 30,
    node: str | None = None,
    **workload: Any,
) -> Optimum:
    """Fields of a device that make a column smallest, under a condition.

    Args:
        model, **workload: as for `peakline.sweep`; several configurations count by their sum.
        device: the one to vary.
        over: field → (low, high), as texts with units or numbers in SI units; counts are whole.
        minimise: a column of results.
        budget: a condition that must hold, over columns of results, fields, and `area_mm2` (`peakline.sweeping.area`).
        seed: the same seed gives the same answer.
        generations: at most; each tries 15 devices per field (Storn and Price, J. Global Optimization 11, 1997, as
            scipy.optimize.differential_evolution runs it).
        node: for `area_mm2`.

    Raises:
        ValueError: an unknown field, column or condition; a range that is none; scipy is not installed.
    """
    try:
        differential_evolution: Any = import_module("scipy.optimize").differential_evolution
    except ImportError:
        raise ValueError("optimise needs scipy: pip install 'peakline[sweep]'") from None
    from peakline.hardware import device as find_device
    from peakline.sweeping.area import area
    from peakline.sweeping.axes import plan_of
    from peakline.sweeping.devices import device_axis, figure, found
    from peakline.sweeping.evaluate import evaluate

    specs = device_axis(device)
    if len(specs) != 1:
        raise ValueError(f"device: optimise varies one device, not {len(specs)}")
    base = found(specs[0])
    bounds = {name: _bounds(base, name, ends) for name, ends in over.items()}
    if not bounds:
        raise ValueError("over: name at least one field and its range")
    plan = plan_of(model, device=base, **workload)
    known = [column.name for column in plan.settings.all_columns]
    if minimise not in known:
        raise ValueError(f"minimise: there is no column {minimise!r}; columns: {', '.join(known)}")
    condition = None if budget is None else Condition.parse(budget, [*known, *over, "area_mm2"])
    whole = {name for name in over if name.rsplit(".", 1)[-1] in _COUNTS}
    tried: dict[tuple[float, ...], tuple[float, float, Any, Table]] = {}

    def device_at(point: tuple[float, ...]) -> Any:
        return find_device(base, **{n: int(v) if n in whole else v for n, v in zip(bounds, point)})

    def score(raw: Any) -> float:
        point = tuple(float(round(v)) if n in whole else float(v) for n, v in zip(bounds, raw))
        if point not in tried:
            tried[point] = _measure(device_at(point))
        value, excess = tried[point][:2]
        return value if excess == 0 else _WORSE * (1.0 + excess)

    def _measure(candidate: Any) -> tuple[float, float, Any, Table]:
        tables = [evaluate(_with_device(plan.part(n), spec_of(candidate))) for n in range(plan.parts)]
        value = float(sum(np.sum(table.column(minimise)) for table in tables))
        excess = 0.0
        if condition is not None:
            extra = {name: figure(candidate, name) for name in over if name in condition.names}
            if "area_mm2" in condition.names:
                extra["area_mm2"] = area(candidate, node)["total_mm2"]
            for table in tables:
                columns = {n: table.column(n) for n in condition.names if n in known} | extra
                excess += float((~condition.holds(columns, table.rows)).sum())
        if not np.isfinite(value):
            excess += 1.0
        return value, excess, candidate, tables[0]

    result = differential_evolution(
        score, list(bounds.values()), seed=seed, maxiter=generations, polish=False, init="latinhypercube"
    )
    best = tuple(float(round(v)) if n in whole else float(v) for n, v in zip(bounds, result.x))
    value, excess, candidate, table = tried[best]
    values = dict(zip(bounds, best))
    return Optimum(candidate, values, value, Table.frame([table]), len(tried), excess == 0)


_WORSE = 1e30
"""Beyond any objective: what breaks the budget is worse than all that keeps it."""


def _with_device(part: Any, spec: DeviceSpec) -> Any:
    from dataclasses import replace

    return replace(part, runs=tuple(replace(run, device=spec) for run in part.runs))


def _bounds(base: Device, name: str, ends: Any) -> tuple[float, float]:
    """A field's range in SI units, read as the device file reads it."""
    from peakline.sweeping.devices import figure, found

    if not isinstance(ends, tuple | list) or len(ends) != 2:
        raise ValueError(f"over: {name}: a range is (low, high), not {ends!r}")
    low, high = (figure(found(varied_spec(spec_of(base), {name: end})), name) for end in ends)
    if not isinstance(low, int | float) or not isinstance(high, int | float) or not low < high:
        raise ValueError(f"over: {name}: {ends!r} is no range of numbers")
    return float(low), float(high)
