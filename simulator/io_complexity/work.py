"""What every operator says of its traffic: what it must move, what nobody can avoid, and the best tiling found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

__all__ = ["Tiling", "Work", "crossover", "distance", "splits"]


@dataclass(frozen=True)
class Tiling:
    """A schedule of one operator, or of a fused chain, under a fast memory.

    Attributes:
        strategy: which loops, and what stays in the fast memory.
        tile: sizes by the name of what is cut.
        footprint: most bytes held at once.
        traffic: bytes loaded and stored.
    """

    strategy: str
    tile: Mapping[str, int]
    footprint: float
    traffic: float = field(compare=True)

    def __str__(self) -> str:
        tiles = ", ".join(f"{name} {size:,}" for name, size in self.tile.items())
        return f"{self.strategy}: {tiles}" if tiles else self.strategy


@runtime_checkable
class Work(Protocol):
    """An operator or a fused chain. All bytes are whole-operator figures, batch included."""

    @property
    def name(self) -> str:
        """In words, with its sizes."""
        ...

    @property
    def compulsory(self) -> float:
        """Bytes of every operand and every result once."""
        ...

    def bound(self, capacity: float, copies: int = 1) -> float:
        """Bytes that no schedule can avoid with `capacity` bytes in each of `copies` fast memories."""
        ...

    def best(self, capacity: float) -> Tiling | None:
        """The schedule with the least traffic found; None where not even its smallest tile fits."""
        ...


def distance(work: Work, capacity: float) -> float | None:
    """Best traffic found over the bound (at least 1); None where nothing fits."""
    found = work.best(capacity)
    return None if found is None else found.traffic / work.bound(capacity)


@lru_cache(maxsize=4096)
def _splits(size: int, most: int) -> tuple[int, ...]:
    root = int(size**0.5) + 1
    pieces = [*range(1, root + 1), *(-(-size // t) for t in range(1, root + 1))]
    tiles = sorted({-(-size // p) for p in pieces})
    if len(tiles) > most:
        chosen = np.unique(np.linspace(0, len(tiles) - 1, most).round().astype(int))
        tiles = [tiles[i] for i in chosen]
    return tuple(tiles)


def splits(size: int, most: int = 4096) -> NDArray[np.float64]:
    """The tile sizes worth trying for an extent, smallest first: one for each number of pieces it can be cut into.

    A tile between ⌈size/p⌉ and ⌈size/(p-1)⌉ makes p pieces too and takes more room, so the at most 2·√size values
    ⌈size/p⌉ lose nothing. Above `most` of them, so many spread evenly over the list, ends included.
    """
    return np.array(_splits(int(size), most), dtype=np.float64)


def crossover(
    first: Callable[[float], Tiling | None],
    second: Callable[[float], Tiling | None],
    low: float = 2**10,
    high: float = 2**32,
) -> float | None:
    """The capacity in bytes, between `low` and `high`, from which on the first schedule moves less than the second.

    Four capacities to each doubling are looked at from the top down, to where the second moves no more, or the first
    does not fit; then that interval is halved to a thousandth. None if the first moves less nowhere up there, which
    includes equal traffic where both move compulsory bytes.

        crossover(mlp.fused, mlp.unfused)
    """

    def wins(capacity: float) -> bool:
        one, other = first(capacity), second(capacity)
        return one is not None and (other is None or one.traffic < other.traffic)

    steps = [low * 2 ** (i / 4) for i in range(int(4 * np.log2(high / low)) + 1)]
    winning = [i for i, capacity in enumerate(steps) if wins(capacity)]
    if not winning:
        return None
    start = winning[-1]
    while start and wins(steps[start - 1]):
        start -= 1
    if start == 0:
        return steps[0]
    below, above = steps[start - 1], steps[start]
    while above / below > 1.001:
        middle = (below * above) ** 0.5
        below, above = (below, middle) if wins(middle) else (middle, above)
    return above
