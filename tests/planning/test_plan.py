"""Plans: what the solver promises is what the simulation of the step shows, and nothing is lost on the way."""

import json
from dataclasses import replace

import pytest

import peakline as pk
from peakline.planning.execute import DEVICE, executed_program
from peakline.planning.extract import problem_of, profile
from peakline.planning.plan import ALLOWED
from peakline.planning.tiers import surroundings
from peakline.planning.turns import HostOptimizer
from peakline.solvers.offload.linear import Infeasible, bound, solve
from peakline.streams import simulate

GIB = 2**30


@pytest.fixture(scope="module")
def step():
    return pk.training_step("vit-b-16", batch=32, dtype="bf16", optimizer="adamw-fused")


@pytest.fixture(scope="module")
def before(step):
    return pk.estimate(step, "a100-80gb")


@pytest.fixture(scope="module")
def beside():
    return surroundings(pk.device("a100-80gb"), host=64 * GIB, ssd=None)


def carried_out(taken, problem, keys, decisions, beside=None):
    routes, links = (beside.routes, beside.links) if beside else ((), {})
    return simulate(executed_program(taken, problem, keys, decisions, routes, links, None))


def test_a_plan_with_room_for_everything_is_the_step_as_it_is(before):
    taken = profile(before)
    problem, keys = problem_of(taken, before.memory.live, ())
    decisions = solve(problem)
    done = carried_out(taken, problem, keys, decisions)
    assert done.peak(DEVICE) == before.memory.live
    assert done.makespan == pytest.approx(before.time)
    assert not any(decisions.executed)


def test_a_budget_that_is_enough_is_called_so(step, before):
    plan = pk.plan(step, "a100-80gb", budget="60 GiB")
    assert plan.seconds == pytest.approx(before.time)
    assert plan.notes[-1] == "the step fits the budget as it is; nothing needs to change"


@pytest.mark.parametrize("share", [0.95, 0.75, 0.55])
@pytest.mark.parametrize("allow", [("recompute",), ("swap",), ("recompute", "swap")])
def test_the_simulated_step_stays_within_the_room_and_near_the_bound(step, before, share, allow):
    found = pk.plan(step, "a100-80gb", budget=int(share * before.memory.live) + before.memory.context, allow=allow)
    assert found.peak <= found.room
    assert found.lower_bound <= found.seconds * (1 + 1e-9)
    assert found.seconds <= 1.1 * found.lower_bound


def test_solver_and_replay_agree_on_the_time(before, beside):
    taken = profile(before)
    for share in (0.9, 0.7, 0.5):
        problem, keys = problem_of(taken, int(share * before.memory.live), beside.tiers)
        decisions = solve(problem)
        assert carried_out(taken, problem, keys, decisions, beside).makespan == pytest.approx(
            decisions.seconds, rel=0.01
        )


def test_more_memory_never_costs_time(step, before):
    budgets = [int(share * before.memory.live) + before.memory.context for share in (0.5, 0.65, 0.8, 1.2)]
    seconds = [pk.plan(step, "a100-80gb", budget=b).lower_bound for b in budgets]
    assert seconds == sorted(seconds, reverse=True)


def test_recomputation_and_moving_together_are_at_least_as_good_as_each_alone(step, before):
    budget = int(0.6 * before.memory.live) + before.memory.context
    alone = [pk.plan(step, "a100-80gb", budget=budget, allow=(word,)).lower_bound for word in ("recompute", "swap")]
    assert pk.plan(step, "a100-80gb", budget=budget).lower_bound <= min(alone) * (1 + 1e-9)


def test_recomputing_everything_but_each_layers_input_is_never_better_than_the_plan(step, before):
    full = pk.estimate(
        pk.training_step("vit-b-16", batch=32, dtype="bf16", optimizer="adamw-fused", recompute="full"), "a100-80gb"
    )
    found = pk.plan(step, "a100-80gb", budget=full.memory.live + full.memory.context + 64 * 2**20, allow=["recompute"])
    assert found.seconds <= full.time * 1.001


def test_every_item_stays_moves_or_is_made_again(before, beside):
    taken = profile(before)
    problem, _ = problem_of(taken, int(0.5 * before.memory.live), beside.tiers)
    decisions = solve(problem)
    for i, item in enumerate(problem.items):
        there = decisions.kept[i] + sum(decisions.moved[i])
        if item.extra:
            assert there <= 1 + 1e-6
        else:
            again = item.group >= 0 and decisions.executed[item.group]
            assert there + again == pytest.approx(1.0, abs=1e-6)


def test_a_group_is_executed_again_only_with_its_operands_at_hand(before, beside):
    taken = profile(before)
    problem, _ = problem_of(taken, int(0.5 * before.memory.live), beside.tiers)
    decisions = solve(problem)
    for g, group in enumerate(problem.groups):
        if decisions.executed[g]:
            assert all(decisions.executed[h] for h in group.groups)
            for i in group.items:
                again = problem.items[i].group
                same = again >= 0 and problem.groups[again].segment == group.segment and decisions.executed[again]
                assert decisions.kept[i] + sum(decisions.moved[i]) + same >= 1 - 1e-6


