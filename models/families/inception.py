"""Inception v3 (arXiv:1512.00567) as torchvision runs it, without the auxiliary classifier.

A block is a table of branches, a branch a chain of steps: `(channels, kernel)`, with a stride or a fork where needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from peakline.models.builder import GraphBuilder
from peakline.models.families.fields import positive
from peakline.models.families.vision import VISION_PHASES, conv_norm, head, image_input, loss_or_logits
from peakline.models.graph import Tensor
from peakline.models.operators.pooling import avg_pool, concat, max_pool
from peakline.models.workload import Family, Workload

__all__ = ["FAMILY", "InceptionConfig", "build"]

Kernel: TypeAlias = int | tuple[int, int]
Step: TypeAlias = tuple[str, int, Kernel] | tuple[str]
"""`("conv", channels, kernel)`, `("reduce", channels, kernel)` with stride 2 and no padding, `("avg",)`, `("max",)`,
`("fork", channels, kernel)`: convolutions by the kernel and its transpose side by side."""

_ROW, _COLUMN = (1, 7), (7, 1)


def _a(pool: int) -> list[list[Step]]:
    return [
        [("conv", 64, 1)],
        [("conv", 48, 1), ("conv", 64, 5)],
        [("conv", 64, 1), ("conv", 96, 3), ("conv", 96, 3)],
        [("avg",), ("conv", pool, 1)],
    ]


def _c(width: int) -> list[list[Step]]:
    return [
        [("conv", 192, 1)],
        [("conv", width, 1), ("conv", width, _ROW), ("conv", 192, _COLUMN)],
        [("conv", width, 1), *(("conv", w, k) for w, k in _twice(width))],
        [("avg",), ("conv", 192, 1)],
    ]


def _twice(width: int) -> list[tuple[int, Kernel]]:
    return [(width, _COLUMN), (width, _ROW), (width, _COLUMN), (192, _ROW)]


_B: list[list[Step]] = [
    [("reduce", 384, 3)],
    [("conv", 64, 1), ("conv", 96, 3), ("reduce", 96, 3)],
    [("max",)],
]
_D: list[list[Step]] = [
    [("conv", 192, 1), ("reduce", 320, 3)],
    [("conv", 192, 1), ("conv", 192, _ROW), ("conv", 192, _COLUMN), ("reduce", 192, 3)],
    [("max",)],
]
_E: list[list[Step]] = [
    [("conv", 320, 1)],
    [("conv", 384, 1), ("fork", 384, (1, 3))],
    [("conv", 448, 1), ("conv", 384, 3), ("fork", 384, (1, 3))],
    [("avg",), ("conv", 192, 1)],
]
_BLOCKS: dict[str, list[list[Step]]] = {
    "Mixed_5b": _a(32), "Mixed_5c": _a(64), "Mixed_5d": _a(64), "Mixed_6a": _B, "Mixed_6b": _c(128),
    "Mixed_6c": _c(160), "Mixed_6d": _c(160), "Mixed_6e": _c(192), "Mixed_7a": _D, "Mixed_7b": _E, "Mixed_7c": _E,
}  # fmt: skip


@dataclass(frozen=True)
class InceptionConfig:
    """Inception v3; `dropout` before the classifier."""

    dropout: float = 0.5
    classes: int = 1000
    image: int = 299

    def __post_init__(self) -> None:
        positive(self, "classes", "image")


def _step(b: GraphBuilder, x: Tensor, step: Step, name: str) -> Tensor:
    names = (f"{name}.conv", f"{name}.bn")
    if step[0] == "avg":
        return avg_pool(b, x, 3, 1, 1, name=name)
    if step[0] == "max":
        return max_pool(b, x, 3, 2, name=name)
    _, channels, kernel = step  # type: ignore[misc]
    if step[0] == "reduce":
        return conv_norm(b, x, channels, kernel, 2, padding=0, names=names)
    if step[0] == "fork":
        assert isinstance(kernel, tuple)
        sides = [(kernel, "a"), ((kernel[1], kernel[0]), "b")]
        made = [conv_norm(b, x, channels, k, names=(f"{name}{s}.conv", f"{name}{s}.bn")) for k, s in sides]
        return concat(b, made, name=f"{name}.concat")
    return conv_norm(b, x, channels, kernel, names=names)


def build(b: GraphBuilder, config: InceptionConfig, work: Workload) -> Tensor:
    """Write an Inception v3; the loss in training, otherwise the logits."""
    x = image_input(b, work, config.image)

    def unit(x: Tensor, name: str, out: int, kernel: int, stride: int = 1, padding: int = 0) -> Tensor:
        return conv_norm(b, x, out, kernel, stride, padding=padding, names=(f"{name}.conv", f"{name}.bn"))

    x = unit(x, "Conv2d_1a_3x3", 32, 3, stride=2)
    x = unit(x, "Conv2d_2a_3x3", 32, 3)
    x = unit(x, "Conv2d_2b_3x3", 64, 3, padding=1)
    x = max_pool(b, x, 3, 2, name="maxpool1")
    x = unit(x, "Conv2d_3b_1x1", 80, 1)
    x = unit(x, "Conv2d_4a_3x3", 192, 3)
    x = max_pool(b, x, 3, 2, name="maxpool2")
    for block, branches in _BLOCKS.items():
        with b.scope(block):
            results = []
            for n, branch in enumerate(branches):
                y = x
                for i, step in enumerate(branch):
                    y = _step(b, y, step, f"branch{n}.{i}")
                results.append(y)
            x = concat(b, results)
    return loss_or_logits(b, head(b, x, config.classes, work, p_dropout=config.dropout))


FAMILY = Family("inception", "vision", InceptionConfig, build, VISION_PHASES)
