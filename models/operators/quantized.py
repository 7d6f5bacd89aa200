"""Linear layers with quantised weights.

Four-bit formats keep activations in 16 bits: eager libraries expand the weight into a temporary before a 16-bit
product (bitsandbytes `MatMul4Bit`; one row takes its `gemv` kernel, which does not), engines read it packed (Marlin,
AWQ). `int8` and `fp8` quantise the activations too and multiply in eight bits (LLM.int8(), arXiv:2208.07339;
`torch._scaled_mm`). The weight gets no gradient; the input's expands the weight again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from peakline.models.builder import GraphBuilder
from peakline.models.dims import Dim, prod
from peakline.models.dtypes import DType, dtype, nbytes
from peakline.models.graph import Tensor
from peakline.models.kernels import Gemm, Kernel, Stream
from peakline.models.operators.registry import GradientContext, Node, OperatorType, register

__all__ = ["quantized_linear"]


@dataclass(frozen=True)
class QuantizedLinear(OperatorType):
    """y[…, n] = x[…, k] · dequantise(W[n, k])ᵀ (+ bias). Attribute `scheme`: `expand`, `packed` or `both`;
    `keeps_input`: the input is saved though nothing reads it; `expands_through`: format that the weight expands to
    before it is cast to the activations' (bitsandbytes: the format it was quantised from, `QuantState.dtype`).

    `expand` writes the weight out in the activations' format first; `packed` reads it as it is; `both` quantises the
    activations to the weight's format.
    """

    name: str = "quantized_linear"

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """The product, after expanding the weight or quantising the activations."""
        x, w = node.inputs[:2]
        y, rows = node.outputs[0], prod(x.shape[:-1])
        n, k = w.shape
        scheme = node.attributes["scheme"]
        if scheme == "expand":
            return (Stream(2 * w.elements, x.dtype), Gemm(1, rows, n, k, x.dtype, x.dtype, y.dtype))
        if scheme == "packed":
            return (Gemm(1, rows, n, k, x.dtype, w.dtype, y.dtype),)
        return (Stream(3 * x.elements, x.dtype), Gemm(1, rows, n, k, w.dtype, w.dtype, y.dtype))

    def temporary(self, node: Node) -> Dim:
        """Bytes of the expanded weight, or of the quantised activations."""
        x, w = node.inputs[:2]
        if node.attributes["scheme"] == "expand":
            return nbytes(w.elements, x.dtype)
        return nbytes(x.elements, w.dtype) if node.attributes["scheme"] == "both" else 0

    def workspace(self, node: Node) -> tuple[Dim, ...]:
        """The expanded weight, or the quantised activations."""
        size = self.temporary(node)
        if node.attributes["scheme"] == "packed":
            return ()
        return (*_through(node, node.inputs[1], node.inputs[0]), size)

    def reads(self, node: Node) -> Dim:
        """The inputs, and the temporary once."""
        return node.input_bytes + self.temporary(node)

    def writes(self, node: Node) -> Dim:
        """The result, and the temporary once."""
        return node.output_bytes + self.temporary(node)

    def backward(self, node: Node, context: GradientContext) -> None:
        """db = Σ dy; dx = dy·W with the weight expanded again. The weight itself is frozen."""
        x, w = node.inputs[:2]
        dy = context.grad(node.outputs[0])
        if dy is None:
            return
        if len(node.inputs) > 2 and context.needs(node.inputs[2]):
            bias = node.inputs[2]
            (db,) = context.emit("reduce", [dy], {"bias_grad": (bias.shape, bias.dtype)})
            context.give(bias, db)
        if context.needs(x):
            through = node.attributes.get("expands_through")
            (dx,) = context.emit(
                "quantized_input_gradient",
                [dy, w],
                {"input_grad": (x.shape, x.dtype)},
                attributes={"expands_through": through} if through else None,
            )
            context.give(x, dx)
            if node.attributes.get("keeps_input"):
                context.emit("release", [x], {})


@dataclass(frozen=True)
class QuantizedInputGradient(OperatorType):
    """dx[m, k] = dy[m, n] · dequantise(W[n, k])."""

    name: str = "quantized_input_gradient"

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """Expansion and product."""
        dy, w = node.inputs
        n, k = w.shape
        rows = prod(dy.shape[:-1])
        return (Stream(2 * w.elements, dy.dtype), Gemm(1, rows, k, n, dy.dtype, dy.dtype, node.outputs[0].dtype))

    def workspace(self, node: Node) -> tuple[Dim, ...]:
        """The expanded weight."""
        dy, w = node.inputs
        return (*_through(node, w, dy), nbytes(w.elements, dy.dtype))

    def reads(self, node: Node) -> Dim:
        """The inputs and the expanded weight."""
        return node.input_bytes + self.workspace(node)[-1]

    def writes(self, node: Node) -> Dim:
        """The gradient and the expanded weight."""
        return node.output_bytes + self.workspace(node)[-1]


def _through(node: Node, weight: Tensor, activations: Tensor) -> tuple[Dim, ...]:
    """Bytes of the weight in the format it expands through, where that is not the activations' own."""
    through = node.attributes.get("expands_through")
    if through is None or dtype(through).name == activations.dtype.name:
        return ()
    return (nbytes(weight.elements, dtype(through)),)


register(QuantizedLinear())
register(QuantizedInputGradient())


def _single_row(rows: Dim) -> bool:
    """Whether the product has one row, for which bitsandbytes has a kernel that reads the packed weight."""
    single = np.equal(rows, 1)
    if np.any(single) and not np.all(single):
        raise ValueError("batch: one row and more run different 4-bit kernels; sweep batch 1 apart, or kernels='fused'")
    return bool(np.all(single))


def quantized_linear(
    b: GraphBuilder,
    x: Tensor,
    out_features: Dim,
    kind: DType,
    *,
    bias: bool = False,
    keeps_input: bool = False,
    expands_through: str | None = None,
    name: str = "linear",
) -> Tensor:
    """A linear layer whose weight is stored in `kind`; see the module's text for how each format is multiplied.

    Args:
        keeps_input: autograd saves the input, as bitsandbytes up to 0.43 did.
        expands_through: format that the weight expands to before it is cast to the activations'.

    Raises:
        ValueError: a sweep over one row and more, for which a 4-bit eager library runs different kernels.
    """
    with b.scope(name):
        inputs = [x, b.parameter("weight", (out_features, x.shape[-1]), kind, trainable=False)]
        if bias:
            inputs.append(b.parameter("bias", (out_features,)))
        rows = prod(x.shape[:-1])
        if kind.bits == 8 and not kind.block:
            scheme = "both"
        else:
            scheme = "packed" if not b.eager or _single_row(rows) else "expand"
        out = b.autocast or x.dtype
        attributes: dict[str, Any] = {"scheme": scheme}
        if keeps_input:
            attributes["keeps_input"] = True
        if expands_through:
            attributes["expands_through"] = expands_through
        return b.add(
            "quantized_linear",
            inputs,
            {"out": ((*x.shape[:-1], out_features), out)},
            name="linear",
            attributes=attributes,
        )[0]