def test_states_in_turns_leave_the_device_to_activations(step, before):
    assert "optimizer_state" in before.memory.by_role
    budget = int(0.25 * before.memory.live) + before.memory.context  # below the floor of activations alone
    with pytest.raises(pk.NothingFits):
        pk.plan(step, "a100-80gb", budget=budget)
    assert pk.plan(step, "a100-80gb", budget=budget, allow=ALLOWED).peak < 0.25 * before.memory.live


def test_an_optimizer_on_the_host_waits_for_its_gradients_and_holds_no_states_on_the_device(before, beside):
    host = HostOptimizer(100e9, 25e9)
    taken = profile(before, host=host)
    problem, keys = problem_of(taken, before.memory.live, beside.tiers)
    decisions = solve(problem)
    done = carried_out(taken, problem, keys, decisions, beside)
    gradients = sum(d.bytes for d in problem.items if d.must_move)
    assert done.moved["host out"] >= gradients
    turns = [run for run in done.runs if run.task.stream == "host"]
    backward = max(run.end for run in done.runs if run.task.kind == "backward")
    assert min(run.start for run in turns) >= backward
    assert done.peak(DEVICE) < before.memory.live


def test_the_lower_bound_is_below_every_replay_that_fits(before, beside):
    taken = profile(before)
    tight, keys = problem_of(taken, int(0.55 * before.memory.live), beside.tiers)
    lowest = bound(tight)
    for share in (0.55, 0.52, 0.5):
        decisions = solve(replace(tight, budget=int(share * before.memory.live)))
        done = carried_out(taken, tight, keys, decisions, beside)
        if done.peak(DEVICE) <= tight.budget:
            assert done.makespan >= lowest * (1 - 1e-9)


def test_below_the_floor_the_refusal_says_what_holds_it(step):
    with pytest.raises(pk.NothingFits, match=r"the least that would is .*; allowing offload-optimizer") as caught:
        pk.plan(step, "a100-80gb", budget="700 MiB")
    assert caught.value.floor > GIB


def test_host_memory_that_is_too_small_limits_what_moves(step, before):
    budget = int(0.6 * before.memory.live) + before.memory.context
    found = pk.plan(step, "a100-80gb", budget=budget, host="64 MiB")
    assert 0 < found.peaks()["host"] <= 64 * 2**20


def test_a_drive_is_used_where_the_host_is_full(step, before):
    budget = int(0.6 * before.memory.live) + before.memory.context
    found = pk.plan(step, "a100-80gb", budget=budget, host="16 MiB", ssd="1 TB")
    assert found.moved["ssd write"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"allow": ["compress"]}, "allow: 'compress' is unknown; accepted: recompute, swap"),
        ({"allow": []}, "allow: nothing is allowed"),
        ({"budget": -3}, "budget: -3 is not a number of bytes above 0"),
        ({"budget": "lots"}, "lots"),
    ],
)
def test_bad_input_is_named(step, options, message):
    with pytest.raises(ValueError, match=message):
        pk.plan(step, "a100-80gb", **options)


def test_a_step_that_recomputes_already_is_refused():
    again = pk.training_step("gpt2", batch=1, seq=128, dtype="bf16", recompute="full")
    with pytest.raises(ValueError, match="recomputes already"):
        pk.plan(again, "a100-80gb")


def test_an_optimizer_in_many_passes_cannot_be_cut_into_turns():
    graph = pk.training_step("gpt2", batch=1, seq=128, dtype="bf16", optimizer="adamw")
    with pytest.raises(ValueError, match="name a fused implementation"):
        pk.plan(graph, "a100-80gb", allow=["offload-optimizer"])


def test_the_plan_is_json(step, before):
    found = pk.plan(step, "a100-80gb", budget=int(0.7 * before.memory.live) + before.memory.context)
    data = json.loads(found.to_json())
    assert data["schema"] == "peakline.offload/1"
    assert data["certificate"]["lower_bound"] <= data["certificate"]["objective"]
    assert data["peak_bytes"] <= data["room_bytes"]


def test_nothing_is_infeasible_at_the_peak_of_the_step(before):
    problem, _ = problem_of(profile(before), before.memory.live, ())
    assert bound(problem) == pytest.approx(before.time)
    with pytest.raises(Infeasible):
        solve(replace(problem, budget=before.memory.live // 50))


def test_what_reads_a_value_that_is_written_over_later_is_not_executed_again():
    """A residual addition in place: the norm before it read the old stream, and would now read the new one."""
    taken = profile(pk.estimate(pk.training_step("gpt2", batch=2, seq=128, dtype="bf16"), "a100-80gb"))
    makers = {**taken.makers}
    problem, keys = problem_of(taken, taken.live[0], ())
    group = next(g for g, made in enumerate(problem.groups) if made.items)
    step = keys.groups[group][-1]
    read = next(k for k in taken.steps[step].touches if k in makers and step not in makers[k])
    later = step + 1
    spoiled = replace(taken, makers={**makers, read: [*makers[read], later]})
    again, keys_again = problem_of(spoiled, taken.live[0], ())
    assert keys.groups[group] not in keys_again.groups
    assert len(again.groups) < len(problem.groups)
