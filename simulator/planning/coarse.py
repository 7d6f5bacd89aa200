"""The same program with other slots, so that other operators are executed again together.

Several layers to a slot: a stretch of layers. A few operators to a slot: parts of a layer.

Recomputing stretches of √n layers keeps √n of the n layers' inputs and holds the activations of √n layers at a time:
T. Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174, §3 and algorithm 1
(`torch.utils.checkpoint.checkpoint_sequential`).
"""

from __future__ import annotations

from dataclasses import replace
from math import isqrt

from peakline.planning.extract import Profile

__all__ = ["coarse", "fine", "root"]


def coarse(profile: Profile, length: int) -> Profile:
    """`profile` with `length` consecutive slots of the forward pass in one, and their backward slots likewise.

    Raises:
        ValueError: a length below 1.
    """
    if length < 1:
        raise ValueError(f"length: {length} slots cannot be one; accepted: at least 1")
    steps = profile.steps
    stretch: dict[tuple[str, int], int] = {}
    for number, (first, _) in enumerate(forward(profile)):
        stretch.setdefault((steps[first].block.name, steps[first].layer), number // length)
    slots: list[tuple[int, int]] = []
    before: tuple[str, int] | None = None
    for first, last in profile.slots:
        step = steps[first]
        here = (step.operator.phase, stretch.get((step.block.name, step.layer), -1))
        if slots and here == before and here[1] >= 0 and here[0] in ("forward", "backward"):
            slots[-1] = (slots[-1][0], last)
        else:
            slots.append((first, last))
        before = here
    return _cut(profile, slots)


def fine(profile: Profile, length: int) -> Profile:
    """`profile` with slots of at most `length` steps: fewer operators are executed again together.

    Raises:
        ValueError: a length below 1.
    """
    if length < 1:
        raise ValueError(f"length: a slot of {length} steps is none; accepted: at least 1")
    slots = [
        (start, min(start + length - 1, last))
        for first, last in profile.slots
        for start in range(first, last + 1, length)
    ]
    return _cut(profile, slots)


def _cut(profile: Profile, slots: list[tuple[int, int]]) -> Profile:
    """`profile` with other slots."""
    slot_of = [number for number, (first, last) in enumerate(slots) for _ in range(first, last + 1)]
    fullest = [max(range(first, last + 1), key=profile.live.__getitem__) for first, last in slots]
    return replace(profile, slots=slots, slot_of=slot_of, fullest=fullest)


def root(profile: Profile) -> int:
    """Slots to a stretch that keep the fewest bytes in a uniform chain: about √n."""
    return max(isqrt(len(forward(profile))), 1)


def forward(profile: Profile) -> list[tuple[int, int]]:
    """Slots of the forward pass."""
    return [(first, last) for first, last in profile.slots if last < profile.turn]
