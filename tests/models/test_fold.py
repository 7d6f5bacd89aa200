"""Folding: a program written out layer by layer becomes blocks and families, and stays the same program.

Sameness is judged here by unrolling both graphs: step by step the same operators on the same storages, up to the names.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import peakline as pk
from peakline.memory.footprint import footprint
from peakline.memory.lifetimes import Program, unroll
from peakline.models.capture.fold import fold
from peakline.models.capture.periods import find_runs, numbers, tensor_kinds
from peakline.models.dtypes import dtype
from peakline.models.graph import Block, Graph, Operator, Tensor

LANGUAGE = {"batch": 2, "seq": 64}
LISTS = ("update_pass", "newton_schulz", "release", "aten._foreach_add_")
"""Types whose operators take lists of tensors, in any order."""


def count(graph: Graph) -> int:
    return sum(1 for _ in graph.operators())


def assert_same_program(flat: Graph, folded: Graph) -> None:
    """Both unrolled: the same operators on storages that correspond one to one, of equal sizes, births and deaths."""
    folded.check()
    one, other = unroll(flat), unroll(folded)
    assert len(one.steps) == len(other.steps)
    partner: dict[int, int] = {}
    for a, b in zip(one.steps, other.steps):
        assert (a.operator.type, a.operator.phase) == (b.operator.type, b.operator.phase)
        assert (len(a.makes), len(a.touches)) == (len(b.makes), len(b.touches))
        pairs = [*zip(a.makes, b.makes)]
        if a.operator.type not in LISTS:
            pairs += zip(a.touches, b.touches)
            assert dict(a.operator.attributes) == dict(b.operator.attributes)
        for x, y in pairs:
            assert partner.setdefault(x, y) == y
    found = set(partner.values())
    for a, b in zip(one.steps, other.steps):
        assert sorted(partner[x] for x in a.touches if x in partner) == sorted(y for y in b.touches if y in found)
    assert len(set(partner.values())) == len(partner)
    for x, y in partner.items():
        s, t = one.storages[x].tensor, other.storages[y].tensor
        assert (s.shape, s.dtype, s.role, s.trainable) == (t.shape, t.dtype, t.role, t.trainable)
        assert (one.births[x], one.deaths[x]) == (other.births[y], other.deaths[y])
    assert len(one.previous) == len(other.previous)
    assert _everything(one) == _everything(other)


def _everything(program: Program) -> list[tuple[Any, ...]]:
    """Role, bytes, birth and death of every storage that is ever there."""
    resident = set(program.resident)
    return sorted(
        (s.tensor.role, int(program.sizes[k]), program.births[k], program.deaths[k])
        for k, s in enumerate(program.storages)
        if k in resident or program.births[k] >= 0
    )


# ---- the catalogue ---------------------------------------------------------------------------------------------------
CASES: dict[str, tuple[Any, float]] = {
    # how to build it, and how many operators it may have beside the builder's
    "gpt2": (lambda: pk.training_step("gpt2", **LANGUAGE), 1.0),
    "gpt2, gradients kept": (lambda: pk.training_step("gpt2", **LANGUAGE, set_to_none=False), 1.0),
    "gpt2, recomputed": (lambda: pk.training_step("gpt2", **LANGUAGE, recompute="full"), 1.0),
    "gpt2, fused": (lambda: pk.training_step("gpt2", **LANGUAGE, optimizer="adamw-fused"), 1.0),
    "gpt2, sgd": (lambda: pk.training_step("gpt2", **LANGUAGE, optimizer="sgd"), 1.0),
    "gpt2, adam loop": (lambda: pk.training_step("gpt2", **LANGUAGE, optimizer="adam-loop"), 1.0),
    "gpt2, autocast": (lambda: pk.training_step("gpt2", **LANGUAGE, dtype="fp32", autocast="bf16"), 1.0),
    "gpt2, microbatches": (lambda: pk.training_step("gpt2", **LANGUAGE, accumulation=3), 1.7),
    "llama": (lambda: pk.training_step("llama-2-7b", **LANGUAGE), 1.0),
    "llama, autocast": (lambda: pk.training_step("llama-2-7b", **LANGUAGE, dtype="fp32", autocast="bf16"), 1.0),
    "llama, prefill": (lambda: pk.prefill("llama-2-7b", **LANGUAGE), 1.0),
    "llama, decode": (lambda: pk.decode("llama-2-7b", batch=2, context=64), 1.0),
    "bert": (lambda: pk.training_step("bert-base", **LANGUAGE), 1.0),
    "t5": (lambda: pk.training_step("t5-small", **LANGUAGE), 1.0),
    "gemma-2, alternating windows": (lambda: pk.training_step("gemma-2-2b", **LANGUAGE), 1.0),
    "mixtral": (lambda: pk.training_step("mixtral-8x7b", **LANGUAGE), 1.0),
    "vit": (lambda: pk.training_step("vit-b16", batch=2), 1.0),
    "resnet": (lambda: pk.training_step("resnet50", batch=2), 0.7),
}


@cache
def case_of(case: str) -> tuple[Graph, Graph, Graph]:
    """The builder's graph, the flat one, and the flat one folded."""
    graph = CASES[case][0]()
    flat = graph.flatten()
    return graph, flat, fold(flat)


