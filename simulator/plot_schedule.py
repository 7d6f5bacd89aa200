"""Pictures of schedules: where every tensor lies over the steps, and traffic against capacity.

matplotlib is loaded on first use, and its global state is left alone.
"""

from __future__ import annotations

import re
from os import PathLike
from typing import TYPE_CHECKING, Any

from peakline.files import written_whole
from peakline.palette import ALARM, BYTES, FAINT, INK, KINDS, ROLES, axes_or_new, dressed, unit_of
from peakline.plot import file_format

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from peakline.solvers.plan import Plan
    from peakline.solvers.problem import Problem
    from peakline.solvers.schedule.sweep import Curve

__all__ = ["plot_addresses", "plot_capacity", "save_axes"]

_COLOURS = {"input": "#555555", "parameter": ROLES["parameter"], "activation": ROLES["activation"], "output": "#009E73"}
_LETTERS = 6  # points
_WIDTH, _HEIGHT = 0.58 * _LETTERS, 1.2 * _LETTERS  # points, of a letter and of a line
_SHORT = 4  # letters; a name cut to so few says nothing
_MOST_NAMED = 400  # rectangles; of more, hardly any holds a name


def plot_addresses(problem: Problem, plan: Plan, ax: Axes | None = None) -> Axes:
    """Address × step: one rectangle for each stay of a tensor in the scratchpad, coloured by role.

    A triangle pointing right marks a tensor that is brought back, one pointing left a stored one that leaves and comes
    back or is wanted at the end; both carry traffic. The line on top is the capacity.

    Args:
        problem: what the plan is for.
        plan: one that `replay` accepts.
        ax: where to draw; the axes of a new figure where None.
    """
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    ax = axes_or_new(ax)
    tensors = {tensor.name: tensor for tensor in problem.tensors}
    unit, scale = unit_of(plan.capacity, BYTES)
    stays, back, spilled = _stays(plan)
    for role, colour in _COLOURS.items():
        boxes = [
            Rectangle((first - 0.5, at / scale), last - first, tensors[name].bytes / scale)
            for name, at, first, last in stays
            if tensors[name].role == role
        ]
        if boxes:
            ax.add_collection(PatchCollection(boxes, facecolor=colour, edgecolor="white", linewidth=0.4, alpha=0.85))
            ax.plot([], [], "s", color=colour, label=role)
    middle = {(name, first): (at + tensors[name].bytes / 2) / scale for name, at, first, _ in stays}
    for points, marker, colour, label, side in (
        (back, ">", KINDS["offload"], "loaded again", 0.0),
        (spilled, "<", ALARM, "stored", 0.0),
    ):
        if points:
            xs = [x - 0.5 + side for _, _, x in points]
            ys = [middle[name, first] for name, first, _ in points]
            ax.plot(
                xs, ys, marker, color=colour, markersize=5, markeredgecolor=INK, markeredgewidth=0.4, label=label,
                clip_on=False,
            )  # fmt: skip
    top = plan.capacity / scale
    if len(stays) <= _MOST_NAMED:
        frame = ax.get_window_extent().transformed(ax.figure.dpi_scale_trans.inverted())  # inches
        step = 65 * frame.width / len(plan.steps)  # points, some of the width left to the legend
        byte = 72 * frame.height / (1.04 * plan.capacity)
        for name, at, first, last in stays:
            tensor = tensors[name]
            text, turned = _label(name, (last - first) * step, tensor.bytes * byte)
            ax.text(
                (first + last - 1) / 2, (at + tensor.bytes / 2) / scale, text, rotation=90 if turned else 0,
                ha="center", va="center", fontsize=_LETTERS, color="white" if tensor.role == "input" else INK,
                clip_on=True,
            )  # fmt: skip
    ax.axhline(top, color=ALARM, linewidth=1.3, label=f"capacity {top:.4g} {unit}")
    ax.set(xlim=(-0.5, len(plan.steps) - 0.5), ylim=(0, 1.04 * top), xlabel="step", ylabel=f"address in {unit}")
    ax.locator_params(axis="x", integer=True)
    moved = plan.traffic.non_compulsory
    proof = plan.certificate
    ax.set_title(f"{moved:,} B move twice; no plan moves less than {proof.lower_bound:,} B", loc="left", fontsize=10)
    return dressed(ax)


