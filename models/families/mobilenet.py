"""Networks of depthwise separable and inverted residual blocks: MobileNet V1 and V2, ProxylessNAS, MCUNet.

MobileNetV2 (arXiv:1801.04381) as torchvision runs it: ReLU6 in place, whose gradient needs a clone of its input.
"""

from __future__ import annotations

from dataclasses import dataclass

from peakline.models.builder import GraphBuilder
from peakline.models.families.fields import positive
from peakline.models.families.vision import (
    VISION_PHASES,
    conv_norm,
    divisible,
    head,
    image_input,
    loss_or_logits,
)
from peakline.models.graph import Tensor
from peakline.models.operators.elementwise import add
from peakline.models.workload import Family, Workload

__all__ = ["FAMILY", "V2_BLOCKS", "InvertedResidualConfig", "build", "inverted_residual"]

Block = tuple[int, int, int, int]
"""Of an inverted residual block: expansion, output channels, stride, kernel."""

V2_BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""MobileNetV2's stages: expansion, channels, repeats, stride (arXiv:1801.04381, table 2)."""


@dataclass(frozen=True)
class InvertedResidualConfig:
    """A stem, inverted residual blocks, perhaps a 1×1 convolution, and a classifier.

    Attributes:
        width: multiplier of every width (0.35, 1.0); channels are rounded to multiples of 8.
        stem: channels of the first convolution, before the multiplier.
        blocks: (expansion, channels, stride, kernel) of each block, before the multiplier; empty for MobileNetV2's.
        last: channels of the final 1×1 convolution, 0 for none; the multiplier widens but never narrows it.
        act: activation, in place.
        dropout, classes, image: probability before the classifier, outputs, pixels along a side.
    """

    width: float = 1.0
    stem: int = 32
    blocks: tuple[Block, ...] = ()
    last: int = 1280
    act: str = "relu6"
    dropout: float = 0.2
    classes: int = 1000
    image: int = 224

    def __post_init__(self) -> None:
        positive(self, "stem", "classes", "image")
        if not self.width > 0:
            raise ValueError(f"field 'width' is {self.width!r}; accepted: a positive number")
        blocks = self.blocks or tuple((t, c, s if i == 0 else 1, 3) for t, c, n, s in V2_BLOCKS for i in range(n))
        object.__setattr__(self, "blocks", tuple(tuple(block) for block in blocks))
        for block in self.blocks:
            if len(block) != 4 or min(block) < 1:
                raise ValueError(f"field 'blocks' has {block!r}; accepted: (expansion, channels, stride, kernel)")


def inverted_residual(
    b: GraphBuilder, x: Tensor, expansion: int, out: int, stride: int, kernel: int, act: str
) -> Tensor:
    """1×1 expansion, depthwise, 1×1 projection without activation; the input is added where shapes agree."""
    inner = x.shape[1] * expansion
    assert isinstance(inner, int)
    y = x
    with b.scope("conv"):
        if expansion != 1:
            y = conv_norm(b, y, inner, 1, act=act, names=("0.0", "0.1"))
        y = conv_norm(b, y, inner, kernel, stride, act=act, groups=inner, names=("1.0", "1.1"))
        y = conv_norm(b, y, out, 1, act=None, names=("2", "3"))
    return add(b, x, y, name="add") if stride == 1 and x.shape[1] == out else y


def build(b: GraphBuilder, config: InvertedResidualConfig, work: Workload) -> Tensor:
    """Write the network; the loss in training, otherwise the logits."""
    x = image_input(b, work, config.image)
    x = conv_norm(
        b, x, divisible(config.stem * config.width), 3, 2, act=config.act, names=("features.0.0", "features.0.1")
    )
    for i, (expansion, channels, stride, kernel) in enumerate(config.blocks):
        with b.scope(f"features.{i + 1}"):
            x = inverted_residual(b, x, expansion, divisible(channels * config.width), stride, kernel, config.act)
    if config.last:
        last = divisible(config.last * max(1.0, config.width))
        i = len(config.blocks) + 1
        x = conv_norm(b, x, last, 1, act=config.act, names=(f"features.{i}.0", f"features.{i}.1"))
    logits = head(b, x, config.classes, work, p_dropout=config.dropout, name="classifier.1")
    return loss_or_logits(b, logits)


FAMILY = Family("mobilenet", "vision", InvertedResidualConfig, build, VISION_PHASES)
