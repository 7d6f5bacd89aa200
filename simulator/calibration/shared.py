"""Constants for GPUs nobody measured: medians of the calibrations at hand, and how well they serve a GPU left out.

What belongs to the board (the sustained clock) or to the host (the launch loop) is not shared.

    python -m peakline.calibration.shared simulator/cost/gpu_shared.py        # renews the shared constants
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache

import numpy as np

from peakline.calibration.device import uncalibrated
from peakline.calibration.parameters import PARAMETERS
from peakline.cost.gpu import async_copy, build_of
from peakline.cost.machine import Machine
from peakline.files import written_whole
from peakline.hardware import device, devices

__all__ = ["BUILDS", "NOT_SHARED", "calibrations", "shared_constants", "table_of_shared"]

NOT_SHARED = ("sustained", "issue")
BUILDS: Mapping[str, str] = {"hopper": "h100-sxm", "blackwell": "b200", "wide": "a100-80gb", "narrow": "l40s"}
"""A device of each build."""

CHOSEN: Mapping[tuple[str, str], Mapping[str, float]] = {
    ("gemm", "hopper"): {"max_splits": 8.0},
    ("gemm", "blackwell"): {"max_splits": 8.0},
}
"""Counts, which no derivative fits: of 4, 8 and 16 the one with the least error over the GPUs of a build."""

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


@cache
def calibrations() -> Fits:
    """Device → (its machine with shared constants, what its calibration fitted), for the catalogue's CUDA GPUs."""
    found = {}
    for name in devices("gpu"):
        base = device(name)
        if base.calibration is not None and base.calibration.fitted and base.compute_capability is not None:
            found[name] = (uncalibrated(base), base.calibration.fitted)
    return found


def table_of_shared() -> dict[tuple[str, str], dict[str, float]]:
    """(kind, build) → constants: what `peakline.cost.gpu_shared` holds, from the catalogue's calibrations."""
    table: dict[tuple[str, str], dict[str, float]] = {}
    for build, name in BUILDS.items():
        for key, value in shared_constants(calibrations(), uncalibrated(device(name))).items():
            kind, _, constant = key.rpartition(".")
            start = {"launch_cycles": 0.0, **CHOSEN.get((kind, build), {})}
            table.setdefault((kind, build), start)[constant] = float(f"{value:.3g}")
    return table


def _module() -> str:
    """The text of `simulator/cost/gpu_shared.py`."""
    lines = [_HEAD]
    for (kind, build), constants in sorted(table_of_shared().items()):
        lines.append(f'    ("{kind}", "{build}"): {{')
        lines += [f'        "{name}": {value!r},' for name, value in constants.items()]
        lines.append("    },")
    return "\n".join(lines) + _TAIL


_HEAD = '''"""Fitted constants of the GPU model by kind of kernel and build: medians of the catalogue's calibrations.

Made by `python -m peakline.calibration.shared`. What they explain of a GPU that took no part: `docs/calibration.md`.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["SHARED"]

SHARED: Mapping[tuple[str, str], Mapping[str, float]] = {'''

_TAIL = '''
}
"""(kind of kernel, `peakline.cost.gpu.build_of`) → constants that differ from `GpuConstants`."""
'''

if __name__ == "__main__":
    text = _module()
    with written_whole(sys.argv[1]) as temporary:
        temporary.write_text(text, encoding="utf-8")
