"""Matrix products: linear layers, batched products, and the two products of each one's backward.

FLOPs 2·m·n·k. Autograd keeps the input if the weight needs a gradient, and the weight if the input does
(`tools/autograd/derivatives.yaml`: mm, addmm, bmm), so a frozen base under LoRA does not keep its input.
"""

from __future__ import annotations

from dataclasses import dataclass

from peakline.models.builder import GraphBuilder
from peakline.models.dims import Dim, prod
from peakline.models.dtypes import DType, dtype
from peakline.models.graph import Tensor
from peakline.models.kernels import Gemm, Kernel, Stream
from peakline.models.operators.elementwise import cast, promote, reduce_to
from peakline.models.operators.registry import GradientContext, Node, OperatorType, register

__all__ = ["bias_kind", "linear", "matmul"]


def _rows(x: Tensor) -> Dim:
    return prod(x.shape[:-1])


@dataclass(frozen=True)
class Linear(OperatorType):
    """y[…, n] = x[…, k] · W[n, k]ᵀ (+ bias[n])."""

    name: str = "linear"

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """One product of m = rows, n = out features, k = in features."""
        x, w = node.inputs[:2]
        return (Gemm(1, _rows(x), w.shape[0], w.shape[1], x.dtype, w.dtype, node.outputs[0].dtype),)

    def backward(self, node: Node, context: GradientContext) -> None:
        """dx = dy·W, dW = dyᵀ·x, db = Σ dy.

        In the generated nodes' order, by argument name: `AddmmBackward0` mat1, mat2, self; `MmBackward0` mat2, self.
        PyTorch multiplies two-dimensional views: dx of a batch of sequences is reshaped back, dW (of `weight.t()`)
        transposed back, so both arrive as views, after what is no view, and the later view of the forward pass first
        (`_flatten_nd_linear` reshapes the input before it transposes the weight, `matmul` after).
        """
        x, w, *bias = node.inputs
        dy = context.grad(node.outputs[0])
        if dy is None:
            return
        wanted = [t for t in ((x, w, *bias) if bias else (w, x)) if context.needs(t)]
        made = {t.name: _linear_gradient(context, t, dy, x, w) for t in wanted}
        reshaped = len(x.shape) > 2
        for target in (*bias, w, x) if bias and reshaped else (x, *bias, w):
            if target.name in made:
                context.give(target, made[target.name], view=target is w or (target is x and reshaped))


def _linear_gradient(context: GradientContext, target: Tensor, dy: Tensor, x: Tensor, w: Tensor) -> Tensor:
    """The gradient of a linear layer's input, weight or (`target` is neither) bias."""
    if target is x:
        kind, read, name = "linear_input_gradient", [dy, w], "input_grad"
    elif target is w:
        kind, read, name = "linear_weight_gradient", [dy, x], "weight_grad"
    else:
        kind, read, name = "reduce", [dy], "bias_grad"
    return context.emit(kind, read, {name: (target.shape, target.dtype)})[0]


@dataclass(frozen=True)
class LinearInputGradient(OperatorType):
    """dx[m, k] = dy[m, n] · W[n, k]."""

    name: str = "linear_input_gradient"

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """m × k result, n summed."""
        dy, w = node.inputs
        return (Gemm(1, _rows(dy), w.shape[1], w.shape[0], dy.dtype, w.dtype, node.outputs[0].dtype),)


@dataclass(frozen=True)
class LinearWeightGradient(OperatorType):
    """dW[n, k] = dy[m, n]ᵀ · x[m, k]."""

    name: str = "linear_weight_gradient"

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """n × k result, the m rows summed."""
        dy, x = node.inputs
        return (Gemm(1, dy.shape[-1], x.shape[-1], _rows(x), dy.dtype, x.dtype, node.outputs[0].dtype),)


