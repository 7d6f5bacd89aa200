"""Convolution and pooling against PyTorch on a CPU: bytes kept for backward, FLOPs, output sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from torch_reference import graph_step, torch_step

from peakline.models.builder import GraphBuilder
from peakline.models.graph import Tensor
from peakline.models.kernels import Convolution
from peakline.models.operators import Node, operator_type
from peakline.models.operators.convolution import conv, cudnn_workspace
from peakline.models.operators.elementwise import activation, add
from peakline.models.operators.normalization import batch_norm
from peakline.models.operators.pooling import (
    adaptive_avg_pool,
    avg_pool,
    chunk,
    concat,
    interpolate,
    max_pool,
    pad,
    pixel_shuffle,
)
from peakline.models.workloads import training_step

torch = pytest.importorskip("torch")
nn = torch.nn

CONVOLUTIONS = {
    "plain": ((2, 8, 13, 13), {"out": 12, "kernel": 3, "padding": 1}),
    "strided": ((2, 8, 13, 13), {"out": 12, "kernel": 3, "padding": 1, "stride": 2}),
    "strided, rectangular": ((2, 8, 15, 9), {"out": 12, "kernel": (5, 3), "padding": (2, 0), "stride": (2, 1)}),
    "pointwise, no bias": ((2, 8, 7, 7), {"out": 4, "kernel": 1, "bias": False}),
    "dilated": ((2, 8, 13, 13), {"out": 12, "kernel": 3, "padding": 2, "dilation": 2}),
    "same": ((2, 8, 13, 13), {"out": 12, "kernel": 5, "padding": "same"}),
    "grouped": ((2, 8, 13, 13), {"out": 12, "kernel": 3, "groups": 4, "padding": 1, "stride": 2}),
    "depthwise": ((2, 8, 13, 13), {"out": 8, "kernel": 3, "groups": 8, "padding": 1}),
    "one dimension": ((2, 8, 21), {"out": 6, "kernel": 3, "stride": 2}),
    "three dimensions": ((2, 4, 5, 6, 7), {"out": 6, "kernel": 3, "padding": 1}),
    "transposed": ((2, 8, 7, 7), {"out": 6, "kernel": 4, "stride": 2, "padding": 1, "transposed": True}),
    "transposed, grouped": (
        (2, 8, 7, 7),
        {"out": 6, "kernel": 3, "stride": 2, "padding": 1, "output_padding": 1, "groups": 2, "transposed": True},
    ),
}


def torch_conv(channels: int, dimensions: int, spec: dict[str, Any]) -> Any:
    options = {k: v for k, v in spec.items() if k not in ("out", "kernel", "transposed")}
    kind = f"Conv{'Transpose' if spec.get('transposed') else ''}{dimensions}d"
    return getattr(nn, kind)(channels, spec["out"], spec["kernel"], **options)


def graph_conv(b: GraphBuilder, x: Tensor, spec: dict[str, Any], name: str = "conv") -> Tensor:
    options = {k: v for k, v in spec.items() if k not in ("out", "kernel")}
    return conv(b, x, spec["out"], spec["kernel"], name=name, **options)


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_a_convolution_keeps_and_computes_what_pytorch_does(case: str) -> None:
    shape, spec = CONVOLUTIONS[case]
    module = torch_conv(shape[1], len(shape) - 2, spec)
    x = torch.randn(shape, requires_grad=True)
    shapes = []

    def build(b: GraphBuilder) -> Tensor:
        y = graph_conv(b, b.declare("x", shape, role="input", trainable=True), spec)
        shapes.append(y.shape)
        return y

    kept, flops = graph_step(build)
    assert kept == torch_step(module, x)[0]
    assert flops == group_by_group(shape, spec)
    assert shapes == [tuple(module(x).shape)]


def group_by_group(shape: tuple[int, ...], spec: dict[str, Any]) -> int:
    """FLOPs of a grouped convolution as that many plain ones (torch's counter forgets the groups in backward)."""
    groups = spec.get("groups", 1)
    plain = {**spec, "out": spec["out"] // groups, "groups": 1}
    part = torch.randn((shape[0], shape[1] // groups, *shape[2:]), requires_grad=True)
    return int(groups * torch_step(torch_conv(shape[1] // groups, len(shape) - 2, plain), part)[1])


MAPS: dict[str, tuple[Callable[..., Any], Callable[[GraphBuilder, Tensor], Tensor]]] = {
    "max pool": (nn.MaxPool2d(3, 2, 1), lambda b, x: max_pool(b, x, 3, 2, 1)),
    "max pool, ceil": (nn.MaxPool2d(3, 2, ceil_mode=True), lambda b, x: max_pool(b, x, 3, 2, ceil=True)),
    "average pool": (nn.AvgPool2d(3, 1, 1), lambda b, x: avg_pool(b, x, 3, 1, 1)),
    "global average": (nn.AdaptiveAvgPool2d(1), lambda b, x: adaptive_avg_pool(b, x, 1)),
    "adaptive average": (nn.AdaptiveAvgPool2d(7), lambda b, x: adaptive_avg_pool(b, x, 7)),
    "upsample": (nn.Upsample(scale_factor=2), lambda b, x: interpolate(b, x, 2)),
    "pad": (nn.ZeroPad2d((1, 2, 1, 2)), lambda b, x: pad(b, x, 1, 2)),
    "pixel shuffle": (nn.PixelShuffle(2), lambda b, x: pixel_shuffle(b, x, 2)),
    "in-place relu": (nn.ReLU(True), lambda b, x: activation(b, "relu", x, in_place=True)),
    "in-place relu6": (nn.ReLU6(True), lambda b, x: activation(b, "relu6", x, in_place=True)),
    "in-place silu": (nn.SiLU(True), lambda b, x: activation(b, "silu", x, in_place=True)),
    "batch norm": (nn.BatchNorm2d(8), batch_norm),
    "concat": (lambda x: torch.cat([x, x.relu()], 1), lambda b, x: concat(b, [x, activation(b, "relu", x)])),
    "chunk": (lambda x: torch.mul(*x.chunk(2, 1)), lambda b, x: mul_chunks(b, x)),
}


def mul_chunks(b: GraphBuilder, x: Tensor) -> Tensor:
    from peakline.models.operators.elementwise import mul

    return mul(b, *chunk(b, x, 2, 1))


@pytest.mark.parametrize("case", MAPS)
def test_what_a_map_keeps_between_two_convolutions_is_what_pytorch_keeps(case: str) -> None:
    function, build_map = MAPS[case]
    shape = (2, 3, 18, 18)

    class Model(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 8, 3)
            self.function = function
            channels = function(torch.zeros(2, 8, 16, 16)).shape[1]
            self.second = nn.Conv2d(channels, 2, 1)

        def forward(self, x: Any) -> Any:
            return self.second(self.function(self.first(x)))

    model = Model()
    made = []

    def build(b: GraphBuilder) -> Tensor:
        y = build_map(b, conv(b, b.input("x", shape, "fp32"), 8, 3, name="first"))
        made.append(y.shape)
        return conv(b, y, 2, 1, name="second")

    assert graph_step(build) == torch_step(model, torch.randn(shape))
    assert made == [tuple(function(torch.zeros(2, 8, 16, 16)).shape)]


def test_a_residual_block_with_in_place_activations_keeps_what_pytorch_keeps() -> None:
    class Block(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv1, self.conv2 = (nn.Conv2d(i, 8, 3, padding=1, bias=False) for i in (3, 8, 8))
            self.bn0, self.bn1, self.bn2 = (nn.BatchNorm2d(8) for _ in range(3))
            self.relu, self.fc = nn.ReLU(True), nn.Linear(8, 5)

        def forward(self, x: Any, labels: Any) -> Any:
            x = self.relu(self.bn0(self.stem(x)))
            y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
            y += x
            y = nn.functional.adaptive_avg_pool2d(self.relu(y), 1).flatten(1)
            return nn.functional.cross_entropy(self.fc(y), labels)

    def build(b: GraphBuilder) -> Tensor:
        from peakline.models.operators.elementwise import view
        from peakline.models.operators.loss import cross_entropy
        from peakline.models.operators.matmul import linear

        def unit(x: Tensor, i: int) -> Tensor:
            return batch_norm(b, conv(b, x, 8, 3, padding=1, bias=False, name=f"conv{i}"), name=f"bn{i}")

        x = activation(b, "relu", unit(b.input("x", (4, 3, 10, 10), "fp32"), 0), in_place=True)
        y = unit(activation(b, "relu", unit(x, 1), in_place=True), 2)
        y = activation(b, "relu", add(b, y, x, in_place=True), in_place=True)
        y = view(b, adaptive_avg_pool(b, y, 1), (4, 8))
        return cross_entropy(b, linear(b, y, 5, bias=True), b.input("labels", (4,)), upcast=False)

    inputs = torch.randn(4, 3, 10, 10), torch.randint(5, (4,))
    assert graph_step(build) == torch_step(Block(), *inputs)


def test_weight_gradient_is_a_convolution_of_the_same_work_as_the_forward_pass() -> None:
    b = GraphBuilder("g", kind="fp32", training=True)
    y = conv(b, b.declare("x", (4, 8, 9, 9), role="input", trainable=True), 16, 3, stride=2, padding=1, groups=4)
    from peakline.models.transforms.gradients import differentiate

    backward = differentiate(b.graph(), y.name)
    from dataclasses import replace

    step = replace(b.graph(), tensors=backward.tensors, blocks=(*b.blocks, *backward.blocks))
    kernels = [
        k
        for _, op in step.operators()
        for k in operator_type(op.type).kernels(Node.of(step, op))
        if isinstance(k, Convolution)
    ]
    assert len({k.flops for k in kernels}) == 1
    assert len(kernels) == 3


def test_an_array_of_batches_and_image_sizes_gives_the_scalar_results() -> None:
    batches, sizes = np.array([1, 2, 5]), np.array([32, 33, 64])

    def work(batch: Any, size: Any) -> list[Any]:
        b = GraphBuilder("g", kind="fp32")
        x = conv(b, b.input("x", (batch, 3, size, size), "fp32"), 8, 3, stride=2, padding=1)
        x = max_pool(b, activation(b, "relu", x), 3, 2, ceil=True)
        y = conv(b, x, 8, 3, padding=1, groups=8, name="dw")
        g = b.graph()
        nodes = [Node.of(g, op) for _, op in g.operators()]
        costs = [k.flops for n in nodes for k in operator_type(n.operator.type).kernels(n)]
        space = [w for n in nodes for w in operator_type(n.operator.type).workspace(n)]
        return [*costs, *space, y.bytes]

    swept = work(batches, sizes)
    for i, (batch, size) in enumerate(zip(batches.tolist(), sizes.tolist())):
        assert [int(v[i]) for v in swept] == work(batch, size)


def test_cudnn_needs_no_layout_copies_for_depthwise_or_channels_last_convolutions() -> None:
    b = GraphBuilder("g", kind="fp16")
    x = b.input("x", (2, 6, 8, 8), "fp16")
    w = b.parameter("w", (6, 6, 3, 3))
    # x, w and the result in NHWC with 8 channels for 6
    assert cudnn_workspace(x, w, x, groups=1, channels_last=False) == 2 * (2 * 8 * 64 * 2 + 6 * 8 * 9)
    assert cudnn_workspace(x, w, x, groups=1, channels_last=True) == 0
    assert cudnn_workspace(x, w, x, groups=6, channels_last=False) == 0


@pytest.mark.parametrize(
    ("options", "message"), [({"groups": 4}, "groups 4"), ({"kernel": 11}, "larger than the padded input")]
)
def test_an_impossible_convolution_is_refused(options: dict[str, int], message: str) -> None:
    b = GraphBuilder("g")
    with pytest.raises(ValueError, match=message):
        conv(b, b.input("x", (1, 6, 8, 8), "bf16"), 6, **{"kernel": 3, **options})


def test_channels_last_images_need_no_conversion_workspace() -> None:
    plain, last = (training_step("resnet-18", batch=4, image=64, channels_last=c) for c in (False, True))
    asked = [
        sum(bool(operator_type(o.type).workspace(Node.of(g, o))) for _, o in g.operators() if o.type == "convolution")
        for g in (plain, last)
    ]
    assert asked[0] > 0
    assert asked[1] == 0
