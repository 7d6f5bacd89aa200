"""Placing buffers in one arena: the search against exhaustive enumeration, certificates, and the production family."""

from __future__ import annotations

import time
from pathlib import Path
from time import process_time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peakline.solvers.allocation import (
    Buffer,
    Instance,
    PlacementError,
    allocate,
    cpsat,
    liveness_bound,
    milp,
    read_csv,
    validate,
)
from peakline.solvers.allocation.bounds import crowd, live_bound, round_up
from peakline.solvers.allocation.heuristics import by_birth, quick
from peakline.solvers.allocation.ordered import Ordered
from peakline.solvers.allocation.search import MODES, Search
from peakline.solvers.allocation.sections import Sections

SHIPPED = Path(__file__).parents[2].parent / "shared" / "reference" / "instances" / "minimalloc"
needs_instances = pytest.mark.skipif(not SHIPPED.is_dir(), reason=f"no instances at {SHIPPED}")


@st.composite
def instances(draw: st.DrawFn, most: int = 6, *, free: bool = False) -> Instance:
    """Up to `most` buffers over eight moments, sizes 1 to 5; aligned or pinned now and then unless `free`."""
    n = draw(st.integers(1, most))
    buffers = []
    for _ in range(n):
        lower = draw(st.integers(0, 6))
        buffers.append(Buffer(lower, draw(st.integers(lower + 1, 8)), draw(st.integers(1, 5))))
    alignments = [1] * n if free else draw(st.lists(st.sampled_from([1, 1, 2, 3, 4]), min_size=n, max_size=n))
    fixed: list[int | None] = [None] * n
    if not free and draw(st.booleans()):
        pinned = draw(st.integers(0, n - 1))
        fixed[pinned] = draw(st.integers(0, 3)) * alignments[pinned]
    return Instance.of(buffers, alignments=alignments, fixed=fixed)


def fits(item: Instance, capacity: int) -> bool:
    """Whether any assignment of integer offsets within `capacity` is free of overlap, by trying them all."""
    offsets: list[int] = []

    def place(i: int) -> bool:
        if i == len(item.buffers):
            return True
        b = item.buffers[i]
        pinned = item.fixed[i]
        for offset in range(0, capacity - b.size + 1, item.alignments[i]) if pinned is None else [pinned]:
            if offset + b.size <= capacity and all(
                b.upper <= c.lower or c.upper <= b.lower or offset + b.size <= at or at + c.size <= offset
                for c, at in zip(item.buffers, offsets)
            ):
                offsets.append(offset)
                if place(i + 1):
                    return True
                offsets.pop()
        return False

    return place(0)


def smallest_arena(item: Instance) -> int:
    capacity = max(b.size for b in item.buffers)
    while not fits(item, capacity):
        capacity += 1
    return capacity


@settings(max_examples=300, deadline=None)
@given(instances())
def test_smallest_arena_equals_exhaustive_search(item: Instance) -> None:
    answer = allocate(item, time_limit=20)
    assert answer.status == "optimal"
    assert answer.offsets is not None
    assert validate(item, answer.offsets) == answer.peak == answer.lower_bound == smallest_arena(item)


@settings(max_examples=150, deadline=None)
@given(instances(7, free=True), st.sampled_from(MODES), st.integers(0, 3))
def test_every_mode_of_the_search_decides_every_capacity(item: Instance, mode: str, above: int) -> None:
    capacity = liveness_bound(item.buffers) + above - 1
    search = Search(item, Sections.of(item.buffers), capacity)
    outcome = search.run([float(b.size) for b in item.buffers], mode, 10**6, time.monotonic() + 20)  # type: ignore[arg-type]
    if fits(item, capacity):
        assert outcome.offsets is not None
        assert validate(item, outcome.offsets, capacity) <= capacity
    else:
        assert outcome.proven