@pytest.mark.parametrize("case", CASES)
def test_a_flattened_model_folds_back_to_the_same_program(case: str) -> None:
    graph, flat, folded = case_of(case)
    assert_same_program(flat, folded)
    assert count(folded) <= CASES[case][1] * count(graph)
    assert count(folded) < count(flat)


@pytest.mark.parametrize("case", CASES)
def test_memory_work_and_time_do_not_change(case: str) -> None:
    _, flat, folded = case_of(case)
    before, after = pk.estimate(flat, "h100-sxm"), pk.estimate(folded, "h100-sxm")
    for figure in ("live", "allocated", "reserved", "retries"):
        assert getattr(after.memory, figure) == getattr(before.memory, figure), figure
    assert after.memory.by_role == before.memory.by_role
    assert after.cost.flops == before.cost.flops
    assert after.time == pytest.approx(before.time, rel=1e-9)
    for level, moved in before.cost.traffic.items():
        assert after.cost.traffic[level] == pytest.approx(moved, rel=1e-9)


def test_an_optimizer_over_matrices_folds_too() -> None:
    graph = pk.training_step("gpt2", **LANGUAGE, optimizer="muon")
    assert_same_program(graph.flatten(), fold(graph.flatten()))
    assert count(fold(graph.flatten())) == count(graph)


@pytest.mark.parametrize("case", ["gpt2", "gpt2, recomputed", "gemma-2, alternating windows", "t5", "resnet"])
def test_flattening_gives_the_names_back(case: str) -> None:
    _, flat, folded = case_of(case)
    again = folded.flatten()
    assert set(again.tensors) == set(flat.tensors)
    assert [o.name for o in again.blocks[0].operators] == [o.name for o in flat.blocks[0].operators]
    assert [o.module for o in again.blocks[0].operators] == [o.module for o in flat.blocks[0].operators]
    if case != "gemma-2, alternating windows":
        for mine, theirs in zip(again.blocks[0].operators, flat.blocks[0].operators):
            assert sorted(mine.inputs) == sorted(theirs.inputs)
            assert sorted(mine.outputs) == sorted(theirs.outputs)


def test_a_sweep_of_configurations_folds_too() -> None:
    sweep = pk.training_step("gpt2", batch=np.array([1, 2, 8]), seq=64)
    flat = sweep.flatten()
    folded = fold(flat)
    assert count(folded) == count(sweep)
    before, after = (footprint(unroll(g), pk.device("h100-sxm")) for g in (flat, folded))
    assert before.live.tolist() == after.live.tolist()
    assert before.reserved.tolist() == after.reserved.tolist()


def test_what_does_not_repeat_is_left_alone() -> None:
    flat = pk.inference("resnet-8", batch=1).flatten()
    assert fold(flat) is flat
    nothing = Graph("nothing", {}, ())
    assert count(fold(nothing)) == 0


