"""Pictures of a validation: measured against predicted, error by size, the worst ten."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from peakline.pictures import plot_measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from peakline.validation.validate import Validation

__all__ = ["pictures"]


def pictures(validation: Validation, folder: str | PathLike[str] | None) -> list[Figure]:
    """One figure per kind of measurement: scatter, error by measured time, the worst ten with their explanation.

    Raises:
        ValueError: if `folder` is a file, or there is nothing to draw.
    """
    import matplotlib.pyplot as plt

    table, memory = validation.table, validation.memory[validation.memory["error"].notna()]
    host = validation.host.assign(source="operators on a CPU")
    if table.empty and memory.empty and host.empty:
        raise ValueError("nothing was predicted, so there is nothing to draw")
    target = None if folder is None else Path(folder)
    if target is not None:
        if target.is_file():
            raise ValueError(f"--plots: {target} is a file; give a folder")
        target.mkdir(parents=True, exist_ok=True)
    found: list[Figure] = []
    groups = [*table.groupby("source", sort=False), *host.groupby("source", sort=False)]
    for source, rows in [*groups, *([("memory", memory)] if len(memory) else [])]:
        figure, axes = plt.subplots(1, 3, figsize=(19, 6), layout="constrained")
        unit, column = ("MiB", "device") if source == "memory" else ("µs", "gpu")
        factor = 2**-20 if source == "memory" else 1e6
        plot_measured(rows, by=column, quantity="bytes" if source == "memory" else "seconds", ax=axes[0])
        _by_size(axes[1], rows, column, factor, unit)
        _worst(axes[2], rows if source != "memory" else rows.assign(shape=rows["case"]), column)
        figure.suptitle(f"{source}: {len(rows):,} measurements, median |error| {rows['error'].abs().median():.1%}")
        found.append(figure)
        if target is not None:
            figure.savefig(target / f"{source}.png", dpi=110)
            plt.close(figure)
    return found


def _by_size(axes: Axes, rows: pd.DataFrame, column: str, factor: float, unit: str) -> None:
    for name, group in rows.groupby(column, sort=False):
        bins = np.unique(np.quantile(group["measured"], np.linspace(0, 1, 16)))
        if len(bins) < 3:
            continue
        cut = pd.cut(group["measured"], list(map(float, bins)), include_lowest=True)
        middle = group.groupby(cut, observed=True)["measured"].median() * factor
        axes.semilogx(middle, group.groupby(cut, observed=True)["error"].median() * 100, "-", label=str(name))
    axes.axhline(0, color="k", lw=0.8)
    axes.set(xlabel=f"measured, {unit}", ylabel="median error, %", title="error by size")


def _worst(axes: Axes, rows: pd.DataFrame, column: str) -> None:
    from peakline.validation.validate import WORST, explained

    order = np.log1p(rows["error"]).abs().sort_values(ascending=False, kind="stable").index[:WORST]
    digits = 0 if len(order) and rows["error"].abs().max() >= 0.01 else 3
    lines = []
    for row in rows.loc[order].itertuples():
        why = explained(row) if hasattr(row, "limited_by") else ""
        lines.append(f"{row.error:+.{digits}%}  {getattr(row, column)}  {row.shape}\n       {why}")
    axes.axis("off")
    axes.set_title(f"the worst {len(lines)}")
    axes.text(0, 1, "\n".join(lines), va="top", fontsize=7, family="monospace", transform=axes.transAxes)
