"""Fused attention, forward and backward, under each of the names PyTorch has for it."""

from __future__ import annotations

from collections.abc import Iterable

from peakline.models.capture.calls import Call, View
from peakline.models.capture.target import Target
from peakline.models.capture.work.record import Rule, Work, as_node, built_in, like, present, read_bytes
from peakline.models.graph import Tensor
from peakline.models.operators import Node

__all__ = ["RULES", "backward_node"]


def _flat(view: View, heads_first: bool) -> Tensor:
    """[B, H, S, d] (or [B, S, H, d]) as the built-in operator's [B, S, H·d]."""
    batch, first, second, width = view.shape
    tokens, heads = (second, first) if heads_first else (first, second)
    return like(view, (batch, tokens, heads * width))


def _attributes(call: Call, heads_first: bool) -> dict[str, object]:
    axis = 1 if heads_first else 2
    a = call.arguments
    attributes: dict[str, object] = {
        "heads": a["query"].shape[axis],
        "kv_heads": a["key"].shape[axis],
        "causal": bool(a.get("is_causal", False) or a.get("custom_mask_type", 0)),
    }
    left = a.get("window_size_left")
    if attributes["causal"] and isinstance(left, int) and left >= 0:
        attributes["window"] = left + 1
    return attributes


def _operands(call: Call, heads_first: bool) -> list[Tensor]:
    return [_flat(call.arguments[name], heads_first) for name in ("query", "key", "value")]


def _bias(call: Call) -> Iterable[View]:
    a = call.arguments
    return present(a.get("attn_bias"), a.get("bias"))


def _forward(heads_first: bool) -> Rule:
    """q, k, v (and a bias) → out and log-sum-exp; the bias is read, broadcast dimensions once."""

    def rule(call: Call, target: Target) -> Work:
        out, *statistics = call.results
        outputs = [_flat(out, heads_first), *(like(view) for view in statistics[:1])]
        node = as_node("attention", _operands(call, heads_first), outputs, _attributes(call, heads_first))
        work = built_in(node)
        return Work(work.kernels, work.reads + read_bytes(_bias(call)), work.writes)

    return rule


def backward_node(call: Call, heads_first: bool = True) -> Node:
    """A backward call as the built-in operator's node."""
    a = call.arguments
    grad = a.get("grad_out", a.get("grad_out_"))
    read = [_flat(grad, heads_first), _flat(a["out"], heads_first), like(a["logsumexp"])]
    outputs = [like(view) for view in call.results]
    inputs = [*read, *_operands(call, heads_first)]
    return as_node("attention_backward", inputs, outputs, _attributes(call, heads_first))


def _backward(heads_first: bool) -> Rule:
    """dout, out, log-sum-exp, q, k, v (and a bias) → dq, dk, dv (and the bias's gradient)."""

    def rule(call: Call, target: Target) -> Work:
        work = built_in(backward_node(call, heads_first))
        return Work(work.kernels, work.reads + read_bytes(_bias(call)), work.writes)

    return rule


RULES: dict[str, Rule] = {
    "aten._scaled_dot_product_flash_attention": _forward(True),
    "aten._scaled_dot_product_efficient_attention": _forward(True),
    "aten._scaled_dot_product_cudnn_attention": _forward(True),
    "aten._scaled_dot_product_flash_attention_for_cpu": _forward(True),
    "aten._flash_attention_forward": _forward(False),
    "aten._efficient_attention_forward": _forward(False),
    "aten._scaled_dot_product_flash_attention_backward": _backward(True),
    "aten._scaled_dot_product_efficient_attention_backward": _backward(True),
    "aten._scaled_dot_product_cudnn_attention_backward": _backward(True),
    "aten._scaled_dot_product_flash_attention_for_cpu_backward": _backward(True),
    "aten._flash_attention_backward": _backward(False),
    "aten._efficient_attention_backward": _backward(False),
}
