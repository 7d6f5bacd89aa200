"""Whole graphs under a scratchpad: the bound against plans found in three ways."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import peakline as pk
from peakline.io_complexity.graphs import entries, keep, whole_bound
from peakline.scheduling import problem_of
from peakline.solvers.schedule import schedule

SIZES = [2**p for p in (15, 19, 30)]


def graphs():
    yield pk.prefill("llama-3.2-1b", batch=1, seq=256, kernels="fused")
    yield pk.decode("llama-3.2-1b", batch=4, context=512, kernels="fused")
    yield pk.decode("deepseek-v2-lite", batch=2, context=512)  # a latent cache
    yield pk.decode("mixtral-8x7b", batch=2, context=64)  # experts of which few are read
    yield pk.prefill("t5-11b", seq=64)  # caches that are written whole
    yield pk.training_step("llama-3.2-1b", batch=1, seq=128, optimizer="adamw", kernels="fused", accumulation=2)
    yield pk.inference("resnet50", batch=1)
    yield pk.inference("mobilenet-v2")
    yield pk.training_step("resnet50", batch=2, optimizer="sgd")
    yield pk.inference("bert-base-uncased", batch=1, seq=64)


KNOWN = {g.name + g.workload["phase"]: g for g in graphs()}


@pytest.mark.parametrize("name", KNOWN)
def test_no_plan_beats_the_bound_and_keeping_tensors_never_costs(name):
    graph = KNOWN[name]
    found = entries(graph)
    bounds = []
    for size in SIZES:
        bounds.append(whole_bound(graph, size, found))
        plan = keep(graph, size, found)
        if plan is not None:
            assert bounds[-1] <= plan.traffic * (1 + 1e-12)
            assert plan.traffic <= sum(e.best(size)[0] * e.executions for e in found) * (1 + 1e-12)
    assert bounds == sorted(bounds, reverse=True)


@pytest.mark.parametrize("name", KNOWN)
def test_every_operators_tiling_stands_above_its_bound(name):
    for entry in entries(KNOWN[name]):
        for size in SIZES:
            best = entry.best(size)
            if best is not None:
                assert best[0] >= entry.bound(size) * (1 - 1e-12)
                assert all(tiling.footprint <= size for tiling in best[1])


@pytest.mark.parametrize("capacity", [2**18, 2**19, 2**22])
def test_a_plan_of_the_scheduler_moves_no_less_than_the_bound(capacity):
    """Whole tensors in and out of a scratchpad: another plan altogether, made and replayed by the solvers."""
    graph = pk.inference("mcunet-in0", dtype="int8")
    plan = schedule(problem_of(graph), capacity, time_limit=5)
    assert plan.traffic.load + plan.traffic.store >= whole_bound(graph, capacity)
    (level,) = pk.io(graph, capacity=capacity, schedule=5).levels
    assert level.whole_bound <= level.scheduled.bound <= level.scheduled.traffic


def test_where_everything_fits_bound_and_plan_are_what_comes_in_and_what_goes_out():
    graph = KNOWN["mobilenet-v2inference"]
    ends = graph.total_bytes("parameter", "input") + 1000 * 2
    assert whole_bound(graph, 2**30) == keep(graph, 2**30).traffic == ends


def test_decoding_is_bound_by_its_weights_and_cache_whatever_is_kept():
    graph = KNOWN["llama-3.2-1bdecode"]
    bound, plan = whole_bound(graph, 2**20), keep(graph, 2**20)
    assert bound >= 0.98 * (graph.total_bytes("parameter"))
    assert plan.traffic < 1.03 * bound


def test_a_small_scratchpad_makes_the_bound_grow_beyond_compulsory_bytes():
    graph = pk.prefill("llama-3.2-1b", batch=1, seq=2048, kernels="fused")
    assert whole_bound(graph, 2**16) > 4 * whole_bound(graph, 2**28)
    assert keep(graph, 2**16).traffic < 2 * whole_bound(graph, 2**16)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 4), st.integers(8, 300), st.integers(14, 26))
def test_the_bound_holds_at_any_size(batch, seq, power):
    graph = pk.prefill("llama-3.2-1b", batch=batch, seq=seq, kernels="fused")
    plan = keep(graph, 2**power)
    assert plan is None or whole_bound(graph, 2**power) <= plan.traffic * (1 + 1e-12)


def test_whole_tensors_that_do_not_fit_together_have_no_schedule_but_a_tiling():
    graph = pk.inference("mcunet-in0", dtype="int8")
    (level,) = pk.io(graph, capacity="16KiB", schedule=5).levels
    assert level.scheduled is None
    assert level.kept.traffic > level.whole_bound


def test_a_schedule_is_for_graphs():
    with pytest.raises(ValueError, match="schedule: seconds above 0 for a graph, got 5"):
        pk.io(pk.operator("matmul", m=2, n=2, k=2), capacity=100, schedule=5)


def test_a_sweep_is_refused():
    import numpy as np

    with pytest.raises(ValueError, match="a sweep has no single traffic"):
        entries(pk.prefill("llama-3.2-1b", batch=np.array([1, 2]), seq=64))


@pytest.mark.parametrize("name", KNOWN)
def test_where_everything_fits_forward_passes_reach_their_bound_and_training_moves_twice_its_reads(name):
    graph = KNOWN[name]
    bound, plan = whole_bound(graph, 2**42), keep(graph, 2**42)
    assert bound <= plan.traffic <= (2.01 if "training" in name else 1.02) * bound


@pytest.mark.parametrize(
    "build",
    [
        lambda: pk.inference("gpt2"),  # queries, keys and values are parts of one tensor
        lambda: pk.decode("mamba-370m", context=64, batch=2),  # states renewed beside results
        lambda: pk.training_step("t5-small", batch=2, accumulation=2, optimizer="adamw"),  # gradients carried on
    ],
)
def test_nothing_is_counted_twice_where_everything_fits(build):
    graph = build()
    assert whole_bound(graph, 2**60) <= keep(graph, 2**60).traffic
