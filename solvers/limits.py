"""What solvers refuse to be asked: limits and rates that are none."""

from __future__ import annotations

from math import inf, isfinite

__all__ = ["check_capacity", "check_rate", "check_time_limit"]


def check_time_limit(seconds: float) -> None:
    """Raise ValueError for a time limit that is not above 0, or not finite."""
    if not (isfinite(seconds) and seconds > 0):
        raise ValueError(f"time limit: must be above 0 seconds and finite, got {seconds:g}")


def check_capacity(capacity: int) -> None:
    """Raise ValueError for a memory that holds not even a byte."""
    if capacity < 1:
        raise ValueError(f"capacity: must be at least 1 byte, got {capacity}")


def check_rate(name: str, rate: float | None) -> None:
    """Raise ValueError for a rate that is not above 0 and finite; None says that there is none."""
    if rate is not None and not 0 < rate < inf:
        raise ValueError(f"{name}: must be a rate above 0 per second, got {rate:g}")
