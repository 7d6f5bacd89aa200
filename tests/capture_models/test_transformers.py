"""Models of transformers, small: each is captured, checks, estimates and reads back from JSON unchanged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import peakline as pk  # noqa: E402
from peakline.models.graph import Graph  # noqa: E402

transformers.logging.set_verbosity_error()
SIZES = {"num_hidden_layers": 4, "hidden_size": 128, "num_attention_heads": 4, "vocab_size": 512}
WIDE = {**SIZES, "intermediate_size": 256}
GROUPED = {**WIDE, "num_key_value_heads": 2, "use_cache": False}
IDS = torch.zeros(2, 32, dtype=torch.long)
TEXT = {"input_ids": IDS, "labels": IDS}

MODELS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", GROUPED, TEXT),
    "mistral": ("MistralForCausalLM", "MistralConfig", GROUPED, TEXT),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", GROUPED, TEXT),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", {**GROUPED, "head_dim": 32, "num_hidden_layers": 8}, TEXT),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**GROUPED, "num_local_experts": 4}, TEXT),
    "gpt2": (
        "GPT2LMHeadModel", "GPT2Config",
        {"n_layer": 4, "n_embd": 128, "n_head": 4, "vocab_size": 512, "use_cache": False, "bos_token_id": 0,
         "eos_token_id": 1}, TEXT,
    ),
    "opt": (
        "OPTForCausalLM", "OPTConfig",
        {**SIZES, "ffn_dim": 256, "word_embed_proj_dim": 128, "use_cache": False}, TEXT,
    ),
    "bert": ("BertForMaskedLM", "BertConfig", WIDE, {**TEXT, "attention_mask": torch.ones_like(IDS)}),
    "t5": (
        "T5ForConditionalGeneration", "T5Config",
        {"num_layers": 4, "d_model": 128, "d_ff": 256, "num_heads": 4, "vocab_size": 512, "use_cache": False,
         "decoder_start_token_id": 0}, TEXT,
    ),
    "vit": (
        "ViTForImageClassification", "ViTConfig", {k: v for k, v in WIDE.items() if k != "vocab_size"},
        {"pixel_values": torch.zeros(2, 3, 224, 224), "labels": torch.zeros(2, dtype=torch.long)},
    ),
    "whisper": (
        "WhisperForConditionalGeneration", "WhisperConfig",
        {"encoder_layers": 4, "decoder_layers": 4, "d_model": 128, "encoder_ffn_dim": 256, "decoder_ffn_dim": 256,
         "encoder_attention_heads": 4, "decoder_attention_heads": 4, "vocab_size": 512, "max_source_positions": 100,
         "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "use_cache": False,
         "begin_suppress_tokens": None, "suppress_tokens": None},
        {"input_features": torch.zeros(2, 80, 200), "labels": IDS},
    ),
    "mamba": (
        "MambaForCausalLM", "MambaConfig",
        {"num_hidden_layers": 4, "hidden_size": 128, "vocab_size": 512, "use_cache": False}, TEXT,
    ),
}  # fmt: skip


def maker(name: str) -> Callable[[], Any]:
    """A function that makes the model."""
    module, config, sizes, _ = MODELS[name]
    return lambda: getattr(transformers, module)(getattr(transformers, config)(**sizes))


@pytest.fixture(scope="module", params=list(MODELS))
def captured(request: pytest.FixtureRequest) -> tuple[str, Graph]:
    """Two training steps with AdamW, the second one written down."""
    name = request.param
    return name, pk.capture(maker(name), MODELS[name][3], optimizer="adamw", device="a100-80gb")


def test_every_parameter_is_there_has_a_gradient_and_two_states(captured: tuple[str, Graph]) -> None:
    name, graph = captured
    module = maker(name)()
    sizes = {id(p): p.numel() for p in module.parameters()}
    trained = sum(p.numel() for p in {id(p): p for p in module.parameters() if p.requires_grad}.values())
    assert graph.parameters == sum(sizes.values())
    assert graph.trainable_parameters == trained
    states = int(graph.total_bytes("optimizer_state"))
    assert 0 <= states - 2 * 4 * trained <= 4 * len(sizes)  # one step counter each


def test_it_is_well_formed_and_reads_back_unchanged(captured: tuple[str, Graph]) -> None:
    _, graph = captured
    graph.check()
    assert Graph.from_json(graph.to_json()) == graph


def test_layers_are_described_once(captured: tuple[str, Graph]) -> None:
    _, graph = captured
    assert max(block.repeat for block in graph.blocks) >= 2


def test_it_has_an_estimate(captured: tuple[str, Graph]) -> None:
    _, graph = captured
    found = pk.estimate(graph, "a100-80gb")
    held = graph.total_bytes("parameter", "optimizer_state")
    assert held < found.memory.live <= found.memory.allocated <= found.memory.reserved < found.peak
    assert bool(found.fits)
    assert 0 < found.time < 1


def test_operators_name_the_line_that_asked_for_them(captured: tuple[str, Graph]) -> None:
    _, graph = captured
    forward = [o for _, o in graph.operators() if o.phase == "forward" and o.type != "release"]
    named = [o for o in forward if str(o.attributes.get("line", "")).startswith("transformers/")]
    assert len(named) > 0.9 * len(forward)
