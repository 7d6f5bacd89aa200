"""Measured truth: record real torch runs, read the recordings safely, and replay them.

    from peakline.record import read_trace, compare_allocator

    trace = read_trace("tests/traces/cpu-epyc")
    for row in trace.memory:
        print(row.case.name, row.peak_allocated_bytes)

Reading needs no torch; recording (`peakline record`) does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peakline.record.allocator import AllocatorComparison, compare_allocator
    from peakline.record.cases import MEMORY_CASES
    from peakline.record.reader import Trace, TraceError, read_events, read_trace
    from peakline.record.schema import Environment, KernelRow, MemoryCase, MemoryRow, OperatorCase, OperatorRow, StepRow
    from peakline.record.streams import AllocationTrace, Event, from_snapshot
    from peakline.record.suite import record

_HOME = {
    "allocator": ("AllocatorComparison", "compare_allocator"),
    "cases": ("MEMORY_CASES",),
    "reader": ("Trace", "TraceError", "read_events", "read_trace"),
    "schema": ("Environment", "KernelRow", "MemoryCase", "MemoryRow", "OperatorCase", "OperatorRow", "StepRow"),
    "streams": ("AllocationTrace", "Event", "from_snapshot"),
    "suite": ("record",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "MEMORY_CASES",
    "AllocationTrace",
    "AllocatorComparison",
    "Environment",
    "Event",
    "KernelRow",
    "MemoryCase",
    "MemoryRow",
    "OperatorCase",
    "OperatorRow",
    "StepRow",
    "Trace",
    "TraceError",
    "compare_allocator",
    "from_snapshot",
    "read_events",
    "read_trace",
    "record",
]


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'peakline.record' has no attribute {name!r}")
    value = getattr(import_module(f"peakline.record.{module}"), name)
    globals()[name] = value
    return value
