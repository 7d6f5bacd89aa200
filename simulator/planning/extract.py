"""From an estimate to the problem that `peakline.solvers.offload` decides: slots, items, groups and segments.

A slot is a stretch of the program, at most what one layer (one repetition of a block) takes. An item is a storage that
the forward pass makes and the backward pass reads. A group is what must be executed to have a storage again: every
operator that writes it. Its segment is the piece of the forward pass that it belongs to, a layer or so; segments are
executed again where torch's checkpointing would do it, just before the first of their saved tensors is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from peakline.planning.groups import Groups
from peakline.planning.moments import Moments, moments_of
from peakline.planning.profiles import Profile, profile
from peakline.solvers.offload.problem import Group, Item, Packing, Problem, Segment, Slot, Tier

__all__ = ["Keys", "Profile", "problem_of", "profile", "saved"]

SMALL = 1 << 16
"""Bytes below which a saved storage is not worth a decision: it stays."""


# ---- the problem ----------------------------------------------------------------------------------------------------
@dataclass
class Keys:
    """What the numbers of the problem stand for.

    Attributes:
        items: storage of each item.
        gaps: step after which each item may leave, and before which it must be back (None: never again).
        groups: forward steps of each group.
        segments: piece of the forward pass of each segment.
        uses: steps that need each storage that lies elsewhere between them (states, parameters).
    """

    items: list[int] = field(default_factory=list)
    gaps: list[tuple[int, int | None]] = field(default_factory=list)
    groups: list[tuple[int, ...]] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)
    uses: dict[int, list[int]] = field(default_factory=dict)


def problem_of(
    profile: Profile, budget: int, tiers: Sequence[Tier], *, recompute: bool = True, swap: bool = True,
    states: frozenset[str] = frozenset(), packings: Mapping[int, Packing] | None = None,
) -> tuple[Problem, Keys]:  # fmt: skip
    """The problem of fitting `profile` into `budget` bytes.

    Args:
        tiers: where items may go; empty for recomputation alone.
        recompute, swap: what may be done with activations.
        states: roles that may be moved as well (`parameter`, `optimizer_state`, `gradient`).
        packings: storages that may be held in fewer bits between the passes, with what that saves and costs.
    """
    keys = Keys()
    between = saved(profile)
    groups = Groups(profile, between) if recompute else None
    moments = moments_of(profile.program, profile.live, profile.slot_of, groups.starts() if groups else {})
    items: list[Item] = []
    number: dict[int, int] = {}
    longer: dict[int, int] = {}
    for key, (last, first) in between.items():
        number[key] = len(items)
        keys.items.append(key)
        keys.gaps.append((last, first))
        group = groups.of.get(key, -1) if groups else -1
        items.append(_saved_item(profile, moments, key, last, first, group, groups, bool(tiers) and swap))
        if packings and key in packings:
            until = min(first, groups.needed.get(key, first)) if groups else first
            items[-1] = replace(items[-1], packing=replace(packings[key], idle=_packed(moments, last, until, groups)))
    if groups:
        for key in groups.boundary:
            number[key] = len(items)
            keys.items.append(key)
            keys.gaps.append((max(profile.touches[key]), groups.needed[key]))
            items.append(_extra_item(profile, moments, key, groups, bool(tiers) and swap))
        for key in groups.longer:
            longer[key] = len(items)
            keys.items.append(key)
            keys.gaps.append((int(profile.program.deaths[key]), groups.longer[key][0]))
            items.append(_longer_item(profile, moments, key, groups))
    if tiers and ("gradient" in states or profile.host is not None):
        for key, (last, turn) in _gradients(profile).items():
            keys.items.append(key)
            keys.gaps.append((last, None if profile.host else turn))
            items.append(_gradient_item(profile, moments, key, last, turn))
    for role in sorted(states - {"gradient"}):
        for key in profile.program.resident:
            if profile.program.storages[key].tensor.role == role and profile.program.sizes[key] >= SMALL and tiers:
                keys.items.append(key)
                keys.gaps.append((0, None))
                keys.uses[key] = _uses(profile, key, groups)
                items.append(_state_item(profile, key, keys.uses[key]))
    made: tuple[Group, ...] = ()
    segments: tuple[Segment, ...] = ()
    if groups:
        made, segments = groups.problem(number, longer, moments)
        keys.groups, keys.segments = groups.steps, groups.segments
    slots = tuple(
        [
            Slot(sum(profile.seconds[first : last + 1]), max(profile.live[first : last + 1]))
            for first, last in profile.slots
        ]
    )
    rows, told, parts = moments.compressed(items, made)
    return Problem(slots, tuple(told), tuple(parts), segments, tuple(tiers), budget, moments=tuple(rows)), keys


def saved(profile: Profile) -> dict[int, tuple[int, int]]:
    """Storages made before the turn and read after it: their last forward and first backward touch.

    What variables alone hold that long (a loss, until the step is over) is not autograd's to save, nor to be moved.
    """
    program, turn = profile.program, profile.turn
    found = {}
    for key, birth in enumerate(program.births):
        if 0 <= birth < turn and program.deaths[key] >= turn and int(program.sizes[key]) >= SMALL:
            steps = profile.touches[key]
            before, after = [i for i in steps if i < turn], [i for i in steps if i >= turn]
            last = max(before[-1], profile.held[key])
            read = any(profile.steps[i].operator.type != "release" for i in after)
            if read and profile.slot_of[after[0]] > profile.slot_of[last]:
                found[key] = (last, after[0])
    return found


def _gradients(profile: Profile) -> dict[int, tuple[int, int]]:
    """Gradients made in the backward pass: their last touch there, and their turn in the optimizer."""
    program, found = profile.program, {}
    for key, birth in enumerate(program.births):
        if birth >= profile.turn and program.storages[key].tensor.role == "gradient":
            phases = [(i, profile.steps[i].operator.phase) for i in profile.touches[key]]
            before, after = [i for i, p in phases if p != "optimizer"], [i for i, p in phases if p == "optimizer"]
            if before and after and int(program.sizes[key]) >= (0 if profile.host else SMALL):
                found[key] = (_completed(profile, before[-1]), after[0])
    return found


def _completed(profile: Profile, step: int) -> int:
    """The last step of the node of autograd's graph that a step belongs to: its gradients are a parameter's after that.

    A linear layer's node multiplies twice and sums for the bias before `AccumulateGrad` sees any of the three. What
    follows without a break and is called from the same line of the same module is taken to be of the same node.
    """

    def node(i: int) -> tuple[object, ...] | None:
        one = profile.steps[i]
        line = one.operator.attributes.get("line")
        return (one.block.name, one.layer, one.operator.module, line) if line else None

    last, mine = step, node(step)
    for i in range(step + 1, len(profile.steps) if mine else 0):
        if profile.steps[i].operator.type == "release":
            continue
        if node(i) != mine:
            break
        last = i
    return last


def _gradient_item(profile: Profile, moments: Moments, key: int, last: int, turn: int) -> Item:
    """A gradient: it goes out once it is complete, and comes back for its turn unless the host takes that."""
    size, gone = int(profile.program.sizes[key]), ((profile.slot_of[last], True),)
    if profile.host is not None:
        return Item(_name(profile, key), size, (0, -1), -1, gone, (), must_move=True, gone_by=profile.slot_of[turn])
    return Item(_name(profile, key), size, moments.between(last, turn), -1, gone, (profile.slot_of[turn],))


def _packed(moments: Moments, last: int, until: int, groups: Groups | None) -> tuple[int, int]:
    """Moments between a step and the next that reads it, or the second executions that come just before that one."""
    start, end = moments.between(last, until)
    return start, end - (groups.length(until) if groups else 0)


def _name(profile: Profile, key: int) -> str:
    return profile.program.storages[key].name


def _saved_item(
    profile: Profile, moments: Moments, key: int, last: int, first: int, group: int, groups: Groups | None,
    movable: bool,
) -> Item:  # fmt: skip
    """A storage that autograd keeps: gone from its last use to its first, or to where its segment is made again."""
    start, end = moments.between(last, first)
    if groups and group >= 0:
        end = moments.again[profile.program.births[key]] - 1
    needed = min(first, groups.needed.get(key, first)) if groups else first
    return Item(
        _name(profile, key), int(profile.program.sizes[key]), (start, end), group, ((profile.slot_of[last], True),),
        (profile.slot_of[needed],), movable=movable,
    )  # fmt: skip


def _extra_item(profile: Profile, moments: Moments, key: int, groups: Groups, movable: bool) -> Item:
    """A storage nobody saves that segments would need to be made again: a layer's input.

    Kept for one of them it is there until the first is executed again at least, and until after the last at most.
    """
    last = max(*profile.touches[key], min(int(profile.program.deaths[key]), len(profile.steps) - 1))
    needed, until = groups.needed[key], groups.until[key]
    start, end = moments.between(last, needed)
    return Item(
        _name(profile, key), int(profile.program.sizes[key]), (start, end - groups.length(needed) + 1), -1,
        ((profile.slot_of[last], True),), (profile.slot_of[needed],), movable=movable, extra=True,
        lingers=moments.at[until],
    )  # fmt: skip


def _longer_item(profile: Profile, moments: Moments, key: int, groups: Groups) -> Item:
    """A saved storage after its last use, which a segment would need that is made again later than that."""
    last, (needed, until) = int(profile.program.deaths[key]), groups.longer[key]
    start, end = moments.between(last, needed)
    return Item(
        f"{_name(profile, key)} (for longer)", int(profile.program.sizes[key]),
        (start, end - groups.length(needed) + 1), movable=False, extra=True, lingers=moments.at[until],
    )  # fmt: skip


def _uses(profile: Profile, key: int, groups: Groups | None) -> list[int]:
    """Steps that touch a resident tensor, and those before which a segment that reads it may be made again."""
    found = set(profile.touches.get(key, ()))
    for number, steps in enumerate(groups.steps if groups else ()):
        if any(key in profile.steps[i].touches for i in steps):
            found.add(groups.start[groups.segment_of[number]] if groups else 0)
    return sorted(found)


def _state_item(profile: Profile, key: int, uses: list[int]) -> Item:
    """A resident tensor: it lies in the tier, comes in before each slot that uses it and leaves after.

    What the optimizer writes goes out again; everywhere else the tier's copy is still good.
    """
    slot_of = profile.slot_of
    phases = {slot_of[i]: profile.steps[i].operator.phase for i in uses}
    slots = sorted(phases)
    apart = [_far(profile, one, other) for one, other in pairwise(slots)]
    returns = [slot for slot, away in zip(slots, [True, *apart]) if away]
    leaves = [(slot, phases[slot] == "optimizer") for slot, away in zip(slots, [*apart, True]) if away]
    return Item(
        _name(profile, key), int(profile.program.sizes[key]), (0, -1), -1, tuple(leaves), tuple(returns), away=True
    )


def _far(profile: Profile, one: int, other: int) -> bool:
    """Whether two slots are far enough apart for a tensor to leave in between: a layer's time."""
    first, last = profile.slots[one][1] + 1, profile.slots[other][0]
    return last > first and sum(profile.seconds[first:last]) >= profile.layer_seconds / 2
