"""Elementwise arithmetic and activations, with what PyTorch's eager kernels save for backward.

Saved, per `tools/autograd/derivatives.yaml`: `relu`, `sigmoid`, `tanh`, `exp`, `rsqrt` keep their output; `gelu`,
`silu`, `pow` their input; `mul` each operand that the other's gradient needs; `add`, `neg`, casts nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peakline.models.builder import GraphBuilder
from peakline.models.dims import Dim, Shape, is_array
from peakline.models.dtypes import DType, dtype
from peakline.models.graph import Tensor
from peakline.models.kernels import Kernel, Stream
from peakline.models.operators.reductions import Multiprocessors, contiguous_sum, meeting_blocks
from peakline.models.operators.registry import GradientContext, Node, OperatorType, hand_back, operator_type, register

__all__ = ["activation", "add", "cast", "elementwise_backward", "mul", "reduce_to", "scale", "unary"]

_PROMOTION = ("bool", "uint8", "int8", "int16", "int32", "int64", "fp8", "bf16", "fp16", "fp32", "fp64")


def promote(a: DType, b: DType) -> DType:
    """PyTorch's type promotion of two tensors: the wider float; bf16 with fp16 gives fp32."""
    if {a.name, b.name} == {"bf16", "fp16"}:
        return dtype("fp32")
    rank = {n: i for i, n in enumerate(_PROMOTION)}
    return a if rank.get(a.name, 0) >= rank.get(b.name, 0) else b


# ---- unary functions -------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Unary(OperatorType):
    """y = f(x).

    `saves` says which of x and y the derivative reads (None: the gradient passes through a scalar), `temporaries` how
    many tensors of the gradient's size its formula holds besides the result (`pow_backward`: grad·(2·x¹)).
    """

    name: str
    work: int
    saves: str | None
    temporaries: int = 0
    launches: int = 1

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """`work` scalar operations per element."""
        return (Stream(self.work * node.outputs[0].elements, node.outputs[0].dtype),)

    def backward(self, node: Node, context: GradientContext) -> None:
        """dx = dy·f'(x), one kernel."""
        y, *clone = node.outputs
        saved = {"input": clone or node.inputs[:1], "output": (y,), None: ()}[self.saves]
        attributes = {"temporaries": self.temporaries} if self.temporaries else None
        hand_back(node, context, "elementwise_backward", *saved, attributes=attributes)


@dataclass(frozen=True)
class ElementwiseBackward(OperatorType):
    """Gradient of an elementwise function: reads its inputs, writes its outputs."""

    name: str = "elementwise_backward"

    def workspace(self, node: Node) -> tuple[Dim, ...]:
        """The temporaries of the derivative's formula."""
        return (node.outputs[0].bytes,) * int(node.attributes.get("temporaries", 0))

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """About four scalar operations per element of the gradient."""
        return (Stream(4 * node.outputs[0].elements, node.outputs[0].dtype),)


elementwise_backward = register(ElementwiseBackward())
for _name, _work, _saves, _temporaries in [
    ("relu", 1, "output", 0), ("relu6", 2, "input", 0), ("sigmoid", 4, "output", 0), ("tanh", 6, "output", 0),
    ("exp", 4, "output", 0), ("rsqrt", 2, "output", 2), ("gelu", 10, "input", 0), ("gelu_tanh", 12, "input", 0),
    ("silu", 5, "input", 0), ("hardswish", 4, "input", 0), ("hardsigmoid", 3, "input", 0),
    ("softplus", 6, "input", 0), ("pow", 2, "input", 2), ("sin", 4, "input", 1), ("cos", 4, "input", 2),
    ("neg", 1, None, 0), ("scale", 1, None, 0), ("leaky_relu", 2, "input", 0), ("relu_squared", 2, "input", 2),
]:  # fmt: skip
    register(Unary(_name, _work, _saves, _temporaries))


def unary(b: GraphBuilder, function: str, x: Tensor, *, in_place: bool = False, name: str | None = None) -> Tensor:
    """Apply a registered unary function; `in_place` overwrites x (as `nn.ReLU(inplace=True)` does).

    In training an in-place function whose derivative reads the input (`nn.ReLU6`, `nn.SiLU`) first clones it:
    `SavedVariable(self.clone(), false)` in the generated `torch/csrc/autograd/generated/VariableType*.cpp`.
    """
    outputs: dict[str, tuple[tuple[Dim, ...], DType | str | None]] = {"out": (x.shape, x.dtype)}
    kind = operator_type(function)
    if in_place and b.training and isinstance(kind, Unary) and kind.saves == "input":
        outputs["clone"] = (x.shape, x.dtype)
    return b.add(function, (x,), outputs, name=name, in_place={"out": x} if in_place else None)[0]


