"""The same program in other pieces, so that other operators are executed again together; or in more slots.

Several layers to a piece: a stretch of layers. A few operators to a piece: parts of a layer.

Recomputing stretches of √n layers keeps √n of the n layers' inputs and holds the activations of √n layers at a time:
T. Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174, §3 and algorithm 1
(`torch.utils.checkpoint.checkpoint_sequential`).
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import isqrt

from peakline.planning.extract import Profile
from peakline.planning.pieces import borders

__all__ = ["coarse", "fine", "forward", "parted", "root", "sharp"]

PARTS = 4
"""Parts that a layer is cut into: about what holds its input, and what follows a product."""


def coarse(profile: Profile, length: int) -> Profile:
    """`profile` with `length` consecutive pieces of the forward pass in one.

    Raises:
        ValueError: a length below 1.
    """
    if length < 1:
        raise ValueError(f"length: {length} pieces cannot be one; accepted: at least 1")
    number_of = {piece: number // length for number, piece in enumerate(_pieces(profile))}
    turn = profile.turn
    pieces = [number_of[piece] for piece in profile.piece_of[:turn]]
    return replace(profile, piece_of=[*pieces, *(piece + turn for piece in profile.piece_of[turn:])])


def parted(profile: Profile) -> Profile:
    """`profile` with every piece of the forward pass cut into some `PARTS`, where the fewest bytes cross."""
    starts: list[int] = []
    for first, last in forward(profile):
        count = last - first + 1
        length = max(count // PARTS, 2)
        found = [first]
        if count > 2 * length:
            most = min(3 * length, count - 1)
            found = borders(
                profile.program, profile.touches, profile.makers, (first, last + 1), profile.turn, length, most
            )
        starts += found
    pieces = [
        number for number, (start, end) in enumerate(pairwise([*starts, profile.turn])) for _ in range(start, end)
    ]
    return replace(profile, piece_of=[*pieces, *(profile.turn + piece for piece in profile.piece_of[profile.turn :])])


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


def sharp(profile: Profile, count: int) -> Profile:
    """`profile` with about `count` slots, of as many seconds each; what is executed again together stays.

    Raises:
        ValueError: a count below 1.
    """
    if count < 1:
        raise ValueError(f"count: {count} slots are none; accepted: at least 1")
    longest = sum(profile.seconds) / count
    slots: list[tuple[int, int]] = []
    for first, last in profile.slots:
        pieces, start, spent = max(round(sum(profile.seconds[first : last + 1]) / longest), 1), first, 0.0
        share = sum(profile.seconds[first : last + 1]) / pieces
        for i in range(first, last):
            spent += profile.seconds[i]
            if spent >= share:
                slots.append((start, i))
                start, spent = i + 1, 0.0
        slots.append((start, last))
    return replace(_cut(profile, slots), piece_of=profile.piece_of)


def _cut(profile: Profile, slots: list[tuple[int, int]]) -> Profile:
    """`profile` with other slots."""
    slot_of = [number for number, (first, last) in enumerate(slots) for _ in range(first, last + 1)]
    return replace(profile, slots=slots, slot_of=slot_of, piece_of=slot_of)


def root(profile: Profile) -> int:
    """Pieces to a stretch that keep the fewest bytes in a uniform chain: about √n."""
    return max(isqrt(len(_pieces(profile))), 1)


def forward(profile: Profile) -> list[tuple[int, int]]:
    """(first, last) step of each piece of the forward pass."""
    starts = [i for i in range(profile.turn) if i == 0 or profile.piece_of[i] != profile.piece_of[i - 1]]
    return [(start, end - 1) for start, end in zip(starts, [*starts[1:], profile.turn])]


def _pieces(profile: Profile) -> list[int]:
    return list(dict.fromkeys(profile.piece_of[: profile.turn]))
