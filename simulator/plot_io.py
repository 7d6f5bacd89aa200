"""Pictures of IO complexity: traffic against the fast memory's capacity, with the bound drawn under it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from peakline.palette import BYTES, CYCLE, FAINT, GREY, INK, axes_or_new, dressed, unit_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from peakline.io_complexity.levels import Boundary
    from peakline.io_complexity.work import Work

__all__ = ["plot_passes", "plot_traffic"]

_POINTS = 65
_LEAST = 2**10


def plot_traffic(
    work: Work | Mapping[str, Work],
    ax: Axes | None = None,
    *,
    capacities: Sequence[float] | None = None,
    marks: Sequence[Boundary] = (),
) -> Axes:
    """Bytes moved by the best tiling at each capacity, over the bound of the first operator; both axes logarithmic.

    The area between is what is not known: no schedule lies below the bound, and one reaches the line. Several
    operators are several ways to compute the same thing, drawn over the bound of the first.

    Args:
        work: an operator, or several by name.
        ax: where to draw; a new figure where None.
        capacities: bytes; otherwise from 1 KiB to where the first operator's operands fit.
        marks: boundaries of a device, as vertical lines.
    """
    known: Mapping[str, Work] = work if isinstance(work, Mapping) else {"best tiling found": work}
    first = next(iter(known.values()))
    ax = axes_or_new(ax, 8.5, 5)
    if capacities is None:
        top = max([4 * first.compulsory, 64 * _LEAST, *(mark.capacity for mark in marks)])
        capacities = [float(x) for x in np.geomspace(_LEAST, top, _POINTS)]
    sizes = np.array(capacities, dtype=float)
    bound = np.array([first.bound(s) for s in capacities])
    curves = {}
    for name, one in known.items():
        found = [one.best(s) for s in capacities]
        curves[name] = np.array([np.nan if t is None else t.traffic for t in found])
    highest = max([float(np.nanmax(c)) for c in curves.values() if not np.isnan(c).all()], default=float(bound.max()))
    unit, scale = unit_of(highest, BYTES)
    ax.fill_between(sizes, bound / scale * 0 + first.compulsory / scale / 4, bound / scale, color=FAINT, alpha=0.35,
                    linewidth=0)  # fmt: skip
    ax.plot(sizes, bound / scale, color=INK, linewidth=1.6, label="lower bound")
    ax.axhline(first.compulsory / scale, color=GREY, linewidth=0.9, linestyle=(0, (4, 2)), label="compulsory")
    for (name, curve), colour in zip(curves.items(), CYCLE * (1 + len(curves) // len(CYCLE)), strict=False):
        ax.plot(sizes, curve / scale, color=colour, linewidth=1.8, label=name)
    ax.set(xscale="log", yscale="log", xlim=(sizes.min(), sizes.max()))
    ax.set_ylim(first.compulsory / scale / 2, max(highest, float(bound.max())) / scale * 1.6)
    for mark in marks:
        if sizes.min() <= mark.capacity <= sizes.max():
            ax.axvline(mark.capacity, color=GREY, linewidth=0.8, linestyle=":")
            ax.annotate(
                f"in front of {mark.level}", (mark.capacity, ax.get_ylim()[1]), (-3, -4), textcoords="offset points",
                rotation=90, ha="right", va="top", fontsize=8, color=INK,
            )  # fmt: skip
    _byte_axis(ax, sizes)
    ax.set(xlabel="fast memory", ylabel=f"bytes moved in {unit}")
    ax.set_title(first.name, loc="left")
    return dressed(ax)


def plot_passes(
    queries: int, keys: int, dim: int, ax: Axes | None = None, *, element: float = 2, causal: bool = False
) -> Axes:
    """Attention with one, two and three passes over its scores, each against the capacity (FuseMax's taxonomy)."""
    from peakline.io_complexity.fused import Attention

    named = {}
    for passes, what in ((1, "one pass (FlashAttention-2)"), (2, "two passes"), (3, "three passes (FLAT)")):
        named[what] = Attention(queries, keys, dim, element=element, causal=causal, passes=passes)
    drawn = plot_traffic(named, ax)
    drawn.set_title(f"attention of {queries:,} × {keys:,}, heads of {dim}", loc="left")
    return drawn


def _byte_axis(ax: Axes, sizes: np.ndarray) -> None:
    """Ticks at powers of two, in binary units."""
    first, last = int(np.ceil(np.log2(sizes.min()))), int(np.floor(np.log2(sizes.max())))
    step = max((last - first) // 7, 1)
    ticks = [2.0**p for p in range(first, last + 1, step)]
    labels = []
    for tick in ticks:
        unit, scale = unit_of(tick, BYTES)
        labels.append(f"{tick / scale:g} {unit}")
    ax.set_xticks(ticks, labels)
    ax.minorticks_off()
