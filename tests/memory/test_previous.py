"""Tensors that one step leaves to the next: resident when a step starts, dead before it ends.

The truth here is a program written out by hand: several steps in one long list of allocations and frees, as a process
makes them, whose live bytes are counted and which one allocator replays from beginning to end.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import peakline as pk
from peakline.memory.caching_allocator import Allocator, replay
from peakline.memory.events import EventBuilder
from peakline.memory.footprint import footprint
from peakline.memory.lifetimes import unroll
from peakline.memory.live import live_peak, occupancy, program_peak
from peakline.memory.requests import request_streams
from peakline.models.dtypes import dtype
from peakline.models.graph import Block, Carry, Graph, GraphError, Operator, Tensor
from peakline.models.select import select
from peakline.scheduling import problem_of

MB = 1 << 20
UPDATE = {"writes": 1, "tensors": 1, "work": 2}


def tensor(name: str, size: object, role: str = "activation", **kwargs: object) -> Tensor:
    """`size` bytes."""
    return Tensor(name, (size,), dtype("uint8"), role, **kwargs)  # type: ignore[arg-type]


def training_loop(loss: int = 3 * MB, gradient: int = 5 * MB) -> Graph:
    """`for …: loss = model(x); optimizer.zero_grad(); loss.backward(); optimizer.step()`, two parameters.

    The gradients of the step before live until `zero_grad` after the forward, the loss until the next one is made.
    """
    tensors = [
        tensor("a", gradient, "parameter"),
        tensor("b", 7 * MB, "parameter"),
        tensor("old.a.grad", gradient, "gradient"),
        tensor("old.b.grad", 7 * MB, "gradient"),
        tensor("old.loss", loss),
        tensor("hidden", 11 * MB),
        tensor("loss", loss),
        tensor("a.grad", gradient, "gradient"),
        tensor("b.grad", 7 * MB, "gradient"),
        tensor("a.momentum", gradient, "optimizer_state"),
    ]
    operators = (
        Operator("forward", "copy", ("a",), ("hidden",)),
        Operator("cross_entropy", "copy", ("hidden", "b"), ("loss",)),
        Operator("assign", "release", ("old.loss",), ()),
        Operator("zero_grad", "release", ("old.a.grad", "old.b.grad"), ()),
        Operator("b.backward", "copy", ("hidden",), ("b.grad",), phase="backward"),
        Operator("a.backward", "copy", ("hidden", "loss"), ("a.grad",), phase="backward"),
        Operator("momentum", "update_pass", ("a.momentum", "a.grad"), (), UPDATE, "optimizer"),
        Operator("step", "update_pass", ("b", "b.grad"), (), UPDATE, "optimizer"),
    )
    left = {"old.a.grad": "a.grad", "old.b.grad": "b.grad", "old.loss": "loss"}
    graph = Graph("loop", {t.name: t for t in tensors}, (Block("main", operators),), previous=left)
    graph.check()
    return graph


def written_out(steps: int) -> EventBuilder:
    """The same loop by hand."""
    events = EventBuilder()
    events.alloc("a", 5 * MB)
    events.alloc("b", 7 * MB)
    for n in range(steps):
        events.alloc(f"hidden {n}", 11 * MB)
        events.alloc(f"loss {n}", 3 * MB)
        if n:
            events.free(f"loss {n - 1}")
            events.free(f"a.grad {n - 1}")
            events.free(f"b.grad {n - 1}")
        events.alloc(f"b.grad {n}", 7 * MB)
        events.alloc(f"a.grad {n}", 5 * MB)
        events.free(f"hidden {n}")
        if not n:
            events.alloc("a.momentum", 5 * MB)
    return events


def by_hand(graph: Graph, steps: int) -> EventBuilder:
    """Any flat graph without views, step after step, from its definition alone."""
    (block,) = graph.blocks
    events = EventBuilder()
    made = {o for operator in block.operators for o in operator.outputs}
    left = dict(graph.previous)
    for t in graph.tensors.values():
        if t.name not in made and t.name not in left:
            events.alloc(t.name, int(t.bytes))
    last = {name: i for i, o in enumerate(block.operators) for name in (*o.inputs, *o.outputs)}
    for n in range(steps):
        for i, operator in enumerate(block.operators):
            for name in operator.outputs:
                events.alloc((name, n), int(graph.tensors[name].bytes))
            # in the order in which tensors are declared, as for any operator
            for name in graph.tensors:
                if last.get(name) != i:
                    continue
                if name in left:
                    if n:
                        events.free((left[name], n - 1))
                elif name in made and name not in left.values():
                    events.free((name, n))
    return events


def streams(graph: Graph, steps: int) -> list:
    return request_streams(unroll(graph), repetitions=steps)


# ---- lifetimes -------------------------------------------------------------------------------------------------------
def test_what_a_step_leaves_lives_to_its_end_and_dies_in_the_next_after_its_last_use() -> None:
    program = unroll(training_loop())
    number = {s.name: key for key, s in enumerate(program.storages)}
    end = len(program.steps)
    assert program.deaths[number["old.loss"]] == 2
    assert program.deaths[number["old.a.grad"]] == program.deaths[number["old.b.grad"]] == 3
    assert [program.deaths[number[name]] for name in ("loss", "a.grad", "b.grad", "a")] == [end] * 4
    assert program.deaths[number["hidden"]] == 5
    assert number["old.loss"] in program.resident
    assert number["loss"] not in program.resident


def test_peak_live_bytes_are_those_of_a_steady_step_written_out() -> None:
    events = written_out(3).build()
    assert program_peak(unroll(training_loop())).bytes == max(events.live_bytes())
    peak = program_peak(unroll(training_loop()))
    assert peak.by_role == {
        "parameter": 12 * MB, "optimizer_state": 5 * MB, "gradient": 12 * MB, "activation": (11 + 3 + 3) * MB,
    }  # fmt: skip
    assert unroll(training_loop()).steps[peak.step].name == "cross_entropy"


def test_without_the_mapping_the_same_graph_peaks_lower() -> None:
    """Old gradients would never leave and the loss die early: another program, and another figure."""
    graph = training_loop()
    assert program_peak(unroll(replace(graph, previous={}))).bytes != program_peak(unroll(graph)).bytes


def test_occupancy_and_the_sum_over_storages_agree() -> None:
    program = unroll(training_loop())
    table = live_peak(occupancy(program))
    assert (table.bytes, table.step, table.by_role) == (
        program_peak(program).bytes,
        program_peak(program).step,
        program_peak(program).by_role,
    )


def test_a_sweep_peaks_configuration_by_configuration() -> None:
    loss = np.array([1, 3, 40], dtype=np.int64) * MB
    sweep = training_loop(loss)
    together = program_peak(unroll(sweep)).bytes
    apart = [program_peak(unroll(training_loop(int(size)))).bytes for size in loss]
    assert together.tolist() == apart
    assert [int(program_peak(unroll(select(sweep, i, i + 1))).bytes[0]) for i in range(3)] == apart
    device = pk.device("a100-80gb")
    replayed = footprint(unroll(sweep), device)
    single = [footprint(unroll(training_loop(int(size))), device) for size in loss]
    assert replayed.reserved.tolist() == [m.reserved for m in single]
    assert replayed.allocated.tolist() == [m.allocated for m in single]


# ---- requests --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_the_allocator_sees_what_the_process_asks(steps: int) -> None:
    truth = replay(written_out(steps).build())
    allocator = Allocator()
    for stream in streams(training_loop(), steps):
        stream.events.check()
        allocator.run(stream.events)
    assert (allocator.peak_allocated, allocator.peak_reserved) == (truth.peak_allocated, truth.peak_reserved)
    assert (allocator.allocated, allocator.reserved) == (truth.end.allocated, truth.end.reserved)


def test_the_first_step_finds_nothing_of_a_step_before() -> None:
    first, second, third = streams(training_loop(), 3)
    size = [b - a for a, b in ((0, 5 * MB), (0, 7 * MB))]
    assert first.events.inherited == 0
    assert first.events.sizes[:2] == size
    assert sum(op < 0 for op in first.events.ops) == 1  # hidden alone
    assert second.events.inherited == 2 + 1 + 3  # parameters, momentum, what the first step left
    assert sum(op < 0 for op in second.events.ops) == 4
    assert second.events == third.events


def test_an_estimate_runs_a_first_and_a_steady_step() -> None:
    loop = training_loop()
    operators = tuple(replace(o, phase="forward") for o in loop.blocks[0].operators)
    tensors = {**loop.tensors, "a.momentum": tensor("a.momentum", 5 * MB, "buffer")}
    inference = replace(loop, tensors=tensors, blocks=(Block("main", operators),))
    memory = footprint(unroll(inference), pk.device("a100-80gb"))
    truth = replay(by_hand(inference, 2).build())
    assert memory.live == truth.peak_requested
    assert memory.allocated == truth.peak_allocated
    assert memory.reserved == truth.peak_reserved


@dataclass
class Program:
    """A random straight-line program."""

    tensors: list[Tensor] = field(default_factory=list)
    operators: list[Operator] = field(default_factory=list)
    previous: dict[str, str] = field(default_factory=dict)


@st.composite
def loops(draw: st.DrawFn) -> Graph:
    """Operators that each make a tensor and read some; some tensors outlive the step, to be used and released."""
    count = draw(st.integers(2, 9))
    size = st.integers(1, 40).map(lambda n: n * 200_000)
    sizes = [draw(size) for _ in range(count)]
    left = draw(st.sets(st.integers(0, count - 1), min_size=1))
    tensors = [tensor("w", draw(size), "parameter")]
    tensors += [tensor(f"old{i}", sizes[i]) for i in sorted(left)]
    tensors += [tensor(f"t{i}", sizes[i]) for i in range(count)]
    operators = []
    for i in range(count):
        read = draw(st.lists(st.integers(0, i - 1), max_size=2, unique=True)) if i else []
        operators.append(Operator(f"op{i}", "copy", ("w", *(f"t{j}" for j in read)), (f"t{i}",)))
    for i in sorted(left):
        place = draw(st.integers(0, len(operators)))
        operators.insert(place, Operator(f"release{i}", "release", (f"old{i}",), ()))
    previous = {f"old{i}": f"t{i}" for i in left}
    graph = Graph("random", {t.name: t for t in tensors}, (Block("main", tuple(operators)),), previous=previous)
    graph.check()
    return graph


@given(loops(), st.integers(1, 3))
@settings(max_examples=150, deadline=None)
def test_random_loops_replay_as_their_steps_written_out(graph: Graph, steps: int) -> None:
    truth = replay(by_hand(graph, steps).build())
    allocator, requested = Allocator(), 0
    for stream in streams(graph, steps):
        requested = max(requested, allocator.run(stream.events).peak_requested)
    assert requested == truth.peak_requested
    assert (allocator.peak_allocated, allocator.peak_reserved) == (truth.peak_allocated, truth.peak_reserved)
    assert allocator.allocated == truth.end.allocated
    if steps > 1:
        assert program_peak(unroll(graph)).bytes == truth.peak_requested


# ---- layers ----------------------------------------------------------------------------------------------------------
def layered() -> Graph:
    """Three layers with a gradient each, freed layer by layer while the forward of the next step runs."""
    tensors = [
        tensor("x", 2 * MB, "input"),
        tensor("layers.w", 4 * MB, "parameter", family="layers"),
        tensor("layers.old", 4 * MB, "gradient", family="layers"),
        tensor("layers.carry", MB, family="layers"),
        tensor("layers.out", MB, family="layers"),
        tensor("layers.grad", 4 * MB, "gradient", family="layers"),
    ]
    forward = (
        Operator("layers.zero", "release", ("layers.old",), ()),
        Operator("layers.mix", "copy", ("layers.carry", "layers.w"), ("layers.out",)),
    )
    backward = (Operator("layers.backward", "copy", ("layers.out",), ("layers.grad",), phase="backward"),)
    blocks = (
        Block("forward", forward, 3, "layers", carries={"layers.carry": Carry("x", "layers.out")}),
        Block("backward", backward, 3, "layers", reverse=True),
    )
    graph = Graph("layered", {t.name: t for t in tensors}, blocks, previous={"layers.old": "layers.grad"})
    graph.check()
    return graph


def test_every_layer_leaves_its_own() -> None:
    program = unroll(layered())
    assert {program.storages[k].name: program.storages[v].name for k, v in program.previous.items()} == {
        f"layers.{i}.old": f"layers.{i}.grad" for i in range(3)
    }
    deaths = {s.name: program.deaths[key] for key, s in enumerate(program.storages)}
    assert [deaths[f"layers.{i}.old"] for i in range(3)] == [0, 2, 4]


def test_flattening_keeps_what_steps_leave() -> None:
    graph, flat = layered(), layered().flatten()
    flat.check()
    assert flat.previous == {f"layers.{i}.old": f"layers.{i}.grad" for i in range(3)}
    assert program_peak(unroll(flat)).bytes == program_peak(unroll(graph)).bytes
    truth = replay(by_hand(replace(flat, tensors=_own(flat)), 3).build())
    allocator = Allocator()
    for stream in streams(graph, 3):
        allocator.run(stream.events)
    assert (allocator.peak_allocated, allocator.peak_reserved) == (truth.peak_allocated, truth.peak_reserved)


def _own(flat: Graph) -> dict[str, Tensor]:
    """What operators touch: a flat graph of layers keeps the names of carries, which stand for nothing."""
    used = {n for o in flat.blocks[0].operators for n in (*o.inputs, *o.outputs)}
    return {name: t for name, t in flat.tensors.items() if name in used}


# ---- the rest of the product -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("graph", [training_loop(), layered()], ids=lambda g: g.name)
def test_json_gives_it_back(graph: Graph) -> None:
    assert Graph.from_json(graph.to_json()) == graph


def test_json_of_graphs_that_leave_nothing_does_not_mention_it() -> None:
    assert "previous" not in pk.training_step("gpt2", batch=1, seq=8).to_json()


def test_a_schedule_delivers_what_the_next_step_needs() -> None:
    roles = {t.name: t.role for t in problem_of(training_loop()).tensors}
    assert roles["loss"] == roles["a.grad"] == "output"
    assert roles["hidden"] == "activation"


@pytest.mark.parametrize(
    ("previous", "complaint"),
    [
        ({"ghost": "loss"}, "previous: 'ghost' does not exist"),
        ({"old.loss": "ghost"}, "previous: 'ghost' does not exist"),
        ({"hidden": "loss"}, "'hidden' must exist before the step, but operators make it"),
        ({"old.loss": "a"}, "'a' must be made in the step"),
        ({"old.loss": "hidden"}, f"'old.loss' has {3 * MB} bytes and 'hidden' {11 * MB}"),
        ({"old.a.grad": "loss"}, "the roles must agree"),
        ({"unused": "loss"}, "no operator uses 'unused', so nothing ends its life"),
        ({"old.loss": "loss", "old.loss.2": "loss"}, "'loss' takes two places"),
    ],
)
def test_what_makes_no_sense_is_refused(previous: dict[str, str], complaint: str) -> None:
    graph = training_loop()
    extra = {name: tensor(name, 3 * MB) for name in ("unused", "old.loss.2")}
    with pytest.raises(GraphError, match="previous") as refused:
        replace(graph, tensors={**graph.tensors, **extra}, previous=previous).check()
    assert complaint in str(refused.value)
