"""The replay of the caching allocator equals a slow reference, event by event, under every option."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_allocator import ReferenceAllocator

from peakline.memory.caching_allocator import Allocator, replay
from peakline.memory.events import EventBuilder, EventError, EventStream
from peakline.memory.options import MIB, AllocatorOptions

BOUNDARIES = [0, 1, 511, 512, 513, MIB - 512, MIB - 1, MIB, MIB + 1, 2 * MIB, 3 * MIB + 7, 9 * MIB, 10 * MIB - 1]
BOUNDARIES += [10 * MIB, 10 * MIB + 1, 12 * MIB, 19 * MIB, 20 * MIB - 1, 20 * MIB, 20 * MIB + 1, 21 * MIB, 30 * MIB]
BOUNDARIES += [40 * MIB, 41 * MIB - 1, 64 * MIB, 100 * MIB]
SIZES = st.one_of(st.sampled_from(BOUNDARIES), st.integers(0, 4 * MIB), st.integers(0, 2000))


@st.composite
def streams(draw: st.DrawFn, most: int = 60) -> EventStream:
    """Random programs on three CUDA streams that free in any order and share blocks between streams."""
    builder = EventBuilder()
    live: list[int] = []
    for name in range(draw(st.integers(1, most))):
        action = draw(st.sampled_from(["alloc", "alloc", "alloc", "free", "free", "use", "sync"]))
        if action == "alloc" or not live:
            builder.alloc(name, draw(SIZES), draw(st.sampled_from([0, 0, 0, 1, 2])))
            live.append(name)
        elif action == "free":
            builder.free(live.pop(draw(st.integers(0, len(live) - 1))))
        elif action == "use":
            builder.use(draw(st.sampled_from(live)), draw(st.sampled_from([1, 2])))
        else:
            builder.sync(draw(st.sampled_from([1, 2])))
    return builder.build()


@st.composite
def any_options(draw: st.DrawFn) -> AllocatorOptions:
    large = draw(st.sampled_from([20, 20, 12, 11, 32])) * MIB
    return AllocatorOptions(
        expandable_segments=draw(st.booleans()),
        max_split_size=draw(st.sampled_from([None, None, large, large + 1 * MIB, 40 * MIB])),
        max_non_split_rounding=draw(st.sampled_from([None, None, 40 * MIB])),
        garbage_collection_threshold=draw(st.sampled_from([0.0, 0.3, 0.8])),
        memory_fraction=draw(st.sampled_from([None, None, 0.4, 0.9])),
        roundup_power2_divisions=draw(st.sampled_from([(0,) * 16, (4,) * 16, (8, 2, 4, 1, 0, 16) + (2,) * 10])),
        large_segment_size=large,
    )


@settings(max_examples=250, deadline=None)
@given(streams(), any_options(), st.sampled_from([60 * MIB, 150 * MIB, 151 * MIB, 400 * MIB, 10**11]))
def test_replay_equals_the_reference_event_by_event(
    events: EventStream, options: AllocatorOptions, capacity: int
) -> None:
    reference = ReferenceAllocator(options, capacity)
    where, course, failed = reference.run(events)
    result = replay(events, capacity, options, record=True)
    assert (result.oom.event if result.oom else None) == failed
    assert result.addresses is not None
    assert result.block_bytes is not None
    for block, (address, size) in where.items():
        assert (result.addresses[block], result.block_bytes[block]) == (address, size)
    lines = result.timelines
    assert list(zip(lines.allocated, lines.active, lines.reserved)) == course
    assert result.alloc_retries == reference.retries
    assert result.reserved == reference.reserved
    peaks = [max([0] + [row[column] for row in course]) for column in range(3)]
    assert (result.peak_allocated, result.peak_active) == (peaks[0], peaks[1])
    if failed is None:
        assert result.peak_reserved >= peaks[2]


RULES = {
    "plain": AllocatorOptions(),
    "max_split": AllocatorOptions(max_split_size=24 * MIB),
    "collected": AllocatorOptions(memory_fraction=0.9, garbage_collection_threshold=0.5),
    "expandable": AllocatorOptions(expandable_segments=True),
    "expandable_max_split": AllocatorOptions(expandable_segments=True, max_split_size=24 * MIB),
}


@pytest.mark.parametrize("name", RULES)
def test_long_programs_short_of_memory_equal_the_reference(name: str) -> None:
    """Long enough that memory is given back and asked for again many times before the program fails."""
    capacity = (400 if name == "expandable" else 512) * MIB
    calls: Counter[str] = Counter()
    ooms = 0
    for seed in range(12):
        rng = random.Random(seed)
        builder, live, held = EventBuilder(), [], 0
        for number in range(250):
            if live and (held > 330 * MIB or rng.random() < 0.45):
                key, size = live.pop(rng.randrange(len(live)))
                builder.free(key)
                held -= size
            else:
                size = rng.choice([700, MIB, 3 * MIB, 11 * MIB, 25 * MIB, 25 * MIB, 33 * MIB, rng.randrange(70 * MIB)])
                builder.alloc(number, size)
                live.append((number, size))
                held += size
        events = builder.build()
        reference = ReferenceAllocator(RULES[name], capacity)
        where, course, failed = reference.run(events)
        result = replay(events, capacity, RULES[name], record=True)
        assert result.addresses is not None
        assert (result.oom.event if result.oom else None) == failed
        assert [result.addresses[block] for block in where] == [address for address, _ in where.values()]
        assert list(zip(result.timelines.allocated, result.timelines.active, result.timelines.reserved)) == course
        assert result.alloc_retries == reference.retries
        calls += Counter(call.action for call in result.driver_calls)
        ooms += result.ooms
    assert calls["segment_unmap" if "expandable" in name else "segment_free"] > 10
    assert ooms < 12


@settings(max_examples=60, deadline=None)
@given(streams(), any_options())
def test_peak_reserved_is_the_highest_reserved_when_nothing_is_refused(
    events: EventStream, options: AllocatorOptions
) -> None:
    result = replay(events, 10**12, options, record=True)
    assert result.peak_reserved == max(0, *result.timelines.reserved)
    assert result.alloc_retries == 0


@settings(max_examples=100, deadline=None)
@given(streams(), any_options(), st.sampled_from([150 * MIB, 10**11]))
def test_live_blocks_never_overlap_and_fit_what_was_asked(
    events: EventStream, options: AllocatorOptions, capacity: int
) -> None:
    result = replay(events, capacity, options, record=True)
    assert result.addresses is not None
    assert result.block_bytes is not None
    last = result.oom.event if result.oom else len(events)
    for event in range(last):
        spans = sorted((result.addresses[b], result.block_bytes[b]) for b in events.live_after(event))
        for (start, size), (after, _) in itertools.pairwise(spans):
            assert start + size <= after
    for block in range(len(events.sizes)):
        if result.addresses[block]:
            assert result.block_bytes[block] >= events.sizes[block]


@settings(max_examples=100, deadline=None)
@given(streams(), any_options(), st.sampled_from([150 * MIB, 10**11]))
def test_freeing_everything_returns_to_zero(events: EventStream, options: AllocatorOptions, capacity: int) -> None:
    allocator = Allocator(capacity, options)
    allocator.run(events)
    assert allocator.allocated <= allocator.active <= allocator.reserved <= capacity
    for segment in allocator.segments():
        for block in segment.blocks:
            if block.state == "active_allocated":
                allocator.release(block.key)
    allocator.empty_cache()
    assert (allocator.allocated, allocator.active, allocator.reserved) == (0, 0, 0)
    assert allocator.segments() == []


@settings(max_examples=60, deadline=None)
@given(streams(), any_options())
def test_segments_account_for_every_reserved_byte(events: EventStream, options: AllocatorOptions) -> None:
    allocator = Allocator(10**11, options)
    result = allocator.run(events, record=True)
    segments = allocator.segments()
    assert sum(segment.size for segment in segments) == allocator.reserved
    assert len(segments) == result.segments
    held = [b.size for s in segments for b in s.blocks if b.state == "active_allocated"]
    assert sum(held) == allocator.allocated == result.allocated


@settings(max_examples=60, deadline=None)
@given(streams(most=40), streams(most=40), any_options())
def test_two_runs_of_one_allocator_equal_one_long_run(
    first: EventStream, second: EventStream, options: AllocatorOptions
) -> None:
    def rename(events: EventStream, builder: EventBuilder, tag: str) -> None:
        for op in events.ops:
            block = op if op >= 0 else ~op
            key = (tag, block)
            if op >= 0:
                builder.alloc(key, events.sizes[block], events.streams[block])
            else:
                builder.free(key)

    together = EventBuilder()
    rename(first, together, "a")
    rename(second, together, "b")
    whole = replay(together.build(), 10**11, options, record=True)

    before = EventBuilder()
    rename(first, before, "a")
    after = EventBuilder(after=before.build())
    rename(second, after, "b")
    allocator = Allocator(10**11, options)
    allocator.run(before.build())
    branch = allocator.copy()
    branch.empty_cache()  # must leave the original alone
    second_run = allocator.run(after.build())
    assert second_run.end.reserved == whole.reserved
    assert second_run.end.allocated == whole.allocated
    assert (allocator.peak_allocated, allocator.peak_reserved) == (whole.peak_allocated, whole.peak_reserved)


# ---- rules, one by one, in numbers from the source's comments and constants


def run(*sizes: int, options: AllocatorOptions | None = None, capacity: int | None = None):
    """Allocate the sizes one after the other."""
    builder = EventBuilder()
    for number, size in enumerate(sizes):
        builder.alloc(number, size)
    return replay(builder.build(), capacity, options, record=True)


@pytest.mark.parametrize(
    ("asked", "allocated", "reserved"),
    [
        (1, 512, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),
        (10 * MIB + 1, 10 * MIB + 512, 12 * MIB),  # a remainder above 1 MiB is split off
        (21 * MIB, 22 * MIB, 22 * MIB),  # one of 1 MiB is not and counts as allocated
    ],
)
def test_a_first_request_takes_this_much(asked: int, allocated: int, reserved: int) -> None:
    result = run(asked)
    assert (result.peak_allocated, result.peak_reserved) == (allocated, reserved)


def test_expandable_segments_map_2_and_20_mib_pages() -> None:
    expandable = AllocatorOptions(expandable_segments=True)
    assert run(1, options=expandable).reserved == 2 * MIB
    assert run(MIB + 1, options=expandable).reserved == 20 * MIB
    assert run(21 * MIB, options=expandable).reserved == 40 * MIB
    grown = run(21 * MIB, 18 * MIB, 2 * MIB, options=expandable)
    assert (grown.reserved, grown.segments) == (60 * MIB, 1)


def test_a_cached_block_is_reused_at_the_same_address() -> None:
    builder = EventBuilder()
    builder.alloc("a", 30 * MIB)
    builder.free("a")
    builder.alloc("b", 29 * MIB)
    result = replay(builder.build(), record=True)
    assert result.addresses is not None
    assert result.addresses[0] == result.addresses[1]
    assert result.reserved == 30 * MIB
    assert result.allocated == 30 * MIB  # 1 MiB is not split off


def test_blocks_are_not_reused_across_streams() -> None:
    builder = EventBuilder()
    builder.alloc("a", 30 * MIB, stream=0)
    builder.free("a")
    builder.alloc("b", 30 * MIB, stream=1)
    assert replay(builder.build()).reserved == 60 * MIB


def test_a_recorded_stream_delays_reuse_until_it_is_done() -> None:
    def second_block_fits(sync: bool) -> bool:
        builder = EventBuilder()
        builder.alloc("a", 30 * MIB)
        builder.use("a", 7)
        builder.free("a")
        if sync:
            builder.sync(7)
        builder.alloc("b", 30 * MIB)
        result = replay(builder.build(), record=True)
        assert result.peak_allocated == 30 * MIB
        assert result.peak_active == (30 if sync else 60) * MIB
        return result.reserved == 30 * MIB

    assert second_block_fits(sync=True)
    assert not second_block_fits(sync=False)


def test_cached_memory_is_given_back_and_asked_for_again_before_running_out() -> None:
    builder = EventBuilder()
    builder.alloc("a", 60 * MIB)
    builder.free("a")
    builder.alloc("b", 80 * MIB)
    result = replay(builder.build(), capacity=100 * MIB)
    assert (result.alloc_retries, result.ooms) == (1, 0)
    assert [call.action for call in result.driver_calls] == ["segment_alloc", "segment_free", "segment_alloc"]


def test_out_of_memory_reports_what_torch_reports() -> None:
    result = run(60 * MIB, 50 * MIB + 1, capacity=100 * MIB)
    oom = result.oom
    assert oom is not None
    assert (oom.event, oom.requested, oom.segment) == (1, 50 * MIB + 1, 52 * MIB)
    assert (oom.free, oom.allocated, oom.reserved) == (40 * MIB, 60 * MIB, 60 * MIB)
    assert "Tried to allocate 52.00 MiB" in str(oom)
    assert "of which 40.00 MiB is free" in str(oom)


def test_fragmentation_alone_can_run_out_and_expandable_segments_avoid_it() -> None:
    """Ten 20 MiB segments, every other one pinned by a small rest, cannot hold 60 MiB in one piece."""
    builder = EventBuilder()
    for number in range(10):
        builder.alloc(("big", number), 9 * MIB)
        builder.alloc(("rest", number), 9 * MIB)
    for number in range(10):
        builder.free(("big", number))
    builder.alloc("whole", 60 * MIB)
    events = builder.build()
    assert replay(events, 230 * MIB).ooms == 1
    assert replay(events, 260 * MIB, AllocatorOptions(expandable_segments=True)).ooms == 0


def test_a_stream_must_inherit_what_it_frees() -> None:
    allocator = Allocator()
    first = EventBuilder()
    first.alloc("w", 5 * MIB)
    allocator.run(first.build())
    again = EventBuilder()
    again.alloc("w", 5 * MIB)
    with pytest.raises(EventError, match="'w' is live already"):
        allocator.run(again.build())
    with pytest.raises(EventError, match="inherits 'w', which is not live"):
        Allocator().run(EventBuilder(after=first.build()).build())


def test_reserved_settles_over_repeated_steps() -> None:
    """A step that frees all it takes needs no new memory the second time."""
    weights = EventBuilder()
    weights.alloc("w", 100 * MIB)
    step = EventBuilder(after=weights.build())
    for layer in range(20):
        step.alloc(layer, 3 * MIB + 512 * layer)
    for layer in reversed(range(20)):
        step.free(layer)
    allocator = Allocator()
    allocator.run(weights.build())
    first = allocator.run(step.build())
    allocator.reset_peaks()
    second = allocator.run(step.build())
    assert second.end.reserved == first.end.reserved == allocator.peak_reserved
    assert second.driver_calls == ()
    assert allocator.allocated == 100 * MIB


@pytest.mark.parametrize("expandable", [False, True])
def test_a_device_without_limit_serves_petabytes_and_no_more(expandable: bool) -> None:
    options = AllocatorOptions(expandable_segments=expandable)
    assert run(1 << 50, options=options).ooms == 0
    with pytest.raises(OverflowError, match="4 PiB"):
        run(1 << 52, options=options)
