"""Layer, RMS, batch and group normalisation, with what each keeps for backward.

layer_norm keeps its input, mean and rstd (float32 statistics on CUDA); the fused RMS norm input and rstd; an RMS norm
written out in Python (as transformers does) keeps a float32 copy of the input and the normalised tensor; batch_norm
keeps input and batch statistics. Source: `tools/autograd/derivatives.yaml`, `native_layer_norm`, `native_batch_norm`,
`native_group_norm`, and `transformers.models.llama.modeling_llama.LlamaRMSNorm`.
"""

from __future__ import annotations

from dataclasses import dataclass

from peakline.models.builder import GraphBuilder
from peakline.models.dims import Dim, prod
from peakline.models.dtypes import DType, dtype
from peakline.models.graph import Tensor
from peakline.models.kernels import Kernel, Stream
from peakline.models.operators.elementwise import cast, mul, scale, unary
from peakline.models.operators.registry import GradientContext, Node, OperatorType, hand_back, register
from peakline.models.operators.rows import layer_norm_rows

__all__ = ["batch_norm", "group_norm", "layer_norm", "rms_norm"]

_FP32 = dtype("fp32")
_BY_ROW = ("layer_norm", "rms_norm")


@dataclass(frozen=True)
class Norm(OperatorType):
    """y = normalise(x)·weight + bias over one pass; keeps x and the statistics it computed.

    Inputs x, then weight and bias where there are any; outputs y, then `statistics`.
    """

    name: str
    work: int

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """`work` scalar operations per element; rows walked twice, or statistics and result in kernels of their own.

        Batch norm in training and group norm cannot hold what they average in one thread block: a first kernel reads
        x for the statistics (`batch_norm_collect_statistics`, `RowwiseMomentsCUDAKernel`), a last one reads it again.
        """
        x, y = node.inputs[0], node.outputs[0]
        work = self.work * y.elements
        if self.name in _BY_ROW:
            return (Stream(work, y.dtype, **layer_norm_rows(prod(x.shape[:-1]), x.shape[-1])),)
        if len(node.outputs) == 1:
            return (Stream(work, y.dtype),)
        return (Stream(work, y.dtype, 2 if self.name == "batch_norm" else 3, again=x.bytes),)

    def backward(self, node: Node, context: GradientContext) -> None:
        """One kernel for dx, one for the affine parameters' gradients."""
        x, *affine = node.inputs
        y, *statistics = node.outputs
        dy = context.grad(y)
        if dy is None:
            return
        wanted = [p for p in affine if context.needs(p)]
        outputs = {"dx": (x.shape, x.dtype)} if context.needs(x) else {}
        outputs |= {f"{p.name.rsplit('.', 1)[-1]}_grad": (p.shape, p.dtype) for p in wanted}
        if not outputs:
            return
        inputs = [dy, x, *statistics, *affine[:1]]
        made = context.emit("norm_backward", inputs, outputs, attributes={"norm": self.name})
        targets = ([x] if context.needs(x) else []) + wanted
        for target, gradient in zip(targets, made):
            context.give(target, gradient)


@dataclass(frozen=True)
class NormBackward(OperatorType):
    """Gradients of a normalisation (attribute `norm`): reads dy and x, writes dx and the affine gradients."""

    name: str = "norm_backward"
    launches: int = 2

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """About twelve scalar operations per element.

        By row: dx walks dy and x twice, and the affine gradients, sums over rows, read both again
        (`GammaBetaBackward`). By channel: sums of dy and dy·x first, which are the affine gradients, then dx from both
        operands (`batch_norm_backward_reduce`, `ComputeInternalGradients`).
        """
        dy, x = node.inputs[:2]
        work, both = 12 * x.elements, dy.bytes + x.bytes
        if node.attributes.get("norm", "layer_norm") not in _BY_ROW:
            return (Stream(work, x.dtype, 2, again=both),)
        affine = len(node.outputs) > 1
        walk = layer_norm_rows(prod(x.shape[:-1]), x.shape[-1])
        return (Stream(work, x.dtype, 2 if affine else 1, again=both if affine else 0, **walk),)


for _type in (
    Norm("layer_norm", 8), Norm("rms_norm", 5), Norm("batch_norm", 6), Norm("group_norm", 8), NormBackward(),
):  # fmt: skip
    register(_type)


@dataclass(frozen=True)
class Mean(OperatorType):
    """Mean (or sum) over the last dimension, kept as size 1; its gradient is expanded, not copied."""

    name: str = "mean"

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """One addition per element read."""
        return (Stream(node.inputs[0].elements, node.inputs[0].dtype),)

    def backward(self, node: Node, context: GradientContext) -> None:
        """dx = dy/n: an expanded view divided out into a full tensor (`mean_backward`)."""
        hand_back(node, context, "expand_backward")


