"""The static arena of a microcontroller: every tensor at a fixed offset, planned before the first inference."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from peakline.solvers.allocation import Buffer, best_fit, check, greedy_by_size, liveness_bound

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Lifetime", "StaticArena", "plan_arena"]

# TensorFlow Lite Micro aligns every buffer to 16 bytes (`MicroArenaBufferAlignment`, micro_arena_constants.h).
TFLM_ALIGNMENT = 16


@dataclass(frozen=True, slots=True)
class Lifetime:
    """A tensor of `size` bytes needed from operator `first` to operator `last`, both included."""

    name: str
    size: int
    first: int
    last: int


@dataclass(frozen=True)
class StaticArena:
    """Where every tensor lies.

    Attributes:
        lifetimes: the tensors, in the order given.
        offsets: bytes from the arena's start, by tensor name.
        size: bytes of the arena.
        bound: most bytes alive at once; no plan is smaller.
        rule: the rule that placed them.
        alignment: bytes; every offset is a multiple.
    """

    lifetimes: tuple[Lifetime, ...]
    offsets: dict[str, int]
    size: int
    bound: int
    rule: str
    alignment: int

    @property
    def overhead(self) -> float:
        """Share of the arena above the bound: size / bound − 1 (0 for an empty arena)."""
        return self.size / self.bound - 1 if self.bound else 0.0

    def table(self) -> pd.DataFrame:
        """One row per tensor by offset: tensor, offset, size (bytes), first, last (operators)."""
        import pandas as pd

        rows = [(t.name, self.offsets[t.name], t.size, t.first, t.last) for t in self.lifetimes]
        rows.sort(key=lambda row: (row[1], row[3]))
        return pd.DataFrame(rows, columns=["tensor", "offset", "size", "first", "last"])


def plan_arena(
    lifetimes: Iterable[Lifetime],
    *,
    rule: Literal["greedy_by_size", "best_fit"] = "greedy_by_size",
    alignment: int = TFLM_ALIGNMENT,
) -> StaticArena:
    """Plan an arena for tensors with known lifetimes.

    `rule` "greedy_by_size" is what TensorFlow Lite Micro does, offset by offset. The plan is verified pair by pair
    before it is returned.

    Raises ValueError for two tensors of one name, an empty lifetime, a negative size or an unknown rule.
    """
    tensors = tuple(lifetimes)
    names = [tensor.name for tensor in tensors]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"lifetimes: tensor {twice!r} is given twice")
    buffers = [Buffer(tensor.first, tensor.last + 1, tensor.size) for tensor in tensors]
    rules = {"greedy_by_size": greedy_by_size, "best_fit": best_fit}
    if rule not in rules:
        raise ValueError(f"rule: must be one of {', '.join(rules)}, got {rule!r}")
    placement = rules[rule](buffers, alignment)
    size = check(buffers, placement.offsets, alignment)
    return StaticArena(tensors, dict(zip(names, placement.offsets)), size, liveness_bound(buffers), rule, alignment)