_ACTIVATIONS = {
    "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "quick_gelu": "gelu_tanh",
    "swish": "silu", "relu2": "relu_squared",
}  # fmt: skip


def activation(b: GraphBuilder, function: str, x: Tensor, *, in_place: bool = False, name: str = "act_fn") -> Tensor:
    """An activation by its Hugging Face name (`gelu_new`, `silu`, `relu`, …).

    `gelu_new` in eager transformers is a chain of elementwise kernels; it is written out as such.

    Raises:
        ValueError: unknown activation.
    """
    if function == "gelu_new" and b.eager:
        return _gelu_new(b, x, name)
    return unary(b, _ACTIVATIONS.get(function, function), x, in_place=in_place, name=name)


def _gelu_new(b: GraphBuilder, x: Tensor, name: str) -> Tensor:
    """0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³))), kernel by kernel as `transformers.NewGELUActivation` runs it."""
    with b.scope(name):
        half = scale(b, x)
        cubed = unary(b, "pow", x)
        inner = scale(b, add(b, x, scale(b, cubed)))
        return mul(b, half, unary(b, "scale", unary(b, "tanh", inner), name="plus_one"))


def scale(b: GraphBuilder, x: Tensor, *, name: str = "scale") -> Tensor:
    """x times (or plus) a constant: a kernel that saves nothing."""
    return unary(b, "scale", x, name=name)


# ---- casts -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Cast(OperatorType):
    """A copy into another format; its backward casts the gradient back."""

    name: str = "cast"

    def backward(self, node: Node, context: GradientContext) -> None:
        """dx = dy cast to x's format."""
        hand_back(node, context, "cast")


register(Cast())


def cast(b: GraphBuilder, x: Tensor, kind: DType | str, *, name: str = "to") -> Tensor:
    """x in another format; x itself when it has that format already."""
    if x.dtype.name == dtype(kind).name:
        return x
    return b.add("cast", (x,), {"out": (x.shape, dtype(kind))}, name=name)[0]


