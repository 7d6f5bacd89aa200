"""One operator at a time between two linear layers: bytes kept for backward and peak, as PyTorch really has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch_memory import predicted_rise, predicted_saved, rise, saved_bytes, step_graph  # noqa: E402

from peakline.models.builder import GraphBuilder  # noqa: E402
from peakline.models.graph import Tensor  # noqa: E402
from peakline.models.operators.convolution import conv  # noqa: E402
from peakline.models.operators.dropout import dropout  # noqa: E402
from peakline.models.operators.elementwise import activation, add, mul, unary  # noqa: E402
from peakline.models.operators.indexing import cat, split  # noqa: E402
from peakline.models.operators.loss import mse_loss  # noqa: E402
from peakline.models.operators.matmul import linear, matmul  # noqa: E402
from peakline.models.operators.normalization import batch_norm, group_norm, layer_norm  # noqa: E402
from peakline.models.operators.softmax import softmax  # noqa: E402

ROWS, WIDTH, INNER = 96, 128, 192


class Between(nn.Module):
    """down(f(up(x))), and the mean squared error."""

    def __init__(self, function: Callable[[Any], Any], out: int = INNER) -> None:
        super().__init__()
        self.up, self.down, self.function = nn.Linear(WIDTH, INNER), nn.Linear(out, WIDTH), function

    def forward(self, x: Any) -> Any:
        return self.down(self.function(self.up(x)))


def compare(
    function: Callable[[Any], Any],
    build: Callable[[GraphBuilder, Tensor], Tensor],
    out: int = INNER,
    rows: tuple[int, ...] = (2, ROWS // 2),
) -> tuple[int, int, int, int]:
    """(predicted peak, measured peak, predicted saved bytes, measured saved bytes)."""
    x, target = torch.randn(*rows, WIDTH), torch.randn(*rows, WIDTH)
    module = Between(function, out)

    def step() -> None:
        F.mse_loss(module(x), target).backward()
        module.zero_grad()

    def program(b: GraphBuilder) -> Tensor:
        shape = tuple(x.shape)
        y = linear(b, b.input("x", shape, "fp32"), INNER, bias=True, name="up")
        y = linear(b, build(b, y), WIDTH, bias=True, name="down")
        return mse_loss(b, y, b.input("target", shape, "fp32"))

    graph = step_graph(program)
    saved = saved_bytes(lambda: F.mse_loss(module(x), target), module.parameters())
    return predicted_rise(graph), rise(step), predicted_saved(graph), saved


ELEMENTWISE: list[tuple[str, Callable[[Any], Any], Callable[[GraphBuilder, Tensor], Tensor]]] = [
    ("relu", F.relu, lambda b, x: unary(b, "relu", x)),
    ("relu6", F.relu6, lambda b, x: unary(b, "relu6", x)),
    ("gelu", F.gelu, lambda b, x: unary(b, "gelu", x)),
    ("gelu_tanh", lambda x: F.gelu(x, approximate="tanh"), lambda b, x: unary(b, "gelu_tanh", x)),
    ("silu", F.silu, lambda b, x: unary(b, "silu", x)),
    ("tanh", torch.tanh, lambda b, x: unary(b, "tanh", x)),
    ("sigmoid", torch.sigmoid, lambda b, x: unary(b, "sigmoid", x)),
    ("hardswish", F.hardswish, lambda b, x: unary(b, "hardswish", x)),
    ("hardsigmoid", F.hardsigmoid, lambda b, x: unary(b, "hardsigmoid", x)),
    ("softplus", F.softplus, lambda b, x: unary(b, "softplus", x)),
    ("leaky_relu", F.leaky_relu, lambda b, x: unary(b, "leaky_relu", x)),
    ("exp", torch.exp, lambda b, x: unary(b, "exp", x)),
    ("rsqrt", torch.rsqrt, lambda b, x: unary(b, "rsqrt", x)),
    ("sin", torch.sin, lambda b, x: unary(b, "sin", x)),
    ("cos", torch.cos, lambda b, x: unary(b, "cos", x)),
    ("neg", torch.neg, lambda b, x: unary(b, "neg", x)),
    ("square", lambda x: x.pow(2), lambda b, x: unary(b, "pow", x)),
    ("cube", lambda x: x**3, lambda b, x: unary(b, "pow", x)),
    ("relu_squared", lambda x: F.relu(x) ** 2, lambda b, x: activation(b, "relu2", x)),
    ("softmax", lambda x: F.softmax(x, -1), lambda b, x: softmax(b, x)),
    ("product with itself", lambda x: x * x, lambda b, x: mul(b, x, x)),
    ("silu gate", lambda x: F.silu(x) * x, lambda b, x: mul(b, unary(b, "silu", x), x)),
    ("residual", lambda x: x + torch.tanh(x), lambda b, x: add(b, x, unary(b, "tanh", x))),
    ("two uses", lambda x: torch.sin(x) + torch.tanh(x), lambda b, x: add(b, unary(b, "sin", x), unary(b, "tanh", x))),
]


@pytest.mark.parametrize(("name", "function", "build"), ELEMENTWISE, ids=[name for name, *_ in ELEMENTWISE])
def test_an_elementwise_function_keeps_what_its_derivative_reads(
    name: str, function: Callable[[Any], Any], build: Callable[[GraphBuilder, Tensor], Tensor]
) -> None:
    peak, measured_peak, saved, measured_saved = compare(function, build)
    assert saved == measured_saved
    assert peak == measured_peak


@pytest.mark.parametrize("name", ["relu", "relu6", "silu"])
def test_an_activation_in_place_overwrites_its_input_or_a_clone_of_it(name: str) -> None:
    """The derivative of relu reads the output; those of relu6 and silu read the input, which is cloned first."""
    function = {"relu": F.relu_, "relu6": nn.ReLU6(inplace=True), "silu": nn.SiLU(inplace=True)}[name]
    peak, measured_peak, saved, measured_saved = compare(
        function, lambda b, x: unary(b, name, x, in_place=True), rows=(ROWS,)
    )
    assert saved == measured_saved
    assert peak == measured_peak


def test_parts_of_a_split_are_views_and_their_concatenation_is_a_copy() -> None:
    def swapped(x: Any) -> Any:
        left, right = x.split(INNER // 2, -1)
        return torch.cat((torch.tanh(right), left), -1)

    def build(b: GraphBuilder, x: Tensor) -> Tensor:
        left, right = split(b, x, (INNER // 2, INNER // 2))
        return cat(b, (unary(b, "tanh", right), left))

    peak, measured_peak, saved, measured_saved = compare(swapped, build)
    assert saved == measured_saved
    assert peak == measured_peak


def test_a_batched_product_of_a_tensor_with_itself() -> None:
    def gram(x: Any) -> Any:
        return torch.bmm(x, x.transpose(1, 2))

    def build(b: GraphBuilder, x: Tensor) -> Tensor:
        return matmul(b, x, x, transpose_b=True)

    peak, measured_peak, saved, measured_saved = compare(gram, build, out=ROWS // 2)
    assert saved == measured_saved
    assert peak == measured_peak


def test_dropout_keeps_one_byte_per_element() -> None:
    """CUDA runs `native_dropout`; the CPU's default keeps a mask in the input's format, its native form does not."""
    x = torch.randn(ROWS, WIDTH, requires_grad=True)
    measured = saved_bytes(lambda: torch.native_dropout(x, 0.1, True)[0], [])

    def build(b: GraphBuilder) -> Tensor:
        return dropout(b, b.parameter("x", (ROWS, WIDTH)), 0.1)

    assert predicted_saved(step_graph(build)) == measured == ROWS * WIDTH


def test_a_layer_norm_peaks_where_pytorch_does_but_for_the_cpu_sums() -> None:
    """`LayerNormBackwardKernelImpl` on a CPU sums the parameters' gradients per thread, in a buffer it frees."""
    norm = nn.LayerNorm(INNER)
    buffer = 2 * torch.get_num_threads() * INNER * 4

    def build(b: GraphBuilder, x: Tensor) -> Tensor:
        return layer_norm(b, x)

    peak, measured, saved, measured_saved = compare(norm, build)
    assert saved == measured_saved
    assert measured - buffer <= peak <= measured


class Convolutions(nn.Module):
    def __init__(self, norm: Callable[[int], Any]) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 16, 3, padding=1, bias=False), norm(16)
        self.second = nn.Conv2d(16, 8, 3, padding=1, bias=False)

    def forward(self, x: Any) -> Any:
        return self.second(F.relu(self.norm(self.first(x))))


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_a_convolution_keeps_its_input_and_a_norm_its_statistics(norm: str) -> None:
    x, target = torch.randn(2, 3, 24, 24), torch.randn(2, 8, 24, 24)
    module = Convolutions(nn.BatchNorm2d if norm == "batch" else lambda c: nn.GroupNorm(4, c))

    def build(b: GraphBuilder) -> Tensor:
        y = conv(b, b.input("x", tuple(x.shape), "fp32"), 16, 3, padding=1, name="first")
        y = batch_norm(b, y) if norm == "batch" else group_norm(b, y, 4)
        y = conv(b, unary(b, "relu", y), 8, 3, padding=1, name="second")
        return mse_loss(b, y, b.input("target", tuple(target.shape), "fp32"))

    own = [*module.parameters(), *module.buffers()]
    assert predicted_saved(step_graph(build)) == saved_bytes(lambda: F.mse_loss(module(x), target), own)
