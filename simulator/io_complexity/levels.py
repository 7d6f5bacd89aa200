"""The boundaries of a device's memory hierarchy: how much fast memory stands in front of each level."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peakline.cost.evaluate import CLUSTER
from peakline.cost.machine import Machine, machine

__all__ = ["Boundary", "boundaries"]


@dataclass(frozen=True)
class Boundary:
    """What moves across it comes out of `level` into one of `copies` fast memories of `capacity` bytes each.

    `bandwidth` is the level's in bytes/s, None where unpublished.
    """

    level: str
    capacity: float
    copies: int = 1
    bandwidth: float | None = None


def boundaries(device: Any) -> tuple[Boundary, ...]:
    """The boundaries of a device, nearest to the arithmetic first; levels of unknown size are left out.

    In front of a private level stands what is nearer in one unit; in front of the first shared one the private memory
    of a unit, or of the units that can share one fetch (thread block clusters, from compute capability 9.0); in
    front of the others everything nearer, taken as one memory.

    Raises ValueError for a device that does not compute.
    """
    found: Machine = machine(device)
    result = []
    for i, level in enumerate(found.levels[1:], 1):
        nearer = found.levels[:i]
        total = sum(x.capacity or 0.0 for x in nearer)
        copies = 1
        if level.private:
            copies = found.units
        elif all(x.private for x in nearer) and level is not found.main:
            copies = max(found.units // (CLUSTER if found.capability[0] >= 9 else 1), 1)
        if total:
            result.append(Boundary(level.name, total / copies, copies, level.bandwidth))
    if found.kind == "mcu" and not result and found.main.capacity:
        result.append(Boundary("flash", found.main.capacity))
    return tuple(result)