@settings(max_examples=100, deadline=None)
@given(instances(), st.integers(1, 12))
def test_capacity_is_met_or_proven_impossible(item: Instance, capacity: int) -> None:
    answer = allocate(item, capacity, time_limit=20)
    assert (answer.status in ("optimal", "feasible")) == fits(item, capacity)
    if answer.offsets is None:
        assert answer.status == "infeasible"
        assert answer.lower_bound > capacity


def test_remembered_failures_are_the_same_for_every_rule() -> None:
    """What one run proves hopeless, the next, with another rule, may skip without losing a placement."""
    item = Instance.of([(0, 3, 4), (3, 9, 4), (0, 9, 4), (9, 21, 4), (0, 21, 4)])
    search = Search(item, Sections.of(item.buffers), 12)
    forward = [float(i) for i in range(5)]
    for nodes in range(1, 8):
        search.run(forward, "few", nodes, time.monotonic() + 5)
    found = search.run(forward[::-1], "low", 10**6, time.monotonic() + 5)
    assert found.offsets is not None
    assert validate(item, found.offsets, 12) == 12


def test_a_capacity_below_the_crowd_is_refused_with_the_bytes_it_needs() -> None:
    item = Instance.of([(0, 4, 10), (2, 6, 7), (5, 9, 8)])
    answer = allocate(item, 16)
    assert (answer.status, answer.offsets, answer.peak, answer.lower_bound) == ("infeasible", None, None, 17)
    assert crowd(item) == (2, 17)


def test_fragmentation_is_proven_not_only_crowding() -> None:
    """At most 5 bytes are alive at once, yet 5 do not do: the search says so."""
    item = Instance.of([(0, 1, 3), (0, 2, 2), (1, 4, 2), (2, 4, 1), (1, 6, 1), (2, 6, 1), (4, 7, 3), (6, 7, 2)])
    assert (liveness_bound(item.buffers), smallest_arena(item)) == (5, 6)
    answer = allocate(item, 5)
    assert (answer.status, answer.lower_bound) == ("infeasible", 6)
    assert answer.method.endswith("bound: search")


@settings(max_examples=25, deadline=None)
@given(instances())
def test_the_integer_program_agrees_with_exhaustive_search(item: Instance) -> None:
    pytest.importorskip("pulp")
    pytest.importorskip("highspy")
    roomy = max(placement.arena for _, placement in quick(item))
    offsets, bound = milp.solve(item, 1, roomy, 20)
    assert offsets is not None
    assert validate(item, offsets) == bound == smallest_arena(item)


@settings(max_examples=25, deadline=None)
@given(instances())
def test_the_constraint_program_agrees_with_exhaustive_search(item: Instance) -> None:
    pytest.importorskip("ortools")
    roomy = max(placement.arena for _, placement in quick(item))
    offsets, bound = cpsat.solve(item, 1, roomy, 20)
    assert offsets is not None
    assert validate(item, offsets) == bound == smallest_arena(item)