def test_a_graph_with_families_may_be_given_as_it_is() -> None:
    graph = pk.training_step("gpt2", **LANGUAGE)
    assert count(fold(graph)) == count(graph)
    assert fold(graph).families == graph.families == {"transformer.h": 12}


def test_weights_are_counted_as_before() -> None:
    graph = pk.training_step("llama-2-7b", **LANGUAGE)
    assert fold(graph.flatten()).parameters == graph.parameters


# ---- names are a guide, not the rule ---------------------------------------------------------------------------------
def anonymous(flat: Graph, *, modules: bool) -> Graph:
    """Tensors and operators renamed to numbers; modules too, unless they are to stay."""
    name = {n: f"t{i}" for i, n in enumerate(flat.tensors)}
    tensors = {
        name[n]: replace(t, name=name[n], storage=name[t.storage] if t.storage else None)
        for n, t in flat.tensors.items()
    }
    operators = tuple(
        replace(
            o, name=f"op{i}", module=o.module if modules else "", inputs=tuple(name[n] for n in o.inputs),
            outputs=tuple(name[n] for n in o.outputs),
        )
        for i, o in enumerate(flat.blocks[0].operators)
    )  # fmt: skip
    return replace(flat, tensors=tensors, blocks=(Block("main", operators),))


@pytest.mark.parametrize("modules", [True, False])
@pytest.mark.parametrize("model", ["gpt2", "llama-2-7b"])
def test_layers_are_recognised_without_names(model: str, modules: bool) -> None:
    graph = pk.training_step(model, **LANGUAGE)
    flat = anonymous(graph.flatten(), modules=modules)
    folded = fold(flat)
    assert_same_program(flat, folded)
    assert count(folded) <= 1.3 * count(graph)
    before, after = (footprint(unroll(g), pk.device("h100-sxm")) for g in (flat, folded))
    assert (before.live, before.allocated) == (after.live, after.allocated)


# ---- programs by hand ------------------------------------------------------------------------------------------------
def byte(name: str, size: int = 512, role: str = "activation", **more: Any) -> Tensor:
    return Tensor(name, (size,), dtype("uint8"), role, **more)  # type: ignore[arg-type]


class Writer:
    """Writes a flat program line by line."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.operators: list[Operator] = []
        self.previous: dict[str, str] = {}

    def given(self, name: str, size: int = 512, role: str = "parameter") -> str:
        self.tensors[name] = byte(name, size, role)
        return name

    def run(self, name: str, inputs: list[str], size: int = 512, *, kind: str = "copy", storage: str | None = None,
            role: str = "activation", phase: str = "forward") -> str:  # fmt: skip
        out = f"{name}.out"
        self.tensors[out] = byte(out, size, role, storage=storage)
        self.operators.append(
            Operator(name, kind, tuple(inputs), (out,), {}, phase, name.rpartition(".")[0])  # type: ignore[arg-type]
        )
        return out

    def release(self, name: str, inputs: list[str]) -> None:
        self.operators.append(Operator(name, "release", tuple(inputs), (), {}, "forward", name.rpartition(".")[0]))

    def graph(self) -> Graph:
        blocks = (Block("step", tuple(self.operators)),)
        graph = Graph("by hand", self.tensors, blocks, previous=self.previous)
        graph.check()
        return graph


def chain(layers: int, *, tap: int | None = None, odd: int | None = None) -> Graph:
    """x → layer → layer → …; `tap`: the head also reads that layer's output; `odd`: that layer is wider."""
    w = Writer()
    x = w.given("x", role="input")
    for i in range(layers):
        w.given(f"net.{i}.weight", 2048)
    taps = []
    for i in range(layers):
        wide = 4096 if i == odd else 1024
        h = w.run(f"net.{i}.up", [x, f"net.{i}.weight"], wide)
        h = w.run(f"net.{i}.act", [h], wide)
        h = w.run(f"net.{i}.down", [h])
        h = w.run(f"net.{i}.norm", [h])
        x = w.run(f"net.{i}.add", [h, x])
        if i == tap:
            taps.append(x)
    w.run("head", [x, *taps])
    return w.graph()