# ---- binary ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Reduce(OperatorType):
    """Sum over the dimensions that were broadcast (or over rows, for a bias).

    In a sweep, the attribute `runs` is 0 for the configurations in which nothing was broadcast and no kernel runs.
    The attribute `kept` names the one dimension that is left where it is not the last ones (a convolution's channels;
    with `channels_last` they lie side by side).
    """

    name: str = "reduce"

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """One addition per element read."""
        runs = node.attributes.get("runs", 1)
        return (Stream(node.inputs[0].elements * runs, node.inputs[0].dtype, runs),)

    def reads(self, node: Node) -> Dim:
        """The gradient, where there is anything to sum."""
        runs: Dim = node.attributes.get("runs", 1)
        return node.input_bytes * runs

    def meeting(self, node: Node, on: Multiprocessors) -> tuple[Dim, ...]:
        """Partial sums, in float32 or wider, where thread blocks share an output."""
        x, y = node.inputs[0], node.outputs[0]
        shape, kept = x.shape, _kept(x.shape, y.shape)
        if "kept" in node.attributes:
            kept = [axis == node.attributes["kept"] for axis in range(len(shape))]
            if node.attributes.get("channels_last"):
                shape, kept = (shape[0], *shape[2:], shape[1]), [kept[0], *kept[2:], kept[1]]
        if kept is None:
            return ()
        return meeting_blocks(contiguous_sum(shape, kept), max(x.dtype.bits // 8, 4), on)

    def backward(self, node: Node, context: GradientContext) -> None:
        """The gradient is broadcast: a view."""
        hand_back(node, context, "view", in_place=True)


def _kept(shape: Shape, result: Shape) -> list[bool] | None:
    """Which dimensions of `shape` a sum to `result` keeps, if one was broadcast to the other."""
    result = result[len(result) - len(shape) :] if len(result) > len(shape) else result
    kept = [False] * (len(shape) - len(result))
    for before, after in zip(shape[len(kept) :], result):
        same = before is after or np.array_equal(before, after)
        if not same and not (isinstance(after, int) and after == 1):
            return None
        kept.append(same)
    return kept


register(Reduce())


@dataclass(frozen=True)
class View(OperatorType):
    """Another shape or an expanded look at the same storage: no work, no bytes."""

    name: str = "view"
    launches: int = 0

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """None."""
        return ()

    def reads(self, node: Node) -> Dim:
        """None."""
        return 0

    def writes(self, node: Node) -> Dim:
        """None."""
        return 0

    def backward(self, node: Node, context: GradientContext) -> None:
        """The gradient is viewed back."""
        hand_back(node, context, "view", in_place=True)


register(View())


def view(b: GraphBuilder, x: Tensor, shape: tuple[Dim, ...], *, name: str = "view") -> Tensor:
    """x's storage under another shape."""
    return b.add("view", (x,), {"out": (shape, x.dtype)}, name=name, in_place={"out": x})[0]


def _differs(a: tuple[Dim, ...], b: tuple[Dim, ...]) -> bool | NDArray[np.int64]:
    """Whether shapes differ; where, as 0 and 1, when they do in some configurations of a sweep only."""
    if len(a) != len(b):
        return True
    anywhere: Any = False
    for x, y in zip(a, b):
        anywhere = anywhere | np.not_equal(x, y)
    if bool(np.all(anywhere)) or not bool(np.any(anywhere)):
        return bool(np.all(anywhere))
    return np.asarray(anywhere, dtype=np.int64)


def reduce_to(context: GradientContext, gradient: Tensor, like: Tensor) -> Tensor:
    """Sum a gradient down to the shape and format of a broadcast operand; itself when nothing was broadcast."""
    runs = _differs(gradient.shape, like.shape)
    leaf = (
        like.role == "parameter" or like.trainable
    )  # where nothing is summed, a leaf gets a copy of a shared gradient
    if isinstance(runs, np.ndarray) and not leaf:  # a batch that is 1 in some configurations of a sweep
        outputs = {"sum": ((runs, *like.shape), gradient.dtype)}
        (total,) = context.emit("reduce", [gradient], outputs, attributes={"runs": runs})
        outputs = {"sum": (like.shape, gradient.dtype)}
        (gradient,) = context.emit("view", [total], outputs, in_place={"sum": total})
    elif np.any(runs):
        (gradient,) = context.emit("reduce", [gradient], {"sum": (like.shape, gradient.dtype)})
    if gradient.dtype.name != like.dtype.name:
        (gradient,) = context.emit("cast", [gradient], {"cast": (like.shape, like.dtype)})
    return gradient


@dataclass(frozen=True)
class Add(OperatorType):
    """a + b with broadcasting; saves nothing, and both operands receive the same gradient."""

    name: str = "add"

    def backward(self, node: Node, context: GradientContext) -> None:
        """The gradient itself, reduced where an operand was broadcast."""
        dy = context.grad(node.outputs[0])
        if dy is None:
            return
        for operand in node.inputs:
            if context.needs(operand):
                context.give(operand, reduce_to(context, dy, operand))


@dataclass(frozen=True)
class Mul(OperatorType):
    """a · b with broadcasting; each operand is kept if the other needs a gradient."""

    name: str = "mul"

    def backward(self, node: Node, context: GradientContext) -> None:
        """da = dy·b, db = dy·a."""
        dy = context.grad(node.outputs[0])
        if dy is None:
            return
        a, b = node.inputs
        products = [  # both are made before either is reduced to its operand's shape (autograd's validate_outputs)
            (operand, *context.emit("elementwise_backward", [dy, other], {"product": (dy.shape, dy.dtype)}))
            for operand, other in ((b, a), (a, b))
            if context.needs(operand)
        ]
        for operand, product in products:
            context.give(operand, reduce_to(context, product, operand))


register(Add())
register(Mul())


def _broadcast(a: Tensor, b: Tensor) -> tuple[Dim, ...]:
    n = max(len(a.shape), len(b.shape))
    left = (1,) * (n - len(a.shape)) + a.shape
    right = (1,) * (n - len(b.shape)) + b.shape
    return tuple(y if not is_array(x) and x == 1 else x for x, y in zip(left, right))


def _binary(b: GraphBuilder, kind: str, x: Tensor, y: Tensor, in_place: bool, name: str | None) -> Tensor:
    out = promote(x.dtype, y.dtype)
    overwrite = {"out": x} if in_place else None
    return b.add(kind, (x, y), {"out": (_broadcast(x, y), out)}, name=name, in_place=overwrite)[0]


def add(b: GraphBuilder, x: Tensor, y: Tensor, *, in_place: bool = False, name: str | None = None) -> Tensor:
    """x + y, broadcast and promoted as PyTorch does; `in_place` writes into x."""
    return _binary(b, "add", x, y, in_place, name)


def mul(b: GraphBuilder, x: Tensor, y: Tensor, *, in_place: bool = False, name: str | None = None) -> Tensor:
    """x · y, broadcast and promoted as PyTorch does; `in_place` writes into x."""
    return _binary(b, "mul", x, y, in_place, name)
