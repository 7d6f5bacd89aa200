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
from peakline.planning.attempt import Attempt, hosted, modes, others
from peakline.planning.coarse import sharp
from peakline.planning.extract import profile
from peakline.planning.options import ALLOWED, FITS, OBJECTIVES, budget_of, bytes_of, one_of, slowdown_of, words_of
from peakline.planning.outcome import SCHEMA, Decision, Made, NothingFits, OffloadPlan
from peakline.planning.packing import CODECS
from peakline.planning.refusal import refusal
from peakline.planning.search import Found, Search
from peakline.planning.tiers import DRIVE, HOST_MEMORY, beside, surroundings
from peakline.streams import Timeline
from peakline.timeline import step_seconds

__all__ = ["ALLOWED", "SCHEMA", "Decision", "NothingFits", "OffloadPlan", "bytes_of", "plan"]

SLOTS = 256
"""Slots that a step is cut into at least: copies may start and end at their borders."""

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
    objective: str = "time",
    slowdown: float | None = None,
    fit: str = "allocated",
    quantise: str = "int8",
    time_limit: float = 10.0,
) -> OffloadPlan:
    """Fit a workload into a budget in the least time, or into the least memory.

    Args:
        workload: a step without recomputation of its own, as `training_step` builds or `capture` records it.
        device: where it runs.
        budget: bytes of the device, or `"24 GiB"`; None for its capacity.
        host: bytes of pinned host memory that may be used; None for what `host_device` has.
        ssd: bytes of the drive that may be used; None for no drive.
        allow: some of `recompute`, `swap` (activations), `offload-optimizer` (states and gradients; the better of
            bringing them in turn by turn and of updating on the host), `offload-params`, `quantise-activations` (saved
            activations in fewer bits; the only one that changes numbers).
        gpudirect: the drive's bytes do not pass through the host's memory (GPUDirect Storage).
        objective: `time`: the fastest plan within `budget`; `memory`: the one that needs least, without a budget.
        slowdown: with `memory`, how many times as long as with memory enough a step may take (1.1: a tenth longer).
        fit: what must fit: `allocated`, the tensors alive at once; `reserved`, what PyTorch's caching allocator holds
            for the plan's allocations and frees, fragmentation counted.
        quantise: format of activations where `quantise-activations` is allowed: `int8`, `int4` or `fp8`.
        time_limit: seconds for each program the solver is given.

    Raises:
        NothingFits: the budget is below what anything can reach; the message gives the floor, and what holds it.
        ValueError: an unknown word, a sweep, a budget together with `memory`, or an optimizer that cannot be cut.
    """
    words = words_of(allow)
    one_of("objective", objective, OBJECTIVES)
    one_of("fit", fit, FITS)
    one_of("quantise", quantise, tuple(CODECS))
    slowdown = slowdown_of(slowdown, objective)
    if objective == "memory" and budget is not None:
        raise ValueError("budget: with objective='memory' the budget is what is looked for; leave one of them out")
    started, found = time.perf_counter(), find_device(device)
    before = estimate(workload, found)
    capacity = before.memory.capacity
    asked = capacity if budget is None else budget_of(budget, found.name, capacity)
    room = asked - before.memory.context - 2 * found.software.cublas_workspace_bytes
    around = surroundings(
        found, host=None if host is None else bytes_of("host", host, least=0),
        ssd=None if ssd is None else bytes_of("ssd", ssd),
        host_device=host_device, ssd_device=ssd_device, gpudirect=gpudirect,
    ) if set(words) - {"recompute", "quantise-activations"} else None  # fmt: skip
    aim = room - min(room >> 12, ROUNDING) if before.memory.live > room else room
    codec = CODECS[quantise] if "quantise-activations" in words else None
    profiles = [profile(before, turns=turns, host=hosted) for turns, hosted in modes(words, around)]
    profiles = [taken for taken in profiles if around is None or beside(around, hosted(taken, words)) is not None]
    first, further = (
        [Attempt(sharp(one, SLOTS), words, around, time_limit, codec) for one in ways]
        for ways in (profiles, others(profiles, words))
    )
    search = Search(first, further, fit)
    seconds = sum(step_seconds(before))
    least: int | None = None
    if objective == "memory":
        smallest = search.smallest(None if slowdown is None else slowdown * seconds)
        if smallest is None:
            raise ValueError(
                f"slowdown: no plan is known to take at most {slowdown:g} times as long as the step as it is"
            )
        chosen, least = smallest
        lower, asked, room = chosen.decisions.lower_bound, chosen.needs(fit) + asked - room, chosen.needs(fit)
    else:
        outcome = search.fastest(room, aim)
        if outcome is None:
            raise refusal(asked, asked - room, search.floor(), fit)
        chosen, lower = outcome
    decisions = _read(chosen)
    untouched = all(decision.action == "keep" for decision in decisions)
    said = (*_notes(before.fits, untouched, chosen.attempt), *_wear(chosen.timeline, ssd_device))
    notes = (*(around.notes if around else ()), *said)
    return OffloadPlan(
        workload, found, asked, room, words, "device" if chosen.attempt.profile.host is None else "host",
        decisions, _executed(chosen.timeline), chosen.timeline, lower, seconds, int(before.memory.live),
        chosen.decisions.method, time.perf_counter() - started,
        notes,
        Made(chosen.attempt.profile, chosen.problem, chosen.keys, chosen.decisions), objective, fit, least, slowdown,
        codec.name if codec else None,
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


def _read(chosen: Found) -> tuple[Decision, ...]:
    """Decisions by tensor, in program order."""
    problem, decisions = chosen.problem, chosen.decisions
    names = [tier.name for tier in problem.tiers]
    found = []
    for i, item in enumerate(problem.items):
        moved = {name: round(item.bytes * share) for name, share in zip(names, decisions.moved[i]) if share}
        compressed = round(item.bytes * decisions.packed_share(i))
        again = item.group >= 0 and decisions.executed[item.group]
        if moved and sum(moved.values()) >= compressed:
            action = "move"
        elif compressed:
            action = "compress"
        elif again:
            action = "recompute"
        else:
            action = "drop" if item.extra and decisions.kept[i] < 0.5 else "keep"
        role = chosen.attempt.profile.program.storages[chosen.keys.items[i]].tensor.role
        found.append(Decision(item.name, item.bytes, role, action, moved, compressed))
    return tuple(found)


def _executed(timeline: Timeline) -> tuple[str, ...]:
    """Names of the operators that run a second time."""
    return tuple(run.task.name.removesuffix(" again") for run in timeline.runs if run.task.kind == "recompute")


def _notes(fits: Any, untouched: bool, attempt: Attempt) -> list[str]:
    notes = []
    if untouched and attempt.profile.host is None:
        notes.append("the step fits the budget as it is; nothing needs to change")
    elif bool(fits):
        notes.append("the step fits the device as it is; the budget is what makes a plan needed")
    if attempt.profile.host is not None:
        notes.append("the optimizer runs on the host, at the speed of its memory")
    elif attempt.states:
        notes.append("the optimizer runs in turns, layer by layer")
    if attempt.codec is not None:
        notes.append(
            f"activations may be held in {attempt.codec.name} ({attempt.codec.source}), which changes gradients"
        )
    return notes
