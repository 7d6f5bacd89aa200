"""Constants for GPUs nobody measured: medians of the calibrations at hand, and how well they serve a GPU left out.

What belongs to the board (the sustained clock) or to the host (the launch loop) is not shared.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from peakline.calibration.parameters import PARAMETERS
from peakline.cost.gpu import async_copy, build_of
from peakline.cost.machine import Machine

__all__ = ["NOT_SHARED", "shared_constants"]

NOT_SHARED = ("sustained", "issue")
Fits = Mapping[str, tuple[Machine, Mapping[str, float]]]
"""GPU → (its machine, its fitted constants)."""


def shared_constants(fits: Fits, target: Machine, leave: str | None = None) -> dict[str, float]:
    """Constants for `target` from the calibrations of other GPUs: medians over those most like it.

    Most like it are those of its build (`peakline.cost.gpu.build_of`); where none of them was measured, those with the
    same engines and any L2 (for L2's width those with the same L2 and any engines); else all.

    Args:
        fits: calibrations; those without a constant of a kind take no part in it.
        leave: a GPU that takes no part.
    """
    taking = [fit for gpu, fit in fits.items() if gpu != leave]
    rings = (
        [fit for fit in taking if build_of(fit[0]) == build_of(target)],
        [fit for fit in taking if async_copy(fit[0]) == async_copy(target)],
        taking,
    )
    fed_alike = [fit for fit in taking if (build_of(fit[0]) == "narrow") == (build_of(target) == "narrow")]
    found: dict[str, float] = {}
    for kind, parameters in PARAMETERS.items():
        for name in parameters:
            values: list[float] = []
            for ring in (rings[0], fed_alike, taking) if name == "l2_bytes_per_cycle" else rings:
                values = values or [fitted[f"{kind}.{name}"] for _, fitted in ring if f"{kind}.{name}" in fitted]
            if values and name not in NOT_SHARED:
                found[f"{kind}.{name}"] = float(np.median(values))
    return found
