"""Addresses of a plan's buffers: an arena in which nothing overlaps, and what the caching allocator would hold."""

from itertools import combinations

import pytest

import peakline as pk
from peakline.planning.addresses import arena_of, reserved_by
from peakline.planning.execute import DEVICE
from peakline.planning.plan import ALLOWED
from peakline.streams import Hold, Program, Task, Tier, simulate


@pytest.fixture(scope="module")
def plan():
    step = pk.training_step("vit-b-16", batch=16, dtype="bf16", optimizer="adamw-fused")
    before = pk.estimate(step, "a100-80gb")
    return pk.plan(step, "a100-80gb", budget=int(0.6 * before.memory.live) + before.memory.context)


def test_no_two_buffers_alive_together_share_an_address(plan):
    alive, offsets = {}, plan.arena.offsets
    for hold, comes in plan.timeline.events:
        if hold.buffer not in offsets:
            continue
        if not comes:
            alive.pop(hold.buffer)
            continue
        start, end = offsets[hold.buffer], offsets[hold.buffer] + hold.bytes
        assert all(end <= low or high <= start for low, high in alive.values())
        alive[hold.buffer] = start, end


def test_the_arena_is_within_a_percent_of_what_is_alive_at_once(plan):
    assert plan.peak <= plan.arena.bytes <= 1.01 * plan.peak
    assert plan.peak <= plan.room
    assert plan.arena.lower_bound <= plan.arena.bytes


def test_the_caching_allocator_holds_at_least_what_is_alive(plan):
    assert plan.reserved >= plan.peak
    assert plan.to_dict()["reserved_bytes"] == plan.reserved


def test_what_stays_of_states_that_are_moved_in_part_is_counted():
    step = pk.training_step("vit-b-16", batch=32, dtype="bf16", optimizer="adamw-fused")
    before = pk.estimate(step, "a100-80gb")
    found = pk.plan(step, "a100-80gb", budget=int(0.25 * before.memory.live) + before.memory.context, allow=ALLOWED)
    assert found.moved["host in"] > 0
    assert found.reserved >= found.peak


def timeline(*lives):
    """Buffers of MiB, alive over half-open spans of unit tasks."""
    program = Program(tiers={DEVICE: Tier(DEVICE)})
    last = max(end for _, end, _ in lives)
    for t in range(last):
        holds = tuple(Hold(f"b{i}", DEVICE, size << 20) for i, (start, _, size) in enumerate(lives) if start == t)
        drops = tuple(f"b{i}" for i, (_, end, _) in enumerate(lives) if end == t + 1)
        program.add(Task(f"t{t}", "compute", 1.0, holds=holds, drops=drops))
    return simulate(program)


def test_the_arena_of_a_textbook_case_is_what_every_order_of_placing_gives_at_best():
    lives = ((0, 2, 3), (1, 3, 2), (2, 4, 3), (0, 4, 1))
    spans = list(lives)
    least = max(sum(size for start, end, size in spans if start <= t < end) for t in range(4))
    found = arena_of(timeline(*lives), DEVICE)
    assert found.bytes == least << 20
    for (i, a), (j, b) in combinations(enumerate(spans), 2):
        if a[0] < b[1] and b[0] < a[1]:
            low, high = found.offsets[f"b{i}"], found.offsets[f"b{j}"]
            assert low + (a[2] << 20) <= high or high + (b[2] << 20) <= low


def test_segments_that_cannot_be_joined_make_the_caching_allocator_hold_more():
    # 12 + 12 MiB freed cannot serve 24 MiB: two segments, and a third
    shape = timeline((0, 1, 12), (0, 1, 12), (1, 2, 24))
    assert shape.peak(DEVICE) == 24 << 20
    assert reserved_by(shape, DEVICE, []) == 48 << 20
    assert arena_of(shape, DEVICE).bytes == 24 << 20