def test_a_chain_of_layers_becomes_one_block_with_a_carry() -> None:
    folded = fold(chain(12))
    assert_same_program(chain(12), folded)
    assert [(b.repeat, b.family, len(b.operators)) for b in folded.blocks] == [(12, "net", 5), (1, None, 1)]
    ((port, carry),) = folded.blocks[0].carries.items()
    assert (carry.initial, carry.following) == ("x", "net.add.out")
    assert folded.blocks[0].operators[0].inputs == (port, "net.weight")
    assert folded.blocks[0].operators[0].module == "net"


def test_a_layer_that_differs_stands_between_two_families() -> None:
    folded = fold(chain(12, odd=5))
    assert_same_program(chain(12, odd=5), folded)
    assert folded.families == {"net": 5, "net@6": 6}
    assert folded.flatten().tensors.keys() == chain(12, odd=5).tensors.keys()


def test_a_result_read_from_outside_ends_a_family() -> None:
    """Outside a family a bare name means the layer executed last, so the layer that is tapped must be that."""
    folded = fold(chain(12, tap=3))
    assert_same_program(chain(12, tap=3), folded)
    assert folded.families == {"net": 4, "net@4": 8}


def test_too_many_taps_leave_the_program_as_it_is() -> None:
    w = Writer()
    x, taps = w.given("x", role="input"), []
    for i in range(10):
        for part in ("a", "b", "c"):
            x = w.run(f"net.{i}.{part}", [x])
        taps.append(x)
    for i, tap in enumerate(reversed(taps)):
        x = w.run(f"up{i}", [x, tap], 128 * (i + 1))
    flat = w.graph()
    assert_same_program(flat, fold(flat))


def test_a_skip_over_two_layers_is_a_carry_of_a_carry() -> None:
    w = Writer()
    older, old = w.given("x0", role="input"), w.given("x1", role="input")
    for i in range(8):
        h = w.run(f"net.{i}.mix", [old, older])
        h = w.run(f"net.{i}.act", [h])
        h = w.run(f"net.{i}.out", [h])
        older, old = old, h
    w.run("head", [old])
    flat = w.graph()
    folded = fold(flat)
    assert_same_program(flat, folded)
    assert count(folded) == 4
    assert len(folded.blocks[0].carries) == 2


def test_memory_that_all_layers_write_in_place_stays_one() -> None:
    w = Writer()
    x = first = w.run("embed", [w.given("ids", role="input")])
    for i in range(6):
        h = w.run(f"net.{i}.a", [x])
        h = w.run(f"net.{i}.b", [h])
        x = w.run(f"net.{i}.add_", [x, h], storage=first)
    w.run("head", [x])
    flat = w.graph()
    folded = fold(flat)
    assert_same_program(flat, folded)
    assert folded.families == {"net": 6}


def test_a_variable_freed_in_the_next_layer_keeps_its_life() -> None:
    w = Writer()
    x, held = w.given("x", role="input"), None
    for i in range(9):
        h = w.run(f"net.{i}.a", [x])
        x = w.run(f"net.{i}.b", [h])
        if held:
            w.release(f"net.{i}.release", [held])
        held = h
        x = w.run(f"net.{i}.c", [x])
    w.release("end", [held or x])
    flat = w.graph()
    folded = fold(flat)
    assert_same_program(flat, folded)
    assert count(folded) <= 3 + 4 + 3


