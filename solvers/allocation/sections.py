"""Sections of time: the maximal sets of buffers alive together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from peakline.solvers.allocation.greedy import Buffer

__all__ = ["Sections"]


@dataclass(frozen=True)
class Sections:
    """Maximal cliques of the interval graph, in order of time.

    Two buffers share an address range legally if and only if they share no section, and the sections of one buffer
    are consecutive (Fulkerson and Gross, "Incidence matrices and interval graphs", 1965): time enters the search only
    through them. There are at most as many as buffers.

    Attributes:
        members: the buffers of each section, ascending.
        first, last: buffer b lives in sections first[b], …, last[b] − 1.
        neighbours: the buffers that share a section with b, ascending, without b.
    """

    members: tuple[tuple[int, ...], ...]
    first: tuple[int, ...]
    last: tuple[int, ...]
    neighbours: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, buffers: Sequence[Buffer]) -> Self:
        """Sweep over time: a section ends where a buffer dies after another was born. O(n · overlap) in all."""
        events = sorted(
            [(b.upper, 0, i) for i, b in enumerate(buffers)] + [(b.lower, 1, i) for i, b in enumerate(buffers)]
        )
        alive: set[int] = set()
        members: list[tuple[int, ...]] = []
        first, last = [0] * len(buffers), [0] * len(buffers)
        neighbours: list[set[int]] = [set() for _ in buffers]
        grew = False
        for _, born, i in events:
            if born:
                first[i] = len(members)
                for j in alive:
                    neighbours[j].add(i)
                neighbours[i] = set(alive)
                alive.add(i)
            else:
                if grew:
                    members.append(tuple(sorted(alive)))
                alive.remove(i)
                last[i] = len(members)
            grew = bool(born)
        return cls(tuple(members), tuple(first), tuple(last), tuple(tuple(sorted(near)) for near in neighbours))
