"""Image classifiers against the published numbers of parameters and multiply-adds, and against PyTorch's autograd."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from torch_reference import forward_flops, graph_step, torch_step

from peakline.models.builder import GraphBuilder
from peakline.models.dtypes import dtype
from peakline.models.families.convnext import ConvNeXtConfig
from peakline.models.families.efficientnet import EfficientNetConfig
from peakline.models.families.inception import InceptionConfig
from peakline.models.families.mobilenet import InvertedResidualConfig
from peakline.models.families.resnet import ResNetConfig, from_huggingface
from peakline.models.families.vgg import VGGConfig
from peakline.models.families.vision import conv_norm, squeeze_excite
from peakline.models.families.xception import XceptionConfig
from peakline.models.graph import Graph, Tensor
from peakline.models.transforms.training import train
from peakline.models.workload import Workload


def build(
    family: str, config: Any, phase: Any = "inference", kind: str = "fp32", **options: Any
) -> tuple[Graph, Tensor]:
    """The forward graph of a family's network and its result."""
    work = Workload(phase, kind=dtype(kind), **options)
    b = GraphBuilder(family, kind=work.kind, training=work.training, autocast=work.autocast, eager=work.eager)
    result = import_module(f"peakline.models.families.{family}").FAMILY.build(b, config, work)
    return b.graph(), result


