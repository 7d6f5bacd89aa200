"""ConvNeXt (arXiv:2201.03545) as torchvision runs it; the tensors lie channels-last after the first layer norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peakline.models.builder import GraphBuilder
from peakline.models.dims import Shape
from peakline.models.families.fields import Fields, positive
from peakline.models.families.vision import VISION_PHASES, image_input, loss_or_logits, stochastic_depth
from peakline.models.graph import Tensor
from peakline.models.operators.convolution import conv
from peakline.models.operators.elementwise import activation, add, mul, view
from peakline.models.operators.matmul import linear
from peakline.models.operators.normalization import layer_norm
from peakline.models.operators.pooling import global_avg_pool
from peakline.models.workload import Family, Workload

__all__ = ["FAMILY", "ConvNeXtConfig", "build", "from_huggingface"]


@dataclass(frozen=True)
class ConvNeXtConfig:
    """Stages of `depths` blocks of `widths` channels; `stochastic_depth` of the last block, less for earlier ones."""

    depths: tuple[int, ...] = (3, 3, 9, 3)
    widths: tuple[int, ...] = (96, 192, 384, 768)
    stochastic_depth: float = 0.1
    classes: int = 1000
    image: int = 224

    def __post_init__(self) -> None:
        positive(self, "classes", "image")
        object.__setattr__(self, "depths", tuple(self.depths))
        object.__setattr__(self, "widths", tuple(self.widths))
        if len(self.depths) != len(self.widths):
            raise ValueError(f"field 'depths' is {self.depths}; accepted: a count for each of the widths {self.widths}")


def _to_last(shape: Shape) -> Shape:
    return (shape[0], *shape[2:], shape[1])


def _to_first(shape: Shape) -> Shape:
    return (shape[0], shape[-1], *shape[1:-1])


def _norm(b: GraphBuilder, x: Tensor, name: str) -> Tensor:
    """`LayerNorm2d`: over the channels, between two permuted views."""
    y = layer_norm(b, view(b, x, _to_last(x.shape), name="permute"), name=name)
    return view(b, y, _to_first(y.shape), name="permute")


def _block(b: GraphBuilder, x: Tensor, drop: float, work: Workload) -> Tensor:
    """7×7 depthwise, layer norm, two linear layers over the channels, a scale per channel."""
    width = x.shape[1]
    assert isinstance(width, int)
    with b.scope("block"):
        y = conv(b, x, width, 7, padding=3, groups=width, channels_last=True, name="0")
        y = layer_norm(b, view(b, y, _to_last(y.shape), name="permute"), name="2")
        y = activation(b, "gelu", linear(b, y, 4 * width, bias=True, name="3"), name="gelu")
        y = linear(b, y, width, bias=True, name="5")
        y = view(b, y, _to_first(y.shape), name="permute")
    y = mul(b, b.parameter("layer_scale", (width, 1, 1)), y, name="scale")
    return add(b, stochastic_depth(b, y, drop, work), x, in_place=True, name="add")


def build(b: GraphBuilder, config: ConvNeXtConfig, work: Workload) -> Tensor:
    """Write a ConvNeXt; the loss in training, otherwise the logits."""
    x = image_input(b, work, config.image)
    total, done = sum(config.depths), 0
    with b.scope("features"):
        for stage, (depth, width) in enumerate(zip(config.depths, config.widths)):
            with b.scope(str(2 * stage)):
                if stage == 0:
                    x = _norm(b, conv(b, x, width, 4, stride=4, name="0"), "1")
                else:
                    x = conv(b, _norm(b, x, "0"), width, 2, stride=2, channels_last=True, name="1")
            for i in range(depth):
                with b.scope(f"{2 * stage + 1}.{i}"):
                    x = _block(b, x, config.stochastic_depth * done / max(total - 1, 1), work)
                done += 1
    x = _norm(b, global_avg_pool(b, x), "classifier.0")
    x = view(b, x, (x.shape[0], x.shape[1]), name="flatten")
    return loss_or_logits(b, linear(b, x, config.classes, bias=True, name="classifier.2"))


def from_huggingface(values: dict[str, Any]) -> ConvNeXtConfig:
    """Read a `ConvNextForImageClassification` configuration.

    Raises:
        ValueError: a field that cannot be, or a variant this family has not.
    """
    fields = Fields(values)
    fields.text("hidden_act", default="gelu", among=("gelu",))
    if fields.int("patch_size", default=4) != 4 or fields.int("num_channels", default=3) != 3:
        raise ValueError("fields 'patch_size' and 'num_channels'; accepted: 4 and 3")
    return ConvNeXtConfig(
        depths=tuple(fields.items("depths", default=(3, 3, 9, 3))),
        widths=tuple(fields.items("hidden_sizes", default=(96, 192, 384, 768))),
        stochastic_depth=fields.number("drop_path_rate", default=0.0),
        classes=len(values["id2label"]) if values.get("id2label") else fields.int("num_labels", default=2),
        image=fields.int("image_size", default=224),
    )


FAMILY = Family(
    name="convnext",
    kind="vision",
    config=ConvNeXtConfig,
    build=build,
    phases=VISION_PHASES,
    architectures=("ConvNextForImageClassification",),
    model_types=("convnext",),
    from_huggingface=from_huggingface,
)
