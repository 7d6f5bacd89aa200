"""`io(work, device)`: bound, best tiling and distance at every level of a device's memory, as data and as tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peakline.io_complexity.graphs import Entry, Kept, Scheduled, entries, keep, scheduled, whole_bound
from peakline.io_complexity.levels import Boundary, boundaries
from peakline.io_complexity.work import Tiling, Work

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from peakline.hardware import Device
    from peakline.models.graph import Graph
    from peakline.text import Table

__all__ = ["IoReport", "IoRow", "io"]


@dataclass(frozen=True)
class IoRow:
    """One operator, or all equal ones of a graph, at one boundary. Bytes are those of one execution.

    Attributes:
        name, phase: what it is, and where in a step ("" outside a graph).
        executions: how often.
        compulsory: every operand and result once.
        bound: what no schedule avoids.
        best: what the best tiling found moves; None where not even the smallest tiles fit.
        tiling: that tiling, in words.
        footprint: bytes that it holds.
    """

    name: str
    phase: str
    executions: int
    compulsory: float
    bound: float
    best: float | None
    tiling: str
    footprint: float | None

    @property
    def distance(self) -> float | None:
        """Best over bound, at least 1."""
        return None if self.best is None else self.best / self.bound if self.bound else 1.0


@dataclass(frozen=True)
class IoLevel:
    """All operators at one boundary; of a graph `whole_bound`, `kept` and `scheduled` speak of all of them together."""

    boundary: Boundary
    rows: tuple[IoRow, ...]
    whole_bound: float | None = None
    kept: Kept | None = None
    scheduled: Scheduled | None = None

    def total(self, field: str) -> float | None:
        """Σ over executions of `compulsory`, `bound` or `best`; None where one of them is."""
        values = [(r.executions, getattr(r, field)) for r in self.rows]
        return None if any(v is None for _, v in values) else float(sum(n * v for n, v in values))


@dataclass(frozen=True)
class IoReport:
    """What `io` found, nearest boundary first."""

    title: str
    levels: tuple[IoLevel, ...]
    work: Any

    def to_dict(self) -> dict[str, Any]:
        """Plain values; bytes."""
        return {"title": self.title, "levels": [_level_dict(level) for level in self.levels]}

    def tables(self) -> list[Table]:
        """One table for each boundary, the operators that move most first; for a graph also its sums."""
        return [table for level in self.levels for table in _tables(level)]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Traffic against capacity with the bound under it (`peakline.plot_io`). Raises ValueError for a graph."""
        from peakline.plot_io import plot_traffic

        if not isinstance(self.work, Work):
            raise ValueError(f"{self.title}: a graph has no single curve; plot one of its operators")
        return plot_traffic(self.work, ax=ax, marks=[level.boundary for level in self.levels])


def io(
    work: Work | Graph,
    device: Device | str | None = None,
    *,
    capacity: float | str | None = None,
    level: str | None = None,
    schedule: float | None = None,
) -> IoReport:
    """Least traffic, best tiling found and their distance for an operator, a fused chain or a whole graph.

    Args:
        work: an operator of `peakline.io_complexity`, or a graph (`pk.prefill(...)`).
        device: where; every boundary of its memory hierarchy is looked at.
        capacity: bytes of one fast memory ("192KiB" or a number), instead of a device's, or in place of the capacity in
            front of `level`.
        level: only what comes out of this level of the device.
        schedule: seconds to spend on a plan of whole tensors for a graph, beside the tiled one; none where None.

    Raises:
        ValueError: neither a device nor a capacity, an unknown level, a capacity below 1, a device without memory of
            known size in front of its main memory, `schedule` not above 0 or without a graph, or a sweep of
            configurations.
    """
    from peakline.models.graph import Graph

    if schedule is not None and (schedule <= 0 or not isinstance(work, Graph)):
        raise ValueError(f"schedule: seconds above 0 for a graph, got {schedule} for {work.name}")
    places = _places(device, capacity, level)
    where = "" if device is None else f" on {device if isinstance(device, str) else device.name}"
    if isinstance(work, Graph):
        found = entries(work)
        levels = tuple(_graph_level(work, found, place, schedule) for place in places)
        return IoReport(f"{work.name}{where}", levels, work)
    levels = tuple(IoLevel(place, (_row(work, place),)) for place in places)
    return IoReport(f"{work.name}{where}", levels, work)


def _places(device: Device | str | None, capacity: float | str | None, level: str | None) -> Sequence[Boundary]:
    from peakline.hardware import device as device_of
    from peakline.hardware.units import parse_bytes

    size = None if capacity is None else float(parse_bytes(capacity) if isinstance(capacity, str) else capacity)
    if size is not None and size < 1:
        raise ValueError(f"capacity: must be at least 1 byte, got {capacity}")
    if device is None:
        if size is None:
            raise ValueError("device: io needs a device, or the capacity of a fast memory (capacity, such as 192KiB)")
        if level is not None:
            raise ValueError(f"level: {level!r} needs a device")
        return [Boundary("memory", size)]
    found = boundaries(device_of(device) if isinstance(device, str) else device)
    if level is not None:
        known = [b.level for b in found]
        found = tuple(b for b in found if b.level == level)
        if not found:
            raise ValueError(f"level: {level!r} is none of the device's; it has: {', '.join(known) or 'none'}")
    if size is not None:
        last = found[-1] if found else Boundary("memory", size)
        return [Boundary(last.level, size, last.copies, last.bandwidth)]
    if not found:
        raise ValueError(f"{device}: no memory of known size stands in front of its main memory; give a capacity")
    return found


