"""Pictures of where time goes: the hierarchical roofline, and what binds a product on which device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from peakline.palette import BINDS, CYCLE, GREY, INK, axes_or_new, dressed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from peakline.energy_roofline import EnergyRoofline
    from peakline.hardware import Device
    from peakline.roofline import Point, Roof, Roofline

__all__ = ["plot_binding", "plot_energy", "plot_roofline"]

_MARKERS = {"forward": "o", "backward": "s", "recompute": "D", "optimizer": "^", "communication": "v"}
_NAMED = 8  # operators with a number
_CLOSE = 1.3  # ratio of peaks below which their names would lie over each other
_AROUND = (
    (0, 1),
    (0, -1),
    (1, 0.4),
    (-1, 0.4),
    (1, -0.8),
    (-1, -0.8),
    (0, 2.1),
    (0, -2.1),
    (1.7, 1.4),
    (-1.7, 1.4),
)


def plot_roofline(found: Roofline, ax: Axes | None = None) -> Axes:
    """Rate against intensity, both logarithmic: slopes of the memory levels, peaks of the units, operators as points.

    A point's area is its share of the time, its colour the level its intensity is taken at, its shape the phase; a
    line joins an operator's points, and its length says what the level between them saves. The operators that take
    most of the time are numbered, and named on the right.
    """
    ax = axes_or_new(ax, 11.5, 5.8)
    levels = found.levels
    colour = dict(zip(reversed(levels), CYCLE))
    total = sum(p.seconds for p in found.points) or 1.0
    finite = [x for p in found.points for level in p.bytes if 0 < (x := p.intensity(level)) < float("inf")] or [1.0]
    low = min(finite) / 3
    high = max(*finite, *(found.ridge(level) for level in levels)) * 3 if levels else max(finite) * 3
    peaks = [roof for roof in found.roofs if not roof.slanted]
    top = max((roof.rate for roof in peaks), default=1.0)
    floor = min((p.rate for p in found.points), default=top / 1e3)
    ax.set(xscale="log", yscale="log", xlim=(low, high), ylim=(floor / 4, top * 3))
    _roofs(ax, found, colour, (low, high), top)
    _peaks(ax, peaks, low)
    for point in found.points:
        places = [(point.intensity(level), level) for level in levels if level in point.bytes]
        ax.plot([x for x, _ in places], [point.rate] * len(places), color=INK, linewidth=0.5, alpha=0.4, zorder=2)
        for x, level in places:
            ax.scatter(
                x, point.rate, s=30 + 900 * point.seconds / total, color=colour[level],
                marker=_MARKERS.get(point.phase, "o"), alpha=0.75, linewidth=0.5, edgecolor="white", zorder=3,
            )  # fmt: skip
    ax.set(xlabel="arithmetic intensity in operations per byte", ylabel="operations per second")
    ax.set_title(found.title, loc="left")
    for phase in dict.fromkeys(p.phase for p in found.points):
        ax.scatter([], [], color=INK, marker=_MARKERS.get(phase, "o"), s=30, label=phase)
    outer = found.levels[-1] if levels else None
    slow = [p for p in found.points if outer in p.bytes][:_NAMED]
    for i, point in enumerate(slow):
        share = f"{point.seconds / total:.0%}, {point.bound_by}"
        ax.plot([], [], " ", label=f"{i + 1}  {point.operator}, {point.phase}: {share}")
    dressed(ax)
    _numbers(ax, slow, str(outer), total)
    return ax


def _roofs(ax: Axes, found: Roofline, colour: dict[str, str], ends: tuple[float, float], top: float) -> None:
    """The slopes of the levels, each up to the highest peak."""
    x = np.geomspace(*ends, 200)
    for roof in found.roofs:
        if roof.slanted:
            known = roof.name in colour
            style: Any = "-" if known else (0, (1, 2))
            ax.plot(
                x, np.minimum(x * roof.rate, top), color=colour.get(roof.name, GREY), linewidth=1.5, linestyle=style,
                label=f"{roof.name}  {_rate(roof.rate, 'B/s')}{'' if known else ' (no traffic modelled)'}",
            )  # fmt: skip


def _peaks(ax: Axes, peaks: list[Roof], low: float) -> None:
    """The flat roofs, named on the left, where no point comes near; close ones share a line of names."""
    groups: list[list[Roof]] = []
    for roof in sorted(peaks, key=lambda roof: -roof.rate):
        ax.axhline(roof.rate, color=INK, linewidth=1.1, linestyle="-" if "matrix" in roof.name else (0, (4, 2)))
        if groups and groups[-1][0].rate < _CLOSE * roof.rate:
            groups[-1].append(roof)
        else:
            groups.append([roof])
    for group in groups:
        rates = list(dict.fromkeys(_rate(roof.rate, "op/s") for roof in group))
        names = dict.fromkeys(roof.name for roof in group)
        label = f"{', '.join(names)}  {' to '.join(rates[:: max(len(rates) - 1, 1)])}"
        ax.annotate(
            label, (low, group[0].rate), (4, 2), textcoords="offset points", ha="left", va="bottom", fontsize=8,
            color=INK,
        )  # fmt: skip


def _numbers(ax: Axes, points: list[Point], level: str, total: float) -> None:
    """A number beside the point of each operator at a level, clear of the other points and numbers where it can be."""
    figure: Any = ax.figure
    figure.draw_without_rendering()  # lays the axes out, so that distances on paper are known
    scale = 72 / figure.dpi
    reach = [5 + math.sqrt(30 + 900 * point.seconds / total) / 2 for point in points]
    at = [tuple(ax.transData.transform((point.intensity(level), point.rate)) * scale) for point in points]
    taken: list[tuple[float, float]] = []
    for i, point in enumerate(points):
        x, y = at[i]
        spots = [(x + far * dx * reach[i], y + far * dy * reach[i]) for far in (1, 1.6, 2.4) for dx, dy in _AROUND]

        def room(spot: tuple[float, float]) -> float:
            marks = (math.dist(spot, other) - near + 1 for other, near in zip(at, reach))
            return min([*marks, *(math.dist(spot, other) - 9 for other in taken)])

        spot = next((spot for spot in spots if room(spot) >= 0), max(spots, key=room))
        taken.append(spot)
        ax.annotate(
            str(i + 1), (point.intensity(level), point.rate), (spot[0] - x, spot[1] - y), textcoords="offset points",
            ha="center", va="center", fontsize=8, fontweight="bold", color=INK, zorder=5,
            arrowprops={"arrowstyle": "-", "linewidth": 0.4, "color": INK, "shrinkA": 4, "shrinkB": 0},
        )  # fmt: skip


def plot_energy(found: EnergyRoofline, ax: Axes | None = None) -> Axes:
    """Operations per joule against intensity, both logarithmic: the arch, its balance, the ridge, the operators.

    A point's area is its share of the joules. Between ridge and balance a program that is bound by arithmetic in time
    still spends most of its energy on main memory.
    """
    ax = axes_or_new(ax, 11.5, 5.8)
    points = [p for p in found.points if 0 < p.intensity < float("inf")]
    marks = [p.intensity for p in points] + [found.balance, found.ridge]
    x = np.geomspace(min(marks) / 3, max(marks) * 3, 200)
    ax.set(xscale="log", yscale="log", xlim=(x[0], x[-1]))
    ax.plot(x, [found.roof(i) for i in x], color=INK, linewidth=1.5, label="arithmetic and main memory alone")
    ax.axvline(found.balance, color=CYCLE[0], linewidth=1, label=f"energy balance {found.balance:.3g} op/B")
    ax.axvline(
        found.ridge, color=GREY, linewidth=1, linestyle=(0, (4, 2)), label=f"ridge of time {found.ridge:.3g} op/B"
    )
    total = sum(p.joules for p in found.points) or 1.0
    for i, p in enumerate(points):
        ax.scatter(
            p.intensity, p.efficiency, s=30 + 900 * p.joules / total, color=CYCLE[0], alpha=0.75,
            marker=_MARKERS.get(p.phase, "o"), linewidth=0.5, edgecolor="white", zorder=3,
        )  # fmt: skip
        if i < _NAMED:
            share = f"{p.joules / total:.0%}"
            ax.annotate(str(i + 1), (p.intensity, p.efficiency), (5, 5), textcoords="offset points", fontsize=8)
            ax.plot([], [], " ", label=f"{i + 1}  {p.operator}, {p.phase}: {share}")
    ax.set(xlabel=f"operations per byte of {found.level}", ylabel="operations per joule")
    ax.set_title(f"{found.title}: energy, a lower bound", loc="left")
    dressed(ax)
    return ax


def plot_binding(
    devices: Sequence[Device], rows: Sequence[int], width: int = 4096, kind: str = "bf16", ax: Axes | None = None
) -> Axes:
    """What binds a product of `rows` × `width` × `width` on each device: a heat map of the limiting resource.

    Cells show how much of the device's peak the product attains, in percent. A device that does not compute in `kind`
    is shown in the first of bf16, fp16, int8 and fp32 that it does, which is then named beside it.

    Raises:
        UnsupportedDtype: a device computes in none of them.
    """
    from matplotlib.colors import to_rgb

    from peakline.cost.price import price
    from peakline.models.dtypes import dtype
    from peakline.models.kernels import Gemm

    ax = axes_or_new(ax, 3.4 + 0.62 * len(rows), 1.2 + 0.42 * len(devices))
    seen: dict[str, str] = {}
    image = np.ones((len(devices), len(rows), 3))
    own = [next((k for k in (kind, "bf16", "fp16", "int8", "fp32") if device.supports(k)), kind) for device in devices]
    for i, device in enumerate(devices):
        form = dtype(own[i])
        size = form.bits // 8
        for j, m in enumerate(rows):
            gemm = Gemm(1, m, width, width, form, form, form)
            cost = price(gemm, size * (m * width + width * width), size * m * width, device)
            name = str(cost.limited_by)
            group = name if name in BINDS else "main"
            seen.setdefault(group, "main memory" if group == "main" else group)
            image[i, j] = to_rgb(BINDS[group])
            share = gemm.flops / float(cost.tiled) / device.peak(own[i])
            text = f"{100 * share:.0f}"
            ax.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if group == "compute" else INK)
    ax.imshow(image, aspect="auto", alpha=0.9)
    ax.set_xticks(range(len(rows)), [str(m) for m in rows])
    names = [d.name if k == kind else f"{d.name}, {k}" for d, k in zip(devices, own, strict=True)]
    ax.set_yticks(range(len(devices)), names)
    ax.set(xlabel=f"rows m of a product m × {width} × {width}, {kind}")
    ax.set_title("What binds it, and percent of the peak attained", loc="left", fontsize=10)
    for group, label in seen.items():
        ax.scatter([], [], color=BINDS[group], marker="s", s=60, label=label)
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return ax


def _rate(value: float, unit: str) -> str:
    for prefix, scale in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= scale:
            return f"{value / scale:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"
