"""Heuristics that place buffers with known lifetimes in one arena, with a lower bound and an independent check.

The problem is dynamic storage allocation: buffers are rectangles of fixed width (their lifetime) and height (their
size) that slide up and down and must not overlap; the arena's size is the highest top. It is NP-hard (Garey and
Johnson 1979, SR2); the rules here run in O(n²).
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

__all__ = ["Buffer", "Placement", "PlacementError", "best_fit", "check", "greedy_by_size", "liveness_bound"]


class PlacementError(ValueError):
    """A placement that is not valid, or a buffer that cannot be placed; says which and why."""


@dataclass(frozen=True, slots=True)
class Buffer:
    """`size` bytes needed from time `lower` up to, but not at, time `upper` (any integer clock)."""

    lower: int
    upper: int
    size: int


@dataclass(frozen=True)
class Placement:
    """Offset of each buffer in the order given, and the arena they need, in bytes."""

    offsets: tuple[int, ...]
    arena: int


def greedy_by_size(buffers: Sequence[Buffer], alignment: int = 1) -> Placement:
    """Largest buffer first, each at the lowest offset where it fits.

    This is the rule of TensorFlow Lite Micro, offset by offset
    (`tensorflow/lite/micro/memory_planner/greedy_memory_planner.cc`, `CalculateOffsetsIfNeeded`): of equally large
    buffers the one given last goes first, and sizes count rounded up to the alignment, which is 16 bytes there
    (`MicroArenaBufferAlignment`). A TFLM lifetime ends with its last use: `upper` is that plus one.

    Raises PlacementError for an empty lifetime, a negative size or an alignment below 1.
    """
    order = sorted(range(len(buffers)), key=lambda i: (-_up(buffers[i].size, alignment), -i))
    return _place(buffers, order, alignment, _lowest)


def best_fit(
    buffers: Sequence[Buffer], alignment: int = 1, order: Literal["size", "start", "area"] = "size"
) -> Placement:
    """Each buffer in the smallest gap that holds it (`SimpleMemoryArena::Allocate` of TensorFlow Lite).

    `order` says which goes first: the largest ("size"; ties: the earliest), the earliest ("start"; ties: the
    largest; what an allocator sees at run time), or the largest product of size and lifetime ("area").

    Raises PlacementError as `greedy_by_size`, and for an unknown order.
    """
    keys: dict[str, Callable[[int], tuple[int, ...]]] = {
        "size": lambda i: (-buffers[i].size, buffers[i].lower, i),
        "start": lambda i: (buffers[i].lower, -buffers[i].size, i),
        "area": lambda i: (-buffers[i].size * (buffers[i].upper - buffers[i].lower), i),
    }
    if order not in keys:
        raise PlacementError(f"order: must be one of {', '.join(keys)}, got {order!r}")
    return _place(buffers, sorted(range(len(buffers)), key=keys[order]), alignment, _smallest)


def liveness_bound(buffers: Sequence[Buffer]) -> int:
    """Most bytes alive at once: no arena can be smaller, whatever the alignment."""
    changes = sorted([(b.lower, b.size) for b in buffers] + [(b.upper, -b.size) for b in buffers])
    most = alive = 0
    for _, change in changes:  # at equal times the ends sort first: lifetimes are half-open
        alive += change
        most = max(most, alive)
    return most


def check(buffers: Sequence[Buffer], offsets: Sequence[int], alignment: int = 1, capacity: int | None = None) -> int:
    """Verify a placement by looking at every pair of buffers; returns the arena's size in bytes.

    It shares nothing with the heuristics. Raises PlacementError naming the first fault: a missing, negative or
    unaligned offset, two buffers that overlap in time and space, or an arena above `capacity`.
    """
    if len(offsets) != len(buffers):
        raise PlacementError(f"offsets: expected {len(buffers)}, got {len(offsets)}")
    low = np.array([b.lower for b in buffers], dtype=np.int64)
    high = np.array([b.upper for b in buffers], dtype=np.int64)
    bottom = np.array(offsets, dtype=np.int64)
    top = bottom + np.array([b.size for b in buffers], dtype=np.int64)
    for i, offset in enumerate(offsets):
        if offset < 0 or offset % alignment:
            raise PlacementError(f"buffer {i}: offset must be a multiple of {alignment} and at least 0, got {offset}")
        together = (low < high[i]) & (high > low[i]) & (bottom < top[i]) & (top > bottom[i])
        together[: i + 1] = False
        if together.any():
            j = int(np.argmax(together))
            raise PlacementError(
                f"buffers {i} and {j} overlap: [{bottom[i]}, {top[i]}) and [{bottom[j]}, {top[j]}) "
                f"while both are alive in [{max(low[i], low[j])}, {min(high[i], high[j])})"
            )
    arena = int(top.max()) if len(buffers) else 0
    if capacity is not None and arena > capacity:
        raise PlacementError(f"the arena needs {arena} bytes, {arena - capacity} more than the {capacity} there are")
    return arena


_Gap = tuple[int, int | None]  # offset and bytes; None: unlimited, above everything alive


def _lowest(gaps: list[_Gap]) -> int:
    return gaps[0][0]


def _smallest(gaps: list[_Gap]) -> int:
    closed = [(size, offset) for offset, size in gaps if size is not None]
    return min(closed)[1] if closed else gaps[-1][0]


def _place(
    buffers: Sequence[Buffer], order: Sequence[int], alignment: int, choose: Callable[[list[_Gap]], int]
) -> Placement:
    """Place the buffers one by one in the gap that `choose` picks among those large enough, lowest first."""
    if alignment < 1:
        raise PlacementError(f"alignment: must be at least 1, got {alignment}")
    for i, buffer in enumerate(buffers):
        if buffer.size < 0 or buffer.lower >= buffer.upper:
            raise PlacementError(f"buffer {i}: needs size ≥ 0 and lower < upper, got {buffer}")
    offsets = [0] * len(buffers)
    placed: list[tuple[int, int, int, int]] = []  # (bottom, top, lower, upper), by bottom
    for i in order:
        wanted, lower, upper = _up(buffers[i].size, alignment), buffers[i].lower, buffers[i].upper
        gaps: list[_Gap] = []
        reached = 0
        for bottom, top, since, until in placed:
            if since < upper and lower < until:
                if bottom - reached >= wanted:
                    gaps.append((reached, bottom - reached))
                reached = max(reached, top)
        gaps.append((reached, None))
        offsets[i] = choose(gaps)
        insort(placed, (offsets[i], offsets[i] + wanted, lower, upper))
    arena = max((offset + buffer.size for offset, buffer in zip(offsets, buffers)), default=0)
    return Placement(tuple(offsets), arena)


def _up(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment
