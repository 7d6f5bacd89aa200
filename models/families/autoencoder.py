"""Fully connected autoencoder for anomaly detection (MLPerf Tiny: mlcommons/tiny `anomaly_detection`)."""

from __future__ import annotations

from dataclasses import dataclass

from peakline.models.builder import GraphBuilder
from peakline.models.families.fields import positive
from peakline.models.families.vision import VISION_PHASES, folds
from peakline.models.graph import Tensor
from peakline.models.operators.elementwise import activation
from peakline.models.operators.loss import mse_loss
from peakline.models.operators.matmul import linear
from peakline.models.operators.normalization import batch_norm
from peakline.models.workload import Family, Workload

__all__ = ["FAMILY", "AutoencoderConfig", "build"]


@dataclass(frozen=True)
class AutoencoderConfig:
    """`features` numbers in and out (five frames of 128 mel bands), through linear layers of the widths `hidden`."""

    features: int = 640
    hidden: tuple[int, ...] = (128, 128, 128, 128, 8, 128, 128, 128, 128)

    def __post_init__(self) -> None:
        positive(self, "features")
        object.__setattr__(self, "hidden", tuple(self.hidden))


def build(b: GraphBuilder, config: AutoencoderConfig, work: Workload) -> Tensor:
    """Write the autoencoder; the mean squared error with its input in training, otherwise the reconstruction."""
    if work.image is not None:
        raise ValueError(f"image: the autoencoder reads {config.features} numbers, not images")
    inputs = x = b.input("features", (work.batch, config.features), b.dtype)
    for i, width in enumerate(config.hidden):
        x = linear(b, x, width, bias=True, name=f"dense{i}")
        if not folds(b):  # otherwise folded into the linear layer, and the clamp with it
            x = activation(b, "relu", batch_norm(b, x, name=f"bn{i}"), name="relu")
    x = linear(b, x, config.features, bias=True, name="out")
    return mse_loss(b, x, inputs) if b.training else x


FAMILY = Family("autoencoder", "vision", AutoencoderConfig, build, VISION_PHASES)
