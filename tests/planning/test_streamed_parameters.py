"""Parameters that lie elsewhere are there whenever something reads them, a second execution included."""

import pytest

import peakline as pk
from peakline.planning.extract import profile

ALLOW = ("recompute", "swap", "offload-optimizer", "offload-params")


@pytest.mark.parametrize("model", ["gpt2", "vit-b-16"])
def test_every_execution_finds_the_parameters_it_reads(model):
    size = {"seq": 512, "batch": 4} if model == "gpt2" else {"batch": 16}
    step = pk.training_step(model, dtype="bf16", optimizer="adamw-fused", **size)
    plan = pk.plan(step, "a100-80gb", objective="memory", allow=ALLOW)
    made, timeline = plan.made, plan.timeline
    program = made.profile.program
    away = {
        program.storages[key].name
        for key, item, shares in zip(made.keys.items, made.problem.items, made.decisions.moved)
        if item.away and sum(shares) > 0 and program.storages[key].tensor.role == "parameter"
    }
    assert away
    present = {}
    for hold, comes in timeline.events:  # buffers of parts are called after the tensor, the tier and the round
        name = hold.buffer.partition("/")[0]
        if hold.tier == "device" and name in away:
            present.setdefault(name, []).append(comes)
    again = [run for run in timeline.runs if run.task.kind == "recompute"]
    assert again
    spans = {}
    for run in timeline.runs:
        for hold in run.task.holds:
            if hold.tier == "device" and hold.buffer.partition("/")[0] in away:
                spans[hold.buffer] = [run.end, float("inf")]
        for buffer in run.task.drops:
            if buffer in spans:
                spans[buffer][1] = run.end
    by_name = {s.name: s for s in profile(pk.estimate(step, "a100-80gb")).program.steps}
    for run in again:
        for key in by_name[run.task.name.removesuffix(" again")].touches:
            name = program.storages[key].name
            if name in away:
                there = [s for b, s in spans.items() if b.partition("/")[0] == name]
                assert any(start <= run.start + 1e-12 and run.end <= end + 1e-12 for start, end in there)
