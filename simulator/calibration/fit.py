"""Robust least squares on the logarithm of the error, between bounds.

    minimise  Σ w·(√(r² + ε²) − ε) + λ·n·Σ (x − x₀)²,      r = ln predicted − ln measured,   x = ln parameters

Absolute errors beyond ε count linearly, so that a library's mistakes and a table's outliers do not bend the fit (P. J.
Huber, "Robust Statistics", 1981; the smooth form is Charbonnier's). The weak pull λ towards the start decides only what
the rows leave open. Each step solves the reweighted normal equations with Marquardt's damping (D. W. Marquardt, J. SIAM
11, 1963) and is cut off at the bounds.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = ["robust_fit"]

Vector = NDArray[np.float64]

EPSILON = 0.04
"""Errors below about this count quadratically: the spread between two runs of one kernel."""
PULL = 0.001
STEP = 0.02
"""Width of the finite differences in ln x: wider than the jumps of ceilings."""


def robust_fit(
    log_model: Callable[[Vector], Vector],
    log_measured: Vector,
    start: Vector,
    low: Vector,
    high: Vector,
    *,
    iterations: int = 60,
    pull: float = PULL,
) -> Vector:
    """The x between `low` and `high` that minimises the robust cost of log_model(x) − log_measured.

    Args:
        log_model: ln of the predictions at x (itself ln of the parameters).
        start: where to begin, and what the pull pulls to; clipped to the bounds.
        iterations: most steps.
    """
    x = np.clip(start, low, high)
    origin = x.copy()
    weight = pull * len(log_measured)
    residual = log_model(x) - log_measured
    cost = _cost(residual) + weight * _square(x - origin)
    damping = 1e-2
    for _ in range(iterations):
        slopes = _slopes(log_model, x)
        w = 1.0 / np.sqrt(residual**2 + EPSILON**2)
        normal = slopes.T @ (w[:, None] * slopes) + 2.0 * weight * np.eye(len(x))
        gradient = slopes.T @ (w * residual) + 2.0 * weight * (x - origin)
        for _ in range(10):
            step = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), -gradient)
            trial = np.clip(x + step, low, high)
            left = log_model(trial) - log_measured
            found = _cost(left) + weight * _square(trial - origin)
            if found < cost:
                break
            damping *= 4.0
        else:
            break
        settled = cost - found < 1e-6 * cost
        x, residual, cost, damping = trial, left, found, max(damping / 5.0, 1e-4)
        if settled:
            break
    return x


def _cost(residual: Vector) -> float:
    return float(np.sum(np.sqrt(residual**2 + EPSILON**2) - EPSILON))


def _square(x: Vector) -> float:
    return float(np.sum(x**2))


def _slopes(log_model: Callable[[Vector], Vector], x: Vector) -> Vector:
    """∂ ln predicted / ∂x by central differences, a column per parameter."""
    columns = [(log_model(x + STEP * e) - log_model(x - STEP * e)) / (2.0 * STEP) for e in np.eye(len(x))]
    return np.stack(columns, axis=1)
