"""Read decoder configurations from Hugging Face `config.json` mappings, one reader per `model_type`.

Defaults are those of the configuration classes in transformers 5; sizes without which there is no model (vocabulary,
hidden size, layers, heads) must be there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from peakline.models.families.decoder_config import DecoderConfig, LatentAttention, MixtureOfExperts
from peakline.models.families.fields import Fields

__all__ = ["ARCHITECTURES", "MODEL_TYPES", "from_huggingface"]


def from_huggingface(values: dict[str, Any]) -> DecoderConfig:
    """The configuration that a `config.json` describes.

    Raises:
        ValueError: a field is missing or cannot be.
    """
    model_type = values.get("model_type")
    if model_type not in READERS:
        named = [a for a in values.get("architectures") or () if a in _BY_ARCHITECTURE]
        if not named:
            raise ValueError(f"field 'model_type' is {model_type!r}; accepted: {', '.join(READERS)}")
        model_type = _BY_ARCHITECTURE[named[0]]
    return DecoderConfig(**READERS[model_type](Fields(values)))


def _rotary(f: Fields, head_dim: int, default: float = 1.0) -> int:
    """Numbers per head that rotate: `partial_rotary_factor` (or NeoX's `rotary_pct`) of them."""
    nested = f.values.get("rope_parameters") or f.values.get("rope_scaling") or {}
    factor = Fields(nested).number("partial_rotary_factor", default=None) if isinstance(nested, dict) else None
    if factor is None:
        factor = f.number("partial_rotary_factor", "rotary_pct", default=default)
    return int(head_dim * factor)


def _common(f: Fields, **fixed: Any) -> dict[str, Any]:
    """The fields that Llama and most later models share."""
    heads = f.int("num_attention_heads")
    out = {
        "vocab": f.int("vocab_size"),
        "hidden": f.int("hidden_size"),
        "layers": f.int("num_hidden_layers"),
        "heads": heads,
        "kv_heads": f.int("num_key_value_heads", default=heads),
        "ffn": f.int("intermediate_size"),
        "head_dim": f.int("head_dim", default=0, least=0),
        "max_positions": f.int("max_position_embeddings", default=None),
        "activation": f.text("hidden_act", default="silu"),
        "tied": f.flag("tie_word_embeddings", default=False),
        "attention_dropout": f.number("attention_dropout", default=0.0),
    }
    return out | fixed


def _partial(f: Fields, out: dict[str, Any], default: float = 1.0) -> dict[str, Any]:
    """Add the rotary width, which needs the head dimension."""
    head_dim = out["head_dim"] or out["hidden"] // out["heads"]
    return out | {"rotary_dim": _rotary(f, head_dim, default)}


def _llama(f: Fields) -> dict[str, Any]:
    bias = f.flag("attention_bias", default=False)
    return _common(f, qkv_bias=bias, out_bias=bias, mlp_bias=f.flag("mlp_bias", default=False))


def _mistral(f: Fields) -> dict[str, Any]:
    return _common(f, window=f.int("sliding_window", default=None))


def _windowed(f: Fields, layers: int, default: tuple[bool, ...]) -> dict[str, Any]:
    """Window and pattern of a model that names the type of each layer."""
    types = f.items("layer_types", default=None)
    pattern = default if types is None else tuple(t == "sliding_attention" for t in types)
    return {"window": f.int("sliding_window", default=4096), "windowed": pattern} if any(pattern) else {}


def _qwen_window(f: Fields, layers: int) -> dict[str, Any]:
    """Qwen uses its window only if told to, from layer `max_window_layers` on."""
    if not f.flag("use_sliding_window", default=False):
        return {}
    first = f.int("max_window_layers", default=28, least=0)
    return _windowed(f, layers, tuple(i >= first for i in range(layers)))


def _qwen2(f: Fields) -> dict[str, Any]:
    out = _common(f, qkv_bias=f.flag("qkv_bias", default=True))
    return out | _qwen_window(f, out["layers"])


def _qwen3(f: Fields) -> dict[str, Any]:
    bias = f.flag("attention_bias", default=False)
    out = _common(f, qkv_bias=bias, out_bias=bias, qk_norm=True, head_dim=f.int("head_dim", default=128))
    return out | _qwen_window(f, out["layers"])


def _experts(f: Fields, *, shared: int = 0, shared_gate: bool = False) -> MixtureOfExperts:
    only = f.items("mlp_only_layers", default=())
    if list(only) != list(range(len(only))):
        raise ValueError(f"field 'mlp_only_layers' is {only!r}; accepted: the leading layers")
    return MixtureOfExperts(
        experts=f.int("num_experts", "num_local_experts"),
        per_token=f.int("num_experts_per_tok"),
        ffn=f.int("moe_intermediate_size"),
        shared_ffn=shared,
        shared_gate=shared_gate,
        dense_first=len(only),
        every=f.int("decoder_sparse_step", default=1),
        renormalise=f.flag("norm_topk_prob", default=False),
        weights_fp32=False,
    )


def _qwen2_moe(f: Fields) -> dict[str, Any]:
    shared = f.int("shared_expert_intermediate_size")
    return _qwen2(f) | {"moe": _experts(f, shared=shared, shared_gate=True)}


def _qwen3_moe(f: Fields) -> dict[str, Any]:
    bias = f.flag("attention_bias", default=False)
    head = f.int("head_dim", default=0, least=0)
    return _common(f, qkv_bias=bias, out_bias=bias, qk_norm=True, head_dim=head, moe=_experts(f))


def _mixtral(f: Fields) -> dict[str, Any]:
    moe = MixtureOfExperts(
        experts=f.int("num_local_experts", default=8),
        per_token=f.int("num_experts_per_tok", default=2),
        ffn=f.int("intermediate_size"),
    )
    return _common(f, window=f.int("sliding_window", default=None), moe=moe)


def _gemma(f: Fields) -> dict[str, Any]:
    return _common(
        f,
        norm_offset=True,
        embed_scale=True,
        head_dim=f.int("head_dim", default=256),
        activation="gelu_pytorch_tanh",
        tied=f.flag("tie_word_embeddings", default=True),
    )


def _gemma2(f: Fields) -> dict[str, Any]:
    out = _gemma(f) | {
        "style": "gemma2",
        "post_norms": True,
        "activation": f.text("hidden_activation", default="gelu_pytorch_tanh"),
        "attention_softcap": f.number("attn_logit_softcapping", default=50.0) is not None,
        "logit_softcap": f.number("final_logit_softcapping", default=30.0) is not None,
    }
    for name, field in (("attention_softcap", "attn_logit_softcapping"), ("logit_softcap", "final_logit_softcapping")):
        if field in f.values and f.values[field] is None:
            out[name] = False
    return out | _windowed(f, out["layers"], (True, False))


def _gpt2(f: Fields) -> dict[str, Any]:
    hidden = f.int("n_embd", "hidden_size")
    return {
        "style": "gpt2",
        "vocab": f.int("vocab_size"),
        "hidden": hidden,
        "layers": f.int("n_layer", "num_hidden_layers"),
        "heads": f.int("n_head", "num_attention_heads"),
        "ffn": f.int("n_inner", default=4 * hidden),
        "max_positions": f.int("n_positions", "n_ctx", "max_position_embeddings", default=1024),
        "norm": "layer",
        "activation": f.text("activation_function", default="gelu_new"),
        "gated": False,
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
        "fused_qkv": True,
        "positions": "learned",
        "softmax_fp32": False,
        "tied": f.flag("tie_word_embeddings", default=True),
        "embed_dropout": f.number("embd_pdrop", default=0.1),
        "attention_dropout": f.number("attn_pdrop", default=0.1),
        "residual_dropout": f.number("resid_pdrop", default=0.1),
    }


def _gpt_neo(f: Fields) -> dict[str, Any]:
    hidden, layers = f.int("hidden_size"), f.int("num_layers", "num_hidden_layers")
    pattern: list[bool] = []
    for entry in f.items("attention_types", default=[[["global", "local"], layers // 2]]):
        kinds, times = entry
        pattern += [kind == "local" for kind in kinds] * times
    return {
        "style": "gpt_neo",
        "vocab": f.int("vocab_size"),
        "hidden": hidden,
        "layers": layers,
        "heads": f.int("num_heads", "num_attention_heads"),
        "ffn": f.int("intermediate_size", default=4 * hidden),
        "max_positions": f.int("max_position_embeddings", default=2048),
        "norm": "layer",
        "activation": f.text("activation_function", default="gelu_new"),
        "gated": False,
        "out_bias": True,
        "mlp_bias": True,
        "positions": "learned",
        "scaled_scores": False,
        "scores_fp32": True,
        "sdpa": False,
        "window": f.int("window_size", default=256),
        "windowed": tuple(pattern),
        "tied": f.flag("tie_word_embeddings", default=True),
        "embed_dropout": f.number("embed_dropout", default=0.0),
        "attention_dropout": f.number("attention_dropout", default=0.0),
        "residual_dropout": f.number("resid_dropout", default=0.0),
    }


def _gpt_neox(f: Fields) -> dict[str, Any]:
    bias = f.flag("attention_bias", default=True)
    out = _common(
        f,
        style="gpt_neox",
        norm="layer",
        activation=f.text("hidden_act", default="gelu"),
        gated=False,
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=True,
        fused_qkv=True,
        parallel=f.flag("use_parallel_residual", default=True),
        residual_dropout=f.number("hidden_dropout", default=0.0),
        embed_dropout=f.number("hidden_dropout", default=0.0),
    )
    return _partial(f, out, 0.25)


def _opt(f: Fields) -> dict[str, Any]:
    bias, before = f.flag("enable_bias", default=True), f.flag("do_layer_norm_before", default=True)
    hidden, positions = f.int("hidden_size"), f.int("max_position_embeddings", default=2048)
    dropout = f.number("dropout", default=0.1)
    return {
        "style": "opt",
        "vocab": f.int("vocab_size"),
        "hidden": hidden,
        "layers": f.int("num_hidden_layers"),
        "heads": f.int("num_attention_heads"),
        "ffn": f.int("ffn_dim"),
        "max_positions": positions,
        "position_rows": positions + 2,  # OPTLearnedPositionalEmbedding: two rows are never used
        "embed_width": f.int("word_embed_proj_dim", default=hidden),
        "norm": "layer",
        "norm_affine": f.flag("layer_norm_elementwise_affine", default=True),
        "norm_after": not before,
        "final_norm": before and not f.flag("_remove_final_layer_norm", default=False),
        "activation": f.text("activation_function", default="relu"),
        "gated": False,
        "qkv_bias": bias,
        "out_bias": bias,
        "mlp_bias": bias,
        "positions": "learned",
        "tied": f.flag("tie_word_embeddings", default=True),
        "attention_dropout": f.number("attention_dropout", default=0.0),
        "residual_dropout": dropout,
        "embed_dropout": 0.0,
    }


def _phi(f: Fields) -> dict[str, Any]:
    out = _common(
        f,
        style="phi",
        norm="layer",
        activation=f.text("hidden_act", default="gelu_new"),
        gated=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        head_bias=True,
        parallel=True,
        one_norm=True,
        embed_dropout=f.number("embd_pdrop", default=0.0),
        residual_dropout=f.number("resid_pdrop", default=0.0),
    )
    if f.flag("qk_layernorm", default=False):
        raise ValueError("field 'qk_layernorm' is True; accepted: false")
    return _partial(f, out, 0.5)


def _phi3(f: Fields) -> dict[str, Any]:
    window = f.int("sliding_window", default=None)
    return _partial(f, _common(f, fused_qkv=True, fused_gate_up=True, window=window, rotary_joined=True))


def _falcon(f: Fields) -> dict[str, Any]:
    hidden, heads = f.int("hidden_size"), f.int("num_attention_heads", "n_head")
    new = f.flag("new_decoder_architecture", default=False)
    grouped = f.int("num_kv_heads", default=heads)
    kv_heads = grouped if new else (1 if f.flag("multi_query", default=True) else heads)
    norms = f.int("num_ln_in_parallel_attn", default=2 if new else 1)
    bias = f.flag("bias", default=False)
    return {
        "style": "falcon-two-norms" if new and norms == 2 else "falcon",
        "vocab": f.int("vocab_size"),
        "hidden": hidden,
        "layers": f.int("num_hidden_layers", "n_layer"),
        "heads": heads,
        "kv_heads": kv_heads,
        "ffn": f.int("ffn_hidden_size", default=4 * hidden),
        "max_positions": f.int("max_position_embeddings", default=2048),
        "norm": "layer",
        "activation": f.text("activation", default="gelu"),
        "gated": False,
        "qkv_bias": bias,
        "out_bias": bias,
        "mlp_bias": bias,
        "fused_qkv": True,
        "softmax_fp32": False,
        "broadcast_head": not new,
        "positions": "alibi" if f.flag("alibi", default=False) else "rope",
        "parallel": new or f.flag("parallel_attn", default=True),
        "one_norm": norms == 1,
        "tied": f.flag("tie_word_embeddings", default=True),
        "attention_dropout": f.number("attention_dropout", default=0.0),
        "residual_dropout": f.number("hidden_dropout", default=0.0),
    }


def _bloom(f: Fields) -> dict[str, Any]:
    hidden = f.int("hidden_size", "n_embed")
    return {
        "style": "bloom",
        "vocab": f.int("vocab_size"),
        "hidden": hidden,
        "layers": f.int("n_layer", "num_hidden_layers"),
        "heads": f.int("n_head", "num_attention_heads"),
        "ffn": 4 * hidden,
        "norm": "layer",
        "activation": "gelu_pytorch_tanh",
        "gated": False,
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
        "fused_qkv": True,
        "sdpa": False,
        "positions": "alibi",
        "embed_norm": True,
        "tied": f.flag("tie_word_embeddings", default=True),
        "attention_dropout": f.number("attention_dropout", default=0.0),
        "residual_dropout": f.number("hidden_dropout", default=0.0),
    }


def _starcoder2(f: Fields) -> dict[str, Any]:
    bias = f.flag("use_bias", default=True)
    return _common(
        f,
        style="starcoder2",
        norm="layer",
        activation=f.text("hidden_act", default="gelu_pytorch_tanh"),
        gated=False,
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=bias,
        window=f.int("sliding_window", default=None),
        tied=f.flag("tie_word_embeddings", default=True),
        embed_dropout=f.number("embedding_dropout", default=0.0),
        residual_dropout=f.number("residual_dropout", default=0.0),
    )


def _stablelm(f: Fields) -> dict[str, Any]:
    if f.flag("qk_layernorm", default=False):
        raise ValueError("field 'qk_layernorm' is True; accepted: false")
    parallel = f.flag("use_parallel_residual", default=False)
    out = _common(f, norm="layer", qkv_bias=f.flag("use_qkv_bias", default=False), parallel=parallel, one_norm=parallel)
    return _partial(f, out, 0.25)


def _latent(f: Fields) -> LatentAttention:
    return LatentAttention(
        kv_rank=f.int("kv_lora_rank", default=512),
        nope_dim=f.int("qk_nope_head_dim", default=128),
        rope_dim=f.int("qk_rope_head_dim", default=64),
        v_dim=f.int("v_head_dim", default=128),
        q_rank=f.int("q_lora_rank", default=None),
    )


def _deepseek(f: Fields, router: str, renormalise: bool) -> dict[str, Any]:
    ffn = f.int("moe_intermediate_size")
    grouped = router == "sigmoid" or f.text("topk_method", default="greedy") != "greedy"
    moe = MixtureOfExperts(
        experts=f.int("n_routed_experts"),
        per_token=f.int("num_experts_per_tok"),
        ffn=ffn,
        shared_ffn=f.int("n_shared_experts", default=0, least=0) * ffn,
        dense_first=f.int("first_k_dense_replace", default=0, least=0),
        router=router,  # type: ignore[arg-type]
        renormalise=renormalise,
        fp32_router=True,
        groups=f.int("n_group", default=1) if grouped else 1,
        groups_chosen=f.int("topk_group", default=1) if grouped else 1,
    )
    bias = f.flag("attention_bias", default=False)
    out = _common(f, moe=moe, mla=_latent(f), qkv_bias=bias, out_bias=bias, head_dim=0)
    return out | {"kv_heads": out["heads"]}


def _deepseek_v2(f: Fields) -> dict[str, Any]:
    return _deepseek(f, "softmax", renormalise=False)


def _deepseek_v3(f: Fields) -> dict[str, Any]:
    return _deepseek(f, "sigmoid", renormalise=f.flag("norm_topk_prob", default=True))


READERS: dict[str, Callable[[Fields], dict[str, Any]]] = {
    "llama": _llama,
    "mistral": _mistral,
    "mixtral": _mixtral,
    "qwen2": _qwen2,
    "qwen2_moe": _qwen2_moe,
    "qwen3": _qwen3,
    "qwen3_moe": _qwen3_moe,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gpt2": _gpt2,
    "gpt_neo": _gpt_neo,
    "gpt_neox": _gpt_neox,
    "opt": _opt,
    "phi": _phi,
    "phi3": _phi3,
    "falcon": _falcon,
    "bloom": _bloom,
    "starcoder2": _starcoder2,
    "stablelm": _stablelm,
    "deepseek_v2": _deepseek_v2,
    "deepseek_v3": _deepseek_v3,
}
"""Reader by `model_type`."""

_BY_ARCHITECTURE = {
    "LlamaForCausalLM": "llama", "MistralForCausalLM": "mistral", "MixtralForCausalLM": "mixtral",
    "Qwen2ForCausalLM": "qwen2", "Qwen2MoeForCausalLM": "qwen2_moe", "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3_moe", "GemmaForCausalLM": "gemma", "Gemma2ForCausalLM": "gemma2",
    "GPT2LMHeadModel": "gpt2", "GPTNeoForCausalLM": "gpt_neo", "GPTNeoXForCausalLM": "gpt_neox",
    "OPTForCausalLM": "opt", "PhiForCausalLM": "phi", "Phi3ForCausalLM": "phi3", "FalconForCausalLM": "falcon",
    "BloomForCausalLM": "bloom", "Starcoder2ForCausalLM": "starcoder2", "StableLmForCausalLM": "stablelm",
    "DeepseekV2ForCausalLM": "deepseek_v2", "DeepseekV3ForCausalLM": "deepseek_v3",
}  # fmt: skip

ARCHITECTURES = tuple(_BY_ARCHITECTURE)
MODEL_TYPES = tuple(READERS)
