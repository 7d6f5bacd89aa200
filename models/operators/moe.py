"""Mixture-of-experts products: one grouped product over all experts, whose rows are sorted by expert."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from peakline.models.builder import GraphBuilder
from peakline.models.dims import Dim, is_array
from peakline.models.dtypes import DType
from peakline.models.graph import Tensor
from peakline.models.kernels import GroupedGemm, Kernel
from peakline.models.operators.elementwise import cast
from peakline.models.operators.normalization import Mean
from peakline.models.operators.registry import GradientContext, Node, OperatorType, register

__all__ = ["experts_hit", "grouped_linear"]


def experts_hit(experts: int, per_token: int, rows: Dim) -> Dim:
    """Experts that receive at least one of `rows` = tokens·per_token rows, expected under uniform routing, rounded up.

    Each token chooses `per_token` of E different experts: E·(1 − (1 − per_token/E)^tokens).
    """
    tokens = rows // per_token
    if per_token >= experts:
        return np.minimum(tokens, 1) * experts if is_array(tokens) else min(tokens, 1) * experts
    missed = np.power(1.0 - per_token / experts, tokens)
    expected: Any = np.ceil(experts * (1.0 - missed) - 1e-9)  # 1e-9: the last digits of two libraries' powers
    return expected.astype(np.int64) if is_array(tokens) else int(expected)


def _hit(node: Node, rows: Dim, experts: Dim) -> Dim:
    return experts_hit(int(experts) if not is_array(experts) else int(np.max(experts)), node.attributes["top_k"], rows)


def _weight_bytes(node: Node, weight: Tensor, rows: Dim) -> Dim:
    """Bytes of the matrices of the experts that are hit."""
    return weight.bytes // weight.shape[0] * _hit(node, rows, weight.shape[0])


@dataclass(frozen=True)
class GroupedLinear(OperatorType):
    """y[R, n] = x[R, k]·W[expert of the row, n, k]ᵀ; keeps x and W. Attribute `top_k`: experts per token."""

    name: str = "grouped_linear"

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """One grouped product over the experts hit."""
        x, w = node.inputs
        rows = x.shape[0]
        groups = _hit(node, rows, w.shape[0])
        return (GroupedGemm(groups, rows, w.shape[1], w.shape[2], x.dtype, w.dtype, node.outputs[0].dtype),)

    def reads(self, node: Node) -> Dim:
        """The rows, and the matrices of the experts hit."""
        x, w = node.inputs
        return x.bytes + _weight_bytes(node, w, x.shape[0])

    def backward(self, node: Node, context: GradientContext) -> None:
        """dx = dy·W of the row's expert; dW per expert from its rows."""
        x, w = node.inputs
        dy = context.grad(node.outputs[0])
        if dy is None:
            return
        if context.needs(x):
            outputs = {"input_grad": (x.shape, x.dtype)}
            (dx,) = context.emit("grouped_input_gradient", [dy, w], outputs, attributes=node.attributes)
            context.give(x, dx)
        if context.needs(w):
            outputs = {"weight_grad": (w.shape, w.dtype)}
            (dw,) = context.emit("grouped_weight_gradient", [dy, x], outputs, attributes=node.attributes)
            context.give(w, dw)


@dataclass(frozen=True)
class GroupedInputGradient(OperatorType):
    """dx[R, k] = dy[R, n]·W[expert, n, k]."""

    name: str = "grouped_input_gradient"

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """One grouped product."""
        dy, w = node.inputs
        rows = dy.shape[0]
        groups = _hit(node, rows, w.shape[0])
        return (GroupedGemm(groups, rows, w.shape[2], w.shape[1], dy.dtype, w.dtype, node.outputs[0].dtype),)

    def reads(self, node: Node) -> Dim:
        """The gradient's rows and the matrices of the experts hit."""
        dy, w = node.inputs
        return dy.bytes + _weight_bytes(node, w, dy.shape[0])


@dataclass(frozen=True)
class GroupedWeightGradient(OperatorType):
    """dW[expert, n, k] = dyᵀ·x over the expert's rows; zeros for experts without rows."""

    name: str = "grouped_weight_gradient"

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """As many FLOPs as the forward product, written as one result per expert."""
        dy, x = node.inputs
        experts, n, k = node.outputs[0].shape
        groups = _hit(node, x.shape[0], experts)
        return (GroupedGemm(groups, x.shape[0], n, k, dy.dtype, x.dtype, node.outputs[0].dtype),)


@dataclass(frozen=True)
class Sum(Mean):
    """Sum of each token's rows; the gradient is written out once per row (a view of an expanded tensor copies it)."""

    name: str = "sum"


for _type in (Sum(), GroupedLinear(), GroupedInputGradient(), GroupedWeightGradient()):
    register(_type)


def grouped_linear(
    b: GraphBuilder, x: Tensor, experts: int, out_features: Dim, *, top_k: int, name: str, kind: DType | None = None
) -> Tensor:
    """All experts' linear layer over rows sorted by expert; the weight is `path.name` [experts, out, in].

    `kind` stores the weights quantised (they are then frozen and read packed).
    """
    w: Tensor = b.parameter(name, (experts, out_features, x.shape[-1]), kind, trainable=kind is None)
    if b.autocast is not None:
        x, w = cast(b, x, b.autocast), (w if kind is not None else b.cast_once(w))
    out = b.autocast or x.dtype
    shape = (x.shape[0], out_features)
    return b.add("grouped_linear", (x, w), {"out": (shape, out)}, name=f"{name}_mm", attributes={"top_k": top_k})[0]