def stepping(layers: int, *, by_layer: bool) -> Graph:
    """Gradients outlive the step: freed at the start of the next, all at once or layer by layer."""
    w = Writer()
    x = w.given("x", role="input")
    for i in range(layers):
        w.given(f"net.{i}.weight", 2048)
    for i in range(layers):
        w.given(f"net.{i}.weight.old", 2048, "gradient")
    old = [f"net.{i}.weight.old" for i in range(layers)]
    if by_layer:
        for i, name in enumerate(old):
            w.release(f"net.{i}.zero", [name])
    else:
        w.release("zero_grad", old)
    kept = []
    for i in range(layers):
        kept.append((x, h := w.run(f"net.{i}.up", [x, f"net.{i}.weight"])))
        x = w.run(f"net.{i}.act", [h])
        x = w.run(f"net.{i}.out", [x])
    g = w.run("loss", [x], phase="backward")
    for i in reversed(range(layers)):
        before, h = kept[i]
        g = w.run(f"net.{i}.out.backward", [g, h], phase="backward")
        w.run(f"net.{i}.weight.grad", [g, before], 2048, role="gradient", phase="backward")
        g = w.run(f"net.{i}.up.backward", [g, f"net.{i}.weight"], phase="backward")
        w.previous[f"net.{i}.weight.old"] = f"net.{i}.weight.grad.out"
    grads = [f"net.{i}.weight.grad.out" for i in range(layers)]
    weights = [f"net.{i}.weight" for i in range(layers)]
    both = [name for pair in zip(weights, grads) for name in pair]
    w.operators.append(
        Operator("optimizer", "aten._foreach_add_", tuple(both), (), {"reads": 7, "writes": 5}, "optimizer")
    )
    return w.graph()


@pytest.mark.parametrize("by_layer", [True, False])
def test_what_a_step_leaves_to_the_next_survives(by_layer: bool) -> None:
    flat = stepping(10, by_layer=by_layer)
    folded = fold(flat)
    assert_same_program(flat, folded)
    assert folded.previous == {"net.weight.old": "net.weight.grad.out"}
    assert folded.families == {"net": 10}
    assert count(folded) <= 3 + 3 + 3 + (1 if not by_layer else 10)
    assert folded.flatten().previous == flat.previous
    before, after = (footprint(unroll(g), pk.device("h100-sxm")) for g in (flat, folded))
    assert (before.live, before.allocated, before.reserved) == (after.live, after.allocated, after.reserved)


def test_a_list_over_all_layers_is_one_reference() -> None:
    folded = fold(stepping(10, by_layer=False))
    (optimizer,) = [o for _, o in folded.operators() if o.phase == "optimizer"]
    assert set(optimizer.inputs) == {"net.weight[*]", "net.weight.grad.out[*]"}
    (flat,) = [o for _, o in folded.flatten().operators() if o.phase == "optimizer"]
    assert dict(flat.attributes) == {"reads": 7, "writes": 5}  # bytes, not a number of tensors


def test_results_in_place_of_a_list_stay_in_place() -> None:
    """A recorded foreach optimizer: views of every layer's weight, made by one operator."""
    flat = stepping(10, by_layer=False)
    *rest, last = flat.blocks[0].operators
    weights = [f"net.{i}.weight" for i in range(10)]
    views = {f"{n}'": byte(f"{n}'", 2048, "parameter", storage=n) for n in weights}
    foreach = replace(last, outputs=tuple(views))
    flat = replace(flat, tensors={**flat.tensors, **views}, blocks=(Block("step", (*rest, foreach)),))
    folded = fold(flat)
    assert_same_program(flat, folded)
    assert folded.families == {"net": 10}
    assert [o.outputs for _, o in folded.operators() if o.phase == "optimizer"] == [("net.weight'[*]",)]


