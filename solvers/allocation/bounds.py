"""Arena sizes that no placement can beat, and those that none can have."""

from __future__ import annotations

from math import gcd

from peakline.solvers.allocation.instance import Instance

__all__ = ["crowd", "grain", "live_bound", "round_up"]

_MOST_BIT_OPERATIONS = 1 << 33  # about a second of shifting and or-ing long integers


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
    step = gcd(*instance.alignments)
    wide = [-(-b.size // step) * step for b in instance.buffers]
    events = sorted(
        [(b.upper, 0, i) for i, b in enumerate(instance.buffers)]
        + [(b.lower, 1, i) for i, b in enumerate(instance.buffers)]
    )
    spare: dict[int, int] = {}  # how many of the living round up by so many bytes
    best, alive = (0, 0), 0
    for moment, born, i in events:
        slack = wide[i] - instance.buffers[i].size
        spare[slack] = spare.get(slack, 0) + (1 if born else -1)
        if not spare[slack]:
            del spare[slack]
        alive += wide[i] if born else -wide[i]
        if born and alive > best[1]:  # only then can alive − spare be larger
            need = alive - max(spare)
            if need > best[1]:
                best = (moment, need)
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
    sizes = [b.size // unit for b in instance.buffers]
    limit = reach + max(sizes)
    if not instance.plain or len(sizes) * limit > _MOST_BIT_OPERATIONS:
        return reach * unit
    mask = (1 << (limit + 1)) - 1
    sums = 1  # bit k: k units are a sum of sizes
    for size in sizes:
        sums |= (sums << size) & mask
    above = sums >> reach
    return (reach + (above & -above).bit_length() - 1) * unit if above else reach * unit
