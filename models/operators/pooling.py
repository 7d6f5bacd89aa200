"""Pooling, resizing, padding and joining of feature maps [N, C, *space].

Saved (`tools/autograd/derivatives.yaml`, seen with `saved_tensors_hooks`): max pooling keeps its input and int64
indices; average pooling its input; a global average is a mean and keeps nothing; interpolation, padding,
concatenation and pixel shuffle keep only sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from peakline.models.builder import GraphBuilder
from peakline.models.dims import Dim, prod
from peakline.models.dtypes import DType
from peakline.models.graph import Tensor
from peakline.models.kernels import Kernel, Stream
from peakline.models.operators.convolution import Padding, Sizes, output_size, per_dimension
from peakline.models.operators.elementwise import cast
from peakline.models.operators.registry import GradientContext, Node, OperatorType, hand_back, register

__all__ = [
    "adaptive_avg_pool", "avg_pool", "chunk", "concat", "global_avg_pool", "interpolate", "max_pool", "pad",
    "pixel_shuffle",
]  # fmt: skip


# ---- pooling ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class MaxPool(OperatorType):
    """Maximum over windows of `taps` positions; outputs y and, where PyTorch runs it, the int64 index of each."""

    name: str = "max_pool"

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """One comparison per tap."""
        return (Stream(node.attributes["taps"] * node.outputs[0].elements, node.outputs[0].dtype),)

    def backward(self, node: Node, context: GradientContext) -> None:
        """dx: zero-filled, dy added at the indices; the saved input gives only its shape, but is kept."""
        hand_back(node, context, "pool_backward", node.inputs[0], *node.outputs[1:])


@dataclass(frozen=True)
class AvgPool(OperatorType):
    """Mean over windows of `taps` positions."""

    name: str = "avg_pool"

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """One addition per tap."""
        return (Stream(node.attributes["taps"] * node.outputs[0].elements, node.outputs[0].dtype),)

    def backward(self, node: Node, context: GradientContext) -> None:
        """dx: dy/taps spread over the windows; the saved input gives only its shape, but is kept."""
        hand_back(node, context, "pool_backward", node.inputs[0])


@dataclass(frozen=True)
class PoolBackward(OperatorType):
    """Gradient of a pooling: inputs dy, x (held, not read) and perhaps indices; writes dx."""

    name: str = "pool_backward"

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """One addition per element of dx."""
        return (Stream(node.outputs[0].elements, node.outputs[0].dtype),)

    def reads(self, node: Node) -> Dim:
        """dy and the indices."""
        total: Dim = node.inputs[0].bytes
        for indices in node.inputs[2:]:
            total = total + indices.bytes
        return total


# ---- resizing, padding, joining --------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Resample(OperatorType):
    """A copy into another shape that keeps nothing: interpolate, pad, pixel_shuffle. dx comes from dy alone."""

    name: str

    def backward(self, node: Node, context: GradientContext) -> None:
        """The adjoint: sums, or drops what was padded."""
        hand_back(node, context, "resample_backward")


@dataclass(frozen=True)
class ResampleBackward(OperatorType):
    """Gradient of a resampling copy."""

    name: str = "resample_backward"

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """One addition per element of dy."""
        return (Stream(node.inputs[0].elements, node.inputs[0].dtype),)


for _type in (
    MaxPool(), AvgPool(), PoolBackward(), Resample("interpolate"), Resample("pad"), Resample("pixel_shuffle"),
    ResampleBackward(),
):  # fmt: skip
    register(_type)


# ---- building --------------------------------------------------------------------------------------------------------
def _pooled(
    x: Tensor, kernel: Sizes, stride: Sizes | None, padding: Padding, ceil: bool
) -> tuple[tuple[Dim, ...], int]:
    n = len(x.shape) - 2
    ks = per_dimension(kernel, n)
    ss = ks if stride is None else per_dimension(stride, n)
    ps = ("same",) * n if padding == "same" else per_dimension(padding, n)
    space = []
    for size, k, s, p in zip(x.shape[2:], ks, ss, ps):
        if ceil and isinstance(p, int):
            # ceil_mode; a last window that would start in the right padding is dropped (pooling_output_shape)
            out = -((k - size - 2 * p) // s) + 1
            space.append(out - ((out - 1) * s >= size + p))
        else:
            space.append(output_size(size, k, s, p))  # type: ignore[arg-type]
    return (*x.shape[:2], *space), int(prod(ks))


def max_pool(
    b: GraphBuilder,
    x: Tensor,
    kernel: Sizes,
    stride: Sizes | None = None,
    padding: Padding = 0,
    *,
    ceil: bool = False,
    name: str = "maxpool",
) -> Tensor:
    """`nn.MaxPool2d`. Eager PyTorch makes the int64 indices in inference too (`max_pool2d_with_indices`)."""
    shape, taps = _pooled(x, kernel, stride, padding, ceil)
    outputs: dict[str, tuple[tuple[Dim, ...], DType | str | None]] = {"out": (shape, x.dtype)}
    if x.dtype.is_float and (b.training or b.eager):
        outputs["indices"] = (shape, "int64")
    return b.add("max_pool", (x,), outputs, name=name, attributes={"taps": taps})[0]


def avg_pool(
    b: GraphBuilder,
    x: Tensor,
    kernel: Sizes,
    stride: Sizes | None = None,
    padding: Padding = 0,
    *,
    ceil: bool = False,
    name: str = "avgpool",
) -> Tensor:
    """`nn.AvgPool2d`."""
    shape, taps = _pooled(x, kernel, stride, padding, ceil)
    return b.add("avg_pool", (x,), {"out": (shape, x.dtype)}, name=name, attributes={"taps": taps})[0]


def global_avg_pool(b: GraphBuilder, x: Tensor, *, name: str = "avgpool") -> Tensor:
    """`nn.AdaptiveAvgPool2d(1)`: PyTorch runs it as a mean, which keeps nothing. [N, C, *space] → [N, C, 1, 1]."""
    shape = (*x.shape[:2], *(1,) * (len(x.shape) - 2))
    return b.add("mean", (x,), {"out": (shape, x.dtype)}, name=name)[0]


def adaptive_avg_pool(b: GraphBuilder, x: Tensor, size: int, *, name: str = "avgpool") -> Tensor:
    """`nn.AdaptiveAvgPool2d(size)`: `size` positions along each dimension, whatever the input's; keeps its input."""
    if size == 1:
        return global_avg_pool(b, x, name=name)
    shape = (*x.shape[:2], *(size,) * (len(x.shape) - 2))
    taps = -(-prod(x.shape[2:]) // prod(shape[2:]))
    return b.add("avg_pool", (x,), {"out": (shape, x.dtype)}, name=name, attributes={"taps": taps})[0]


def interpolate(b: GraphBuilder, x: Tensor, factor: int = 2, *, name: str = "upsample") -> Tensor:
    """`F.interpolate(scale_factor=factor)`, nearest or linear."""
    shape = (*x.shape[:2], *(s * factor for s in x.shape[2:]))
    return b.add("interpolate", (x,), {"out": (shape, x.dtype)}, name=name)[0]


def pad(b: GraphBuilder, x: Tensor, before: int, after: int, *, name: str = "pad") -> Tensor:
    """`F.pad` with constants on both sides of every spatial dimension."""
    shape = (*x.shape[:2], *(s + before + after for s in x.shape[2:]))
    return b.add("pad", (x,), {"out": (shape, x.dtype)}, name=name)[0]


def pixel_shuffle(b: GraphBuilder, x: Tensor, factor: int, *, name: str = "pixel_shuffle") -> Tensor:
    """`nn.PixelShuffle`: [N, C·f², H, W] → [N, C, H·f, W·f]; a copy."""
    shape = (x.shape[0], x.shape[1] // factor**2, *(s * factor for s in x.shape[2:]))
    return b.add("pixel_shuffle", (x,), {"out": (shape, x.dtype)}, name=name)[0]


def concat(b: GraphBuilder, tensors: Sequence[Tensor], axis: int = 1, *, name: str = "concat") -> Tensor:
    """`torch.cat` along a dimension, channels by default; under autocast in the widest format."""
    first = tensors[0]
    kind = max((t.dtype for t in tensors), key=lambda d: d.bits)
    if b.autocast is not None:
        tensors = [cast(b, t, kind) for t in tensors]
    axis %= len(first.shape)
    joined: Dim = 0
    for t in tensors:
        joined = joined + t.shape[axis]
    shape = (*first.shape[:axis], joined, *first.shape[axis + 1 :])
    return b.add("cat", list(tensors), {"out": (shape, kind)}, name=name)[0]


def chunk(b: GraphBuilder, x: Tensor, parts: int, axis: int = -1, *, name: str = "chunk") -> list[Tensor]:
    """`torch.chunk` into equal parts along a dimension: views of x."""
    axis %= len(x.shape)
    shape = (*x.shape[:axis], x.shape[axis] // parts, *x.shape[axis + 1 :])
    keys = [f"out{i}" for i in range(parts)]
    return b.add("split", (x,), dict.fromkeys(keys, (shape, x.dtype)), name=name, in_place=dict.fromkeys(keys, x))
