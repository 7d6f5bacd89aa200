"""Write a model as a program: a builder that names, declares and orders what the model's code says.

    b = GraphBuilder("tiny")
    ids = b.input("input_ids", (batch, seq), "int64")
    x = embedding(b, ids, vocab, hidden, name="embed")
    with b.layers("layers", count=12, carry=x) as layer:
        with b.scope("mlp"):
            y = linear(b, layer.x, 4 * hidden, name="up")
            ...
        layer.x = add(b, layer.x, y)
    x = layer.result
    graph = b.graph()

Functions such as `linear` live beside their operator types in `peakline.models.operators`. A builder knows the
phase (training or not), the default dtype, and the autocast dtype; operator functions ask it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from peakline.models.dims import Shape, same_shape
from peakline.models.dtypes import DType, dtype
from peakline.models.graph import Block, Carry, Graph, Operator, Role, Tensor

__all__ = ["GraphBuilder", "Layer"]

_NONE: Mapping[str, Any] = MappingProxyType({})


@dataclass
class Layer:
    """The body of a repeated block while it is written: `x` is the carried tensor; set it to the layer's output."""

    x: Tensor
    result: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.result = self.x


class GraphBuilder:
    """Collects tensors and operators in program order.

    Attributes:
        training: dropout is active, and losses and caches behave as in training.
        dtype: format of parameters and activations unless said otherwise.
        autocast: format that matrix products are cast to under mixed precision, or None.
        channels_last: images lie in memory as [N, H, W, C]: cuDNN converts nothing.
        eager: composite functions run kernel by kernel as in eager PyTorch; False uses the fused kernels that
            inference engines and training libraries put in their place.
    """

    def __init__(
        self,
        name: str,
        *,
        kind: DType | str = "bf16",
        training: bool = False,
        autocast: DType | str | None = None,
        eager: bool = True,
        channels_last: bool = False,
    ) -> None:
        self.name = name
        self.dtype = dtype(kind)
        self.training = training
        self.eager = eager
        self.channels_last = channels_last
        self.autocast = dtype(autocast) if autocast is not None else None
        self.tensors: dict[str, Tensor] = {}
        self.blocks: list[Block] = []
        self.notes: list[str] = []
        self._operators: list[Operator] = []
        self._names: set[str] = set()
        self._path: list[str] = []
        self._family: str | None = None
        self._casts: dict[str, Tensor] = {}

    # ---- names ----------------------------------------------------------------------------------------------------
    @property
    def module(self) -> str:
        """Path of the module being written."""
        return ".".join(self._path)

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Names made inside are prefixed with `name.`; an empty name changes nothing."""
        if name:
            self._path.append(name)
        try:
            yield
        finally:
            if name:
                self._path.pop()

    def unique(self, name: str) -> str:
        """`path.name`, with `_2`, `_3` … appended while it is taken."""
        full = f"{self.module}.{name}" if self._path else name
        candidate, n = full, 1
        while candidate in self._names:
            n += 1
            candidate = f"{full}_{n}"
        self._names.add(candidate)
        return candidate

    # ---- tensors --------------------------------------------------------------------------------------------------
    def declare(
        self,
        name: str,
        shape: Shape,
        kind: DType | str | None = None,
        role: Role = "activation",
        *,
        storage: Tensor | None = None,
        trainable: bool = False,
    ) -> Tensor:
        """Declare a tensor under its full name; inside `layers` it exists once per layer."""
        if name in self.tensors:
            raise ValueError(f"tensor {name!r} is declared twice")
        owner = None if storage is None else (storage.storage or storage.name)
        tensor = Tensor(name, tuple(shape), dtype(kind) if kind else self.dtype, role, self._family, owner, trainable)
        self.tensors[name] = tensor
        return tensor

    def input(self, name: str, shape: Shape, kind: DType | str = "int64", role: Role = "input") -> Tensor:
        """A tensor the step is given: token ids, images, masks, a KV cache."""
        return self.declare(self.unique(name), shape, kind, role)

    def parameter(self, name: str, shape: Shape, kind: DType | str | None = None, *, trainable: bool = True) -> Tensor:
        """A parameter named `path.name`, as in the model's state dict."""
        return self.declare(self.unique(name), shape, kind, "parameter", trainable=trainable)

    # ---- operators ------------------------------------------------------------------------------------------------
    def add(
        self,
        type: str,
        inputs: tuple[Tensor, ...] | list[Tensor],
        outputs: Mapping[str, tuple[Shape, DType | str | None]],
        *,
        name: str | None = None,
        attributes: Mapping[str, Any] | None = None,
        in_place: Mapping[str, Tensor] | None = None,
        roles: Mapping[str, Role] | None = None,
    ) -> list[Tensor]:
        """Append an operator and declare its outputs.

        Args:
            type: operator type.
            inputs: in the type's order.
            outputs: suffix → (shape, dtype); the tensors are named `<operator>.<suffix>`.
            name: local name; defaults to the type.
            attributes: the type's attributes.
            in_place: suffix → tensor whose storage that output takes over (a view or an in-place result).
            roles: suffix → role, where it is not an activation.
        """
        full = self.unique(name or type)
        made = [
            self.declare(
                f"{full}.{suffix}",
                shape,
                kind,
                (roles or {}).get(suffix, "activation"),
                storage=(in_place or {}).get(suffix),
            )
            for suffix, (shape, kind) in outputs.items()
        ]
        self._operators.append(
            Operator(
                full,
                type,
                tuple([t.name for t in inputs]),
                tuple([t.name for t in made]),
                MappingProxyType(dict(attributes)) if attributes else _NONE,
                "forward",
                self.module,
            )
        )
        return made

    def cast_once(self, parameter: Tensor) -> Tensor:
        """The parameter in the autocast format: one copy, kept to the end of the forward pass by autocast's cache.

        The cache holds float32 leaves that require a gradient; others are cast each time they are used
        (`cached_cast`, aten/src/ATen/autocast_mode.cpp).
        """
        if self.autocast is None or parameter.dtype.name == self.autocast.name:
            return parameter
        outputs = {"cast": (parameter.shape, self.autocast)}
        if not parameter.trainable or parameter.dtype.name != "fp32":
            return self.add("cast", (parameter,), outputs, name="autocast")[0]
        if parameter.name not in self._casts:
            self._casts[parameter.name] = self.add("cast", (parameter,), outputs, name="autocast")[0]
        return self._casts[parameter.name]

    # ---- blocks ---------------------------------------------------------------------------------------------------
    def _close(self, name: str, **kwargs: Any) -> None:
        if self._operators:
            self.blocks.append(Block(name, tuple(self._operators), **kwargs))
        self._operators = []

    @contextmanager
    def layers(self, path: str, count: int, carry: Tensor) -> Iterator[Layer]:
        """A block repeated `count` times; `carry` enters the first layer, `layer.x` at the end enters the next.

        `path` becomes the family's name: parameters are `path.<layer>.…` once unrolled.
        """
        if self._family is not None:
            raise ValueError("blocks do not nest")
        if count < 1:
            raise ValueError(f"{path}: the number of layers must be at least 1, not {count}")
        self._close(f"before {path}")
        with self.scope(path):
            family = self.module
            self._family = family
            port = self.declare(self.unique("carry"), carry.shape, carry.dtype)
            layer = Layer(port)
            try:
                yield layer
            finally:
                self._family = None
        if not same_shape(layer.x.shape, port.shape):
            raise ValueError(f"{path}: a layer turns shape {port.shape} into {layer.x.shape}; it must keep it")
        carries = {port.name: Carry(carry.name, layer.x.name)}
        self._close(family, repeat=count, family=family, carries=MappingProxyType(carries))
        layer.result = layer.x

    def graph(self, **workload: Any) -> Graph:
        """The finished graph, checked. Under autocast it ends where the context is left and its casts are let go."""
        if self._casts:
            held = tuple(f"{t.name}[*]" if t.family else t.name for t in self._casts.values())
            self._operators.append(Operator(self.unique("leave_autocast"), "release", held, ()))
        self._close("main" if not self.blocks else "tail")
        graph = Graph(self.name, dict(self.tensors), tuple(self.blocks), workload, tuple(self.notes))
        graph.check()
        return graph
