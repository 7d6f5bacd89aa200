"""Softmax and log-softmax: both keep their output (`derivatives.yaml`: `_softmax`, `_log_softmax`)."""

from __future__ import annotations

from dataclasses import dataclass

from peakline.models.builder import GraphBuilder
from peakline.models.dtypes import DType, dtype
from peakline.models.graph import Tensor
from peakline.models.kernels import Kernel, Stream
from peakline.models.operators.elementwise import cast
from peakline.models.operators.registry import GradientContext, Node, OperatorType, register

__all__ = ["softmax"]


@dataclass(frozen=True)
class Softmax(OperatorType):
    """softmax or log_softmax over the last dimension."""

    name: str

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """Maximum, subtract, exponential, sum, divide: about eight operations per element."""
        return (Stream(8 * node.outputs[0].elements, node.outputs[0].dtype),)

    def backward(self, node: Node, context: GradientContext) -> None:
        """dx = y·(dy − Σ y·dy) (softmax) or dy − exp(y)·Σ dy (log_softmax), in the input's format."""
        x, y = node.inputs[0], node.outputs[0]
        dy = context.grad(y)
        if dy is not None and context.needs(x):
            (dx,) = context.emit("softmax_backward", [dy, y], {"dx": (x.shape, x.dtype)})
            context.give(x, dx)


@dataclass(frozen=True)
class SoftmaxBackward(OperatorType):
    """Gradient of softmax or log_softmax."""

    name: str = "softmax_backward"

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """About five operations per element."""
        return (Stream(5 * node.outputs[0].elements, node.outputs[0].dtype),)


for _type in (Softmax("softmax"), Softmax("log_softmax"), SoftmaxBackward()):
    register(_type)


def softmax(b: GraphBuilder, x: Tensor, kind: DType | str | None = None, *, name: str = "softmax") -> Tensor:
    """Softmax over the last dimension computed in `kind` (x is converted inside the kernel); float32 under autocast."""
    out = dtype(kind) if kind is not None else (dtype("fp32") if b.autocast is not None else x.dtype)
    if out.name != x.dtype.name and b.autocast is not None:
        x = cast(b, x, out)
    return b.add("softmax", (x,), {"out": (x.shape, out)}, name=name)[0]
