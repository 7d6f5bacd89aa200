"""A figure of a paper beside ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["GIB", "Claim", "largest", "row"]

GIB = float(1 << 30)


@dataclass(frozen=True, slots=True)
class Claim:
    """A figure of a paper beside ours.

    Attributes:
        source: system and paper.
        what: the claim in words.
        claimed, ours: in `unit`; `claimed` None where the paper gives no figure of its own.
        unit: of both.
        assumes: what the paper leaves open.
        within: the claim is that it fits in `claimed`, not that it takes so much.
    """

    source: str
    what: str
    claimed: float | None
    ours: float
    unit: str
    assumes: str
    within: bool = False

    @property
    def difference(self) -> float | None:
        """(ours − claimed) / claimed."""
        return None if not self.claimed else self.ours / self.claimed - 1.0


def largest(fits: Callable[[int], bool], low: int, high: int, grain: int = 1) -> int:
    """The largest multiple of `grain` in [low, high] that fits; 0 if `low` does not."""
    if not fits(low):
        return 0
    low, high = low // grain, high // grain
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle * grain) else (low, middle - 1)
    return low * grain


def row(claim: Claim) -> str:
    """A line of the table, in Markdown."""
    claimed = "–" if claim.claimed is None else f"{claim.claimed:g}"
    off = "" if claim.difference is None else f"{claim.difference:+.1%}"
    if claim.within and claim.difference is not None:
        claimed, off = f"≤ {claimed}", "fits" if claim.difference <= 0 else f"{off}: does not fit"
    return f"| {claim.source} | {claim.what} | {claimed} | {claim.ours:.4g} | {claim.unit} | {off} | {claim.assumes} |"
