"""A plan as instructions by step: what to expect, what to let go, what to make again, what to send and to fetch, when.

Plain numbers, without torch. Steps are those of the plan's program; storages are its keys. The forward pass is followed
operator by operator, and must be the plan's. The backward pass is followed by its operators and by what autograd asks
for: the first time that a storage made in the forward pass is read there tells which step has come at least.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from peakline.planning.whole import is_captured

if TYPE_CHECKING:
    from peakline.models.graph import Tensor
    from peakline.planning.plan import OffloadPlan

__all__ = ["PACKED", "Action", "Expected", "Script", "script_of"]

Kind: TypeAlias = Literal["drop", "fetch", "recompute", "leave", "bring"]
_NO_STEPS = ("recompute", "offload", "fetch", "pack", "unpack")

PACKED = "packed"
"""The tier of what stays on the device in fewer bits."""

_ORDER: dict[str, int] = {"drop": 0, "leave": 0, "fetch": 1, "bring": 1, "recompute": 2}


@dataclass(frozen=True, slots=True)
class Expected:
    """An operator of the forward pass.

    Attributes:
        step: its number in the plan's program.
        type: as in `aten.addmm`.
        name, line: where the user finds it.
        makes: storages it makes, in order.
        shapes: of these.
    """

    step: int
    type: str
    name: str
    line: str
    makes: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Action:
    """Something to do before a step: drop a storage that has been sent, fetch one, make a segment again.

    `leave` and `bring` are the same for parameters.
    """

    kind: Kind
    number: int


@dataclass
class Script:
    """Instructions.

    Attributes:
        expected: operators of the forward pass in order.
        again: storages that are let go and made again.
        moved: tier of each storage that leaves, or `PACKED`.
        sends: storages to send after each step, their last use of the forward pass.
        actions: what to do before each step, in order.
        segments: forward steps that each segment executes again.
        segment_of: segment of each of these steps.
        operands: storages that each segment reads and does not make itself.
        first_use: step of the backward pass that first touches each storage of the forward pass.
        names: of storages.
        turn: first step of the backward pass.
        backward: steps of the backward pass with the types of their operators, in order.
        parameters: names of the parameters that lie elsewhere, by number; their tiers are in `moved` too.
        lets: storages to be made again that each step of the forward pass is the last to see.
        shapes: of the module's parameters, by name.
        formats: of the module's parameters, by name: `fp32`.
        trained: names of the parameters that have a gradient.
        states: tier of each optimizer state that leaves, by name; `*` for all of them.
        gradients: names of the parameters whose gradients leave.
        turns: names of the parameters of each turn of the optimizer.
        update: where the optimizer runs, `device` or `host`.
        codec: format of what is packed.
        began: for each step of the backward pass the first of those of its module that it follows without a break:
            autograd asks for all that a node has saved before the first of its operators runs.
    """

    expected: list[Expected]
    turn: int = 0
    again: frozenset[int] = frozenset()
    moved: dict[int, str] = field(default_factory=dict)
    sends: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    actions: dict[int, list[Action]] = field(default_factory=lambda: defaultdict(list))
    segments: dict[int, tuple[int, ...]] = field(default_factory=dict)
    segment_of: dict[int, int] = field(default_factory=dict)
    operands: dict[int, frozenset[int]] = field(default_factory=dict)
    first_use: dict[int, int] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    backward: list[tuple[int, str]] = field(default_factory=list)
    lets: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    parameters: dict[int, str] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    formats: dict[str, str] = field(default_factory=dict)
    trained: list[str] = field(default_factory=list)
    states: dict[str, str] = field(default_factory=dict)
    gradients: list[str] = field(default_factory=list)
    turns: list[list[str]] = field(default_factory=list)
    update: str = "device"
    codec: str | None = None
    began: dict[int, int] = field(default_factory=dict)


def script_of(plan: OffloadPlan) -> Script:
    """The instructions of a plan.

    Raises:
        ValueError: the plan is of a built-in graph, whose operators are not those that torch dispatches.
    """
    if not is_captured(plan.graph):
        raise ValueError(
            f"plan of {plan.graph.name}: its graph is a built-in one, whose operators cannot be lined up with those "
            "that torch dispatches; plan what pk.capture(module, inputs, optimizer=..., device=...) returns"
        )
    profile = plan.made.profile
    script = Script(_expected(plan), profile.turn)
    births, turn = profile.program.births, profile.turn
    forward = {key for key, birth in enumerate(births) if 0 <= birth < turn}
    script.names = {key: profile.program.storages[key].name for key in forward}
    script.first_use = {
        key: steps[i]
        for key in forward
        if (steps := profile.touches.get(key, [])) and (i := bisect_left(steps, turn)) < len(steps)
    }
    script.backward = [
        (i, step.operator.type)
        for i, step in enumerate(profile.steps)
        if step.operator.phase == "backward" and step.operator.type != "release"
    ]
    script.began = _beginnings(plan, [step for step, _ in script.backward])
    _recomputation(plan, script, forward)
    _moves(plan, script, forward)
    _parameters(plan, script)
    for actions in script.actions.values():
        actions.sort(key=lambda action: _ORDER[action.kind])
    own = _own(plan)
    script.shapes = {name: tuple(int(n) for n in tensor.shape) for name, tensor in own.items()}
    script.formats = {name: tensor.dtype.name for name, tensor in own.items()}
    graded = {s.name.removesuffix(".grad") for s in profile.program.storages if s.tensor.role == "gradient"}
    script.trained = [name for name in own if name in graded]
    script.states, script.update, script.codec = _moved_states(plan), plan.optimizer, plan.codec
    script.gradients = [d.tensor.removesuffix(".grad") for d in plan.decisions if d.role == "gradient" and d.moved]
    script.turns = _turns(plan)
    return script


def _expected(plan: OffloadPlan) -> list[Expected]:
    profile = plan.made.profile
    found = []
    for i, step in enumerate(profile.steps[: profile.turn]):
        if step.operator.phase != "forward" or step.operator.type == "release":
            continue
        shapes = tuple(tuple(int(n) for n in profile.program.storages[key].tensor.shape) for key in step.makes)
        line = str(step.operator.attributes.get("line", ""))
        found.append(Expected(i, step.operator.type, step.name, line, step.makes, shapes))
    return found


def _beginnings(plan: OffloadPlan, backward: list[int]) -> dict[int, int]:
    """The first of the steps of the same module without a break, by step."""
    steps, found = plan.made.profile.steps, dict[int, int]()
    before: tuple[str, int, str] | None = None
    first = 0
    for i in backward:
        here = (steps[i].block.name, steps[i].layer, steps[i].operator.module)
        if here != before:
            before, first = here, i
        found[i] = first
    return found


def _recomputation(plan: OffloadPlan, script: Script, forward: set[int]) -> None:
    """Segments: their steps, when they run, and what they read."""
    profile, problem, keys, decisions = plan.made
    script.again = frozenset(
        key
        for item, key in zip(problem.items, keys.items)
        if item.group >= 0 and decisions.executed[item.group] and key in forward
    )
    for key in script.again:
        seen = [i for i in profile.touches[key] if i < profile.turn]
        script.lets[max(profile.held[key], *seen)].append(key)
    steps: dict[int, set[int]] = defaultdict(set)
    for number, group in enumerate(problem.groups):
        if decisions.executed[number]:
            steps[group.segment].update(keys.groups[number])
    for segment, chosen in steps.items():
        script.segments[segment] = tuple(sorted(chosen))
        script.segment_of.update(dict.fromkeys(chosen, segment))
        made: set[int] = set()
        read: set[int] = set()
        for i in script.segments[segment]:
            step = profile.steps[i]
            read.update(key for key in step.touches if key in forward and key not in made and key not in step.makes)
            made.update(step.makes)
        script.operands[segment] = frozenset(read)
        first = min(
            back
            for item, key, (_, back) in zip(problem.items, keys.items, keys.gaps)
            if not item.extra and not item.away and back is not None and key in forward
            and profile.piece_of[profile.program.births[key]] == keys.segments[segment]
        )  # fmt: skip
        script.actions[first].append(Action("recompute", segment))


def _moves(plan: OffloadPlan, script: Script, forward: set[int]) -> None:
    """What leaves and comes back, at the steps during which the plan's timeline ends and starts the copies."""
    _, problem, keys, decisions = plan.made
    tiers = [tier.name for tier in problem.tiers]
    by_name: dict[str, int] = {}
    for key, shares, gap in zip(keys.items, decisions.moved, keys.gaps):
        if key in forward and any(shares):
            script.moved[key] = tiers[max(range(len(shares)), key=shares.__getitem__)]
            script.sends[gap[0]].append(key)
            by_name[script.names[key]] = key
    for number, (key, gap) in enumerate(zip(keys.items, keys.gaps)):
        if key in forward and decisions.packed_share(number):
            script.moved[key] = PACKED
            script.sends[gap[0]].append(key)
            by_name[script.names[key]] = key
    if not by_name:
        return
    # one per step, in order
    computing = [run for run in plan.timeline.runs if run.task.kind not in _NO_STEPS]
    starts = [run.start for run in computing]
    ended: set[int] = set()
    for run in sorted(plan.timeline.runs, key=lambda run: run.end if run.task.kind == "offload" else run.start):
        carried = by_name.get(run.task.name.partition(" ")[2])
        if carried is None:
            continue
        if run.task.kind == "offload":
            during = bisect_left(starts, run.end) - 1
            ended.add(during)
            script.actions[during + 1].append(Action("drop", carried))
        elif run.task.kind == "fetch":
            following = bisect_left(starts, run.start)
            inside = following > 0 and starts[following - 1] < run.start < computing[following - 1].end
            early = inside and following - 1 not in ended  # what left during that step may be what made room
            script.actions[following - early].append(Action("fetch", carried))
        elif run.task.kind == "unpack":
            script.actions[bisect_left(starts, run.start)].append(Action("fetch", carried))


