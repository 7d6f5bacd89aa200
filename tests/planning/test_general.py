"""One program over tensor, interval and tier is below every planner's plan, and says when nothing fits."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import peakline as pk
from peakline.planning.chains import chain_of
from peakline.planning.extract import profile
from peakline.planning.general import general_of
from peakline.planning.policies import compare
from peakline.planning.tiers import surroundings
from peakline.solvers.offload.general import Array, General, general_bound
from peakline.solvers.offload.placement import Located, Store, place
from peakline.solvers.offload.problem import Tier


@st.composite
def stores(draw):
    """Three tensors over six slots, each used at its ends; one tier."""
    tensors = []
    for i in range(3):
        first = draw(st.integers(0, 2))
        last = draw(st.integers(first + 2, 5))
        tensors.append(Located(f"t{i}", draw(st.integers(1, 6)), (first, last), (first, last)))
    tiers = (Tier("host", 2.0, 3.0, draw(st.sampled_from([None, 4, 8]))),)
    return Store((1.0,) * 6, tuple(tensors), draw(st.integers(6, 18)), tiers)


@settings(max_examples=25, deadline=None)
@given(stores())
def test_it_is_below_every_placement_of_whole_tensors(store):
    found = place(store)
    arrays = tuple(Array(t.name, t.bytes, t.alive, t.uses) for t in store.tensors)
    problem = General(store.seconds, (0,) * len(store.seconds), arrays, store.capacity, store.tiers)
    if found is not None:
        assert general_bound(problem) <= general_bound(problem, integer=True) + 1e-9
        assert general_bound(problem) <= found.seconds + 1e-9


def test_what_is_made_again_is_paid_and_what_cannot_be_does_not_fit():
    arrays = (Array("a", 4, (0, 3), (0, 3), remake=2.0), Array("b", 4, (1, 2), (1, 2)))
    problem = General((1.0,) * 4, (0,) * 4, arrays, 6, ())
    assert general_bound(problem) == pytest.approx(4.0 + 1.0)  # half of it
    assert general_bound(problem, integer=True) == pytest.approx(4.0 + 2.0)
    kept = General((1.0,) * 4, (0,) * 4, (Array("a", 4, (0, 3), (0, 3)), arrays[1]), 6, ())
    assert general_bound(kept) == float("inf")


def test_a_copy_hides_behind_steps_that_do_not_need_it():
    arrays = (Array("a", 4, (0, 3), (0, 3)), Array("b", 4, (1, 2), (1, 2)))
    fast, slow = (General((1.0,) * 4, (0,) * 4, arrays, 6, (Tier("host", rate, rate),)) for rate in (2.0, 0.5))
    assert general_bound(fast) == pytest.approx(4.0)
    assert general_bound(slow) > 4.0


@pytest.fixture(scope="module")
def small():
    step = pk.training_step("gpt2", batch=4, seq=256, dtype="bf16", optimizer="adamw-fused", overrides={"layers": 2})
    return step, pk.estimate(step, "a100-80gb")


@pytest.mark.parametrize("share", [0.9, 0.75])
def test_every_planner_respects_its_bound(small, share):
    step, before = small
    around = surroundings(before.device, host=None, ssd=None)
    taken, room = profile(before), int(share * before.memory.live)
    budget = room + before.memory.context + 2 * before.device.software.cublas_workspace_bytes
    alone = general_bound(general_of(taken, room))
    both = general_bound(general_of(taken, room, around.tiers))
    assert before.time <= both * (1 + 1e-9) <= alone * (1 + 2e-9)
    for allow, bound in ((["recompute"], alone), (["swap"], both), (["recompute", "swap"], both)):
        try:
            assert bound <= pk.plan(step, "a100-80gb", budget=budget, allow=allow).seconds * (1 + 1e-6)
        except pk.NothingFits:
            continue
    chain = chain_of(taken).within(room)
    assert chain is None or alone <= chain.makespan * (1 + 1e-6)
    for outcome in compare(before, around, [room])[room]:
        assert outcome.seconds is None or both <= outcome.seconds * (1 + 1e-6)


def test_parameters_and_states_elsewhere_respect_it_too(small):
    step, before = small
    around = surroundings(before.device, host=None, ssd=None)
    plan = pk.plan(
        step, "a100-80gb", objective="memory", allow=["recompute", "swap", "offload-optimizer", "offload-params"]
    )
    taken = plan.made.profile
    states = frozenset({"parameter", "optimizer_state"})
    assert general_bound(general_of(taken, plan.room, around.tiers, states=states)) <= plan.seconds * (1 + 1e-6)
