"""Operator types: what one operator costs, what its backward needs, and how its gradient is computed.

Each family's module (`matmul`, `attention`, `normalization`, …) registers its types here and offers the functions
that model code calls. What autograd *saves* is not declared: it is whatever forward tensors the backward operators
read, so that memory and gradients cannot disagree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np

from peakline.models.dims import Dim, Shape
from peakline.models.dtypes import DType
from peakline.models.graph import Graph, Operator, Role, Tensor, base_name
from peakline.models.kernels import Kernel, Stream
from peakline.models.operators.reductions import Multiprocessors

__all__ = ["GradientContext", "Node", "OperatorType", "hand_back", "operator_type", "operator_types", "register"]


@dataclass(frozen=True, slots=True)
class Node:
    """An operator together with its tensors.

    `count(reference)` instances are meant by a `[*]` reference; everything else is one tensor. `sizes` are bytes of
    tensors by name, as far as they are known.
    """

    operator: Operator
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    instances: tuple[int, ...]
    sizes: dict[str, Dim] | None = None

    @staticmethod
    def of(
        graph: Graph,
        operator: Operator,
        families: Mapping[str, int] | None = None,
        sizes: dict[str, Dim] | None = None,
    ) -> Node:
        """Look the operator's tensors up in its graph.

        Args:
            families: the graph's, if at hand.
            sizes: bytes of tensors already known, by name; a walk over the graph hands one dictionary on.
        """
        layers = graph.families if families is None else families
        tensors = graph.tensors
        found: list[Tensor] = []
        counts: list[int] = []
        for reference in operator.inputs + operator.outputs:
            tensor = tensors.get(reference)
            if tensor is None:  # `name[*]`: every layer's
                tensor = tensors[base_name(reference)]
                counts.append(layers[tensor.family] if tensor.family else 1)
            else:
                counts.append(1)
            found.append(tensor)
        n = len(operator.inputs)
        return Node(operator, tuple(found[:n]), tuple(found[n:]), tuple(counts), sizes)

    @property
    def attributes(self) -> Mapping[str, Any]:
        """The operator's attributes."""
        return self.operator.attributes

    @property
    def input_bytes(self) -> Dim:
        """Bytes of the distinct inputs."""
        return _distinct_bytes(self.inputs, self.instances[: len(self.inputs)], self.sizes)

    @property
    def output_bytes(self) -> Dim:
        """Bytes of the outputs."""
        return _distinct_bytes(self.outputs, self.instances[len(self.inputs) :], self.sizes)


def _distinct_bytes(tensors: Sequence[Tensor], counts: Sequence[int], sizes: dict[str, Dim] | None) -> Dim:
    seen: set[str] = set()
    plain = 0
    arrays: Any = None
    for tensor, count in zip(tensors, counts):
        if tensor.name not in seen:
            seen.add(tensor.name)
            if sizes is None:
                size = tensor.bytes
            elif tensor.name in sizes:
                size = sizes[tensor.name]
            else:
                size = sizes[tensor.name] = tensor.bytes
            if count != 1:
                size = size * count
            if not isinstance(size, np.ndarray):
                plain += size
            else:
                arrays = size if arrays is None else arrays + size
    if arrays is None:
        return plain
    total: Dim = arrays + plain if plain else arrays
    return total


class GradientContext(Protocol):
    """What an operator's `backward` may ask and do; the training-step transform implements it."""

    def grad(self, output: Tensor) -> Tensor | None:
        """Gradient that has arrived for an output of the forward operator, or None."""

    def needs(self, tensor: Tensor) -> bool:
        """Whether a gradient for this input is wanted."""

    def emit(
        self,
        type: str,
        inputs: Sequence[Tensor],
        outputs: Mapping[str, tuple[Shape, DType]],
        *,
        attributes: Mapping[str, Any] | None = None,
        in_place: Mapping[str, Tensor] | None = None,
        roles: Mapping[str, Role] | None = None,
    ) -> list[Tensor]:
        """Append a backward operator named after the forward one; its outputs are temporaries or gradients."""

    def give(self, tensor: Tensor, gradient: Tensor, *, view: bool = False) -> None:
        """Pass a gradient on to an input: the first one is kept, later ones are added.

        `view`: PyTorch hands it over as a view of what was computed (a transpose, a reshape).
        """


class OperatorType:
    """One type of operator. Subclass it in the family's module and `register` an instance.

    Attributes:
        name: the type's key.
        launches: kernels it starts on a device (0 for views).
    """

    name: str
    launches: int = 1

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """The work, in plain numbers; by default elementwise work over the largest tensor."""
        return (Stream(node.outputs[0].elements, node.outputs[0].dtype, self.launches),)

    def reads(self, node: Node) -> Dim:
        """Compulsory bytes read: every distinct input once."""
        return node.input_bytes

    def writes(self, node: Node) -> Dim:
        """Compulsory bytes written: every output once."""
        return node.output_bytes

    def workspace(self, node: Node) -> tuple[Dim, ...]:
        """Sizes of the blocks the implementation allocates and frees inside the operator."""
        return ()

    def meeting(self, node: Node, on: Multiprocessors) -> tuple[Dim, ...]:
        """Sizes of further such blocks that depend on the GPU, in which thread blocks leave partial results."""
        return ()

    def backward(self, node: Node, context: GradientContext) -> None:
        """Emit the operators that compute the inputs' gradients.

        Raises:
            NotImplementedError: the type has no gradient.
        """
        raise NotImplementedError(f"operator type {self.name!r} has no backward")

    @property
    def differentiable(self) -> bool:
        """Whether gradients flow through it."""
        return type(self).backward is not OperatorType.backward


def hand_back(
    node: Node,
    context: GradientContext,
    type: str,
    *saved: Tensor,
    in_place: bool = False,
    attributes: Mapping[str, Any] | None = None,
) -> None:
    """The usual backward: one operator makes the first input's gradient of the first output's and what was saved.

    Args:
        type: the backward operator's type; it reads the gradient, then `saved`.
        in_place: the gradient's memory is handed on (a view, or overwritten).
        attributes: of the backward operator.
    """
    x, dy = node.inputs[0], context.grad(node.outputs[0])
    if dy is None or not context.needs(x):
        return
    shared = {"dx": dy} if in_place else None
    outputs = {"dx": (x.shape, x.dtype)}
    (dx,) = context.emit(type, [dy, *saved], outputs, attributes=attributes, in_place=shared)
    context.give(x, dx)


_TYPES: dict[str, OperatorType] = {}


def register(kind: OperatorType) -> OperatorType:
    """Add a type to the registry.

    Raises:
        ValueError: the name is taken.
    """
    if kind.name in _TYPES:
        raise ValueError(f"operator type {kind.name!r} is registered twice")
    _TYPES[kind.name] = kind
    return kind


def operator_type(name: str) -> OperatorType:
    """Look a type up.

    Raises:
        ValueError: unknown; the message names the nearest known types.
    """
    found = _TYPES.get(name) or _recorded(name)
    if found is None:
        import difflib

        near = difflib.get_close_matches(name, _TYPES, 3) or sorted(_TYPES)
        raise ValueError(f"operator type {name!r} is unknown; nearest: {', '.join(near)}")
    return found


@cache
def _recorded(name: str) -> OperatorType | None:
    """The type of operators recorded from a program, whose names say which ATen operator ran."""
    if not name.startswith("aten."):
        return None
    from peakline.models.operators.captured import Captured

    return Captured(name)


def operator_types() -> dict[str, OperatorType]:
    """All registered types by name."""
    return dict(_TYPES)
