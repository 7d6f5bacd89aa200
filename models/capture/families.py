"""Which runs walk over the same layers: runs that touch the same tensors, repetition by repetition.

The forward pass touches layer i's weights in its repetition i, the backward pass in its repetition L − 1 − i. Two runs
belong together where the tensors that both touch say so: their repetitions are tied by m = ±k + constant. Runs whose
repetitions hold different numbers of layers are brought to the larger one first.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from peakline.models.capture.periods import Run

__all__ = ["Segment", "Walk", "segments"]

_AGREEMENT = 0.7
"""Share of the tensors touched by two runs that must agree on how their repetitions are tied."""


@dataclass(frozen=True, slots=True)
class Walk:
    """A run as it walks over layers: repetition k executes layer sign·k + shift."""

    run: Run
    sign: int
    shift: int

    def repetition(self, layer: int) -> int:
        """Which repetition executes a layer."""
        return self.sign * (layer - self.shift)

    def layers(self) -> range:
        """Layers executed, in ascending order."""
        ends = self.shift, self.sign * (self.run.count - 1) + self.shift
        return range(min(ends), max(ends) + 1)


@dataclass(frozen=True, slots=True)
class Segment:
    """Layers `low` ≤ layer < `high` that all of these walks execute: a block family in the making."""

    walks: tuple[Walk, ...]
    low: int
    high: int

    @property
    def repeat(self) -> int:
        """Number of layers."""
        return self.high - self.low

    def cut(self, places: Iterable[int]) -> list[Segment]:
        """The same layers in several segments: `places` count from `low`, each begins a new one."""
        edges = [0, *sorted({p for p in places if 0 < p < self.repeat}), self.repeat]
        return [Segment(self.walks, self.low + a, self.low + b) for a, b in pairwise(edges)]

    def grouped(self, size: int) -> Segment:
        """The same with `size` layers in a row as one; what is left over at the end stays outside."""
        groups = self.repeat // size
        walks = []
        for walk in self.walks:
            first = self.low if walk.sign > 0 else self.low + groups * size - 1
            start = walk.run.start + walk.repetition(first) * walk.run.period
            run = Run(start, walk.run.period * size, groups)
            walks.append(Walk(run, walk.sign, 0 if walk.sign > 0 else groups - 1))
        return Segment(tuple(walks), 0, groups)


def segments(runs: Sequence[Run], touched: Sequence[tuple[int, ...]], maker: Sequence[int]) -> list[Segment]:
    """Tie the runs together.

    Args:
        runs: disjoint, in program order.
        touched: tensors (by number) that each operator reads and makes.
        maker: operator that makes each tensor, or −1.
    """
    runs = list(runs)
    for _ in range(4):
        votes = _votes(runs, touched, maker)
        wider = _widened(runs, votes)
        if wider == runs:
            break
        runs = wider
    links = {pair: link for pair, pairs in votes.items() if (link := _tie(pairs)) is not None}
    neighbours: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for (one, other), (sign, shift) in links.items():
        neighbours[one].append((other, sign, shift))
        neighbours[other].append((one, sign, shift if sign < 0 else -shift))
    found: list[Segment] = []
    taken: set[int] = set()
    for root in sorted(range(len(runs)), key=lambda r: -runs[r].saved):
        if root not in taken:
            segment = _component(root, runs, neighbours, taken)
            if segment.repeat >= 2:
                found.append(segment)
    return found


def _votes(
    runs: Sequence[Run], touched: Sequence[tuple[int, ...]], maker: Sequence[int]
) -> dict[tuple[int, int], Counter[tuple[int, int]]]:
    """For each pair of runs: how many tensors are touched in repetition k of the one and m of the other."""
    seen: dict[int, list[tuple[int, int]]] = {}
    votes: dict[tuple[int, int], Counter[tuple[int, int]]] = defaultdict(Counter)
    for number, run in enumerate(runs):
        at: dict[int, int] = {}
        for repetition in range(run.count):
            start = run.start + repetition * run.period
            for position in range(start, start + run.period):
                for tensor in touched[position]:
                    if at.setdefault(tensor, repetition) != repetition and maker[tensor] < run.start:
                        at[tensor] = -1  # several layers read what none of them made
        for tensor, repetition in at.items():
            if repetition < 0:
                continue
            for other, earlier in seen.setdefault(tensor, [])[:2]:
                votes[other, number][earlier, repetition] += 1
            seen[tensor].append((number, repetition))
    return votes


def _tie(pairs: Counter[tuple[int, int]]) -> tuple[int, int] | None:
    """(sign, shift) with m = sign·k + shift for most pairs (k, m)."""
    ways: Counter[tuple[int, int]] = Counter()
    for (k, m), count in pairs.items():
        ways[1, m - k] += count
        ways[-1, m + k] += count
    (best, count), *_ = ways.most_common(1)
    return best if count >= _AGREEMENT * pairs.total() and len(pairs) > 1 else None


def _widened(runs: list[Run], votes: dict[tuple[int, int], Counter[tuple[int, int]]]) -> list[Run]:
    """Runs whose repetitions hold fewer layers than those of a run they share tensors with, several at a time."""
    result = list(runs)
    for (one, other), pairs in votes.items():
        if _tie(pairs) is not None or result[one] != runs[one] or result[other] != runs[other]:
            continue
        for narrow, flipped in ((one, False), (other, True)):
            tied = {(m, k) if flipped else (k, m) for (k, m), n in pairs.items() if n > 0}
            group = _group(tied)
            if group > 1:
                first = min(k for k, _ in tied)
                of_first = {m for k, m in tied if k == first}
                together = sum(1 for k, m in tied if m in of_first)
                skip = (first + together) % group
                run = runs[narrow]
                if (run.count - skip) // group >= 2:
                    result[narrow] = Run(
                        run.start + skip * run.period, run.period * group, (run.count - skip) // group
                    )  # fmt: skip
                break
    return result


def _group(tied: set[tuple[int, int]]) -> int:
    """How many repetitions k of the one run fall to each repetition m of the other; 0 where it is no such tie."""
    of: dict[int, set[int]] = defaultdict(set)
    to: dict[int, set[int]] = defaultdict(set)
    for k, m in tied:
        to[k].add(m)
        of[m].add(k)
    if any(len(ms) != 1 for ms in to.values()):
        return 0
    inner = sorted(len(ks) for ks in of.values())
    return inner[-1] if inner[-1] > 1 and inner[len(inner) // 2] == inner[-1] else 0


def _component(
    root: int, runs: Sequence[Run], neighbours: dict[int, list[tuple[int, int, int]]], taken: set[int]
) -> Segment:
    """The runs tied to `root`, those that fold most first; layers are those that all of them execute."""
    walks = {root: Walk(runs[root], 1, 0)}
    low, high = 0, runs[root].count
    waiting = [(root, n) for n in neighbours[root]]
    refused: set[int] = set()
    while waiting:
        waiting.sort(key=lambda w: runs[w[1][0]].saved)
        origin, (number, sign, shift) = waiting.pop()
        if number in walks or number in taken or number in refused:
            continue
        base = walks[origin]  # its repetition k executes layer ℓ = s·k + h, and m = sign·k + shift
        walk = Walk(runs[number], base.sign * sign, base.shift - base.sign * sign * shift)
        layers = walk.layers()
        if 2 * (min(high, layers.stop) - max(low, layers.start)) < high - low:
            refused.add(number)  # it knows less than half of the layers: not worth it
            continue
        low, high = max(low, layers.start), min(high, layers.stop)
        walks[number] = walk
        waiting += [(number, n) for n in neighbours[number]]
    taken.update(walks)
    ordered = tuple([walks[n] for n in sorted(walks)])
    if ordered[0].sign > 0:
        return Segment(ordered, low, high)
    turned = tuple([Walk(w.run, -w.sign, -w.shift) for w in ordered])
    return Segment(turned, 1 - high, 1 - low)
