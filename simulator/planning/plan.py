"""`pk.plan`: what to keep, recompute and move so that a step fits a budget in the least time."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any

from peakline.cost.storage import drive_of
from peakline.estimator import estimate
from peakline.hardware import Device
from peakline.hardware import device as find_device
from peakline.models.graph import Graph
from peakline.planning.attempt import Attempt, modes, stretches
from peakline.planning.extract import Keys, Profile, profile
from peakline.planning.options import ALLOWED, bytes_of, words_of
from peakline.planning.outcome import SCHEMA, Decision, Made, NothingFits, OffloadPlan
from peakline.planning.tiers import DRIVE, HOST_MEMORY, surroundings
from peakline.solvers.offload.linear import Infeasible
from peakline.solvers.offload.problem import Decisions, Problem
from peakline.streams import Timeline
from peakline.timeline import step_seconds

__all__ = ["ALLOWED", "SCHEMA", "Decision", "NothingFits", "OffloadPlan", "bytes_of", "plan"]

ROUNDING = 4 << 20
"""Bytes at most that a tight plan leaves to the alignment of addresses."""


def plan(
    workload: Graph,
    device: str | Device,
    *,
    budget: int | str | None = None,
    host: int | str | None = None,
    ssd: int | str | None = None,
    allow: Collection[str] = ("recompute", "swap"),
    host_device: str | Device = HOST_MEMORY,
    ssd_device: str | Device = DRIVE,
    gpudirect: bool = False,
    time_limit: float = 10.0,
) -> OffloadPlan:
    """Fit a workload into a budget in the least time.

    Args:
        workload: a step without recomputation of its own, as `training_step` builds or `capture` records it.
        device: where it runs.
        budget: bytes of the device, or `"24 GiB"`; None for its capacity.
        host: bytes of pinned host memory that may be used; None for what `host_device` has.
        ssd: bytes of the drive that may be used; None for no drive.
        allow: some of `recompute`, `swap` (activations), `offload-optimizer` (states and gradients; the better of
            bringing them in turn by turn and of updating on the host), `offload-params`.
        gpudirect: the drive's bytes do not pass through the host's memory (GPUDirect Storage).
        time_limit: seconds for each program the solver is given.

    Raises:
        NothingFits: the budget is below what anything can reach; the message gives the floor, and what holds it.
        ValueError: an unknown word in `allow`, a sweep, or an optimizer that cannot be cut into turns.
    """
    words = words_of(allow)
    started, found = time.perf_counter(), find_device(device)
    before = estimate(workload, found)
    capacity = before.memory.capacity
    asked = capacity if budget is None else bytes_of("budget", budget)
    room = asked - before.memory.context - 2 * found.software.cublas_workspace_bytes
    around = surroundings(
        found, host=None if host is None else bytes_of("host", host), ssd=None if ssd is None else bytes_of("ssd", ssd),
        host_device=host_device, ssd_device=ssd_device, gpudirect=gpudirect,
    ) if set(words) - {"recompute"} else None  # fmt: skip
    aim = room - min(room >> 12, ROUNDING) if before.memory.live > room else room
    outcomes: list[Any] = []
    floors: list[Any] = []
    profiles = [profile(before, turns=turns, host=hosted) for turns, hosted in modes(words, around)]
    for number, taken in enumerate([*profiles, *stretches(profiles, words)]):
        if outcomes and number >= len(profiles):
            break  # stretches of layers are for budgets that single layers do not reach
        attempt = Attempt(taken, words, around, time_limit)
        try:
            outcomes.append((attempt, *attempt.within(aim)))
        except Infeasible as error:
            floors.append((error.least, attempt))
    if not outcomes:
        least, attempt = min(floors, key=lambda floor: floor[0])
        raise NothingFits(_refusal(asked, asked - room, least, attempt), least + asked - room)
    attempt, problem, keys, decisions, timeline = min(outcomes, key=lambda outcome: outcome[-1].makespan)
    return OffloadPlan(
        workload, found, asked, room, words, "device" if attempt.profile.host is None else "host",
        _read(attempt.profile, problem, keys, decisions),
        _executed(timeline),
        timeline, min(outcome[3].lower_bound for outcome in outcomes), sum(step_seconds(before)),
        int(before.memory.live), decisions.method, time.perf_counter() - started,
        (*(around.notes if around else ()), *_notes(before.fits, attempt), *_wear(timeline, ssd_device)),
        Made(attempt.profile, problem, keys, decisions),
    )  # fmt: skip


def _wear(timeline: Timeline, drive: str | Device) -> list[str]:
    """How long the drive lasts, if this step writes to it over and over."""
    written = timeline.moved.get("ssd write", 0)
    if not written:
        return []
    seconds = drive_of(drive).lifetime(written / timeline.makespan)
    if seconds is None:
        return [f"every step writes {written:,} bytes to the drive, whose endurance is not published"]
    days = seconds / 86_400
    return [f"every step writes {written:,} bytes to the drive: its rated endurance lasts {days:,.0f} days of training"]


def _read(taken: Profile, problem: Problem, keys: Keys, decisions: Decisions) -> tuple[Decision, ...]:
    """Decisions by tensor, in program order."""
    names = [tier.name for tier in problem.tiers]
    found = []
    for i, item in enumerate(problem.items):
        moved = {name: round(item.bytes * share) for name, share in zip(names, decisions.moved[i]) if share}
        again = item.group >= 0 and decisions.executed[item.group]
        if moved:
            action = "move"
        elif again:
            action = "recompute"
        else:
            action = "drop" if item.extra and decisions.kept[i] < 0.5 else "keep"
        role = taken.program.storages[keys.items[i]].tensor.role
        found.append(Decision(item.name, item.bytes, role, action, moved))
    return tuple(found)


def _executed(timeline: Timeline) -> tuple[str, ...]:
    """Names of the operators that run a second time."""
    return tuple(run.task.name.removesuffix(" again") for run in timeline.runs if run.task.kind == "recompute")


def _refusal(asked: int, outside: int, least: int, attempt: Attempt) -> str:
    """Why nothing fits: the floor, and what holds it."""
    from peakline.hardware.units import format_bytes

    taken = attempt.profile
    fixed: dict[str, int] = {}
    for key in taken.program.resident:
        role = taken.program.storages[key].tensor.role
        if role not in attempt.states:
            fixed[role] = fixed.get(role, 0) + int(taken.program.sizes[key])
    held = ", ".join(
        f"{role.replace('_', ' ')} {format_bytes(size)}"
        for role, size in sorted(fixed.items(), key=lambda x: -x[1])[:3]
    )
    more = [word for word in ALLOWED if word not in attempt.words]
    return (
        f"budget: nothing fits {format_bytes(asked)}; the least that would is about {format_bytes(least + outside)}"
        + (f", of which what may not leave holds {held}" if held else "")
        + (f"; allowing {' or '.join(more)} might lower it" if more else "")
    )


def _notes(fits: Any, attempt: Attempt) -> list[str]:
    notes = []
    if bool(fits):
        notes.append("the step fits the device as it is; the budget is what makes a plan needed")
    if attempt.profile.host is not None:
        notes.append("the optimizer runs on the host, at the speed of its memory")
    elif attempt.states:
        notes.append("the optimizer runs in turns, layer by layer")
    return notes