# parameters and 10⁹ multiply-adds: the `num_params` and `_ops` of torchvision.models' weights (0.20), at the image size
# the weights were evaluated with; Xception: timm's `legacy_xception` in results/benchmark-infer-amp-nchw*.csv
BASIC = {"block": "basic", "widths": (64, 128, 256, 512)}
PUBLISHED = {
    "resnet18": ("resnet", ResNetConfig(layers=(2, 2, 2, 2), **BASIC), 11_689_512, 1.814),
    "resnet34": ("resnet", ResNetConfig(layers=(3, 4, 6, 3), **BASIC), 21_797_672, 3.664),
    "resnet50": ("resnet", ResNetConfig(), 25_557_032, 4.089),
    "resnet101": ("resnet", ResNetConfig(layers=(3, 4, 23, 3)), 44_549_160, 7.801),
    "resnet152": ("resnet", ResNetConfig(layers=(3, 8, 36, 3)), 60_192_808, 11.514),
    "wide_resnet50_2": ("resnet", ResNetConfig(inner=0.5), 68_883_240, 11.398),
    "resnext50_32x4d": ("resnet", ResNetConfig(inner=0.5, groups=32), 25_028_904, 4.23),
    "vgg11": ("vgg", VGGConfig(depths=(1, 1, 2, 2, 2)), 132_863_336, 7.609),
    "vgg16": ("vgg", VGGConfig(), 138_357_544, 15.47),
    "vgg16_bn": ("vgg", VGGConfig(norm=True), 138_365_992, 15.47),
    "vgg19": ("vgg", VGGConfig(depths=(2, 2, 4, 4, 4)), 143_667_240, 19.632),
    "mobilenet_v2": ("mobilenet", InvertedResidualConfig(), 3_504_872, 0.301),
    "efficientnet_b0": ("efficientnet", EfficientNetConfig(), 5_288_548, 0.386),
    "efficientnet_b1": ("efficientnet", EfficientNetConfig(1.0, 1.1, image=240), 7_794_184, 0.687),
    "efficientnet_b2": ("efficientnet", EfficientNetConfig(1.1, 1.2, image=288), 9_109_994, 1.088),
    "efficientnet_b3": ("efficientnet", EfficientNetConfig(1.2, 1.4, image=300), 12_233_232, 1.827),
    "efficientnet_b4": ("efficientnet", EfficientNetConfig(1.4, 1.8, image=380), 19_341_616, 4.394),
    # torchvision's 27,161,264 less the auxiliary classifier's 3,326,696
    "inception_v3": ("inception", InceptionConfig(), 23_834_568, 5.713),
    "xception": ("xception", XceptionConfig(), 22_855_952, 8.4),
    "convnext_tiny": ("convnext", ConvNeXtConfig(), 28_589_128, 4.456),
    "convnext_small": ("convnext", ConvNeXtConfig(depths=(3, 3, 27, 3)), 50_223_688, 8.684),
    "convnext_base": ("convnext", ConvNeXtConfig((3, 3, 27, 3), (128, 256, 512, 1024)), 88_591_464, 15.355),
    "convnext_large": ("convnext", ConvNeXtConfig((3, 3, 27, 3), (192, 384, 768, 1536)), 197_767_336, 34.361),
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_parameters_are_exactly_and_multiply_adds_nearly_the_published_ones(model: str) -> None:
    family, config, parameters, billions = PUBLISHED[model]
    graph, _ = build(family, config)
    assert graph.parameters == parameters
    assert forward_flops(graph) / 2e9 == pytest.approx(billions, rel=6e-3)


@pytest.mark.parametrize("model", ["resnet50", "mobilenet_v2", "efficientnet_b0", "inception_v3", "xception"])
def test_backward_computes_twice_the_forward_pass_without_the_image_gradient(model: str) -> None:
    family, config, *_ = PUBLISHED[model]
    graph, loss = build(family, config, "training", batch=2)
    step = train(graph, loss.name, optimizer=None)
    first = next(op for _, op in graph.operators() if op.type == "convolution")
    stem = replace(graph, blocks=(replace(graph.blocks[0], operators=(first,)),))
    assert forward_flops(step) == 3 * forward_flops(graph) - forward_flops(stem)


def test_an_array_of_batches_gives_what_each_batch_gives() -> None:
    family, config, *_ = PUBLISHED["efficientnet_b0"]

    def figures(batch: Any, image: Any) -> list[Any]:
        graph, loss = build(family, config, "training", batch=batch, image=image)
        step = train(graph, loss.name, optimizer="adam")
        return [forward_flops(step), step.total_bytes("activation", "gradient", "optimizer_state")]

    swept = figures(np.array([1, 32, 128]), np.array([224, 96, 225]))
    for i, (batch, image) in enumerate([(1, 224), (32, 96), (128, 225)]):
        assert [int(f[i]) for f in swept] == figures(batch, image)


def test_resnet_reads_a_hugging_face_configuration() -> None:
    config = from_huggingface(
        {"depths": [3, 4, 6, 3], "hidden_sizes": [256, 512, 1024, 2048], "layer_type": "bottleneck", "num_labels": 1000}
    )
    assert build("resnet", config)[0].parameters == 25_557_032
    with pytest.raises(ValueError, match="downsample_in_bottleneck"):
        from_huggingface({"downsample_in_bottleneck": True})


def test_integer_inference_folds_batch_norm_and_keeps_int32_biases() -> None:
    graph, _ = build("mobilenet", InvertedResidualConfig(), kind="int8")
    kinds = {op.type for _, op in graph.operators()}
    assert kinds == {"convolution", "add", "mean", "view", "linear"}
    weights = [t for t in graph.tensors.values() if t.role == "parameter"]
    assert {t.dtype.name for t in weights if len(t.shape) > 1} == {"int8"}
    assert {t.dtype.name for t in weights if len(t.shape) == 1} == {"int32"}
    # a bias takes the place of batch norm's weight and bias
    norms = sum(int(t.shape[0]) for t in weights if len(t.shape) == 1) - 1000
    assert graph.parameters == 3_504_872 - norms


# ---- against PyTorch -------------------------------------------------------------------------------------------------
def inverted_residual_in_torch(nn: Any, act: Callable[..., Any], squeeze: bool) -> Any:
    """A stem and an inverted residual block with in-place activations, as torchvision writes them."""

    def unit(i: int, o: int, k: int, s: int = 1, g: int = 1, last: bool = False) -> list[Any]:
        layers = [nn.Conv2d(i, o, k, s, k // 2, groups=g, bias=False), nn.BatchNorm2d(o)]
        return layers if last else [*layers, act(inplace=True)]

    class Squeeze(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.pool, self.fc1, self.fc2 = nn.AdaptiveAvgPool2d(1), nn.Conv2d(48, 2, 1), nn.Conv2d(2, 48, 1)
            self.act, self.gate = act(inplace=True), nn.Sigmoid()

        def forward(self, x: Any) -> Any:
            return self.gate(self.fc2(self.act(self.fc1(self.pool(x))))) * x

    class Block(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(*unit(3, 8, 3, 2))
            inner = [*unit(8, 48, 1), *unit(48, 48, 5, 1, 48), *([Squeeze()] if squeeze else [])]
            self.conv = nn.Sequential(*inner, *unit(48, 8, 1, last=True))
            self.head = nn.Conv2d(8, 4, 1)

        def forward(self, x: Any) -> Any:
            x = self.stem(x)
            return self.head(x + self.conv(x)).sum()

    return Block()


@pytest.mark.parametrize(("act", "squeeze"), [("relu", False), ("relu6", False), ("silu", True)])
def test_an_inverted_residual_keeps_for_backward_what_pytorch_keeps(act: str, squeeze: bool) -> None:
    torch = pytest.importorskip("torch")
    nn = torch.nn
    module = inverted_residual_in_torch(nn, {"relu": nn.ReLU, "relu6": nn.ReLU6, "silu": nn.SiLU}[act], squeeze)

    def write(b: GraphBuilder) -> Tensor:
        from peakline.models.operators.convolution import conv
        from peakline.models.operators.elementwise import add

        x = conv_norm(b, b.input("x", (2, 3, 16, 16), "fp32"), 8, 3, 2, act=act)
        y = conv_norm(b, x, 48, 1, act=act)
        y = conv_norm(b, y, 48, 5, groups=48, act=act)
        if squeeze:
            y = squeeze_excite(b, y, 2, act=act)
        y = add(b, x, conv_norm(b, y, 8, 1, act=None))
        return conv(b, y, 4, 1, name="head")

    assert graph_step(write)[0] == torch_step(module, torch.randn(2, 3, 16, 16))[0]
