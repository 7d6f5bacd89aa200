"""Histories of a CUDA caching allocator in the format of `torch.cuda.memory._snapshot()`, without a GPU.

The allocator here is written for these tests alone, from the rules in PyTorch's sources: best fit by (size, address),
2 MiB and 20 MiB segments, splitting and merging. It shares no code with the product.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MIB = 1 << 20


@dataclass
class Chunk:
    """A block: where it lies, how large it is, and whether a tensor has it."""

    start: int
    size: int
    taken: bool = False


@dataclass
class Driver:
    """Segments by address, each a list of chunks that fill it."""

    base: int = 0x7F20_0000_0000
    entries: list[dict[str, Any]] = field(default_factory=list)
    segments: dict[int, list[Chunk]] = field(default_factory=dict)
    small: set[int] = field(default_factory=set)
    clock: int = 1_000_000

    def malloc(self, size: int, stream: int = 0) -> int:
        """Address of a block for `size` bytes."""
        rounded = max(-(-size // 512) * 512, 512)
        pool = rounded <= MIB
        free = [
            (chunk.size, chunk.start, segment, chunk)
            for segment, chunks in self.segments.items()
            for chunk in chunks
            if not chunk.taken and chunk.size >= rounded and (segment in self.small) == pool
        ]
        if free:
            _, _, segment, chunk = min(free, key=lambda f: f[:2])
        else:
            total = 2 * MIB if pool else 20 * MIB if rounded < 10 * MIB else -(-rounded // (2 * MIB)) * 2 * MIB
            segment = self.base
            self.base += total + 64 * MIB  # never adjacent
            chunk = Chunk(segment, total)
            self.segments[segment] = [chunk]
            self.small |= {segment} if pool else set()
            self.log("segment_alloc", segment, total, stream)
        rest = chunk.size - rounded
        if rest >= 512 and (pool or rest > MIB):
            chunks = self.segments[segment]
            chunks.insert(chunks.index(chunk) + 1, Chunk(chunk.start + rounded, rest))
            chunk.size = rounded
        chunk.taken = True
        self.log("alloc", chunk.start, size, stream)
        return chunk.start

    def free(self, address: int, size: int, stream: int = 0, *, later: bool = False) -> None:
        """Give a block back; `later` only asks for it, because another stream still uses it."""
        self.log("free_requested", address, size, stream)
        if not later:
            self.complete(address, size, stream)

    def complete(self, address: int, size: int, stream: int = 0) -> None:
        """The block comes back and joins its free neighbours."""
        for chunks in self.segments.values():
            for chunk in chunks:
                if chunk.start == address:
                    chunk.taken = False
                    self.log("free_completed", address, size, stream)
                    self._join(chunks)
                    return
        raise AssertionError(f"{address} is not a block")

    def empty_cache(self) -> None:
        """Return whole free segments to the driver."""
        for segment, chunks in list(self.segments.items()):
            if len(chunks) == 1 and not chunks[0].taken:
                self.log("segment_free", segment, chunks[0].size, 0)
                del self.segments[segment]

    def log(self, action: str, address: int, size: int, stream: int) -> None:
        """An entry of the history."""
        self.clock += 10
        self.entries.append(
            {"action": action, "addr": address, "size": size, "stream": stream, "time_us": self.clock, "frames": []}
        )

    def snapshot(self) -> dict[str, Any]:
        """As torch returns it."""
        segments = [
            {
                "device": 0,
                "address": segment,
                "total_size": sum(c.size for c in chunks),
                "allocated_size": sum(c.size for c in chunks if c.taken),
                "active_size": sum(c.size for c in chunks if c.taken),
                "stream": 0,
                "segment_type": "small" if segment in self.small else "large",
                "blocks": [],
            }
            for segment, chunks in self.segments.items()
        ]
        return {"segments": segments, "device_traces": [self.entries]}

    @staticmethod
    def _join(chunks: list[Chunk]) -> None:
        position = 0
        while position + 1 < len(chunks):
            here, after = chunks[position], chunks[position + 1]
            if not here.taken and not after.taken:
                here.size += after.size
                del chunks[position + 1]
            else:
                position += 1
