"""Pictures of an estimate. matplotlib is loaded on first use, and its global state is left alone."""

from __future__ import annotations

from itertools import groupby
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from peakline.files import written_whole
from peakline.palette import ALARM, BYTES, INK, ROLES, SECONDS, axes_or_new, dressed, unit_of
from peakline.timeline import Execution, executions

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from peakline.memory.footprint import Memory
    from peakline.result import Estimate

__all__ = ["FORMATS", "file_format", "plot_memory", "save_memory"]

FORMATS = ("png", "svg", "pdf")

_PART_OF = {"recompute": "backward"}


def plot_memory(est: Estimate, ax: Axes | None = None) -> Axes:
    """Live bytes over the run's time (as tiled), stacked by role.

    The phases are named along the top and the peak is marked with its operator. Lines show the capacity, and the most
    that the allocator reserves and the device holds, where they lie within reach of the peak.

    Args:
        est: one configuration.
        ax: where to draw; the axes of a new figure where None.

    Raises:
        ValueError: for a sweep.
    """
    timeline = est.memory.timeline()
    runs = list(executions(est))
    ax = axes_or_new(ax)
    peak = float(est.memory.live)
    unit, scale = unit_of(peak, BYTES)
    clock, tick = unit_of(est.time, SECONDS)
    edges = np.asarray([*(run.start for run in runs), est.time]) / tick
    _stack(ax, timeline, np.asarray([run.position for run in runs]), edges, scale)
    shown = _lines(ax, est, unit, scale)
    top = shown * 1.2
    ax.set(xlim=(0, edges[-1]), ylim=(0, top), xlabel=f"time in {clock}", ylabel=f"memory in {unit}")
    _phases(ax, runs, edges, top)
    at = max(i for i, run in enumerate(runs) if run.position == int(est.memory.peak_step))
    _peak(ax, (edges[at] + edges[at + 1]) / 2, peak / scale, shown, f"{peak / scale:.4g} {unit}", est.memory)
    ax.set_title(f"{est.graph.name} on {est.device.name}: {'fits' if est.fits else 'does not fit'}", loc="left")
    dressed(ax, legend=False)
    handles, labels = ax.get_legend_handles_labels()
    ax.legend(handles[::-1], labels[::-1], loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return ax


def save_memory(est: Estimate, path: str | PathLike[str], *, dpi: int = 130) -> None:
    """Draw `plot_memory` into a file: PNG, SVG or PDF, by the file's ending.

    Raises:
        ValueError: another ending, or a place that cannot be written.
    """
    kind = file_format(path)
    figure: Any = plot_memory(est).figure
    with written_whole(path) as temporary:
        figure.savefig(temporary, format=kind, dpi=dpi)


def file_format(path: str | PathLike[str]) -> str:
    """The format that a file's ending asks for. Raises ValueError for one that is not in `FORMATS`."""
    kind = Path(path).suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise ValueError(f"{path}: a plot is written as {', '.join(f'.{known}' for known in FORMATS)}")
    return kind


def _stack(ax: Axes, timeline: dict[str, Any], positions: Any, edges: Any, scale: float) -> None:
    """The areas, held from each execution's start to the next one's."""
    floor = np.zeros(len(edges))
    highest = max(int(amounts.max()) for amounts in timeline.values())
    for role in (role for role in ROLES if role in timeline):
        amounts = timeline[role][positions] / scale
        ceiling = floor + np.append(amounts, amounts[-1:])
        worth_naming = timeline[role].max() > highest / 500
        label = role.replace("_", " ") if worth_naming else "_"
        ax.fill_between(edges, floor, ceiling, step="post", color=ROLES[role], linewidth=0, label=label)
        floor = ceiling


def _lines(ax: Axes, est: Estimate, unit: str, scale: float) -> float:
    """Capacity, device and reserved bytes; returns the highest level to show."""
    memory = est.memory
    shown = float(memory.live) / scale
    lines: list[tuple[str, int, Any, str]] = [
        ("reserved" if memory.arena is None else "arena", memory.reserved, (0, (1, 1.5)), INK),
        ("device", memory.device, (0, (5, 2)), INK),
        ("capacity", memory.capacity, "solid", ALARM),
    ]
    if memory.reserved == memory.device:
        del lines[1 if memory.arena is not None else 0]
    for name, value, style, colour in lines:
        level = float(value) / scale
        if level > 2.5 * shown:
            ax.plot([], [], " ", label=f"{name} {level:.4g} {unit}\n(beyond the axis)")
            continue
        ax.axhline(level, color=colour, linestyle=style, linewidth=1.3, label=f"{name} {level:.4g} {unit}")
        shown = max(shown, level)
    return shown


def _phases(ax: Axes, runs: list[Execution], edges: Any, top: float) -> None:
    """A shade and a name for each stretch of the run; recomputation belongs to the backward pass."""
    start = 0
    for i, (phase, members) in enumerate(groupby(runs, key=_stretch)):
        end = start + sum(1 for _ in members)
        low, high = edges[start], edges[end]
        if i % 2:
            ax.axvspan(low, high, color="black", alpha=0.05, linewidth=0, zorder=0)
        if start:
            ax.axvline(low, color=INK, linewidth=0.6, alpha=0.5)
        if high - low > 0.09 * edges[-1]:
            ax.text((low + high) / 2, top * 0.985, phase, ha="center", va="top", color=INK, fontsize=9)
        elif end == len(runs):
            ax.text(high, top * 0.985, phase, ha="right", va="top", color=INK, fontsize=9)
        start = end


def _stretch(run: Execution) -> str:
    phase = run.step.operator.phase
    return _PART_OF.get(phase, phase)


def _peak(ax: Axes, at: float, height: float, shown: float, text: str, memory: Memory) -> None:
    """An arrow to the live peak from its name, which stands above every line."""
    right = at > ax.get_xlim()[1] / 2
    ax.annotate(
        f"peak {text} live: {memory.peak_operator}",
        (at, height),
        xytext=(at, shown * 1.06),
        ha="right" if right else "left",
        va="bottom",
        fontsize=9,
        color=INK,
        arrowprops={
            "arrowstyle": "-|>",
            "color": INK,
            "shrinkA": 0,
            "shrinkB": 0,
            "relpos": (1.0 if right else 0.0, 0.0),
        },
        zorder=6,
    )
