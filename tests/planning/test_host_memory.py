"""Host memory is counted and bounded: what an optimizer on the host holds there, and what comes back from it."""

import pytest

import peakline as pk
from peakline.planning.refusal import held_by
from peakline.planning.tiers import beside, surroundings

DEVICE = "rtx-3060-12gb"
ALLOW = ["recompute", "offload-optimizer"]


@pytest.fixture(scope="module")
def step():
    return pk.training_step("gpt2", batch=4, seq=256, dtype="bf16", optimizer="adamw-fused", overrides={"layers": 4})


@pytest.fixture(scope="module")
def plan(step):
    """A plan in which the host runs the optimizer."""
    found = pk.plan(step, DEVICE, budget="1030 MiB", host="16 GiB", allow=ALLOW)
    assert found.optimizer == "host"
    return found


def bytes_of(step, *roles):
    return int(step.total_bytes(*roles))


def states_of(step):
    return sum(pk.estimate(step, DEVICE).memory.by_role[role] for role in ("optimizer_state",))


def test_an_optimizer_on_the_host_holds_its_states_and_a_copy_of_the_parameters_there(step, plan):
    held = states_of(step) + bytes_of(step, "parameter")
    assert plan.timeline.program.tiers["host"].held == held
    assert plan.timeline.memory_at("host", 0.0) == held
    assert plan.peaks()["host"] >= held


def test_what_it_updates_comes_back_over_the_link(step, plan):
    assert plan.moved["host in"] == bytes_of(step, "parameter")
    back = [run for run in plan.timeline.runs if run.task.name.startswith("fetch updates")]
    turns = [run for run in plan.timeline.runs if run.task.stream == "host"]
    assert len(back) == len(turns)
    assert all(sent.start >= turn.end for sent, turn in zip(back, turns, strict=True))
    assert plan.seconds == max(run.end for run in back)


def test_a_turn_on_the_host_reads_everything_and_writes_what_it_updates(step, plan):
    states, parameters = states_of(step), bytes_of(step, "parameter")
    gradients = parameters  # both in bf16
    seconds = sum(run.seconds for run in plan.timeline.runs if run.task.stream == "host")
    assert seconds == pytest.approx((2 * (states + parameters) + gradients) / 307.2e9, rel=1e-6)


def test_the_bound_holds_with_the_updates_on_the_link_and_is_near(plan):
    assert plan.lower_bound <= plan.seconds * (1 + 1e-9)
    assert plan.gap < 0.05  # the embedding's gradient is last to arrive, first to be waited for


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_host_without_room_for_the_states_runs_no_optimizer(step, share):
    held = states_of(step) + bytes_of(step, "parameter")
    around = surroundings(pk.device(DEVICE), host=int(share * held))
    assert beside(around, held) is None
    found = pk.plan(step, DEVICE, budget="2 GiB", host=int(share * held), allow=ALLOW)
    assert found.optimizer == "device"
    assert found.peaks()["host"] <= share * held


# ---- refusals -------------------------------------------------------------------------------------------------------
def test_what_holds_the_floor_adds_up_to_its_peak(step):
    with pytest.raises(pk.NothingFits) as caught:
        pk.plan(step, DEVICE, budget="400 MiB", host="16 MiB", allow=["swap"])
    words = str(caught.value)
    assert "at its peak activation" in words
    assert "the largest of it loss." in words
    assert "host is too small: its 16 MiB are full" in words


@pytest.mark.parametrize("allow", [["recompute"], ["swap"], ["recompute", "swap", "offload-optimizer"]])
def test_roles_at_the_peak_add_up_to_it(step, allow):
    from peakline.planning.attempt import Attempt
    from peakline.planning.extract import profile
    from peakline.planning.search import Search

    before = pk.estimate(step, DEVICE)
    around = surroundings(before.device, host=8 << 30)
    floor = Search([Attempt(profile(before, turns=True), tuple(allow), around, 3.0)], []).floor()
    held = held_by(floor)
    assert held.total() == floor.timeline.peak("device")
    assert held["parameter"] == bytes_of(step, "parameter")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"budget": "13 GiB"}, r"budget: 13 GiB is more than rtx-3060-12gb has"),
        ({"ssd": "8 TB"}, r"ssd: .* is more than samsung-pm1743-7.68tb holds"),
        ({"ssd": "1 TB", "ssd_device": "h100-sxm"}, "h100-sxm is a gpu, not a drive"),
        ({"host_device": "samsung-990-pro-2tb"}, r"host_device: samsung-990-pro-2tb is of kind ssd, not host memory"),
        ({"host": "300 GiB", "host_device": "cz120-256gb"}, r"host: 300 GiB is more than cz120-256gb has"),
        ({"host": -1}, "host: -1 is not a number of bytes"),
        ({"host": 0, "budget": "700 MiB", "allow": ["swap"]}, "host is 0: nothing can be moved there"),
    ],
)
def test_sizes_that_are_not_there_are_refused_naming_them(step, options, words):
    with pytest.raises(ValueError, match=words):
        pk.plan(step, DEVICE, **options)


def test_a_cpu_has_no_host_beside_it(step):
    with pytest.raises(ValueError, match="host: xeon-8480plus is a CPU, whose memory is the host's"):
        pk.plan(step, "xeon-8480plus", host="8 GiB", ssd="1 TB")
