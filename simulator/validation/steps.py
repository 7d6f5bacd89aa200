"""Whole training steps against published throughput: the sum of a step's kernels, without host or data loading."""

from __future__ import annotations

import pandas as pd

from peakline.estimator import estimate
from peakline.models.workloads import training_step

__all__ = ["PUBLISHED", "steps"]

PUBLISHED = (
    ("ResNet-50, TF32, batch 256", "a100-80gb", 256, {"dtype": "fp32"}, 938),
    ("ResNet-50, fp16 autocast, batch 256, channels_last", "a100-80gb", 256,
     {"dtype": "fp32", "autocast": "fp16", "channels_last": True}, 2470),
    ("ResNet-50, fp32, batch 112", "v100-sxm2-32gb", 112, {"dtype": "fp32"}, 356),
    ("ResNet-50, fp16 autocast, batch 256, channels_last", "v100-sxm2-32gb", 256,
     {"dtype": "fp32", "autocast": "fp16", "channels_last": True}, 1156),
)  # fmt: skip
"""Images per second, NVIDIA DeepLearningExamples `PyTorch/Classification/ConvNets/resnet50v1.5`, single GPU, container
21.03; the published rates include data loading."""


def steps() -> pd.DataFrame:
    """Columns step, device, published and predicted (images per second), error."""
    rows = []
    for step, name, batch, options, published in PUBLISHED:
        graph = training_step("resnet-50", batch=batch, optimizer="sgd", **options)
        rate = batch / float(estimate(graph, name).time)
        rows.append({"step": step, "device": name, "published": published, "predicted": round(rate)})
    table = pd.DataFrame(rows)
    return table.assign(error=table["predicted"] / table["published"] - 1.0)
