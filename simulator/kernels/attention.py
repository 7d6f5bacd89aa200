"""Flash attention, the forward pass; traffic in `peakline.cost.tiled.attention`."""

# mypy: disable-error-code="import-not-found,import-untyped,no-untyped-def,untyped-decorator"

import torch
import triton
import triton.language as tl

from peakline.cost.tiled.traffic import check_tiles, power_of_two
from peakline.kernels.launch import check_contiguous, check_shapes, precision_of, warps_for

__all__ = ["attention", "check_attention"]

LOG2E = tl.constexpr(1.4426950408889634)
"""log₂(e): the exponentials are powers of two, which the hardware has an instruction for."""

LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _attention(
    q, k, v, o, lse, lengths, heads, group, queries, keys, dim, v_dim, scale,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr, V_DIM: tl.constexpr,
    CAUSAL: tl.constexpr, RAGGED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * QUERIES
    head = tl.program_id(1).to(tl.int64)  # of the whole batch
    kv_head = head // group  # heads of a group lie beside each other
    last_query, last_key = queries, keys
    if RAGGED:
        length = tl.load(lengths + head // heads)
        last_query, last_key = tl.minimum(queries, length), tl.minimum(keys, length)
    if first >= last_query:
        return
    row = first + tl.arange(0, QUERIES)
    at = tl.arange(0, DIM)
    v_at = tl.arange(0, V_DIM)
    query = tl.load(q + (head * queries + row[:, None]) * dim + at[None, :],
                    mask=(row < last_query)[:, None] & (at < dim)[None, :], other=0.0)  # fmt: skip
    top = tl.full((QUERIES,), -float("inf"), dtype=tl.float32)
    total = tl.zeros((QUERIES,), dtype=tl.float32)
    result = tl.zeros((QUERIES, V_DIM), dtype=tl.float32)
    end = last_key
    if CAUSAL:
        end = tl.minimum(last_key, first + QUERIES + last_key - last_query)
    for start in range(0, end, KEYS):
        col = start + tl.arange(0, KEYS)
        key = tl.load(k + (kv_head * keys + col[:, None]) * dim + at[None, :],
                      mask=(col < last_key)[:, None] & (at < dim)[None, :], other=0.0)  # fmt: skip
        score = tl.dot(query, tl.trans(key), input_precision=PRECISION) * (scale * LOG2E)
        seen = (col < last_key)[None, :]
        if CAUSAL:
            seen = seen & (col[None, :] <= row[:, None] + last_key - last_query)
        score = tl.where(seen, score, -float("inf"))
        higher = tl.maximum(top, tl.max(score, axis=1))
        shrink = tl.exp2(top - higher)
        power = tl.exp2(score - higher[:, None])
        total = total * shrink + tl.sum(power, axis=1)
        value = tl.load(v + (kv_head * keys + col[:, None]) * v_dim + v_at[None, :],
                        mask=(col < last_key)[:, None] & (v_at < v_dim)[None, :], other=0.0)  # fmt: skip
        result = tl.dot(power.to(value.dtype), value, result * shrink[:, None], input_precision=PRECISION)
        top = higher
    real = row < last_query
    result = result / total[:, None]
    tl.store(o + (head * queries + row[:, None]) * v_dim + v_at[None, :], result.to(o.dtype.element_ty),
             mask=real[:, None] & (v_at < v_dim)[None, :])  # fmt: skip
    tl.store(lse + head * queries + row, (top + tl.log2(total)) * LN2, mask=real)


def check_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, lengths: torch.Tensor | None
) -> tuple[int, int, int, int, int, int, int]:
    """(batch, heads, kv heads, queries, keys, dim, v_dim) of tensors that fit each other.

    Raises:
        ValueError: naming the tensor that does not fit, or a mask that leaves a query without keys.
    """
    (batch, heads, queries, dim), (kv_heads, keys), v_dim = q.shape, k.shape[1:3], v.shape[3]
    check_shapes(k=(k.shape, (batch, kv_heads, keys, dim)), v=(v.shape, (batch, kv_heads, keys, v_dim)))
    check_contiguous(q=q, k=k, v=v, lengths=lengths)
    if heads % kv_heads:
        raise ValueError(f"k: has {kv_heads} heads, which do not divide the {heads} heads of q")
    if causal and keys < queries:
        raise ValueError(f"causal: {queries} queries see {keys} keys, so some see none; give at least as many keys")
    if lengths is not None:
        check_shapes(lengths=(lengths.shape, (batch,)))
        if queries != keys or lengths.dtype != torch.int32:
            raise ValueError("lengths: are int32, one for each sequence, and need as many queries as keys")
    return batch, heads, kv_heads, queries, keys, dim, v_dim


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool = False,
    lengths: torch.Tensor | None = None,
    scale: float | None = None,
    tile_queries: int = 64,
    tile_keys: int = 64,
    precision: str = "ieee",
    warps: int | None = None,
    stages: int = 2,
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(q·kᵀ·scale)·v without stored scores.

    Args:
        q: [batch, heads, queries, dim] contiguous; float16, bfloat16 or float32.
        k, v: [batch, kv_heads, keys, dim] and [..., v_dim]; kv_heads divides heads.
        causal: query i sees keys up to i + keys - queries.
        lengths: int32 [batch]: tokens of each sequence, the rest being padding; results there are 0.
        scale: of the scores; dim^(-1/2) by default.
        tile_queries, tile_keys: tiles, powers of two, at least 16.
        precision, warps, stages: as for `peakline.kernels.matmul.matmul`.

    Returns:
        o [batch, heads, queries, v_dim] of q's format, log-sum-exp of the scores [batch, heads, queries] float32.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    batch, heads, kv_heads, queries, keys, dim, v_dim = check_attention(q, k, v, causal, lengths)
    check_tiles((("tile_queries", tile_queries), ("tile_keys", tile_keys)))
    make = q.new_empty if lengths is None else q.new_zeros
    o = make((batch, heads, queries, v_dim))
    lse = make((batch, heads, queries), dtype=torch.float32)
    _attention[(triton.cdiv(queries, tile_queries), batch * heads)](
        q, k, v, o, lse, q if lengths is None else lengths, heads, heads // kv_heads, queries, keys, dim, v_dim,
        dim**-0.5 if scale is None else scale, QUERIES=tile_queries, KEYS=tile_keys, DIM=power_of_two(dim, 16),
        V_DIM=power_of_two(v_dim, 16), CAUSAL=causal, RAGGED=lengths is not None, PRECISION=precision_of(q, precision),
        num_warps=warps_for(tile_queries * (tile_keys + power_of_two(v_dim, 16)), warps), num_stages=stages,
    )  # fmt: skip
    return o, lse
