"""One pass of an optimizer over many tensors: reads some lists, overwrites or makes others."""

from __future__ import annotations

from dataclasses import dataclass

from peakline.models.dims import Dim, ceil_div
from peakline.models.graph import Tensor
from peakline.models.kernels import Gemm, Kernel, Stream
from peakline.models.operators.registry import Node, OperatorType, register

__all__ = ["CHUNK"]

CHUNK = 65536 * 320
"""Elements one multi-tensor kernel covers: 320 blocks of 65,536 (aten/src/ATen/native/cuda/MultiTensorApply.cuh)."""


@dataclass(frozen=True)
class UpdatePass(OperatorType):
    """One elementwise pass. Attributes: `writes`, how many of the first inputs are overwritten; `work` per element.

    `tensors` is the number of kernels when each tensor is updated by itself; multi-tensor kernels otherwise.
    """

    name: str = "update_pass"

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """`work` scalar operations per element of the lists."""
        total: Dim = 0
        for tensor, count in self._list(node):
            total = total + tensor.elements * count
        launches = node.attributes.get("launches") or ceil_div(total, CHUNK)
        kind = (node.inputs or node.outputs)[0].dtype
        return (Stream(total * int(node.attributes.get("work", 2)), kind, launches),)

    def _list(self, node: Node) -> list[tuple[Tensor, int]]:
        parameters = int(node.attributes["tensors"])
        pairs = list(zip((*node.inputs, *node.outputs), node.instances))
        return pairs[:parameters]

    def writes(self, node: Node) -> Dim:
        """The overwritten inputs and the outputs."""
        n = int(node.attributes.get("writes", 0))
        total: Dim = node.output_bytes
        for tensor, count in zip(node.inputs[:n], node.instances[:n]):
            total = total + tensor.bytes * count
        return total


@dataclass(frozen=True)
class NewtonSchulz(OperatorType):
    """Muon's orthogonalisation of one momentum matrix: `steps` rounds of three products in bf16.

    X ← aX + (bA + cA²)X with A = XXᵀ (Keller Jordan, "Muon", 2024): 2·(2m²n + m³)+… FLOPs for m ≤ n.
    """

    name: str = "newton_schulz"

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """Per step XXᵀ (m·m·n), A·A (m·m·m) and B·X (m·n·m), for each layer: one list, or every matrix by name."""
        p, count, steps = node.inputs[0], sum(node.instances[: len(node.inputs)]), int(node.attributes["steps"])
        m, n = sorted((int(p.shape[0]), int(p.elements // p.shape[0])))
        k = node.outputs[0].dtype
        batch = count * steps
        return (Gemm(batch, m, m, n, k, k, k), Gemm(batch, m, m, m, k, k, k), Gemm(batch, m, n, m, k, k, k))

    def workspace(self, node: Node) -> tuple[Dim, ...]:
        """A, B and the last round's X in bf16, and Nesterov's update (`_zeropower_via_newtonschulz`)."""
        p = node.inputs[0]
        m = min(int(p.shape[0]), int(p.elements // p.shape[0]))
        return (2 * m * m, 2 * m * m, 2 * p.elements, p.bytes)


for _type in (UpdatePass(), NewtonSchulz()):
    register(_type)
