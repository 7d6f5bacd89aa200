"""The energy roofline: operations per joule against arithmetic intensity, beside the one of time.

An operation costs ε joules of arithmetic and 1/I bytes of ε_B joules each, and every second costs the idle power:

    operations per joule = 1 / (ε + ε_B / I + π₀ / rate)

Joules add up where seconds hide behind each other, so the roof is an arch: half of its height is reached at the
*energy balance* I = ε_B / ε, the counterpart of the ridge (J. Choi, D. Bedard, R. Fowler, R. Vuduc, "A roofline model
of energy", IPDPS 2013). Where the balance lies right of the ridge, a program that is bound by arithmetic in time still
spends most of its energy on moving data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peakline.cost.energy import consumption, energy_per_byte
from peakline.cost.program import ProgramCost
from peakline.models.graph import Graph
from peakline.roofline import roofline

if TYPE_CHECKING:
    from peakline.result import Estimate
    from peakline.text import Table

__all__ = ["EnergyPoint", "EnergyRoofline", "energy_roofline"]


@dataclass(frozen=True, slots=True)
class EnergyPoint:
    """Operators of one type and phase: operations, bytes of main memory, seconds, and joules, per step."""

    operator: str
    phase: str
    operations: float
    bytes: float
    seconds: float
    joules: float

    @property
    def efficiency(self) -> float:
        """Operations per joule."""
        return self.operations / self.joules if self.joules else float("inf")

    @property
    def intensity(self) -> float:
        """Operations per byte of main memory."""
        return self.operations / self.bytes if self.bytes else float("inf")


@dataclass(frozen=True)
class EnergyRoofline:
    """An arch and points under it.

    Attributes:
        title: of the picture.
        level: main memory's name.
        per_operation: joules of the cheapest operation that the workload does, its instruction included.
        per_byte: joules per byte of main memory.
        ridge: operations per byte where the roofline of time bends.
        points: by operator type and phase, the costliest first.
        derived: parts whose joules come from the process or the technology.
    """

    title: str
    level: str
    per_operation: float
    per_byte: float
    ridge: float
    points: tuple[EnergyPoint, ...]
    derived: tuple[str, ...]

    @property
    def balance(self) -> float:
        """Operations per byte at which arithmetic and main memory cost the same."""
        return self.per_byte / self.per_operation

    def roof(self, intensity: float) -> float:
        """Operations per joule that nothing of this intensity exceeds."""
        return 1.0 / (self.per_operation + self.per_byte / intensity)

    def to_dict(self) -> dict[str, Any]:
        """Arch and points in plain values."""
        return {
            "level": self.level,
            "joules_per_operation": self.per_operation,
            "joules_per_byte": self.per_byte,
            "balance": self.balance,
            "ridge": self.ridge,
            "derived": list(self.derived),
            "points": [
                {"operator": p.operator, "phase": p.phase, "joules": p.joules, "operations": p.operations,
                 "operations_per_joule": p.efficiency, "intensity": p.intensity, "watts": p.joules / p.seconds}
                for p in self.points
            ],
        }  # fmt: skip

    def table(self) -> Table:
        """The operators, the costliest first."""
        from peakline.hardware.units import format_energy, format_power
        from peakline.text import Table

        total = sum(p.joules for p in self.points) or 1.0
        rows = tuple(
            (
                p.operator, p.phase, format_energy(p.joules, 3), f"{p.joules / total:.1%}", f"{p.intensity:.3g}",
                f"{p.efficiency / 1e9:.3g} G", f"{p.efficiency / self.roof(p.intensity):.0%}",
                format_power(p.joules / p.seconds, 3),
            )
            for p in self.points
        )  # fmt: skip
        title = f"Energy: arithmetic and {self.level} cost the same at {self.balance:.3g} operations per byte"
        return Table(
            title, ("<operator", "<phase", "joules", "share", f"op/B {self.level}", "op/J", "of roof", "power"), rows
        )


def energy_roofline(est: Estimate) -> EnergyRoofline:
    """Operations per joule of an estimate's operators.

    Raises:
        ValueError: for a sweep, or a device whose energies neither its file, its process nor its memory's technology
            tells; for one whose power was measured as a whole.
    """
    if est.graph.is_sweep:
        raise ValueError("a sweep has no single roofline; estimate one configuration")
    whole, device = est.energy, est.device
    per_byte = energy_per_byte(device, device.main.name)
    if whole is None or per_byte is None or "active" in whole.parts:
        raise ValueError(
            f"{device.name}: neither its file nor its process and memory say what an operation and a byte cost; state "
            "them: compute.energy.<format>, memory.<level>.energy_per_byte"
        )
    points = []
    cheapest = float("inf")
    for key, (cost, part) in _by_type(est).items():
        found = consumption(cost, device, part)
        assert found is not None  # the whole has one
        work = float(cost.flops) + float(cost.vector_work)
        if not work:
            continue
        cheapest = min(cheapest, float(found.parts["arithmetic"] + found.parts.get("instructions", 0.0)) / work)
        moved = float(cost.traffic.get(device.main.name, 0.0))
        points.append(EnergyPoint(*key, work, moved, float(cost.tiled), float(found.total)))
    points.sort(key=lambda p: -p.joules)
    plain = roofline(est)
    ridges = {r.name: plain.ridge(r.name) for r in plain.roofs if r.slanted}
    return EnergyRoofline(
        f"{est.graph.name} on {device.name}", device.main.name, cheapest, per_byte,
        ridges.get(device.main.name, float("nan")), tuple(points), whole.derived,
    )  # fmt: skip


def _by_type(est: Estimate) -> dict[tuple[str, str], tuple[ProgramCost, Graph]]:
    """The price and the part of the graph of every operator type and phase."""
    from dataclasses import replace

    groups: dict[tuple[str, str], list[int]] = {}
    for i, operator in enumerate(est.cost.operators):
        groups.setdefault((operator.type, operator.phase), []).append(i)
    found = {}
    for key, members in groups.items():
        chosen = [est.cost.operators[i] for i in members]
        traffic: dict[str, float] = {}
        for o in chosen:
            for cost in o.costs:
                for level, moved in cost.traffic.items():
                    traffic[level] = traffic.get(level, 0.0) + o.executions * float(moved)
        seconds = sum(o.executions * float(o.seconds("tiled")) for o in chosen)
        flops = sum(o.executions * o.flops for o in chosen)
        work = sum(o.executions * o.vector_work for o in chosen)
        blocks = tuple(
            replace(b, operators=tuple(o for o in b.operators if (o.type, o.phase) == key)) for b in est.graph.blocks
        )
        price = ProgramCost((), flops, work, 0.0, 0.0, seconds, traffic, {}, {})
        found[key] = price, replace(est.graph, blocks=blocks)
    return found