@dataclass(frozen=True)
class MatMul(OperatorType):
    """Batched product y[…, m, n] = a[…, m, k] · b[…, k, n].

    Attributes: `transpose_b` (b lies as […, n, k]) and `transpose_a` (a lies as […, k, m]).
    """

    name: str = "matmul"

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """`batch` = product of the leading dimensions of the result."""
        a, b = node.inputs
        y = node.outputs[0]
        k = a.shape[-2] if node.attributes.get("transpose_a") else a.shape[-1]
        return (Gemm(prod(y.shape[:-2]), y.shape[-2], y.shape[-1], k, a.dtype, b.dtype, y.dtype),)

    def backward(self, node: Node, context: GradientContext) -> None:
        """da = dy·bᵀ, db = aᵀ·dy, reduced over broadcast batch dimensions; reshaped back from `bmm`, as views."""
        a, b = node.inputs
        dy = context.grad(node.outputs[0])
        if dy is None:
            return
        transposed = bool(node.attributes.get("transpose_b"))
        if context.needs(b):
            left, right = (dy, a) if transposed else (a, dy)
            shape = (*dy.shape[:-2], *b.shape[-2:])
            (db,) = context.emit(
                "matmul", [left, right], {"b_grad": (shape, b.dtype)}, attributes={"transpose_a": True}
            )
            context.give(b, reduce_to(context, db, b), view=True)
        if context.needs(a):
            shape = (*dy.shape[:-1], a.shape[-1])
            (da,) = context.emit(
                "matmul", [dy, b], {"a_grad": (shape, a.dtype)}, attributes={"transpose_b": not transposed}
            )
            context.give(a, reduce_to(context, da, a), view=True)


@dataclass(frozen=True)
class Dequantize(OperatorType):
    """Expand a quantised weight to a compute format before a product (bitsandbytes, torchao)."""

    name: str = "dequantize"

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """A multiply and an add per element."""
        return (Stream(2 * node.outputs[0].elements, node.outputs[0].dtype),)


for _type in (Linear(), LinearInputGradient(), LinearWeightGradient(), MatMul(), Dequantize()):
    register(_type)


def linear(
    b: GraphBuilder,
    x: Tensor,
    out_features: Dim,
    *,
    bias: bool = False,
    name: str = "linear",
    kind: DType | str | None = None,
    weight: Tensor | None = None,
    trainable: bool = True,
) -> Tensor:
    """A linear layer over the last dimension; `weight` reuses an existing matrix (tied embeddings).

    Under autocast the input and the weight are cast to the autocast format first; the weight's copy is kept for the
    forward pass, as autocast's cache does.
    """
    with b.scope(name):
        w = (
            weight
            if weight is not None
            else b.parameter("weight", (out_features, x.shape[-1]), kind, trainable=trainable)
        )
        inputs = [x, w]
        if bias:
            inputs.append(b.parameter("bias", (out_features,), kind or bias_kind(b), trainable=trainable))
        return product(b, "linear", inputs, (*x.shape[:-1], out_features))


def bias_kind(b: GraphBuilder) -> DType:
    """Format of a bias: the parameters' own, or int32 in an integer model (TensorFlow Lite 8-bit specification)."""
    return b.dtype if b.dtype.is_float else dtype("int32")


def product(b: GraphBuilder, kind: str, inputs: list[Tensor], shape: tuple[Dim, ...], **attributes: bool) -> Tensor:
    """A matrix product in the format PyTorch would run it in: the autocast format, or the operands' promotion."""
    if b.autocast is not None:
        inputs = [b.cast_once(t) if t.role == "parameter" else cast(b, t, b.autocast) for t in inputs]
        out = b.autocast
    else:
        out = promote(inputs[0].dtype, inputs[1].dtype)
    return b.add(kind, inputs, {"out": (shape, out)}, name=kind, attributes=attributes)[0]


def matmul(b: GraphBuilder, x: Tensor, y: Tensor, *, transpose_b: bool = False, name: str = "matmul") -> Tensor:
    """Batched product over the last two dimensions."""
    n = y.shape[-2] if transpose_b else y.shape[-1]
    attributes = {"transpose_b": True} if transpose_b else {}
    with b.scope(name):
        return product(b, "matmul", [x, y], (*x.shape[:-1], n), **attributes)
