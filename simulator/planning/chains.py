"""Sequential models as chains: a forward slot is a stage where it reads nothing but what the slot before it made.

Rotor's programme (`peakline.solvers.offload.chain`) decides which stages run again, and how often: more than once where
memory is very short, which the linear program does not consider. Nothing is moved.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from peakline.planning.coarse import forward
from peakline.planning.execute import DEVICE
from peakline.planning.extract import Profile
from peakline.planning.rerun import rerun
from peakline.solvers.offload.chain import GRAINS, Schedule, Stage, Table
from peakline.streams import Timeline, simulate

__all__ = ["Chain", "chain_of"]

SHARED = 0.01
"""Share of the step's bytes up to which what several stages read (masks, rotary tables) is taken to stay."""

LOOKED_AT = 8
"""Schedules that are replayed to find the smallest."""

STAGES = 128
"""Stages at most."""


@dataclass(frozen=True)
class Chain:
    """A step as a chain.

    Attributes:
        profile: of the step.
        stages: with their bytes and seconds.
        forward, backward: (first, last + 1) step of each stage's runs.
        base: bytes that are there throughout.
        rest: seconds of the steps outside of the chain (the optimizer).
    """

    profile: Profile
    stages: tuple[Stage, ...]
    forward: tuple[tuple[int, int], ...]
    backward: tuple[tuple[int, int], ...]
    base: int
    rest: float
    _seen: dict[int, Timeline] = field(default_factory=dict, repr=False)

    @cached_property
    def _hopes(self) -> tuple[NDArray[np.float64], int]:
        """Least seconds of the chain by grains of memory, and bytes of a grain; what runs need beside is left out."""
        bare = tuple([replace(stage, forward_work=0, backward_work=0) for stage in self.stages])
        top = sum(stage.saved + stage.left for stage in bare)
        grain = max(-(-top // GRAINS), 1)
        return Table(bare, top, grain, up=False).best[0, len(bare) - 1], grain

    def lower_bound(self, room: int) -> float:
        """Seconds that no persistent schedule within `room` bytes can beat."""
        seconds, grain = self._hopes
        return float(seconds[min(max(-(-(room - self.base) // grain), 0), len(seconds) - 1)]) + self.rest

    def least_bytes(self, limit: float | None = None) -> int:
        """Bytes below which no persistent schedule of at most `limit` seconds goes."""
        seconds, grain = self._hopes
        longest = float("inf") if limit is None else limit - self.rest
        kept = (m for m in range(len(seconds)) if seconds[m] < float("inf") and seconds[m] <= longest)
        return self.base + max(next(kept, len(seconds) - 1) - 1, 0) * grain

    @cached_property
    def _table(self) -> Table:
        """The programme up to where everything is kept."""
        top = sum(stage.saved + stage.left for stage in self.stages)
        top += max(stage.forward_work + stage.backward_work + stage.incoming for stage in self.stages)
        return Table(self.stages, top, max(-(-top // GRAINS), 1))

    @cached_property
    def _grains(self) -> list[int]:
        """Memories of the table at which the schedule changes, smallest first."""
        seconds = self._table.best[0, len(self.stages) - 1]
        return [m for m in range(len(seconds)) if seconds[m] < float("inf") and (m == 0 or seconds[m] < seconds[m - 1])]

    def _replayed(self, number: int) -> Timeline:
        """The schedule of the n-th of these memories as simulated, in as much memory as it takes."""
        if number not in self._seen:
            schedule = self._table.schedule(self._grains[number])
            assert schedule is not None
            self._seen[number] = simulate(rerun(self.profile, self.order(schedule), None))
        return self._seen[number]

    def within(self, room: int) -> Timeline | None:
        """The best schedule whose simulation stays within `room` bytes; None where none is found.

        Stages add up maxima, so that replays hold less than the table counts: the largest memory of the table whose
        replay stays within the room is looked for, halving the interval.
        """
        best: Timeline | None = None
        low, high = 0, len(self._grains)
        while low < high:
            middle = (low + high) // 2
            found = self._replayed(middle)
            if found.peak(DEVICE) > room:
                high = middle
                continue
            low = middle + 1
            if best is None or found.makespan < best.makespan:
                best = found
        return best

    def smallest(self, limit: float | None = None) -> Timeline | None:
        """The least memory among the first schedules of the table that take at most `limit` seconds."""
        found = [n for n, m in enumerate(self._grains) if limit is None or self._seconds(m) <= limit]
        replays = [self._replayed(n) for n in found[:LOOKED_AT]]
        return min(replays, key=lambda timeline: timeline.peak(DEVICE), default=None)

    def _seconds(self, m: int) -> float:
        return float(self._table.best[0, len(self.stages) - 1][m]) + self.rest

    def order(self, schedule: Schedule) -> list[int]:
        """The steps that the schedule executes."""
        found: list[int] = []
        for run in schedule.runs:
            first, end = (self.backward if run.kind == "backward" else self.forward)[run.stage]
            found += range(first, end)
        return [*found, *range(self.backward[0][1], len(self.profile.steps))]


def chain_of(profile: Profile) -> Chain | None:
    """The step as a chain; None where a stage reads what an earlier one than the one before it made."""
    program, turn, slots = profile.program, profile.turn, forward(profile)
    if not 1 < len(slots) <= STAGES or turn == len(profile.steps):
        return None
    end = next((i for i, step in enumerate(profile.steps) if step.operator.phase == "optimizer"), len(profile.steps))
    stage_of = [number for number, (first, last) in enumerate(slots) for _ in range(first, last + 1)]
    reads: dict[int, int] = {}  # last stage whose forward run touches each storage of the forward pass
    for key, birth in enumerate(program.births):
        if 0 <= birth < turn:
            reads[key] = max(stage_of[i] for i in profile.touches[key] if i < turn)
            home = stage_of[birth]
            if any(stage_of[i] != home for i in profile.makers.get(key, ())):
                return None  # written in place by a later stage
    near = {key: last for key, last in reads.items() if last <= stage_of[program.births[key]] + 1}
    backward = _backward(profile, near, len(slots), end)
    run_of = {i: stage for stage, (first, after) in enumerate(backward) for i in range(first, after)}
    for key in list(near):
        if any(run_of.get(i, 0) > near[key] for i in profile.touches[key] if turn <= i < end):
            del near[key]  # a later stage's backward run reads it as well
    shared = sum(int(program.sizes[key]) for key in reads if key not in near)
    if shared > SHARED * max(profile.live):
        return None
    base = sum(int(program.sizes[key]) for key in program.resident)
    stages = _stages(profile, slots, backward, near, end)
    runs = tuple([(first, last + 1) for first, last in slots])
    return Chain(profile, stages, runs, tuple(backward), base, sum(profile.seconds[end:]))


def _backward(profile: Profile, near: dict[int, int], count: int, end: int) -> list[tuple[int, int]]:
    """(first, end) backward step of each stage: its run begins where what it or its input saved is asked for first."""
    starts = [end] * count
    starts[count - 1] = here = profile.turn
    stage = count - 1
    for here in range(profile.turn, end):
        asked = min((near[key] for key in profile.steps[here].touches if key in near), default=stage)
        while stage > asked:
            stage -= 1
            starts[stage] = here
    return [(first, starts[number - 1] if number else end) for number, first in enumerate(starts)]


def _stages(
    profile: Profile, slots: list[tuple[int, int]], backward: list[tuple[int, int]], near: dict[int, int], end: int
) -> tuple[Stage, ...]:
    """Bytes and seconds of every stage's runs."""
    program, turn = profile.program, profile.turn
    behind = _behind(profile)
    alive_at = _alive(profile, behind)
    found: list[Stage] = []
    remaining = 0
    for number in reversed(range(len(slots))):
        (first, last), (start, after) = slots[number], backward[number]
        own = [key for key in near if first <= program.births[key] <= last]
        outputs = {key for key in own if near[key] > number}
        kept = {key for key in own if any(i >= turn for i in profile.touches[key])} | outputs
        output, saved = (sum(int(program.sizes[key]) for key in keys) for keys in (outputs, kept))
        work = max(_peak(profile, first, last, outputs) - output, _peak(profile, first, last, kept) - saved, 0)
        waiting = sum(behind[key] for key in behind if program.births[key] < start and _dies(profile, key) >= start)
        left = sum(behind[key] for key in behind if start <= program.births[key] < after and _dies(profile, key) >= end)
        alive = int(max(alive_at[start:after], default=0))
        found.append(
            Stage(
                sum(profile.seconds[first : last + 1]), sum(profile.seconds[start:after]), output, saved, work,
                max(alive - remaining, 0), left, max(waiting - remaining, 0),
            )
        )  # fmt: skip
        remaining += left
    return tuple(found[::-1])


def _behind(profile: Profile) -> dict[int, int]:
    """Bytes of each storage that the backward pass makes."""
    births, sizes = profile.program.births, profile.program.sizes
    return {key: int(sizes[key]) for key, birth in enumerate(births) if birth >= profile.turn}


def _dies(profile: Profile, key: int) -> int:
    return int(profile.program.deaths[key])


def _alive(profile: Profile, behind: dict[int, int]) -> NDArray[np.int64]:
    """Bytes of the backward pass's own storages and of the workspace while each step runs."""
    program, last = profile.program, len(profile.steps) - 1
    change = np.zeros(last + 2, dtype=np.int64)
    for key, size in behind.items():
        change[program.births[key]] += size
        change[min(_dies(profile, key), last) + 1] -= size
    inside = [sum(map(int, program.workspaces.get(id(step.operator), ()))) for step in profile.steps]
    return np.asarray(np.cumsum(change[:-1]) + np.asarray(inside, dtype=np.int64))


def _peak(profile: Profile, first: int, last: int, kept: set[int]) -> int:
    """Most bytes of a stage's own storages while it runs forward, where only `kept` ones outlive their last reader."""
    program, most = profile.program, 0
    alive: dict[int, int] = {}
    for i in range(first, last + 1):
        alive |= {key: int(program.sizes[key]) for key in profile.steps[i].makes}
        inside = sum(map(int, program.workspaces.get(id(profile.steps[i].operator), ())))
        most = max(most, sum(alive.values()) + inside)
        for key in [key for key in alive if key not in kept]:
            if not any(i < j <= last for j in profile.touches[key]):
                del alive[key]
    return most
