"""A recorded history of CUDA's caching allocator, replayed by ours."""

from __future__ import annotations

import random
from typing import Any

import pytest
from snapshots import MIB, Driver

from peakline.memory.caching_allocator import Allocator
from peakline.memory.events import EventBuilder
from peakline.memory.snapshot import snapshot
from peakline.record import compare_allocator, from_snapshot, read_events
from peakline.record.streams import AllocationTrace


def _busy(driver: Driver, seed: int, steps: int = 600) -> None:
    """Allocations and frees of many sizes in an order that fragments."""
    rng, live = random.Random(seed), []
    for _ in range(steps):
        if live and rng.random() < 0.45:
            driver.free(*live.pop(rng.randrange(len(live))))
        else:
            size = rng.choice([40, 3000, 70_000, 900_000, 3 * MIB, 7 * MIB, 15 * MIB, 33 * MIB]) + rng.randrange(600)
            live.append((driver.malloc(size), size))


@pytest.mark.parametrize("seed", range(5))
def test_a_history_replays_block_for_block(seed: int) -> None:
    driver = Driver()
    _busy(driver, seed)
    found = compare_allocator(from_snapshot(driver.snapshot()))
    assert found.complete
    assert found.first_difference is None, str(found.first_difference)
    assert found.exact
    assert found.replayed_segments == found.recorded_segments
    assert found.replayed_peak_reserved == found.recorded_peak_reserved > 0


def test_emptying_the_cache_is_followed() -> None:
    driver = Driver()
    kept = driver.malloc(5 * MIB)
    freed = driver.malloc(50 * MIB)
    driver.free(freed, 50 * MIB)
    driver.empty_cache()
    driver.malloc(30 * MIB)
    driver.free(kept, 5 * MIB)
    driver.malloc(4 * MIB)
    found = compare_allocator(from_snapshot(driver.snapshot()))
    assert found.exact
    assert found.recorded_segments == (20 * MIB, 50 * MIB, 30 * MIB) == found.replayed_segments
    assert found.recorded_end_reserved == found.replayed_end_reserved == 50 * MIB


def test_a_block_still_in_use_on_another_stream_is_not_given_out_again() -> None:
    driver = Driver()
    shared = driver.malloc(12 * MIB)
    driver.free(shared, 12 * MIB, later=True)
    driver.malloc(12 * MIB)  # must be a new segment
    driver.complete(shared, 12 * MIB)
    assert driver.malloc(12 * MIB) == shared
    found = compare_allocator(from_snapshot(driver.snapshot()))
    assert found.exact
    assert found.recorded_segments == (12 * MIB, 12 * MIB)


def test_a_driver_that_does_otherwise_is_found_out_and_the_first_difference_named() -> None:
    driver = Driver()
    first = driver.malloc(3 * MIB)
    driver.free(first, 3 * MIB)
    history = driver.snapshot()
    driver.log("segment_alloc", driver.base, 20 * MIB, 0)  # although a cached block would do
    driver.log("alloc", driver.base, 2 * MIB, 0)
    found = compare_allocator(from_snapshot(history))
    assert not found.exact
    assert found.first_difference is not None
    assert str(found.first_difference).endswith("recorded segment 1 at offset 0, replayed segment 0 at offset 0")
    assert found.reserved_error == pytest.approx(-0.5)


def test_our_own_snapshots_are_such_histories_too() -> None:
    builder = EventBuilder()
    for key, size in (("a", 300), ("b", 5 * MIB), ("c", 40 * MIB), ("d", 2 * MIB)):
        builder.alloc(key, size)
    builder.free("b")
    builder.alloc("e", 3 * MIB)
    stream = builder.build()
    replay = Allocator().run(stream, record=True)
    found = compare_allocator(from_snapshot(snapshot(replay, stream)))
    assert found.exact
    assert found.recorded_peak_reserved == replay.peak_reserved


def test_expandable_segments_are_compared_by_their_mappings() -> None:
    from peakline.memory.options import AllocatorOptions

    builder = EventBuilder()
    for key in range(6):
        builder.alloc(key, 9 * MIB + 512 * key)
    builder.free(2)
    builder.alloc("large", 30 * MIB)
    stream = builder.build()
    options = AllocatorOptions(expandable_segments=True)
    replay = Allocator(None, options).run(stream, record=True)
    trace = from_snapshot(snapshot(replay, stream), allocator="expandable_segments:True")
    found = compare_allocator(trace)
    assert found.exact
    assert found.recorded_peak_reserved == replay.peak_reserved
    assert not compare_allocator(trace, AllocatorOptions()).exact


def test_a_history_that_lost_its_beginning_says_so() -> None:
    driver = Driver()
    old = driver.malloc(5 * MIB)
    driver.entries.clear()
    driver.free(old, 5 * MIB)
    assert not from_snapshot(driver.snapshot()).header.complete
    full = Driver()
    full.malloc(100)
    assert not from_snapshot(full.snapshot(), capacity=2).header.complete
    assert from_snapshot(full.snapshot(), capacity=3).header.complete


def test_phases_begin_where_the_host_said() -> None:
    driver = Driver()
    driver.malloc(100)
    middle = driver.clock + 1
    driver.malloc(200)
    trace = from_snapshot(driver.snapshot(), marks=[(0, "model"), (middle, "step0/forward"), (1 << 50, "end")])
    assert [(s.name, s.peak_bytes) for s in trace.spans()] == [("model", 100), ("step0/forward", 300), ("end", 300)]


def test_a_stream_comes_back_from_its_file_unchanged(tmp_path: Any) -> None:
    driver = Driver()
    _busy(driver, 7, 100)
    trace = from_snapshot(driver.snapshot(), case="round trip")
    path = tmp_path / "events-x.jsonl"
    path.write_text("".join(line + "\n" for line in trace.lines()))
    assert read_events(path) == trace


def test_a_stream_of_a_cpu_is_refused() -> None:
    trace = from_snapshot(Driver().snapshot())
    cpu = AllocationTrace(trace.header.model_copy(update={"device": "cpu"}), ())
    with pytest.raises(ValueError, match="recorded on a CPU; accepted: one of a CUDA device"):
        compare_allocator(cpu)


def test_what_is_no_snapshot_is_refused() -> None:
    with pytest.raises(ValueError, match="expected torch"):
        from_snapshot({"segments": []})
