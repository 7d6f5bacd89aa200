"""One arithmetic for one size and for a million.

Cost formulas are written once over `Real` values. With Python numbers they run on plain floats (a kernel is priced in
microseconds); with arrays on NumPy float64. Both use IEEE double arithmetic, `ceil`, `floor`, `sqrt`, minimum and
maximum only, all of them exactly rounded, so an array result equals the scalar results element for element.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["ARRAY", "SCALAR", "Ops", "Real", "as_real", "ops_for"]

Real: TypeAlias = float | NDArray[np.float64]
"""Seconds, bytes or counts as a float, or a float64 array of them."""


@dataclass(frozen=True, slots=True)
class Ops:
    """The few functions in which floats and arrays differ."""

    ceil: Callable[[Any], Real]
    floor: Callable[[Any], Real]
    sqrt: Callable[[Any], Real]
    maximum: Callable[[Any, Any], Real]
    minimum: Callable[[Any, Any], Real]
    where: Callable[[Any, Any, Any], Real]
    any: Callable[[Any], bool]
    total: Callable[[Any], float]


def _scalar_max(a: float, b: float) -> float:
    return a if a >= b else b


def _scalar_min(a: float, b: float) -> float:
    return a if a <= b else b


def _choose(condition: bool, yes: float, no: float) -> float:
    return yes if condition else no


SCALAR = Ops(math.ceil, math.floor, math.sqrt, _scalar_max, _scalar_min, _choose, bool, float)
ARRAY = Ops(np.ceil, np.floor, np.sqrt, np.maximum, np.minimum, np.where, np.any, np.sum)


def ops_for(*values: Any) -> Ops:
    """`ARRAY` if any of the values is an array, else `SCALAR`."""
    for value in values:
        if isinstance(value, np.ndarray):
            return ARRAY
    return SCALAR


def as_real(value: Any) -> Real:
    """A size, byte count or FLOP count as float64: exact below 2**53, correctly rounded beyond."""
    return np.asarray(value, dtype=np.float64) if isinstance(value, np.ndarray) else float(value)
