"""Lifetimes and live peaks against an interpreter that only looks ahead, one operator at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from programs import programs, training_steps

import peakline as pk
from peakline.cost.program import price_program
from peakline.memory.lifetimes import unroll
from peakline.memory.live import live_peak, occupancy
from peakline.memory.requests import request_streams
from peakline.models.graph import RESIDENT_ROLES, Graph
from peakline.models.operators import Node, operator_type

FEW = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))


@dataclass
class Run:
    """What the interpreter saw: the peak, its bytes by role, and live bytes after every operator."""

    peak: int
    by_role: dict[str, int]
    after: list[int]


def interpret(graph: Graph) -> Run:
    """Execute the unrolled graph: a dictionary of live storages; each is freed when no later operator names it."""
    flat = graph.flatten()
    operators = flat.blocks[0].operators

    def owner(name: str) -> str:
        return flat.tensors[name].storage or name

    made = {name for operator in operators for name in operator.outputs}
    live = {
        name: int(tensor.bytes)
        for name, tensor in flat.tensors.items()
        if tensor.storage is None and name not in made and tensor.role in RESIDENT_ROLES | {"gradient"}
    }
    stays = set(live)
    peak, by_role, after = 0, {}, []
    for i, operator in enumerate(operators):
        for name in operator.outputs:
            if flat.tensors[name].storage is None:
                live[name] = int(flat.tensors[name].bytes)
        workspace = sum(int(w) for w in operator_type(operator.type).workspace(Node.of(flat, operator)))
        total = sum(live.values()) + workspace
        if total > peak:
            peak, by_role = total, {"workspace": workspace} if workspace else {}
            for name, size in live.items():
                role = flat.tensors[name].role
                by_role[role] = by_role.get(role, 0) + size
        later = {owner(name) for o in operators[i + 1 :] for name in (*o.inputs, *o.outputs)}
        live = {name: size for name, size in live.items() if name in stays or name in later}
        after.append(sum(live.values()))
    return Run(peak, {role: size for role, size in by_role.items() if size}, after)


def check(graph: Graph) -> None:
    run, program = interpret(graph), unroll(graph)
    peak = live_peak(occupancy(program))
    assert peak.bytes == run.peak
    assert peak.by_role == run.by_role
    if any(block.times > 1 for block in graph.blocks):
        return  # later microbatches appear once in the program, as often as they run in the interpreter
    (stream,) = request_streams(program, repetitions=1)
    late = sum(int(program.sizes[k]) for k in program.resident if program.storages[k].tensor.role == "optimizer_state")
    live, after = 0, {}
    for event, step in zip(stream.events.ops, stream.step_of_event):
        size = int(stream.events.sizes[event if event >= 0 else ~event])
        live += size if event >= 0 else -size
        after[int(step)] = live
    for position, found in after.items():
        if position >= 0:  # optimizer states are first made by the first optimizer operator
            expected = run.after[position] - (0 if program.steps[position].operator.phase == "optimizer" else late)
            assert found == expected


@FEW
@given(programs())
def test_a_forward_pass_lives_as_the_interpreter_says(graph: Graph) -> None:
    check(graph)


@FEW
@given(training_steps())
def test_a_training_step_lives_as_the_interpreter_says(graph: Graph) -> None:
    check(graph)


@FEW
@given(training_steps())
def test_every_storage_that_is_made_is_freed_or_stays(graph: Graph) -> None:
    program = unroll(graph)
    for key, (born, dies) in enumerate(zip(program.births, program.deaths)):
        assert born <= dies
        if key in program.resident:
            assert (born, dies) == (-1, len(program.steps))


WORKLOADS = {
    "training": lambda: pk.training_step("llama-3.2-1b", batch=1, seq=256, overrides={"layers": 3}),
    "full recompute": lambda: pk.training_step(
        "llama-3.2-1b", batch=1, seq=256, recompute="full", overrides={"layers": 3}
    ),
    "selective recompute": lambda: pk.training_step(
        "gpt2", batch=2, seq=128, recompute="selective", attention="eager", overrides={"layers": 3}
    ),
    "accumulation": lambda: pk.training_step(
        "gpt2", batch=2, seq=128, accumulation=3, optimizer="adagrad", overrides={"layers": 3}
    ),
    "autocast": lambda: pk.training_step(
        "gpt2", batch=2, seq=128, dtype="fp32", autocast="bf16", overrides={"layers": 3}
    ),
    "master weights": lambda: pk.training_step(
        "gpt2", batch=2, seq=128, master_weights=True, accumulation=2, overrides={"layers": 3}
    ),
    "low rank": lambda: pk.training_step("llama-3.2-1b", batch=1, seq=256, lora=8, overrides={"layers": 3}),
    "prefill": lambda: pk.prefill("llama-3.2-1b", batch=2, seq=256, overrides={"layers": 3}),
    "decode": lambda: pk.decode("llama-3.2-1b", batch=4, context=512, overrides={"layers": 3}),
    "vision": lambda: pk.training_step("resnet-18", batch=2, recompute="full"),
}


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_model_s_peak_is_the_interpreter_s(name: str) -> None:
    graph = WORKLOADS[name]()
    run = interpret(graph)
    peak = live_peak(occupancy(unroll(graph)))
    assert (peak.bytes, peak.by_role) == (run.peak, run.by_role)


@pytest.mark.parametrize("name", WORKLOADS)
def test_an_unrolled_model_costs_and_peaks_the_same(name: str) -> None:
    graph = WORKLOADS[name]()
    flat = graph.flatten()
    flat.check()
    one, other = (live_peak(occupancy(unroll(g))) for g in (graph, flat))
    assert (one.bytes, one.by_role) == (other.bytes, other.by_role)
    assert flat.parameters == graph.parameters
    device = pk.device("h100-sxm")
    cost, unrolled = price_program(graph, device), price_program(flat, device)
    assert unrolled.flops == cost.flops
    for figure in ("bound", "io", "tiled", "vector_work"):
        assert getattr(unrolled, figure) == pytest.approx(getattr(cost, figure), rel=1e-12)
    for table in ("traffic", "io_lower_bound", "limited_by"):
        mine, theirs = getattr(cost, table), getattr(unrolled, table)
        assert mine.keys() == theirs.keys()
        assert np.allclose([mine[k] for k in mine], [theirs[k] for k in mine], rtol=1e-12)
