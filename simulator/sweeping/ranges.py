"""Ranges of an axis: steps, doublings and logarithmic spacing, written as a mapping."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["from_mapping"]

_KEYS = ("from", "to", "step", "count", "scale")


def from_mapping(name: str, given: Mapping[str, Any]) -> list[Any]:
    """Values of `{"from": 1, "to": 64, "step": 1}`, or with `count` values, evenly or on a `log` scale.

    Both ends are included. Without `step` and `count` every whole number is meant. Logarithmic values are rounded to
    whole numbers where both ends are whole, and equal ones kept once.

    Raises:
        ValueError: naming the axis and the key at fault.
    """
    strange = [key for key in given if key not in _KEYS]
    if strange or "from" not in given or "to" not in given:
        what = f"{strange[0]!r} is unknown" if strange else "'from' and 'to' are needed"
        raise ValueError(f"{name}: a range is written with {', '.join(_KEYS)}; {what}")
    first, last, scale = given["from"], given["to"], given.get("scale", "linear")
    for key in ("from", "to", "step", "count"):
        if key in given and (not isinstance(given[key], int | float) or isinstance(given[key], bool)):
            raise ValueError(f"{name}: {key}: {given[key]!r} is not a number")
    if scale not in ("linear", "log"):
        raise ValueError(f"{name}: scale: {scale!r} is not 'linear' or 'log'")
    if last < first:
        raise ValueError(f"{name}: the axis is empty; its range ends at {last}, before {first}")
    whole = isinstance(first, int) and isinstance(last, int)
    if "count" in given:
        if "step" in given or int(given["count"]) < 1 or (scale == "log" and first <= 0):
            raise ValueError(f"{name}: a range has a count of at least 1 or a step, and starts above 0 on a log scale")
        space = np.geomspace if scale == "log" else np.linspace
        values = space(first, last, int(given["count"]))
        return [int(v) for v in np.unique(np.rint(values))] if whole else [float(v) for v in values]
    step = given.get("step", 2 if scale == "log" else 1)
    if scale == "log":
        if step <= 1 or first <= 0:
            raise ValueError(f"{name}: on a log scale the step is a factor above 1, and the range starts above 0")
        values_: list[Any] = [first]
        while values_[-1] * step <= last:
            values_.append(values_[-1] * step)
        return values_
    if step <= 0:
        raise ValueError(f"{name}: step: {step!r} must be above 0")
    values = np.arange(first, last + (1 if whole and isinstance(step, int) else step * 1e-9), step)
    return [v.item() for v in values]
