"""Scaled dot-product attention: flash, memory-efficient and math, causal or windowed, grouped heads, KV cache.

Layout: q [B, S, heads·d], k and v [B, T, kv_heads·d] (a projection's output is read in place through strides).

* flash and cuDNN keep q, k, v, out and a float32 log-sum-exp per query; backward allocates a float32 accumulator for
  dq and, with grouped heads, expanded dk and dv (FlashAttention-2 `mha_bwd`: `dq_accum`, `softmax_d`, `dk_expanded`).
* memory-efficient is the same with queries padded to a multiple of 32 in the log-sum-exp.
* math writes the scores: a matrix product, a softmax and a product, each an operator of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from peakline.models.builder import GraphBuilder
from peakline.models.dims import Dim, Shape, maximum, minimum, prod, round_up
from peakline.models.dtypes import DType, dtype
from peakline.models.graph import Tensor
from peakline.models.kernels import Attention, Gemm, Kernel, Stream
from peakline.models.operators.dropout import dropout
from peakline.models.operators.elementwise import add, cast, scale, unary
from peakline.models.operators.masks import mask_bias
from peakline.models.operators.registry import GradientContext, Node, OperatorType, hand_back, register
from peakline.models.operators.softmax import softmax

__all__ = ["Backend", "attention", "masked_pairs", "write_cache"]

Backend: TypeAlias = Literal["flash", "efficient", "math", "eager"]
_FP32 = dtype("fp32")


def masked_pairs(queries: Dim, keys: Dim, causal: bool, window: Dim | None) -> Dim:
    """(query, key) pairs the mask leaves.

    Causal: query i (of the last `queries` of `keys` positions) sees keys − queries + i + 1 keys; a sliding window of
    w limits each to w. Closed form of Σᵢ min(w, keys − queries + i + 1).
    """
    if not causal:
        return queries * keys if window is None else queries * minimum(keys, window)
    first, last = keys - queries + 1, keys
    if window is None:
        return queries * (first + last) // 2
    ramp_end = minimum(last, window)
    ramp = maximum(ramp_end - first + 1, 0)  # queries that see fewer keys than the window, up to and including w
    return ramp * (first + ramp_end) // 2 + (queries - ramp) * minimum(window, keys)


def _kernel(node: Node, backward: bool) -> Attention:
    """The attention kernel of a node whose last three inputs are q, k, v."""
    q, k, v = node.inputs[-3:]
    a = node.attributes
    heads, kv_heads = a["heads"], a["kv_heads"]
    return Attention(
        batch=q.shape[0],
        heads=heads,
        kv_heads=kv_heads,
        queries=q.shape[1],
        keys=k.shape[1],
        pairs=masked_pairs(q.shape[1], k.shape[1], a["causal"], a.get("window")),
        qk_dim=q.shape[2] // heads,
        v_dim=v.shape[2] // kv_heads,
        kind=q.dtype,
        kv_kind=k.dtype,
        backward=backward,
    )


@dataclass(frozen=True)
class FusedAttention(OperatorType):
    """Attention without the score matrix in memory; attributes heads, kv_heads, causal, window, backend.

    Inputs are q, k and v, after a bias [B, 1, S, T] if the memory-efficient kernel adds one to the scores.
    """

    name: str = "attention"

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """One attention kernel."""
        return (_kernel(node, backward=False),)

    def reads(self, node: Node) -> Dim:
        """q, k, v and a bias; k and v once where v is a part of k (a latent cache, arXiv:2405.04434 §2.1.2)."""
        q, k, v = (t.storage or t.name for t in node.inputs[-3:])
        return node.input_bytes - (node.inputs[-1].bytes if k == v != q else 0)

    def backward(self, node: Node, context: GradientContext) -> None:
        """dq, dk, dv from q, k, v, out, the log-sum-exp and the bias."""
        q, k, v = node.inputs[-3:]
        out, lse = node.outputs
        dout = context.grad(out)
        if dout is None or not any(context.needs(t) for t in (q, k, v)):
            return
        outputs = {f"{n}_grad": (t.shape, t.dtype) for n, t in zip("qkv", (q, k, v))}
        made = context.emit("attention_backward", [dout, out, lse, *node.inputs], outputs, attributes=node.attributes)
        for target, gradient in zip((q, k, v), made):
            if context.needs(target):
                context.give(target, gradient, view=True)


@dataclass(frozen=True)
class FusedAttentionBackward(OperatorType):
    """Gradients of a fused attention kernel."""

    name: str = "attention_backward"
    launches: int = 3

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """One kernel of five products to the forward's two."""
        return (_kernel(node, backward=True),)

    def workspace(self, node: Node) -> tuple[Dim, ...]:
        """float32 dq accumulator and row sums; expanded dk and dv under grouped heads.

        Source: FlashAttention-2 `mha_bwd`: seqlen rounded to 128, head dim to 32 (64 above 32·k: rounded to 32).
        """
        q, k, v = node.inputs[-3:]
        heads, kv_heads = node.attributes["heads"], node.attributes["kv_heads"]
        d = round_up(q.shape[2] // heads, 32)
        rows = q.shape[0] * heads * round_up(q.shape[1], 128)
        sizes: list[Dim] = [rows * 4]
        if q.dtype.bits < 32:
            sizes.append(rows * d * 4)
        if heads != kv_heads:
            sizes += [t.bytes * (heads // kv_heads) for t in (k, v)]
        return tuple(sizes)


@dataclass(frozen=True)
class CacheWrite(OperatorType):
    """Writes new keys or values into a cache that exists already; reads and writes only the new rows."""

    name: str = "cache_write"

    def reads(self, node: Node) -> Dim:
        """The new rows."""
        return node.inputs[0].bytes

    def writes(self, node: Node) -> Dim:
        """The new rows, in the cache's format."""
        from peakline.models.dtypes import nbytes

        return nbytes(node.inputs[0].elements, node.inputs[1].dtype)

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """A copy."""
        return (Stream(node.inputs[0].elements, node.inputs[0].dtype),)


@dataclass(frozen=True)
class Scores(OperatorType):
    """scores[B, heads, S, T] = q·kᵀ; writes the whole square."""

    name: str = "attention_scores"

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """B·heads products of S × T × d."""
        q, k = node.inputs
        heads = node.attributes["heads"]
        return (Gemm(q.shape[0] * heads, q.shape[1], k.shape[1], q.shape[2] // heads, q.dtype, k.dtype, q.dtype),)

    def backward(self, node: Node, context: GradientContext) -> None:
        """dk = dsᵀ·q, dq = ds·k, in `BmmBackward0`'s order."""
        q, k = node.inputs
        ds = context.grad(node.outputs[0])
        if ds is None:
            return
        for target, other, transposed in ((k, q, True), (q, k, False)):
            if context.needs(target):
                outputs = {"grad": (target.shape, target.dtype)}
                attributes = {**node.attributes, "transposed": transposed}
                (grad,) = context.emit("attention_values", [ds, other], outputs, attributes=attributes)
                context.give(target, grad, view=True)


@dataclass(frozen=True)
class Values(OperatorType):
    """out[B, S, heads·d] = probabilities[B, heads, S, T]·v; with the attribute `transposed`, a gradient's Pᵀ·v."""

    name: str = "attention_values"

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """B·heads products over the score matrix."""
        p, v = node.inputs
        heads = node.attributes["heads"]
        y = node.outputs[0]
        d = v.shape[2] // heads
        k = p.shape[2] if node.attributes.get("transposed") else p.shape[3]
        return (Gemm(p.shape[0] * heads, y.shape[1], d, k, p.dtype, v.dtype, y.dtype),)

    def backward(self, node: Node, context: GradientContext) -> None:
        """dv = pᵀ·dout, dp = dout·vᵀ, in `BmmBackward0`'s order."""
        p, v = node.inputs
        dout = context.grad(node.outputs[0])
        if dout is None:
            return
        if context.needs(v):
            outputs = {"v_grad": (v.shape, v.dtype)}
            attributes = {**node.attributes, "transposed": True}
            (dv,) = context.emit("attention_values", [p, dout], outputs, attributes=attributes)
            context.give(v, dv, view=True)
        if context.needs(p):
            (dp,) = context.emit(
                "attention_scores", [dout, v], {"p_grad": (p.shape, p.dtype)}, attributes=node.attributes
            )
            context.give(p, dp, view=True)


for _type in (FusedAttention(), FusedAttentionBackward(), CacheWrite(), Scores(), Values()):
    register(_type)


def repeat_heads(b: GraphBuilder, x: Tensor, times: int, name: str) -> Tensor:
    """Copy each KV head `times` times (`repeat_kv`), as implementations without grouped-head kernels do."""
    if times == 1:
        return x
    return b.add("repeat", (x,), {"out": ((*x.shape[:-1], x.shape[-1] * times), x.dtype)}, name=name)[0]


@dataclass(frozen=True)
class Repeat(OperatorType):
    """Copies along a dimension; the gradient is summed back."""

    name: str = "repeat"

    def backward(self, node: Node, context: GradientContext) -> None:
        """Sum over the copies."""
        hand_back(node, context, "reduce")


register(Repeat())


def write_cache(b: GraphBuilder, x: Tensor, cache: Tensor, *, name: str) -> Tensor:
    """Append x [B, S, w] to a cache [B, T, w] in place; the result is the cache."""
    return b.add("cache_write", (x, cache), {"out": (cache.shape, cache.dtype)}, name=name, in_place={"out": cache})[0]


def attention(
    b: GraphBuilder,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    heads: int,
    kv_heads: int,
    causal: bool,
    window: Dim | None = None,
    backend: Backend = "flash",
    p_dropout: float = 0.0,
    mask: Tensor | None = None,
    softcap: bool = False,
    bias: Tensor | None = None,
    upcast: bool = True,
    scaled: bool = True,
    name: str = "core_attention",
) -> Tensor:
    """softmax(q·kᵀ/√d)·v for q [B, S, heads·dq], k [B, T, kv_heads·dq], v [B, T, kv_heads·dv] → [B, S, heads·dv].

    Args:
        backend: `flash` or `efficient` (fused kernels), `math` (SDPA's fallback), `eager` (written out in Python with
            a float32 softmax, as transformers' `eager_attention_forward`).
        window: keys each query sees at most (sliding window); needs `causal`.
        mask: additive mask that the unfused forms add, or a boolean one [1, 1, S, T] for `efficient`, which then reads
            repeated heads (`use_gqa_in_sdpa` in transformers asks for no mask) and computes the whole square.
        softcap: tanh soft-capping of the scores (Gemma-2); only the unfused forms.
        bias: additive position bias [1, heads, S, T] with a gradient (T5).
        upcast: the eager form's softmax runs in float32; False in the scores' format (GPT-2, BERT).
        scaled: the eager form multiplies the scores by a constant; False where the weights absorb it (T5).
    """
    # autocast runs attention products in its own format
    if b.autocast is not None:
        q, k, v = (cast(b, t, b.autocast) for t in (q, k, v))
    dv = v.shape[2] // kv_heads
    out: Shape = (q.shape[0], q.shape[1], heads * dv)
    if backend in ("flash", "efficient"):
        queries = round_up(q.shape[1], 32) if backend == "efficient" else q.shape[1]
        outputs = {"out": (out, q.dtype), "lse": ((q.shape[0], heads, queries), _FP32)}
        attributes: dict[str, Any] = {"heads": heads, "kv_heads": kv_heads, "causal": causal, "backend": backend}
        if window is not None:
            attributes["window"] = window
        if mask is not None:
            return _masked(b, q, k, v, heads, kv_heads, mask, outputs, name)
        with b.scope(name):
            return b.add("attention", (q, k, v), outputs, name=backend, attributes=attributes)[0]
    with b.scope(name):
        return _unfused(b, q, k, v, heads, kv_heads, backend, p_dropout, mask, softcap, bias, out, upcast, scaled)


def _masked(
    b: GraphBuilder,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    kv_heads: int,
    mask: Tensor,
    outputs: dict[str, tuple[Shape, DType]],
    name: str,
) -> Tensor:
    """The memory-efficient kernel under a mask that is written out."""
    with b.scope(name):
        k = repeat_heads(b, k, heads // kv_heads, "repeat_k")
        v = repeat_heads(b, v, heads // kv_heads, "repeat_v")
        bias = mask_bias(b, mask, q.shape[0], q.dtype)
        attributes = {"heads": heads, "kv_heads": heads, "causal": False, "backend": "efficient"}
        return b.add("attention", (bias, q, k, v), outputs, name="efficient", attributes=attributes)[0]


def _unfused(
    b: GraphBuilder,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    kv_heads: int,
    backend: Backend,
    p_dropout: float,
    mask: Tensor | None,
    softcap: bool,
    bias: Tensor | None,
    out: Shape,
    upcast: bool,
    scaled: bool,
) -> Tensor:
    """The score matrix written out; every operator inside carries the scope `attention` (selective recomputation)."""
    kind = q.dtype
    if backend == "math":  # SDPA's math path computes in float32 since torch 2.5, and scales q and k by d^(-1/4) each
        q, k, v = (cast(b, t, "fp32", name=f"{n}_fp32") for n, t in zip("qkv", (q, k, v)))
        q, k = scale(b, q, name="scale_q"), scale(b, k, name="scale_k")
    k = repeat_heads(b, k, heads // kv_heads, "repeat_k")
    v = repeat_heads(b, v, heads // kv_heads, "repeat_v")
    shape = (q.shape[0], heads, q.shape[1], k.shape[1])
    (scores,) = b.add("attention_scores", (q, k), {"out": (shape, q.dtype)}, name="scores", attributes={"heads": heads})
    if backend == "eager" and scaled:
        scores = scale(b, scores, name="scaling")
    if softcap:
        scores = scale(b, unary(b, "tanh", scale(b, scores, name="cap_divide")), name="cap_multiply")
    if bias is not None:
        scores = add(b, scores, bias, name="add_bias")
    if mask is not None:
        scores = add(b, scores, mask, in_place=backend == "math", name="add_mask")
    if backend == "eager" and upcast:
        probabilities = cast(b, softmax(b, scores, "fp32"), q.dtype)
    else:
        probabilities = softmax(b, scores)
    probabilities = dropout(b, probabilities, p_dropout)
    probabilities = cast(b, probabilities, v.dtype)
    attributes = {"heads": heads}
    outputs = {"out": (out, v.dtype)}
    (y,) = b.add("attention_values", (probabilities, v), outputs, name="values", attributes=attributes)
    return cast(b, y, kind, name="out_cast") if backend == "math" else y


def kv_bytes(batch: Dim, tokens: Dim, kv_heads: int, head_dim: int, layers: int, kind: DType) -> Dim:
    """Bytes of keys and values of a decoder: 2·layers·batch·tokens·kv_heads·head_dim elements of `kind`."""
    return prod((2, layers, batch, tokens, kv_heads, head_dim)) * kind.bits // 8