@pytest.mark.parametrize("method", ["milp", "cp-sat"])
def test_a_missing_solver_is_named(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (milp, cpsat):
        monkeypatch.setattr(module, "find_spec", lambda package: None)
    with pytest.raises(ImportError, match=f"method {method}: needs the package (pulp|ortools), which is not installed"):
        allocate(Instance.of([(0, 1, 1)]), method=method)  # type: ignore[arg-type]


@settings(max_examples=200, deadline=None)
@given(instances())
def test_bounds_are_bounds(item: Instance) -> None:
    live = live_bound(item)
    assert liveness_bound(item.buffers) <= live <= round_up(item, live) <= smallest_arena(item)


def test_bound_rounds_up_to_a_sum_of_sizes() -> None:
    """5 + 5 + 7 live bytes; of sizes 5, 5, 7, 9 only 17 and 19 can be arenas near there, 18 cannot."""
    item = Instance.of([(0, 2, 5), (0, 2, 5), (0, 2, 7), (2, 3, 9)])
    assert round_up(item, 18) == 19


@settings(max_examples=200, deadline=None)
@given(instances(12))
def test_heuristics_give_valid_placements(item: Instance) -> None:
    for _, placement in quick(item):
        assert validate(item, placement.offsets) == placement.arena
    birth = by_birth(item)
    assert validate(item, birth.offsets) == birth.arena


@settings(max_examples=300, deadline=None)
@given(instances(6), st.data())
def test_validator_agrees_with_a_look_at_every_pair(item: Instance, data: st.DataObject) -> None:
    offsets = data.draw(st.lists(st.integers(-1, 12), min_size=len(item.buffers), max_size=len(item.buffers)))
    good = all(o >= 0 and o % a == 0 for o, a in zip(offsets, item.alignments))
    good &= all(fixed in (None, o) for fixed, o in zip(item.fixed, offsets))
    boxes = [(b.lower, b.upper, o, o + b.size) for b, o in zip(item.buffers, offsets)]
    good &= not any(
        p[0] < q[1] and q[0] < p[1] and p[2] < q[3] and q[2] < p[3] for i, p in enumerate(boxes) for q in boxes[:i]
    )
    if good:
        assert validate(item, offsets) == max(top for *_, top in boxes)
    else:
        with pytest.raises(PlacementError):
            validate(item, offsets)


@settings(max_examples=100, deadline=None)
@given(instances(8), st.data())
def test_validator_refuses_a_buffer_moved_onto_a_neighbour(item: Instance, data: st.DataObject) -> None:
    answer = allocate(item, time_limit=10)
    assert answer.offsets is not None
    pairs = [
        (i, j)
        for i, b in enumerate(item.buffers)
        for j, c in enumerate(item.buffers)
        if i != j and b.lower < c.upper and c.lower < b.upper
    ]
    if pairs:
        i, j = data.draw(st.sampled_from(pairs))
        moved = list(answer.offsets)
        moved[i] = moved[j]
        with pytest.raises(PlacementError):
            validate(item, moved)
    with pytest.raises(PlacementError, match="above"):
        validate(item, answer.offsets, validate(item, answer.offsets) - 1)


def test_alignment_and_fixed_offsets_are_honoured() -> None:
    item = Instance.of(
        [(0, 4, 3), (0, 4, 5), (1, 3, 2), (2, 6, 4)], alignments=[8, 1, 4, 2], fixed=[None, 16, None, None]
    )
    answer = allocate(item)
    assert answer.offsets is not None
    assert answer.offsets[1] == 16
    assert all(offset % alignment == 0 for offset, alignment in zip(answer.offsets, item.alignments))
    assert answer.peak == answer.lower_bound == 21


def test_hints_steer_and_never_bind() -> None:
    item = Instance.of([(0, 2, 4), (0, 2, 4)], hints=[4, 0])
    assert allocate(item).offsets == (4, 0)
    far = Instance.of([(0, 2, 4), (0, 2, 4)], hints=[100, 0])
    assert allocate(far).peak == 8


def test_within_a_capacity_hints_that_do_not_collide_are_met() -> None:
    item = Instance.of([(0, 2, 4), (0, 2, 4), (1, 3, 4), (0, 1, 2)], hints=[100, 0, 2, None])
    answer = allocate(item, 200)
    assert answer.offsets is not None
    assert answer.offsets[:2] == (100, 0)
    assert answer.offsets[2] == 4  # 2 collides with the second buffer


def test_same_seed_same_placement() -> None:
    item = Instance.of([(i % 17, i % 17 + 1 + i * i % 7, 1 + i * 37 % 50) for i in range(60)])
    first, second = (allocate(item, time_limit=10, seed=7) for _ in range(2))
    assert first.offsets == second.offsets


def test_interrupt_returns_the_incumbent_with_its_gap() -> None:
    item = Instance.of([(i % 17, i % 17 + 1 + i * i % 7, 1 + i * 37 % 50) for i in range(60)])
    calls = 0

    def interrupt(_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt

    answer = allocate(item, progress=interrupt)
    assert answer.offsets is not None
    assert validate(item, answer.offsets) == answer.peak
    assert any("interrupted" in note for note in answer.notes)
    assert 0 <= answer.gap < 1


def test_a_hundred_thousand_buffers_get_a_greedy_placement_and_bounds_within_a_short_limit() -> None:
    item = Instance.of([(i, i + 1 + i * 7919 % 400, 64 * (1 + i * 104729 % 64)) for i in range(100_000)])
    began = process_time()
    answer = allocate(item, time_limit=0.5)
    assert process_time() - began < 5
    assert answer.offsets is not None
    assert answer.status in ("optimal", "feasible")
    assert answer.lower_bound == live_bound(item) <= validate(item, answer.offsets) == answer.peak
    assert any("too many for the search" in note for note in answer.notes)


@pytest.mark.parametrize("limit", [0, -1, float("nan"), float("inf")])
def test_time_limit_must_be_above_zero(limit: float) -> None:
    with pytest.raises(ValueError, match="time limit: must be above 0 seconds"):
        allocate(Instance.of([(0, 1, 1)]), time_limit=limit)


@needs_instances
@pytest.mark.parametrize(("name", "optimum"), [("a.6", 6), ("b.6", 6), ("c.8", 8), ("d.9", 9), ("input.12", 12)])
def test_small_shipped_instances_are_solved_to_the_number_in_their_name(name: str, optimum: int) -> None:
    answer = allocate(read_csv(SHIPPED / f"{name}.csv"))
    assert (answer.status, answer.peak) == ("optimal", optimum)
    assert allocate(read_csv(SHIPPED / f"{name}.csv"), optimum - 1).status == "infeasible"


@needs_instances
@pytest.mark.parametrize("name", list("ABCDE"))
def test_production_instances_fit_their_capacity(name: str) -> None:
    item = read_csv(SHIPPED / f"{name}.1048576.csv")
    answer = allocate(item, 1_048_576, time_limit=60)
    assert answer.offsets is not None
    assert validate(item, answer.offsets, 1_048_576) == answer.peak
    assert answer.lower_bound == liveness_bound(item.buffers)


def test_many_buffers_are_placed_within_a_short_limit_and_it_says_what_was_left_out() -> None:
    buffers = [(i, i + 1 + i * 7919 % 300, 64 * (1 + i * 31 % 97)) for i in range(3_000)]
    answer = allocate(Instance.of(buffers), time_limit=0.2)
    assert answer.peak is not None
    assert answer.lower_bound <= answer.peak
    assert answer.seconds < 5
    assert any("greedy placements and bounds only" in note for note in answer.notes)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 400)), unique=True), st.data())
