"""Lower bounds that hold for every order: on the peak, and on the traffic under a capacity.

Whatever the order, while operator j runs these tensors are alive: those that j touches, and those that an ancestor of
j touched and a descendant of j still reads. Their bytes bound the peak (`live_floors`). Under a capacity M the excess
over M must lie off-chip at that moment though it was in the scratchpad before and will be read again, so every such
byte is loaded a second time, and stored before if it is an activation (`traffic_bound`).
"""

from __future__ import annotations

from math import gcd

from peakline.solvers.dag import Dag, bits

__all__ = [
    "cheapest_cover",
    "cheapest_spill",
    "forced_alive",
    "grain",
    "largest_working_set",
    "live_floors",
    "reachable",
    "read_by_descendants",
    "traffic_bound",
]


def largest_working_set(dag: Dag) -> tuple[int, int]:
    """M_R, bytes of the largest working set of one operator, and that operator: no smaller scratchpad will do."""
    sets = dag.working_sets
    worst = max(range(len(dag)), key=lambda i: (sets[i], -i))
    return sets[worst], worst


def forced_alive(dag: Dag) -> tuple[int, ...]:
    """For each operator the mask of the tensors alive while it runs, whatever the order."""
    touched_before = [0] * len(dag)
    for i in dag.problem.given_order:
        mask = 0
        for j in bits(dag.before[i]):
            mask |= touched_before[j] | dag.touch[j]
        touched_before[i] = mask
    later = read_by_descendants(dag)
    return tuple(touch | (early & late) for touch, early, late in zip(dag.touch, touched_before, later))


def read_by_descendants(dag: Dag) -> tuple[int, ...]:
    """For each operator the mask of the tensors that operators running later, whatever the order, read."""
    found = [0] * len(dag)
    for i in reversed(dag.problem.given_order):
        mask = 0
        for j in bits(dag.after[i]):
            mask |= found[j]
            for a in dag.inputs[j]:
                mask |= 1 << a
        found[i] = mask
    return tuple(found)


def live_floors(dag: Dag) -> tuple[int, ...]:
    """For each operator the bytes alive while it runs, whatever the order."""
    return tuple(dag.weigh(mask) for mask in forced_alive(dag))


def grain(dag: Dag) -> int:
    """Greatest common divisor of all sizes: traffic and peaks are multiples of it."""
    return gcd(*dag.size)


_MOST_SUMS = 1 << 20  # bits of the table of subset sums
_MOST_COVER_BITS = 1 << 30  # bits of all tables of subset sums that one exact cover goes through
_MOST_PAIRS = 2_000  # subset sums of activations that one exact cover tries
_MOST_MOMENTS = 30  # operators, the most crowded first, whose excess is priced


def reachable(sizes: list[int], least: int) -> int:
    """Smallest subset sum of `sizes` that is at least `least`; rounded to their gcd alone where a table is too long.

    Raises ValueError if all of them together are less.
    """
    if least <= 0:
        return 0
    if sum(sizes) < least:
        raise ValueError(f"sizes add up to {sum(sizes)}, less than {least}")
    unit = gcd(*sizes)
    wanted = -(-least // unit)
    if sum(sizes) // unit > _MOST_SUMS or len(sizes) > 4096:
        return wanted * unit
    above = _subset_sums(sizes, unit) >> wanted
    return (wanted + (above & -above).bit_length() - 1) * unit


def cheapest_spill(dag: Dag, candidates: int, excess: int) -> int:
    """Least traffic that takes `excess` bytes of the candidates out of the scratchpad and back.

    Activations cost two bytes per byte (a store and a reload), others one. With D the spilled set,
    cost = Σ_{a∈D} s_a + Σ_{a∈D dear} s_a, and Σ_{a∈D} s_a ≥ excess: the least is found among the subset sums of both
    kinds (`cheapest_cover`) where their tables are not too long, and else bounded by
    max(S(all), 2·excess − cheap), S being the subset sums that reach the excess, `cheap` the bytes of those that cost
    one.
    """
    if excess <= 0:
        return 0
    dear, cheap = candidates & dag.dear, candidates & ~dag.dear
    costly, free = [dag.size[a] for a in bits(dear)], [dag.size[a] for a in bits(cheap)]
    exact = cheapest_cover(free, costly, excess)
    if exact is not None:
        return exact
    spilled = reachable([*free, *costly], excess)
    rest = excess - sum(free)
    stored = reachable(costly, rest) if rest > 0 else 0
    return spilled + stored


def cheapest_cover(once: list[int], twice: list[int], least: int) -> int | None:
    """Smallest c + 2 d with c + d ≥ `least`, c a subset sum of `once`, d one of `twice`; None: that takes too long.

    For each d, the smallest first, c is the next subset sum that suffices; a pair costs at least `least` + d.

    Raises ValueError if all of them together are less.
    """
    if sum(once) + sum(twice) < least:
        raise ValueError(f"sizes add up to {sum(once) + sum(twice)}, less than {least}")
    unit = gcd(*once, *twice)
    wanted = -(-least // unit)
    if (sum(once) + sum(twice)) // unit * (len(once) + len(twice)) > _MOST_COVER_BITS:
        return None
    first, second = _subset_sums(once, unit), _subset_sums(twice, unit)
    best: int | None = None
    for looked, d in enumerate(bits(second)):
        if best is not None and wanted + d >= best:
            break
        if looked > _MOST_PAIRS:
            return None
        above = first >> max(0, wanted - d)
        if above:
            cost = 2 * d + max(0, wanted - d) + (above & -above).bit_length() - 1
            best = cost if best is None else min(best, cost)
    return None if best is None else best * unit


def _subset_sums(sizes: list[int], unit: int) -> int:
    """An integer whose bit k says whether some of the sizes add up to k units."""
    sums = 1
    for size in sizes:
        sums |= sums << (size // unit)
    return sums


def traffic_bound(dag: Dag, capacity: int, peak_bound: int = 0) -> int:
    """Non-compulsory bytes that every plan moves within `capacity`, whatever its order.

    The largest over all operators of what their forced excess costs; and with a proven bound on the smallest peak
    over all orders, M_P − M bytes reloaded, each of them stored as well if all tensors are activations:
    2 (M_P − M), in subset sums.
    """
    best = 0
    crowded = [(dag.weigh(mask) - capacity, i, mask & ~dag.touch[i]) for i, mask in enumerate(forced_alive(dag))]
    for excess, _, candidates in sorted(crowded, reverse=True)[:_MOST_MOMENTS]:
        if excess > 0:
            best = max(best, cheapest_spill(dag, candidates, excess))
    if peak_bound > capacity:
        several = sum(1 << a for a, users in enumerate(dag.users) if users.bit_count() > 1)
        best = max(best, cheapest_spill(dag, several, peak_bound - capacity))
    return best
