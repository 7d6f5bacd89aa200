"""Decoder-only language models: Llama, Mistral, Qwen, Gemma, GPT, OPT, Phi, Falcon, BLOOM, Mixtral, DeepSeek.

One program with the configuration's variations, written as transformers' `modeling_*.py` runs it, kernel by kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

from peakline.models.builder import GraphBuilder
from peakline.models.dims import Dim, decided
from peakline.models.families.decoder_config import DecoderConfig, LayerKind
from peakline.models.families.decoder_huggingface import ARCHITECTURES, MODEL_TYPES, from_huggingface
from peakline.models.families.decoder_names import STYLES, Names
from peakline.models.families.layers import (
    Projections,
    cached,
    family_name,
    in_group,
    last_token,
    lengths,
    loss_of,
    note_length,
    reads_cache,
    runs,
)
from peakline.models.families.mla import latent_attention
from peakline.models.families.moe_layer import experts_layer
from peakline.models.graph import Tensor
from peakline.models.operators.attention import Backend, attention
from peakline.models.operators.dropout import dropout
from peakline.models.operators.elementwise import activation, add, cast, mul, scale, view
from peakline.models.operators.embedding import embedding
from peakline.models.operators.gated import gated_activation
from peakline.models.operators.indexing import contiguous, split, take
from peakline.models.operators.masks import window_mask
from peakline.models.operators.matmul import linear
from peakline.models.operators.normalization import layer_norm, rms_norm
from peakline.models.operators.rotary import rotary, rotary_tables
from peakline.models.workload import Family, Workload

__all__ = ["FAMILY", "build"]


_WHOLE = ("training", "inference")
"""Phases run as transformers runs them; serving engines (prefill and decode) have kernels of their own."""


@dataclass
class _Pass:
    """One forward pass while it is written: what every layer needs."""

    b: GraphBuilder
    config: DecoderConfig
    workload: Workload
    project: Projections
    names: Names
    keys: Dim
    tables: tuple[Tensor, Tensor] | None = None
    mask: Tensor | None = None
    alibi: Tensor | None = None
    window_mask: Tensor | None = None

    def p(self, probability: float) -> float:
        """A dropout probability, 0 where the workload switches dropout off."""
        return probability if self.workload.dropout else 0.0

    def norm(self, x: Tensor, name: str) -> Tensor:
        """The configuration's norm."""
        c = self.config
        if c.norm == "rms":
            return rms_norm(self.b, x, name=name, unit_offset=c.norm_offset)
        return layer_norm(self.b, x, name=name, bias=c.norm_bias, affine=c.norm_affine)


def build(b: GraphBuilder, config: DecoderConfig, workload: Workload) -> Tensor:
    """Write the model; the loss in training, the logits otherwise (of the last token after a prefill).

    Raises:
        ValueError: a size the phase needs is missing, or adapters match no layer.
    """
    queries, keys = lengths(workload)
    note_length(b, keys, config.max_positions)
    run = _Pass(b, config, workload, Projections(b, workload), STYLES[config.style], keys)
    names, c = run.names, config
    ids = b.input("input_ids", (workload.batch, queries))
    x = embedding(b, ids, c.vocab, c.embed_width, name=names.embed)
    table = b.tensors[f"{names.embed}.weight"]
    x = _after_embedding(run, x, queries)
    _shared_inputs(run, x, queries)
    for first, times, group in runs(c.kinds()):
        with b.layers(family_name(names.layers, first, len(group)), times, x) as layer:
            for position, kind in enumerate(group):
                with in_group(b, position, len(group)):
                    layer.x = _layer(run, layer.x, kind)
        x = layer.result
    if c.final_norm:
        x = run.norm(x, names.final_norm)
    if c.embed_width != c.hidden:
        x = linear(b, x, c.embed_width, name=names.project_out)
    if workload.phase in ("prefill", "decode"):
        x = last_token(b, x) if workload.phase == "prefill" else x
    result = loss_of(
        b,
        workload,
        x,
        c.vocab,
        head=names.head,
        table=table if c.tied else None,
        bias=c.head_bias,
        softcap=c.logit_softcap,
    )
    run.project.finish()
    return result


def _after_embedding(run: _Pass, x: Tensor, queries: Dim) -> Tensor:
    """Scaling, norm, learned positions, projection and dropout between the embedding and the first layer."""
    b, c, names = run.b, run.config, run.names
    if c.embed_scale:
        x = scale(b, x, name="normalizer")
    if c.embed_norm:
        x = layer_norm(b, x, name=names.embed_norm)
    if c.embed_width != c.hidden:
        x = linear(b, x, c.hidden, name=names.project_in)
    if c.positions == "learned":
        positions = b.input("position_ids", (1, queries))
        x = add(b, x, embedding(b, positions, c.position_rows, c.hidden, name=names.positions), name="add_positions")
    return dropout(b, x, run.p(c.embed_dropout), name="embed_dropout")


