"""Memory operator by operator: what the program counts the replay holds, and its bound is below every replay."""

import random
from dataclasses import replace

import pytest

import peakline as pk
from peakline.planning.attempt import Attempt
from peakline.planning.coarse import coarse, forward, parted, sharp
from peakline.planning.execute import DEVICE, executed_program
from peakline.planning.extract import problem_of, profile
from peakline.planning.policies import decided
from peakline.planning.tiers import surroundings
from peakline.solvers.offload.linear import bound, least_budget, solve, tightest
from peakline.streams import simulate

STEPS = {
    "gpt2": {"batch": 4, "seq": 256, "overrides": {"layers": 3}},
    "resnet-50": {"batch": 4},
    "stable-diffusion-1.5": {"batch": 1, "image": 128},
    "t5-small": {"batch": 4, "seq": 256, "overrides": {"layers": 2}},
}
ROUNDED = 1 << 12
"""Bytes: the solver meets its limits within a tolerance."""


@pytest.fixture(scope="module", params=STEPS)
def taken(request):
    step = pk.training_step(request.param, dtype="bf16", optimizer="adamw-fused", **STEPS[request.param])
    return profile(pk.estimate(step, "a100-80gb"))


def replayed(taken, problem, keys, decisions, beside=None):
    routes, links = (beside.routes, beside.links) if beside else ((), {})
    return simulate(executed_program(taken, problem, keys, decisions, routes, links, None))


@pytest.mark.parametrize("cut", [lambda p: p, parted, lambda p: coarse(p, 2)], ids=["layers", "parts", "stretches"])
def test_with_recomputation_alone_the_replay_holds_what_was_counted(taken, cut):
    taken = sharp(cut(taken), 64)
    problem, keys = problem_of(taken, max(taken.live), ())
    decisions, least = tightest(problem)
    assert replayed(taken, problem, keys, decisions).peak(DEVICE) <= least + ROUNDED
    for part in (0.3, 0.7):
        room = int(least + part * (max(taken.live) - least))
        found = solve(replace(problem, budget=room), integers=False)
        timeline = replayed(taken, problem, keys, found)
        assert timeline.peak(DEVICE) <= room + ROUNDED
        assert timeline.makespan == pytest.approx(found.seconds)


@pytest.mark.parametrize("cut", [lambda p: p, parted], ids=["layers", "parts"])
def test_the_bound_is_below_whatever_is_decided(taken, cut):
    """Groups and tensors by lot: in the room that their replay takes, the bound is no longer than it."""
    taken = sharp(cut(taken), 64)
    beside = surroundings(taken.estimate.device, host=None, ssd=None)
    problem, keys = problem_of(taken, max(taken.live), beside.tiers)
    movable = [i for i, item in enumerate(problem.items) if item.movable and not item.extra]
    lot = random.Random(7)
    for again, away in ((0.2, 0.0), (0.9, 0.0), (0.0, 0.4), (0.5, 0.3)):
        groups = {g for g in range(len(problem.groups)) if lot.random() < again}
        moves = {i: lot.choice((0.5, 1.0)) for i in movable if lot.random() < away}
        timeline = replayed(taken, problem, keys, decided(problem, groups, moves), beside)
        peak = timeline.peak(DEVICE)
        assert bound(replace(problem, budget=peak)) <= timeline.makespan * (1 + 1e-6)
        assert least_budget(problem, hopeful=True, limit=timeline.makespan * (1 + 1e-9)) <= peak + 1


@pytest.mark.parametrize("cut", [lambda p: p, parted], ids=["layers", "parts"])
def test_whatever_is_executed_again_finds_what_it_reads(taken, cut):
    """Also what is saved for a step that is over by then."""
    taken = sharp(cut(taken), 64)
    problem, keys = problem_of(taken, max(taken.live), ())
    lot = random.Random(3)
    for share in (0.1, 0.5, 0.9, 1.0):
        groups = {g for g in range(len(problem.groups)) if lot.random() < share}
        replayed(taken, problem, keys, decided(problem, groups, {}))


def test_pieces_of_a_network_of_blocks_start_where_one_tensor_crosses():
    step = pk.training_step("resnet-152", dtype="bf16", batch=2)
    taken = profile(pk.estimate(step, "a100-80gb"))
    births, touches = taken.program.births, taken.touches
    pieces = forward(taken)
    assert [i for first, last in pieces for i in range(first, last + 1)] == list(range(taken.turn))
    crossing = [
        sum(births[key] < first <= max(i for i in touches[key] if i < taken.turn) for key in touches
            if 0 <= births[key] < taken.turn)
        for first, _ in pieces[1:-1]
    ]  # fmt: skip
    assert sum(count == 1 for count in crossing) >= 0.8 * len(crossing)
    for key, made in taken.makers.items():  # nothing is written by two pieces
        if births[key] >= 0:
            assert len({taken.piece_of[i] for i in made}) == 1


def test_just_above_the_floor_a_residual_network_takes_a_quarter_more_time_at_most():
    step = pk.training_step("resnet-152", dtype="bf16", batch=64, optimizer="adamw-fused")
    taken = sharp(profile(pk.estimate(step, "a100-80gb")), 256)
    beside = surroundings(taken.estimate.device, host=None, ssd=None)
    fixed = sum(int(taken.program.sizes[key]) for key in taken.program.resident)
    room = fixed + int(0.25 * (max(taken.live) - fixed))
    *_, timeline = Attempt(taken, ("recompute", "swap"), beside, 5.0).within(room)
    assert timeline.peak(DEVICE) <= room
    assert timeline.makespan <= 1.25 * sum(taken.seconds)
