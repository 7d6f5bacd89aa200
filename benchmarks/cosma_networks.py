"""The fourteen networks of COSMA's evaluation (arXiv:2311.18246) as tensors and operators, one byte an element.

Inference at batch 1 on 224 × 224 inputs (clips of 16 frames). As a compiler would leave them: batch norm and the
activation behind a convolution belong to it, unless they come before one (DenseNet, the NAS cells); views are free.
Weights are parameters of their operators; biases and norms' vectors are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod

from peakline.solvers.problem import Operator, Problem, Role, Tensor

__all__ = ["HUMAN", "SEARCHED", "without_parameters"]


@dataclass(frozen=True)
class Value:
    """A tensor: `c` channels on a grid of `dims`."""

    name: str
    c: int
    dims: tuple[int, ...]


Kernel = int | tuple[int, ...]


@dataclass
class Net:
    """A network under construction."""

    tensors: list[Tensor] = field(default_factory=list)
    operators: list[Operator] = field(default_factory=list)

    def input(self, c: int, *dims: int) -> Value:
        return self._tensor("input", c, dims, "input")

    def _tensor(self, name: str, c: int, dims: tuple[int, ...], role: Role) -> Value:
        self.tensors.append(Tensor(name, c * prod(dims), role))
        return Value(name, c, dims)

    def op(self, kind: str, reads: Sequence[Value], c: int, dims: tuple[int, ...], weight: int = 0) -> Value:
        """An operator with one result; `weight` elements of its own."""
        name = f"{kind}{len(self.operators)}"
        inputs = [value.name for value in reads]
        if weight:
            inputs.append(f"{name}.weight")
            self.tensors.append(Tensor(f"{name}.weight", weight, "parameter"))
        made = self._tensor(name, c, dims, "activation")
        self.operators.append(Operator(name, tuple(dict.fromkeys(inputs)), (name,)))
        return made

    def conv(self, x: Value, c: int, k: Kernel, stride: Kernel = 1, groups: int = 1) -> Value:
        k = (k,) * len(x.dims) if isinstance(k, int) else k
        return self.op("conv", [x], c, _strided(x, stride), c * (x.c // groups) * prod(k))

    def depthwise(self, x: Value, k: int, stride: int = 1) -> Value:
        return self.conv(x, x.c, k, stride, x.c)

    def each(self, kind: str, *reads: Value) -> Value:
        """An operator on elements: relu, norm, add, mul, softmax."""
        largest = max(reads, key=lambda v: prod(v.dims))
        return self.op(kind, reads, largest.c, largest.dims)

    def pool(self, x: Value, stride: Kernel = 1) -> Value:
        return self.op("pool", [x], x.c, _strided(x, stride))

    def gap(self, x: Value) -> Value:
        return self.op("gap", [x], x.c, (1,) * len(x.dims))

    def resize(self, x: Value, dims: tuple[int, ...]) -> Value:
        return self.op("resize", [x], x.c, dims)

    def cat(self, values: Sequence[Value]) -> Value:
        return self.op("concat", values, sum(v.c for v in values), values[0].dims) if len(values) > 1 else values[0]

    def linear(self, x: Value, c: int) -> Value:
        return self.op("linear", [x], c, x.dims, x.c * c)

    def done(self, result: Value) -> Problem:
        """What nobody reads is the output."""
        tensors = tuple(Tensor(t.name, t.bytes, "output") if t.name == result.name else t for t in self.tensors)
        return Problem(tensors, tuple(self.operators))


def _strided(x: Value, stride: Kernel) -> tuple[int, ...]:
    steps = (stride,) * len(x.dims) if isinstance(stride, int) else stride
    return tuple(-(-d // s) for d, s in zip(x.dims, steps))


def without_parameters(problem: Problem) -> Problem:
    """The same with activations only."""
    left = {t.name for t in problem.tensors if t.role == "parameter"}
    return Problem(
        tuple(t for t in problem.tensors if t.name not in left),
        tuple(Operator(o.name, tuple(n for n in o.inputs if n not in left), o.outputs) for o in problem.operators),
    )


# -- residual networks (torchvision) ----------------------------------------------------------------------------------


def _resnet_body(b: Net, groups: int = 1, width: int = 64, dilated: bool = False) -> Value:
    """ResNet-50's stages; `dilated`: the last two keep their resolution, as under FCN and DeepLabV3."""
    x = b.pool(b.conv(b.input(3, 224, 224), 64, 7, 2), 2)
    for stage, blocks in enumerate((3, 4, 6, 3)):
        planes = 64 << stage
        inner = planes * width // 64 * groups
        for block in range(blocks):
            stride = 2 if block == 0 and stage and not (dilated and stage > 1) else 1
            y = b.conv(b.conv(b.conv(x, inner, 1), inner, 3, stride, groups), 4 * planes, 1)
            shortcut = b.conv(x, 4 * planes, 1, stride) if block == 0 else x
            x = b.each("add", y, shortcut)
    return x


