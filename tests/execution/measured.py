"""The highest number of bytes alive in a real step on the CPU, by torch's profiler and its memory events."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile, record_function

STEP = "peakline step"


def measured_peak(make_step: Callable[[], Callable[[], None]], steps: int = 2) -> int:
    """Build a program and run its steps under the profiler; the peak of the last of them."""
    gc.collect()  # what earlier programs left must not be freed meanwhile
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step = make_step()
        for _ in range(steps):
            with record_function(STEP):
                step()
    found = sorted(_events(profiler.profiler.kineto_results.experimental_event_tree()), key=lambda e: e[0])
    begins = [when for when, size in found if size is None]
    live = peak = 0
    for when, size in found:
        live += size or 0
        peak = max(peak, live) if when >= begins[-1] else live
    return peak


def _events(nodes: Any) -> Iterator[tuple[int, int | None]]:
    """Moments of allocations and frees with their signed bytes, and of the beginnings of steps (None)."""
    for node in nodes:
        if node.tag == _EventType.Allocation:
            yield node.start_time_ns, node.extra_fields.alloc_size
        elif node.name == STEP:
            yield node.start_time_ns, None
        if node.tag != _EventType.Allocation:
            yield from _events(node.children)
