"""Multi-head latent attention (DeepSeek-V2/V3): expanded for training and prefill, absorbed for decoding.

Expanded: keys and values of all heads are made from the latent by `kv_b_proj`, then ordinary attention. Absorbed
(arXiv:2405.04434 §2.1.2): the key half of `kv_b_proj` is folded into the queries and the value half into the output,
so that all heads attend to the cached latent itself, one shared head of kv_rank + rope_dim numbers.
Source of the program: transformers 5 `models/deepseek_v3/modeling_deepseek_v3.py`.
"""

from __future__ import annotations

from peakline.models.builder import GraphBuilder
from peakline.models.dims import Dim
from peakline.models.families.decoder_config import DecoderConfig, LatentAttention
from peakline.models.families.layers import Projections, cached
from peakline.models.graph import Tensor
from peakline.models.operators.attention import Backend, attention
from peakline.models.operators.elementwise import view
from peakline.models.operators.indexing import cat, contiguous, split, take
from peakline.models.operators.matmul import matmul
from peakline.models.operators.normalization import rms_norm
from peakline.models.operators.rotary import rotary
from peakline.models.workload import Workload

__all__ = ["latent_attention"]


def latent_attention(
    b: GraphBuilder,
    project: Projections,
    workload: Workload,
    config: DecoderConfig,
    x: Tensor,
    tables: tuple[Tensor, Tensor],
    keys: Dim,
    mask: Tensor | None,
    backend: Backend,
    p_dropout: float,
) -> Tensor:
    """Attention of x [B, S, hidden] over `keys` tokens, before the output projection: [B, S, heads·v_dim]."""
    mla, heads = config.mla, config.heads
    assert mla is not None
    tokens = x.shape[:2]
    q = _queries(b, project, mla, heads, x)
    straight, turning = split(b, q, (mla.nope_dim, mla.rope_dim), name="split_q")
    turned = rotary(b, turning, *tables, name="q_rotary")
    packed = project(x, mla.kv_rank + mla.rope_dim, name="kv_a_proj_with_mqa")
    latent, key = split(b, packed, (mla.kv_rank, mla.rope_dim), name="split_kv")
    latent = rms_norm(b, latent, name="kv_a_layernorm")
    key = view(b, key, (*tokens, 1, mla.rope_dim), name="k_rope")
    key = view(b, rotary(b, key, *tables, name="k_rotary"), (*tokens, mla.rope_dim), name="k_rope_flat")
    if workload.phase in ("prefill", "decode"):
        cache = cached(b, workload, cat(b, (latent, key), name="latent_and_key"), keys, None, "latent_cache")
        if workload.phase == "decode":
            return _absorbed(b, project, mla, heads, straight, turned, cache, mask, backend, p_dropout)
        latent, key = split(b, cache, (mla.kv_rank, mla.rope_dim), name="from_cache")
    q = view(b, cat(b, (straight, turned), name="q"), (*tokens, heads * (mla.nope_dim + mla.rope_dim)), name="q_flat")
    k, v = _expanded(b, project, mla, heads, latent, key)
    if backend in ("eager", "math"):
        v = contiguous(b, v, name="v_contiguous")  # matmul flattens batch and heads of a strided view
    return attention(
        b, q, k, v, heads=heads, kv_heads=heads, causal=True, backend=backend, p_dropout=p_dropout, mask=mask
    )


def _queries(b: GraphBuilder, project: Projections, mla: LatentAttention, heads: int, x: Tensor) -> Tensor:
    """Queries [B, S, heads, nope + rope], through their own latent where the model has one."""
    width = heads * (mla.nope_dim + mla.rope_dim)
    if mla.q_rank is None:
        q = project(x, width, name="q_proj")
    else:
        q = project(rms_norm(b, project(x, mla.q_rank, name="q_a_proj"), name="q_a_layernorm"), width, name="q_b_proj")
    return view(b, q, (*x.shape[:2], heads, mla.nope_dim + mla.rope_dim), name="q_heads")


def _expanded(
    b: GraphBuilder, project: Projections, mla: LatentAttention, heads: int, latent: Tensor, key: Tensor
) -> tuple[Tensor, Tensor]:
    """Keys [B, T, heads·(nope + rope)] and values [B, T, heads·v] of every head from the latent and the shared key."""
    tokens = latent.shape[:2]
    both = project(latent, heads * (mla.nope_dim + mla.v_dim), name="kv_b_proj")
    both = view(b, both, (*tokens, heads, mla.nope_dim + mla.v_dim), name="kv_heads")
    straight, v = split(b, both, (mla.nope_dim, mla.v_dim), name="split_kv_heads")
    (shared,) = b.add(
        "expand", (key,), {"out": ((*tokens, heads, mla.rope_dim), key.dtype)}, name="expand_key", in_place={"out": key}
    )
    k = cat(b, (straight, shared), name="k")
    k = view(b, k, (*tokens, heads * (mla.nope_dim + mla.rope_dim)), name="k_flat")
    return k, view(b, v, (*tokens, heads * mla.v_dim), name="v_flat")


def _absorbed(
    b: GraphBuilder,
    project: Projections,
    mla: LatentAttention,
    heads: int,
    straight: Tensor,
    turned: Tensor,
    cache: Tensor,
    mask: Tensor | None,
    backend: Backend,
    p_dropout: float,
) -> Tensor:
    """Attention in the latent space: queries through W_UK, one shared key head, values through W_UV."""
    batch, queries = straight.shape[:2]
    both = project.matrix((heads, mla.nope_dim + mla.v_dim, mla.kv_rank), name="kv_b_proj")
    up_key = take(b, both, (heads, mla.nope_dim, mla.kv_rank), name="w_uk")
    up_value = take(b, both, (heads, mla.v_dim, mla.kv_rank), name="w_uv")
    rows: Dim = batch * queries
    by_head = view(b, straight, (heads, rows, mla.nope_dim), name="q_by_head")
    inner = matmul(b, by_head, up_key, name="absorb_key")
    inner = view(b, inner, (batch, queries, heads, mla.kv_rank), name="q_latent")
    width = mla.kv_rank + mla.rope_dim
    q = view(b, cat(b, (inner, turned), name="q"), (batch, queries, heads * width), name="q_flat")
    values = take(b, cache, (*cache.shape[:2], mla.kv_rank), name="latent")
    mixed = attention(
        b, q, cache, values, heads=heads, kv_heads=1, causal=True, backend=backend, p_dropout=p_dropout, mask=mask
    )
    mixed = view(b, mixed, (heads, rows, mla.kv_rank), name="mixed_by_head")
    y = matmul(b, mixed, up_value, transpose_b=True, name="absorb_value")
    return view(b, y, (batch, queries, heads * mla.v_dim), name="v_flat")
