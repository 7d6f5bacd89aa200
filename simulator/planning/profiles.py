"""What the planner knows of a program: seconds, bytes and touches by step; slots, and what runs again together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from peakline.memory.lifetimes import Program, Step
from peakline.models.operators import operator_type
from peakline.planning.held import held_until
from peakline.planning.pieces import borders
from peakline.planning.turns import HostOptimizer, in_turns
from peakline.planning.whole import is_captured
from peakline.result import Estimate
from peakline.timeline import step_seconds

__all__ = ["Profile", "profile"]

LONGEST = 48
"""Steps of a slot at most: a long block without repetition is cut."""

SHORTEST = 8
"""Steps of such a slot at least."""

PIECES = 64
"""Slots into which what does not repeat is cut, where these bounds let it."""


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
        piece_of: piece of each step of the forward pass: what is executed again together.
        turn: first step of the backward pass; the number of steps if there is none.
        touches: steps that touch each storage, in order.
        makers: forward steps that write each storage.
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
    held: list[int]
    piece_of: list[int]
    host: HostOptimizer | None = None

    @property
    def steps(self) -> list[Step]:
        """Its steps."""
        return self.program.steps

    @cached_property
    def layer_seconds(self) -> float:
        """Seconds of a piece, forward or backward, on average."""
        return sum(self.seconds) / (2 * max(len(set(self.piece_of[: self.turn])), 1))


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
    slots = _slots(program, turn, touches, makers)
    slot_of = [number for number, (first, last) in enumerate(slots) for _ in range(first, last + 1)]
    held = [-1] * len(program.births)
    if is_captured(estimate.graph):
        held = held_until(steps, program.births, touches, turn)
    return Profile(
        estimate, program, seconds, live, slot_of, slots, turn, dict(touches), dict(makers), held, slot_of, host
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


def _blocks(steps: Sequence[Step]) -> list[tuple[int, int]]:
    """Consecutive steps of one repetition of one block, in one phase."""
    found: list[tuple[int, int]] = []
    before: tuple[str, int, str] | None = None
    for i, step in enumerate(steps):
        here = (step.block.name, step.layer, step.operator.phase)
        if here != before:
            found.append((i, i))
            before = here
        found[-1] = (found[-1][0], i)
    return found


def _slots(
    program: Program, turn: int, touches: Mapping[int, list[int]], makers: Mapping[int, list[int]]
) -> list[tuple[int, int]]:
    """The steps of each slot: consecutive steps of one repetition of one block, cut where that is long.

    What does not repeat is cut where the fewest bytes cross; its backward pass, and an optimizer that walks over
    parameters one at a time, into stretches as long.
    """
    steps = program.steps
    loose = sum(step.block.family is None for step in steps[:turn])
    length = max(SHORTEST, min(LONGEST, loose // PIECES))
    found: list[tuple[int, int]] = []
    for first, last in _blocks(steps):
        starts = [first]
        if steps[first].block.family is None and last - first >= length:
            inside = last < turn
            starts = list(range(first, last + 1, length))
            if inside:
                starts = borders(program, touches, makers, (first, last + 1), turn, length, 2 * length)
        found += [(start, end - 1) for start, end in zip(starts, [*starts[1:], last + 1])]
    return found
