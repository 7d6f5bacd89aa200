"""Searching instead of listing: Pareto fronts, the largest size that fits, samples of a space."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from peakline.sweeping.plan import SIZES

if TYPE_CHECKING:
    import pandas as pd

    from peakline.hardware import Device
    from peakline.result import Estimate

__all__ = ["Largest", "largest", "pareto", "sample"]

_LARGEST = 1 << 40
_CHECKED = 257


def pareto(
    df: pd.DataFrame, minimise: str | Sequence[str], maximise: str | Sequence[str] = (), *, fits: bool = True
) -> pd.DataFrame:
    """The rows that no other row beats: as good in every column and better in one. Equal rows all stay.

    Args:
        df: a sweep.
        minimise, maximise: columns.
        fits: leave out rows that do not fit; rows with an error or without a figure are always left out.

    Raises:
        ValueError: a column that is not there, or no column at all.
    """
    low = [minimise] if isinstance(minimise, str) else list(minimise)
    high = [maximise] if isinstance(maximise, str) else list(maximise)
    if not low and not high:
        raise ValueError("minimise: name at least one column")
    for name in (*low, *high):
        if name not in df.columns:
            import difflib

            near = difflib.get_close_matches(name, list(map(str, df.columns)), 1)
            raise ValueError(f"pareto: there is no column {name!r}{f'; did you mean {near[0]!r}?' if near else ''}")
    signed = [df[name].astype("float64") for name in low] + [-df[name].astype("float64") for name in high]
    costs = np.column_stack([column.to_numpy(dtype=np.float64, na_value=np.nan) for column in signed])
    usable = ~np.isnan(costs).any(axis=1)
    if fits and "fits" in df.columns:
        usable &= df["fits"].fillna(False).to_numpy(dtype=np.bool_)
    numbers = np.flatnonzero(usable)
    return df.iloc[numbers[_undominated(costs[numbers])]]


def _undominated(costs: NDArray[Any]) -> NDArray[np.int64]:
    """Row numbers of the front, ascending: sorted lexically, a row can only be beaten by one before it."""
    order = np.lexsort(costs.T[::-1])
    left, front = order, []
    while len(left):
        first = costs[left[0]]
        equal = (costs[left] == first).all(axis=1)
        front.extend(left[equal].tolist())
        left = left[(costs[left] < first).any(axis=1)]
    return np.asarray(sorted(front), dtype=np.int64)


@dataclass(frozen=True)
class Largest:
    """The largest size that fits, with its proof.

    Attributes:
        axis, value: the size; 0 if not even the smallest fits.
        estimate: with `value`: it fits; None if `value` is 0.
        next: with the next size: it does not fit; None if `value` is the upper end.
        step: sizes are multiples of it.
        evaluated: sizes that were estimated, in order, and whether each fits.
        checked: sizes over the bracket at which live bytes were found not to fall.
    """

    axis: str
    value: int
    estimate: Estimate | None = field(repr=False)
    next: Estimate | None = field(repr=False)
    step: int
    evaluated: Mapping[int, bool] = field(repr=False)
    checked: int

    def __int__(self) -> int:
        return self.value


def largest(
    axis: str,
    model: Any,
    *,
    device: str | Device,
    phase: str,
    step: int = 1,
    upto: int = 1 << 24,
    allocator: str | None = None,
    **options: Any,
) -> Largest:
    """The largest `batch`, `seq`, `context` or `image` that fits, by bisection.

    The allocator is replayed at every size tried. The answer is proven by two estimates: it fits, and the next multiple
    of `step` does not. That nothing larger fits rests on memory growing with the size, which is checked: live bytes
    must not fall between sizes spread over the bracket up to the first power of two that does not fit.

    Args:
        axis: the size to find.
        device, allocator: as for `peakline.estimate`.
        step: only multiples of it are tried.
        upto: no larger size is tried.
        **options: as for `peakline.training_step` and the others.

    Raises:
        ValueError: an unknown axis; memory that falls as the size grows; what the estimate raises.
    """
    import peakline as pk
    from peakline.sweeping.workload import build

    if axis not in SIZES:
        raise ValueError(f"axis: {axis!r} is not one of {', '.join(SIZES)}")
    if axis in options:
        raise ValueError(f"{axis}: is what is looked for; leave it out")
    if not 1 <= step <= upto <= _LARGEST:
        raise ValueError(f"step, upto: 1 ≤ step ≤ upto ≤ 2**40 must hold, not {step} and {upto}")
    target, found, sizes = pk.device(device), dict[int, "Estimate"](), {k: v for k, v in options.items() if k in SIZES}
    chosen = {"model": model, "phase": phase} | {k: v for k, v in options.items() if k not in SIZES}

    def fits(count: int) -> bool:
        if count not in found:
            graph = build(chosen, sizes | {axis: count * step}, {})
            found[count] = pk.estimate(graph, target, allocator=allocator)
        return bool(found[count].fits)

    most = upto // step
    low, high = 0, 1
    while high <= most and fits(high):
        low, high = high, high * 2
    high = min(high, most + 1)
    checked = _grows(lambda s: build(chosen, sizes | {axis: s}, {}), axis, step, min(high, most))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return Largest(
        axis,
        low * step,
        found.get(low),
        found.get(high) if high <= most else None,
        step,
        {count * step: bool(one.fits) for count, one in found.items()},
        checked,
    )


def _grows(graph_of: Any, axis: str, step: int, most: int) -> int:
    """Check that live bytes do not fall between sizes spread over 1 … `most` steps; how many there were."""
    from peakline.sweeping.structure import live_bytes

    counts = np.unique(np.concatenate([np.linspace(1, most, _CHECKED), np.geomspace(1, most, 65)]).astype(np.int64))
    sizes = counts * step
    if len(sizes) == 1:
        return 1
    live = live_bytes(graph_of(sizes), sizes.shape).live
    falls = np.flatnonzero(np.diff(live) < 0)
    if falls.size:
        at = int(falls[0])
        raise ValueError(
            f"{axis}: live bytes fall from {live[at]} at {sizes[at]} to {live[at + 1]} at {sizes[at + 1]}: "
            "bisection proves nothing here; sweep the axis instead"
        )
    return len(sizes)


def sample(axes: Mapping[str, Any], count: int, *, method: str = "lhs", seed: int = 0) -> dict[str, Any]:
    """`count` points of a space, as axes for `peakline.sweep(**points)`, which `zip` ties together.

    Args:
        axes: name → list of choices, or `(low, high)` or `(low, high, "log")`: whole numbers if both ends are.
        count: points.
        method: `lhs`, a Latin hypercube (each of `count` equal slices of every axis holds one point: McKay, Beckman and
            Conover, Technometrics 21(2), 1979), or `random`.
        seed: of NumPy's generator.

    Raises:
        ValueError: an empty axis, a range that is none, an unknown method.
    """
    if method not in ("lhs", "random"):
        raise ValueError(f"method: {method!r} is not one of 'lhs', 'random'")
    if count < 1:
        raise ValueError(f"count: must be at least 1, not {count}")
    rng = np.random.default_rng(seed)
    points: dict[str, Any] = {}
    for name, space in axes.items():
        if method == "lhs":
            unit = (rng.permutation(count) + rng.random(count)) / count
        else:
            unit = rng.random(count)
        points[name] = _spread(name, space, unit)
    return {**points, "zip": [tuple(points)]}


def _spread(name: str, space: Any, unit: NDArray[np.float64]) -> list[Any]:
    """Numbers in [0, 1) to values of an axis."""
    if isinstance(space, tuple):
        scale = space[2] if len(space) == 3 else "linear"
        ends = space[:2]
        if len(space) not in (2, 3) or scale not in ("linear", "log") or not all(_is_number(e) for e in ends):
            raise ValueError(f"{name}: a range is (low, high) or (low, high, 'log'), not {space!r}")
        low, high = ends
        if high < low or (scale == "log" and low <= 0):
            raise ValueError(f"{name}: {space!r} is no range; low ≤ high must hold, and 0 < low on a log scale")
        if isinstance(low, int) and isinstance(high, int):
            wide = high + 1
            values = low * (wide / low) ** unit if scale == "log" else low + (wide - low) * unit
            return [int(v) for v in np.minimum(np.floor(values), high)]
        values = low * (high / low) ** unit if scale == "log" else low + (high - low) * unit
        return [float(v) for v in values]
    choices = list(space)
    if not choices:
        raise ValueError(f"{name}: the axis is empty; give at least one value")
    return [choices[min(math.floor(u * len(choices)), len(choices) - 1)] for u in unit]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
