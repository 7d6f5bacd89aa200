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
from peakline.solvers.allocation.instance import Instance, InstanceError, read_csv, write_csv
from peakline.solvers.allocation.portfolio import Allocation, Progress, allocate
from peakline.solvers.allocation.validator import validate

__all__ = [
    "Allocation",
    "Buffer",
    "Instance",
    "InstanceError",
    "Placement",
    "PlacementError",
    "Progress",
    "allocate",
    "best_fit",
    "check",
    "greedy_by_size",
    "liveness_bound",
    "read_csv",
    "validate",
    "write_csv",
]
