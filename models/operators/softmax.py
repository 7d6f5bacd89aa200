"""Softmax and log-softmax: both keep their output (`derivatives.yaml`: `_softmax`, `_log_softmax`)."""

from __future__ import annotations

from dataclasses import dataclass

from peakline.models.builder import GraphBuilder
from peakline.models.dims import Dim, prod
from peakline.models.dtypes import DType, dtype
from peakline.models.graph import Tensor
from peakline.models.kernels import Kernel, Stream
from peakline.models.operators.elementwise import cast
from peakline.models.operators.registry import GradientContext, Node, OperatorType, hand_back, register
from peakline.models.operators.rows import softmax_backward_rows, softmax_rows

__all__ = ["softmax"]


@dataclass(frozen=True)
class Softmax(OperatorType):
    """softmax or log_softmax over the last dimension."""

    name: str

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """Maximum, subtract, exponential, sum, divide: about eight operations per element."""
        x, y = node.inputs[0], node.outputs[0]
        walk = softmax_rows(_rows(x), x.shape[-1], x.dtype)
        return (Stream(8 * y.elements, y.dtype, **walk),)

    def backward(self, node: Node, context: GradientContext) -> None:
        """dx = y·(dy − Σ y·dy) (softmax) or dy − exp(y)·Σ dy (log_softmax), in the input's format."""
        log = self.name == "log_softmax"
        hand_back(node, context, "softmax_backward", node.outputs[0], attributes={"log": log})


@dataclass(frozen=True)
class SoftmaxBackward(OperatorType):
    """Gradient of softmax or, with the attribute `log`, log_softmax."""

    name: str = "softmax_backward"

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """About five operations per element; softmax's begins with a kernel of its own for dy·y (`grad * output`)."""
        dy, y = node.inputs
        dx = node.outputs[0]
        walk = softmax_backward_rows(_rows(y), y.shape[-1], dx.dtype)
        if node.attributes.get("log", True):
            return (Stream(5 * dx.elements, dx.dtype, **walk),)
        return (Stream(5 * dx.elements, dx.dtype, 2, again=dy.bytes + y.bytes, **walk),)

    def workspace(self, node: Node) -> tuple[Dim, ...]:
        """Softmax's product dy·y stands beside the gradient (`softmax_backward_cuda_out`: `tmp = grad * output`)."""
        return () if node.attributes.get("log", True) else (node.inputs[0].bytes,)


def _rows(x: Tensor) -> Dim:
    return prod(x.shape[:-1])


for _type in (Softmax("softmax"), Softmax("log_softmax"), SoftmaxBackward()):
    register(_type)


def softmax(b: GraphBuilder, x: Tensor, kind: DType | str | None = None, *, name: str = "softmax") -> Tensor:
    """Softmax over the last dimension computed in `kind`; in float32 under autocast.

    The kernel converts fp16 to float32 itself; anything else is cast to a copy first (aten/src/ATen/native/SoftMax.cpp,
    `softmax(input, dim, dtype)`).
    """
    out = dtype(kind) if kind is not None else (dtype("fp32") if b.autocast is not None else x.dtype)
    if out.name != x.dtype.name and (b.autocast is not None or x.dtype.name != "fp16"):
        x = cast(b, x, out)
    return b.add("softmax", (x,), {"out": (x.shape, out)}, name=name)[0]
