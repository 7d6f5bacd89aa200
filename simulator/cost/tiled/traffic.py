"""What a tiled kernel moves, tensor by tensor, and the small arithmetic of tiles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

__all__ = ["Traffic", "ceil_div", "check_tiles", "power_of_two"]


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that a kernel's programs load and store, by the tensor they belong to.

    An atomic addition counts on both sides: it reads the old value and writes the new one. Lanes that a mask switches
    off move nothing. A byte counts each time a program asks for it, whatever cache answers.
    """

    loads: Mapping[str, int] = field(default_factory=dict)
    stores: Mapping[str, int] = field(default_factory=dict)

    @property
    def loaded(self) -> int:
        """Bytes loaded, all tensors together."""
        return sum(self.loads.values())

    @property
    def stored(self) -> int:
        """Bytes stored, all tensors together."""
        return sum(self.stores.values())

    @property
    def total(self) -> int:
        """Bytes moved, both ways."""
        return self.loaded + self.stored

    def __add__(self, other: Traffic) -> Traffic:
        """The traffic of one kernel after another."""
        return Traffic(_merged(self.loads, other.loads), _merged(self.stores, other.stores))

    def nonzero(self) -> dict[str, tuple[int, int]]:
        """(bytes loaded, bytes stored) of every tensor that moves at all, in alphabetical order."""
        names = sorted({*self.loads, *self.stores})
        both = {name: (self.loads.get(name, 0), self.stores.get(name, 0)) for name in names}
        return {name: moved for name, moved in both.items() if any(moved)}


def _merged(first: Mapping[str, int], second: Mapping[str, int]) -> dict[str, int]:
    return {name: first.get(name, 0) + second.get(name, 0) for name in (*first, *(n for n in second if n not in first))}


def ceil_div(size: int, tile: int) -> int:
    """Tiles that cover `size`: ⌈size/tile⌉."""
    return -(-size // tile)


def power_of_two(size: int, least: int = 1) -> int:
    """The smallest power of two that is at least `size` and at least `least`: the block that holds a whole row."""
    return max(least, 1 << max(size - 1, 0).bit_length())


def check_tiles(sizes: Iterable[tuple[str, int]]) -> None:
    """Refuse a tile that Triton has no block for.

    Raises:
        ValueError: naming the tile parameter, if it is not a positive power of two.
    """
    for name, size in sizes:
        if size < 1 or size & (size - 1):
            raise ValueError(f"{name}: {size!r} is no tile size; give a power of two, like 16, 32, 64 or 128")
