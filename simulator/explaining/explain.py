"""`pk.explain`: the peak taken apart, and the changes that would lower it, each priced by a new estimate."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peakline.estimator import estimate
from peakline.explaining.changes import Change, changes_of
from peakline.explaining.peak import Held, ModuleShare, by_module, held_at_peak, largest
from peakline.hardware import Device
from peakline.models.graph import Graph
from peakline.models.origin import origin
from peakline.result import Estimate

if TYPE_CHECKING:
    from peakline.text import Table

__all__ = ["SCHEMA", "Effect", "Explanation", "explain"]

SCHEMA = "peakline.explanation/1"

LEAST = 0.001
"""Share of the peak that a change must save to be worth telling."""

_PLANNING = 3.0
"""Seconds for each program of the plan."""


@dataclass(frozen=True)
class Effect:
    """What a change does.

    Attributes:
        change: what is changed.
        live: bytes of tensors alive at once that it saves at the peak; negative if it needs more.
        device: the same of the device's memory (allocator, context and libraries included); of a plan, whose
            allocations are not replayed, the same as `live`.
        peak: bytes of the device's memory with the change.
        time: seconds of a step with the change.
        fits: whether it then fits.
    """

    change: Change
    live: int
    device: int
    peak: int
    time: float
    fits: bool


@dataclass(frozen=True)
class Explanation:
    """Where a workload's memory goes and what would lower it.

    Attributes:
        estimate: the workload as it is.
        modules: bytes at the live peak by module and role, largest first.
        tensors: the ten largest tensors at the live peak.
        effects: changes that lower the peak, the one that saves most first.
        notes: what could not be tried, and why.
    """

    estimate: Estimate
    modules: tuple[ModuleShare, ...]
    tensors: tuple[Held, ...]
    effects: tuple[Effect, ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The explanation in plain values, schema `peakline.explanation/1`."""
        memory = self.estimate.memory
        return {
            "schema": SCHEMA,
            "model": self.estimate.graph.name,
            "device": self.estimate.device.name,
            "peak": {"live": int(memory.live), "device": int(self.estimate.peak), "operator": memory.peak_operator},
            "time": float(self.estimate.time),
            "modules": [{"module": m.module, "bytes": m.bytes, "by_role": m.by_role} for m in self.modules],
            "tensors": [
                {"tensor": t.tensor, "module": t.module, "role": t.role, "bytes": t.bytes, "count": t.count,
                 "operator": t.operator, "line": t.line} for t in self.tensors
            ],
            "changes": [
                {"change": e.change.words, "how": e.change.how, "saves_live": e.live, "saves_device": e.device,
                 "device": e.peak, "time": e.time, "fits": e.fits, "same_result": e.change.same_result}
                for e in self.effects
            ],
            "notes": list(self.notes),
        }  # fmt: skip

    def tables(self) -> list[Table]:
        """The peak by module and role, the largest tensors, and the changes."""
        from peakline.explaining.text import tables

        return tables(self)

    def to_json(self) -> str:
        """`to_dict` as one JSON object."""
        return json.dumps(self.to_dict(), indent=2)

    def __str__(self) -> str:
        from peakline.explaining.text import lines

        return "\n".join(lines(self))


def explain(graph: Graph | Estimate, device: str | Device | None = None, *, changes: bool = True) -> Explanation:
    """Why the workload needs the memory it needs, and what would lower it most.

    Each change is applied to the workload, which is then built (or captured) and estimated again: what a change saves
    is the difference of the two estimates.

    Args:
        graph: a workload of `training_step`, `prefill`, `decode`, `inference` or `capture`, or its estimate.
        device: where it runs; not needed with an estimate.
        changes: also try what would lower the peak.

    Raises:
        ValueError: a sweep, a device missing or unknown.
    """
    if isinstance(graph, Graph):
        if device is None:
            raise ValueError("device: name the device that the workload runs on")
        graph = estimate(graph, device)
    est = graph
    held = held_at_peak(est.memory.program)
    effects, notes = _effects(est) if changes else ([], [])
    return Explanation(est, tuple(by_module(held)), tuple(largest(held)), tuple(effects), tuple(notes))


def _effects(est: Estimate) -> tuple[list[Effect], list[str]]:
    made = origin(est.graph)
    if made is None:
        return [], ["changes are tried on a workload that was built or captured in this process, not on one read back"]
    found, notes, seen = [], [], {(int(est.memory.live), int(est.peak), float(est.time))}
    for change in changes_of(est.graph, made, at_update=est.memory.peak_phase == "optimizer"):
        try:
            graph = made.again(**change.options)
            after = estimate(graph, est.device, allocator=est.memory.options)
        except ValueError as error:
            if made.kind == "captured" and "not applicable" not in str(error):
                notes.append(f"{change.words}: {error}")
            continue
        figures = int(after.memory.live), int(after.peak), float(after.time)
        if figures in seen:  # it changed nothing
            continue
        seen.add(figures)
        effect = Effect(change, int(est.memory.live) - figures[0], int(est.peak) - figures[1], figures[1], figures[2],
                        bool(after.fits))  # fmt: skip
        if max(effect.live, effect.device) > LEAST * est.memory.live and effect.live > 0:
            found.append(effect)
    found += _planned(est, found)
    return sorted(found, key=lambda e: (-e.device, -e.live, e.time)), notes


def _planned(est: Estimate, found: list[Effect]) -> list[Effect]:
    """Recomputation chosen tensor by tensor (`peakline.plan`), to need no more than recomputing whole layers does."""
    whole = next((e for e in found if e.change.options in ({"recompute": "full"}, {"change": "checkpoint"})), None)
    if whole is None or est.device.kind != "gpu":
        return []
    from peakline.planning.plan import plan

    try:
        made = plan(est.graph, est.device, budget=whole.peak, allow="recompute", time_limit=_PLANNING)
    except ValueError:
        return []
    saved = int(est.memory.live) - made.peak
    time = float(est.time) * made.seconds / made.baseline_seconds
    how = f'pk.plan(step, {est.device.name!r}, budget={whole.peak}, allow="recompute")'
    change = Change("recompute only what is cheap to make again", how, {})
    peak = int(est.peak) - saved
    return [Effect(change, saved, saved, peak, time, peak <= est.memory.capacity)] if time < whole.time else []
