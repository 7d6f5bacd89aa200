"""What image classifiers share: the image, convolution with batch norm and activation, the head, the loss."""

from __future__ import annotations

from peakline.models.builder import GraphBuilder
from peakline.models.dims import Dim
from peakline.models.graph import Tensor
from peakline.models.operators.convolution import Padding, Sizes, conv
from peakline.models.operators.dropout import dropout
from peakline.models.operators.elementwise import activation, mul, view
from peakline.models.operators.loss import cross_entropy
from peakline.models.operators.matmul import linear
from peakline.models.operators.normalization import batch_norm
from peakline.models.operators.pooling import global_avg_pool
from peakline.models.workload import Workload, WorkPhase

__all__ = [
    "VISION_PHASES", "conv_norm", "divisible", "folds", "head", "image_input", "loss_or_logits", "squeeze_excite",
    "stochastic_depth",
]  # fmt: skip

VISION_PHASES: tuple[WorkPhase, ...] = ("training", "inference")
"""Phases that a network without a token sequence can run."""

_CLAMPS = ("relu", "relu6")


def divisible(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of `divisor` that is not below 90 % of `channels` (MobileNet's `_make_divisible`)."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def folds(b: GraphBuilder) -> bool:
    """Whether batch norm is folded into the convolution before it: inference by an engine, or in integers."""
    return not b.training and (not b.eager or not b.dtype.is_float)


def image_input(b: GraphBuilder, work: Workload, image: int | tuple[int, int], channels: int = 3) -> Tensor:
    """The batch of images [B, channels, H, W]: `work.image` pixels square, or the model's own (height, width)."""
    size: Dim | tuple[int, int] = image if work.image is None else work.image
    height, width = size if isinstance(size, tuple) else (size, size)
    return b.input("pixel_values", (work.batch, channels, height, width), b.dtype)


def conv_norm(
    b: GraphBuilder,
    x: Tensor,
    out: int,
    kernel: Sizes,
    stride: Sizes = 1,
    *,
    act: str | None = "relu",
    in_place: bool = True,
    padding: Padding | None = None,
    groups: int = 1,
    bias: bool = False,
    names: tuple[str, str] = ("conv", "bn"),
) -> Tensor:
    """Convolution, batch norm and activation; padding keeps the size at stride 1 unless given.

    Where batch norm folds, one convolution with a bias is left, and with it a clamp (ReLU, ReLU6), as engines and
    TensorFlow Lite fuse it.
    """
    if padding is None:
        padding = kernel // 2 if isinstance(kernel, int) else tuple(k // 2 for k in kernel)
    fold = folds(b)
    fused = act if fold and act in _CLAMPS else None
    x = conv(
        b,
        x,
        out,
        kernel,
        stride=stride,
        padding=padding,
        groups=groups,
        bias=bias or fold,
        activation=fused,
        name=names[0],
    )
    if not fold:
        x = batch_norm(b, x, name=names[1])
    if act is not None and fused is None:
        x = activation(b, act, x, in_place=in_place, name=names[1] + "_act")
    return x


def squeeze_excite(
    b: GraphBuilder, x: Tensor, squeezed: int, *, act: str = "silu", gate: str = "sigmoid", name: str = "se"
) -> Tensor:
    """x · gate(fc2(act(fc1(mean(x))))) with 1×1 convolutions (arXiv:1709.01507, torchvision's `SqueezeExcitation`)."""
    with b.scope(name):
        s = conv(b, global_avg_pool(b, x), squeezed, 1, name="fc1")
        s = conv(b, activation(b, act, s, in_place=True), int(x.shape[1]), 1, name="fc2")
        return mul(b, activation(b, gate, s, name="gate"), x, name="scale")


def stochastic_depth(b: GraphBuilder, x: Tensor, p: float, work: Workload) -> Tensor:
    """Drops a residual branch per image: x times a random 0 or 1/(1 − p) (`torchvision.ops.stochastic_depth`)."""
    if not b.training or p == 0 or not work.dropout:
        return x
    noise = b.input("survival", (x.shape[0], *(1,) * (len(x.shape) - 1)), x.dtype)
    return mul(b, x, noise, name="stochastic_depth")


def head(
    b: GraphBuilder,
    x: Tensor,
    classes: int,
    work: Workload,
    *,
    p_dropout: float = 0.0,
    name: str = "fc",
) -> Tensor:
    """Global average, dropout, linear: [N, C, H, W] → logits [N, classes]."""
    x = global_avg_pool(b, x)
    x = view(b, x, (x.shape[0], x.shape[1]), name="flatten")
    x = dropout(b, x, p_dropout if work.dropout else 0.0)
    return linear(b, x, classes, bias=True, name=name)


def loss_or_logits(b: GraphBuilder, logits: Tensor) -> Tensor:
    """In training the mean cross-entropy with int64 labels, in the logits' format; otherwise the logits."""
    if not b.training:
        return logits
    return cross_entropy(b, logits, b.input("labels", logits.shape[:-1]), upcast=False)