def _label(name: str, width: float, height: float) -> tuple[str, bool]:
    """As much of a name's end as a rectangle of so many points holds, in lines; whether it is written upwards."""
    turned = width < min(height, 12 * _WIDTH)
    if turned:
        width, height = height, width
    longest, most = int(width / _WIDTH) - 2, int(height / _HEIGHT)
    parts = re.findall(r"[^._]+[._]?", name) or [name]
    lines = [""]
    for part in reversed(parts):
        if len(part) + len(lines[0]) <= longest:
            lines[0] = part + lines[0]
        elif len(lines) < most and lines[0] and len(part) <= longest:
            lines.insert(0, part)
        else:
            lines[0] = "…" + lines[0] if lines[0] else ""
            break
    text = "\n".join(lines)
    return ("" if not most or (text.startswith("…") and len(text) <= _SHORT) else text), turned


def plot_capacity(curve: Curve, ax: Axes | None = None) -> Axes:
    """All off-chip traffic against capacity, its lower bound under it, compulsory traffic and the knee.

    Args:
        curve: of `capacity_sweep`.
        ax: where to draw; the axes of a new figure where None.
    """
    ax = axes_or_new(ax)
    unit, scale = unit_of(curve.points[-1].capacity, BYTES)
    traffic_unit, traffic_scale = unit_of(curve.compulsory + curve.points[0].non_compulsory, BYTES)
    x = [point.capacity / scale for point in curve.points]
    found = [(curve.compulsory + point.non_compulsory) / traffic_scale for point in curve.points]
    bound = [(curve.compulsory + point.bound) / traffic_scale for point in curve.points]
    ax.fill_between(x, bound, found, color=_COLOURS["activation"], alpha=0.3, linewidth=0, label="gap")
    ax.plot(x, found, "o-", color=_COLOURS["parameter"], label="best plan")
    ax.plot(x, bound, "v--", color=ALARM, label="lower bound")
    ax.axhline(curve.compulsory / traffic_scale, color=INK, linestyle=":", label="compulsory")
    if curve.knee is not None:
        at = curve.knee
        text = f"knee: {x[at]:.4g} {unit}"
        ax.annotate(
            text, (x[at], found[at]), (18, 26), textcoords="offset points", fontsize=9,
            arrowprops={"arrowstyle": "->", "color": INK},
        )  # fmt: skip
    for name, capacity in (("$M_R$", curve.largest_working_set), ("$M_P$", curve.smallest_peak)):
        ax.axvline(capacity / scale, color=FAINT, linewidth=0.8, zorder=0)
        ax.annotate(name, (capacity / scale, 1), xycoords=("data", "axes fraction"), ha="center", va="bottom")
    ax.set(xlabel=f"scratchpad in {unit}", ylabel=f"off-chip traffic in {traffic_unit}", ylim=(0, 1.08 * max(found)))
    return dressed(ax)


def save_axes(ax: Axes, path: str | PathLike[str], *, dpi: int = 130) -> None:
    """Write the axes' figure to a PNG, SVG or PDF, by the file's ending.

    Raises:
        ValueError: another ending, or a place that cannot be written.
    """
    kind = file_format(path)
    figure: Any = ax.figure
    with written_whole(path) as temporary:
        figure.savefig(temporary, format=kind, dpi=dpi)


def _stays(
    plan: Plan,
) -> tuple[list[tuple[str, int, int, int]], list[tuple[str, int, int]], list[tuple[str, int, int]]]:
    """Stays as (tensor, offset, first step, step after the last); loads after the first and stores as (tensor, first
    step of the stay, step)."""
    here: dict[str, tuple[int, int]] = {}
    seen: set[str] = set()
    stays: list[tuple[str, int, int, int]] = []
    back: list[tuple[str, int, int]] = []
    spilled: list[tuple[str, int, int]] = []
    for step, taken in enumerate(plan.steps):
        for name in taken.store:
            spilled.append((name, here[name][1], step))
        for name in taken.evict:
            offset, first = here.pop(name)
            stays.append((name, offset, first, step))
        for name, offset in taken.load.items():
            here[name] = (offset, step)
            if name in seen:
                back.append((name, step, step))
            seen.add(name)
        for name, offset in taken.produce.items():
            here[name] = (offset, step)
            seen.add(name)
    end = len(plan.steps)
    spilled += [(name, here[name][1], end) for name in plan.final_store]
    stays += [(name, offset, first, end) for name, (offset, first) in here.items()]
    return stays, back, spilled