def _row(work: Work, place: Boundary) -> IoRow:
    found = work.best(place.capacity)
    bound = work.bound(place.capacity, place.copies)
    return IoRow(
        work.name, "", 1, work.compulsory, bound, None if found is None else found.traffic,
        "nothing fits" if found is None else str(found), None if found is None else found.footprint,
    )  # fmt: skip


def _graph_level(graph: Graph, found: Sequence[Entry], place: Boundary, seconds: float | None) -> IoLevel:
    grouped: dict[Any, list[Entry]] = {}
    for entry in found:
        grouped.setdefault((entry.type, entry.phase, entry.works, entry.moved), []).append(entry)
    rows = []
    for (kind, phase, works, moved), same in grouped.items():
        best = same[0].best(place.capacity)
        bound = same[0].bound(place.capacity, place.copies)
        times = sum(e.executions for e in same)
        name = kind if len(works) != 1 or works[0].name == kind else f"{kind}: {works[0].name}"
        rows.append(
            IoRow(name, phase, times, moved, bound, None if best is None else best[0], _words(best),
                  None if best is None else max(t.footprint for t in best[1]))
        )  # fmt: skip
    rows.sort(key=lambda r: -r.executions * (r.best or r.bound))
    if place.copies > 1:  # what one unit keeps is not another's
        return IoLevel(place, tuple(rows))
    plan = None if seconds is None else scheduled(graph, place.capacity, seconds)
    bound = whole_bound(graph, place.capacity, found)
    return IoLevel(place, tuple(rows), bound, keep(graph, place.capacity, found), plan)


def _words(best: tuple[float, tuple[Tiling, ...]] | None) -> str:
    return "nothing fits" if best is None else "; ".join(dict.fromkeys(str(t) for t in best[1]))


def _level_dict(level: IoLevel) -> dict[str, Any]:
    place = level.boundary
    out: dict[str, Any] = {
        "level": place.level,
        "capacity": place.capacity,
        "copies": place.copies,
        "bytes_per_s": place.bandwidth,
        "compulsory": level.total("compulsory"),
        "bound": level.total("bound"),
        "best": level.total("best"),
        "operators": [
            {
                "operator": r.name,
                "phase": r.phase,
                "executions": r.executions,
                "compulsory": r.compulsory,
                "bound": r.bound,
                "best": r.best,
                "distance": r.distance,
                "tiling": r.tiling,
                "footprint": r.footprint,
            }
            for r in level.rows
        ],
    }
    if level.whole_bound is not None:
        kept = level.kept
        out["whole"] = {
            "bound": level.whole_bound,
            "best": None if kept is None else kept.traffic,
            "kept": [] if kept is None else list(kept.tensors),
        }
    if level.scheduled is not None:
        out["scheduled"] = {"bound": level.scheduled.bound, "best": level.scheduled.traffic}
    return out


_SHOWN = 12


def _tables(level: IoLevel) -> list[Table]:
    from peakline.hardware.units import format_bytes
    from peakline.text import Table

    def size(value: float | None) -> str:
        return "-" if value is None else format_bytes(value)

    def ratio(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    place = level.boundary
    many = f"{place.copies} × " if place.copies > 1 else ""
    title = f"Out of {place.level} into {many}{format_bytes(place.capacity)}"
    out = [
        Table(
            title,
            ("<operator", "times", "compulsory", "bound", "best", "distance", "<tiling"),
            tuple(
                (
                    r.name,
                    str(r.executions),
                    size(r.compulsory),
                    size(r.bound),
                    size(r.best),
                    ratio(r.distance),
                    r.tiling,
                )
                for r in level.rows[:_SHOWN]
            ),
        )
    ]
    if level.whole_bound is None and len(level.rows) < 2:
        return out
    bound, best = level.total("bound"), level.total("best")
    sums = [("each operator by itself", size(bound), size(best), ratio(best / bound if best and bound else None))]
    if level.whole_bound is not None:
        kept = level.kept
        moved = None if kept is None else kept.traffic
        far = moved / level.whole_bound if moved is not None and level.whole_bound else None
        n = 0 if kept is None else len(kept.tensors)
        sums.append((f"the whole graph, {n} tensors kept on chip", size(level.whole_bound), size(moved), ratio(far)))
    if level.scheduled is not None:
        whole, least = level.scheduled.traffic, level.scheduled.bound
        sums.append(("whole tensors, scheduled", size(least), size(whole), ratio(whole / least)))
    rest = len(level.rows) - _SHOWN
    more = f" ({rest} more operators not shown)" if rest > 0 else ""
    out.append(Table(f"Together{more}", ("<schedule", "bound", "best", "distance"), tuple(sums)))
    return out
