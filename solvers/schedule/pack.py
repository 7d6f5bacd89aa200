"""Addresses for the episodes of a schedule: traffic first, packing second.

A reloaded tensor may come back elsewhere, so every episode is a rectangle of its own, and residents never exceed the
capacity; what remains is dynamic storage allocation within it. Where no placement is found, `rolling.py` takes the
steps one after the other and drops a little more where the free bytes do not lie together.
"""

from __future__ import annotations

from peakline.solvers.allocation import Instance, allocate
from peakline.solvers.allocation.portfolio import Method
from peakline.solvers.dag import Dag
from peakline.solvers.schedule.episodes import Schedule, episodes

__all__ = ["pack"]

_FEW = 600  # episodes that are always searched
_LOOK = 2e-6  # seconds that a node of the search spends on each episode: measured 0.4e-6 to 4e-6


def pack(
    dag: Dag, schedule: Schedule, capacity: int | None, *, time_limit: float, seed: int = 0
) -> tuple[tuple[int, ...], int] | None:
    """Offsets of the schedule's episodes in the order of `episodes`, and the arena they need, in bytes.

    Within `capacity`, or None if no such placement was found in time; without a capacity in the smallest arena found.
    A keyboard interrupt is passed on unless there is a placement.
    """
    boxes = episodes(dag, schedule)
    instance = Instance.of([(box.first, box.last + 1, dag.size[box.tensor]) for box in boxes])
    descent = _LOOK * len(boxes) ** 2
    method: Method = "auto" if len(boxes) <= _FEW or descent <= time_limit else "heuristics"
    found = allocate(instance, capacity, time_limit=max(time_limit, 0.1), seed=seed, method=method)
    if found.offsets is None or found.peak is None:
        if found.interrupted:
            raise KeyboardInterrupt
        return None
    return found.offsets, found.peak
