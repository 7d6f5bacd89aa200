"""Streams of events: what they hold and what they refuse."""

from __future__ import annotations

import pytest
from hypothesis import given
from test_caching_allocator import streams

from peakline.memory.events import EventBuilder, EventError, EventStream


def test_live_bytes_count_what_was_asked_and_not_freed() -> None:
    events = EventStream.from_arrays(["a", "b", "a", "a", "b"], [100, 7, -1, 50, -1])
    assert events.live_bytes().tolist() == [100, 107, 7, 57, 50]
    assert [events.keys[block] for block in events.live_at_end] == ["a"]
    assert [events.keys[block] for block in events.live_after(1)] == ["a", "b"]


@given(streams())
def test_live_bytes_equal_a_plain_count(events: EventStream) -> None:
    live: dict[int, int] = {}
    for event, op in enumerate(events.ops):
        if op >= 0:
            live[op] = events.sizes[op]
        else:
            del live[~op]
        assert events.live_bytes()[event] == sum(live.values())
        assert events.live_after(event) == sorted(live)
    assert events.live_at_end == sorted(live)
    events.check()


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([("a", 1), ("a",), ("a",)], "event 2: 'a' is not live"),
        ([("ghost",)], "event 0: 'ghost' is not live"),
        ([("a", 1), ("a", 2)], "event 1: 'a' is live already"),
        ([("a", -3)], "event 0: size of 'a' must be a whole number ≥ 0, got -3"),
        ([("a", 1.5)], "got 1.5"),
    ],
)
def test_impossible_programs_are_refused(rows: list[tuple], complaint: str) -> None:
    with pytest.raises(EventError, match=complaint):
        EventBuilder().extend(rows)


@pytest.mark.parametrize(
    ("ops", "complaint"),
    [
        ([0, -1, -1], "event 2: block 'a' is freed twice"),
        ([-1], "event 0: block 'a' is freed before it is allocated"),
        ([0, 0], "event 1: block 'a' is allocated twice"),
        ([0, 5], "event 1: block 5 is unknown"),
    ],
)
def test_streams_put_together_by_hand_are_checked(ops: list[int], complaint: str) -> None:
    with pytest.raises(EventError, match=complaint):
        EventStream(ops=ops, sizes=[1], streams=[0], keys=["a"]).check()


def test_an_event_knows_its_operator() -> None:
    builder = EventBuilder()
    builder.alloc("input", 1)
    builder.mark("linear")
    builder.alloc("output", 1)
    builder.mark("relu")
    builder.free("input")
    events = builder.build()
    assert [events.operator_at(event) for event in range(3)] == [None, "linear", "relu"]


def test_a_following_stream_inherits_what_is_live() -> None:
    first = EventBuilder()
    first.alloc("weight", 8)
    first.alloc("gradient", 8)
    then = EventBuilder(after=first.build())
    then.free("gradient")
    then.alloc("gradient", 16)
    events = then.build()
    assert events.inherited == 2
    assert events.live_bytes().tolist() == [8, 24]
    events.check()


def test_memory_used_on_another_stream_comes_back_at_the_next_allocation_after_it_is_done() -> None:
    builder = EventBuilder()
    builder.alloc("shared", 1)
    builder.use("shared", 0)  # its own stream: nothing to wait for
    builder.use("shared", 1)
    builder.use("shared", 2)
    builder.free("shared")
    builder.sync(1)
    builder.alloc("x", 1)
    builder.sync(2)
    builder.free("x")
    builder.alloc("y", 1)
    events = builder.build()
    assert events.deferred == (1,)
    assert events.completions == ((4, 0),)
