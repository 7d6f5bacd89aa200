"""Plans against what people do without a solver: never worse, and at some budget better than all by a tenth."""

from contextlib import suppress
from dataclasses import replace

import pytest

import peakline as pk
from peakline.planning.coarse import coarse, forward, root
from peakline.planning.execute import executed_program
from peakline.planning.extract import problem_of, profile
from peakline.planning.policies import POLICIES, compare, decided, good_enough
from peakline.planning.tiers import surroundings
from peakline.solvers.offload.linear import bound, least_budget

PCIE_5 = {"links.host.kind": "PCIe 5.0 x16", "links.host.bandwidth": "63 GB/s"}
MODELS = {
    "gpt2-xl": {"batch": 4, "seq": 1024, "overrides": {"layers": 6}},
    "llama-3.1-8b": {"batch": 1, "seq": 4096, "loss": "chunked", "overrides": {"layers": 4}},
    "stable-diffusion-1.5": {"batch": 4, "image": 256},
}


@pytest.fixture(scope="module")
def device():
    return pk.device("a100-80gb", **PCIE_5)


def against(name, device, share):
    """(plan, seconds of every policy that fits) in a room `share` of the way from the floor to the step as it is."""
    step = pk.training_step(name, dtype="bf16", optimizer="adamw-fused", **MODELS[name])
    before = pk.estimate(step, device)
    around = surroundings(device, host=None, ssd=None)
    least = least_budget(problem_of(profile(before), 1 << 20, around.tiers)[0])
    room = least + int(share * (before.memory.live - least))
    budget = room + before.memory.context + 2 * device.software.cublas_workspace_bytes
    found = pk.plan(step, device, budget=budget)
    others = [o.seconds for o in compare(before, around, [room])[room] if o.seconds is not None]
    with suppress(pk.NothingFits):
        others.append(pk.plan(step, device, budget=budget, allow=["recompute"]).seconds)
    return found, others


@pytest.mark.parametrize(
    ("name", "share"),
    [(name, share) for name in MODELS for share in (0.6, 0.15) if "diffusion" not in name or share < 0.5],
)
def test_the_plan_is_never_worse_than_any_policy_at_the_same_budget(name, device, share):
    found, others = against(name, device, share)
    assert found.seconds <= min(others, default=found.seconds) * 1.001


def test_at_a_tight_budget_the_plan_beats_all_of_them_by_a_tenth(device):
    found, others = against("gpt2-xl", device, 0.15)
    assert others
    assert min(others) >= 1.1 * found.seconds


@pytest.fixture(scope="module")
def vit(device):
    step = pk.training_step("vit-b-16", batch=16, dtype="bf16", optimizer="adamw-fused")
    return step, profile(pk.estimate(step, device))


def test_where_greedy_is_proven_as_good_no_solver_runs(vit):
    step, taken = vit
    fast = pk.device("a100-80gb", **{"links.host.bandwidth": "450 GB/s per direction", "links.host.kind": "NVLink-C2C"})
    found = pk.plan(step, fast, budget=int(0.8 * max(taken.live)) + taken.estimate.memory.context)
    assert found.method.startswith("greedy")
    assert found.gap <= 0.005


def test_a_policy_that_is_too_slow_is_not_good_enough(vit, device):
    _, taken = vit
    around = surroundings(device, host=None, ssd=None)
    problem, keys = problem_of(taken, int(0.7 * max(taken.live)), around.tiers)
    lower = bound(problem)
    found = good_enough(taken, problem, keys, around, problem.budget, ["recompute", "swap"], 2 * lower)
    assert found is not None
    assert lower <= found[2].makespan <= 2 * lower
    limit = 0.999 * lower
    assert good_enough(taken, problem, keys, around, problem.budget, ["recompute", "swap"], limit) is None


def test_stretches_of_layers_keep_every_step_and_its_order(vit):
    _, taken = vit
    wide = coarse(taken, root(taken))
    assert [i for first, last in forward(wide) for i in range(first, last + 1)] == list(range(taken.turn))
    assert {first for first, _ in forward(wide)} < {first for first, _ in forward(taken)}
    assert forward(coarse(taken, 1)) == forward(taken)
    with pytest.raises(ValueError, match="at least 1"):
        coarse(taken, 0)


def test_checkpointing_stretches_runs_most_of_the_forward_pass_again(vit, device):
    _, taken = vit
    wide = coarse(taken, root(taken))
    problem, _ = problem_of(wide, max(taken.live), ())
    mild, full = (choice() for choice in POLICIES["checkpoint √n stretches"][0](wide, problem))
    read = {i for group in problem.groups for i in group.items}
    inputs = [
        i for i in read
        if problem.items[i].group >= 0
        and any(
            i in group.items and group.segment != problem.groups[problem.items[i].group].segment
            for group in problem.groups
        )
    ]  # fmt: skip
    assert inputs
    assert sum(mild.executed) < sum(full.executed)
    assert all(full.kept[i] == 1.0 for i in inputs)  # a stretch starts from what the one before it made
    assert sum(full.executed) >= len(problem.groups) - len(inputs)
    assert decided(problem, set(), {}).executed == (False,) * len(problem.groups)


def test_what_is_executed_again_without_its_operands_is_refused_by_the_replay(vit):
    _, taken = vit
    problem, keys = problem_of(taken, max(taken.live), ())
    nothing = decided(problem, set(), {})
    everything = replace(nothing, executed=(True,) * len(problem.groups))  # layers' inputs are dropped as well
    with pytest.raises(ValueError, match=r"cannot be executed again: .* is gone by then"):
        executed_program(taken, problem, keys, everything, (), {}, None)
