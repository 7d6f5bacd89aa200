"""How far measurements lie from estimates: a program's interval from the residuals of its device's calibration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from peakline.cost.gpu import KINDS
from peakline.cost.program import ProgramCost
from peakline.hardware import Device

__all__ = ["time_interval"]


def time_interval(cost: ProgramCost, device: Device) -> tuple[Any, Any] | None:
    """(low, high) seconds between which a measurement of the program is expected; None for an uncalibrated device.

    Each kind of kernel is stretched by the quantiles of measured/predicted that its calibration left on rows held out:

        low = max(bound, min(tiled, Σ tiled(kind)·low(kind))),   high = max(tiled, Σ tiled(kind)·high(kind)).

    Kernels of one kind are taken to err together, because a library's habits repeat from layer to layer: a program of
    many different ones lies nearer to the middle. A kind that was not calibrated gets the widest of the device's.
    """
    calibration = device.calibration
    if calibration is None or not cost.by_kind:
        return None
    known: Mapping[str, tuple[float, float]] = {
        kind: found for kind in KINDS if (found := calibration.interval(kind)) is not None
    }
    if not known:
        return None
    widest = (min(low for low, _ in known.values()), max(high for _, high in known.values()))
    low: Any = 0.0
    high: Any = 0.0
    for kind, seconds in cost.by_kind.items():
        below, above = known.get(kind, widest)
        low, high = low + seconds * below, high + seconds * above
    low, high = np.maximum(cost.bound, np.minimum(cost.tiled, low)), np.maximum(cost.tiled, high)
    return (low, high) if np.ndim(cost.tiled) else (float(low), float(high))
