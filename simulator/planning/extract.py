"""From an estimate to the problem that `peakline.solvers.offload` decides: slots, items, groups and segments.

A slot is the stretch of the program that one layer (one repetition of a block) takes. An item is a storage that the
forward pass makes and the backward pass reads. A group is what must be executed to have a storage again: every operator
that writes it. Its segment is the layer whose forward pass it belongs to; segments are executed again where torch's
checkpointing would do it, just before the first of their saved tensors is read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from peakline.memory.lifetimes import Program, Step
from peakline.models.operators import operator_type
from peakline.planning.held import held_until
from peakline.planning.turns import HostOptimizer, in_turns
from peakline.planning.whole import is_captured
from peakline.result import Estimate
from peakline.solvers.offload.problem import Group, Item, Packing, Problem, Segment, Slot, Tier
from peakline.timeline import step_seconds

__all__ = ["Profile", "problem_of", "profile"]

SMALL = 1 << 16
"""Bytes below which a saved storage is not worth a decision: it stays."""

LONGEST = 48
"""Steps of a slot at most: a long block without repetition is cut."""

SHORTEST = 8
"""Steps of such a slot at least."""

PIECES = 64
"""Slots into which what does not repeat is cut, where these bounds let it."""

STATES = frozenset({"parameter", "optimizer_state"})


@dataclass(frozen=True)
class Profile:
    """What the planner knows of a program, by step.

    Attributes:
        estimate: of the step as it is.
        program: its program, with the optimizer in turns where that was asked for.
        seconds: of each step, as tiled.
        live: bytes alive while each step runs, if nothing leaves.
        slot_of: slot of each step.
        slots: (first, last) step of each slot.
        turn: first step of the backward pass; the number of steps if there is none.
        touches: steps that touch each storage, in order.
        makers: forward steps that write each storage.
        fullest: step of each slot at which most is alive.
        held: last step of the forward pass during which Python holds each storage, as far as it is known; else −1.
        host: the host that runs the optimizer, if it does.
    """

    estimate: Estimate
    program: Program
    seconds: list[float]
    live: list[int]
    slot_of: list[int]
    slots: list[tuple[int, int]]
    turn: int
    touches: dict[int, list[int]]
    makers: dict[int, list[int]]
    fullest: list[int]
    held: list[int]
    host: HostOptimizer | None = None

    @property
    def steps(self) -> list[Step]:
        """Its steps."""
        return self.program.steps


def profile(estimate: Estimate, *, turns: bool = False, host: HostOptimizer | None = None) -> Profile:
    """Read the program of an estimate.

    Args:
        turns: cut the optimizer into a turn per layer.
        host: let the host take the turns.

    Raises:
        ValueError: a sweep, a step with recomputation of its own, or an optimizer that cannot be cut.
    """
    if estimate.graph.is_sweep:
        raise ValueError("a sweep has no single plan; estimate one configuration")
    program, seconds = estimate.memory.program, step_seconds(estimate)
    if turns or host is not None:
        program, seconds = in_turns(program, seconds, host)
    steps = program.steps
    if any(step.operator.phase == "recompute" for step in steps):
        raise ValueError("the step recomputes already; plan it with recompute='none' and let the plan decide")
    slot_of, slots = _slots(steps)
    turn = next((i for i, step in enumerate(steps) if step.operator.phase == "backward"), len(steps))
    touches: dict[int, list[int]] = defaultdict(list)
    makers: dict[int, list[int]] = defaultdict(list)
    for i, step in enumerate(steps):
        for key in dict.fromkeys(step.touches):
            touches[key].append(i)
        if i < turn and operator_type(step.operator.type).launches:
            for key in _written(step):
                makers[key].append(i)
    live = _live(program)
    fullest = [max(range(first, last + 1), key=live.__getitem__) for first, last in slots]
    held = [-1] * len(program.births)
    if is_captured(estimate.graph):
        held = held_until(steps, program.births, touches, turn)
    return Profile(
        estimate, program, seconds, live, slot_of, slots, turn, dict(touches), dict(makers), fullest, held, host
    )


def _live(program: Program) -> list[int]:
    """Bytes alive while each step runs."""
    change = np.zeros(len(program.steps) + 1, dtype=np.int64)
    resident = set(program.resident)
    for key, (birth, death, size) in enumerate(zip(program.births, program.deaths, program.sizes)):
        if key in resident:
            change[0] += int(size)
            if key in program.previous:  # the step before left it, and this one frees it
                change[min(death, len(program.steps) - 1) + 1] -= int(size)
        elif birth >= 0:
            change[birth] += int(size)
            change[min(death, len(program.steps) - 1) + 1] -= int(size)
    live = np.cumsum(change[:-1])
    inside = {operator: sum(map(int, sizes)) for operator, sizes in program.workspaces.items()}
    live += np.asarray([inside.get(id(step.operator), 0) for step in program.steps], dtype=np.int64)
    return [int(x) for x in live]


def _written(step: Step) -> tuple[int, ...]:
    """Storages that the step makes or overwrites."""
    written = step.touches[-len(step.operator.outputs) :] if step.operator.outputs else ()
    return tuple(dict.fromkeys((*step.makes, *written)))


def _slots(steps: Sequence[Step]) -> tuple[list[int], list[tuple[int, int]]]:
    """Slot of each step, and the steps of each slot: consecutive steps of one repetition of one block, cut where long.

    The optimizer is cut operator by operator where it walks over parameters one at a time.
    """
    slot_of: list[int] = []
    slots: list[tuple[int, int]] = []
    before: tuple[str, int, str] | None = None
    longest = max(SHORTEST, min(LONGEST, sum(step.block.family is None for step in steps) // PIECES))
    for i, step in enumerate(steps):
        here = (step.block.name, step.layer, step.operator.phase)
        if here != before or (step.block.family is None and i - slots[-1][0] >= longest):
            slots.append((i, i))
            before = here
        slots[-1] = (slots[-1][0], i)
        slot_of.append(len(slots) - 1)
    return slot_of, slots


# ---- the problem ----------------------------------------------------------------------------------------------------
@dataclass
class Keys:
    """What the numbers of the problem stand for.

    Attributes:
        items: storage of each item.
        gaps: step after which each item may leave, and before which it must be back (None: never again).
        groups: forward steps of each group.
        segments: slot of the forward pass of each segment.
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
    groups = _Groups(profile, between) if recompute else None
    items: list[Item] = []
    number: dict[int, int] = {}
    for key, (last, first) in between.items():
        number[key] = len(items)
        keys.items.append(key)
        keys.gaps.append((last, first))
        group = groups.of.get(key, -1) if groups else -1
        items.append(_saved_item(profile, key, last, first, group, groups, bool(tiers) and swap))
        if packings and key in packings:
            until = min(first, groups.needed.get(key, first)) if groups else first
            items[-1] = replace(items[-1], packing=replace(packings[key], idle=_idle(profile, last, until)))
    if groups:
        for key in groups.boundary:
            number[key] = len(items)
            keys.items.append(key)
            keys.gaps.append((max(profile.touches[key]), groups.needed[key]))
            items.append(_extra_item(profile, key, groups, bool(tiers) and swap))
    if tiers and ("gradient" in states or profile.host is not None):
        for key, (last, turn) in _gradients(profile).items():
            keys.items.append(key)
            keys.gaps.append((last, None if profile.host else turn))
            items.append(_gradient_item(profile, key, last, turn))
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
        made, segments = groups.problem(number)
        keys.groups, keys.segments = groups.steps, groups.segments
    slots = tuple(
        [
            Slot(sum(profile.seconds[first : last + 1]), profile.live[full])
            for (first, last), full in zip(profile.slots, profile.fullest)
        ]
    )
    return Problem(slots, tuple(items), made, segments, tuple(tiers), budget), keys


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
                found[key] = (before[-1], after[0])
    return found