@dataclass(frozen=True)
class ExpandBackward(OperatorType):
    """Writes an expanded (broadcast) gradient out in full."""

    name: str = "expand_backward"


register(Mean())
register(ExpandBackward())


def _stats(b: GraphBuilder, rows: tuple[Dim, ...], x: Tensor) -> tuple[tuple[Dim, ...], DType]:
    return rows, (_FP32 if x.dtype.name in ("bf16", "fp16") else x.dtype)


def layer_norm(b: GraphBuilder, x: Tensor, *, bias: bool = True, affine: bool = True, name: str = "norm") -> Tensor:
    """`nn.LayerNorm` over the last dimension; in float32 under autocast."""
    with b.scope(name):
        if b.autocast is not None:
            x = cast(b, x, _FP32)
        inputs = [x]
        if affine:
            inputs.append(b.parameter("weight", (x.shape[-1],)))
            if bias:
                inputs.append(b.parameter("bias", (x.shape[-1],)))
        rows = (*x.shape[:-1], 1)
        outputs = {"out": (x.shape, x.dtype), "mean": _stats(b, rows, x), "rstd": _stats(b, rows, x)}
        return b.add("layer_norm", inputs, outputs, name="layer_norm")[0]


def rms_norm(
    b: GraphBuilder, x: Tensor, *, name: str = "norm", unit_offset: bool = False, weight: bool = True
) -> Tensor:
    """RMS norm over the last dimension.

    Eager: the chain transformers runs (float32 copy, pow, mean, rsqrt, two products and a cast back); with
    `unit_offset` Gemma's order (product with 1 + weight in float32, then the cast). Otherwise one fused kernel.
    """
    with b.scope(name):
        w = b.parameter("weight", (x.shape[-1],)) if weight else None
        rows = (*x.shape[:-1], 1)
        if not b.eager:
            inputs = [x] if w is None else [x, w]
            return b.add("rms_norm", inputs, {"out": (x.shape, x.dtype), "rstd": (rows, _FP32)}, name="rms_norm")[0]
        kind = x.dtype
        wide = cast(b, x, _FP32)
        (variance,) = b.add("mean", (unary(b, "pow", wide),), {"out": (rows, wide.dtype)}, name="mean")
        rstd = unary(b, "rsqrt", scale(b, variance, name="plus_eps"))
        normed = mul(b, wide, rstd, name="normalise")
        if w is None:
            return cast(b, normed, kind)
        if unit_offset:
            return cast(b, mul(b, normed, scale(b, cast(b, w, _FP32), name="one_plus_weight"), name="affine"), kind)
        return mul(b, w, cast(b, normed, kind), name="affine")


def batch_norm(b: GraphBuilder, x: Tensor, *, name: str = "bn") -> Tensor:
    """`nn.BatchNorm2d` on [N, C, H, W]: in training keeps x and the batch's mean and inverse deviation.

    Running statistics are buffers in float32; `num_batches_tracked` is an int64 scalar.
    """
    c = x.shape[1]
    with b.scope(name):
        if b.autocast is not None:
            x = cast(b, x, b.autocast)
        inputs = [x, b.parameter("weight", (c,)), b.parameter("bias", (c,))]
        b.input("running_mean", (c,), "fp32" if x.dtype.bits < 32 else x.dtype.name, "buffer")
        b.input("running_var", (c,), "fp32" if x.dtype.bits < 32 else x.dtype.name, "buffer")
        b.input("num_batches_tracked", (), "int64", "buffer")
        outputs: dict[str, tuple[tuple[Dim, ...], DType | str | None]] = {"out": (x.shape, x.dtype)}
        if b.training:
            outputs |= {"save_mean": ((c,), _FP32), "save_invstd": ((c,), _FP32)}
        return b.add("batch_norm", inputs, outputs, name="batch_norm")[0]


def group_norm(b: GraphBuilder, x: Tensor, groups: int, *, name: str = "norm") -> Tensor:
    """`nn.GroupNorm` on [N, C, …]: keeps x and per-group statistics; float32 under autocast."""
    c = x.shape[1]
    with b.scope(name):
        if b.autocast is not None:
            x = cast(b, x, _FP32)
        inputs = [x, b.parameter("weight", (c,)), b.parameter("bias", (c,))]
        stats = ((x.shape[0], groups), x.dtype)
        outputs = {"out": (x.shape, x.dtype), "mean": stats, "rstd": stats}
        return b.add("group_norm", inputs, outputs, name="group_norm")[0]
