"""The moments at which memory must be enough: every step, and every step of a second execution.

All of them are counted first; what happens to items is told in their numbers. Then neighbours between which nothing
becomes idle and nothing is used again are one, the fullest.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from peakline.memory.lifetimes import Program
from peakline.solvers.offload.problem import Group, Item, Moment

__all__ = ["Moments", "moments_of"]


@dataclass(frozen=True)
class Moments:
    """Every moment, in the order of time.

    Attributes:
        all: the moments.
        at: number of the moment of each step.
        again: number of the moment at which each step of the forward pass is executed again; −1 where it never is.
    """

    all: list[Moment]
    at: list[int]
    again: list[int]

    def between(self, last: int, first: int) -> tuple[int, int]:
        """The moments strictly between two steps."""
        return self.at[last] + 1, self.at[first] - 1

    def compressed(
        self, items: Sequence[Item], groups: Sequence[Group]
    ) -> tuple[list[Moment], list[Item], list[Group]]:
        """The moments that matter, and items and groups in their numbers."""
        ends = {0, len(self.all)}
        for first, end in _spans(items, groups):
            if first <= end:
                ends |= {first, end + 1}
        kept: list[int] = []
        fresh = True
        for number, moment in enumerate(self.all):
            before = self.all[kept[-1]] if kept else moment
            fresh = number in ends or moment.slot != before.slot or moment.group != before.group or moment.group >= 0
            if fresh:
                kept.append(number)
            elif moment.bytes > before.bytes:
                kept[-1] = number

        # a span covers whole runs, each of which left its fullest moment
        def told(span: tuple[int, int]) -> tuple[int, int]:
            if span[0] > span[1]:
                first = bisect_left(kept, span[0])
                return first, first - 1
            return bisect_left(kept, span[0]), bisect_right(kept, span[1]) - 1

        return (
            [self.all[number] for number in kept],
            [
                replace(
                    item,
                    idle=told(item.idle),
                    lingers=told((item.idle[0], item.lingers))[1] if item.lingers >= 0 else -1,
                    packing=replace(item.packing, idle=told(item.packing.idle)) if item.packing else None,
                )
                for item in items
            ],
            [
                replace(group, passing=tuple([replace(one, span=told(one.span)) for one in group.passing]))
                for group in groups
            ],
        )


def _spans(items: Sequence[Item], groups: Sequence[Group]) -> Iterable[tuple[int, int]]:
    for item in items:
        yield item.idle
        if item.lingers >= 0:
            yield item.idle[0], item.lingers
        if item.packing is not None:
            yield item.packing.idle
    for group in groups:
        yield from (one.span for one in group.passing)


def moments_of(
    program: Program, live: Sequence[int], slot_of: Sequence[int], starts: Mapping[int, Iterable[tuple[int, int, int]]]
) -> Moments:
    """Every moment of a program.

    Args:
        live: bytes alive while each step runs.
        starts: what is executed again before a step: (step, group, bytes that it holds for sure beside items).
    """
    found: list[Moment] = []
    at: list[int] = []
    again = [-1] * len(live)
    sizes, workspaces = program.sizes, program.workspaces
    for i, step in enumerate(program.steps):
        own = sum(int(sizes[key]) for key in step.makes) + sum(map(int, workspaces.get(id(step.operator), ())))
        for number, group, inside in starts.get(i, ()):
            again[number] = len(found)
            found.append(Moment(slot_of[i], live[i] - own, group, inside))
        at.append(len(found))
        found.append(Moment(slot_of[i], live[i]))
    return Moments(found, at, again)
