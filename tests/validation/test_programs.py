"""The programs written for published runs: what they keep, counted by hand from the sources they name."""

from __future__ import annotations

import pytest

from peakline.memory.lifetimes import unroll
from peakline.models.graph import Graph
from peakline.models.workloads import training_step
from peakline.validation.litgpt import LitConfig, litgpt_step, model_named
from peakline.validation.megatron import megatron_step, sharded_away
from peakline.validation.releases import softmax_keeps_input

SMALL = LitConfig(
    layers=8, hidden=512, heads=4, ffn=1376, vocab=512, rotary=1.0, llama=True, parallel=False, bias=False
)


def kept_by_layer(step: Graph, family: str, layer: int) -> int:
    """Bytes one layer leaves from the forward to the backward pass."""
    program = unroll(step)
    last = max(i for i, s in enumerate(program.steps) if s.operator.phase == "forward")
    return sum(
        int(program.sizes[k])
        for k, storage in enumerate(program.storages)
        if storage.tensor.family == family
        and storage.layer == layer
        and 0 <= program.births[k] <= last < program.deaths[k]
    )


def test_a_llama_layer_of_lit_gpt_keeps_what_its_source_says() -> None:
    batch, seq, h = 1, 128, SMALL.hidden
    unit = batch * seq * h * 2  # one activation of the hidden width in bf16
    rows = batch * seq * 4  # a float32 number per token
    expected = (
        2 * 2 * unit + 2 * rows  # two norms: a float32 copy of the input and rsqrt
        + unit + unit // 2 + 2 * unit  # dropout's output and mask, index_copy's source
        + 3 * unit + 2 * unit + unit + SMALL.heads * rows  # packed qkv, rotated q and k, output and log-sum-exp
        + 3 * batch * seq * SMALL.ffn * 2  # gate, silu(gate), up
        + batch * seq * 16 * 2 + 8 * 2 * h  # lora_A's result, the index
    )  # fmt: skip
    assert kept_by_layer(litgpt_step(SMALL, "lora", batch, seq), "h", 2) == expected


def test_four_bit_layers_of_bitsandbytes_041_keep_their_inputs() -> None:
    plain = kept_by_layer(litgpt_step(SMALL, "lora", 1, 128), "h", 2)
    four_bit = kept_by_layer(litgpt_step(SMALL, "lora", 1, 128, "nf4"), "h", 2)
    unit, ffn = 128 * SMALL.hidden * 2, 128 * SMALL.ffn * 2
    assert four_bit - plain == 3 * unit + ffn  # inputs of qkv, of the projections out of attention and MLP, of the MLP


@pytest.mark.parametrize(
    ("model", "method", "published"),
    [
        ("phi-1.5 (1.3B)", "lora", 1_572_864),
        ("StableLM Alpha 3B", "lora", 2_097_152),
        ("Llama-2 7B", "lora", 4_194_304),
        ("Llama-2 13B", "lora", 6_553_600),
        ("StableLM Alpha 3B", "adapter", 573_888),
        ("Llama-2 7B", "adapter", 1_229_760),
        ("StableLM Alpha 3B", "adapter-v2", 2_125_248),
        ("Llama-2 7B", "adapter-v2", 4_279_744),
    ],
)
def test_trainable_parameters_are_those_lit_gpt_prints(model: str, method: str, published: int) -> None:
    config = model_named(model)
    assert config is not None
    step = litgpt_step(config, method, 1, 16)
    families = step.families
    trained = [t for t in step.tensors.values() if t.role == "parameter" and t.trainable]
    assert sum(int(t.elements) * (families[t.family] if t.family else 1) for t in trained) == published


def test_a_score_matrix_more_per_layer_under_pytorch_1_10() -> None:
    step = training_step("bert-base-uncased", batch=2, seq=128, dtype="fp32", attention="eager", optimizer=None)
    family = next(b.family for b in step.blocks if b.family)
    earlier = softmax_keeps_input(step)
    assert kept_by_layer(earlier, family, 3) - kept_by_layer(step, family, 3) == 2 * 12 * 128 * 128 * 4


def test_the_distributed_optimizer_keeps_twelve_bytes_per_parameter_over_the_ranks() -> None:
    step = megatron_step(layers=2, hidden=256, heads=4, batch=1, seq=64, recompute="none")
    parameters = int(step.parameters)
    states = int(step.total_bytes("optimizer_state"))
    assert 12 * parameters <= states < 12 * parameters + 1024
    assert sharded_away(step, 8) == states - states // 8


def test_one_matrix_for_queries_keys_and_values_changes_no_parameter_and_saves_two_casts() -> None:
    options = {"batch": 2, "dtype": "fp32", "autocast": "bf16", "optimizer": None}
    apart = training_step("vit-b-16", **options)
    fused = training_step("vit-b-16", **options, overrides={"fused_qkv": True})
    assert fused.parameters == apart.parameters
    family = next(b.family for b in apart.blocks if b.family)
    input_bytes = 2 * 197 * 768 * 2  # the layer norm's output in bf16
    assert kept_by_layer(apart, family, 3) - kept_by_layer(fused, family, 3) == 2 * input_bytes


@pytest.mark.parametrize(
    ("optimizer", "bits", "block"), [("adam8bit", 8, 256), ("adamfp8", 8, 256), ("adam4bit", 4, 128)]
)
def test_low_bit_states_hold_codes_and_a_float32_scale_per_block(optimizer: str, bits: int, block: int) -> None:
    step = training_step("vit-b-16", batch=1, dtype="fp32", optimizer=optimizer)
    families = step.families
    expected = 0
    for p in step.tensors.values():
        if p.role == "parameter":
            n = int(p.elements)
            one = 4 * n if n < 4096 else n * bits // 8 + -(-n // block) * 4
            expected += 2 * one * (families[p.family] if p.family else 1)
    assert step.total_bytes("optimizer_state") == expected
