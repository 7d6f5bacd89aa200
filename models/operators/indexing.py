"""Slices, splits, concatenations, gathers, scatters and top-k, with their gradients.

Slices and splits are views. Their gradients are not: a slice's gradient is a zero-filled tensor of the whole shape
(`slice_backward`), a split's is a concatenation of the pieces' (`split_with_sizes_backward`). Gathers keep their
indices. Source: PyTorch `tools/autograd/derivatives.yaml`, `torch/csrc/autograd/FunctionsManual.cpp`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from peakline.models.builder import GraphBuilder
from peakline.models.dims import Dim, Shape, minimum
from peakline.models.dtypes import DType
from peakline.models.graph import Tensor
from peakline.models.kernels import Kernel, Stream
from peakline.models.operators.elementwise import View
from peakline.models.operators.registry import GradientContext, Node, OperatorType, hand_back, register

__all__ = [
    "cat",
    "contiguous",
    "gather",
    "index_copy",
    "index_math",
    "masked_fill",
    "sort",
    "split",
    "take",
    "take_along",
    "topk",
    "zeros",
]


@dataclass(frozen=True)
class Expand(View):
    """A broadcast view; its gradient is summed back."""

    name: str = "expand"

    def backward(self, node: Node, context: GradientContext) -> None:
        """dx = Σ dy over what was broadcast."""
        hand_back(node, context, "reduce")


@dataclass(frozen=True)
class Slice(View):
    """Part of a tensor: a view forward, a zero-filled tensor of the whole shape backward."""

    name: str = "slice"

    def backward(self, node: Node, context: GradientContext) -> None:
        """dx = zeros with dy copied in."""
        hand_back(node, context, "fill_backward")


@dataclass(frozen=True)
class Split(View):
    """Consecutive parts of a tensor, each a view; the gradient is their gradients' concatenation."""

    name: str = "split"

    def backward(self, node: Node, context: GradientContext) -> None:
        """dx = cat(dy₁, dy₂, …); parts nobody differentiated count as zeros."""
        x = node.inputs[0]
        parts = [g for o in node.outputs if (g := context.grad(o)) is not None]
        if parts and context.needs(x):
            (dx,) = context.emit("cat", parts, {"dx": (x.shape, x.dtype)})
            context.give(x, dx)


@dataclass(frozen=True)
class Contiguous(OperatorType):
    """A copy of a view into memory of its own; the gradient is the result's."""

    name: str = "contiguous"

    def backward(self, node: Node, context: GradientContext) -> None:
        """dx = dy, in another shape at most."""
        hand_back(node, context, "view", in_place=True)


@dataclass(frozen=True)
class Cat(OperatorType):
    """Concatenation: one copy of everything; the gradients are views of the result's."""

    name: str = "cat"

    def backward(self, node: Node, context: GradientContext) -> None:
        """dxᵢ = the i-th part of dy, a view."""
        dy = context.grad(node.outputs[0])
        if dy is None:
            return
        for x in node.inputs:
            if context.needs(x):
                (dx,) = context.emit("view", [dy], {"dx": (x.shape, x.dtype)}, in_place={"dx": dy})
                context.give(x, dx)


@dataclass(frozen=True)
class Gather(OperatorType):
    """y[i] = x[index[i]] over the first dimension; keeps the index."""

    name: str = "gather"

    def reads(self, node: Node) -> Dim:
        """The index, and the gathered rows once each (at most the whole tensor)."""
        x, index = node.inputs
        return index.bytes + minimum(node.outputs[0].bytes, x.bytes)

    def backward(self, node: Node, context: GradientContext) -> None:
        """dx = zeros with the rows of dy added in (`index_put_` with accumulation)."""
        hand_back(node, context, "scatter_add", node.inputs[1])


@dataclass(frozen=True)
class ScatterAdd(OperatorType):
    """y = zeros; y[index[i]] += x[i]; keeps the index."""

    name: str = "scatter_add"
    launches: int = 2

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """One addition per element added, after a zero fill."""
        return (Stream(node.inputs[0].elements, node.inputs[0].dtype, self.launches),)

    def backward(self, node: Node, context: GradientContext) -> None:
        """dx[i] = dy[index[i]]."""
        hand_back(node, context, "gather", node.inputs[1])


@dataclass(frozen=True)
class IndexCopy(OperatorType):
    """A copy of x with the columns named by `index` replaced by those of `source`; keeps index and source.

    `index_copy` in `tools/autograd/derivatives.yaml`: the source's gradient is `grad.index_select(…)
    .expand_as(source)`, which is why the source is saved.
    """

    name: str = "index_copy"
    launches: int = 2

    def backward(self, node: Node, context: GradientContext) -> None:
        """dsource = the columns of dy; dx = dy with those columns zeroed."""
        x, index, source = node.inputs
        dy = context.grad(node.outputs[0])
        if dy is None:
            return
        if context.needs(x):
            (dx,) = context.emit("fill_backward", [dy, index], {"dx": (x.shape, x.dtype)})
            context.give(x, dx)
        if context.needs(source):
            (ds,) = context.emit("elementwise_backward", [dy, index, source], {"ds": (source.shape, source.dtype)})
            context.give(source, ds)


@dataclass(frozen=True)
class Zeros(OperatorType):
    """A tensor made without inputs (`new_zeros`, an index from Python numbers)."""

    name: str = "zeros"


@dataclass(frozen=True)
class TopK(OperatorType):
    """The k largest along the last dimension and where they were; keeps the positions."""

    name: str = "topk"

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """Radix select: about four passes over the input."""
        return (Stream(4 * node.inputs[0].elements, node.inputs[0].dtype),)

    def backward(self, node: Node, context: GradientContext) -> None:
        """dx = zeros with the values' gradient scattered in."""
        hand_back(node, context, "fill_backward", node.outputs[1])


