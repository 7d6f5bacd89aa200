"""ResNet and Wide ResNet (arXiv:1512.03385, 1605.07146), as torchvision and Hugging Face run them.

The stride of a bottleneck lies in its 3×3 convolution ("ResNet v1.5"); the residual is added in place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from peakline.models.builder import GraphBuilder
from peakline.models.families.fields import Fields, positive
from peakline.models.families.vision import VISION_PHASES, conv_norm, head, image_input, loss_or_logits
from peakline.models.graph import Tensor
from peakline.models.operators.elementwise import activation, add
from peakline.models.operators.pooling import max_pool
from peakline.models.workload import Family, Workload

__all__ = ["FAMILY", "ResNetConfig", "build", "from_huggingface"]


@dataclass(frozen=True)
class ResNetConfig:
    """A residual network.

    Attributes:
        block: `basic` (two 3×3) or `bottleneck` (1×1, 3×3, 1×1).
        layers: blocks in each stage.
        widths: output channels of each stage.
        inner: width of a bottleneck's 3×3 convolution as a fraction of its output (1/4; Wide ResNet 1/2).
        stem: channels of the first convolution.
        groups: groups of the 3×3 convolution (ResNeXt).
        in_place: whether ReLU overwrites its input (torchvision; not Hugging Face).
        classes, image, channels: outputs, pixels along a side, colour channels.
    """

    block: Literal["basic", "bottleneck"] = "bottleneck"
    layers: tuple[int, ...] = (3, 4, 6, 3)
    widths: tuple[int, ...] = (256, 512, 1024, 2048)
    inner: float = 0.25
    stem: int = 64
    groups: int = 1
    in_place: bool = True
    classes: int = 1000
    image: int = 224
    channels: int = 3

    def __post_init__(self) -> None:
        positive(self, "stem", "groups", "classes", "image", "channels")
        object.__setattr__(self, "layers", tuple(self.layers))
        object.__setattr__(self, "widths", tuple(self.widths))
        if self.block not in ("basic", "bottleneck"):
            raise ValueError(f"field 'block' is {self.block!r}; accepted: basic, bottleneck")
        if len(self.layers) != len(self.widths) or min(self.layers) < 1:
            raise ValueError(f"field 'layers' is {self.layers}; accepted: a count for each of the widths {self.widths}")


def _block(b: GraphBuilder, x: Tensor, config: ResNetConfig, width: int, stride: int) -> Tensor:
    keep = config.in_place
    shortcut = x
    y = x
    if config.block == "bottleneck":
        inner = round(width * config.inner)
        y = conv_norm(b, y, inner, 1, in_place=keep, names=("conv1", "bn1"))
        y = conv_norm(b, y, inner, 3, stride, in_place=keep, groups=config.groups, names=("conv2", "bn2"))
        y = conv_norm(b, y, width, 1, act=None, names=("conv3", "bn3"))
    else:
        y = conv_norm(b, y, width, 3, stride, in_place=keep, names=("conv1", "bn1"))
        y = conv_norm(b, y, width, 3, act=None, names=("conv2", "bn2"))
    if stride != 1 or x.shape[1] != width:
        shortcut = conv_norm(b, x, width, 1, stride, act=None, names=("downsample.0", "downsample.1"))
    return activation(b, "relu", add(b, y, shortcut, in_place=True), in_place=keep, name="relu")


def build(b: GraphBuilder, config: ResNetConfig, work: Workload) -> Tensor:
    """Write a ResNet; the loss in training, otherwise the logits."""
    x = image_input(b, work, config.image, config.channels)
    x = conv_norm(b, x, config.stem, 7, 2, in_place=config.in_place, names=("conv1", "bn1"))
    x = max_pool(b, x, 3, 2, 1)
    for stage, (count, width) in enumerate(zip(config.layers, config.widths)):
        for i in range(count):
            with b.scope(f"layer{stage + 1}.{i}"):
                x = _block(b, x, config, width, 2 if stage and i == 0 else 1)
    return loss_or_logits(b, head(b, x, config.classes, work))


def from_huggingface(values: dict[str, Any]) -> ResNetConfig:
    """Read a `ResNetForImageClassification` configuration.

    Raises:
        ValueError: a field that cannot be, or a variant this family has not.
    """
    fields = Fields(values)
    for flag in ("downsample_in_first_stage", "downsample_in_bottleneck"):
        if fields.flag(flag, default=False):
            raise ValueError(f"field {flag!r} is True; accepted: false")
    fields.text("hidden_act", default="relu", among=("relu",))
    return ResNetConfig(
        block=fields.text("layer_type", default="bottleneck", among=("basic", "bottleneck")),
        layers=tuple(fields.items("depths", default=(3, 4, 6, 3))),
        widths=tuple(fields.items("hidden_sizes", default=(256, 512, 1024, 2048))),
        stem=fields.int("embedding_size", default=64),
        in_place=False,
        classes=len(values["id2label"]) if values.get("id2label") else fields.int("num_labels", default=2),
        channels=fields.int("num_channels", default=3),
    )


FAMILY = Family(
    name="resnet",
    kind="vision",
    config=ResNetConfig,
    build=build,
    phases=VISION_PHASES,
    architectures=("ResNetForImageClassification",),
    model_types=("resnet",),
    from_huggingface=from_huggingface,
)
