"""A graph as a small HTML table, for notebooks."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from peakline.models.graph import Graph

__all__ = ["html"]

_ROLES = ("parameter", "gradient", "optimizer_state", "buffer", "input", "kv_cache", "activation")


def html(graph: Graph) -> str:
    """Name, workload, operators by phase, and bytes of all tensors by role (activations are never all alive at once).

    Of a sweep the least and the most.
    """
    phases: dict[str, int] = {}
    for block, operator in graph.operators():
        phases[operator.phase] = phases.get(operator.phase, 0) + block.repeat * block.times
    rows = [("workload", ", ".join(f"{key} {_plain(value)}" for key, value in graph.workload.items()))]
    rows.append(("operators", ", ".join(f"{count:,} {phase}" for phase, count in phases.items())))
    for role in _ROLES:
        held = graph.total_bytes(role)
        if np.any(np.asarray(held) > 0):
            rows.append((f"{role.replace('_', ' ')} bytes", _plain(held)))
    left = "style='text-align:left'"
    cells = (f"<tr><th {left}>{escape(name)}</th><td {left}>{escape(text)}</td></tr>" for name, text in rows)
    notes = "".join(f"<li>{escape(note)}</li>" for note in graph.notes)
    return (
        f"<div class='peakline'><b>{escape(graph.name)}</b><table>{''.join(cells)}</table>"
        f"{f'<ul>{notes}</ul>' if notes else ''}</div>"
    )


def _plain(value: Any) -> str:
    """A number with separators; of an array the least and the most."""
    if np.ndim(value):
        low, high = np.min(value), np.max(value)
        return f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 9999 else str(value)