@dataclass(frozen=True)
class TakeAlong(OperatorType):
    """y[…, j] = x[…, index[…, j]] (`torch.gather` along the last dimension); keeps the index."""

    name: str = "take_along"

    def reads(self, node: Node) -> Dim:
        """The index and the numbers it names."""
        return node.inputs[1].bytes + node.outputs[0].bytes

    def backward(self, node: Node, context: GradientContext) -> None:
        """dx = zeros with dy scattered in."""
        hand_back(node, context, "fill_backward", node.inputs[1])


@dataclass(frozen=True)
class MaskedFill(OperatorType):
    """x where the mask is false, a constant elsewhere; keeps the mask."""

    name: str = "masked_fill"

    def backward(self, node: Node, context: GradientContext) -> None:
        """dx = dy with the masked places zeroed."""
        hand_back(node, context, "elementwise_backward", node.inputs[1])


@dataclass(frozen=True)
class IndexMath(OperatorType):
    """Integers or bools worked out of positions (a division, an inverse permutation, a mask); without a gradient."""

    name: str = "index_math"


@dataclass(frozen=True)
class Sort(OperatorType):
    """Sorted keys and the permutation that sorts them; of integers, without a gradient."""

    name: str = "sort"
    launches: int = 4

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """Radix sort: about eight passes over the keys."""
        return (Stream(8 * node.inputs[0].elements, node.inputs[0].dtype, self.launches),)


for _type in (
    Expand(), Slice(), Split(), Contiguous(), Cat(), Gather(), ScatterAdd(), IndexCopy(), Zeros(), TopK(),
    TakeAlong(), MaskedFill(), IndexMath(), Sort(),
):  # fmt: skip
    register(_type)


def take(b: GraphBuilder, x: Tensor, shape: Shape, *, name: str = "slice") -> Tensor:
    """A part of x of the given shape, as a view."""
    return b.add("slice", (x,), {"out": (shape, x.dtype)}, name=name, in_place={"out": x})[0]


def split(b: GraphBuilder, x: Tensor, widths: Sequence[Dim], *, name: str = "split") -> list[Tensor]:
    """x cut along the last dimension into parts of the given widths, as views."""
    outputs = {f"out{i}": ((*x.shape[:-1], width), x.dtype) for i, width in enumerate(widths)}
    return b.add("split", (x,), outputs, name=name, in_place=dict.fromkeys(outputs, x))


def contiguous(b: GraphBuilder, x: Tensor, *, name: str = "contiguous") -> Tensor:
    """x copied out of the storage it shares."""
    return b.add("contiguous", (x,), {"out": (x.shape, x.dtype)}, name=name)[0]


def cat(b: GraphBuilder, parts: Sequence[Tensor], *, name: str = "cat") -> Tensor:
    """Concatenation along the last dimension."""
    width: Dim = 0
    for part in parts:
        width = width + part.shape[-1]
    return b.add("cat", list(parts), {"out": ((*parts[0].shape[:-1], width), parts[0].dtype)}, name=name)[0]


def gather(b: GraphBuilder, x: Tensor, index: Tensor, *, name: str = "gather") -> Tensor:
    """Rows of x named by `index` [n]: the result is [n, …]."""
    return b.add("gather", (x, index), {"out": ((*index.shape, *x.shape[1:]), x.dtype)}, name=name)[0]


def index_copy(b: GraphBuilder, x: Tensor, index: Tensor, source: Tensor, *, name: str = "index_copy") -> Tensor:
    """x with the columns that `index` names taken from `source` (`torch.index_copy` along the last dimension)."""
    return b.add("index_copy", (x, index, source), {"out": (x.shape, x.dtype)}, name=name)[0]


def zeros(b: GraphBuilder, shape: Shape, kind: DType | str | None = None, *, name: str = "zeros") -> Tensor:
    """A tensor of zeros (or of numbers written down), in the builder's format unless said otherwise."""
    return b.add("zeros", (), {"out": (shape, kind)}, name=name)[0]


def topk(b: GraphBuilder, x: Tensor, k: Dim, *, name: str = "topk") -> tuple[Tensor, Tensor]:
    """Values and int64 positions of the k largest along the last dimension."""
    shape = (*x.shape[:-1], k)
    values, indices = b.add("topk", (x,), {"values": (shape, x.dtype), "indices": (shape, "int64")}, name=name)
    return values, indices


def take_along(b: GraphBuilder, x: Tensor, index: Tensor, *, name: str = "gather") -> Tensor:
    """Numbers of x's last dimension named by `index`: the result has the index's shape."""
    return b.add("take_along", (x, index), {"out": (index.shape, x.dtype)}, name=name)[0]


def masked_fill(b: GraphBuilder, x: Tensor, chosen: Tensor, *, name: str = "masked_fill") -> Tensor:
    """x with everything masked out that the positions `chosen` do not allow."""
    (mask,) = b.add("index_math", (chosen,), {"out": (x.shape, "bool")}, name=f"{name}_mask")
    return b.add("masked_fill", (x, mask), {"out": (x.shape, x.dtype)}, name=name)[0]


def index_math(b: GraphBuilder, x: Tensor, *, name: str) -> Tensor:
    """Integers of x's shape and format worked out of x."""
    return b.add("index_math", (x,), {"out": (x.shape, x.dtype)}, name=name)[0]


def sort(b: GraphBuilder, keys: Tensor, *, name: str = "sort") -> tuple[Tensor, Tensor]:
    """Sorted keys and the int64 permutation that sorts them."""
    shape = keys.shape
    values, order = b.add("sort", (keys,), {"sorted": (shape, keys.dtype), "permutation": (shape, "int64")}, name=name)
    return values, order
