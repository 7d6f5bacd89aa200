"""Every allocation of a step as a rectangle: where it lies, from when to when, whose it is.

What PyTorch's memory visualiser draws of a recorded run, from a replay. On a GPU the addresses are those that the
replayed caching allocator hands out in a steady step; on a microcontroller those of its arena. Other devices have no
allocator that is modelled: there each storage goes into the smallest hole when it is made, and `method` says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

from peakline.timeline import step_seconds

if TYPE_CHECKING:
    from peakline.memory.lifetimes import Program
    from peakline.result import Estimate

__all__ = ["Allocation", "AllocationMap", "allocations"]

_GAP = 1 << 26  # bytes; narrower unused ranges are fragmentation worth seeing


@dataclass(frozen=True, slots=True)
class Allocation:
    """One block.

    Attributes:
        tensor: the tensor whose storage it holds, or what it is for.
        operator, module: who asked for it; `before the step` and empty for what is there when it starts.
        role: of the tensor; `workspace` for what an operator allocates within itself, and for libraries.
        bytes: of the block, with the allocator's rounding.
        address: bytes from the lowest address in use.
        start, end: seconds from the step's start; it ends with the operator that last needs it.
    """

    tensor: str
    operator: str
    module: str
    role: str
    bytes: int
    address: int
    start: float
    end: float


@dataclass(frozen=True)
class AllocationMap:
    """All allocations of one step.

    Attributes:
        allocations: in the order in which they are made.
        seconds: the step's length; microbatches that repeat are counted once.
        method: where the addresses come from, in words.
        notes: what to know when reading it.
    """

    allocations: tuple[Allocation, ...]
    seconds: float
    method: str
    notes: tuple[str, ...] = ()

    @property
    def top(self) -> int:
        """Bytes from the lowest address to the end of the highest block."""
        return max((a.address + a.bytes for a in self.allocations), default=0)

    def largest(self, count: int) -> tuple[AllocationMap, int, int]:
        """The `count` largest allocations, how many are left out, and how large the largest of those is in bytes."""
        order = sorted(range(len(self.allocations)), key=lambda i: -self.allocations[i].bytes)
        kept, left = sorted(order[:count]), order[count:]
        shown = AllocationMap(tuple(self.allocations[i] for i in kept), self.seconds, self.method, self.notes)
        return shown, len(left), self.allocations[left[0]].bytes if left else 0


def allocations(est: Estimate) -> AllocationMap:
    """Every block of a steady step. A run that does not fit is shown on a device large enough.

    Raises:
        ValueError: for a sweep.
    """
    if est.graph.is_sweep:
        raise ValueError("a sweep has no single allocator map; estimate one configuration")
    edges = [0.0, *accumulate(step_seconds(est))]
    if est.memory.options is not None:
        found, method = _cached(est, edges), "addresses of PyTorch's caching allocator, replayed"
    elif est.memory.arena is not None:
        found, method = (
            _arena(est, edges),
            f"addresses of a static arena, planned by {est.memory.arena.rule.replace('_', ' ')}",
        )
    else:
        found, method = (
            _placed(est.memory.program, edges),
            (f"no allocator of {est.device.name} is modelled: each tensor lies in the smallest hole when it is made"),
        )
    notes = []
    if any(block.times > 1 for block in est.graph.blocks):
        notes.append("microbatches that repeat are shown once")
    if not bool(est.fits):
        notes.append("the run does not fit: this is how it would lie on a device large enough")
    moved = _closed_up(found)
    if moved:
        notes.append(f"addresses that the step never uses are left out from {_GAP >> 20} MiB on")
    return AllocationMap(tuple(found), edges[-1], method, tuple(notes))


def _closed_up(found: list[Allocation]) -> bool:
    """Let addresses begin at 0 and leave out wide ranges that no block ever lies in; whether there were any."""
    tops: dict[int, int] = {}
    for a in found:
        tops[a.address] = max(tops.get(a.address, 0), a.address + a.bytes)
    shift: dict[int, int] = {}
    top, removed, gaps = min(tops, default=0), min(tops, default=0), 0
    for address in sorted(tops):
        if address - top >= _GAP:
            removed, gaps = removed + address - top, gaps + 1
        shift[address] = removed
        top = max(top, tops[address])
    found[:] = [replace(a, address=a.address - shift[a.address]) for a in found]
    return gaps > 0


def _cached(est: Estimate, edges: Sequence[float]) -> list[Allocation]:
    """The blocks of the last step of the caching allocator's history, which is a steady one."""
    from peakline.export import joined, labels
    from peakline.memory.caching_allocator import replay
    from peakline.memory.footprint import request_history

    memory = est.memory
    assert memory.options is not None
    streams = request_history(memory.program, est.device)
    events, named = joined(streams), labels(est, streams)
    room = max(memory.capacity - memory.context, 0)
    history = replay(events, room, memory.options, record=True, device_total=memory.capacity)
    if history.oom is not None:
        history = replay(events, None, replace(memory.options, memory_fraction=None), record=True)
    assert history.addresses is not None
    assert history.block_bytes is not None
    steps = streams[-1].step_of_event.tolist()
    first = len(events) - len(steps)
    born: dict[int, int] = dict.fromkeys(_alive_at(events.ops[:first]), -1)
    spans: list[tuple[int, int, int]] = []
    for op, step in zip(events.ops[first:], steps):
        if op >= 0:
            born[op] = step
        else:
            spans.append((~op, born.pop(~op), step))
    spans += [(block, since, len(edges) - 2) for block, since in born.items()]
    storages = memory.program.storages
    found = []
    for block, since, until in sorted(spans, key=lambda span: span[1]):
        key = events.keys[block]
        label = named[key]
        storage = storages[key] if isinstance(key, int) and key < len(storages) else None
        found.append(
            Allocation(
                label.tensor if storage is not None else "workspace",
                label.operator if since >= 0 else "before the step",
                label.module if since >= 0 else "",
                storage.tensor.role if storage is not None else "workspace",
                history.block_bytes[block],
                history.addresses[block],
                edges[max(since, 0)],
                edges[max(until, 0) + 1],
            )
        )
    return found