def _parameters(plan: OffloadPlan, script: Script) -> None:
    """Parameters that come for the forward and the backward pass, when the plan's timeline begins to fetch them.

    What the optimizer needs comes and goes with its turns.
    """
    profile, problem, keys, decisions = plan.made
    tiers = [tier.name for tier in problem.tiers]
    numbers: dict[str, int] = {}
    end = next((i for i, step in enumerate(profile.steps) if step.operator.phase == "optimizer"), len(profile.steps))
    for key, item, shares in zip(keys.items, problem.items, decisions.moved):
        storage = profile.program.storages[key]
        if not (item.away and any(shares) and storage.tensor.role == "parameter"):
            continue
        script.parameters[key] = script.names[key] = storage.name
        script.moved[key] = tiers[max(range(len(shares)), key=shares.__getitem__)]
        numbers[storage.name] = key
        uses = keys.uses[key]
        back = [i for i in uses if profile.turn <= i < end]
        if back:
            script.first_use[key] = back[0]
        for slot, _ in item.leaves:
            last = max(i for i in uses if profile.slot_of[i] <= slot)
            if last < end:
                script.actions[last + 1].append(Action("leave", key))
    computing = [run for run in plan.timeline.runs if run.task.kind not in _NO_STEPS]
    starts = [run.start for run in computing]
    for run in plan.timeline.runs:
        key_of = numbers.get(run.task.name.partition(" ")[2])
        if run.task.kind == "fetch" and key_of is not None:
            step = bisect_left(starts, run.start)
            if step < end:
                script.actions[step].append(Action("bring", key_of))


# ---- the optimizer --------------------------------------------------------------------------------------------------
def _own(plan: OffloadPlan) -> dict[str, Tensor]:
    """The module's parameters, by name."""
    program = plan.made.profile.program
    storages = [program.storages[key] for key in program.resident]
    return {s.name: s.tensor for s in storages if s.tensor.role == "parameter"}


def _moved_states(plan: OffloadPlan) -> dict[str, str]:
    """Tier of each optimizer state that the plan moves; all on the host where the host takes the updates."""
    found = {
        decision.tensor: max(decision.moved, key=decision.moved.__getitem__)
        for decision in plan.decisions
        if decision.role == "optimizer_state" and decision.moved
    }
    if plan.optimizer == "host" and not found:
        return {"*": "host"}
    return found


def _turns(plan: OffloadPlan) -> list[list[str]]:
    """Names of the parameters of each of the plan's turns."""
    program = plan.made.profile.program
    storages = [
        [program.storages[key] for key in dict.fromkeys(step.touches)]
        for step in program.steps
        if step.operator.type == "update_pass"
    ]
    return [[s.name for s in turn if s.tensor.role == "parameter"] for turn in storages]
