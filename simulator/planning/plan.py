"""`pk.plan`: what to keep, recompute and move so that a step fits a budget in the least time."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from os import PathLike
from typing import Any, NamedTuple

from peakline.estimator import estimate
from peakline.hardware import Device
from peakline.hardware import device as find_device
from peakline.models.graph import Graph
from peakline.planning.addresses import Arena, arena_of, reserved_by
from peakline.planning.coarse import coarse, root
from peakline.planning.execute import DEVICE, executed_program
from peakline.planning.extract import Keys, Profile, problem_of, profile
from peakline.planning.policies import good_enough
from peakline.planning.tiers import DRIVE, HOST_MEMORY, Surroundings, surroundings
from peakline.planning.turns import HostOptimizer
from peakline.planning.whole import in_whole, is_captured
from peakline.solvers.offload.linear import Infeasible, bound, solve
from peakline.solvers.offload.problem import Decisions, Problem
from peakline.streams import Deadlock, Timeline, simulate
from peakline.timeline import step_seconds

__all__ = ["ALLOWED", "SCHEMA", "Decision", "NothingFits", "OffloadPlan", "plan"]

SCHEMA = "peakline.offload/1"

ALLOWED = ("recompute", "swap", "offload-optimizer", "offload-params")
"""What a plan may be allowed to do."""

ATTEMPTS = 5
"""Times the budget given to the solver is lowered by what the replay shows it to be passed."""


GREEDY = 0.005
"""A greedy policy within this of the lower bound is the plan: no solver can win more."""


ROUNDING = 4 << 20
"""Bytes at most that a tight plan leaves to the alignment of addresses."""


class NothingFits(ValueError):
    """No plan reaches the budget. `floor` is about the smallest budget, in bytes, that one would."""

    def __init__(self, message: str, floor: int) -> None:
        self.floor = floor
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Decision:
    """What happens to one tensor.

    Attributes:
        tensor: its name, with the layer in it.
        bytes: its size.
        role: of the tensor.
        action: `keep`, `recompute`, `move`, or `drop` for what was only considered for others' sake.
        moved: bytes moved to each tier by name.
    """

    tensor: str
    bytes: int
    role: str
    action: str
    moved: dict[str, int]


class Made(NamedTuple):
    """What a plan was made of: the program, the problem in plain numbers, what these stand for, what was decided."""

    profile: Profile
    problem: Problem
    keys: Keys
    decisions: Decisions


@dataclass(frozen=True)
class OffloadPlan:
    """A plan, confirmed by its own simulation.

    Attributes:
        graph, device: what runs where.
        budget: bytes of the device asked for.
        room: bytes of it that tensors may take (context and library workspaces are outside).
        allow: what it was allowed to do.
        optimizer: `device` or `host`, where the optimizer runs.
        decisions: one per tensor that was decided on.
        executed: names of the operators executed a second time.
        timeline: the simulated step.
        lower_bound: seconds that no plan of the class can beat.
        baseline_seconds, baseline_peak: of the step as it is.
        method: what found it.
        solve_seconds: how long that took.
        notes: assumptions.
        made: what it was made of, for those who carry it out.
    """

    graph: Graph
    device: Device
    budget: int
    room: int
    allow: tuple[str, ...]
    optimizer: str
    decisions: tuple[Decision, ...]
    executed: tuple[str, ...]
    timeline: Timeline
    lower_bound: float
    baseline_seconds: float
    baseline_peak: int
    method: str
    solve_seconds: float
    notes: tuple[str, ...]
    made: Made = field(repr=False)

    @property
    def seconds(self) -> float:
        """Time of the step, as simulated."""
        return self.timeline.makespan

    @property
    def peak(self) -> int:
        """Bytes of tensors alive at once on the device, as simulated."""
        return self.timeline.peak(DEVICE)

    @property
    def gap(self) -> float:
        """(time − lower bound) / time: how far from the best the plan can be at most."""
        return max(1.0 - self.lower_bound / self.seconds, 0.0)

    @property
    def overhead(self) -> float:
        """Time beyond the step as it is, as a share of it."""
        return self.seconds / self.baseline_seconds - 1.0

    @cached_property
    def arena(self) -> Arena:
        """Addresses of the device's buffers, decided beforehand: no fragmentation at run time."""
        return arena_of(self.timeline, DEVICE)

    @cached_property
    def reserved(self) -> int:
        """Bytes that PyTorch's caching allocator would hold for the same allocations and frees."""
        taken, left = self.made.profile.program, {}
        for key, item, shares in zip(self.made.keys.items, self.made.problem.items, self.made.decisions.moved):
            if item.away:
                left[key] = item.bytes - sum(round(item.bytes * share) for share in shares)
        stays = [left.get(key, int(taken.sizes[key])) for key in taken.resident]
        return reserved_by(self.timeline, DEVICE, [size for size in stays if size])

    @cached_property
    def moved(self) -> dict[str, int]:
        """Bytes carried over each link."""
        return self.timeline.moved

    def peaks(self) -> dict[str, int]:
        """Peak bytes in every tier."""
        return {name: self.timeline.peak(name) for name in self.timeline.levels}

    def plot(self, axes: Any = None) -> Any:
        """The streams over time and the memory they leave; see `peakline.planning.pictures.plot_timeline`."""
        from peakline.planning.pictures import plot_timeline

        return plot_timeline(self, axes)

    def apply(self, module: Any, optimizer: Any = None, *, folder: str | PathLike[str] | None = None) -> Any:
        """Carry the plan out in the torch module that it was captured from; see `peakline.execution.applied.apply`."""
        from peakline.execution.applied import apply

        return apply(self, module, optimizer, folder=folder)

    def explain(self) -> str:
        """The plan in words and tables."""
        from peakline.planning.text import lines

        return "\n".join(lines(self))

    def _repr_html_(self) -> str:
        from peakline.planning.text import html

        return html(self)

    def kinds(self) -> list[dict[str, Any]]:
        """Decisions put together by tensor without its layer number: count, bytes, and bytes by action."""
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for decision in self.decisions:
            name = ".".join("*" if part.isdigit() else part for part in decision.tensor.split("."))
            row = found.setdefault(
                (name, decision.role),
                {"tensor": name, "role": decision.role, "count": 0, "bytes": 0, "keep": 0, "recompute": 0, "move": 0},
            )
            moved = sum(decision.moved.values())
            row["count"] += 1
            row["bytes"] += decision.bytes
            row["move"] += moved
            if decision.action == "recompute":
                row["recompute"] += decision.bytes - moved
            elif decision.action != "drop":
                row["keep"] += decision.bytes - moved
        return [row for row in found.values() if row["keep"] + row["recompute"] + row["move"]]

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON values, schema `peakline.offload/1`."""
        return {
            "schema": SCHEMA,
            "model": self.graph.name,
            "workload": dict(self.graph.workload),
            "device": self.device.name,
            "budget_bytes": self.budget,
            "room_bytes": self.room,
            "allow": list(self.allow),
            "optimizer": self.optimizer,
            "seconds": self.seconds,
            "peak_bytes": self.peak,
            "peaks_bytes": self.peaks(),
            "arena_bytes": self.arena.bytes,
            "reserved_bytes": self.reserved,
            "baseline": {"seconds": self.baseline_seconds, "peak_bytes": self.baseline_peak},
            "certificate": {
                "objective": self.seconds, "lower_bound": self.lower_bound, "gap": self.gap, "method": self.method,
                "status": "optimal" if self.gap < 1e-6 else "feasible", "seconds": self.solve_seconds,
            },
            "stalls": {stream: self.timeline.stalled(stream) for stream in self.timeline.streams},
            "moved_bytes": self.moved,
            "decisions": [
                {"tensor": d.tensor, "bytes": d.bytes, "role": d.role, "action": d.action, "moved": d.moved}
                for d in self.decisions
                if d.action not in ("keep", "drop")
            ],
            "recompute": list(self.executed),
            "notes": list(self.notes),
        }  # fmt: skip

    def to_json(self) -> str:
        """The plan as JSON text."""
        return json.dumps(self.to_dict(), default=str)


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
        time_limit: seconds for each program the solver is given.

    Raises:
        NothingFits: the budget is below what anything can reach; the message gives the floor, and what holds it.
        ValueError: an unknown word in `allow`, a sweep, or an optimizer that cannot be cut into turns.
    """
    words = _words(allow)
    started, found = time.perf_counter(), find_device(device)
    before = estimate(workload, found)
    capacity = before.memory.capacity
    asked = capacity if budget is None else bytes_of("budget", budget)
    room = asked - before.memory.context - 2 * found.software.cublas_workspace_bytes
    around = surroundings(
        found, host=None if host is None else bytes_of("host", host), ssd=None if ssd is None else bytes_of("ssd", ssd),
        host_device=host_device, ssd_device=ssd_device,
    ) if set(words) - {"recompute"} else None  # fmt: skip
    aim = room - min(room >> 12, ROUNDING) if before.memory.live > room else room
    outcomes: list[Any] = []
    floors: list[Any] = []
    profiles = [profile(before, turns=turns, host=hosted) for turns, hosted in _modes(words, around)]
    for number, taken in enumerate([*profiles, *_stretches(profiles, words)]):
        if outcomes and number >= len(profiles):
            break  # stretches of layers are for budgets that single layers do not reach
        attempt = _Attempt(taken, words, around, time_limit)
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
    storage = find_device(drive).storage if written else None
    if storage is None:
        return []
    capacity, rated = find_device(drive).main.capacity, storage.endurance
    if rated is None and storage.drive_writes_per_day and capacity:
        rated = int(storage.drive_writes_per_day * capacity * 365 * WARRANTY_YEARS)
    if rated is None:
        return [f"every step writes {written:,} bytes to the drive, whose endurance is not published"]
    days = rated / (written / timeline.makespan) / 86_400
    return [f"every step writes {written:,} bytes to the drive: its rated endurance lasts {days:,.0f} days of training"]


