"""How published decoder implementations name their modules, so that parameters carry their state-dict names.

Source: the `modeling_*.py` of Hugging Face transformers 5.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["STYLES", "Names"]


@dataclass(frozen=True, slots=True)
class Names:
    """Module names; those of a layer's parts are relative to the layer. An empty `mlp` puts them into the layer."""

    embed: str = "model.embed_tokens"
    positions: str = ""
    embed_norm: str = ""
    project_in: str = ""
    project_out: str = ""
    layers: str = "model.layers"
    attention: str = "self_attn"
    q: str = "q_proj"
    k: str = "k_proj"
    v: str = "v_proj"
    qkv: str = "qkv_proj"
    out: str = "o_proj"
    attention_norm: str = "input_layernorm"
    attention_post_norm: str = "post_attention_layernorm"
    mlp_norm: str = "post_attention_layernorm"
    mlp_post_norm: str = "post_feedforward_layernorm"
    mlp: str = "mlp"
    gate: str = "gate_proj"
    up: str = "up_proj"
    gate_up: str = "gate_up_proj"
    down: str = "down_proj"
    final_norm: str = "model.norm"
    head: str = "lm_head"


_LLAMA = Names()
_GPT2 = Names(
    embed="transformer.wte", positions="transformer.wpe", layers="transformer.h", attention="attn", qkv="c_attn",
    out="c_proj", attention_norm="ln_1", mlp_norm="ln_2", up="c_fc", down="c_proj", final_norm="transformer.ln_f",
)  # fmt: skip
_NEOX = Names(
    embed="gpt_neox.embed_in", layers="gpt_neox.layers", attention="attention", qkv="query_key_value", out="dense",
    up="dense_h_to_4h", down="dense_4h_to_h", final_norm="gpt_neox.final_layer_norm",
)  # fmt: skip
_BLOOM = Names(
    embed="transformer.word_embeddings", embed_norm="transformer.word_embeddings_layernorm", layers="transformer.h",
    attention="self_attention", qkv="query_key_value", out="dense", up="dense_h_to_4h", down="dense_4h_to_h",
    final_norm="transformer.ln_f",
)  # fmt: skip
_OPT = Names(
    embed="model.decoder.embed_tokens", positions="model.decoder.embed_positions",
    project_in="model.decoder.project_in", project_out="model.decoder.project_out", layers="model.decoder.layers",
    out="out_proj", attention_norm="self_attn_layer_norm", mlp_norm="final_layer_norm", mlp="", up="fc1", down="fc2",
    final_norm="model.decoder.final_layer_norm",
)  # fmt: skip

STYLES: dict[str, Names] = {
    "llama": _LLAMA,
    "gemma2": replace(_LLAMA, mlp_norm="pre_feedforward_layernorm"),
    "gpt2": _GPT2,
    "gpt_neo": replace(_GPT2, attention="attn.attention", out="out_proj"),
    "gpt_neox": _NEOX,
    "opt": _OPT,
    "phi": replace(_LLAMA, out="dense", up="fc1", down="fc2", final_norm="model.final_layernorm"),
    "bloom": _BLOOM,
    "falcon": replace(_BLOOM, embed_norm=""),
    "falcon-two-norms": replace(_BLOOM, embed_norm="", attention_norm="ln_attn", mlp_norm="ln_mlp"),
    "starcoder2": replace(_LLAMA, up="c_fc", down="c_proj"),
}
"""Naming by style."""