def _gradient_item(profile: Profile, key: int, last: int, turn: int) -> Item:
    """A gradient: it goes out once it is complete, and comes back for its turn unless the host takes that."""
    size, gone = int(profile.program.sizes[key]), ((profile.slot_of[last], True),)
    if profile.host is not None:
        return Item(_name(profile, key), size, (0, -1), -1, gone, (), must_move=True, gone_by=profile.slot_of[turn])
    return Item(_name(profile, key), size, _idle(profile, last, turn), -1, gone, (profile.slot_of[turn],))


def _idle(profile: Profile, last: int, first: int) -> tuple[int, int]:
    """Slots whose fullest moment lies strictly between two steps."""
    start, end = profile.slot_of[last], profile.slot_of[first]
    start += profile.fullest[start] <= last
    end -= profile.fullest[end] >= first
    return start, end


def _name(profile: Profile, key: int) -> str:
    return profile.program.storages[key].name


def _saved_item(
    profile: Profile, key: int, last: int, first: int, group: int, groups: _Groups | None, movable: bool
) -> Item:
    """A storage that autograd keeps: gone from its last use to its first, or to where its segment is made again."""
    back = first
    if groups and group >= 0:
        back = min(first, groups.start[groups.segment_of[group]])
    needed = min(first, groups.needed.get(key, first)) if groups else first
    return Item(
        _name(profile, key),
        int(profile.program.sizes[key]),
        _idle(profile, last, back),
        group,
        ((profile.slot_of[last], True),),
        (profile.slot_of[needed],),
        movable=movable,
    )