def _shared_inputs(run: _Pass, x: Tensor, queries: Dim) -> None:
    """What all layers read: rotary tables, the additive mask of unfused attention, ALiBi's biases."""
    b, c, batch = run.b, run.config, run.workload.batch
    if c.positions == "rope":
        run.tables = rotary_tables(b, 1, queries, c.rotary_dim, x.dtype)
    backend = _backend(run)
    kind = b.autocast or b.dtype
    if backend in ("eager", "math"):
        rows: Dim = batch if backend == "eager" else 1
        run.mask = b.input("causal_mask", (rows, 1, queries, run.keys), kind, "buffer")
    elif _cuts_keys_off(run):
        run.window_mask = window_mask(b, b.input("cache_position", (1, queries), "int64"), run.keys)
    if c.positions == "alibi":
        run.alibi = b.input("alibi", (batch, c.heads, 1, run.keys), kind, "buffer")


def _backend(run: _Pass) -> Backend:
    """The attention backend; capped scores, ALiBi and implementations without fused attention run eagerly."""
    c, w = run.config, run.workload
    if w.attention == "auto" and run.b.eager:
        if c.attention_softcap or c.positions == "alibi" or not c.sdpa:
            return "eager"
        if c.broadcast_head and c.kv_heads < c.heads and w.phase in _WHOLE:
            return "math"
    return w.backend()


def _cuts_keys_off(run: _Pass) -> bool:
    """Whether a sliding window's mask is written out, instead of a number that kernels take."""
    c, w = run.config, run.workload
    if w.phase not in _WHOLE or w.attention != "auto" or not run.b.eager or c.window is None:
        return False
    if not any(kind.windowed for kind in c.kinds()):
        return False
    return decided(run.keys >= c.window, f"the sliding window of {c.window} tokens cuts keys off")


def _layer(run: _Pass, x: Tensor, kind: LayerKind) -> Tensor:
    """One layer: attention and MLP, one after the other or side by side, each with its norms."""
    b, c, names = run.b, run.config, run.names
    if c.norm_after:
        x = run.norm(add(b, x, _attention(run, x, kind)), names.attention_norm)
        return run.norm(add(b, x, _mlp(run, x, kind)), names.mlp_norm)
    h = run.norm(x, names.attention_norm)
    mixed = _attention(run, h, kind)
    if c.parallel:
        h = h if c.one_norm else run.norm(x, names.mlp_norm)
        return add(b, add(b, mixed, _mlp(run, h, kind), name="add_branches"), x, name="add_residual")
    if c.post_norms:
        mixed = run.norm(mixed, names.attention_post_norm)
    x = add(b, x, mixed, name="add_attention")
    y = _mlp(run, run.norm(x, names.mlp_norm), kind)
    if c.post_norms:
        y = run.norm(y, names.mlp_post_norm)
    return add(b, x, y, name="add_mlp")


# ---- attention -------------------------------------------------------------------------------------------------------
def _attention(run: _Pass, x: Tensor, kind: LayerKind) -> Tensor:
    """Projections, rotary embedding, cache, attention, output projection and its dropout."""
    b, c, names, w = run.b, run.config, run.names, run.workload
    window = c.window if kind.windowed else None
    backend = _backend(run)
    p = run.p(c.attention_dropout) if b.training else 0.0
    with b.scope(names.attention):
        if c.mla is not None:
            assert run.tables is not None
            y = latent_attention(b, run.project, w, c, x, run.tables, run.keys, run.mask, backend, p)
        else:
            q, k, v = _heads(run, x)
            k = cached(b, w, k, run.keys, window, "key_cache")
            v = cached(b, w, v, run.keys, window, "value_cache")
            if c.fused_qkv and q.storage != v.storage and backend in ("eager", "math"):
                v = contiguous(b, v, name="v_contiguous")  # matmul flattens batch and heads of a strided view
            if c.scores_fp32 and backend == "eager":
                q, k = cast(b, q, "fp32", name="q_fp32"), cast(b, k, "fp32", name="k_fp32")
            mask = run.mask
            if mask is not None and run.alibi is not None:
                mask = run.alibi
            if kind.windowed and run.window_mask is not None:
                backend, mask = "efficient", run.window_mask
            y = attention(
                b,
                q,
                k,
                v,
                heads=c.heads,
                kv_heads=c.kv_heads,
                causal=True,
                window=window,
                backend=backend,
                p_dropout=p,
                mask=_as_long_as(run, mask, k, window),
                softcap=c.attention_softcap,
                upcast=c.softmax_fp32,
                scaled=c.scaled_scores,
            )
            joined = c.rotary_joined or c.rotary_dim < c.head_dim
            if joined and backend == "flash" and run.b.eager and w.phase in _WHOLE:
                y = contiguous(b, y, name="out_contiguous")  # laid out head by head, as the concatenated queries are
        y = run.project(y, c.hidden, name=names.out, bias=c.out_bias)
    return dropout(b, y, run.p(c.residual_dropout), name="resid_dropout")


