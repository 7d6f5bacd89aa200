"""Where a plan's buffers lie: an arena with every address decided beforehand, and what a caching allocator would need.

What is alive at once is what a plan promises; memory is spent on addresses. With every lifetime known, buffers can be
placed once and for all in an arena (MEMO, arXiv:2407.12117, §4.2, solves one layer and repeats it; the whole step is
placed here, which loses nothing). PyTorch's caching allocator decides as requests come and keeps what it has cached.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from peakline.memory.caching_allocator import Allocator
from peakline.memory.events import EventBuilder
from peakline.memory.lifetimes import Program as Lifetimes
from peakline.solvers.allocation.bounds import live_bound
from peakline.solvers.allocation.greedy import Placement
from peakline.solvers.allocation.heuristics import by_birth, in_order
from peakline.solvers.allocation.instance import Instance
from peakline.solvers.allocation.portfolio import allocate
from peakline.solvers.offload.problem import Decisions, Problem
from peakline.streams import Hold, Timeline

__all__ = ["ALIGNMENT", "Arena", "arena_of", "reserved_by", "staying"]

ALIGNMENT = 512
"""Bytes: of every address that CUDA gives (`cudaMalloc`: at least 256) and PyTorch rounds to (`kMinBlockSize`)."""

SMALL = 1 << 16
"""Bytes up to which buffers lie in a part of their own, where they cannot cut up the room of large ones."""

MOST = 6000
"""Buffers that are placed largest first: the rule looks at all pairs."""


@dataclass(frozen=True)
class Arena:
    """Addresses of the buffers that come and go in a tier.

    Attributes:
        bytes: of the arena: buffers that never come or go, and the placed ones.
        lower_bound: bytes that no placement can do with less than.
        offsets: address of each buffer, relative to those that stay throughout.
        method: what found it.
    """

    bytes: int
    lower_bound: int
    offsets: dict[str, int]
    method: str

    @property
    def fragmentation(self) -> float:
        """Share of the arena above its lower bound."""
        return 1.0 - self.lower_bound / self.bytes if self.bytes else 0.0


def arena_of(timeline: Timeline, tier: str, *, seconds: float = 5.0) -> Arena:
    """A static placement of every buffer of the tier, by `peakline.solvers.allocation`.

    Args:
        seconds: limit of the search.
    """
    born: dict[str, int] = {}
    spans: dict[str, tuple[int, int, int]] = {}
    count = 0
    for count, (hold, comes) in enumerate(_of(timeline, tier), start=1):
        if comes:
            born[hold.buffer] = count
        elif hold.bytes:
            spans[hold.buffer] = (born.pop(hold.buffer), count, _rounded(hold.bytes))
        else:
            born.pop(hold.buffer)
    sizes = {hold.buffer: hold.bytes for hold, comes in _of(timeline, tier) if comes}
    initial = {hold.buffer for hold in timeline.program.initial if hold.tier == tier}
    fixed = sum(_rounded(sizes[buffer]) for buffer in born if buffer in initial)
    for buffer, start in born.items():
        if buffer not in initial and sizes[buffer]:
            spans[buffer] = (start, count + 1, _rounded(sizes[buffer]))
    if not spans:
        return Arena(fixed, fixed, {}, "nothing comes or goes")
    whole = _instance(spans)
    small = {name: span for name, span in spans.items() if span[2] <= SMALL}
    large = {name: span for name, span in spans.items() if span[2] > SMALL}
    offsets: dict[str, int] = {}
    top, methods = 0, []
    for part in (large, small):
        if part:
            found, method = _placed(_instance(part), seconds)
            offsets |= {name: top + offset * ALIGNMENT for name, offset in zip(part, found.offsets)}
            top += found.arena * ALIGNMENT
            methods.append(method)
    return Arena(fixed + top, fixed + live_bound(whole) * ALIGNMENT, offsets, "; small ones apart: ".join(methods))


def _instance(spans: dict[str, tuple[int, int, int]]) -> Instance:
    return Instance.of([(low, high, size // ALIGNMENT) for low, high, size in spans.values()], ids=list(spans))


def _placed(instance: Instance, seconds: float) -> tuple[Placement, str]:
    """Largest first, which is often as small as what is alive; else the portfolio, at most `seconds`."""
    least, count = live_bound(instance), len(instance.buffers)
    first = by_birth(instance)
    if count <= MOST:
        largest = sorted(range(count), key=lambda i: -instance.buffers[i].size)
        first = min(first, in_order(instance, largest, tight=False), key=lambda found: found.arena)
    if first.arena == least:
        return first, "largest first, which is the least there can be"
    found = allocate(instance, time_limit=seconds)
    if found.offsets is None or found.peak is None or found.peak >= first.arena:
        return first, "largest or earliest first"
    return Placement(found.offsets, found.peak), found.method


def staying(program: Lifetimes, problem: Problem, items: Sequence[int], decisions: Decisions) -> list[int]:
    """Bytes of each tensor that is never off the device: parameters, states, and what stays of those moved in part.

    Args:
        items: storage of each item of the problem.
    """
    left = {}
    for key, item, shares in zip(items, problem.items, decisions.moved):
        if item.away:
            left[key] = item.bytes - sum(round(item.bytes * share) for share in shares)
    return [size for key in program.resident if (size := left.get(key, int(program.sizes[key])))]


def reserved_by(timeline: Timeline, tier: str, resident: Iterable[int]) -> int:
    """Bytes that PyTorch's caching allocator holds from the driver at most, given the same requests twice.

    The second step is steady. Copies and computing draw from one pool, and a buffer is free when the last that reads
    it has ended.

    Args:
        resident: sizes in bytes of the tensors that are one initial buffer, `resident`, in the timeline.
    """
    allocator = Allocator()
    first = EventBuilder()
    for number, size in enumerate(resident):
        first.alloc(("resident", number), size)
    stays = first.build()
    allocator.run(stays)
    for step in range(2):
        events = EventBuilder()
        live: dict[str, tuple[int, str]] = {}
        for hold, comes in _of(timeline, tier):
            if hold.buffer == "resident" or not hold.bytes:
                continue
            if comes:
                live[hold.buffer] = (step, hold.buffer)
                events.alloc(live[hold.buffer], hold.bytes)
            else:
                events.free(live.pop(hold.buffer))
        for key in live.values():
            events.free(key)
        allocator.run(events.build())
    return allocator.peak_reserved


def _of(timeline: Timeline, tier: str) -> list[tuple[Hold, bool]]:
    return [(hold, comes) for hold, comes in timeline.events if hold.tier == tier]


def _rounded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
