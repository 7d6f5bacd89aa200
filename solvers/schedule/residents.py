"""The scratchpad while the steps of an order are taken one after the other: who is where, and what leaving costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from peakline.solvers.dag import Dag
from peakline.solvers.schedule.episodes import uses

__all__ = ["Residents"]


class Residents:
    """Offsets of what is resident, gaps dropped so far, and offsets of all episodes begun.

    Attributes:
        steps: those at which each tensor is touched.
        used: how many of them have passed.
        at: offset in bytes of each resident.
        dropped: (tensor, k) for each tensor that leaves between its uses k and k + 1.
        offsets: by tensor and first step of the episode.
    """

    def __init__(self, dag: Dag, order: Sequence[int], dropped: Iterable[tuple[int, int]] = ()) -> None:
        self.dag = dag
        self.steps = uses(dag, order)
        self.used = [0] * len(dag.size)
        self.at: dict[int, int] = {}
        self.dropped = set(dropped)
        self.offsets: dict[tuple[int, int], int] = {}

    def place(self, a: int, step: int, offset: int) -> None:
        """An episode begins."""
        self.at[a] = self.offsets[a, step] = offset

    def price(self, a: int) -> int:
        """Bytes that dropping `a` adds: the reload, and a store if it is an activation never dropped before."""
        stored = any((a, k) in self.dropped for k in range(self.used[a]))
        return self.dag.size[a] * (2 if self.dag.dear >> a & 1 and not stored else 1)

    def drop(self, a: int) -> None:
        """A resident leaves until its next use."""
        self.dropped.add((a, self.used[a] - 1))
        del self.at[a]

    def side_by_side(self, step: int, touched: Iterable[int]) -> None:
        """All residents leave; what the step uses comes back packed from address 0."""
        for a in [a for a in self.at if (a, step) not in self.offsets]:
            self.drop(a)
        bottom = 0
        for a in sorted(touched):
            self.place(a, step, bottom)
            bottom += self.dag.size[a]

    def pass_step(self, touched: Iterable[int]) -> None:
        """The operator has run: what nobody uses again is gone, and what is dropped now."""
        for a in touched:
            self.used[a] += 1
            if self.used[a] == len(self.steps[a]) or (a, self.used[a] - 1) in self.dropped:
                del self.at[a]