# ---- whatever the program --------------------------------------------------------------------------------------------
@st.composite
def programs(draw: st.DrawFn) -> Graph:
    """Repeated motifs whose references reach where they like, with irregular layers, taps and lists."""
    w = Writer()
    w.given("x", role="input")
    made = ["x"]
    for stretch in range(draw(st.integers(1, 2))):
        layers = draw(st.integers(2, 6))
        path = draw(st.sampled_from(["net", f"stack{stretch}", "model.layers"]))
        motif = draw(
            st.lists(
                st.tuples(
                    st.sampled_from(["last", "weight", "previous layer", "two back", "constant", "first"]),
                    st.integers(1, 3),
                    st.booleans(),
                ),
                min_size=4,
                max_size=7,
            )
        )
        odd = draw(st.integers(-3, layers - 1))
        outs: list[list[str]] = []
        for i in range(layers):
            label = f"{path}.{stretch * 10 + i}"
            mine: list[str] = []
            for j, (reach, size, view) in enumerate(motif):
                last = mine[-1] if mine else made[-1]
                other = {
                    "last": last,
                    "weight": f"{label}.w{j}",
                    "previous layer": outs[-1][min(j, len(outs[-1]) - 1)] if outs else "x",
                    "two back": outs[-2][j] if len(outs) > 1 else "x",
                    "constant": made[0],
                    "first": outs[0][j] if outs else last,
                }[reach]
                if reach == "weight":
                    w.given(other, 512 * size)
                wide = size + 3 if i == odd and j == 1 else size
                owner = w.tensors[other].storage or other
                in_place = owner if view and reach != "weight" else None
                bytes_ = int(w.tensors[owner].bytes) if in_place else 512 * wide
                mine.append(w.run(f"{label}.op{j}", [last, other], bytes_, storage=in_place))
            outs.append(mine)
            made.append(mine[-1])
        if draw(st.booleans()):
            tap = draw(st.sampled_from(draw(st.sampled_from(outs))))
            made.append(w.run(f"tap{stretch}", [made[-1], tap]))
        if draw(st.booleans()):
            w.release(f"release{stretch}", [layer[0] for layer in outs])
    return w.graph()


@given(programs(), st.booleans())
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_program_is_changed(flat: Graph, named: bool) -> None:
    if not named:
        flat = anonymous(flat, modules=False)
    folded = fold(flat)
    assert_same_program(flat, folded)
    assert count(folded) <= count(flat)
    assert_same_program(flat, folded.flatten())


# ---- finding repetitions ---------------------------------------------------------------------------------------------
def brute_force_saved(tokens: list[int]) -> int:
    """Most operators that disjoint runs fold away, by trying every run (each saves at least 8)."""
    n = len(tokens)
    best = [0] * (n + 1)
    for stop in range(1, n + 1):
        best[stop] = best[stop - 1]
        for period in range(1, stop // 2 + 1):
            start = stop - period
            while start >= period and tokens[start - period : start] == tokens[start : start + period]:
                start -= period
                saved = stop - start - period
                if saved >= 8:
                    best[stop] = max(best[stop], best[start] + saved)
    return best[n]


@given(st.lists(st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.integers(1, 5)), max_size=4))
@settings(max_examples=100, deadline=None)
def test_runs_are_found_where_nothing_overlaps(parts: list[tuple[list[int], int]]) -> None:
    tokens = [t for motif, repeat in parts for t in motif * repeat]
    runs = find_runs(np.asarray(tokens, dtype=np.int64), [""] * len(tokens))
    for run in runs:
        first = tokens[run.start : run.start + run.period]
        assert tokens[run.start : run.stop] == first * run.count
    assert all(a.stop <= b.start for a, b in pairwise(runs))
    saved = sum(run.saved for run in runs)
    assert saved <= brute_force_saved(tokens)
    assert (saved > 0) == (brute_force_saved(tokens) > 0)


def test_layers_begin_where_their_number_does() -> None:
    flat = pk.training_step("llama-2-7b", **LANGUAGE).flatten()
    operators = flat.blocks[0].operators
    tokens = numbers(operators, *tensor_kinds(flat.tensors))
    runs = find_runs(tokens, [o.module for o in operators])
    assert [run.count for run in runs] == [32, 32]
    forward, backward = runs
    assert operators[forward.start].module.startswith("model.layers.0.")
    assert operators[backward.start].module.startswith("model.layers.31.")


def test_time_grows_with_the_length_of_the_program() -> None:
    """Processor time for an 80-layer step of 17,000 operators; a quarter of it may not take more than the whole."""
    small, large = (
        pk.training_step("llama-2-70b", batch=1, seq=64, recompute="full", accumulation=n).flatten() for n in (1, 2)
    )
    seconds = []
    for flat in (small, large):
        start = time.process_time()
        folded = fold(flat)
        seconds.append(time.process_time() - start)
        assert count(folded) < count(flat) / 20
    ratio = count(large) / count(small)
    assert seconds[1] < 2.5 * ratio * seconds[0] + 0.2
    assert seconds[1] < 5.0
