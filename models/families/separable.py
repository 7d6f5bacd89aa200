"""Chains of depthwise separable convolutions: MobileNet V1 (arXiv:1704.04861) and DS-CNN (arXiv:1711.07128).

The MLPerf Tiny references (mlcommons/tiny, benchmark/training: `vww_model.py`, `keyword_spotting/keras_model.py`) are
settings of it: Keras's `same` padding, convolutions with a bias before batch norm, and a softmax at the end.
"""

from __future__ import annotations

from dataclasses import dataclass

from peakline.models.builder import GraphBuilder
from peakline.models.families.fields import positive
from peakline.models.families.vision import VISION_PHASES, conv_norm, divisible, head, image_input, loss_or_logits
from peakline.models.graph import Tensor
from peakline.models.operators.dropout import dropout
from peakline.models.operators.softmax import softmax
from peakline.models.workload import Family, Workload

__all__ = ["FAMILY", "SeparableConfig", "build"]

_MOBILENET_V1 = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *(((512, 1),) * 5), (1024, 2), (1024, 1),
)  # fmt: skip


@dataclass(frozen=True)
class SeparableConfig:
    """A convolution, depthwise separable blocks, a global average, a linear layer.

    Attributes:
        width: multiplier of every width; channels are rounded to multiples of 8.
        stem, stem_kernel, stem_stride: the first convolution.
        blocks: (output channels, stride) of each block, before the multiplier.
        conv_bias: whether convolutions have a bias besides batch norm's (Keras's default).
        act: activation.
        softmax: whether inference ends in probabilities.
        stem_dropout, dropout: probabilities after the stem and before the classifier.
        classes: outputs.
        image: pixels along a side, or (height, width): for keyword spotting 49 frames of 10 coefficients.
        channels: channels of the input.
    """

    width: float = 1.0
    stem: int = 32
    stem_kernel: tuple[int, int] = (3, 3)
    stem_stride: int = 2
    blocks: tuple[tuple[int, int], ...] = _MOBILENET_V1
    conv_bias: bool = False
    act: str = "relu6"
    softmax: bool = False
    stem_dropout: float = 0.0
    dropout: float = 0.0
    classes: int = 1000
    image: int | tuple[int, int] = 224
    channels: int = 3

    def __post_init__(self) -> None:
        positive(self, "stem", "stem_stride", "classes", "channels")
        if not self.width > 0:
            raise ValueError(f"field 'width' is {self.width!r}; accepted: a positive number")
        object.__setattr__(self, "stem_kernel", tuple(self.stem_kernel))
        object.__setattr__(self, "blocks", tuple(tuple(block) for block in self.blocks))
        if not isinstance(self.image, int):
            object.__setattr__(self, "image", tuple(self.image))


def build(b: GraphBuilder, config: SeparableConfig, work: Workload) -> Tensor:
    """Write the network; the loss in training, otherwise the probabilities or logits."""
    x = image_input(b, work, config.image, config.channels)

    def unit(x: Tensor, out: int, kernel: int | tuple[int, int], stride: int, groups: int, name: str) -> Tensor:
        names = (f"{name}.conv", f"{name}.bn")
        return conv_norm(
            b,
            x,
            out,
            kernel,
            stride,
            act=config.act,
            padding="same",
            groups=groups,
            bias=config.conv_bias,
            names=names,
        )

    x = unit(x, divisible(config.stem * config.width), config.stem_kernel, config.stem_stride, 1, "stem")
    x = dropout(b, x, config.stem_dropout if work.dropout else 0.0, name="stem.dropout")
    for i, (channels, stride) in enumerate(config.blocks):
        inner = x.shape[1]
        assert isinstance(inner, int)
        x = unit(x, inner, 3, stride, inner, f"blocks.{i}.depthwise")
        x = unit(x, divisible(channels * config.width), 1, 1, 1, f"blocks.{i}.pointwise")
    logits = head(b, x, config.classes, work, p_dropout=config.dropout)
    return softmax(b, logits) if config.softmax and not b.training else loss_or_logits(b, logits)


FAMILY = Family("separable", "vision", SeparableConfig, build, VISION_PHASES)
