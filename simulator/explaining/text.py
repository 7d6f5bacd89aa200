"""An explanation in words and tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peakline.hardware.units import format_bytes, format_time
from peakline.text import Table

if TYPE_CHECKING:
    from peakline.explaining.explain import Explanation

__all__ = ["lines", "tables"]

_MODULES = 12
_ROLES = ("parameter", "gradient", "optimizer_state", "activation")


def lines(found: Explanation) -> list[str]:
    """The peak in one line, then the tables and notes."""
    memory = found.estimate.memory
    words = [
        f"Peak: {format_bytes(int(memory.live))} of tensors at once while {memory.peak_operator} runs "
        f"({memory.peak_phase}); {format_bytes(int(found.estimate.peak))} of {found.estimate.device.name}"
    ]
    for table in tables(found):
        words += ["", *table.lines()]
    return words + (["", *(f"note: {note}" for note in found.notes)] if found.notes else [])


def tables(found: Explanation) -> list[Table]:
    """The peak by module and role, its largest tensors, and what would lower it."""
    return [_modules(found), _tensors(found), *([_effects(found)] if found.effects else [])]


def _modules(found: Explanation) -> Table:
    shown = found.modules[:_MODULES]
    rows = []
    for share in shown:
        parts = [share.by_role.get(role, 0) for role in _ROLES]
        rows.append((share.module, *map(_size, (share.bytes, *parts, share.bytes - sum(parts)))))
    more = len(found.modules) - len(shown)
    title = "The peak by module" + (f" (and {more} smaller ones)" if more > 0 else "")
    return Table(title, ("<module", "bytes", *(role.replace("_", " ") for role in _ROLES), "other"), tuple(rows))


def _tensors(found: Explanation) -> Table:
    columns = ("<tensor", "<role", "alive", "bytes", "<made by", "<line")
    shown = len(columns) - (not any(t.line for t in found.tensors))
    rows: list[tuple[str, ...]] = [
        (t.tensor, t.role.replace("_", " "), str(t.count), format_bytes(t.bytes), t.operator or "-", t.line or "-")
        for t in found.tensors
    ]
    return Table("The largest tensors at the peak", columns[:shown], tuple(row[:shown] for row in rows))


def _effects(found: Explanation) -> Table:
    before = float(found.estimate.time)
    rows = [
        (
            e.change.words,
            _size(e.device),
            _size(e.live),
            format_bytes(e.peak),
            f"{e.time / before - 1.0:+.1%}" if before else "",
            e.change.how if e.change.same_result else f"{e.change.how} (other results)",
        )
        for e in found.effects
    ]
    columns = ("<change", "saves", "of tensors", "then needs", "time", "<how")
    title = f"What would lower it, each estimated anew (now {format_time(before, 3)} a step)"
    return Table(title, columns, tuple(rows))


def _size(amount: int) -> str:
    return f"-{format_bytes(-amount)}" if amount < 0 else format_bytes(amount) if amount else "-"
