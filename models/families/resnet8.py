"""Small ResNets for 32×32 images as in MLPerf Tiny (mlcommons/tiny, `image_classification/keras_model.py`).

Three stages of one basic block each; the shortcut convolution of a widening block has a bias and no batch norm.
"""

from __future__ import annotations

from dataclasses import dataclass

from peakline.models.builder import GraphBuilder
from peakline.models.families.fields import positive
from peakline.models.families.vision import VISION_PHASES, conv_norm, folds, head, image_input, loss_or_logits
from peakline.models.graph import Tensor
from peakline.models.operators.convolution import conv
from peakline.models.operators.elementwise import activation, add
from peakline.models.operators.softmax import softmax
from peakline.models.workload import Family, Workload

__all__ = ["FAMILY", "TinyResNetConfig", "build"]


@dataclass(frozen=True)
class TinyResNetConfig:
    """`widths` of the stages (one basic block each); `softmax`: whether inference ends in probabilities."""

    widths: tuple[int, ...] = (16, 32, 64)
    softmax: bool = True
    classes: int = 10
    image: int = 32

    def __post_init__(self) -> None:
        positive(self, "classes", "image")
        object.__setattr__(self, "widths", tuple(self.widths))


def build(b: GraphBuilder, config: TinyResNetConfig, work: Workload) -> Tensor:
    """Write the network; the loss in training, otherwise the probabilities or logits."""
    x = image_input(b, work, config.image)
    x = conv_norm(b, x, config.widths[0], 3, padding="same", bias=True, in_place=False, names=("conv", "bn"))
    for i, width in enumerate(config.widths):
        stride = 2 if i else 1
        with b.scope(f"stack{i}"):
            y = conv_norm(b, x, width, 3, stride, padding="same", bias=True, in_place=False, names=("conv1", "bn1"))
            y = conv_norm(b, y, width, 3, padding="same", bias=True, act=None, names=("conv2", "bn2"))
            if stride != 1:
                x = conv(b, x, width, 1, stride=stride, padding="same", name="shortcut")
            x = add(b, x, y, name="add")
            if not folds(b):  # TensorFlow Lite's ADD clamps by itself
                x = activation(b, "relu", x, name="relu")
    logits = head(b, x, config.classes, work)
    return softmax(b, logits) if config.softmax and not b.training else loss_or_logits(b, logits)


FAMILY = Family("resnet8", "vision", TinyResNetConfig, build, VISION_PHASES)
