"""Gated activation in one kernel, y = act(gate)·up (SwiGLU, GeGLU): keeps gate and up and recomputes the rest.

Source: Liger's `LigerSiLUMulFunction` (arXiv:2410.10989 §3.2), vLLM's `silu_and_mul`.
"""

from __future__ import annotations

from dataclasses import dataclass

from peakline.models.builder import GraphBuilder
from peakline.models.graph import Tensor
from peakline.models.kernels import Kernel, Stream
from peakline.models.operators.registry import GradientContext, Node, OperatorType, register

__all__ = ["gated_activation"]


@dataclass(frozen=True)
class GatedActivation(OperatorType):
    """y = act(gate)·up."""

    name: str = "gated_activation"

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """Sigmoid or tanh and two products: about six operations per element."""
        return (Stream(6 * node.outputs[0].elements, node.outputs[0].dtype),)

    def backward(self, node: Node, context: GradientContext) -> None:
        """dgate and dup in one kernel."""
        gate, up = node.inputs
        dy = context.grad(node.outputs[0])
        if dy is None or not (context.needs(gate) or context.needs(up)):
            return
        outputs = {"gate_grad": (gate.shape, gate.dtype), "up_grad": (up.shape, up.dtype)}
        made = context.emit("elementwise_backward", [dy, gate, up], outputs)
        for target, gradient in zip((gate, up), made):
            if context.needs(target):
                context.give(target, gradient)


register(GatedActivation())


def gated_activation(b: GraphBuilder, gate: Tensor, up: Tensor, *, name: str = "act_and_mul") -> Tensor:
    """act(gate)·up, fused."""
    return b.add("gated_activation", (gate, up), {"out": (gate.shape, gate.dtype)}, name=name)[0]
