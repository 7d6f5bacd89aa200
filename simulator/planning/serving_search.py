"""The fastest block, best first: bounds become solutions, solutions are replayed until solver and replay agree.

Where copies do not meet, the rows of the program are the timeline's own waits. Copies from two tiers, or in and out
over one link, slow each other down in a way that depends on who comes when. There the replay is asked: what a layer
takes at the solution, and by how much more with a little more in each place, is one more row of the program (J. E.
Kelley, "The cutting-plane method for solving convex programs", 1960). A row that says more than a later replay does is
dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from heapq import heapify, heappop, heappush

from peakline.planning.serving_linear import WAYS, solve
from peakline.planning.serving_problem import Block, Seen, Shares
from peakline.planning.serving_replay import periods, seen

__all__ = ["Option", "fastest"]

AGREE = 2e-3
"""Difference of solver and replay that is left as it is."""

TRIES = 6
"""Solutions of a block that are replayed; the fastest of them is taken if none is both solver's best and agreed."""


@dataclass(order=True)
class Option:
    """A block, as far as it is known.

    Attributes:
        seconds: per generated token.
        size, count: sequences in a batch, and batches.
        problem: what is placed.
        cut: how copies are cut, of `WAYS`; None while only the bound is known.
        shares: what the linear program says.
        rows: what replays said of it.
        tried: solutions that were replayed, and seconds of a layer in each pass.
        agreed: solver and replay say the same.
    """

    seconds: float
    size: int
    count: int
    problem: Block = field(compare=False)
    cut: tuple[bool, bool, bool] = field(default=WAYS[0], compare=False)
    shares: Shares | None = field(default=None, compare=False)
    rows: tuple[Seen, ...] = field(default=(), compare=False)
    tried: tuple[tuple[Shares, tuple[float, ...]], ...] = field(default=(), compare=False)
    agreed: bool = field(default=False, compare=False)

    def total(self, took: Sequence[float]) -> float:
        """Seconds per token of passes that take so many a layer, but for how the first layer begins."""
        tokens = self.size * self.count * (self.problem.passes[-1].times + 1.0)
        return self.problem.sizes.layers * sum(w.times * t for w, t in zip(self.problem.passes, took)) / tokens


def fastest(options: Sequence[Option]) -> Option | None:
    """The best of blocks with their bounds; None if none can be placed."""
    queue = list(options)
    heapify(queue)
    while queue:
        option = heappop(queue)
        if option.agreed:
            return option
        if option.shares is None:
            found = [_solved(replace(option, cut=cut)) for cut in WAYS]
        else:
            found = [_confronted(option, option.shares)]
        for one in found:
            if one is not None:
                heappush(queue, one)
    return None


def _solved(option: Option, near: Shares | None = None) -> Option | None:
    """The option as its linear program says."""
    shares = solve(option.problem, option.cut, option.rows, near)
    if shares is None:
        return None
    tokens = option.size * option.count * (option.problem.passes[-1].times + 1.0)
    return replace(option, shares=shares, seconds=shares.seconds / tokens)


def _confronted(option: Option, shares: Shares) -> Option | None:
    """The option as its replay says, if the two agree; else another solution, with what was learnt."""
    problem, passes = option.problem, option.problem.passes
    took = tuple(periods(problem, shares)) if problem.meets(shares) else shares.layers
    if all(abs(a / b - 1.0) <= AGREE for a, b, way in zip(took, shares.layers, passes) if way.times):
        more = option.total(took) - option.total(shares.layers)
        return replace(option, agreed=True, seconds=option.seconds + more)
    tried = (*option.tried, (shares, took))
    last = len(tried) == TRIES
    if last:
        shares, took = min(tried, key=lambda one: option.total(one[1]))
    true = [row for row in option.rows if row.value(shares) <= took[row.number] * (1.0 + AGREE / 2.0)]
    option = replace(option, tried=tried, rows=(*true, *seen(problem, shares, took)))
    again = _solved(option, shares if last else None)
    if not last:
        return again
    return replace(again or replace(option, shares=shares), agreed=True)
