"""Language models against transformers and PyTorch themselves, and against published formulas."""

from __future__ import annotations

from typing import Any

import pytest
import transformers_reference as reference

from peakline.models.dtypes import dtype
from peakline.models.workload import Workload

SMALL = {"vocab_size": 128, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
LLAMA = SMALL | {
    "model_type": "llama",
    "intermediate_size": 96,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
GPT2 = {
    "model_type": "gpt2", "vocab_size": 128, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 64,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
BERT = SMALL | {
    "model_type": "bert", "intermediate_size": 96, "max_position_embeddings": 64, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
T5 = {
    "model_type": "t5", "vocab_size": 128, "d_model": 64, "num_layers": 3, "num_heads": 4, "d_kv": 16, "d_ff": 96,
    "dropout_rate": 0.0, "decoder_start_token_id": 0,
}  # fmt: skip
OPT = SMALL | {
    "model_type": "opt", "ffn_dim": 256, "max_position_embeddings": 64, "word_embed_proj_dim": 32, "dropout": 0.0,
    "do_layer_norm_before": False,
}  # fmt: skip
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
MLA = {"kv_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16}
MIXTRAL = LLAMA | {"model_type": "mixtral", "num_local_experts": 4}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "qwen2": LLAMA | {"model_type": "qwen2"},
    "qwen3": LLAMA | {"model_type": "qwen3", "head_dim": 16},
    "gemma": LLAMA | {"model_type": "gemma", "head_dim": 32},
    "gemma2": LLAMA | {"model_type": "gemma2", "head_dim": 32},
    "gpt2": GPT2,
    "gpt_neox": SMALL | {"model_type": "gpt_neox", "intermediate_size": 256, "rotary_pct": 0.25},
    "opt-350m-shaped": OPT,
    "phi": SMALL | {"model_type": "phi", "intermediate_size": 96},
    "phi3": SMALL | {
        "model_type": "phi3", "intermediate_size": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    },
    "falcon": SMALL | {"model_type": "falcon"},
    "bloom": {"model_type": "bloom", "vocab_size": 128, "hidden_size": 64, "n_layer": 3, "n_head": 4},
    "mixtral": MIXTRAL,
    "qwen2_moe": LLAMA | EXPERTS | {"model_type": "qwen2_moe", "num_experts": 8, "shared_expert_intermediate_size": 48},
    "qwen3_moe": LLAMA | EXPERTS | {"model_type": "qwen3_moe", "num_experts": 8, "head_dim": 16},
    "deepseek_v2": LLAMA | EXPERTS | MLA | {
        "model_type": "deepseek_v2", "first_k_dense_replace": 1, "q_lora_rank": None, "n_routed_experts": 8,
        "n_shared_experts": 2, "num_key_value_heads": 4,
    },
    "deepseek_v3": LLAMA | EXPERTS | MLA | {
        "model_type": "deepseek_v3", "first_k_dense_replace": 1, "q_lora_rank": 48, "n_routed_experts": 8,
        "n_shared_experts": 1, "n_group": 4, "topk_group": 2, "num_key_value_heads": 4,
    },
    "bert": BERT,
    "t5": T5,
    "mamba": {"model_type": "mamba", "vocab_size": 128, "hidden_size": 64, "num_hidden_layers": 3},
}  # fmt: skip
BATCH, SEQ = 2, 16


@pytest.fixture(scope="module", autouse=True)
def _needs_transformers() -> None:
    pytest.importorskip("torch", reason="compares with PyTorch")
    pytest.importorskip("transformers", reason="compares with transformers")


def training(config: dict[str, Any], kind: str = "fp32") -> tuple[Any, str]:
    return reference.build(config, Workload("training", batch=BATCH, seq=SEQ, attention="eager", kind=dtype(kind)))


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_carry_the_names_and_sizes_of_the_state_dict(name: str) -> None:
    graph, _ = training(CONFIGS[name])
    ours = {t.name: t.elements for t in graph.flatten().of_role("parameter")}
    assert ours == reference.torch_parameters(reference.torch_model(CONFIGS[name], device="meta"))


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "opt-350m-shaped", "bert", "t5", "mixtral", "deepseek_v3"])
def test_forward_flops_are_those_pytorch_counts(name: str) -> None:
    graph, _ = training(CONFIGS[name])
    experts = "eager" if name in ("mixtral", "deepseek_v3") else None
    model = reference.torch_model(CONFIGS[name], experts=experts)
    counted = reference.torch_flops(reference.step(CONFIGS[name], BATCH, SEQ, model=model))
    assert reference.product_flops(graph) == counted


@pytest.mark.parametrize("name", [n for n in CONFIGS if n != "mamba"])  # its kernels need a GPU
def test_bytes_kept_for_backward_are_those_autograd_saves(name: str) -> None:
    graph, loss = training(CONFIGS[name])
    ours = sum(reference.kept_for_backward(graph, loss).values())
    model = reference.torch_model(CONFIGS[name])
    theirs = reference.torch_kept(model, reference.step(CONFIGS[name], BATCH, SEQ, model=model))
    assert ours == pytest.approx(theirs, rel=0.01)


def test_the_float32_norm_and_softmax_copies_of_a_bf16_llama_are_kept_too() -> None:
    graph, loss = training(LLAMA, "bf16")
    ours = sum(reference.kept_for_backward(graph, loss).values())
    model = reference.torch_model(LLAMA, kind="bfloat16")
    theirs = reference.torch_kept(model, reference.step(LLAMA, BATCH, SEQ, model=model))
    assert ours == pytest.approx(theirs, rel=0.001)
