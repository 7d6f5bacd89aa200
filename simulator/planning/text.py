"""A plan in words and tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peakline.hardware.units import format_bytes, format_time
from peakline.planning.execute import DEVICE
from peakline.text import Table, fragment

if TYPE_CHECKING:
    from peakline.planning.plan import OffloadPlan

__all__ = ["headline", "html", "lines", "tables"]

_TOP = 14


def lines(plan: OffloadPlan) -> list[str]:
    """The plan for people: the answer first, then what is done, what waits and what moves."""
    words = headline(plan)
    for table in tables(plan):
        words += ["", *table.lines()]
    words += ["", *(f"note: {note}" for note in plan.notes)] if plan.notes else []
    return words


def html(plan: OffloadPlan) -> str:
    """The same as an HTML fragment, for notebooks."""
    return fragment(headline(plan), tables(plan), plan.notes)


def tables(plan: OffloadPlan) -> list[Table]:
    """What becomes of the tensors, what the streams and links do, and what lies beside the device."""
    return [table for table in (_tensors(plan), _streams(plan), _tiers(plan)) if table.rows]


def headline(plan: OffloadPlan) -> list[str]:
    """Five lines: does it fit, how long does it take, how good is that, where does it lie, what does it wait for."""
    overhead = round(plan.overhead, 3) + 0.0  # no minus before a zero
    words = [
        f"Fits: {format_bytes(plan.peak)} of the {format_bytes(plan.room)} that {format_bytes(plan.budget)} of "
        f"{plan.device.name} leave to tensors; {format_bytes(plan.baseline_peak)} as it is",
        f"Time: {format_time(plan.seconds)} a step, {overhead:+.1%} against {format_time(plan.baseline_seconds)} "
        "with memory enough",
        f"Proof: no plan of its kind {_bound(plan)} (gap {plan.gap:.2%}); {plan.method}",
    ]
    arena, reserved = plan.arena.bytes, plan.reserved
    words.append(
        f"Addresses: an arena of {format_bytes(arena)} {_whether(arena, plan.room)}; PyTorch's allocator would reserve "
        f"{format_bytes(reserved)}, which {_whether(reserved, plan.room)}"
    )
    stalls = plan.timeline.stalled("compute")
    waits = ", ".join(f"{cause} {format_time(seconds)}" for cause, seconds in stalls.items() if seconds > 1e-9)
    kinds = plan.timeline.by_kind("compute")
    packing = kinds.get("pack", 0.0) + kinds.get("unpack", 0.0)
    words.append(
        f"Compute: recomputation {format_time(kinds.get('recompute', 0.0))}"
        + (f", compression {format_time(packing)}" if packing else "")
        + (f"; waits for {waits}" if waits else "; it never waits")
    )
    return words


def _bound(plan: OffloadPlan) -> str:
    if plan.least is None:
        return f"takes less than {format_time(plan.lower_bound)}"
    within = "" if plan.slowdown is None else f" in at most {plan.slowdown:g} times the time"
    return f"needs less than {format_bytes(plan.least)}{within}"


def _whether(needed: int, room: int) -> str:
    return "fits" if needed <= room else f"is {format_bytes(needed - room)} too much"


def _tensors(plan: OffloadPlan) -> Table:
    rows = sorted(plan.kinds(), key=lambda row: -(row["recompute"] + row["move"] + row["compress"]))
    shown = [row for row in rows if row["recompute"] + row["move"] + row["compress"]]
    columns = {"keep": "kept", "recompute": "recomputed", "move": "moved"}
    if any(row["compress"] for row in shown):
        columns["compress"] = "compressed"
    cells = tuple((row["tensor"], str(row["count"]), *(_size(row[name]) for name in columns)) for row in shown[:_TOP])
    more = len(shown) - _TOP
    title = "Tensors that do not simply stay" + (f" (and {more} smaller kinds)" if more > 0 else "")
    return Table(title, ("<tensor", "count", *columns.values()), cells)


def _streams(plan: OffloadPlan) -> Table:
    timeline = plan.timeline
    rows = [
        (stream, format_time(timeline.busy(stream)), f"{timeline.use(stream):.0%}", "")
        for stream in timeline.streams
        if timeline.busy(stream)
    ]
    rows += [
        (
            f"link {name}",
            format_time(timeline.link_busy[name]),
            f"{timeline.link_busy[name] / timeline.makespan:.0%}",
            _size(moved),
        )
        for name, moved in timeline.moved.items()
        if moved
    ]
    return Table("Streams and links", ("<name", "busy", "use", "moved"), tuple(rows))


def _tiers(plan: OffloadPlan) -> Table:
    peaks, tiers = plan.peaks(), plan.timeline.program.tiers
    rows = [
        (_KINDS.get(name, name), _size(peak), _size(tiers[name].capacity or 0))
        for name, peak in peaks.items()
        if name != DEVICE and peak
    ]
    return Table("Held beside the device at most", ("<tier", "peak", "of"), tuple(rows))


_KINDS = {"host": "host (pinned)", "ssd": "ssd"}


def _size(amount: int) -> str:
    return format_bytes(amount) if amount else "-"
