"""Pictures that compare and explain: the allocator's map, a Pareto front, a heat map, a waterfall, measured against
predicted.

One function each, which returns the axes it drew on. Memory over a step is `peakline.plot`, the roofline
`peakline.plot_roofline`, streams of a plan `peakline.planning.pictures`, a scratchpad `peakline.plot_schedule`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from peakline.hardware.units import format_bytes, format_time
from peakline.palette import ALARM, BYTES, CYCLE, GREY, INK, ROLES, SECONDS, axes_or_new, dressed, unit_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from peakline.models.graph import Graph
    from peakline.result import Estimate

__all__ = ["plot_allocations", "plot_heat_map", "plot_measured", "plot_pareto", "plot_waterfall"]

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_NAMED = 8
_CELLS = 400  # of a heat map that get their figure written in


def plot_allocations(est: Estimate, ax: Axes | None = None, *, most: int = 20_000) -> Axes:
    """Address × time: a rectangle for every allocation of a step, coloured by role, as in PyTorch's visualiser.

    White between the rectangles is memory that is held and not used: fragmentation. See `peakline.allocations` for
    where the addresses come from.

    Args:
        est: one configuration.
        ax: where to draw; the axes of a new figure where None.
        most: allocations drawn, the largest ones; the title says how many are left out.

    Raises:
        ValueError: for a sweep.
    """
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Patch, Rectangle

    from peakline.allocations import allocations

    ax = axes_or_new(ax)
    shown, left, largest = allocations(est).largest(most)
    unit, scale = unit_of(shown.top, BYTES)
    clock, tick = unit_of(shown.seconds, SECONDS)
    handles: list[Any] = []
    for role, colour in ROLES.items():
        blocks = [a for a in shown.allocations if a.role == role and a.end > a.start]
        boxes = [
            Rectangle((a.start / tick, a.address / scale), (a.end - a.start) / tick, a.bytes / scale) for a in blocks
        ]
        if boxes:
            edges = [0.4 if 80 * a.bytes > shown.top else 0.0 for a in blocks]  # small ones would be all edge
            ax.add_collection(PatchCollection(boxes, facecolor=colour, edgecolor="white", linewidth=edges))
            handles.append(Patch(color=colour, label=role.replace("_", " ")))
    top = shown.top / scale
    capacity = est.memory.capacity / scale
    if capacity < 2 * top:
        handles.append(ax.axhline(capacity, color=ALARM, linewidth=1.3, label=f"capacity {capacity:.4g} {unit}"))
    ax.set(xlim=(0, shown.seconds / tick), ylim=(0, 1.05 * max(top, capacity if capacity < 2 * top else top)))
    ax.set(xlabel=f"time in {clock}", ylabel=f"address in {unit}")
    note = f"; {left:,} of at most {format_bytes(largest, 3)} left out" if left else ""
    ax.set_title(f"{est.graph.name} on {est.device.name}: {len(shown.allocations):,} allocations{note}", loc="left")
    dressed(ax, legend=False)
    ax.legend(handles=handles[::-1], loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return ax


def plot_pareto(
    df: pd.DataFrame, x: str, y: str, *, by: str | None = None, label: str | Sequence[str] = (), ax: Axes | None = None
) -> Axes:
    """Two columns of a sweep, both to be small, and the configurations that none other beats in both.

    Args:
        df: a sweep; rows that do not fit or have no figure are left out.
        x, y: columns, smaller is better.
        by: a column whose values get colours and marks of their own.
        label: columns whose values are written beside points of the front.
        ax: where to draw; the axes of a new figure where None.

    Raises:
        ValueError: a column that is not there, or no row that fits.
    """
    from peakline.sweeping.search import pareto

    for name in (by, *([label] if isinstance(label, str) else label)):
        if name is not None:
            _column(df, name)
    front = pareto(df, [x, y]).sort_values([x, y])
    if front.empty:
        raise ValueError("plot_pareto: no row fits and has both figures, so there is nothing to draw")
    ax = axes_or_new(ax, 9, 5.2)
    rows = df.dropna(subset=[x, y])
    if "fits" in rows.columns:
        rows = rows[rows["fits"].fillna(False).astype(bool)]
    scale_x, title_x = _axis(x, rows[x])
    scale_y, title_y = _axis(y, rows[y])
    groups: list[tuple[Any, pd.DataFrame]] = [("configurations", rows)]
    if by is not None:
        groups = list(rows.groupby(by, sort=False, observed=True))
    for i, (group, part) in enumerate(groups):
        ax.scatter(
            part[x] / scale_x, part[y] / scale_y, s=22, color=CYCLE[i % len(CYCLE)] if by else GREY,
            marker=_MARKERS[i % len(_MARKERS)] if by else "o", alpha=0.7, linewidth=0, label=str(group),
        )  # fmt: skip
    fx, fy = front[x].to_numpy(float) / scale_x, front[y].to_numpy(float) / scale_y
    ax.step(fx, fy, where="post", color=ALARM, linewidth=1.4, label="Pareto front", zorder=3)
    ax.plot(fx, fy, "o", markersize=9, markerfacecolor="none", markeredgecolor=ALARM, markeredgewidth=1.4, zorder=4)
    columns = [label] if isinstance(label, str) else list(label)
    if columns:
        _name_points(ax, fx, fy, [" · ".join(str(row[c]) for c in columns) for _, row in front.iterrows()])
    for axis, values in (("x", fx), ("y", fy)):
        spread = rows[x] / scale_x if axis == "x" else rows[y] / scale_y
        if values.min() > 0 and spread.max() > 30 * spread.min():
            ax.set(**{f"{axis}scale": "log"})
    ax.set(xlabel=title_x, ylabel=title_y)
    ax.set_title(f"{len(front):,} of {len(rows):,} configurations are beaten by none", loc="left")
    return dressed(ax)


def _name_points(ax: Axes, x: Any, y: Any, names: Sequence[str]) -> None:
    """Names of up to `_NAMED` points, spread over them, up and right of a front that falls to the right."""
    picked = np.unique(np.linspace(0, len(names) - 1, min(_NAMED, len(names))).round().astype(int))
    for i in picked:
        ax.annotate(
            names[i], (x[i], y[i]), (6, 6), textcoords="offset points", fontsize=8, color=INK, rotation=20,
            rotation_mode="anchor",
        )  # fmt: skip


def plot_heat_map(
    df: pd.DataFrame, x: str, y: str, value: str, *, how: str = "min", ax: Axes | None = None, log: bool | None = None
) -> Axes:
    """One column of a sweep over two others, as colours with their figures; white with a cross where nothing fits.

    Args:
        df: a sweep.
        x, y: columns of the axes; every distinct value gets a column or row, in order of size or of appearance.
        value: the column to colour by.
        how: which of several rows of a cell counts: `min`, `max`, `mean` or `median`.
        ax: where to draw; the axes of a new figure where None.
        log: whether colours go by the logarithm; None: where values span more than a factor of 30.

    Raises:
        ValueError: a column that is not there, an unknown `how`, or nothing to draw.
    """
    for name in (x, y, value):
        _column(df, name)
    if how not in ("min", "max", "mean", "median"):
        raise ValueError(f"how: {how!r} is not one of 'min', 'max', 'mean', 'median'")
    rows = df[df["fits"].fillna(False).astype(bool)] if "fits" in df.columns and value != "fits" else df
    columns, lines = _ordered(df[x]), _ordered(df[y])
    cells = rows.assign(**{value: rows[value].astype("float64")}).groupby([y, x], observed=True, sort=False)[value]
    found = {key: number for key, number in cells.agg(how).items() if number == number}
    if not found:
        raise ValueError(f"plot_heat_map: no row fits and has a figure in {value!r}, so there is nothing to draw")
    grid = np.asarray([[found.get((line, column), np.nan) for column in columns] for line in lines], dtype=float)
    scale, title = _axis(value, grid[~np.isnan(grid)])
    grid = grid / scale
    least, most = float(np.nanmin(grid)), float(np.nanmax(grid))
    from matplotlib.colors import LogNorm, Normalize

    logarithmic = log if log is not None else least > 0 and most > 30 * least
    norm: Any = LogNorm(least, most) if logarithmic and most > least > 0 else Normalize(least, most)
    ax = axes_or_new(ax, 2.6 + max(0.72 * len(columns), 4), 1.6 + max(0.42 * len(lines), 2))
    image = ax.imshow(grid, aspect="auto", cmap="cividis", norm=norm)
    for i, j in np.ndindex(*grid.shape):
        if np.isnan(grid[i, j]):
            ax.text(j, i, "×", ha="center", va="center", fontsize=9, color=GREY)
        elif grid.size <= _CELLS:
            bright = norm(grid[i, j]) > 0.55
            ax.text(j, i, f"{grid[i, j]:.3g}", ha="center", va="center", fontsize=8, color=INK if bright else "white")
    ax.set_xticks(range(len(columns)), [_short(c) for c in columns], rotation=0 if _narrow(columns) else 30,
                  ha="center" if _narrow(columns) else "right")  # fmt: skip
    ax.set_yticks(range(len(lines)), [_short(c) for c in lines])
    ax.set(xlabel=x.replace("_", " "), ylabel=y.replace("_", " "))
    figure: Any = ax.figure
    figure.colorbar(image, ax=ax, label=title)
    ax.spines[:].set_visible(False)
    empty = int(np.isnan(grid).sum())
    ax.set_title(f"{title}{f'; × where nothing fits ({empty} cells)' if empty else ''}", loc="left", fontsize=10)
    return ax


def plot_waterfall(
    steps: Sequence[tuple[str, Estimate | Graph]],
    *,
    device: Any = None,
    measure: str = "peak",
    ax: Axes | None = None,
) -> Axes:
    """From a baseline to the optimised run, one technique at a time: what each one saved, or cost.

    Percentages are of the step before.

    Args:
        steps: (name, estimate) in the order in which the techniques are added, the baseline first; graphs in place of
            estimates are estimated on `device`.
        device: for graphs.
        measure: `peak` (bytes of the device) or `time` (seconds of a step).
        ax: where to draw; the axes of a new figure where None.

    Raises:
        ValueError: fewer than two steps, an unknown measure, a graph without a device, a sweep.
    """
    if measure not in ("peak", "time"):
        raise ValueError(f"measure: {measure!r} is not one of 'peak', 'time'")
    if len(steps) < 2:
        raise ValueError(f"steps: a waterfall goes from a baseline to at least one technique; {len(steps)} given")
    estimates = [(name, _estimated(name, thing, device)) for name, thing in steps]
    values = [float(est.peak if measure == "peak" else est.time) for _, est in estimates]
    unit, scale = unit_of(max(values), BYTES if measure == "peak" else SECONDS)
    write: Callable[[float], str] = (lambda v: format_bytes(int(v), 3)) if measure == "peak" else _seconds
    ax = axes_or_new(ax, max(2.2 + 1.15 * (len(values) + 1), 6.5), 4.8)
    levels = [value / scale for value in values]
    ax.bar(0, levels[0], color=GREY, width=0.65)
    for i, (before, after) in enumerate(pairwise(levels), start=1):
        ax.bar(i, after - before, bottom=before, color=CYCLE[2] if after <= before else ALARM, width=0.65)
    ax.bar(len(levels), levels[-1], color=CYCLE[0], width=0.65)
    for i, level in enumerate([*levels, levels[-1]]):
        if i:
            ax.plot([i - 0.675, i - 0.325], [levels[i - 1]] * 2, color=INK, linewidth=0.7)
        change = values[i] - values[i - 1] if 0 < i < len(levels) else None
        text = write(values[min(i, len(values) - 1)]) if change is None else _signed(change, values[i - 1], write)
        high = level if change is None else max(level, levels[i - 1])
        ax.annotate(text, (i, high), (0, 3), textcoords="offset points", ha="center", va="bottom", fontsize=8)
    if measure == "peak":
        capacity = estimates[0][1].memory.capacity / scale
        if capacity < 1.6 * max(levels):
            ax.axhline(capacity, color=ALARM, linewidth=1.2, linestyle=(0, (4, 2)))
            name = estimates[0][1].device.name
            ax.annotate(f"{name}: {capacity:.4g} {unit}", (1, capacity), (0, 2), xycoords=("axes fraction", "data"),
                        textcoords="offset points", ha="right", va="bottom", fontsize=8, color=ALARM)  # fmt: skip
            levels.append(capacity)
    names = [*(name for name, _ in estimates), "all of it"]
    ax.set_xticks(range(len(names)), [_folded(name) for name in names], fontsize=9)
    first = estimates[0][1]
    what = "memory" if measure == "peak" else "time of a step"
    ax.set(ylabel=f"{what} in {unit}", ylim=(0, 1.12 * max(levels)))
    ax.set_title(f"{first.graph.name} on {first.device.name}: {write(values[0])} to {write(values[-1])}", loc="left")
    return dressed(ax, legend=False)


def plot_measured(df: pd.DataFrame, *, by: str = "gpu", quantity: str = "seconds", ax: Axes | None = None) -> Axes:
    """Predicted against measured, on logarithmic axes, with the diagonal and a band of a fifth to either side.

    Args:
        df: columns `measured` and `predicted`, as of `Validation.table` (seconds) or `Validation.memory` (bytes); rows
            without a prediction are left out.
        by: the column that gives colours; ignored where there is none of that name.
        quantity: what the figures are: `seconds` or `bytes`.
        ax: where to draw; the axes of a new figure where None.

    Raises:
        ValueError: a column is missing, an unknown quantity, or no row has both figures.
    """
    from matplotlib.ticker import LogLocator

    if quantity not in ("seconds", "bytes"):
        raise ValueError(f"quantity: {quantity!r} is not one of 'seconds', 'bytes'")
    for name in ("measured", "predicted"):
        _column(df, name)
    rows = df[(df["measured"] > 0) & (df["predicted"] > 0)]
    if rows.empty:
        raise ValueError("plot_measured: no row has both figures, so there is nothing to draw")
    ax = axes_or_new(ax, 8.2, 5.6)
    unit, scale = unit_of(float(rows["measured"].median()), BYTES if quantity == "bytes" else SECONDS)
    groups: list[tuple[Any, pd.DataFrame]] = [("measurements", rows)]
    if by in rows.columns:
        groups = list(rows.groupby(by, sort=False, observed=True))
    for i, (group, part) in enumerate(groups):
        thin = part.iloc[:: max(len(part) // 3000, 1)]
        ax.scatter(
            thin["measured"] / scale, thin["predicted"] / scale, s=14 if len(rows) < 2000 else 4, alpha=0.5,
            linewidth=0, color=CYCLE[i % len(CYCLE)], marker=_MARKERS[i // len(CYCLE) % len(_MARKERS)],
            label=f"{group} ({len(part):,})",
        )  # fmt: skip
    ends = (
        np.asarray([rows[["measured", "predicted"]].min().min(), rows[["measured", "predicted"]].max().max()]) / scale
    )
    ends = ends * [0.8, 1.25]
    ax.plot(ends, ends, color=INK, linewidth=0.9, label="equal")
    ax.fill_between(ends, ends * 0.8, ends * 1.2, color=INK, alpha=0.08, linewidth=0, label="±20 %")
    ax.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel=f"measured in {unit}")
    ax.set(ylabel=f"predicted in {unit}", box_aspect=1)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_minor_formatter("")
        if ends[1] < 1000 * ends[0]:
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter("{x:,.5g}")
    error = (rows["predicted"] / rows["measured"] - 1).abs()
    ax.set_title(f"{len(rows):,} measurements: median error {error.median():.1%}, "
                 f"{(error <= 0.2).mean():.0%} within a fifth", loc="left", fontsize=10)  # fmt: skip
    dressed(ax)
    for handle in ax.get_legend().legend_handles:  # type: ignore[union-attr]
        if handle is not None and hasattr(handle, "set_sizes"):
            handle.set_sizes([24])
    return ax


# ---- small things ---------------------------------------------------------------------------------------------------
def _column(df: pd.DataFrame, name: str) -> None:
    if name in df.columns:
        return
    import difflib

    near = difflib.get_close_matches(name, list(map(str, df.columns)), 1)
    raise ValueError(f"there is no column {name!r}{f'; did you mean {near[0]!r}?' if near else ''}")


def _axis(name: str, values: Any) -> tuple[float, str]:
    """(scale, title) of a column by the unit at the end of its name: bytes and seconds in a unit for people."""
    largest = float(np.max(np.abs(np.asarray(values, dtype=float))))
    for ending, units in (("_bytes", BYTES), ("_seconds", SECONDS), ("_s", SECONDS)):
        if name.endswith(ending):
            unit, scale = unit_of(largest, units)
            return float(scale), f"{name.removesuffix(ending).replace('_', ' ')} in {unit}"
    return 1.0, name.replace("_", " ")


def _ordered(column: pd.Series[Any]) -> list[Any]:
    """Distinct values: numbers by size, others as they come."""
    values = list(dict.fromkeys(column.dropna().tolist()))
    return sorted(values) if all(isinstance(v, int | float) for v in values) else values


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _narrow(values: Sequence[Any]) -> bool:
    return max(len(_short(v)) for v in values) <= 7


def _estimated(name: str, thing: Estimate | Graph, device: Any) -> Estimate:
    import peakline as pk

    if not isinstance(thing, pk.Estimate):
        if device is None:
            raise ValueError(f"device: {name!r} is a graph; name the device to estimate it on")
        thing = pk.estimate(thing, device)
    if thing.graph.is_sweep:
        raise ValueError(f"steps: {name!r} is a sweep; a waterfall compares single configurations")
    return thing


def _seconds(value: float) -> str:
    return format_time(value, 3)


def _signed(change: float, before: float, write: Callable[[float], str]) -> str:
    sign = "−" if change < 0 else "+"
    return f"{sign}{write(abs(change))}\n({change / before:+.0%})".replace("-", "−")


def _folded(name: str) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(name, 14))
