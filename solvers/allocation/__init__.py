"""Placing buffers with lifetimes in one arena, in plain numbers."""

from peakline.solvers.allocation.greedy import (
    Buffer,
    Placement,
    PlacementError,
    best_fit,
    check,
    greedy_by_size,
    liveness_bound,
)

__all__ = ["Buffer", "Placement", "PlacementError", "best_fit", "check", "greedy_by_size", "liveness_bound"]