def _classifier(b: Net, x: Value) -> Problem:
    return b.done(b.linear(b.gap(x), 1000))


def resnet50() -> Problem:
    b = Net()
    return _classifier(b, _resnet_body(b))


def resnext50() -> Problem:
    b = Net()
    return _classifier(b, _resnet_body(b, groups=32, width=4))


def densenet121() -> Problem:
    b = Net()
    x = b.pool(b.conv(b.input(3, 224, 224), 64, 7, 2), 2)
    for stage, layers in enumerate((6, 12, 24, 16)):
        parts = [x]
        for _ in range(layers):
            joined = b.each("norm", b.cat(parts))
            parts.append(b.conv(b.conv(joined, 128, 1), 32, 3))
        x = b.each("norm", b.cat(parts))
        if stage < 3:
            x = b.pool(b.conv(x, x.c // 2, 1), 2)
    return _classifier(b, x)


def fcn() -> Problem:
    b = Net()
    x = b.conv(_resnet_body(b, dilated=True), 512, 3)
    return b.done(b.resize(b.conv(x, 21, 1), (224, 224)))


def deeplabv3() -> Problem:
    b = Net()
    x = _resnet_body(b, dilated=True)
    branches = [b.conv(x, 256, 1), *(b.conv(x, 256, 3) for _ in (12, 24, 36))]
    branches.append(b.resize(b.conv(b.gap(x), 256, 1), x.dims))
    y = b.conv(b.conv(b.cat(branches), 256, 1), 256, 3)
    return b.done(b.resize(b.conv(y, 21, 1), (224, 224)))


_MOBILENET_V3 = (  # kernel, expanded, channels, squeeze, stride; the last stage dilated instead of strided
    (3, 16, 16, 0, 1), (3, 64, 24, 0, 2), (3, 72, 24, 0, 1), (5, 72, 40, 1, 2), (5, 120, 40, 1, 1), (5, 120, 40, 1, 1),
    (3, 240, 80, 0, 2), (3, 200, 80, 0, 1), (3, 184, 80, 0, 1), (3, 184, 80, 0, 1), (3, 480, 112, 1, 1),
    (3, 672, 112, 1, 1), (5, 672, 160, 1, 1), (5, 960, 160, 1, 1), (5, 960, 160, 1, 1),
)  # fmt: skip


def lraspp() -> Problem:
    b = Net()
    x = b.conv(b.input(3, 224, 224), 16, 3, 2)
    low = x
    for k, expanded, channels, squeeze, stride in _MOBILENET_V3:
        y = b.conv(x, expanded, 1) if expanded != x.c else x
        y = b.depthwise(y, k, stride)
        if squeeze:
            scale = b.conv(b.conv(b.gap(y), -(-expanded // 4) // 8 * 8, 1), expanded, 1)
            y = b.each("mul", y, scale)
        y = b.conv(y, channels, 1)
        x = b.each("add", x, y) if stride == 1 and channels == x.c else y
        if channels == 40 and low.c != 40:
            low = x  # the first block of stride 8
    x = b.conv(x, 960, 1)
    y = b.each("mul", b.conv(x, 128, 1), b.conv(b.gap(x), 128, 1))
    y = b.resize(y, low.dims)
    return b.done(b.resize(b.each("add", b.conv(low, 21, 1), b.conv(y, 21, 1)), (224, 224)))


# -- video ------------------------------------------------------------------------------------------------------------


def _separated(b: Net, x: Value, c: int, middle: int, k: int, stride: tuple[int, int, int]) -> Value:
    """A convolution in space, then one in time."""
    y = b.conv(x, middle, (1, k, k), (1, *stride[1:]))
    return b.conv(y, c, (k, 1, 1), (stride[0], 1, 1))


def r2plus1d() -> Problem:
    b = Net()
    x = b.conv(b.conv(b.input(3, 16, 224, 224), 45, (1, 7, 7), (1, 2, 2)), 64, (3, 1, 1))
    for stage in range(4):
        planes = 64 << stage
        for block in range(2):
            stride = 2 if stage and block == 0 else 1
            middle = x.c * planes * 27 // (x.c * 9 + 3 * planes)
            y = _separated(b, x, planes, middle, 3, (stride,) * 3)
            y = _separated(b, y, planes, middle, 3, (1, 1, 1))
            x = b.each("add", y, b.conv(x, planes, 1, stride) if x.c != planes else x)
    return b.done(b.linear(b.gap(x), 400))


_S3D = (
    (64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64), None, (192, 96, 208, 16, 48, 64),
    (160, 112, 224, 24, 64, 64), (128, 128, 256, 24, 64, 64), (112, 144, 288, 32, 64, 64),
    (256, 160, 320, 32, 128, 128), None, (256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128),
)  # fmt: skip


def s3d() -> Problem:
    b = Net()
    x = _separated(b, b.input(3, 16, 224, 224), 64, 64, 7, (2, 2, 2))
    x = b.conv(b.pool(x, (1, 2, 2)), 64, 1)
    x = b.pool(_separated(b, x, 192, 192, 3, (1, 1, 1)), (1, 2, 2))
    for widths in _S3D:
        if widths is None:
            x = b.pool(x, 2)
            continue
        one, reduce3, three, reduce5, five, pooled = widths
        branches = [
            b.conv(x, one, 1),
            _separated(b, b.conv(x, reduce3, 1), three, three, 3, (1, 1, 1)),
            _separated(b, b.conv(x, reduce5, 1), five, five, 3, (1, 1, 1)),
            b.conv(b.pool(x), pooled, 1),
        ]
        x = b.cat(branches)
    x = b.pool(x, (2, x.dims[1], x.dims[2]))
    return b.done(b.gap(b.conv(x, 400, 1)))


# -- transformers -----------------------------------------------------------------------------------------------------


def _attention(b: Net, x: Value, memory: Value, heads: int) -> Value:
    q, k, v = b.linear(x, x.c), b.linear(memory, x.c), b.linear(memory, x.c)
    scores = b.op("scores", [q, k], heads, (x.dims[0], memory.dims[0]))
    context = b.op("context", [b.each("softmax", scores), v], x.c, x.dims)
    return b.linear(context, x.c)


def _feed_forward(b: Net, x: Value, inner: int) -> Value:
    return b.linear(b.linear(x, inner), x.c)


def transformer() -> Problem:
    """Six encoder and six decoder layers of 512 channels, 128 tokens on either side, norms after the sums."""
    b = Net()
    x, tokens = b.input(512, 128), 128
    for _ in range(6):
        x = b.each("norm", b.each("add", x, _attention(b, x, x, 8)))
        x = b.each("norm", b.each("add", x, _feed_forward(b, x, 2048)))
    memory = x
    y = b._tensor("target", 512, (tokens,), "input")
    for _ in range(6):
        y = b.each("norm", b.each("add", y, _attention(b, y, y, 8)))
        y = b.each("norm", b.each("add", y, _attention(b, y, memory, 8)))
        y = b.each("norm", b.each("add", y, _feed_forward(b, y, 2048)))
    return b.done(y)


def vit() -> Problem:
    """ViT-B/16: 197 tokens of 768 channels, norms before."""
    b = Net()
    patches = b.conv(b.input(3, 224, 224), 768, 16, 16)
    x = b.op("tokens", [patches], 768, (197,))
    for _ in range(12):
        normed = b.each("norm", x)
        x = b.each("add", x, _attention(b, normed, normed, 12))
        x = b.each("add", x, _feed_forward(b, b.each("norm", x), 3072))
    return b.done(b.linear(b.op("class", [b.each("norm", x)], 768, (1,)), 1000))


# -- cells found by search --------------------------------------------------------------------------------------------

Cell = tuple[tuple[tuple[str, int], ...], tuple[int, ...]]
"""(operation, state) pairs, two of which are added to make a state, and the states that are concatenated.

State 0 is the previous cell's result, state 1 that of the cell before it.
"""


def _pairs(operations: str, states: Sequence[int]) -> tuple[tuple[str, int], ...]:
    return tuple(zip(operations.split(), states))


# Zoph et al., CVPR 2018, figure 4; Liu et al., ECCV 2018, figure 1: as in TensorFlow's slim
_NASNET: tuple[Cell, Cell] = (
    (_pairs("sep5 sep3 sep5 sep3 avg skip avg avg sep3 skip", (0, 1, 1, 1, 0, 1, 1, 1, 0, 0)), (1, 2, 3, 4, 5, 6)),
    (_pairs("sep5 sep7 max sep7 avg sep5 skip avg sep3 max", (0, 1, 0, 1, 0, 1, 3, 2, 2, 0)), (3, 4, 5, 6)),
)
_PNASNET: tuple[Cell, Cell] = (
    (_pairs("sep5 max sep7 max sep5 sep3 sep3 max sep3 skip", (1, 1, 0, 0, 0, 0, 4, 0, 1, 0)), (2, 3, 4, 5, 6)),
) * 2
# Real et al., AAAI 2019, figure 5 of the appendix, as in GPipe's AmoebaNet-D
_AMOEBA_D: tuple[Cell, Cell] = (
    (_pairs("one max skip row one row max skip avg one", (1, 1, 1, 0, 0, 0, 2, 2, 1, 5)), (0, 3, 4, 6)),
    (_pairs("max max skip full row max skip max avg one", (0, 0, 2, 1, 2, 2, 3, 1, 2, 3)), (4, 5, 6)),
)
# Liu et al., ICLR 2019 (DARTS, second order)
_DARTS: tuple[Cell, Cell] = (
    (_pairs("sep3 sep3 sep3 sep3 sep3 skip skip dil3", (1, 0, 1, 0, 0, 1, 1, 2)), (2, 3, 4, 5)),
    (_pairs("max max skip max max skip skip max", (1, 0, 2, 0, 1, 2, 2, 0)), (2, 3, 4, 5)),
)


def _apply(b: Net, kind: str, x: Value, stride: int) -> Value:
    """One edge of a cell; separable convolutions run twice, norms belong to the convolutions, relus do not."""
    c = x.c
    if kind == "skip":
        return x if stride == 1 else _factorized(b, x, c)
    if kind in ("avg", "max"):
        return b.pool(x, stride)
    x = b.each("relu", x)
    if kind.startswith("sep"):
        k = int(kind[3:])
        x = b.each("relu", b.conv(b.depthwise(x, k, stride), c, 1))
        return b.conv(b.depthwise(x, k), c, 1)
    if kind == "dil3":
        return b.conv(b.depthwise(x, 3, stride), c, 1)
    if kind == "one":
        return b.conv(x, c, 1, stride)
    x = b.conv(x, c // 4, 1)
    x = b.conv(b.conv(x, c // 4, (1, 7), (1, stride)), c // 4, (7, 1), (stride, 1)) if kind == "row" else b.conv(
        x, c // 4, 3, stride
    )  # fmt: skip
    return b.conv(x, c, 1)


def _factorized(b: Net, x: Value, c: int) -> Value:
    """Half the resolution by two convolutions of stride 2 side by side, the second one shifted by a pixel."""
    x = b.each("relu", x)
    return b.cat([b.conv(x, c // 2, 1, 2), b.conv(x, c - c // 2, 1, 2)])


def _cell(b: Net, cell: Cell, previous: Value, before: Value, c: int, stride: int) -> Value:
    pairs, joined = cell
    first = b.conv(b.each("relu", previous), c, 1)
    second = b.conv(b.each("relu", before), c, 1) if before.dims == previous.dims else _factorized(b, before, c)
    states = [first, second]
    for left, right in zip(pairs[::2], pairs[1::2]):
        ends = [_apply(b, kind, states[at], stride if at < 2 else 1) for kind, at in (left, right)]
        states.append(b.each("add", *ends))
    return b.cat([states[at] if states[at].dims == states[-1].dims else ends[0] for at in joined])


def _searched(cells: tuple[Cell, Cell], stem: int, channels: int, normal: int, reducing: int = 0) -> Problem:
    """A stem of stride 2, two reductions to 28 × 28, then three stages of `normal` cells with a reduction between them.

    `reducing`: 1 if the cell that reduces counts among the `normal` ones of its stage.
    """
    b = Net()
    before = previous = b.conv(b.input(3, 224, 224), stem, 3, 2)
    for k in range(2):
        width = channels >> (2 - k)
        before, previous = previous, _cell(b, cells[1], previous, before, max(width, 4), 2)
    for stage in range(3):
        if stage:
            before, previous = previous, _cell(b, cells[1], previous, before, channels << stage, 2)
        for _ in range(normal - (reducing if stage else 0)):
            before, previous = previous, _cell(b, cells[0], previous, before, channels << stage, 1)
    return _classifier(b, b.each("relu", previous))


def _darts() -> Problem:
    """DARTS on ImageNet: 14 cells, 48 channels, reductions at a third and two thirds."""
    b = Net()
    before = b.conv(b.conv(b.input(3, 224, 224), 24, 3, 2), 48, 3, 2)
    previous = b.conv(b.each("relu", before), 48, 3, 2)
    channels = 48
    for k in range(14):
        reduces = k in (4, 9)
        channels *= 2 if reduces else 1
        before, previous = previous, _cell(b, _DARTS[reduces], previous, before, channels, 2 if reduces else 1)
    return _classifier(b, previous)


HUMAN: dict[str, Callable[[], Problem]] = {
    "ResNet-50": resnet50, "DenseNet-121": densenet121, "ResNeXt-50": resnext50, "R(2+1)D-18": r2plus1d, "S3D": s3d,
    "FCN": fcn, "L-RASPP": lraspp, "DeepLabV3": deeplabv3, "Transformer": transformer, "ViT-B/16": vit,
}  # fmt: skip
SEARCHED: dict[str, Callable[[], Problem]] = {
    "PNASNet-5 (3, 54)": lambda: _searched(_PNASNET, 32, 54, 3, 1),
    "AmoebaNet-D (4, 64)": lambda: _searched(_AMOEBA_D, 32, 64, 4),
    "NASNet-A (4, 44)": lambda: _searched(_NASNET, 32, 44, 4),
    "DARTS": _darts,
}
