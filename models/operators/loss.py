"""Losses. Cross-entropy as eager PyTorch runs it (log-softmax kept, two gradients of its size in backward), and the
chunked or fused forms that never hold the whole logits (Liger, Cut Cross-Entropy, torchtune's chunked loss).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from peakline.models.builder import GraphBuilder
from peakline.models.dims import Dim, ceil_div
from peakline.models.dtypes import dtype
from peakline.models.graph import Tensor
from peakline.models.kernels import Gemm, Kernel, Stream
from peakline.models.operators.elementwise import cast
from peakline.models.operators.registry import GradientContext, Node, OperatorType, hand_back, register

__all__ = ["cross_entropy", "linear_cross_entropy", "mse_loss"]


@dataclass(frozen=True)
class NllLoss(OperatorType):
    """Mean negative log-likelihood of the labels; keeps log-probabilities, labels and the scalar total weight."""

    name: str = "nll_loss"

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """One gather and addition per label."""
        return (Stream(2 * node.inputs[1].elements, node.inputs[0].dtype),)

    def reads(self, node: Node) -> Dim:
        """The labels and one log-probability each."""
        log_probs, labels = node.inputs
        return labels.bytes + labels.elements * (log_probs.dtype.bits // 8)

    def backward(self, node: Node, context: GradientContext) -> None:
        """A zero-filled tensor of the log-probabilities' size with −1/n at the labels (`nll_loss_backward`)."""
        log_probs, labels = node.inputs
        loss, *total = node.outputs
        dy = context.grad(loss)
        if dy is not None and context.needs(log_probs):
            outputs = {"dx": (log_probs.shape, log_probs.dtype)}
            (dx,) = context.emit("fill_backward", [dy, labels, *total], outputs)
            context.give(log_probs, dx)


@dataclass(frozen=True)
class FillBackward(OperatorType):
    """Writes a gradient tensor that hardly reads anything (zero fill and scatter)."""

    name: str = "fill_backward"
    launches: int = 2

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """No arithmetic to speak of: one operation per element written."""
        return (Stream(node.outputs[0].elements, node.outputs[0].dtype, 2),)


@dataclass(frozen=True)
class MseLoss(OperatorType):
    """Mean squared error; keeps prediction and target.

    Its scalar lies in memory of the prediction's size, and the squares stand beside it while they are averaged:
    `TORCH_META_FUNC(mse_loss)` builds the elementwise output and resizes it to a scalar, which frees nothing
    (aten/src/ATen/native/Loss.cpp).
    """

    name: str = "mse_loss"

    def workspace(self, node: Node) -> tuple[Dim, ...]:
        """The squared differences."""
        return (node.inputs[0].bytes,)

    def writes(self, node: Node) -> Dim:
        """A scalar."""
        return node.outputs[0].dtype.bits // 8

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """Subtract, square, add."""
        return (Stream(3 * node.inputs[0].elements, node.inputs[0].dtype),)

    def backward(self, node: Node, context: GradientContext) -> None:
        """dx = 2(x − target)/n."""
        hand_back(node, context, "elementwise_backward", *node.inputs)


@dataclass(frozen=True)
class LinearCrossEntropy(OperatorType):
    """Head projection and cross-entropy together, `chunks` slices of the rows at a time.

    Inputs x[rows, h], weight[v, h], labels; outputs the scalar loss and the gradients of x and weight, which the
    forward pass already computes (Liger's FusedLinearCrossEntropy, arXiv:2410.10989 §3.2).
    """

    name: str = "linear_cross_entropy"

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """Logits, dx and dW: three products, and a softmax over the logits."""
        x, w = node.inputs[:2]
        rows, (v, h) = x.elements // x.shape[-1], w.shape
        kind = x.dtype
        return (
            Gemm(1, rows, v, h, kind, w.dtype, kind),
            Stream(8 * rows * v, dtype("fp32"), 2),
            Gemm(1, rows, h, v, kind, w.dtype, kind),
            Gemm(1, v, h, rows, kind, kind, w.dtype),
        )

    def workspace(self, node: Node) -> tuple[Dim, ...]:
        """One chunk of logits in the input's format and one in float32."""
        x, w = node.inputs[:2]
        rows = ceil_div(x.elements // x.shape[-1], node.attributes["chunks"])
        return (rows * w.shape[0] * (x.dtype.bits // 8), rows * w.shape[0] * 4)

    def backward(self, node: Node, context: GradientContext) -> None:
        """Hands on the gradients that the forward pass computed."""
        x, w = node.inputs[:2]
        if context.grad(node.outputs[0]) is None:
            return
        for target, gradient in zip((x, w), node.outputs[1:]):
            if context.needs(target):
                outputs = {"grad": (target.shape, target.dtype)}
                context.give(target, context.emit("view", [gradient], outputs, in_place={"grad": gradient})[0])


for _type in (NllLoss(), FillBackward(), MseLoss(), LinearCrossEntropy()):
    register(_type)


def cross_entropy(b: GraphBuilder, logits: Tensor, labels: Tensor, *, upcast: bool = True) -> Tensor:
    """`F.cross_entropy` over the last dimension; `upcast` makes float32 logits first, as transformers does."""
    with b.scope("loss"):
        if upcast or b.autocast is not None:
            logits = cast(b, logits, "fp32", name="upcast")
        (log_probs,) = b.add("log_softmax", (logits,), {"out": (logits.shape, logits.dtype)}, name="log_softmax")
        scalars = {"out": ((), logits.dtype), "total_weight": ((), logits.dtype)}
        return b.add("nll_loss", (log_probs, labels), scalars, name="nll_loss")[0]


def linear_cross_entropy(b: GraphBuilder, x: Tensor, weight: Tensor, labels: Tensor, *, chunks: Dim) -> Tensor:
    """The fused head and loss, in `chunks` slices of the rows."""
    outputs = {"out": ((), dtype("fp32")), "dx": (x.shape, x.dtype), "dweight": (weight.shape, weight.dtype)}
    with b.scope("loss"):
        return b.add("linear_cross_entropy", (x, weight, labels), outputs, name="fused", attributes={"chunks": chunks})[
            0
        ]


def mse_loss(b: GraphBuilder, prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error, a scalar; in float32 under autocast."""
    with b.scope("loss"):
        if b.autocast is not None:
            prediction, target = (cast(b, t, "fp32", name="upcast") for t in (prediction, target))
        (loss,) = b.add("mse_loss", (prediction, target), {"out": ((), prediction.dtype)}, name="mse")
        b.tensors[loss.name] = replace(loss, bytes_override=prediction.bytes)
        return b.tensors[loss.name]
