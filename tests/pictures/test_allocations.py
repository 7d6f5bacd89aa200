"""Every allocation as a rectangle: nothing overlaps, and what is alive at any time is what the estimate says."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import peakline as pk
from peakline.allocations import AllocationMap, allocations
from peakline.timeline import step_seconds

CASES = {
    "training on a GPU": lambda: pk.estimate(pk.training_step("gpt2", batch=2, seq=64, dtype="bf16"), "l4"),
    "does not fit": lambda: pk.estimate(pk.training_step("gpt2", batch=64, seq=1024), "l4"),
    "microbatches": lambda: pk.estimate(pk.training_step("gpt2", batch=1, seq=64, accumulation=3), "l4"),
    "decode on a TPU": lambda: pk.estimate(pk.decode("gpt2", batch=2, context=64), "tpu-v4"),
    "a microcontroller": lambda: pk.estimate(pk.inference("mobilenet-v2-0.35", dtype="int8", image=96), "stm32h743"),
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[pk.Estimate, AllocationMap]:
    est = CASES[request.param]()
    return est, allocations(est)


def overlaps(found: AllocationMap, at: float) -> list[tuple[str, str]]:
    alive = sorted((a.address, a.address + a.bytes, a.tensor) for a in found.allocations if a.start <= at < a.end)
    return [(one[2], two[2]) for one, two in pairwise(alive) if one[1] > two[0]]


def test_no_two_allocations_share_an_address_at_a_time(case: tuple[pk.Estimate, AllocationMap]) -> None:
    _, found = case
    starts = sorted({a.start for a in found.allocations})
    for at in starts[:: max(len(starts) // 200, 1)]:
        assert overlaps(found, at) == []


def test_what_is_allocated_at_the_peak_is_at_least_what_is_alive(case: tuple[pk.Estimate, AllocationMap]) -> None:
    est, found = case
    seconds, peak = step_seconds(est), int(est.memory.peak_step)
    start, end = sum(seconds[:peak]), sum(seconds[: peak + 1])
    moments = [a.start for a in found.allocations if start * (1 - 1e-9) <= a.start < end * (1 - 1e-9)]
    held = max(sum(a.bytes for a in found.allocations if a.start <= at < a.end) for at in [start, *moments])
    assert held >= 0.99 * est.memory.live
    assert found.top >= held


def test_every_role_of_the_peak_is_drawn(case: tuple[pk.Estimate, AllocationMap]) -> None:
    est, found = case
    drawn = Counter(a.role for a in found.allocations)
    assert {role for role, held in est.memory.by_role.items() if held} <= set(drawn)


def test_an_allocation_names_the_operator_and_module_that_asked_for_it() -> None:
    est = CASES["training on a GPU"]()
    by_name = {a.tensor: a for a in allocations(est).allocations}
    operators = {step.name for step in est.memory.program.steps} | {o.name for _, o in est.graph.operators()}
    made = [a for a in by_name.values() if a.role == "activation"]
    assert len(made) > 50
    assert all(a.operator in operators for a in made)
    assert any("h.0" in a.tensor or ".0." in a.tensor for a in made)


@settings(max_examples=8, deadline=None)
@given(batch=st.integers(1, 6), seq=st.integers(1, 40), expandable=st.booleans())
def test_any_size_and_allocator_gives_a_map_without_overlaps(batch: int, seq: int, expandable: bool) -> None:
    graph = pk.training_step("gpt2", batch=batch, seq=seq, overrides={"layers": 1})
    conf = f"expandable_segments:{expandable}"
    found = allocations(pk.estimate(graph, "l4", allocator=conf))
    starts = sorted({a.start for a in found.allocations})
    assert all(overlaps(found, at) == [] for at in starts[::5])


def test_the_largest_are_kept_and_the_rest_is_counted() -> None:
    found = allocations(CASES["training on a GPU"]())
    shown, left, most = found.largest(10)
    assert len(shown.allocations) + left == len(found.allocations)
    assert min(a.bytes for a in shown.allocations) >= most
    assert found.largest(10**6)[1:] == (0, 0)


def test_a_sweep_has_no_map() -> None:
    import numpy as np

    with pytest.raises(ValueError, match="sweep"):
        allocations(pk.estimate(pk.decode("gpt2", batch=np.array([1, 2]), context=8), "l4"))
