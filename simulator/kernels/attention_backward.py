"""Flash attention, the backward pass: three kernels; traffic in `peakline.cost.tiled.attention`."""

# mypy: disable-error-code="import-not-found,import-untyped,no-untyped-def,untyped-decorator"

import torch
import triton
import triton.language as tl

from peakline.cost.tiled.traffic import check_tiles, power_of_two
from peakline.kernels.attention import LOG2E, check_attention
from peakline.kernels.launch import check_contiguous, check_shapes, precision_of

__all__ = ["attention_backward"]


@triton.jit
def _delta(
    o, do, delta, lengths, heads, queries, v_dim,
    QUERIES: tl.constexpr, V_DIM: tl.constexpr, RAGGED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    head = tl.program_id(1).to(tl.int64)
    last_query = queries
    if RAGGED:
        last_query = tl.minimum(queries, tl.load(lengths + head // heads))
    at = tl.arange(0, V_DIM)
    place = (head * queries + row[:, None]) * v_dim + at[None, :]
    inside = (row < last_query)[:, None] & (at < v_dim)[None, :]
    product = tl.load(o + place, mask=inside, other=0.0).to(tl.float32)
    product *= tl.load(do + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(delta + head * queries + row, tl.sum(product, axis=1), mask=row < last_query)


@triton.jit
def _of_keys(
    q, k, v, do, lse, delta, dk, dv, lengths, heads, group, queries, keys, dim, v_dim, scale,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr, V_DIM: tl.constexpr,
    CAUSAL: tl.constexpr, RAGGED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * KEYS
    kv_head = tl.program_id(1).to(tl.int64)  # of the whole batch
    kv_heads = heads // group
    last_query, last_key = queries, keys
    if RAGGED:
        length = tl.load(lengths + kv_head // kv_heads)
        last_query, last_key = tl.minimum(queries, length), tl.minimum(keys, length)
    if first >= last_key:
        return
    col = first + tl.arange(0, KEYS)
    at = tl.arange(0, DIM)
    v_at = tl.arange(0, V_DIM)
    k_place = (kv_head * keys + col[:, None]) * dim + at[None, :]
    v_place = (kv_head * keys + col[:, None]) * v_dim + v_at[None, :]
    k_inside = (col < last_key)[:, None] & (at < dim)[None, :]
    v_inside = (col < last_key)[:, None] & (v_at < v_dim)[None, :]
    key = tl.load(k + k_place, mask=k_inside, other=0.0)
    value = tl.load(v + v_place, mask=v_inside, other=0.0)
    of_key = tl.zeros((KEYS, DIM), dtype=tl.float32)
    of_value = tl.zeros((KEYS, V_DIM), dtype=tl.float32)
    begin = 0
    if CAUSAL:
        begin = tl.maximum(0, first - (last_key - last_query)) // QUERIES * QUERIES
    for member in range(0, group):
        head = kv_head * group + member  # heads of a group lie beside each other
        for start in range(begin, last_query, QUERIES):
            row = start + tl.arange(0, QUERIES)
            real = row < last_query
            query = tl.load(q + (head * queries + row[:, None]) * dim + at[None, :],
                            mask=real[:, None] & (at < dim)[None, :], other=0.0)  # fmt: skip
            upstream = tl.load(do + (head * queries + row[:, None]) * v_dim + v_at[None, :],
                               mask=real[:, None] & (v_at < v_dim)[None, :], other=0.0)  # fmt: skip
            norm = tl.load(lse + head * queries + row, mask=real, other=0.0)
            shift = tl.load(delta + head * queries + row, mask=real, other=0.0)
            score = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
            seen = real[:, None] & (col < last_key)[None, :]
            if CAUSAL:
                seen = seen & (col[None, :] <= row[:, None] + last_key - last_query)
            power = tl.where(seen, tl.exp2((score - norm[:, None]) * LOG2E), 0.0)
            of_value = tl.dot(tl.trans(power.to(upstream.dtype)), upstream, of_value, input_precision=PRECISION)
            of_power = tl.dot(upstream, tl.trans(value), input_precision=PRECISION)
            of_score = power * (of_power - shift[:, None])
            of_key = tl.dot(tl.trans(of_score.to(query.dtype)), query, of_key, input_precision=PRECISION)
    tl.store(dk + k_place, (of_key * scale).to(dk.dtype.element_ty), mask=k_inside)
    tl.store(dv + v_place, of_value.to(dv.dtype.element_ty), mask=v_inside)


@triton.jit
def _of_queries(
    q, k, v, do, lse, delta, dq, lengths, heads, group, queries, keys, dim, v_dim, scale,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr, V_DIM: tl.constexpr,
    CAUSAL: tl.constexpr, RAGGED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * QUERIES
    head = tl.program_id(1).to(tl.int64)
    kv_head = head // group
    last_query, last_key = queries, keys
    if RAGGED:
        length = tl.load(lengths + head // heads)
        last_query, last_key = tl.minimum(queries, length), tl.minimum(keys, length)
    if first >= last_query:
        return
    row = first + tl.arange(0, QUERIES)
    real = row < last_query
    at = tl.arange(0, DIM)
    v_at = tl.arange(0, V_DIM)
    place = (head * queries + row[:, None]) * dim + at[None, :]
    inside = real[:, None] & (at < dim)[None, :]
    query = tl.load(q + place, mask=inside, other=0.0)
    upstream = tl.load(do + (head * queries + row[:, None]) * v_dim + v_at[None, :],
                       mask=real[:, None] & (v_at < v_dim)[None, :], other=0.0)  # fmt: skip
    norm = tl.load(lse + head * queries + row, mask=real, other=0.0)
    shift = tl.load(delta + head * queries + row, mask=real, other=0.0)
    of_query = tl.zeros((QUERIES, DIM), dtype=tl.float32)
    end = last_key
    if CAUSAL:
        end = tl.minimum(last_key, first + QUERIES + last_key - last_query)
    for start in range(0, end, KEYS):
        col = start + tl.arange(0, KEYS)
        key = tl.load(k + (kv_head * keys + col[:, None]) * dim + at[None, :],
                      mask=(col < last_key)[:, None] & (at < dim)[None, :], other=0.0)  # fmt: skip
        value = tl.load(v + (kv_head * keys + col[:, None]) * v_dim + v_at[None, :],
                        mask=(col < last_key)[:, None] & (v_at < v_dim)[None, :], other=0.0)  # fmt: skip
        score = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
        seen = (col < last_key)[None, :]
        if CAUSAL:
            seen = seen & (col[None, :] <= row[:, None] + last_key - last_query)
        power = tl.where(seen, tl.exp2((score - norm[:, None]) * LOG2E), 0.0)
        of_power = tl.dot(upstream, tl.trans(value), input_precision=PRECISION)
        of_score = power * (of_power - shift[:, None])
        of_query = tl.dot(of_score.to(key.dtype), key, of_query, input_precision=PRECISION)
    tl.store(dq + place, (of_query * scale).to(dq.dtype.element_ty), mask=inside)


def attention_backward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    o: torch.Tensor,
    lse: torch.Tensor,
    do: torch.Tensor,
    *,
    causal: bool = False,
    lengths: torch.Tensor | None = None,
    scale: float | None = None,
    tile_queries: int = 64,
    tile_keys: int = 64,
    precision: str = "ieee",
    warps: int = 4,
    stages: int = 2,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of `peakline.kernels.attention.attention`, without atomics: the same bits on every run.

    Args:
        q, k, v, causal, lengths, scale: as there.
        o, lse: as it returned them.
        do: gradient of o, contiguous.
        tile_queries, tile_keys, precision, warps, stages: as there, of the two kernels that form scores.

    Returns:
        dq, dk, dv, of the shapes and formats of q, k and v; 0 on padding.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    batch, heads, kv_heads, queries, keys, dim, v_dim = check_attention(q, k, v, causal, lengths)
    check_tiles((("tile_queries", tile_queries), ("tile_keys", tile_keys)))
    rows = (batch, heads, queries)
    check_shapes(o=(o.shape, (*rows, v_dim)), do=(do.shape, (*rows, v_dim)), lse=(lse.shape, rows))
    check_contiguous(o=o, do=do, lse=lse)
    ragged = lengths is not None
    make = torch.zeros_like if ragged else torch.empty_like
    dq, dk, dv, delta = make(q), make(k), make(v), make(lse)
    own = q if lengths is None else lengths
    sizes = (heads, heads // kv_heads, queries, keys, dim, v_dim, dim**-0.5 if scale is None else scale)
    blocks = {"DIM": power_of_two(dim, 16), "V_DIM": power_of_two(v_dim, 16)}
    tiles = blocks | {"QUERIES": tile_queries, "KEYS": tile_keys, "CAUSAL": causal, "RAGGED": ragged,
                      "PRECISION": precision_of(q, precision), "num_warps": warps, "num_stages": stages}  # fmt: skip
    by_query = (triton.cdiv(queries, tile_queries), batch * heads)
    _delta[by_query](
        o, do, delta, own, heads, queries, v_dim,
        QUERIES=tile_queries, V_DIM=blocks["V_DIM"], RAGGED=ragged, num_warps=warps,
    )  # fmt: skip
    by_key = (triton.cdiv(keys, tile_keys), batch * kv_heads)
    _of_keys[by_key](q, k, v, do, lse, delta, dk, dv, own, *sizes, **tiles)
    _of_queries[by_query](q, k, v, do, lse, delta, dq, own, *sizes, **tiles)
    return dq, dk, dv
