"""What a program asks of an allocator: a stream of allocations and frees, in order.

One stream drives every allocator, so that live bytes, PyTorch's caching allocator and a static arena are compared
on the same requests. A stream is built once and replayed many times; it is held in plain lists of integers because
that is what an interpreted replay reads fastest.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["EventBuilder", "EventError", "EventStream"]

Int64Array = npt.NDArray[np.int64]


class EventError(ValueError):
    """A stream that no program could have produced: a double free, an unknown block, a negative size."""


@dataclass(frozen=True)
class EventStream:
    """An immutable sequence of allocations and frees.

    Blocks are numbered 0, 1, 2 … in order of appearance; each number is allocated once. Blocks below `inherited`
    were already live when the stream began (an earlier stream allocated them).

    Attributes:
        ops: one entry per event: `b` ≥ 0 allocates block b, `~b` < 0 frees block b.
        sizes: bytes requested for each block, by block number.
        streams: CUDA stream of each block, by block number.
        keys: the caller's name of each block (a tensor, a storage, a number), by block number.
        inherited: how many blocks were live before the first event.
        marks: (event, name) pairs in order: from this event on, the operator called `name` runs.
        deferred: events, in order, that free a block still in use on another CUDA stream (`record_stream`): the
            memory stays active until its completion.
        completions: (event, block) pairs in order: before this event, which allocates, the other streams have
            finished with the block. PyTorch looks at outstanding events only when it allocates
            (`DeviceCachingAllocator::process_events`, called from `malloc`).
    """

    ops: list[int]
    sizes: list[int]
    streams: list[int]
    keys: list[Hashable]
    inherited: int = 0
    marks: tuple[tuple[int, str], ...] = ()
    deferred: tuple[int, ...] = ()
    completions: tuple[tuple[int, int], ...] = ()

    def __len__(self) -> int:
        return len(self.ops)

    @classmethod
    def from_arrays(
        cls, block: Sequence[Hashable], size: Sequence[int], stream: Sequence[int] | None = None
    ) -> EventStream:
        """A stream from parallel columns: `size` ≥ 0 allocates `block` (bytes), −1 frees it.

        Raises EventError for columns of different lengths and for what `EventBuilder` refuses.
        """
        if len(block) != len(size) or (stream is not None and len(stream) != len(size)):
            raise EventError(f"block, size and stream must be equally long, got {len(block)} and {len(size)} rows")
        builder = EventBuilder()
        for row, (name, number) in enumerate(zip(block, size)):
            if number == -1:
                builder.free(name)
            else:
                builder.alloc(name, number, 0 if stream is None else stream[row])
        return builder.build()

    def block_at(self, event: int) -> int:
        """Number of the block that `event` allocates or frees."""
        op = self.ops[event]
        return op if op >= 0 else ~op

    def operator_at(self, event: int) -> str | None:
        """Name of the operator during which `event` happens; None before the first mark."""
        position = bisect_right(self._mark_events, event) - 1
        return self.marks[position][1] if position >= 0 else None

    def live_after(self, event: int) -> list[int]:
        """Numbers of the blocks alive just after `event` (−1: before the first), in order of allocation."""
        dead: set[int] = set()
        born = list(range(self.inherited))
        for op in self.ops[: event + 1]:
            if op >= 0:
                born.append(op)
            else:
                dead.add(~op)
        return [block for block in born if block not in dead]

    @cached_property
    def ops_array(self) -> Int64Array:
        """`ops` as an int64 array of shape (events,)."""
        return np.asarray(self.ops, dtype=np.int64)

    @cached_property
    def sizes_array(self) -> Int64Array:
        """`sizes` as an int64 array of shape (blocks,)."""
        return np.asarray(self.sizes, dtype=np.int64)

    @cached_property
    def live_at_end(self) -> list[int]:
        """Numbers of the blocks never freed, in order of allocation."""
        freed = {~op for op in self.ops if op < 0}
        return [block for block in range(len(self.sizes)) if block not in freed]

    @cached_property
    def _mark_events(self) -> list[int]:
        return [event for event, _ in self.marks]

    def running_total(self, bytes_of_block: npt.ArrayLike, *, at_start: int | None = None) -> Int64Array:
        """Bytes held after each event if block b counts `bytes_of_block[b]`; int64 array of shape (events,).

        `at_start` is what is held before the first event (default: the inherited blocks).
        """
        weight = np.asarray(bytes_of_block, dtype=np.int64)
        start = int(weight[: self.inherited].sum()) if at_start is None else at_start
        ops = self.ops_array
        if not len(ops):
            return np.empty(0, dtype=np.int64)
        change = np.where(ops >= 0, weight[np.maximum(ops, 0)], -weight[np.maximum(~ops, 0)])
        total = np.cumsum(change)
        total += start
        return total

    def live_bytes(self) -> Int64Array:
        """Exact bytes requested and not yet freed after each event; int64 array of shape (events,)."""
        return self.running_total(self.sizes_array)

    def check(self) -> None:
        """Raise EventError unless every block is allocated once, before its only free, with a size of at least 0.

        `EventBuilder` makes nothing else; this is for streams put together by hand.
        """
        blocks = len(self.sizes)
        if not len(self.streams) == len(self.keys) == blocks:
            raise EventError(f"sizes, streams and keys must be equally long, got {blocks}, {len(self.streams)}")
        state = [1] * self.inherited + [0] * (blocks - self.inherited)
        for event, op in enumerate(self.ops):
            block = op if op >= 0 else ~op
            if block >= blocks:
                raise EventError(f"event {event}: block {block} is unknown; the stream has {blocks} blocks")
            if op >= 0 and state[block] != 0:
                raise EventError(f"event {event}: block {self.keys[block]!r} is allocated twice")
            if op < 0 and state[block] != 1:
                what = "before it is allocated" if state[block] == 0 else "twice"
                raise EventError(f"event {event}: block {self.keys[block]!r} is freed {what}")
            state[block] += 1
        for block, size in enumerate(self.sizes):
            if size < 0:
                raise EventError(f"block {self.keys[block]!r}: size must be at least 0 bytes, got {size}")


@dataclass
class EventBuilder:
    """Builds an `EventStream` event by event; a block is known by any hashable key of the caller's.

    `after` is the stream that ran before: its surviving blocks may be freed here, under the same keys, so that
    several training steps can be replayed one after the other. A key may be used again once its block is freed.
    """

    after: EventStream | None = None
    _ops: list[int] = field(default_factory=list, init=False)
    _sizes: list[int] = field(default_factory=list, init=False)
    _streams: list[int] = field(default_factory=list, init=False)
    _keys: list[Hashable] = field(default_factory=list, init=False)
    _live: dict[Hashable, int] = field(default_factory=dict, init=False)
    _marks: list[tuple[int, str]] = field(default_factory=list, init=False)
    _uses: dict[int, set[int]] = field(default_factory=dict, init=False)
    _pending: dict[int, set[int]] = field(default_factory=dict, init=False)
    _ready: list[int] = field(default_factory=list, init=False)
    _deferred: list[int] = field(default_factory=list, init=False)
    _completions: list[tuple[int, int]] = field(default_factory=list, init=False)
    _inherited: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.after is not None:
            for block in self.after.live_at_end:
                self._new_block(self.after.keys[block], self.after.sizes[block], self.after.streams[block])
            self._inherited = len(self._sizes)

    def alloc(self, block: Hashable, size: int, stream: int = 0) -> None:
        """Allocate `size` bytes (at least 0) under the key `block` on CUDA stream `stream`.

        Raises EventError if the key is live already or the size is not a whole number of at least 0.
        """
        if size < 0 or size != int(size):
            raise EventError(f"event {len(self._ops)}: size of {block!r} must be a whole number ≥ 0, got {size}")
        if self._ready:
            self._completions.extend((len(self._ops), ready) for ready in self._ready)
            self._ready.clear()
        self._ops.append(self._new_block(block, int(size), stream))

    def free(self, block: Hashable) -> None:
        """Free the block. Raises EventError if it was never allocated or is free already."""
        number = self._live.pop(block, None)
        if number is None:
            raise EventError(f"event {len(self._ops)}: {block!r} is not live (double free, or never allocated)")
        if self._uses and number in self._uses:
            self._deferred.append(len(self._ops))
            self._pending[number] = self._uses.pop(number)
        self._ops.append(~number)

    def use(self, block: Hashable, stream: int) -> None:
        """The block is used on another CUDA stream (`Tensor.record_stream`); no effect on its own stream."""
        number = self._live.get(block)
        if number is None:
            raise EventError(f"event {len(self._ops)}: {block!r} is not live and cannot be used on stream {stream}")
        if stream != self._streams[number]:
            self._uses.setdefault(number, set()).add(stream)

    def sync(self, stream: int) -> None:
        """Stream `stream` has finished all it was given: blocks freed while in use there come back.

        They come back at the next allocation, as PyTorch asks for finished events only then.
        """
        for number, waiting in list(self._pending.items()):
            waiting.discard(stream)
            if not waiting:
                self._ready.append(number)
                del self._pending[number]

    def mark(self, name: str) -> None:
        """From the next event on, operator (or step) `name` runs."""
        self._marks.append((len(self._ops), name))

    def is_live(self, block: Hashable) -> bool:
        """Whether the key names a live block."""
        return block in self._live

    def build(self) -> EventStream:
        """The finished stream; the builder may go on and be built again."""
        end = len(self._ops)
        return EventStream(
            ops=list(self._ops),
            sizes=list(self._sizes),
            streams=list(self._streams),
            keys=list(self._keys),
            inherited=self._inherited,
            marks=tuple(self._marks),
            deferred=tuple(self._deferred),
            completions=(*self._completions, *((end, ready) for ready in self._ready)),
        )

    def extend(self, events: Iterable[tuple[Any, ...]]) -> None:
        """Append (key, size) or (key, size, stream) rows to allocate and (key,) rows to free."""
        for row in events:
            if len(row) == 1:
                self.free(row[0])
            else:
                self.alloc(*row)

    def _new_block(self, key: Hashable, size: int, stream: int) -> int:
        if key in self._live:
            raise EventError(f"event {len(self._ops)}: {key!r} is live already; free it before allocating it again")
        number = len(self._sizes)
        self._live[key] = number
        self._sizes.append(size)
        self._streams.append(stream)
        self._keys.append(key)
        return number