def _extra_item(profile: Profile, key: int, groups: _Groups, movable: bool) -> Item:
    """A storage nobody saves that segments would need to be made again: a layer's input."""
    last = max(i for i in profile.touches[key])
    needed, until = groups.needed[key], groups.until[key]
    return Item(
        _name(profile, key),
        int(profile.program.sizes[key]),
        _idle(profile, last, until),
        -1,
        ((profile.slot_of[last], True),),
        (profile.slot_of[needed],),
        movable=movable,
        extra=True,
    )


def _uses(profile: Profile, key: int, groups: _Groups | None) -> list[int]:
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
    phases = {profile.slot_of[i]: profile.steps[i].operator.phase for i in uses}
    slots = sorted(phases)
    leaves, returns = [], []
    for j, slot in enumerate(slots):
        if j == 0 or slots[j - 1] < slot - 1:
            returns.append(slot)
        if j + 1 == len(slots) or slots[j + 1] > slot + 1:
            leaves.append((slot, phases[slot] == "optimizer"))
    return Item(
        _name(profile, key), int(profile.program.sizes[key]), (0, -1), -1, tuple(leaves), tuple(returns), away=True
    )


class _Groups:
    """Groups of the forward pass: storages that are made by the same operators, and what these read."""

    def __init__(self, profile: Profile, saved: dict[int, tuple[int, int]]) -> None:
        self.profile, self.saved = profile, saved
        self.of: dict[int, int] = {}
        self.steps: list[tuple[int, ...]] = []
        self.segment_of: list[int] = []
        self.segments: list[int] = []
        self.start: dict[int, int] = {}
        self.reads: list[set[int]] = []
        self.boundary: list[int] = []
        self.needed: dict[int, int] = {}
        self.until: dict[int, int] = {}
        self._segments()
        self._collect()
        self._borders()

    def _segments(self) -> None:
        """Slots of the forward pass in which something saved is made; each starts again before its first use."""
        first: dict[int, int] = {}
        for key, (_, use) in self.saved.items():
            slot = self.profile.slot_of[self.profile.program.births[key]]
            first[slot] = min(first.get(slot, use), use)
        self.segments = sorted(first)
        self.start = {i: first[slot] for i, slot in enumerate(self.segments)}

    def _collect(self) -> None:
        """One group per storage made in a segment; storages with an operator in common share it."""
        profile, number = self.profile, {slot: i for i, slot in enumerate(self.segments)}
        owner: dict[int, int] = {}
        members: dict[int, set[int]] = {}
        for key, made in profile.makers.items():
            if profile.program.births[key] < 0:
                continue  # something resident that the forward pass writes (running statistics)
            slots = {profile.slot_of[i] for i in made}
            if len(slots) != 1 or not slots <= number.keys():
                continue
            joined = {owner[i] for i in made if i in owner}
            head = min(joined, default=key)
            group = members.setdefault(head, set())
            for other in joined - {head}:
                group |= members.pop(other)
            group.add(key)
            for j in [j for k in group for j in profile.makers[k]]:
                owner[j] = head
        for storages in members.values():
            steps = tuple(sorted({i for key in storages for i in profile.makers[key]}))
            if self._overwritten(steps, storages):
                continue
            index = len(self.steps)
            for key in storages:
                self.of[key] = index
            self.steps.append(steps)
            self.segment_of.append(number[profile.slot_of[steps[0]]])
            read = {key for i in steps for key in profile.steps[i].touches} - storages
            self.reads.append({key for key in read if profile.program.births[key] >= 0})

    def _overwritten(self, steps: tuple[int, ...], storages: set[int]) -> bool:
        """Whether the group reads what somebody writes over later: executed again, it would read the new value."""
        makers = self.profile.makers
        return any(
            makers.get(key, [i])[-1] > i for i in steps for key in self.profile.steps[i].touches if key not in storages
        )

    def _borders(self) -> None:
        """Storages that a segment would need and that it does not make: needed from, and until, which steps."""
        for index, read in enumerate(self.reads):
            start = self.start[self.segment_of[index]]
            for key in read:
                mine = key in self.of and self.segment_of[self.of[key]] == self.segment_of[index]
                if mine:
                    continue
                self.needed[key] = min(self.needed.get(key, start), start)
                self.until[key] = max(self.until.get(key, start), start)
        self.boundary = [key for key in self.needed if key not in self.saved]
        for key, group in self.of.items():  # what a segment's own groups read must be there when it is made again
            if key in self.saved and any(key in read for read in self.reads):
                start = self.start[self.segment_of[group]]
                self.needed[key] = min(self.needed.get(key, start), start)

    def problem(self, number: dict[int, int]) -> tuple[tuple[Group, ...], tuple[Segment, ...]]:
        """Groups and segments in the numbers of the problem; `number`: item of each storage that is one."""
        profile = self.profile
        groups = []
        for index, (steps, read) in enumerate(zip(self.steps, self.reads)):
            segment = self.segment_of[index]
            inner = {
                self.of[k] for k in read if k not in number and k in self.of and self.segment_of[self.of[k]] == segment
            }
            groups.append(
                Group(
                    profile.steps[steps[-1]].name,
                    sum(profile.seconds[i] for i in steps),
                    segment,
                    tuple(sorted(number[k] for k in read if k in number)),
                    tuple(sorted(inner - {index})),
                )
            )
        segments = tuple(
            [
                Segment(
                    profile.steps[profile.slots[slot][0]].name,
                    profile.slot_of[self.start[i]],
                    self._transient(slot),
                )
                for i, slot in enumerate(self.segments)
            ]
        )
        return tuple(groups), segments

    def _transient(self, slot: int) -> int:
        """Most bytes that the segment's forward pass holds of what nobody saves."""
        profile, (first, last) = self.profile, self.profile.slots[slot]
        program, most = profile.program, 0
        alive: dict[int, int] = {}
        for i in range(first, last + 1):
            for key in profile.steps[i].makes:
                if key not in self.saved:
                    alive[key] = int(program.sizes[key])
            inside = sum(map(int, program.workspaces.get(id(profile.steps[i].operator), ())))
            most = max(most, sum(alive.values()) + inside)
            for key in [key for key in alive if program.deaths[key] <= i]:
                del alive[key]
        return most
