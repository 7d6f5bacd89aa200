"""Why no plan fits: the floor, what holds it, and what might lower it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from peakline.hardware.units import format_bytes
from peakline.planning.execute import DEVICE
from peakline.planning.options import ALLOWED
from peakline.planning.outcome import NothingFits
from peakline.streams import Timeline

if TYPE_CHECKING:
    from peakline.planning.search import Found

__all__ = ["at_the_peak", "held_by", "refusal"]

FULL = 0.95
"""Share of a tier from which on it is called full: tensors are moved as a whole, or by bytes per slot."""

NAMED = 0.01
"""Share of the peak from which on a role is named."""

RESIDENT = "resident"
"""The buffer of what never leaves the device (`execute`, `rerun`)."""


def refusal(asked: int, outside: int, floor: Found, fit: str) -> NothingFits:
    """The answer to a budget that nothing reaches.

    Args:
        asked: the budget, in bytes.
        outside: bytes of it that tensors cannot have (context, libraries' workspaces).
        floor: the plan that needs least.
        fit: what was to fit, `allocated` or `reserved` bytes.
    """
    least = floor.needs(fit) + outside
    roles = held_by(floor)
    held = [f"{role} {format_bytes(size)}" for role, size in roles.most_common() if size > NAMED * roles.total()]
    held += [f"context and libraries {format_bytes(outside)}"] if outside else []
    name, size = max(
        ((_name(buffer), size) for buffer, size in at_the_peak(floor.timeline, DEVICE).items() if buffer != RESIDENT),
        key=lambda one: one[1], default=("", 0),
    )  # fmt: skip
    more = [word for word in ALLOWED if word not in floor.attempt.words]
    words = [
        f"budget: nothing fits {format_bytes(asked)}; the least that would is {format_bytes(least)}",
        f"at its peak {', '.join(held)}" + (f", the largest of it {name} {format_bytes(size)}" if size else ""),
        *_full(floor.timeline),
        *([f"allowing {' or '.join(more)} might lower it"] if more else []),
    ]
    return NothingFits("; ".join(words), least)


def held_by(found: Found) -> Counter[str]:
    """Bytes of the device by role, at the moment at which a plan needs most."""
    program = found.attempt.profile.program
    roles = {storage.name: storage.tensor.role for storage in program.storages}
    moved = {found.keys.items[i] for i, shares in enumerate(found.decisions.moved) if any(shares)}
    held: Counter[str] = Counter()
    for buffer, size in at_the_peak(found.timeline, DEVICE).items():
        if buffer == RESIDENT:  # what never leaves, and what stays of that which leaves in part
            for key in program.resident:
                if key not in moved and key not in program.previous:
                    held[program.storages[key].tensor.role] += int(program.sizes[key])
            held["other"] += size - held.total()
            continue
        name = _name(buffer)
        held["workspace" if name == "a workspace" else roles.get(name, "activation")] += size
    return Counter({role.replace("_", " "): size for role, size in held.items() if size > 0})


def _name(buffer: str) -> str:
    """The tensor of a buffer: `x` of `x#2`, of `x#3 again`, of `x/host.1` and of `x packed`."""
    if buffer.startswith("workspace "):
        return "a workspace"
    plain = buffer.partition("#")[0]
    return plain.rpartition("/")[0] or plain.removesuffix(" packed")


def at_the_peak(timeline: Timeline, tier: str) -> dict[str, int]:
    """Buffers of a tier, with their bytes, at the moment at which it holds most."""
    alive: dict[str, int] = {}
    fullest: dict[str, int] = {}
    held = most = 0
    for hold, comes in timeline.events:
        if hold.tier != tier:
            continue
        held += hold.bytes if comes else -hold.bytes
        if comes:
            alive[hold.buffer] = hold.bytes
        else:
            del alive[hold.buffer]
        if held > most:
            most, fullest = held, dict(alive)
    return fullest


def _full(timeline: Timeline) -> list[str]:
    """The tiers beside the device that are too small to take more, in words."""
    found = []
    for name, tier in timeline.program.tiers.items():
        if name == DEVICE or tier.capacity is None or timeline.peak(name) < FULL * tier.capacity:
            continue
        size = format_bytes(tier.capacity)
        found.append(
            f"{name} is too small: its {size} are full" if tier.capacity else f"{name} is 0: nothing can be moved there"
        )
    return found
