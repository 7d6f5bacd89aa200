"""Which tier holds which tensor when: the program against every placement there is; the specialised bound below it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peakline.solvers.offload.linear import Infeasible, bound
from peakline.solvers.offload.placement import Located, Store, every, place, seconds_of
from peakline.solvers.offload.problem import Item, Problem, Slot, Tier

SLOTS = 6


@st.composite
def stores(draw):
    """Three tensors over six slots, each used at its ends and not between; one or two tiers."""
    tensors = []
    for i in range(3):
        first = draw(st.integers(0, 2))
        last = draw(st.integers(first + 2, SLOTS - 1))
        tensors.append(Located(f"t{i}", draw(st.integers(1, 6)), (first, last), (first, last)))
    tiers = [Tier("host", 2.0, 3.0, draw(st.sampled_from([None, 4, 8])))]
    if draw(st.booleans()):
        tiers.append(Tier("ssd", 1.0, 1.0))
    return Store((1.0,) * SLOTS, tuple(tensors), draw(st.integers(6, 18)), tuple(tiers))


@settings(max_examples=25, deadline=None)
@given(stores())
def test_the_program_finds_the_best_of_all_placements(store):
    best = min((s for s in (seconds_of(store, path) for path in every(store)) if s is not None), default=None)
    found = place(store)
    if best is None:
        assert found is None
    else:
        assert found.seconds == pytest.approx(best)


def specialised(store):
    """The same as a problem of `linear`: a tensor may leave after its first use and is back for its last."""
    slots = [
        Slot(seconds, sum(t.bytes for t in store.tensors if t.alive[0] <= s <= t.alive[1]))
        for s, seconds in enumerate(store.seconds)
    ]
    items = [
        Item(t.name, t.bytes, (t.alive[0] + 1, t.alive[1] - 1), -1, ((t.alive[0], True),), (t.alive[1],))
        for t in store.tensors
    ]
    return Problem(tuple(slots), tuple(items), (), (), store.tiers, store.capacity)


@settings(max_examples=40, deadline=None)
@given(stores())
def test_the_specialised_bound_is_below_every_placement(store):
    found = place(store)
    if found is None:
        return
    try:
        assert bound(specialised(store)) <= found.seconds + 1e-6
    except Infeasible:
        pytest.fail("the relaxation refuses what a placement does")


def test_a_tensor_goes_to_the_faster_tier_until_it_is_full():
    tensors = tuple(Located(f"t{i}", 4, (0, 4), (0, 4)) for i in range(3))
    store = Store((2.0,) * 5, tensors, 12, (Tier("host", 2.0, 2.0, 4), Tier("ssd", 1.0, 1.0)))
    assert place(store).seconds == 10.0
    crowded = Store((2.0,) * 5, (*tensors, Located("work", 8, (2, 2), (2,))), 12, store.tiers)
    found = place(crowded)
    assert sorted(path[2] for path in found.tiers[:3]) == [0, 1, 2]


def test_a_parameter_that_lies_in_host_memory_comes_in_before_its_use():
    store = Store((1.0, 1.0, 1.0), (Located("w", 3, (0, 2), (1,), home=1),), 4, (Tier("host", 1.0, 1.0),))
    assert place(store).seconds == 5.0
