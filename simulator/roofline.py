"""The hierarchical roofline: every operator's rate against its arithmetic intensity, at each level of memory.

An operator that does W operations and moves Q bytes at a level has intensity W/Q there; no implementation runs it
faster than min(peak, intensity · bandwidth of the level). An operator has a point at every level whose traffic is
modelled, all at the same height: the distance between its points shows what the level between them saves.

Sources: S. Williams, A. Waterman, D. Patterson, "Roofline", CACM 52 (2009); C. Yang, T. Kurth, S. Williams,
"Hierarchical roofline analysis for GPUs", CCPE 2020.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peakline.cost.machine import machine

if TYPE_CHECKING:
    from peakline.result import Estimate
    from peakline.text import Table

__all__ = ["Point", "Roof", "Roofline", "roofline"]


@dataclass(frozen=True, slots=True)
class Roof:
    """A ceiling: a level's bandwidth in bytes/s (slanted), or a unit's peak in operations/s (flat)."""

    name: str
    rate: float
    slanted: bool


@dataclass(frozen=True, slots=True)
class Point:
    """Operators of one type and phase, layers together.

    Attributes:
        operator, phase: which.
        operations: per step, matrix and vector together.
        seconds: per step, as tiled.
        bytes: moved per step at each level whose traffic is modelled.
        bound_by: the resource that takes most of its time.
    """

    operator: str
    phase: str
    operations: float
    seconds: float
    bytes: dict[str, float]
    bound_by: str

    @property
    def rate(self) -> float:
        """Operations/s."""
        return self.operations / self.seconds if self.seconds else 0.0

    def intensity(self, level: str) -> float:
        """Operations per byte moved at a level."""
        return self.operations / self.bytes[level] if self.bytes.get(level) else float("inf")


@dataclass(frozen=True)
class Roofline:
    """Ceilings of a device, points of a workload on it."""

    title: str
    roofs: tuple[Roof, ...]
    points: tuple[Point, ...]

    @property
    def levels(self) -> tuple[str, ...]:
        """Levels that have a roof and points."""
        return tuple(r.name for r in self.roofs if r.slanted and any(r.name in p.bytes for p in self.points))

    def ridge(self, level: str) -> float:
        """Intensity at which the level's slope meets the highest peak: operations per byte."""
        slope = next(r.rate for r in self.roofs if r.slanted and r.name == level)
        return max(r.rate for r in self.roofs if not r.slanted) / slope

    def to_dict(self) -> dict[str, Any]:
        """Roofs (bytes/s, operations/s), ridges (operations per byte) and points, in plain values."""
        return {
            "title": self.title,
            "levels": [
                {"level": r.name, "bytes_per_s": r.rate, "ridge": self.ridge(r.name)} for r in self.roofs if r.slanted
            ],
            "peaks": [{"unit": r.name, "operations_per_s": r.rate} for r in self.roofs if not r.slanted],
            "points": [
                {
                    "operator": p.operator,
                    "phase": p.phase,
                    "seconds": p.seconds,
                    "operations": p.operations,
                    "operations_per_s": p.rate,
                    "bytes": {level: p.bytes[level] for level in self.levels if level in p.bytes},
                    "intensity": {level: p.intensity(level) for level in self.levels if level in p.bytes},
                    "bound_by": p.bound_by,
                }
                for p in self.points
            ],
        }

    def tables(self) -> list[Table]:
        """The roofs with their ridges, and the operators, slowest first."""
        from peakline.hardware.units import format_bandwidth, format_rate, format_time
        from peakline.text import Table

        peak = max((r.rate for r in self.roofs if not r.slanted), default=0.0)
        slopes = tuple(
            (r.name, format_bandwidth(r.rate), f"{peak / r.rate:.4g}", "yes" if r.name in self.levels else "no")
            for r in self.roofs
            if r.slanted
        )
        flats = tuple((r.name, format_rate(r.rate, 4, "OP")) for r in self.roofs if not r.slanted)
        total = sum(p.seconds for p in self.points) or 1.0
        rows = tuple(
            (
                p.operator,
                p.phase,
                format_time(p.seconds, 3),
                f"{p.seconds / total:.1%}",
                *(f"{p.intensity(level):.3g}" if level in p.bytes else "-" for level in self.levels),
                format_rate(p.rate, 3, "OP"),
                p.bound_by,
            )
            for p in self.points
        )
        intensities = tuple(f"op/B {level}" for level in self.levels)
        return [
            Table("Slopes: operations per byte where they meet the highest peak", ("<level", "bandwidth", "ridge",
                  "<traffic modelled"), slopes),
            Table("Peaks", ("<unit", "rate"), flats),
            Table("Operators, layers together", ("<operator", "<phase", "time", "share", *intensities, "rate",
                  "<bound by"), rows),
        ]  # fmt: skip


def roofline(est: Estimate) -> Roofline:
    """Roofs and points of an estimate.

    Raises:
        ValueError: for a sweep.
    """
    if est.graph.is_sweep:
        raise ValueError("a sweep has no single roofline; estimate one configuration")
    found = machine(est.device)
    slopes = [Roof(level.name, level.bandwidth, True) for level in found.levels if level.bandwidth]
    flat = _peaks(est, found.matrix.items(), "matrix") + _peaks(est, found.vector.items(), "vector")
    grouped: dict[tuple[str, str], dict[str, float]] = {}
    limits: dict[tuple[str, str], dict[str, float]] = {}
    for o in est.cost.operators:
        key, n = (o.type, o.phase), o.executions
        sums = grouped.setdefault(key, {"operations": 0.0, "seconds": 0.0})
        sums["operations"] += n * (float(o.flops) + float(o.vector_work))
        for cost in o.costs:
            sums["seconds"] += n * float(cost.tiled)
            for level, moved in cost.traffic.items():
                sums[f"bytes {level}"] = sums.get(f"bytes {level}", 0.0) + n * float(moved)
            held = limits.setdefault(key, {})
            held[str(cost.limited_by)] = held.get(str(cost.limited_by), 0.0) + n * float(cost.tiled)
    points = [
        Point(
            operator, phase, sums["operations"], sums["seconds"],
            {name.removeprefix("bytes "): v for name, v in sums.items() if name.startswith("bytes ") and v},
            max(limits[operator, phase], key=lambda name: limits[operator, phase][name]),
        )
        for (operator, phase), sums in grouped.items()
        if sums["operations"] and sums["seconds"]
    ]  # fmt: skip
    points.sort(key=lambda p: -p.seconds)
    return Roofline(f"{est.graph.name} on {est.device.name}", (*slopes, *flat), tuple(points))


def _peaks(est: Estimate, rates: Iterable[tuple[str, float]], engine: str) -> list[Roof]:
    """Peaks of the formats that the workload's tensors have; the fastest one if it has none of them."""
    used = {t.dtype.name for t in est.graph.tensors.values()}
    known = list(rates)
    chosen = [(name, rate) for name, rate in known if name in used] or sorted(known, key=lambda x: -x[1])[:1]
    return [Roof(f"{name} {engine}", rate, False) for name, rate in chosen]