WARRANTY_YEARS = 5
"""Years over which drive writes per day are rated (JEDEC JESD218A, enterprise drives; Samsung PM1743 brief)."""


def _words(allow: Collection[str]) -> tuple[str, ...]:
    given = (allow,) if isinstance(allow, str) else tuple(allow)
    for word in given:
        if word not in ALLOWED:
            raise ValueError(f"allow: {word!r} is unknown; accepted: {', '.join(ALLOWED)}")
    if not given:
        raise ValueError(f"allow: nothing is allowed; accepted: some of {', '.join(ALLOWED)}")
    return tuple(word for word in ALLOWED if word in given)


def bytes_of(name: str, given: int | str) -> int:
    """Bytes of an option given as a number or as text.

    Raises:
        ValueError: naming the option and what is accepted.
    """
    from peakline.hardware.units import parse_bytes

    if isinstance(given, str):
        given = int(parse_bytes(given))
    if isinstance(given, bool) or not isinstance(given, int) or given <= 0:
        raise ValueError(f"{name}: {given!r} is not a number of bytes above 0 or a text like '24 GiB'")
    return given


def _modes(words: tuple[str, ...], around: Surroundings | None) -> list[tuple[bool, HostOptimizer | None]]:
    """Ways to run the optimizer that are worth trying: as it is; in turns; on the host."""
    if "offload-optimizer" not in words or around is None:
        return [(False, None)]
    on_host = [(True, HostOptimizer(around.host_bandwidth, around.common[1]))] if around.hosted else []
    return [(True, None), *on_host]


