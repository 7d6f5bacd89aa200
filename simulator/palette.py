"""What every picture shares: colours that everyone can tell apart, units of axes, and the frame around a drawing.

The colours are M. Okabe and K. Ito's, told apart by every kind of colour vision (https://jfly.uni-koeln.de/color/).
Nothing here loads matplotlib before a picture is drawn, and its global state is left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "ALARM",
    "BINDS",
    "BYTES",
    "CYCLE",
    "FAINT",
    "GREY",
    "INK",
    "KINDS",
    "ROLES",
    "SECONDS",
    "axes_or_new",
    "dressed",
    "unit_of",
]

BLUE, ORANGE, GREEN, PINK = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
SKY, YELLOW, ALARM, GREY = "#56B4E9", "#F0E442", "#D55E00", "#999999"
INK = "#222222"
FAINT = "#BBBBBB"

CYCLE = (BLUE, ORANGE, GREEN, PINK, SKY, ALARM, GREY, YELLOW)
"""For categories without a meaning of their own, in this order."""

ROLES = {
    "parameter": BLUE,
    "optimizer_state": GREEN,
    "gradient": ORANGE,
    "buffer": GREY,
    "input": "#555555",
    "kv_cache": PINK,
    "activation": SKY,
    "workspace": YELLOW,
}
"""What a tensor is for, from the bottom of a stack to its top."""

KINDS = {
    "forward": SKY,
    "backward": BLUE,
    "recompute": ALARM,
    "optimizer": GREEN,
    "offload": ORANGE,
    "fetch": PINK,
    "communication": YELLOW,
}
"""What a stream does."""

BINDS = {"compute": BLUE, "main": ORANGE, "l2": YELLOW, "launch": GREY, "latency": PINK, "vector": GREEN}
"""The resource that limits an operator; any other level of memory counts as `main`."""

BYTES = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1))
SECONDS = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))


def unit_of(amount: float, units: Sequence[tuple[str, float]]) -> tuple[str, float]:
    """The largest unit of `BYTES` or `SECONDS` that `amount` reaches, else the smallest: (name, bytes or seconds)."""
    return next((pair for pair in units if amount >= pair[1]), units[-1])


def axes_or_new(ax: Axes | None, width: float = 10, height: float = 5.2) -> Axes:
    """The given axes, or those of a new figure of this size in inches, which no global list keeps alive."""
    if ax is not None:
        return ax
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained").add_subplot()


def dressed(ax: Axes, *, legend: bool = True) -> Axes:
    """Without the frame's top and right, the legend outside on the right."""
    ax.spines[["top", "right"]].set_visible(False)
    if legend:
        ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return ax
