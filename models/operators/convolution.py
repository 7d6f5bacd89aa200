"""Convolutions over one, two or three spatial dimensions: grouped, depthwise, dilated, strided, transposed.

Layout: x [N, C, *space], weight [out, in/groups, *kernel] (transposed: [in, out/groups, *kernel]), as in PyTorch.
FLOPs 2·N·positions·out·in/groups·taps, for the forward pass and for each of the two gradients. Autograd keeps the
input and the weight (`tools/autograd/derivatives.yaml`: convolution).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from peakline.models.builder import GraphBuilder
from peakline.models.dims import Dim, ceil_div, prod, round_up
from peakline.models.graph import Tensor
from peakline.models.kernels import Convolution, Kernel
from peakline.models.operators.elementwise import cast, promote
from peakline.models.operators.matmul import bias_kind
from peakline.models.operators.registry import GradientContext, Node, OperatorType, register

__all__ = ["Sizes", "conv", "cudnn_workspace", "output_size"]

Sizes = int | tuple[int, ...]
Padding = int | tuple[int, ...] | Literal["same"]


# ---- sizes -----------------------------------------------------------------------------------------------------------
def output_size(size: Dim, kernel: int, stride: int, padding: int | Literal["same"], dilation: int = 1) -> Dim:
    """Positions of a convolution's or pooling's output along one dimension.

    ⌊(size + 2·padding − dilation·(kernel − 1) − 1)/stride⌋ + 1 (`torch.nn.Conv2d`), or ⌈size/stride⌉ with `same`
    padding (TensorFlow; PyTorch accepts it for stride 1 only).
    """
    if padding == "same":
        return ceil_div(size, stride)
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def _transposed_size(size: Dim, kernel: int, stride: int, padding: int, dilation: int, extra: int) -> Dim:
    """(size − 1)·stride − 2·padding + dilation·(kernel − 1) + extra + 1 (`torch.nn.ConvTranspose2d`)."""
    return (size - 1) * stride - 2 * padding + dilation * (kernel - 1) + extra + 1


def per_dimension(value: Sizes, dimensions: int) -> tuple[int, ...]:
    """One size for each spatial dimension."""
    return (value,) * dimensions if isinstance(value, int) else tuple(value)


def _space(x: Tensor) -> Dim:
    return prod(x.shape[2:])


# ---- workspace -------------------------------------------------------------------------------------------------------
def cudnn_workspace(*tensors: Tensor, groups: int, channels_last: bool) -> Dim:
    """Bytes of the block that one cuDNN convolution call on these tensors (input, weight, output) allocates.

    cuDNN's tensor-core kernels compute on NHWC with channels in multiples of 16 bytes (8 of 16 bits, 4 of TF32). On
    NCHW tensors it converts every operand into the workspace before and the result out of it after (NVIDIA,
    "Convolutional Layers User's Guide", §Tensor layouts: the `nchwToNhwcKernel` and `nhwcToNchwKernel` of a profile).
    So the rule is: the sum of the three tensors' bytes with their channels rounded up; nothing for `channels_last`
    tensors, which implicit GEMM reads in place, and nothing for a depthwise convolution, which on NCHW PyTorch
    runs as `_conv_depthwise2d` (aten/src/ATen/native/cuda/DepthwiseConv2d.cu) without a workspace.

    Where it holds: Ampere and later with TF32 convolutions allowed (PyTorch's default), or 16-bit formats on any
    tensor-core GPU, `cudnn.benchmark` off. It is a lower estimate for wide 3×3 convolutions over large maps (VGG),
    for which the heuristic also takes Winograd and FFT algorithms (pytorch/pytorch#49207, kernel statistics of VGG-16
    on Ampere) that hold transformed tiles several times the tensors' size. Other choices (split-K partial sums)
    need more or less; integer formats run elsewhere and get none.
    """
    if channels_last or groups > 1 or not all(t.dtype.is_float for t in tensors):
        return 0
    total: Dim = 0
    for t in tensors:
        channels = round_up(t.shape[1], max(1, 128 // t.dtype.bits))
        total = total + t.shape[0] * channels * _space(t) * (t.dtype.bits // 8)
    return total


def _in_place(node: Node) -> bool:
    """Whether tensor-core kernels read the tensors where they lie: the cases in which `cudnn_workspace` is 0."""
    return bool(node.attributes.get("channels_last", False)) or node.attributes["groups"] > 1


@dataclass(frozen=True)
class _ConvolutionCall(OperatorType):
    """What the three cuDNN calls of a convolution have in common."""

    def workspace(self, node: Node) -> tuple[Dim, ...]:
        """One block; see `cudnn_workspace`."""
        a = node.attributes
        tensors = (*node.inputs[:2], node.outputs[0])
        size = cudnn_workspace(*tensors, groups=a["groups"], channels_last=a.get("channels_last", False))
        return () if isinstance(size, int) and size == 0 else (size,)


# ---- types -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Conv(_ConvolutionCall):
    """y = x ∗ W (+ bias); attributes groups, transposed, and for the record stride, padding, dilation, activation."""

    name: str = "convolution"

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """One convolution."""
        x, w = node.inputs[:2]
        y = node.outputs[0]
        a = node.attributes
        return (
            Convolution(
                batch=x.shape[0],
                in_channels=x.shape[1],
                out_channels=y.shape[1],
                groups=a["groups"],
                taps=prod(w.shape[2:]),
                in_space=_space(x),
                space=_space(y),
                a=x.dtype,
                b=w.dtype,
                c=y.dtype,
                transposed=a["transposed"],
                channels_last=_in_place(node),
            ),
        )

    def backward(self, node: Node, context: GradientContext) -> None:
        """dx = dy ∗ Wᵀ, dW = x ∗ dy, db = Σ dy, in the order of `convolution_backward`."""
        x, w = node.inputs[:2]
        dy = context.grad(node.outputs[0])
        if dy is None:
            return
        if context.needs(x):
            outputs = {"input_grad": (x.shape, x.dtype)}
            (dx,) = context.emit("convolution_input_gradient", [dy, w], outputs, attributes=node.attributes)
            context.give(x, dx)
        if context.needs(w):
            outputs = {"weight_grad": (w.shape, w.dtype)}
            (dw,) = context.emit("convolution_weight_gradient", [dy, x], outputs, attributes=node.attributes)
            context.give(w, dw)
        if len(node.inputs) > 2 and context.needs(node.inputs[2]):
            bias = node.inputs[2]
            lies = {"kept": 1} | {k: v for k, v in node.attributes.items() if k == "channels_last"}
            (db,) = context.emit("reduce", [dy], {"bias_grad": (bias.shape, bias.dtype)}, attributes=lies)
            context.give(bias, db)


@dataclass(frozen=True)
class ConvInputGradient(_ConvolutionCall):
    """dx from dy and W: the transposed convolution (of a transposed one: the plain convolution)."""

    name: str = "convolution_input_gradient"

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """Channels change places; the taps meet the positions the forward pass multiplied at."""
        dy, w = node.inputs
        dx = node.outputs[0]
        a = node.attributes
        return (
            Convolution(
                batch=dy.shape[0],
                in_channels=dy.shape[1],
                out_channels=dx.shape[1],
                groups=a["groups"],
                taps=prod(w.shape[2:]),
                in_space=_space(dy),
                space=_space(dx),
                a=dy.dtype,
                b=w.dtype,
                c=dx.dtype,
                transposed=not a["transposed"],
                channels_last=_in_place(node),
            ),
        )


@dataclass(frozen=True)
class ConvWeightGradient(_ConvolutionCall):
    """dW from dy and x: a convolution in which batch and channels change places.

    dW[k, c, r] = Σ over images n and positions p of x[n, c, r + p]·dy[n, k, p]: the input channels are the batch,
    the images are the channels summed over, dy is the kernel and its positions are the taps.
    """

    name: str = "convolution_weight_gradient"

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """Per group: m = taps·in/groups, n = out/groups, k = N·positions."""
        dy, x = node.inputs
        dw = node.outputs[0]
        groups = node.attributes["groups"]
        wide, narrow = (dy, x) if node.attributes["transposed"] else (x, dy)
        return (
            Convolution(
                batch=wide.shape[1] // groups,
                in_channels=wide.shape[0] * groups,
                out_channels=narrow.shape[1],
                groups=groups,
                taps=_space(narrow),
                in_space=_space(wide),
                space=prod(dw.shape[2:]),
                a=wide.dtype,
                b=narrow.dtype,
                c=dw.dtype,
                channels_last=_in_place(node),
            ),
        )


for _type in (Conv(), ConvInputGradient(), ConvWeightGradient()):
    register(_type)


# ---- building --------------------------------------------------------------------------------------------------------
def conv(
    b: GraphBuilder,
    x: Tensor,
    out_channels: int,
    kernel: Sizes,
    *,
    stride: Sizes = 1,
    padding: Padding = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    bias: bool = True,
    transposed: bool = False,
    output_padding: Sizes = 0,
    channels_last: bool = False,
    activation: str | None = None,
    name: str = "conv",
) -> Tensor:
    """`nn.Conv1d/2d/3d` (or `nn.ConvTranspose…d`) on x [N, C, *space].

    Args:
        kernel, stride, padding, dilation: one number, or one per spatial dimension; padding may be `same`.
        groups: C and `out_channels` are split into that many independent convolutions (C: depthwise).
        output_padding: positions added on one side of a transposed convolution's output.
        channels_last: the tensors lie in memory as [N, *space, C]; it changes cuDNN's workspace, not the names of
            the dimensions.
        activation: a function clamped or applied inside the kernel (inference engines' fused convolution).

    Raises:
        ValueError: channels that `groups` does not divide, or a kernel larger than the padded input.
    """
    n = len(x.shape) - 2
    in_channels = x.shape[1]
    for what, channels in (("input", in_channels), ("output", out_channels)):
        if not isinstance(channels, int) or channels % groups:
            raise ValueError(f"{name}: {what} channels {channels} must be an integer that groups {groups} divides")
    ks, ss, ds = (per_dimension(v, n) for v in (kernel, stride, dilation))
    ps: tuple[Any, ...] = ("same",) * n if padding == "same" else per_dimension(padding, n)
    if transposed:
        extra = per_dimension(output_padding, n)
        space = tuple(_transposed_size(*sizes) for sizes in zip(x.shape[2:], ks, ss, ps, ds, extra))
        shape = (in_channels, out_channels // groups, *ks)
    else:
        space = tuple(output_size(*sizes) for sizes in zip(x.shape[2:], ks, ss, ps, ds))
        shape = (out_channels, in_channels // groups, *ks)
    if any(isinstance(s, int) and s < 1 for s in space):
        raise ValueError(f"{name}: kernel {ks} is larger than the padded input {x.shape[2:]}")
    attributes: dict[str, Any] = {"groups": groups, "transposed": transposed}
    attributes |= {"stride": ss, "padding": ps, "dilation": ds}
    if channels_last or b.channels_last:
        attributes["channels_last"] = True
    if activation:
        attributes["activation"] = activation
    with b.scope(name):
        inputs = [x, b.parameter("weight", shape)]
        if bias:
            inputs.append(b.parameter("bias", (out_channels,), bias_kind(b)))
        if b.autocast is not None:
            inputs = [b.cast_once(t) if t.role == "parameter" else cast(b, t, b.autocast) for t in inputs]
        out = promote(inputs[0].dtype, inputs[1].dtype)
        outputs = {"out": ((x.shape[0], out_channels, *space), out)}
        return b.add("convolution", inputs, outputs, name="convolution", attributes=attributes)[0]
