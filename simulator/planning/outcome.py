"""What came of planning: the plan, confirmed by its own simulation, and its words and JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from typing import Any, NamedTuple

from peakline.hardware import Device
from peakline.models.graph import Graph
from peakline.planning.addresses import Arena, arena_of, reserved_by, staying
from peakline.planning.execute import DEVICE
from peakline.planning.extract import Keys, Profile
from peakline.planning.whole import is_captured
from peakline.solvers.offload.problem import Decisions, Problem
from peakline.streams import Timeline

__all__ = ["SCHEMA", "Decision", "Made", "NothingFits", "OffloadPlan"]

SCHEMA = "peakline.offload/1"

ACTIONS = ("keep", "recompute", "move", "compress")
"""What may become of a tensor's bytes."""


class NothingFits(ValueError):
    """No plan reaches the budget.

    Attributes:
        floor: the smallest budget, in bytes, at which there is a plan for sure; it depends on the workload, the device
            and what is allowed, not on the budget that was asked for.
    """

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
        action: `keep`, `recompute`, `move`, `compress`, or `drop` for what was only considered for others' sake.
        moved: bytes moved to each tier by name.
        compressed: bytes of it that are held in fewer bits meanwhile.
    """

    tensor: str
    bytes: int
    role: str
    action: str
    moved: dict[str, int]
    compressed: int = 0


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
        objective: `time`, or `memory`: then `budget` is what was found, and no plan of its kind goes below `least`.
        fit: what fits the budget, `allocated` or `reserved` bytes.
        least: bytes of tensors alive at once that none of its kind can go below, where memory is the objective.
        slowdown: how many times as long as the step as it is the plan may take, where that was bounded.
        codec: the format of compressed activations, if they may be.
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
    objective: str = "time"
    fit: str = "allocated"
    least: int | None = None
    slowdown: float | None = None
    codec: str | None = None

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
        """How far from the best the plan can be at most: (time − lower bound) / time, or the same of its bytes."""
        if self.least is not None:
            return max(1.0 - self.least / self.needs, 0.0)
        return max(1.0 - self.lower_bound / self.seconds, 0.0)

    @property
    def needs(self) -> int:
        """Bytes that must fit: of tensors alive at once, or reserved by the allocator, as was asked for."""
        return self.reserved if self.fit == "reserved" else self.peak

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
        made = self.made
        stays = staying(made.profile.program, made.problem, made.keys.items, made.decisions)
        return reserved_by(self.timeline, DEVICE, stays)

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
                {"tensor": name, "role": decision.role, "count": 0, "bytes": 0} | dict.fromkeys(ACTIONS, 0),
            )
            moved = sum(decision.moved.values())
            row["count"] += 1
            row["bytes"] += decision.bytes
            row["move"] += moved
            row["compress"] += decision.compressed
            rest = decision.bytes - moved - decision.compressed
            if decision.action == "recompute":
                row["recompute"] += rest
            elif decision.action != "drop":
                row["keep"] += rest
        return [row for row in found.values() if any(row[action] for action in ACTIONS)]

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON values, schema `peakline.offload/1`; with instructions where torch can carry it out."""
        from peakline.execution.saved import instructions, signed
        from peakline.execution.script import script_of

        data = {
            "schema": SCHEMA,
            "model": self.graph.name,
            "workload": dict(self.graph.workload),
            "device": self.device.name,
            "budget_bytes": self.budget,
            "room_bytes": self.room,
            "allow": list(self.allow),
            "optimizer": self.optimizer,
            "objective": self.objective,
            "fit": self.fit,
            "slowdown": self.slowdown,
            "compression": self.codec,
            "seconds": self.seconds,
            "peak_bytes": self.peak,
            "peaks_bytes": self.peaks(),
            "arena_bytes": self.arena.bytes,
            "reserved_bytes": self.reserved,
            "baseline": {"seconds": self.baseline_seconds, "peak_bytes": self.baseline_peak},
            "certificate": self._certificate(),
            "stalls": {stream: self.timeline.stalled(stream) for stream in self.timeline.streams},
            "moved_bytes": self.moved,
            "decisions": [
                {
                    "tensor": d.tensor, "bytes": d.bytes, "role": d.role, "action": d.action, "moved": d.moved,
                    "compressed": d.compressed,
                }
                for d in self.decisions
                if d.action not in ("keep", "drop")
            ],
            "recompute": list(self.executed),
            "notes": list(self.notes),
            "execution": instructions(script_of(self)) if is_captured(self.graph) else None,
        }  # fmt: skip
        return signed(data)

    def _certificate(self) -> dict[str, Any]:
        in_bytes = self.least is not None
        return {
            "objective": self.needs if in_bytes else self.seconds, "unit": "bytes" if in_bytes else "seconds",
            "lower_bound": self.least if in_bytes else self.lower_bound, "gap": self.gap, "method": self.method,
            "status": "optimal" if self.gap < 1e-6 else "feasible", "seconds": self.solve_seconds,
        }  # fmt: skip

    def to_json(self) -> str:
        """The plan as JSON text."""
        return json.dumps(self.to_dict(), default=str)
