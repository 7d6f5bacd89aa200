"""The mixture-of-experts layer, as transformers' grouped experts run it: route, sort by expert, two grouped products.

Source: transformers 5 `integrations/moe.py` (`grouped_mm_experts_forward`), `models/{mixtral,qwen2_moe,deepseek_v3}`.
"""

from __future__ import annotations

from peakline.models.builder import GraphBuilder
from peakline.models.dims import Dim, prod
from peakline.models.dtypes import dtype
from peakline.models.families.decoder_config import MixtureOfExperts
from peakline.models.families.layers import Projections
from peakline.models.graph import Tensor
from peakline.models.operators.elementwise import activation, add, cast, mul, scale, unary, view
from peakline.models.operators.gated import gated_activation
from peakline.models.operators.indexing import gather, index_math, masked_fill, sort, split, take_along, topk
from peakline.models.operators.matmul import linear
from peakline.models.operators.moe import grouped_linear
from peakline.models.operators.softmax import softmax
from peakline.models.workload import Workload

__all__ = ["experts_layer"]

_FP32 = dtype("fp32")


def experts_layer(
    b: GraphBuilder, project: Projections, workload: Workload, x: Tensor, moe: MixtureOfExperts, act: str
) -> Tensor:
    """Route x [B, S, h] through its experts, plus the shared MLP if there is one; [B, S, h] again."""
    flat = view(b, x, (prod(x.shape[:-1]), x.shape[-1]), name="tokens")
    with b.scope("gate"):
        weights, chosen = _route(b, flat, moe)
    with b.scope("experts"):
        y = _experts(b, workload, flat, weights, chosen, moe, act)
    if moe.shared_ffn:
        y = add(b, y, _shared(b, project, flat, moe, act), name="add_shared")
    return view(b, y, x.shape, name="sequences")


def _route(b: GraphBuilder, x: Tensor, moe: MixtureOfExperts) -> tuple[Tensor, Tensor]:
    """Weights [T, k] and expert numbers [T, k] of each token."""
    weight = b.parameter("weight", (moe.experts, x.shape[-1]))
    shape = (x.shape[0], moe.experts)
    if moe.fp32_router:
        operands = [cast(b, x, _FP32), cast(b, weight, _FP32)]
        (logits,) = b.add("linear", operands, {"out": (shape, _FP32)}, name="linear")
    else:
        with b.scope("router"):
            logits = linear(b, x, moe.experts, weight=weight)
    if moe.router == "sigmoid":
        scores = unary(b, "sigmoid", cast(b, logits, _FP32))
        bias = b.input("e_score_correction_bias", (moe.experts,), _FP32, "buffer")
        _, chosen = topk(b, _limited(b, add(b, scores, bias, name="add_bias"), moe), moe.per_token)
        weights = take_along(b, scores, chosen)
    else:
        scores = softmax(b, logits, _FP32)
        weights, chosen = topk(b, _limited(b, scores, moe), moe.per_token)
    if moe.renormalise:
        (total,) = b.add("sum", (weights,), {"out": ((x.shape[0], 1), _FP32)}, name="sum")
        weights = mul(b, weights, total, name="divide")
    if moe.fp32_router:
        weights = scale(b, weights, name="routed_scaling")
    return (weights if moe.weights_fp32 else cast(b, weights, logits.dtype)), chosen


def _limited(b: GraphBuilder, scores: Tensor, moe: MixtureOfExperts) -> Tensor:
    """Scores with all but the best groups of experts masked out (arXiv:2405.04434 §2.2.2, arXiv:2412.19437 §2.1.2)."""
    if moe.groups == 1:
        return scores
    tokens, each = scores.shape[0], moe.experts // moe.groups
    best, _ = topk(b, view(b, scores, (tokens, moe.groups, each), name="groups"), 2, name="best_of_group")
    (grouped,) = b.add("sum", (best,), {"out": ((tokens, moe.groups), _FP32)}, name="group_scores")
    _, allowed = topk(b, grouped, moe.groups_chosen, name="best_groups")
    return masked_fill(b, scores, allowed)


def _experts(
    b: GraphBuilder, workload: Workload, x: Tensor, weights: Tensor, chosen: Tensor, moe: MixtureOfExperts, act: str
) -> Tensor:
    """Sort the T·k rows by expert, run the gated MLP as two grouped products, weigh, and sum each token's rows."""
    k, width = moe.per_token, x.shape[-1]
    rows: Dim = x.shape[0] * k
    _, order = sort(b, view(b, chosen, (rows,), name="expert_ids"))
    picked = gather(b, x, index_math(b, order, name="token_of_row"), name="to_experts")
    scales = gather(b, view(b, weights, (rows, 1), name="flat_weights"), order, name="sorted_weights")
    kind = workload.weight_kind
    packed = grouped_linear(b, picked, moe.experts, 2 * moe.ffn, top_k=k, name="gate_up_proj", kind=kind)
    gate, up = split(b, packed, (moe.ffn, moe.ffn))
    hidden = mul(b, activation(b, act, gate), up, name="gated") if b.eager else gated_activation(b, gate, up)
    y = grouped_linear(b, hidden, moe.experts, width, top_k=k, name="down_proj", kind=kind)
    y = mul(b, y, scales, name="weigh")
    y = gather(b, y, index_math(b, order, name="inverse_order"), name="to_tokens")
    (y,) = b.add("sum", (view(b, y, (x.shape[0], k, width)),), {"out": ((x.shape[0], width), y.dtype)}, name="sum")
    return cast(b, y, x.dtype)


def _shared(b: GraphBuilder, project: Projections, x: Tensor, moe: MixtureOfExperts, act: str) -> Tensor:
    """The MLP that every token visits, gated by a sigmoid in Qwen2-MoE."""
    with b.scope("shared_expert" if moe.shared_gate else "shared_experts"):
        gate = project(x, moe.shared_ffn, name="gate_proj")
        gate = activation(b, act, gate) if b.eager else gate
        up = project(x, moe.shared_ffn, name="up_proj")
        hidden = mul(b, gate, up, name="gated") if b.eager else gated_activation(b, gate, up)
        y = project(hidden, x.shape[-1], name="down_proj")
    if not moe.shared_gate:
        return y
    return mul(b, unary(b, "sigmoid", linear(b, x, 1, name="shared_expert_gate")), y, name="gate_shared")
