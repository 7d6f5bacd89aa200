"""What came of planning: the plan, confirmed by its own simulation, and its words and JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from typing import Any, NamedTuple

from peakline.hardware import Device
from peakline.models.graph import Graph
from peakline.planning.addresses import Arena, arena_of, reserved_by
from peakline.planning.execute import DEVICE
from peakline.planning.extract import Keys, Profile
from peakline.solvers.offload.problem import Decisions, Problem
from peakline.streams import Timeline

__all__ = ["SCHEMA", "Decision", "Made", "NothingFits", "OffloadPlan"]

SCHEMA = "peakline.offload/1"


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