def _stretches(profiles: list[Profile], words: tuple[str, ...]) -> Iterator[Profile]:
    """The same programs with √n layers to a stretch: fewer layer inputs to keep, for the smallest budgets.

    A captured step is carried out layer by layer, so it has none.
    """
    for taken in profiles if "recompute" in words else ():
        if root(taken) > 1 and not is_captured(taken.estimate.graph):
            yield coarse(taken, root(taken))


class _Attempt:
    """One way to run the optimizer, and everything else decided for it."""

    def __init__(self, taken: Profile, words: tuple[str, ...], around: Surroundings | None, time_limit: float) -> None:
        self.profile, self.words, self.around, self.time_limit = taken, words, around, time_limit
        self.whole = is_captured(taken.estimate.graph)
        states = {"optimizer_state", "gradient"} if "offload-optimizer" in words else set()
        self.states = frozenset(states | ({"parameter"} if "offload-params" in words else set()))

    def within(self, room: int) -> tuple[Problem, Keys, Decisions, Timeline]:
        """The best decisions whose replay stays within `room` bytes.

        Raises:
            Infeasible: there are none.
        """
        around = self.around
        problem, keys = problem_of(
            self.profile, room, around.tiers if around else (), recompute="recompute" in self.words,
            swap="swap" in self.words, states=self.states,
        )  # fmt: skip
        if around:
            problem = replace(problem, common=around.common)
        lower = bound(problem, time_limit=self.time_limit)
        simple = self._simple(problem, keys, lower, lower * (1 + GREEDY))
        if simple is not None:
            return problem, keys, *simple
        budget, short = room, 0
        for attempt in range(ATTEMPTS * (1 + self.whole)):
            if attempt == ATTEMPTS:  # rounded, tensors never fit: send rather more of them away
                budget = room
            decisions = solve(replace(problem, budget=budget), time_limit=self.time_limit, lower_bound=lower)
            if self.whole:
                decisions = in_whole(problem, decisions, up=attempt >= ATTEMPTS)
            try:
                timeline = self._carried_out(problem, keys, decisions, room)
                simple = None
                if timeline.makespan > lower * (1 + GREEDY):
                    simple = self._simple(problem, keys, lower, timeline.makespan)
                return problem, keys, *(simple or (decisions, timeline))
            except Deadlock as error:
                short = error.needed - error.free
                budget -= short + short // 8
        fewer = tuple(word for word in self.words if word != "swap")
        if self.whole and "recompute" in fewer and "swap" in self.words:  # activations are too large to move in whole
            return _Attempt(self.profile, fewer, self.around, self.time_limit).within(room)
        raise Infeasible(room, room + short)

    def _simple(self, problem: Problem, keys: Keys, lower: float, limit: float) -> tuple[Decisions, Timeline] | None:
        """What a greedy policy does, if it takes at most `limit` seconds."""
        if self.states or self.profile.host is not None:
            return None  # policies decide on activations alone
        found = good_enough(self.profile, problem, keys, self.around, problem.budget, self.words, limit)
        if found is None:
            return None
        name, decisions, timeline = found
        seconds = timeline.makespan
        return replace(decisions, seconds=seconds, lower_bound=lower, method=f"greedy: {name}"), timeline

    def _carried_out(self, problem: Problem, keys: Keys, decisions: Decisions, room: int) -> Timeline:
        """The step as simulated, in a device of `room` bytes: allocations wait for what is on its way out.

        Raises:
            Deadlock: something came back too early, and what runs cannot go on.
        """
        routes, links = (self.around.routes, self.around.links) if self.around else ((), {})
        return simulate(executed_program(self.profile, problem, keys, decisions, routes, links, room))


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


def _refusal(asked: int, outside: int, least: int, attempt: _Attempt) -> str:
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


def _notes(fits: Any, attempt: _Attempt) -> list[str]:
    notes = []
    if bool(fits):
        notes.append("the step fits the device as it is; the budget is what makes a plan needed")
    if attempt.profile.host is not None:
        notes.append("the optimizer runs on the host, at the speed of its memory")
    elif attempt.states:
        notes.append("the optimizer runs in turns, layer by layer")
    return notes
