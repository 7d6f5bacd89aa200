"""What may be asked of a plan: least memory within a time, what the allocator reserves, activations in fewer bits."""

import json

import pytest

import peakline as pk
from peakline.planning.extract import profile, saved
from peakline.planning.packing import CODECS, packable, packings


@pytest.fixture(scope="module")
def step():
    return pk.training_step("vit-b-16", batch=16, dtype="bf16", optimizer="adamw-fused", overrides={"layers": 4})


@pytest.fixture(scope="module")
def before(step):
    return pk.estimate(step, "a100-80gb")


def budget_of(before, share):
    outside = before.memory.context + 2 * before.device.software.cublas_workspace_bytes
    return int(share * before.memory.live) + outside


# ---- the floor ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("fit", ["allocated", "reserved"])
def test_the_floor_is_the_same_whatever_was_asked_for_and_a_plan_fits_it(step, fit):
    floors = []
    for budget in ("200 MiB", "700 MiB"):
        with pytest.raises(pk.NothingFits) as caught:
            pk.plan(step, "a100-80gb", budget=budget, allow=["recompute"], fit=fit)
        floors.append(caught.value.floor)
    assert floors[0] == floors[1]
    found = pk.plan(step, "a100-80gb", budget=floors[0], allow=["recompute"], fit=fit)
    assert found.needs <= found.room


def test_allowing_more_never_raises_the_floor(step):
    floors = []
    for allow in (["recompute"], ["recompute", "quantise-activations"], ["recompute", "swap", "quantise-activations"]):
        with pytest.raises(pk.NothingFits) as caught:
            pk.plan(step, "a100-80gb", budget="100 MiB", allow=allow, quantise="int4")
        floors.append(caught.value.floor)
    assert floors[1] <= 1.005 * floors[0]
    assert floors[2] <= 1.005 * floors[1]


# ---- the least memory -----------------------------------------------------------------------------------------------
def test_the_least_memory_is_below_that_of_any_budget_a_plan_was_found_for(step, before):
    least = pk.plan(step, "a100-80gb", objective="memory", allow=["recompute"])
    assert least.least <= least.needs == least.peak
    for share in (0.9, 0.7, 0.55):
        try:
            other = pk.plan(step, "a100-80gb", budget=budget_of(before, share), allow=["recompute"])
        except pk.NothingFits:
            continue
        assert least.peak <= 1.005 * other.peak


@pytest.mark.parametrize("slowdown", [1.0, 1.05, 1.2])
def test_a_limit_on_the_time_is_kept_and_costs_memory(step, slowdown):
    free = pk.plan(step, "a100-80gb", objective="memory")
    found = pk.plan(step, "a100-80gb", objective="memory", slowdown=slowdown)
    assert found.seconds <= slowdown * found.baseline_seconds * (1 + 1e-9)
    assert found.peak >= 0.99 * free.peak
    assert found.peak <= found.baseline_peak
    assert found.gap == pytest.approx(1 - found.least / found.peak)


def test_its_certificate_is_in_bytes_and_says_so(step):
    data = json.loads(pk.plan(step, "a100-80gb", objective="memory", slowdown=1.05).to_json())
    assert data["certificate"]["unit"] == "bytes"
    assert data["certificate"]["lower_bound"] <= data["certificate"]["objective"] == data["peak_bytes"]
    assert (data["objective"], data["slowdown"]) == ("memory", 1.05)


# ---- what the allocator reserves ------------------------------------------------------------------------------------
def test_a_plan_may_have_to_fit_with_its_fragmentation(step, before):
    budget = budget_of(before, 0.85)
    loose = pk.plan(step, "a100-80gb", budget=budget)
    tight = pk.plan(step, "a100-80gb", budget=budget, fit="reserved")
    assert tight.reserved <= tight.room < loose.reserved
    assert tight.peak <= tight.reserved
    assert tight.lower_bound <= loose.lower_bound * (1 + 1e-9)  # the bound does not profit from the smaller budget
    assert tight.seconds >= loose.lower_bound


# ---- activations in fewer bits --------------------------------------------------------------------------------------
@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_packed_bytes_are_those_of_the_elements_and_of_their_scales(codec):
    groups = 10
    whole = codec.bytes_of(groups * codec.group)
    assert whole == groups * (codec.group * codec.bits // 8 + codec.scale_bytes)
    assert whole < codec.bytes_of(groups * codec.group + 1) <= whole + 1 + codec.scale_bytes


def test_what_is_no_floating_point_number_is_not_packed(before):
    taken = profile(before)
    masks = [key for key in saved(taken) if not taken.program.storages[key].tensor.dtype.is_float]
    assert not any(packable(taken, key, CODECS["int8"]) for key in masks)
    found = packings(taken, list(saved(taken)), CODECS["int8"])
    assert found
    for key, packing in found.items():
        assert packing.bytes < int(taken.program.sizes[key])
        assert min(packing.pack, packing.unpack) > (packing.bytes + int(taken.program.sizes[key])) / 2.1e12  # HBM2e


def test_the_replay_holds_packed_activations_and_pays_for_them(step, before):
    found = pk.plan(step, "a100-80gb", budget=budget_of(before, 0.75), allow=["quantise-activations"], quantise="int4")
    packed = [d for d in found.decisions if d.action == "compress"]
    assert packed
    assert found.peak <= found.room
    tasks = {run.task.name: run for run in found.timeline.runs}
    for decision in packed[:5]:
        pack, unpack = tasks[f"pack {decision.tensor}"], tasks[f"unpack {decision.tensor}"]
        assert pack.end <= unpack.start
        assert pack.task.holds[0].bytes < unpack.task.holds[0].bytes == decision.compressed
    extra = sum(run.seconds for run in found.timeline.runs if run.task.kind in ("pack", "unpack"))
    assert found.seconds == pytest.approx(found.baseline_seconds + extra)
    assert found.lower_bound <= found.seconds * (1 + 1e-6)


def test_four_choices_together_are_never_slower_than_three(step, before):
    budget = budget_of(before, 0.7)
    three = pk.plan(step, "a100-80gb", budget=budget, allow=["recompute", "swap"])
    four = pk.plan(step, "a100-80gb", budget=budget, allow=["recompute", "swap", "quantise-activations"])
    assert four.lower_bound <= three.lower_bound * (1 + 1e-9)
    assert four.seconds <= three.seconds * 1.005


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "energy"}, "objective: 'energy' is unknown; accepted: time, memory"),
        (
            {"objective": "memory", "budget": "4 GiB"},
            "budget: with objective='memory' the budget is what is looked for",
        ),
        ({"slowdown": 1.1}, "slowdown: bounds the time where memory is the objective"),
        ({"objective": "memory", "slowdown": 0.9}, "slowdown: 0.9 is not a number of at least 1"),
        ({"fit": "active"}, "fit: 'active' is unknown; accepted: allocated, reserved"),
        ({"quantise": "int2"}, "quantise: 'int2' is unknown; accepted: int8, int4, fp8"),
    ],
)
def test_bad_words_are_named(step, options, message):
    with pytest.raises(ValueError, match=message):
        pk.plan(step, "a100-80gb", **options)
