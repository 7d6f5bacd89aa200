"""Does a placement hold? One sweep over time that knows nothing of the solvers, and so what the tests trust."""

from __future__ import annotations

from collections.abc import Sequence

from peakline.solvers.allocation.greedy import PlacementError
from peakline.solvers.allocation.instance import Instance
from peakline.solvers.allocation.ordered import Ordered

__all__ = ["validate"]


def validate(instance: Instance, offsets: Sequence[int], capacity: int | None = None) -> int:
    """Return the arena in bytes that the placement needs, after checking everything it promises.

    Buffers are born and die in order of time; at each birth the neighbours by address among the living must leave the
    range free. Births find their place by bisection, so that 100,000 buffers take less than a second.

    Raises PlacementError naming the first fault: an offset missing, negative, unaligned or not the fixed one; two
    buffers that overlap in time and space; an arena above `capacity` bytes.
    """
    if len(offsets) != len(instance.buffers):
        raise PlacementError(f"offsets: expected {len(instance.buffers)}, got {len(offsets)}")
    arena = 0
    for name, b, alignment, fixed, offset in zip(
        instance.ids, instance.buffers, instance.alignments, instance.fixed, offsets
    ):
        if offset < 0 or offset % alignment:
            raise PlacementError(
                f"buffer {name!r}: offset must be a multiple of {alignment} and at least 0, got {offset}"
            )
        if fixed is not None and offset != fixed:
            raise PlacementError(f"buffer {name!r}: its offset is fixed at {fixed}, got {offset}")
        arena = max(arena, offset + b.size)
        if capacity is not None and arena > capacity:
            raise PlacementError(f"buffer {name!r}: ends at {arena}, {arena - capacity} bytes above the {capacity}")
    n = len(offsets)
    times = [b.upper for b in instance.buffers] + [b.lower for b in instance.buffers]
    alive = Ordered()  # (offset, buffer), by address
    for event in sorted(range(2 * n), key=times.__getitem__):  # half-open: of equal times the deaths, listed first
        i = event if event < n else event - n
        entry = (offsets[i], i)
        if event < n:
            alive.remove(entry)
            continue
        for near in (alive.below(entry), next(alive.from_(entry), None)):
            if near is not None and (
                near[0] < offsets[i] + instance.buffers[i].size
                and offsets[i] < near[0] + instance.buffers[near[1]].size
            ):
                raise PlacementError(_overlap(instance, offsets, i, near[1]))
        alive.add(entry)
    return arena


def _overlap(instance: Instance, offsets: Sequence[int], i: int, j: int) -> str:
    a, b = instance.buffers[i], instance.buffers[j]
    return (
        f"buffers {instance.ids[i]!r} and {instance.ids[j]!r} overlap: [{offsets[i]}, {offsets[i] + a.size}) and "
        f"[{offsets[j]}, {offsets[j] + b.size}) while both are alive in "
        f"[{max(a.lower, b.lower)}, {min(a.upper, b.upper)})"
    )
