"""What a workload changes in a language model's graph: phase, sizes, formats, adapters, kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers_reference import kept_for_backward

from peakline.models.builder import GraphBuilder
from peakline.models.catalogue import entry
from peakline.models.dtypes import dtype
from peakline.models.families.layers import liger_chunks, next_power_of_two, runs
from peakline.models.graph import Graph, Tensor
from peakline.models.operators import Node, operator_type
from peakline.models.operators.moe import experts_hit
from peakline.models.transforms.training import train
from peakline.models.workload import Lora, Workload
from peakline.models.workloads import decode, training_step

SIZES: dict[str, dict[str, Any]] = {
    "training": {"seq": 64}, "prefill": {"seq": 64}, "decode": {"context": 64}, "inference": {"seq": 64},
}  # fmt: skip
ONE_OF_EACH = [
    "llama-3.2-1b", "gemma-2-2b", "mixtral-8x7b", "deepseek-v2-lite", "gpt2", "opt-350m", "bloom-560m", "phi-2",
    "t5-small", "mamba-130m", "bert-base", "roberta-base",
]  # fmt: skip


def build(name: str, phase: str, **options: Any) -> tuple[Graph, Tensor]:
    workload = Workload(phase, **{"batch": 2, **SIZES[phase], **options})  # type: ignore[arg-type]
    model = entry(name)
    b = GraphBuilder(
        name, kind=workload.kind, training=workload.training, autocast=workload.autocast, eager=workload.eager
    )
    result = model.family.build(b, model.config, workload)
    return b.graph(), result


def phases(name: str) -> list[str]:
    return [p for p in SIZES if p in entry(name).family.phases]


CASES = [(name, phase) for name in ONE_OF_EACH for phase in phases(name)]


@pytest.mark.parametrize(("name", "phase"), CASES)
def test_every_phase_survives_json_and_unrolling(name: str, phase: str) -> None:
    graph, result = build(name, phase)
    if phase == "training":
        graph = train(graph, result.name)
    flat = graph.flatten()
    flat.check()
    assert flat.parameters == graph.parameters == entry(name).parameters
    assert Graph.from_json(graph.to_json()) == graph


@pytest.mark.parametrize(("name", "phase"), CASES)
def test_arrays_of_sizes_build_what_each_size_builds_alone(name: str, phase: str) -> None:
    batches, lengths = [1, 2, 8], [17, 64, 100]
    key = next(iter(SIZES[phase]))
    sweep, _ = build(name, phase, **{"batch": np.array(batches), key: np.array(lengths)})
    for i, (batch, length) in enumerate(zip(batches, lengths)):
        alone, _ = build(name, phase, **{"batch": batch, key: length})
        assert list(alone.tensors) == list(sweep.tensors)
        for tensor in alone.tensors.values():
            assert np.broadcast_to(sweep.tensors[tensor.name].bytes, 3)[i] == tensor.bytes, tensor.name


@pytest.mark.parametrize("name", ONE_OF_EACH)
@pytest.mark.parametrize("attention", ["flash", "efficient", "math", "eager"])
def test_every_attention_backend_and_recomputation_trains(name: str, attention: str) -> None:
    graph, loss = build(name, "training", attention=attention)
    for recomputation in ("none", "full", "selective"):
        train(graph, loss.name, recomputation=recomputation)  # type: ignore[arg-type]


def test_unrolled_layers_of_pairs_and_of_late_starts_are_numbered_as_published() -> None:
    gemma, _ = build("gemma-2-2b", "inference")
    names = set(gemma.flatten().tensors)
    assert {f"model.layers.{i}.mlp.down_proj.weight" for i in range(26)} <= names
    deepseek, _ = build("deepseek-v2-lite", "inference")
    names = set(deepseek.flatten().tensors)
    assert "model.layers.0.mlp.down_proj.weight" in names
    assert {f"model.layers.{i}.mlp.gate.weight" for i in range(1, 27)} <= names


def test_a_sequence_past_the_models_limit_is_noted_and_built() -> None:
    graph, _ = build("gpt2", "inference", seq=2000)
    assert "2000 tokens pass the 1024 positions" in graph.notes[0]
    assert build("gpt2", "inference", seq=1024)[0].notes == ()


@pytest.mark.parametrize(
    ("phase", "options", "named"),
    [
        ("training", {"seq": None}, "seq"),
        ("decode", {"context": None}, "context"),
        ("prefill", {"context": 5}, "context"),
    ],
)
def test_a_missing_or_impossible_size_is_named(phase: str, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        build("gpt2", phase, **options)


def test_prefill_and_decode_compute_the_logits_of_one_token() -> None:
    for phase in ("prefill", "decode"):
        assert build("llama-3.2-1b", phase)[1].shape == (2, 1, 128256)
    assert build("llama-3.2-1b", "inference")[1].shape == (2, 64, 128256)


# ---- adapters and quantised weights ----------------------------------------------------------------------------------
def test_adapters_alone_are_trained_and_have_states() -> None:
    """Rank 8 on q and v of Llama-2-7B: 2·8·(4096 + 4096)·32 = 4,194,304, the count in the PEFT documentation."""
    graph, loss = build("llama-2-7b", "training", batch=1, lora=Lora(8))
    assert graph.trainable_parameters == 4194304
    step = train(graph, loss.name)
    assert step.total_bytes("optimizer_state") == pytest.approx(2 * 2 * 4194304, rel=0.01)
    assert step.total_bytes("gradient") == 2 * 4194304


def test_a_frozen_projection_does_not_keep_its_input() -> None:
    graph, loss = build("llama-2-7b", "training", batch=1, lora=Lora(8))
    step = train(graph, loss.name, optimizer=None)
    read = {n for _, op in step.operators() if op.phase == "backward" for n in op.inputs}
    assert "model.layers.mlp.gated.out" not in read  # down_proj's input
    assert "model.layers.input_layernorm.affine.out" in read  # what the adapters of q and v multiply


def test_adapter_targets_that_match_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="c_attn"):
        build("gpt2", "training", lora=Lora(8, targets=("q_proj",)))


def test_four_bit_weights_take_half_a_byte_and_their_scales() -> None:
    """QLoRA (arXiv:2305.14314): 4 bits and 32/64 bits of scale per weight of the linear layers."""
    graph, _ = build("llama-2-7b", "inference", weight_kind=dtype("nf4"))
    linear = 6738415616 - 2 * 32000 * 4096 - 65 * 4096
    assert graph.total_bytes("parameter") == linear * 4.5 / 8 + 2 * (6738415616 - linear)


def test_expanded_weights_are_workspace_and_not_kept() -> None:
    graph, loss = build("llama-3.2-1b", "training", weight_kind=dtype("nf4"), lora=Lora(8))
    largest = 0
    for _, operator in train(graph, loss.name).operators():
        if operator.type == "quantized_linear":
            largest = max(largest, *(int(w) for w in operator_type(operator.type).workspace(Node.of(graph, operator))))
    assert largest == 2 * 2048 * 8192


# ---- kernels ---------------------------------------------------------------------------------------------------------
def kept_by_a_layer(name: str, **options: Any) -> int:
    """Bytes that backward reads of layer 1, per token."""
    graph, loss = build(name, "training", **options)
    kept = kept_for_backward(graph, loss.name)
    return sum(size for tensor, size in kept.items() if tensor.startswith("model.layers.1.")) // (2 * 64)


H, KV, F, HEADS = 2048, 512, 8192, 32  # Llama-3.2-1B


def test_a_layer_of_fused_kernels_keeps_what_its_backwards_read() -> None:
    """Norms keep input, output and rstd; attention q, k, v, out and its log-sum-exp; SwiGLU gate, up and product."""
    norms, attention, mlp = 2 * (2 * H + 2 * H + 4), 2 * (2 * H + 2 * KV) + 4 * HEADS, 2 * 3 * F
    assert kept_by_a_layer("llama-3.2-1b", eager=False) == norms + attention + mlp


def test_a_layer_of_eager_kernels_keeps_a_float32_copy_per_norm_and_the_activated_gate_more() -> None:
    """`LlamaRMSNorm`: a float32 copy, its cast product and the output, and rstd; `silu(gate)` beside gate and up."""
    norms, attention, mlp = 2 * (4 * H + 2 * H + 2 * H + 4), 2 * (2 * H + 2 * KV) + 4 * HEADS, 2 * 4 * F
    assert kept_by_a_layer("llama-3.2-1b") == norms + attention + mlp


def test_a_fused_loss_never_holds_the_logits() -> None:
    graph, _ = build("llama-3.2-1b", "training", loss="fused", eager=False)
    logits = 2 * 64 * 128256
    assert not any(t.elements == logits for t in graph.tensors.values())


@given(st.integers(1, 10**6), st.sampled_from([(32000, 4096), (128256, 4096), (256000, 2304)]))
def test_liger_chunks_cover_all_rows_in_powers_of_two(rows: int, head: tuple[int, int]) -> None:
    vocab, hidden = head
    x = Tensor("x", (rows, hidden), dtype("bf16"))
    chunks = liger_chunks(rows, vocab, x)
    assert 1 <= chunks <= 2 * -(-vocab // hidden)
    assert liger_chunks(np.array([rows]), vocab, x).tolist() == [chunks]  # type: ignore[union-attr]


@given(st.integers(1, 2**40))
def test_next_power_of_two_is_one_and_the_least(n: int) -> None:
    power = next_power_of_two(n)
    assert power & (power - 1) == 0
    assert power >= n > power // 2


# ---- layers that differ ----------------------------------------------------------------------------------------------
@given(st.lists(st.sampled_from("ab"), min_size=1, max_size=40))
def test_runs_of_layers_unroll_to_the_list_they_came_from(kinds: list[str]) -> None:
    unrolled: list[str] = []
    for first, times, group in runs(kinds):
        assert first == len(unrolled)
        unrolled += list(group) * times
    assert unrolled == kinds


def test_alternating_layers_are_one_run_of_pairs() -> None:
    assert list(runs("ab" * 13)) == [(0, 13, ("a", "b"))]
    assert list(runs(["d"] * 3 + ["m"] * 58)) == [(0, 3, ("d",)), (3, 58, ("m",))]


# ---- experts ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("experts", "top_k", "tokens"), [(8, 2, 1), (8, 2, 3), (64, 6, 5), (128, 8, 16), (256, 8, 40)])
def test_experts_hit_is_what_random_routing_hits_on_average(experts: int, top_k: int, tokens: int) -> None:
    generator = np.random.default_rng(0)
    trials = [
        len(np.unique(np.concatenate([generator.choice(experts, top_k, replace=False) for _ in range(tokens)])))
        for _ in range(300)
    ]
    predicted = experts_hit(experts, top_k, tokens * top_k)
    assert np.mean(trials) - 0.02 * experts <= predicted <= np.mean(trials) + 1 + 0.02 * experts


@settings(max_examples=50)
@given(st.integers(1, 256), st.integers(1, 8), st.lists(st.integers(1, 10**6), min_size=1, max_size=5))
def test_experts_hit_of_an_array_is_that_of_each_element(experts: int, top_k: int, tokens: list[int]) -> None:
    top_k = min(top_k, experts)
    rows = np.array(tokens) * top_k
    assert experts_hit(experts, top_k, rows).tolist() == [experts_hit(experts, top_k, int(r)) for r in rows]  # type: ignore[union-attr]


def test_a_decode_step_reads_only_the_experts_it_hits() -> None:
    graph, _ = build("mixtral-8x7b", "decode", batch=1)
    for _, operator in graph.operators():
        if operator.type == "grouped_linear":
            node = Node.of(graph, operator)
            reads = operator_type(operator.type).reads(node)
            assert reads == node.inputs[0].bytes + node.inputs[1].bytes * 2 // 8


def test_a_sweep_over_kernels_that_differ_is_refused_rather_than_mixed() -> None:
    options = {"context": 64, "weight_dtype": "nf4"}
    with pytest.raises(ValueError, match="batch: one row and more"):
        decode("tinyllama-1.1b", batch=np.array([1, 2]), **options)
    assert decode("tinyllama-1.1b", batch=np.array([2, 3]), **options).is_sweep


def test_a_recomputation_that_changes_nothing_says_so() -> None:
    fused = training_step("gpt2", batch=1, seq=64, recompute="selective")
    assert any("nothing is recomputed" in note for note in fused.notes)
    assert not training_step("gpt2", batch=1, seq=64, recompute="selective", attention="eager").notes
