"""A cache simulated access by access, under LRU and under Belady's optimal replacement. Knows nothing of formulas."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

Use = tuple[Sequence[str], Sequence[str]]
"""One step of a program: tiles it reads, tiles it works on in place. All must be in the cache together."""


def cache_traffic(
    steps: Sequence[Use],
    sizes: Mapping[str, int],
    capacity: int,
    policy: Literal["lru", "belady"],
    vanishing: Collection[str] = (),
) -> tuple[int, int]:
    """(bytes loaded, bytes stored) by a cache of `capacity` bytes that sees the steps in order.

    A tile worked on starts as zeros the first time, costs nothing to make, and must be written once it leaves; if it
    comes back it is loaded. `lru` evicts the tile longest unused, `belady` the one whose next use is farthest, which
    is optimal for tiles of one size (L. A. Belady, IBM Systems Journal 5 (1966)). A tile named in `vanishing` need not
    be written after its last use.
    """
    uses: dict[str, list[int]] = {}
    for time, (reads, works) in enumerate(steps):
        for tile in (*reads, *works):
            uses.setdefault(tile, []).append(time)
    last: dict[str, int] = {}  # tiles in the cache, and when they were used
    dirty: set[str] = set()
    known: set[str] = set()  # tiles that exist in memory
    loaded = stored = 0
    for time, (reads, works) in enumerate(steps):
        needed = (*reads, *works)
        missing = [tile for tile in needed if tile not in last]
        while sum(sizes[tile] for tile in last) + sum(sizes[tile] for tile in missing) > capacity:
            idle = [tile for tile in last if tile not in needed]
            assert idle, "one step alone does not fit"
            if policy == "lru":
                victim = min(idle, key=lambda tile: last[tile])
            else:
                victim = max(idle, key=lambda tile: next((t for t in uses[tile] if t > time), len(steps)))
            if victim in dirty:
                stored += 0 if victim in vanishing and uses[victim][-1] <= time else sizes[victim]
                dirty.discard(victim)
                known.add(victim)
            del last[victim]
        for tile in missing:
            if tile in reads or tile in known:
                loaded += sizes[tile]
        for tile in needed:
            last[tile] = time
        dirty.update(works)
    return loaded, stored + sum(sizes[tile] for tile in dirty if tile not in vanishing)
