"""A training step on a microcontroller: SRAM, flash and time of a full or a sparse update of an int8 network.

Memory is `peakline.memory.sparse_update`'s, beside what the inference library holds. Time: the forward pass, and behind
it every operator from the last to the first that is updated. An error is passed on by as many multiply-accumulates as
the forward operator has, a weight's gradient takes the updated share of as many (D. Rumelhart et al., Nature 323, 1986:
two products of the forward one's size), each at the forward operator's speed.

Reference: J. Lin et al., "On-device training under 256KB memory", arXiv:2206.15472.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peakline.hardware.units import format_bytes, format_time
from peakline.memory.sparse_update import (
    SparseUpdate,
    TrainingPeak,
    full_update,
    training_peak,
    update_shares,
    weighted_operators,
)

if TYPE_CHECKING:
    from peakline.result import Estimate

__all__ = ["Learning", "learning", "read_update"]


@dataclass(frozen=True)
class Learning:
    """A training step on the device.

    Attributes:
        peak: bytes at its peak, by kind, and how many values are updated.
        beside: bytes that the inference library holds beside them.
        capacity: bytes that one arena may take.
        fits: whether both memories hold it.
        forward, backward: seconds.
    """

    peak: TrainingPeak
    beside: int
    capacity: int
    fits: bool
    forward: float
    backward: float

    @property
    def sram(self) -> int:
        """Bytes of SRAM."""
        return self.peak.total + self.beside

    @property
    def seconds(self) -> float:
        """Of a step."""
        return self.forward + self.backward

    def lines(self) -> list[str]:
        """In words."""
        kinds = [f"{kind} {format_bytes(held, 3)}" for kind, held in self.peak.by_kind.items() if held]
        return [
            f"Training step: {'fits' if self.fits else 'does not fit'}, {format_bytes(self.sram)} of "
            f"{format_bytes(self.capacity)} SRAM; {self.peak.updated:,} weights and biases updated",
            f"  at the peak: {', '.join(kinds)}; beside: {format_bytes(self.beside, 3)}",
            f"  {format_time(self.seconds, 3)}: forward {format_time(self.forward, 3)}, "
            f"backward {format_time(self.backward, 3)}",
        ]

    def to_dict(self) -> dict[str, Any]:
        """In plain values."""
        return {
            "fits": self.fits, "sram": self.sram, "capacity": self.capacity, "by_kind": dict(self.peak.by_kind),
            "beside": self.beside, "updated": self.peak.updated, "forward": self.forward, "backward": self.backward,
        }  # fmt: skip


def learning(est: Estimate, update: SparseUpdate) -> Learning:
    """What training takes where `est` is the network's inference.

    Raises:
        ValueError: no microcontroller, a network in patches, or an update that names what is not there.
    """
    graph, memory = est.graph, est.memory
    if est.device.kind != "mcu":
        raise ValueError(f"sparse_update: {est.device.name} is a {est.device.kind}, not a microcontroller")
    if "patches" in graph.workload or graph.is_sweep or graph.workload.get("batch") != 1:
        raise ValueError("sparse_update: one image at a time, and not in patches")
    peak = training_peak(graph, update)
    seconds = {o.name: o.executions * float(o.seconds("tiled")) for o in est.cost.operators}
    shares = update_shares(graph, update)
    names = [operator.name for _, operator in graph.flatten().operators()]
    first = min(shares)
    backward = sum(
        seconds.get(name, 0.0) * ((1.0 if i > first else 0.0) + shares.get(i, 0.0))
        for i, name in enumerate(names)
        if i >= first
    )
    beside = int(memory.context)
    flash = all(used <= room for used, room in memory.stores.values())
    fits = peak.total + beside <= memory.capacity and flash
    return Learning(peak, beside, memory.capacity, fits, float(est.time), backward)


def read_update(est: Estimate, text: str) -> SparseUpdate:
    """An update written as `21,24,36:0.125,-1;biases=23`: operators with weights by number, each with the share of its
    weights that learns (all of them without one), and how many of the last operators' biases do; or `full`.

    Raises:
        ValueError: text that is not written so.
    """
    if text.strip() == "full":
        return full_update(est.graph, reorder=True)
    weights: dict[int, float] = {}
    biases = 0
    for part in text.replace(";", ",").split(","):
        name, _, value = part.strip().partition("=" if "=" in part else ":")
        try:
            if name.strip() == "biases":
                biases = int(value)
            elif name.strip():
                weights[int(name)] = float(value) if value else 1.0
        except ValueError:
            count = len(weighted_operators(est.graph))
            raise ValueError(
                f"sparse_update: {part.strip()!r} is not written as OPERATOR, OPERATOR:SHARE or biases=COUNT; "
                f"operators with weights are numbered 0 to {count - 1}, -1 is the last"
            ) from None
    return SparseUpdate(weights, biases=biases)
