"""The scratchpad while the steps of an order are taken one after the other: who is where, and what leaving costs.

An arrival takes the smallest hole that holds it, or the window whose idle residents cost least to drop; if every window
meets a tensor in use, all residents leave and what is in use comes back side by side. So there are addresses whenever
the capacity holds what each step uses.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from peakline.solvers.dag import Dag
from peakline.solvers.schedule.runs import events

__all__ = ["Residents"]

_NO_ADVICE: Mapping[tuple[int, int], int] = {}


class Residents:
    """Offsets of what is resident, gaps dropped so far, and offsets of all episodes begun.

    Attributes:
        events: (step, whether it is made there) of each tensor wherever an operator touches it.
        used: how many of them have passed.
        at: offset in bytes of each resident.
        dropped: (tensor, k) for each tensor that leaves between its events k and k + 1.
        offsets: by tensor and first step of the episode.
    """

    def __init__(self, dag: Dag, order: Sequence[int], capacity: int, dropped: Iterable[tuple[int, int]] = ()) -> None:
        self.dag, self.capacity = dag, capacity
        self.events = events(dag, order)
        self.used = [0] * len(dag.size)
        self.at: dict[int, int] = {}
        self.dropped = set(dropped)
        self.offsets: dict[tuple[int, int], int] = {}

    # -- one step -----------------------------------------------------------------------------------------------------

    def admit(self, step: int, needed: Sequence[int], advice: Mapping[tuple[int, int], int] = _NO_ADVICE) -> None:
        """All that the step needs becomes resident, the largest first; `advice`: offsets by tensor and step."""
        arriving = sorted((a for a in needed if a not in self.at), key=lambda a: -self.dag.size[a])
        if not all(self.arrive(a, step, needed, advice.get((a, step))) for a in arriving):
            self.side_by_side(step, needed)

    def pass_step(self, touched: Iterable[int]) -> None:
        """The operator has run: what nobody uses again is gone, and what is dropped now."""
        for a in touched:
            self.used[a] += 1
            if self.used[a] == len(self.events[a]) or (a, self.used[a] - 1) in self.dropped:
                self.at.pop(a, None)  # not there: bypassed, or overwritten

    # -- one tensor ---------------------------------------------------------------------------------------------------

    def place(self, a: int, step: int, offset: int) -> None:
        """An episode begins."""
        self.at[a] = self.offsets[a, step] = offset

    def price(self, a: int) -> int:
        """Bytes that dropping `a` adds: the reload, and a store if it is an activation never dropped before.

        What is made anew after a drop needed no store.
        """
        seen = self.events[a]
        stored = any((a, k) in self.dropped and not seen[k + 1][1] for k in range(self.used[a]))
        return self.dag.size[a] * (2 if self.dag.dear >> a & 1 and not stored else 1)

    def drop(self, a: int) -> None:
        """A resident leaves until its next use."""
        self.dropped.add((a, self.used[a] - 1))
        del self.at[a]

    def arrive(self, a: int, step: int, needed: Collection[int], advised: int | None = None) -> bool:
        """Place one tensor, dropping idle residents if need be; False if tensors in use lie in every window.

        It goes where it is advised to if nothing lies there, or if nowhere costs less.
        """
        size = self.dag.size
        edges = {0, *(low + size[b] for b, low in self.at.items())}
        edges |= {self.capacity - size[a], *(low - size[a] for low in self.at.values())}
        if advised is not None:
            if not self._inside(advised, size[a]):
                self.place(a, step, advised)
                return True
            edges.add(advised)
        best: tuple[int, bool, int, int, list[int]] | None = None
        for low in edges:
            if low < 0 or low + size[a] > self.capacity:
                continue
            inside = self._inside(low, size[a])
            if any(b in needed for b in inside):
                continue
            key = (sum(map(self.price, inside)), low != advised, self._hole(low, inside), low, inside)
            best = min(best or key, key)
        if best is None:
            return False
        *_, low, leaving = best
        for b in leaving:
            self.drop(b)
        self.place(a, step, low)
        return True

    def side_by_side(self, step: int, needed: Iterable[int]) -> None:
        """All residents leave; what the step needs comes back packed from address 0."""
        for a in [a for a in self.at if (a, step) not in self.offsets]:
            self.drop(a)
        bottom = 0
        for a in needed:
            self.place(a, step, bottom)
            bottom += self.dag.size[a]

    def _inside(self, low: int, size: int) -> list[int]:
        """Residents with bytes in a window."""
        return [b for b, other in self.at.items() if other < low + size and low < other + self.dag.size[b]]

    def _hole(self, low: int, leaving: Collection[int]) -> int:
        """Free bytes around an address once some residents have left."""
        stay = [(other, other + self.dag.size[b]) for b, other in self.at.items() if b not in leaving]
        above = min((bottom for bottom, top in stay if top > low), default=self.capacity)
        return above - max((top for _, top in stay if top <= low), default=0)
