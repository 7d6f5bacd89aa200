"""Temporaries that CPU kernels allocate inside one dispatched operator: rules from ATen's sources."""

from __future__ import annotations

from peakline.models.capture.calls import Call
from peakline.models.capture.target import Target

__all__ = ["workspaces"]


def workspaces(call: Call, target: Target) -> tuple[int, ...]:
    """Bytes of the blocks that the CPU kernel of `call` allocates and frees inside it."""
    return ()
