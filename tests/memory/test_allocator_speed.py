"""A replay must be cheap enough to sit inside every estimate."""

from __future__ import annotations

import time

import pytest
from training_stream import training_steps

from peakline.memory.caching_allocator import replay
from peakline.memory.options import AllocatorOptions


@pytest.mark.parametrize("expandable", [False, True])
def test_a_training_step_replays_in_a_few_microseconds_per_event(expandable: bool) -> None:
    events = training_steps()
    assert 10_000 < len(events) < 40_000
    options = AllocatorOptions(expandable_segments=expandable)
    seconds = []
    for _ in range(7):
        start = time.perf_counter()
        result = replay(events, options=options)
        seconds.append(time.perf_counter() - start)
    print(f"{len(events)} events, {1e6 * min(seconds) / len(events):.2f} µs each, {1e3 * min(seconds):.1f} ms")
    assert result.peak_reserved >= result.peak_allocated >= result.peak_requested
    assert min(seconds) / len(events) < 5e-6  # 1 µs, or 1.4 expandable, on an idle core
