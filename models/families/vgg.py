"""VGG (arXiv:1409.1556) without batch norm, as torchvision runs it."""

from __future__ import annotations

from dataclasses import dataclass

from peakline.models.builder import GraphBuilder
from peakline.models.dims import prod
from peakline.models.families.fields import positive
from peakline.models.families.vision import VISION_PHASES, conv_norm, image_input, loss_or_logits
from peakline.models.graph import Tensor
from peakline.models.operators.convolution import conv
from peakline.models.operators.dropout import dropout
from peakline.models.operators.elementwise import activation, view
from peakline.models.operators.matmul import linear
from peakline.models.operators.pooling import adaptive_avg_pool, max_pool
from peakline.models.workload import Family, Workload

__all__ = ["FAMILY", "VGGConfig", "build"]


@dataclass(frozen=True)
class VGGConfig:
    """A VGG network: `depths` convolutions of `widths` channels per stage, three linear layers.

    `norm` adds batch norm after each convolution (`vgg16_bn`).
    """

    depths: tuple[int, ...] = (2, 2, 3, 3, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    norm: bool = False
    hidden: int = 4096
    dropout: float = 0.5
    classes: int = 1000
    image: int = 224

    def __post_init__(self) -> None:
        positive(self, "hidden", "classes", "image")
        object.__setattr__(self, "depths", tuple(self.depths))
        object.__setattr__(self, "widths", tuple(self.widths))
        if len(self.depths) != len(self.widths):
            raise ValueError(f"field 'depths' is {self.depths}; accepted: a count for each of the widths {self.widths}")


def build(b: GraphBuilder, config: VGGConfig, work: Workload) -> Tensor:
    """Write a VGG; the loss in training, otherwise the logits."""
    x = image_input(b, work, config.image)
    with b.scope("features"):
        for depth, width in zip(config.depths, config.widths):
            for _ in range(depth):
                if config.norm:
                    x = conv_norm(b, x, width, 3, bias=True)
                else:
                    x = activation(b, "relu", conv(b, x, width, 3, padding=1), in_place=True, name="relu")
            x = max_pool(b, x, 2, 2)
    x = adaptive_avg_pool(b, x, 7)
    x = view(b, x, (x.shape[0], prod(x.shape[1:])), name="flatten")
    p = config.dropout if work.dropout else 0.0
    with b.scope("classifier"):
        for name in ("0", "3"):
            x = activation(b, "relu", linear(b, x, config.hidden, bias=True, name=name), in_place=True, name="relu")
            x = dropout(b, x, p)
        x = linear(b, x, config.classes, bias=True, name="6")
    return loss_or_logits(b, x)


FAMILY = Family("vgg", "vision", VGGConfig, build, VISION_PHASES)