def test_ordered_pairs_come_and_go_as_in_a_sorted_list(pairs: list[tuple[int, int]], data: st.DataObject) -> None:
    entries, plain = Ordered(), sorted(pairs)
    many = [(k % 7, k) for k in range(1000, 4000)]  # several blocks
    for entry in (*pairs, *many):
        entries.add(entry)
    for entry in many:
        entries.remove(entry)
    for entry in data.draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else ():
        entries.remove(entry)
        plain.remove(entry)
    key = data.draw(st.tuples(st.integers(0, 9), st.integers(0, 400)))
    assert list(entries) == plain
    assert list(entries.from_(key)) == [entry for entry in plain if entry >= key]
    assert entries.below(key) == max((entry for entry in plain if entry < key), default=None)


def test_sizes_whose_sum_passes_64_bits_are_placed() -> None:
    huge = 1 << 60
    answer = allocate(Instance.of([(-huge, k + 1, huge) for k in range(20)] + [(5, huge, 1)]))
    assert (answer.status, answer.peak) == ("optimal", 20 * huge)
    assert max(answer.offsets or ()) > 1 << 63


def test_fixed_buffers_that_overlap_are_named_and_those_that_take_turns_are_not() -> None:
    Instance.of([(0, 2, 4), (2, 4, 4)], fixed=[0, 0])
    with pytest.raises(ValueError, match="buffers '0' and '1': their fixed offsets overlap"):
        Instance.of([(0, 3, 4), (2, 4, 4), (2, 4, 4)], fixed=[0, 3, 8])
