"""Measured kernels beside three predictions each: as calibrated, with shared constants, and with this GPU left out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from peakline.calibration.device import calibrated, held_out, uncalibrated
from peakline.calibration.shared import calibrations, shared_constants
from peakline.cost.accuracy import tidy
from peakline.cost.machine import Machine
from peakline.cost.samples import Sample, device_of

__all__ = ["KERNEL_COLUMNS", "kernel_table", "left_out", "strata"]

KERNEL_COLUMNS = (
    "source", "kind", "gpu", "dtype", "size", "bound_by", "limited_by", "measured", "predicted", "error",
    "uncalibrated", "left_out", "low", "high", "held_out", "bound", "shape", "table",
)  # fmt: skip


def left_out(base: Any) -> Machine:
    """A GPU's machine with the constants that the other GPUs' calibrations give it, its own taking no part."""
    target = uncalibrated(base)
    return calibrated(target, shared_constants(calibrations(), target, leave=base.name))


def kernel_table(samples: Iterable[Sample]) -> pd.DataFrame:
    """One row per measurement:

    source, kind, gpu, dtype, size, bound_by, limited_by; measured, predicted (seconds) and error; the errors
    `uncalibrated` (shared constants) and `left_out` (shared constants without this GPU); low and high (seconds,
    the calibration's interval; NaN without one); held_out (the row took no part in a calibration); bound (the
    datasheet's roofline), shape and table in words.
    """
    parts = []
    for sample in samples:
        base = device_of(sample.gpu)
        rows = tidy(sample, base)
        rows["uncalibrated"] = sample.predicted(uncalibrated(base)) / sample.measured - 1.0
        rows["left_out"] = sample.predicted(left_out(base)) / sample.measured - 1.0
        interval = base.calibration.interval(sample.kind) if base.calibration is not None else None
        low, high = interval or (np.nan, np.nan)
        rows["low"] = np.maximum(rows["predicted"] * low, 0.0)
        rows["high"] = np.maximum(rows["predicted"] * high, rows["predicted"])
        rows["held_out"] = held_out(sample)
        rows["table"] = sample.table
        parts.append(rows[list(KERNEL_COLUMNS)])
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(KERNEL_COLUMNS))


def strata(table: pd.DataFrame, by: list[str] | None = None) -> pd.DataFrame:
    """Errors by stratum: the median of |error| as predicted (on rows held out of calibrations where there are any), its
    90 % quantile, the signed median, the same median uncalibrated and with the GPU left out, the roofline's, and the
    share of rows within the calibration's interval."""
    by = by or ["source", "gpu", "dtype"]
    rows = []
    for key, group in table.groupby(by, sort=False):
        judged = group[group["held_out"]] if group["low"].notna().any() and group["held_out"].any() else group
        inside = judged["measured"].between(judged["low"], judged["high"])
        rows.append(
            {
                **dict(zip(by, key, strict=True)),
                "rows": len(group),
                "calibrated": judged["error"].abs().median() if group["low"].notna().any() else np.nan,
                "p90": judged["error"].abs().quantile(0.9),
                "signed": judged["error"].median(),
                "uncalibrated": group["uncalibrated"].abs().median(),
                "left out": group["left_out"].abs().median(),
                "roofline": (group["bound"] / group["measured"] - 1.0).abs().median(),
                "within": inside.mean() if group["low"].notna().any() else np.nan,
            }
        )
    return pd.DataFrame(rows)