def _alive_at(ops: Sequence[int]) -> list[int]:
    alive: dict[int, None] = {}
    for op in ops:
        if op >= 0:
            alive[op] = None
        else:
            del alive[~op]
    return list(alive)


def _arena(est: Estimate, edges: Sequence[float]) -> list[Allocation]:
    """The tensors of a microcontroller's arena."""
    arena, program = est.memory.arena, est.memory.program
    assert arena is not None
    number = {storage.name: key for key, storage in enumerate(program.storages)}
    births = {t.name: program.births[number[t.name]] for t in arena.lifetimes if t.name in number}
    if any(t.first != births[t.name] for t in arena.lifetimes if births.get(t.name, -1) > 0):
        # The rules of a library count half operators: in its second half an input's place may be taken.
        middles = [(start + end) / 2 for start, end in pairwise(edges)]
        edges = [*(edge for pair in zip(edges, middles) for edge in pair), edges[-1]]
    last = len(edges) - 2
    found = []
    for tensor in sorted(arena.lifetimes, key=lambda t: t.first):
        since = births.get(tensor.name, -1)
        made = program.steps[since] if since >= 0 else None
        found.append(
            Allocation(
                tensor.name,
                made.name if made is not None else "before the step",
                made.operator.module if made is not None else "",
                program.storages[number[tensor.name]].tensor.role if tensor.name in number else "workspace",
                tensor.size,
                arena.offsets[tensor.name],
                edges[min(max(tensor.first, 0), last)],
                edges[min(max(tensor.last, 0), last) + 1],
            )
        )
    return found


def _placed(program: Program, edges: Sequence[float]) -> list[Allocation]:
    """Every storage in the smallest hole between the living when it is made."""
    from peakline.solvers.allocation.heuristics import by_birth
    from peakline.solvers.allocation.instance import Instance

    end = len(edges) - 1
    spans: list[tuple[int, int, int]] = []
    for key, (since, until) in enumerate(zip(program.births, program.deaths)):
        if int(program.sizes[key]) > 0 and until >= since and until >= 0:
            spans.append((key, max(since, 0), min(until + 1, end)))
    spans = [span for span in spans if span[1] < span[2]]
    buffers = [(since, until, int(program.sizes[key])) for key, since, until in spans]
    placement = by_birth(Instance.of(buffers))
    found: list[Any] = []
    for (key, since, until), address in zip(spans, placement.offsets):
        storage, step = program.storages[key], program.births[key]
        made = program.steps[step] if step >= 0 else None
        found.append(
            Allocation(
                storage.name,
                made.name if made is not None else "before the step",
                made.operator.module if made is not None else "",
                storage.tensor.role,
                int(program.sizes[key]),
                address,
                edges[since],
                edges[until],
            )
        )
    return sorted(found, key=lambda a: a.start)
