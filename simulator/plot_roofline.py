"""Pictures of where time goes: the hierarchical roofline, and what binds a product on which device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from peakline.hardware import Device
    from peakline.roofline import Roofline

__all__ = ["plot_binding", "plot_roofline"]

# Okabe and Ito's palette, told apart by every kind of colour vision
_LEVELS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")
_MARKERS = {"forward": "o", "backward": "s", "recompute": "D", "optimizer": "^", "communication": "v"}
_BOUND = {
    "compute": "#0072B2", "main": "#E69F00", "l2": "#F0E442", "launch": "#999999", "latency": "#CC79A7",
}  # fmt: skip
_INK = "#222222"
_NAMED = 6


def plot_roofline(found: Roofline, ax: Axes | None = None) -> Axes:
    """Rate against intensity, both logarithmic: slopes of the memory levels, peaks of the units, operators as points.

    A point's area is its share of the time, its colour the level its intensity is taken at, its shape the phase. The
    operators that take most of the time are named.
    """
    if ax is None:
        from matplotlib.figure import Figure

        ax = Figure(figsize=(9.5, 5.6), layout="constrained").add_subplot()
    levels = found.levels
    colour = dict(zip(reversed(levels), _LEVELS))
    places = [(p, level, p.intensity(level)) for p in found.points for level in levels if level in p.bytes]
    finite = [x for _, _, x in places if 0 < x < float("inf")] or [1.0]
    ridge = max(found.ridge(level) for level in levels) if levels else 1.0
    low, high = min(finite) / 3, max(*finite, ridge) * 3
    top = max(r.rate for r in found.roofs if not r.slanted)
    x = np.geomspace(low, high, 200)
    for roof in found.roofs:
        if roof.slanted:
            y = np.minimum(x * roof.rate, top)
            ax.plot(
                x, y, color=colour.get(roof.name, _INK), linewidth=1.4, label=f"{roof.name} {_rate(roof.rate, 'B/s')}"
            )
        else:
            ax.axhline(roof.rate, color=_INK, linewidth=1.2, linestyle="-" if "matrix" in roof.name else (0, (4, 2)))
            label = f"{roof.name} {_rate(roof.rate, 'op/s')}"
            ax.annotate(label, (high, roof.rate), ha="right", va="bottom", fontsize=8, color=_INK)
    total = sum(p.seconds for p in found.points) or 1.0
    for point, level, intensity in places:
        ax.scatter(
            intensity, point.rate, s=30 + 900 * point.seconds / total, color=colour[level],
            marker=_MARKERS.get(point.phase, "o"), alpha=0.75, linewidth=0.5, edgecolor="white", zorder=3,
        )  # fmt: skip
    outer = levels[-1] if levels else None
    for i, point in enumerate(p for p in found.points[:_NAMED] if outer in p.bytes):
        ax.annotate(
            f"{point.operator} ({point.phase})", (point.intensity(str(outer)), point.rate),
            xytext=(8, -12 - 9 * (i % 3)), textcoords="offset points", fontsize=8, color=_INK,
            arrowprops={"arrowstyle": "-", "color": _INK, "linewidth": 0.4},
        )  # fmt: skip
    floor = min(p.rate for p in found.points) if found.points else top / 1e3
    ax.set(xscale="log", yscale="log", xlim=(low, high), ylim=(floor / 4, top * 3))
    ax.set(xlabel="arithmetic intensity in operations per byte", ylabel="operations per second")
    ax.set_title(found.title, loc="left")
    for phase in dict.fromkeys(p.phase for p in found.points):
        ax.scatter([], [], color=_INK, marker=_MARKERS.get(phase, "o"), s=30, label=phase)
    ax.legend(loc="lower right", frameon=False, fontsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def plot_binding(
    devices: Sequence[Device], rows: Sequence[int], width: int = 4096, kind: str = "bf16", ax: Axes | None = None
) -> Axes:
    """What binds a product of `rows` × `width` × `width` on each device: a heat map of the limiting resource.

    Cells show how much of the device's peak the product attains, in percent.
    """
    from matplotlib.colors import to_rgb

    from peakline.cost.price import price
    from peakline.models.dtypes import dtype
    from peakline.models.kernels import Gemm

    if ax is None:
        from matplotlib.figure import Figure

        extent = (3.4 + 0.62 * len(rows), 1.2 + 0.42 * len(devices))
        ax = Figure(figsize=extent, layout="constrained").add_subplot()
    form = dtype(kind)
    size = form.bits // 8
    seen: dict[str, str] = {}
    image = np.ones((len(devices), len(rows), 3))
    for i, device in enumerate(devices):
        for j, m in enumerate(rows):
            gemm = Gemm(1, m, width, width, form, form, form)
            cost = price(gemm, size * (m * width + width * width), size * m * width, device)
            name = str(cost.limited_by)
            group = name if name in _BOUND else "main"
            seen.setdefault(group, "main memory" if group == "main" else group)
            image[i, j] = to_rgb(_BOUND[group])
            share = gemm.flops / float(cost.tiled) / device.peak(kind)
            text = f"{100 * share:.0f}"
            ax.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if group == "compute" else _INK)
    ax.imshow(image, aspect="auto", alpha=0.9)
    ax.set_xticks(range(len(rows)), [str(m) for m in rows])
    ax.set_yticks(range(len(devices)), [device.name for device in devices])
    ax.set(xlabel=f"rows m of a product m × {width} × {width}, {kind}")
    ax.set_title("What binds it, and percent of the peak attained", loc="left", fontsize=10)
    for group, label in seen.items():
        ax.scatter([], [], color=_BOUND[group], marker="s", s=60, label=label)
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return ax


def _rate(value: float, unit: str) -> str:
    for prefix, scale in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= scale:
            return f"{value / scale:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"
