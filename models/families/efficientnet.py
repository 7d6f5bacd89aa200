"""EfficientNet (arXiv:1905.11946) as torchvision runs it: MBConv blocks with squeeze-and-excitation, SiLU in place."""

from __future__ import annotations

import math
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
    squeeze_excite,
    stochastic_depth,
)
from peakline.models.graph import Tensor
from peakline.models.operators.elementwise import add
from peakline.models.workload import Family, Workload

__all__ = ["FAMILY", "STAGES", "EfficientNetConfig", "build"]

STAGES = (
    (1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3), (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)  # fmt: skip
"""EfficientNet-B0: expansion, kernel, stride, channels, repeats (arXiv:1905.11946, table 1)."""


@dataclass(frozen=True)
class EfficientNetConfig:
    """B0 scaled by `width` and `depth`; `dropout` before the classifier, `stochastic_depth` drops residual
    branches, the last one with that probability and earlier ones with less."""

    width: float = 1.0
    depth: float = 1.0
    dropout: float = 0.2
    stochastic_depth: float = 0.2
    classes: int = 1000
    image: int = 224

    def __post_init__(self) -> None:
        positive(self, "classes", "image")
        for name in ("width", "depth"):
            if not getattr(self, name) > 0:
                raise ValueError(f"field {name!r} is {getattr(self, name)!r}; accepted: a positive number")


def _mbconv(
    b: GraphBuilder, x: Tensor, expansion: int, kernel: int, stride: int, out: int, drop: float, work: Workload
) -> Tensor:
    inputs = x.shape[1]
    assert isinstance(inputs, int)
    inner = divisible(inputs * expansion)
    y = x
    with b.scope("block"):
        if inner != inputs:
            y = conv_norm(b, y, inner, 1, act="silu", names=("0.0", "0.1"))
        y = conv_norm(b, y, inner, kernel, stride, act="silu", groups=inner, names=("1.0", "1.1"))
        y = squeeze_excite(b, y, max(1, inputs // 4), name="2")
        y = conv_norm(b, y, out, 1, act=None, names=("3.0", "3.1"))
    if stride != 1 or inputs != out:
        return y
    return add(b, stochastic_depth(b, y, drop, work), x, in_place=True, name="add")


def build(b: GraphBuilder, config: EfficientNetConfig, work: Workload) -> Tensor:
    """Write an EfficientNet; the loss in training, otherwise the logits."""
    stages = [(*s[:3], divisible(s[3] * config.width), math.ceil(s[4] * config.depth)) for s in STAGES]
    total, done = sum(s[4] for s in stages), 0
    x = image_input(b, work, config.image)
    x = conv_norm(b, x, divisible(32 * config.width), 3, 2, act="silu", names=("features.0.0", "features.0.1"))
    for n, (expansion, kernel, stride, out, repeats) in enumerate(stages):
        for i in range(repeats):
            with b.scope(f"features.{n + 1}.{i}"):
                drop = config.stochastic_depth * done / total
                x = _mbconv(b, x, expansion, kernel, stride if i == 0 else 1, out, drop, work)
            done += 1
    x = conv_norm(b, x, 4 * stages[-1][3], 1, act="silu", names=("features.8.0", "features.8.1"))
    return loss_or_logits(b, head(b, x, config.classes, work, p_dropout=config.dropout, name="classifier.1"))


FAMILY = Family("efficientnet", "vision", EfficientNetConfig, build, VISION_PHASES)
