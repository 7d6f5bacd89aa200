"""Xception (arXiv:1610.02357) as `timm` runs it (`legacy_xception`)."""

from __future__ import annotations

from dataclasses import dataclass

from peakline.models.builder import GraphBuilder
from peakline.models.families.fields import positive
from peakline.models.families.vision import VISION_PHASES, conv_norm, head, image_input, loss_or_logits
from peakline.models.graph import Tensor
from peakline.models.operators.convolution import conv
from peakline.models.operators.elementwise import activation, add
from peakline.models.operators.pooling import max_pool
from peakline.models.workload import Family, Workload

__all__ = ["FAMILY", "XceptionConfig", "build"]


@dataclass(frozen=True)
class XceptionConfig:
    """Xception.

    `blocks` are (channels, separable convolutions, stride, whether the first of them widens), a residual each.
    """

    blocks: tuple[tuple[int, int, int, bool], ...] = (
        (128, 2, 2, True),
        (256, 2, 2, True),
        (728, 2, 2, True),
        *(((728, 3, 1, True),) * 8),
        (1024, 2, 2, False),
    )
    classes: int = 1000
    image: int = 299

    def __post_init__(self) -> None:
        positive(self, "classes", "image")


def _separable(b: GraphBuilder, x: Tensor, out: int, name: str, act: str | None = None) -> Tensor:
    """Depthwise 3×3, pointwise, batch norm."""
    channels = x.shape[1]
    assert isinstance(channels, int)
    with b.scope(name):
        x = conv(b, x, channels, 3, padding=1, groups=channels, bias=False, name="conv1")
        return conv_norm(b, x, out, 1, act=act, names=("pointwise", "bn"))


def _block(b: GraphBuilder, x: Tensor, out: int, count: int, stride: int, widen_first: bool, first: bool) -> Tensor:
    y, channels = x, x.shape[1]
    assert isinstance(channels, int)
    for i in range(count):
        if i or not first:  # the first ReLU reads the block's input, which the shortcut needs too
            y = activation(b, "relu", y, in_place=i > 0, name="relu")
        widens = i == 0 if widen_first else i == count - 1
        y = _separable(b, y, out if widens or (widen_first and i) else channels, f"rep.{i}")
    if stride != 1:
        y = max_pool(b, y, 3, stride, 1)
    skip = x
    if stride != 1 or channels != out:
        skip = conv_norm(b, x, out, 1, stride, act=None, names=("skip", "skipbn"))
    return add(b, y, skip, in_place=True, name="add")


def build(b: GraphBuilder, config: XceptionConfig, work: Workload) -> Tensor:
    """Write an Xception; the loss in training, otherwise the logits."""
    x = image_input(b, work, config.image)
    x = conv_norm(b, x, 32, 3, 2, padding=0, names=("conv1", "bn1"))
    x = conv_norm(b, x, 64, 3, padding=0, names=("conv2", "bn2"))
    for i, (out, count, stride, widen_first) in enumerate(config.blocks):
        with b.scope(f"block{i + 1}"):
            x = _block(b, x, out, count, stride, widen_first, first=i == 0)
    x = _separable(b, x, 1536, "conv3", "relu")
    x = _separable(b, x, 2048, "conv4", "relu")
    return loss_or_logits(b, head(b, x, config.classes, work))


FAMILY = Family("xception", "vision", XceptionConfig, build, VISION_PHASES)