def _as_long_as(run: _Pass, mask: Tensor | None, k: Tensor, window: int | None) -> Tensor | None:
    """The mask cut to the keys of a windowed layer's cache, where attention reads that."""
    if mask is None or window is None or not reads_cache(run.workload):
        return mask
    return take(run.b, mask, (*mask.shape[:3], k.shape[1]), name="mask_window")


def _heads(run: _Pass, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q [B, S, heads·d], k and v [B, S, kv_heads·d], normed and rotated where the model does."""
    b, c, names = run.b, run.config, run.names
    wide, narrow = c.heads * c.head_dim, c.kv_heads * c.head_dim
    if c.fused_qkv:
        packed = run.project(x, wide + 2 * narrow, name=names.qkv, bias=c.qkv_bias)
        q, k, v = split(b, packed, (wide, narrow, narrow), name="split_qkv")
    else:
        q = run.project(x, wide, name=names.q, bias=c.qkv_bias)
        k = run.project(x, narrow, name=names.k, bias=c.qkv_bias)
        v = run.project(x, narrow, name=names.v, bias=c.qkv_bias)
    if run.tables is None and not c.qk_norm:
        return q, k, v
    q = _turned(run, q, c.heads, "q")
    k = _turned(run, k, c.kv_heads, "k")
    return q, k, v


def _turned(run: _Pass, x: Tensor, heads: int, which: str) -> Tensor:
    """Per-head norm and rotary embedding of queries or keys."""
    b, c = run.b, run.config
    flat = x.shape
    x = view(b, x, (*flat[:2], heads, c.head_dim), name=f"{which}_heads")
    if c.qk_norm:
        x = rms_norm(b, x, name=f"{which}_norm", unit_offset=c.norm_offset)
    if run.tables is not None:
        x = rotary(b, x, *run.tables, name=f"{which}_rotary", joined=run.config.rotary_joined)
    return view(b, x, flat, name=f"{which}_flat")


# ---- MLP -------------------------------------------------------------------------------------------------------------
def _mlp(run: _Pass, x: Tensor, kind: LayerKind) -> Tensor:
    """The feed-forward part: gated or plain, or a mixture of experts."""
    b, c, names = run.b, run.config, run.names
    with b.scope(names.mlp):
        if kind.experts:
            assert c.moe is not None
            return experts_layer(b, run.project, run.workload, x, c.moe, c.activation)
        hidden = _gated(run, x) if c.gated else None
        if hidden is None:
            hidden = activation(b, c.activation, run.project(x, c.ffn, name=names.up, bias=c.mlp_bias))
        y = run.project(hidden, c.hidden, name=names.down, bias=c.mlp_bias)
        return dropout(b, y, run.p(c.residual_dropout))


def _gated(run: _Pass, x: Tensor) -> Tensor:
    """act(gate(x))·up(x)."""
    b, c, names = run.b, run.config, run.names
    if c.fused_gate_up:
        packed = run.project(x, 2 * c.ffn, name=names.gate_up, bias=c.mlp_bias)
        gate, up = split(b, packed, (c.ffn, c.ffn), name="split_gate_up")
    else:
        gate = run.project(x, c.ffn, name=names.gate, bias=c.mlp_bias)
        up = None
    if b.eager:
        gate = activation(b, c.activation, gate)
    if up is None:
        up = run.project(x, c.ffn, name=names.up, bias=c.mlp_bias)
    return mul(b, gate, up, name="gated") if b.eager else gated_activation(b, gate, up)


FAMILY = Family(
    name="decoder",
    kind="language",
    config=DecoderConfig,
    build=build,
    phases=("training", "prefill", "decode", "inference"),
    architectures=ARCHITECTURES,
    model_types=MODEL_TYPES,
    from_huggingface=from_huggingface,
)
