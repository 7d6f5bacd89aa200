"""Whole training steps and the ratios between operators in them, against published throughput."""

from __future__ import annotations

import pytest

import peakline as pk
from peakline.cost.price import price
from peakline.hardware import device
from peakline.models.dtypes import dtype
from peakline.models.kernels import Attention, Convolution

BF16, FP32 = dtype("bf16"), dtype("fp32")


@pytest.mark.parametrize(
    ("gpu", "batch", "published"), [("a100-80gb", 256, 938), ("v100-sxm2-32gb", 112, 356)], ids=["A100 TF32", "V100"]
)
def test_resnet_50_trains_at_the_published_rate(gpu, batch, published):
    """NVIDIA DeepLearningExamples, resnet50v1.5, one GPU; the published rate includes data loading."""
    graph = pk.training_step("resnet-50", batch=batch, dtype="fp32", optimizer="sgd")
    seconds = pk.estimate(graph, gpu).cost.tiled
    assert published * 0.9 < batch / seconds < published * 1.2


@pytest.mark.parametrize(("gpu", "published"), [("a100-80gb", 0.63 * 312), ("h100-sxm", 542)])
def test_the_backward_pass_of_attention_runs_near_the_best_published_kernels(gpu, published):
    """TFLOP/s without a mask, heads of 128: FlashAttention-2 on A100 reaches 63 % of peak at best (arXiv:2307.08691,
    §4.1), FlashAttention-3 on H100 542 at 4,096 tokens (arXiv:2407.08608, figure 6)."""
    pairs, moved = 4096**2, 2 * 4 * 16 * 4096 * 128
    forward, backward = (Attention(4, 16, 16, 4096, 4096, pairs, 128, 128, BF16, BF16, flag) for flag in (False, True))
    cost = price(backward, 5 * moved, 3 * moved, device(gpu))
    assert backward.flops / cost.tiled / 1e12 == pytest.approx(published, rel=0.25)
    assert 2 < cost.tiled / price(forward, 3 * moved, moved, device(gpu)).tiled < 3.5


def test_float32_convolutions_run_in_tf32_and_pay_for_their_layout():
    def seconds(channels_last, gpu):
        kernel = Convolution(64, 256, 256, 1, 9, 56**2, 56**2, FP32, FP32, FP32, False, channels_last)
        moved = 4 * 64 * 256 * 56**2
        return kernel.flops, price(kernel, moved, moved, device(gpu)).tiled

    flops, in_place = seconds(True, "a100-80gb")
    assert flops / in_place > 3 * 19.5e12  # the vector units' peak
    assert seconds(False, "a100-80gb")[1] > 1.2 * in_place
    assert seconds(False, "v100-pcie-32gb") == seconds(True, "v100-pcie-32gb")  # no TF32, nothing to convert
