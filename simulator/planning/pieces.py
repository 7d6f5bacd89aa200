"""Where the forward pass is cut into pieces that are executed again together, where it does not repeat by itself.

A piece starts from what crosses its border: the fewer bytes that are, the less must be kept to execute it again. In a
network of residual blocks that is the end of a block, where one tensor carries everything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from peakline.memory.lifetimes import Program

__all__ = ["borders"]


def borders(
    program: Program, touches: Mapping[int, Sequence[int]], makers: Mapping[int, Sequence[int]], span: tuple[int, int],
    turn: int, length: int, most: int,
) -> list[int]:  # fmt: skip
    """First steps of the pieces of a stretch of the forward pass.

    Least Σ crossing bytes / their mean + Σ |steps of a piece − length| / length, pieces of length / 2 to `most` steps,
    by dynamic programming over the borders. What is written on both sides of a border forbids it: executed again, the
    second side would write over what is there already.

    Args:
        touches: steps that touch each storage, in order.
        makers: forward steps that write each storage.
        span: first step of the stretch, and the one after its last.
        turn: number of steps of the forward pass.
        length, most: steps of a piece that are aimed at, and allowed.
    """
    low, high = span
    crossing = _crossing(program, touches, makers, span, turn)
    mean = float(np.mean(crossing[np.isfinite(crossing)])) or 1.0
    best = np.full(high - low + 1, np.inf)
    best[0] = 0.0
    before = np.zeros(high - low + 1, dtype=np.int64)
    least = max(length // 2, 1)
    for end in range(1, high - low + 1):
        start = np.arange(max(end - most, 0), max(end - least + 1, 0))
        if end == high - low and not len(start):
            start = np.arange(0, 1)
        if len(start):
            cost = best[start] + np.abs(end - start - length) / length
            chosen = int(np.argmin(cost))
            best[end] = cost[chosen] + (crossing[end] / mean if end < high - low else 0.0)
            before[end] = start[chosen]
    if not np.isfinite(best[-1]):
        return [low]
    found, end = [], high - low
    while end > 0:
        end = int(before[end])
        found.append(low + end)
    return found[::-1]


def _crossing(
    program: Program, touches: Mapping[int, Sequence[int]], makers: Mapping[int, Sequence[int]], span: tuple[int, int],
    turn: int,
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:  # fmt: skip
    """Bytes made before each step of the stretch and read by it or later in the forward pass; infinite: no border."""
    low, high = span
    change = np.zeros(turn + 2)
    forbidden = np.zeros(turn + 2)
    for key, birth in enumerate(program.births):
        if 0 <= birth < turn:
            last = max(i for i in touches[key] if i < turn)
            change[birth + 1] += int(program.sizes[key])
            change[last + 1] -= int(program.sizes[key])
            written = max(makers.get(key, (birth,)))
            forbidden[birth + 1] += 1
            forbidden[written + 1] -= 1
    crossing = np.cumsum(change)[low : high + 1]
    crossing[np.cumsum(forbidden)[low : high + 1] > 0] = np.inf
    return crossing
