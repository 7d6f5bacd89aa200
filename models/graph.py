"""The graph: operators in program order over named tensors, with repeated blocks described once.

A `Graph` is a tuple of `Block`s in program order. A block is a list of operators executed `repeat` times; an
80-layer model has one block of repeat 80. Blocks that walk over the same layers (forward, backward, optimizer)
belong to one *family*: a tensor of the family exists once per layer, and an operator of layer i refers to layer
i's tensor by the bare name.

References between operators and tensors:

* `"model.layers.mlp.out"`, inside the family: this layer's instance; outside it: the instance of the layer that
  was executed last.
* `"model.layers.mlp.weight[*]"`: the instances of every layer (an optimizer over all of them).
* a *carry*, `Block.carries["model.layers.input"] = Carry("embed.out", "model.layers.out")`: in the first layer the
  outer tensor, in every later one the previous layer's output.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from peakline.models.dims import Dim, Shape, prod
from peakline.models.dtypes import DType, nbytes

__all__ = ["PHASES", "ROLES", "Block", "Carry", "Graph", "GraphError", "Operator", "Phase", "Role", "Tensor"]

Role: TypeAlias = Literal[
    "input", "parameter", "gradient", "optimizer_state", "activation", "kv_cache", "buffer", "workspace"
]
Phase: TypeAlias = Literal["forward", "recompute", "backward", "optimizer", "communication"]
ROLES: tuple[str, ...] = get_args(Role)
PHASES: tuple[str, ...] = get_args(Phase)

RESIDENT_ROLES = frozenset({"input", "parameter", "optimizer_state", "kv_cache", "buffer"})
"""Roles whose tensors exist before the step starts, when no operator produces them."""

ALL = "[*]"


class GraphError(ValueError):
    """A graph that is not well formed; the message names the operator and the tensor."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A named tensor.

    Attributes:
        name: unique in the graph; within a block family it starts with the family's name and a dot.
        shape: dimensions, ints or int64 arrays.
        dtype: number format.
        role: what it is for (`ROLES`).
        family: the block family that has one instance per layer, or None.
        storage: name of the tensor whose memory it shares (a view, an in-place result), or None for its own.
        trainable: for parameters and inputs, whether autograd computes a gradient for it.
        bytes_override: exact bytes where shape and dtype do not say (a packed or opaque buffer).
    """

    name: str
    shape: Shape
    dtype: DType
    role: Role = "activation"
    family: str | None = None
    storage: str | None = None
    trainable: bool = False
    bytes_override: Dim | None = None

    @property
    def elements(self) -> Dim:
        """Number of elements: the product of the shape."""
        return prod(self.shape)

    @property
    def bytes(self) -> Dim:
        """Bytes of the tensor's data, sub-byte packing and scales included."""
        if self.bytes_override is not None:
            return self.bytes_override
        kind = self.dtype
        if not kind.block and kind.bits % 8 == 0:
            return prod((*self.shape, kind.bits // 8))
        return nbytes(self.elements, kind)


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator of the program.

    Attributes:
        name: unique within its block.
        type: key into `peakline.models.operators`.
        inputs, outputs: tensor references, see the module's docstring.
        attributes: what the type needs besides the tensors; JSON values.
        phase: part of the step it belongs to.
        module: path of the module it came from, as in `model.layers.self_attn`.
    """

    name: str
    type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    phase: Phase = "forward"
    module: str = ""


@dataclass(frozen=True, slots=True)
class Carry:
    """What a name inside a block stands for: `initial` in the first layer, the previous layer's `following` later."""

    initial: str
    following: str


@dataclass(frozen=True, slots=True)
class Block:
    """Operators executed `repeat` times.

    Attributes:
        name: unique in the graph.
        operators: in program order.
        repeat: number of layers.
        family: the family whose layers it walks over; None if it has no per-layer tensors (then repeat is 1).
        reverse: walks from the last layer to the first (a backward pass).
        carries: names that tie a layer to the one executed before it.
        times: executions of the whole block in a row that leave no tensor behind (later microbatches of gradient
            accumulation): costs count `times` times, memory once. Consecutive blocks of equal `times` form the loop.
    """

    name: str
    operators: tuple[Operator, ...]
    repeat: int = 1
    family: str | None = None
    reverse: bool = False
    carries: Mapping[str, Carry] = field(default_factory=lambda: MappingProxyType({}))
    times: int = 1

    def indices(self) -> range:
        """Layer indices in order of execution."""
        return range(self.repeat - 1, -1, -1) if self.reverse else range(self.repeat)


@dataclass(frozen=True)
class Graph:
    """A workload: blocks in program order over named tensors.

    Attributes:
        name: the model's name.
        tensors: every tensor by name.
        blocks: in program order.
        workload: what is computed, in plain values: phase, batch, seq, dtype, optimizer, and so on.
        notes: assumptions and warnings a user should read.
        previous: what one step leaves to the next: a tensor that exists when the step starts and dies after its last
            use → the tensor made in this step that plays its part in the next one, and so lives to the end (gradients
            that `zero_grad()` frees at the start of a step, the loss that a variable holds until it is assigned
            again). Layer by layer, for tensors of families. In a process's first step the former do not exist.
    """

    name: str
    tensors: Mapping[str, Tensor]
    blocks: tuple[Block, ...]
    workload: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    previous: Mapping[str, str] = field(default_factory=dict)

    # ---- looking around -------------------------------------------------------------------------------------------
    def operators(self) -> Iterator[tuple[Block, Operator]]:
        """Every operator once, with the block that repeats it, in program order."""
        for block in self.blocks:
            for operator in block.operators:
                yield block, operator

    def layers(self, tensor: str) -> int:
        """How many instances the tensor has: the repeat of its family, or 1."""
        family = self.tensors[base_name(tensor)].family
        return self.families.get(family, 1) if family else 1

    @property
    def families(self) -> dict[str, int]:
        """Number of layers of each block family."""
        return {b.family: b.repeat for b in self.blocks if b.family}

    def of_role(self, *roles: str) -> list[Tensor]:
        """Tensors of the given roles that own their storage, in order of declaration."""
        return [t for t in self.tensors.values() if t.role in roles and t.storage is None]

    def total_bytes(self, *roles: str) -> Dim:
        """Bytes of all instances of the tensors of these roles."""
        total: Dim = 0
        for tensor in self.of_role(*roles):
            total = total + tensor.bytes * self.layers(tensor.name)
        return total

    @property
    def parameters(self) -> Dim:
        """Number of parameters, every layer counted, tied weights once."""
        return self._count(self.of_role("parameter"))

    @property
    def trainable_parameters(self) -> Dim:
        """Number of parameters that get a gradient."""
        return self._count([t for t in self.of_role("parameter") if t.trainable])

    def _count(self, tensors: list[Tensor]) -> Dim:
        total: Dim = 0
        for tensor in tensors:
            total = total + tensor.elements * self.layers(tensor.name)
        return total

    @property
    def is_sweep(self) -> bool:
        """Whether any size is an array: the graph is many configurations at once."""
        return any(True for _ in self.arrays())

    def arrays(self) -> Iterator[Any]:
        """Every array among the sizes: dimensions, overridden bytes, attributes such as a sliding window's width."""
        for tensor in self.tensors.values():
            for size in tensor.shape:
                if isinstance(size, np.ndarray):
                    yield size
            if isinstance(tensor.bytes_override, np.ndarray):
                yield tensor.bytes_override
        for block in self.blocks:
            for operator in block.operators:
                for value in operator.attributes.values():
                    if isinstance(value, np.ndarray):
                        yield value

    def with_notes(self, *notes: str) -> Graph:
        """A copy with further notes."""
        return replace(self, notes=(*self.notes, *notes))

    # ---- consistency ----------------------------------------------------------------------------------------------
    def check(self) -> None:
        """Refuse a graph that is not well formed.

        Raises:
            GraphError: an operator refers to an unknown tensor, a tensor is read before it is made or made twice,
                a family's blocks disagree on the number of layers, or a name repeats.
        """
        from peakline.models.check import check_graph

        check_graph(self)

    # ---- interchange ----------------------------------------------------------------------------------------------
    def to_json(self) -> str:
        """The graph as versioned JSON (`peakline.graph/1`); `Graph.from_json` gives it back unchanged."""
        from peakline.models.serialize import graph_to_json

        return graph_to_json(self)

    @staticmethod
    def from_json(text: str) -> Graph:
        """Read a graph from `peakline.graph/1` JSON.

        Raises:
            GraphError: naming the field at fault.
        """
        from peakline.models.serialize import graph_from_json

        return graph_from_json(text)

    def _repr_html_(self) -> str:
        from peakline.models.html import html

        return html(self)

    def flatten(self) -> Graph:
        """The same program with every block unrolled: one block of repeat 1, layer numbers in the names."""
        from peakline.models.flatten import flatten

        return flatten(self)

    def to_networkx(self) -> Any:
        """The unrolled program as a `networkx.DiGraph`: operators are nodes, an edge carries the tensors between."""
        from peakline.models.flatten import to_networkx

        return to_networkx(self)


def base_name(reference: str) -> str:
    """The tensor's name in a reference, without `[*]`."""
    return reference[:-3] if reference.endswith(ALL) else reference
