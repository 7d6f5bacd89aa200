"""Traffic of elementwise kernels: each operand once, each result once, whatever the tile.

So SwiGLU is at its lower bound at every tile; what fusing wins is the traffic of the kernels it replaces.
"""

from __future__ import annotations

from peakline.cost.tiled.traffic import Traffic

__all__ = ["swiglu", "swiglu_backward"]


def swiglu(size: int, *, element: int) -> Traffic:
    """Bytes of y = silu(gate)·up (N. Shazeer, arXiv:2002.05202) on `size` elements."""
    return Traffic({"gate": element * size, "up": element * size}, {"y": element * size})


def swiglu_backward(size: int, *, element: int) -> Traffic:
    """Bytes of dgate and dup from dy; silu and its derivative are formed again from the gate."""
    loads = {"gate": element * size, "up": element * size, "dy": element * size}
    return Traffic(loads, {"dgate": element * size, "dup": element * size})
