"""Arena sizes that no placement can beat, and those that none can have."""

from __future__ import annotations

from collections import Counter
from math import gcd

import numpy as np

from peakline.solvers.allocation.instance import Instance

__all__ = ["crowd", "grain", "live_bound", "round_up"]

_MOST_BIT_OPERATIONS = 1 << 32  # about half a second of shifting and or-ing long integers
_CHECK = 16  # sizes, after which it is looked whether the least is a sum already


def live_bound(instance: Instance) -> int:
    """Bytes that the most crowded moment needs, and the highest end of a fixed buffer.

    At a moment t with buffers A(t), and every offset a multiple of a = gcd of the alignments, each buffer but the
    topmost one keeps the next ⌈size/a⌉·a bytes to itself:
    arena ≥ Σ_{A(t)} ⌈size/a⌉·a − max_{A(t)} (⌈size/a⌉·a − size). Without alignment that is the live bytes.
    """
    pinned = [o + b.size for b, o in zip(instance.buffers, instance.fixed) if o is not None]
    return max([crowd(instance)[1], *pinned])


def crowd(instance: Instance) -> tuple[int, int]:
    """The moment that needs most and the bytes it needs (see `live_bound`); (0, 0) without buffers."""
    lower, _, size = instance.columns
    step = gcd(*instance.alignments)
    if step == 1 and len(size):  # at once, which is what many buffers need
        events = np.array(instance.events)
        born = events >= 0
        buffer = np.where(born, events, ~events)
        alive = np.cumsum(np.where(born, size[buffer], -size[buffer]))
        most = int(alive.argmax())
        return int(lower[buffer[most]]), int(alive[most])
    spare: dict[int, int] = {}  # how many of the living round up by so many bytes
    best, used = (0, 0), 0
    for event in instance.events:
        i = event if event >= 0 else ~event
        slack = -instance.buffers[i].size % step
        wide = instance.buffers[i].size + slack
        spare[slack] = spare.get(slack, 0) + (1 if event >= 0 else -1)
        if not spare[slack]:
            del spare[slack]
        used += wide if event >= 0 else -wide
        if event >= 0 and used > best[1]:  # only then can used − spare be larger
            need = used - max(spare)
            if need > best[1]:
                best = (instance.buffers[i].lower, need)
    return best


def grain(instance: Instance) -> int:
    """Bytes g such that some smallest arena is a multiple of g: gcd of the sizes, alignments above 1 and fixed offsets.

    Slide every buffer down until it rests: the arena does not grow, and each offset is then 0, a fixed offset, or the
    top of another rounded up to an alignment; with all of these multiples of g, so is every top.
    """
    steps = [a for a in instance.alignments if a > 1]
    return gcd(*(b.size for b in instance.buffers), *steps, *(o for o in instance.fixed if o is not None))


def round_up(instance: Instance, least: int) -> int:
    """The smallest arena of at least `least` bytes that a resting placement can have.

    The highest buffer of a resting placement stands on a tower of others, each on the next, down to address 0: without
    alignment and fixed offsets the arena is a sum of sizes, no buffer counted twice. With them, or where the sums
    are too many to list, only the multiples of `grain` are left out.
    """
    unit = grain(instance)
    reach = -(-least // unit)
    sizes = Counter(b.size // unit for b in instance.buffers)
    limit = reach + max(sizes)
    pieces = [part * size for size, count in sizes.items() for part in _parts(count)]
    if not instance.plain or len(pieces) * limit > _MOST_BIT_OPERATIONS:
        return reach * unit
    mask = (1 << (limit + 1)) - 1
    sums = 1  # bit k: k units are a sum of sizes
    for turn, piece in enumerate(pieces):
        sums |= (sums << piece) & mask
        if turn % _CHECK == 0 and sums >> reach & 1:
            return reach * unit
    above = sums >> reach
    return (reach + (above & -above).bit_length() - 1) * unit if above else reach * unit


def _parts(count: int) -> list[int]:
    """1, 2, 4, … and a rest: their sums are 0, …, `count`, so that many equal sizes cost a few."""
    parts: list[int] = []
    while count > 0:
        parts.append(min(1 << len(parts), count))
        count -= parts[-1]
    return parts
