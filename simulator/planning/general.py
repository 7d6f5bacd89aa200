"""A step as a problem of `peakline.solvers.offload.general`: tensor by tensor, step by step, for small programs."""

from __future__ import annotations

from collections.abc import Sequence

from peakline.planning.extract import SMALL, Profile
from peakline.solvers.offload.general import Array, General
from peakline.solvers.offload.problem import Tier

__all__ = ["general_of"]


def general_of(
    profile: Profile, capacity: int, tiers: Sequence[Tier] = (), *, recompute: bool = True,
    states: frozenset[str] = frozenset(),
) -> General:  # fmt: skip
    """Every tensor of at least 64 KiB that the step makes, and resident ones of the roles in `states`.

    A tensor of the forward pass made again costs its share of the step that makes it.
    """
    program, steps = profile.program, profile.steps
    fixed = [sum(map(int, program.workspaces.get(id(step.operator), ()))) for step in steps]
    arrays: list[Array] = []
    resident = set(program.resident)
    for key, (birth, death, size) in enumerate(zip(program.births, program.deaths, program.sizes)):
        size = int(size)
        movable = key in resident and program.storages[key].tensor.role in states and bool(tiers)
        first, last = (0, len(steps) - 1) if key in resident else (birth, min(death, len(steps) - 1))
        if key in program.previous:
            last = min(death, len(steps) - 1)
        if first < 0:
            continue
        if (key in resident and not movable) or size < SMALL:
            for i in range(first, last + 1):
                fixed[i] += size
            continue
        uses = tuple(profile.touches.get(key, ()))
        again = recompute and birth < profile.turn and key not in resident
        remake = profile.seconds[birth] / max(len(steps[birth].makes), 1) if again else None
        arrays.append(Array(program.storages[key].name, size, (first, last), uses, remake, away=movable))
    return General(tuple(profile.seconds), tuple(fixed), tuple(arrays), capacity, tuple(tiers))
