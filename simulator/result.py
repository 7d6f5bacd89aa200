"""What an estimate says: numbers, a breakdown, JSON, pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from peakline.cost.program import ProgramCost
from peakline.hardware import Device
from peakline.memory.footprint import Memory
from peakline.models.graph import Graph

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from peakline.cost.energy import Energy
    from peakline.planning.plan import OffloadPlan

__all__ = ["SCHEMA", "Estimate"]

SCHEMA = "peakline.estimate/1"


@dataclass(frozen=True)
class Estimate:
    """A workload on a device. In a sweep the figures are arrays of the broadcast shape of its sizes.

    Attributes:
        graph: the workload.
        device: the device.
        memory: peaks and their breakdown; bytes.
        cost: times, traffic, FLOPs; seconds and bytes.
    """

    graph: Graph
    device: Device
    memory: Memory
    cost: ProgramCost

    @property
    def fits(self) -> Any:
        """Whether the run completes in the device's memory."""
        return self.memory.fits

    @property
    def peak(self) -> Any:
        """Peak bytes on the device (live bytes where the allocator was not replayed)."""
        return self.memory.live if self.memory.device is None else self.memory.device

    @property
    def time(self) -> Any:
        """Seconds, as tiled: the most realistic of the three fidelities."""
        return self.cost.tiled

    @cached_property
    def time_interval(self) -> tuple[Any, Any] | None:
        """(low, high) seconds between which a run is expected to lie, low ≥ bound and high ≥ `time`.

        From the residuals of the device's calibration (docs/calibration.md); None where it carries none.
        """
        from peakline.cost.interval import time_interval

        return time_interval(self.cost, self.device)

    @cached_property
    def energy_joules(self) -> Any:
        """Joules of arithmetic and data movement, or None where the device names no energies."""
        from peakline.cost.energy import energy

        return energy(self.cost, self.device, self.graph)

    @cached_property
    def energy(self) -> Energy | None:
        """Joules by part, the process and the memory's technology standing in for energies that nobody published.

        None where neither is known (`peakline.cost.energy.consumption`).
        """
        from peakline.cost.energy import consumption

        return consumption(self.cost, self.device, self.graph)

    @property
    def produced(self) -> tuple[str, Any] | None:
        """What the run makes and how many: `tokens` or `images`; None where the workload counts neither."""
        work = self.graph.workload
        if "batch" not in work:
            return None
        count = work["batch"] * work.get("accumulation", 1)
        if work.get("phase") == "decode":
            return "tokens", count
        return ("tokens", count * work["seq"]) if "seq" in work else ("images", count)

    def price(self, per_hour: float) -> tuple[float, float | None]:
        """What a device rented at `per_hour` costs: (one run, a million tokens or images; None where none are counted).

        Raises:
            ValueError: a price below zero.
        """
        if not per_hour >= 0:
            raise ValueError(f"per_hour: must be a price of at least 0; got {per_hour!r}")
        step = self.time * per_hour / 3600
        return step, None if self.produced is None else step / self.produced[1] * 1e6

    @cached_property
    def shares(self) -> dict[str, Any]:
        """Share of the tiled time that each resource limits, largest first."""
        total = np.where(np.asarray(self.cost.tiled) > 0, self.cost.tiled, 1.0)
        shares = {name: seconds / total for name, seconds in self.cost.limited_by.items()}
        ordered = sorted(shares, key=lambda name: -float(np.mean(shares[name])))
        return {name: _number(shares[name]) for name in ordered}

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about this estimate."""
        return (*self.graph.notes, *self.memory.notes)

    @cached_property
    def breakdown(self) -> pd.DataFrame:
        """One row per operator of the program (layers together): executions, seconds, bytes, FLOPs, what limits it.

        Raises:
            ValueError: for a sweep.
        """
        import pandas as pd

        if self.graph.is_sweep:
            raise ValueError("a sweep has no single breakdown; estimate one configuration")
        rows = [
            {
                "operator": o.name,
                "type": o.type,
                "phase": o.phase,
                "module": o.module,
                "executions": o.executions,
                "seconds": o.executions * o.seconds("tiled"),
                "seconds_io": o.executions * o.seconds("io"),
                "seconds_bound": o.executions * o.seconds("bound"),
                "limited_by": "/".join(dict.fromkeys(str(c.limited_by) for c in o.costs)),
                "flops": o.executions * o.flops,
                "bytes_compulsory": o.executions * (o.reads + o.writes),
            }
            for o in self.cost.operators
        ]
        return pd.DataFrame(rows)

    # ---- interchange ----------------------------------------------------------------------------------------------
    def to_dict(self) -> dict[str, Any]:
        """The estimate in plain values, as documented in docs/json.md (`peakline.estimate/1`)."""
        memory = self.memory
        out: dict[str, Any] = {
            "schema": SCHEMA,
            "fits": memory.fits,
            "model": self.graph.name,
            "device": self.device.name,
            "workload": dict(self.graph.workload),
            "parameters": self.graph.parameters,
            "memory": {
                "live": memory.live,
                "allocated": memory.allocated,
                "reserved": memory.reserved,
                "device": memory.device,
                "capacity": memory.capacity,
                "context": memory.context,
                "by_role": dict(memory.by_role),
                "peak_operator": memory.peak_operator,
                "peak_phase": memory.peak_phase,
                "allocator_retries": memory.retries,
                "largest": [
                    {"tensor": t.tensor, "bytes": t.bytes, "role": t.role, "count": t.count} for t in memory.largest
                ],
                "stores": {name: {"used": used, "capacity": cap} for name, (used, cap) in memory.stores.items()},
            },
            "time": {
                "bound": self.cost.bound,
                "io": self.cost.io,
                "tiled": self.cost.tiled,
                "interval": None if self.time_interval is None else list(self.time_interval),
                "limited_by": self.shares,
            },
            "flops": self.cost.flops,
            "vector_operations": self.cost.vector_work,
            "traffic": {k: _bytes(v) for k, v in self.cost.traffic.items()},
            "io_lower_bound": {k: _bytes(v) for k, v in self.cost.io_lower_bound.items()},
            "energy_joules": self.energy_joules,
            "energy": self._energy_dict(),
            "notes": list(self.notes),
        }
        plain: dict[str, Any] = _plain(out)
        return plain

    def _energy_dict(self) -> dict[str, Any] | None:
        found = self.energy
        if found is None:
            return None
        per = None if self.produced is None else found.total / self.produced[1]
        return {
            "joules": found.total, "parts": dict(found.parts), "watts": found.watts, "at_limit": found.at_limit,
            "capped_seconds": found.capped_seconds, "per": None if self.produced is None else self.produced[0][:-1],
            "joules_per": per, "derived": list(found.derived),
        }  # fmt: skip

    def to_json(self) -> str:
        """`to_dict` as one JSON object."""
        return json.dumps(self.to_dict(), indent=2)

    # ---- for people -----------------------------------------------------------------------------------------------
    def explain(self, *, changes: bool = False) -> str:
        """The answer in words: fits or not, the peak and what dominates it, the time and what bounds it.

        Args:
            changes: also the peak by module, and what would lower it most, estimated anew (`peakline.explain`).
        """
        from peakline.text import explain

        if not changes:
            return explain(self)
        from peakline.explaining.explain import explain as explained

        return f"{explain(self)}\n\n{explained(self)}"

    def plot_memory(self, ax: Axes | None = None) -> Axes:
        """Live memory over the step, stacked by role, the peak marked and the capacity drawn."""
        from peakline.plot import plot_memory

        return plot_memory(self, ax)

    def write_snapshot(self, path: str | PathLike[str]) -> None:
        """The allocator's history in the format that PyTorch's memory visualiser opens."""
        from peakline.export import write_snapshot

        write_snapshot(self, path)

    def write_trace(self, path: str | PathLike[str]) -> None:
        """The step's operators on a time line, in the Chrome/Perfetto trace format."""
        from peakline.export import write_trace

        write_trace(self, path)

    def report(self, path: str | PathLike[str], *, plan: OffloadPlan | None = None) -> None:
        """One self-contained HTML file with figures that zoom and answer to the pointer; see `peakline.report`."""
        from peakline.reporting.page import report

        report(self, path, plan=plan)

    def _repr_html_(self) -> str:
        from peakline.text import html

        return html(self)

    def __str__(self) -> str:
        return self.explain()


def _number(value: Any) -> Any:
    return float(value) if np.ndim(value) == 0 else value


def _bytes(value: Any) -> Any:
    """Bytes as integers; traffic formulas may carry fractions of a byte, rounded up."""
    if np.ndim(value) == 0:
        return int(np.ceil(value))
    return np.ceil(np.asarray(value)).astype(np.int64)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
