"""Checkpointing a chain: dynamic programming against a search of every schedule there is, on short chains."""

from heapq import heappop, heappush

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peakline.solvers.offload.chain import Stage, checkpoint_chain, least_seconds, replay

SECONDS = st.integers(1, 5).map(float)


@st.composite
def stages(draw):
    """A stage that saves its output and perhaps more."""
    output = draw(st.integers(1, 4))
    saved = output + draw(st.integers(0, 5))
    return Stage(
        draw(SECONDS),
        draw(SECONDS),
        output,
        saved,
        draw(st.integers(0, 2)),
        left=draw(st.integers(0, 1)),
        incoming=draw(st.integers(0, 1)),
    )


chains = st.lists(stages(), min_size=1, max_size=4).map(tuple)


def searched(chain, budget):
    """Least seconds over all schedules: Dijkstra over what is held and whose turn it is.

    As in the paper, what a backward run needs is held only together with the input that it needs as well.
    """
    start = (frozenset(), len(chain) - 1)
    left = [sum(stage.left for stage in chain[turn + 1 :]) for turn in range(-1, len(chain))]
    queue, seen, number = [(0.0, 0, start)], set(), 0

    def size(held):
        return sum(chain[i].saved if whole else chain[i].output for i, whole in held)

    while queue:
        seconds, _, state = heappop(queue)
        if state in seen:
            continue
        seen.add(state)
        held, turn = state
        if turn < 0:
            return seconds
        after = [(0.0, (held - {one}, turn)) for one in held]
        for i, stage in enumerate(chain):
            if i and not held & {(i - 1, False), (i - 1, True)}:
                continue
            for whole in (False, True):
                grown = held | {(i, whole)}
                if size(grown) + left[turn + 1] + chain[turn].incoming + stage.forward_work <= budget:
                    after.append((stage.forward, (grown, turn)))
            if i == turn and (i, True) in held and size(held) + left[turn + 1] + stage.backward_work <= budget:
                after.append((stage.backward, (held - {(i, True)}, turn - 1)))
        for took, new in after:
            whole = {i for i, all_ in new[0] if all_ and i}
            if all(new[0] & {(i - 1, False), (i - 1, True)} for i in whole) and new not in seen:
                number += 1
                heappush(queue, (seconds + took, number, new))
    return None


@settings(max_examples=60, deadline=None)
@given(chains, st.integers(3, 30))
def test_no_schedule_there_is_beats_it_unless_it_drops_what_it_kept(chain, budget):
    found, least = checkpoint_chain(chain, budget), searched(chain, budget)
    if found is not None:
        assert least is not None
        assert least <= found.seconds


@pytest.mark.parametrize("budget", range(2, 11))
def test_on_a_uniform_chain_it_is_the_best_of_all_schedules(budget):
    chain = (Stage(1.0, 2.0, 1, 2),) * 5
    found, least = checkpoint_chain(chain, budget), searched(chain, budget)
    assert (None if found is None else found.seconds) == least


@settings(max_examples=60, deadline=None)
@given(st.lists(stages(), min_size=1, max_size=7).map(tuple), st.integers(3, 60))
def test_its_schedule_takes_what_it_says_within_the_budget(chain, budget):
    found = checkpoint_chain(chain, budget)
    if found is not None:
        seconds, peak = replay(chain, found)
        assert seconds == found.seconds
        assert peak <= budget


def test_with_memory_for_everything_nothing_runs_twice():
    chain = tuple(Stage(1.0, 2.0, 1, 2 + i) for i in range(6))
    assert checkpoint_chain(chain, 1000).seconds == 18.0


def test_root_n_memory_costs_about_one_more_forward_pass():
    n = 16  # T. Chen et al., arXiv:1604.06174: 2√n units, one forward pass more
    chain = (Stage(1.0, 2.0, 1, 1),) * n
    found = checkpoint_chain(chain, 8)
    assert found.seconds <= 3 * n + n


@settings(max_examples=60, deadline=None)
@given(st.lists(stages(), min_size=1, max_size=6).map(tuple), st.integers(3, 60), st.integers(4, 40))
def test_in_coarse_grains_it_still_fits_and_its_bound_still_holds(chain, budget, grains):
    exact, found = checkpoint_chain(chain, budget), checkpoint_chain(chain, budget, grains=grains)
    if found is not None:
        seconds, peak = replay(chain, found)
        assert peak <= budget
        assert exact is not None
        assert exact.seconds <= seconds
    if exact is not None:
        assert least_seconds(chain, budget, grains=grains) <= exact.seconds
        assert least_seconds(chain, budget) == exact.seconds


def test_fifty_stages_are_solved_to_a_few_percent():
    chain = tuple(Stage(1.0, 2.0, 10_000_019 + i, 70_000_003) for i in range(50))
    found, bound = checkpoint_chain(chain, 1_200_000_000), least_seconds(chain, 1_200_000_000)
    assert replay(chain, found)[1] <= 1_200_000_000
    assert bound <= found.seconds <= 1.05 * bound
