"""Dropout: on CUDA the kernel keeps a bool mask of the input's shape (`native_dropout`); in evaluation it is absent."""

from __future__ import annotations

from dataclasses import dataclass

from peakline.models.builder import GraphBuilder
from peakline.models.graph import Tensor
from peakline.models.kernels import Kernel, Stream
from peakline.models.operators.registry import GradientContext, Node, OperatorType, hand_back, register

__all__ = ["dropout"]


@dataclass(frozen=True)
class Dropout(OperatorType):
    """y = x·mask/(1 − p)."""

    name: str = "dropout"

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """Random number, compare, multiply: about ten operations per element."""
        return (Stream(10 * node.outputs[0].elements, node.outputs[0].dtype),)

    def backward(self, node: Node, context: GradientContext) -> None:
        """dx = dy·mask/(1 − p): reads the mask only."""
        hand_back(node, context, "elementwise_backward", node.outputs[1])


register(Dropout())


def dropout(b: GraphBuilder, x: Tensor, p: float, *, name: str = "dropout") -> Tensor:
    """Dropout with probability p; x itself outside training or when p is 0."""
    if not b.training or p == 0:
        return x
    return b.add("dropout", (x,), {"out": (x.shape, x.dtype), "mask": (x.shape, "bool")}, name=name)[0]
