"""Programmable logic: sequential, dataflow and grouped execution, the best grouping against every grouping there is."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import peakline as pk
from peakline.execution_modes import Fabric, Stage, _group, dataflow, fabric_of, hybrid_groups, sequential, stages_of

sizes = st.floats(1e3, 1e8)
stages = st.lists(st.builds(Stage, st.just("s"), st.floats(1e4, 1e10), sizes, sizes, sizes), min_size=1, max_size=7)
fabrics = st.builds(Fabric, st.integers(16, 8192), st.just(2e8), st.floats(1e4, 1e8), st.floats(1e9, 5e11))


def every_grouping(fabric, given_stages):
    """The least time over all ways to cut the program into groups, by trying each."""
    n, least = len(given_stages), float("inf")
    for cuts in product([False, True], repeat=n - 1):
        total, first = 0.0, 0
        for i in range(n):
            if i == n - 1 or cuts[i]:
                group = _group(fabric, given_stages, first, i)
                total += float("inf") if group is None else group.seconds
                first = i + 1
        least = min(least, total)
    return least


@settings(max_examples=150, deadline=None)
@given(fabrics, stages)
def test_the_chosen_groups_are_the_best_of_all(fabric, given_stages):
    chosen = hybrid_groups(fabric, given_stages)
    assert sum(g.seconds for g in chosen) == pytest.approx(every_grouping(fabric, given_stages))
    assert [g.first for g in chosen[1:]] == [g.last + 1 for g in chosen[:-1]]


@settings(max_examples=100, deadline=None)
@given(fabrics, stages)
def test_groups_are_never_slower_than_either_extreme(fabric, given_stages):
    best = sum(g.seconds for g in hybrid_groups(fabric, given_stages))
    flowing = dataflow(fabric, given_stages)
    assert best <= sequential(fabric, given_stages) * (1 + 1e-9)
    assert flowing is None or best <= flowing * (1 + 1e-9)


@settings(max_examples=100, deadline=None)
@given(fabrics, stages)
def test_no_mode_is_faster_than_all_multipliers_at_work(fabric, given_stages):
    least = sum(s.work for s in given_stages) / fabric.multipliers / fabric.clock
    assert sum(g.seconds for g in hybrid_groups(fabric, given_stages)) >= least * (1 - 1e-9)


def test_large_intermediates_between_small_weights_favour_a_dataflow():
    """High data volume variation, InTAR's case: what passes between two operators would not fit on chip."""
    fabric = Fabric(4096, 2e8, 4e6, 2e10)
    chain = [Stage("up", 1e8, 1e5, 1e5, 5e7), Stage("down", 1e8, 1e5, 5e7, 1e5)]
    assert dataflow(fabric, chain) < sequential(fabric, chain) / 5


def test_weights_beyond_the_chip_leave_only_one_operator_at_a_time():
    fabric = Fabric(4096, 2e8, 1e6, 2e11)
    chain = [Stage("a", 1e9, 8e6, 1e5, 1e5), Stage("b", 1e9, 8e6, 1e5, 1e5)]
    assert dataflow(fabric, chain) is None
    assert [(g.first, g.last) for g in hybrid_groups(fabric, chain)] == [(0, 0), (1, 1)]


def test_short_bursts_see_less_of_the_bandwidth():
    fabric = fabric_of("alveo-u280")
    assert fabric.streaming(64) == pytest.approx(fabric.bandwidth / 2)
    assert fabric.streaming(4096) > 0.98 * fabric.bandwidth


def test_decoding_one_token_on_a_u280_is_bound_by_its_memory():
    """Llama-2 7B in int8 at batch 1: every weight comes in once per token, 460 GB/s allow some 65 tokens/s."""
    graph = pk.decode("llama-2-7b", batch=1, context=128, dtype="fp16", weight_dtype="int8", kv_dtype="int8")
    program = stages_of(graph)
    seconds = sequential(fabric_of("alveo-u280"), program)
    assert sum(s.weights for s in program) / 460e9 <= seconds <= 1.3 * sum(s.weights for s in program) / 460e9


def test_only_fpgas_run_in_these_modes():
    with pytest.raises(ValueError, match="a100-80gb is a gpu; only FPGAs"):
        fabric_of("a100-80gb")
