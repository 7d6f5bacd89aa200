"""Sets of tensors that make room, none of them superfluous: what the exact searches over moves branch on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import combinations
from math import inf

from peakline.solvers.dag import Dag, bits

__all__ = ["minimal_sets"]

_CHECK_CLOCK = 4096


def minimal_sets(dag: Dag, idle: int, excess: int, deadline: float = inf) -> Iterator[int]:
    """Sets of idle tensors of at least `excess` bytes, none of which is superfluous, as masks; the smallest sets first.

    Raises TimeoutError past the deadline (of `time.perf_counter`): of many tensors there are too many sets.
    """
    if excess <= 0:
        yield 0
        return
    size, members = dag.size, list(bits(idle))
    looked = 0
    for count in range(1, len(members) + 1):
        for chosen in combinations(members, count):
            looked += 1
            if looked % _CHECK_CLOCK == 0 and time.perf_counter() > deadline:
                raise TimeoutError
            total = sum(size[a] for a in chosen)
            if total >= excess and total - min(size[a] for a in chosen) < excess:
                yield sum(1 << a for a in chosen)
