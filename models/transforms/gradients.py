"""Reverse-mode differentiation of a forward graph, in the order and with the frees of PyTorch's autograd engine.

Walks the operators backwards and lets each type emit its backward operators. A forward tensor that a backward
operator reads is thereby *saved*: it lives from the forward pass until that read. Gradients of activations die after
their last reader; a second gradient for the same tensor is added in place into the first when nobody else holds it
(`torch/csrc/autograd/input_buffer.cpp`, `InputBuffer::accumulate`), out of place otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from peakline.models.dims import Shape
from peakline.models.dtypes import DType
from peakline.models.graph import RESIDENT_ROLES, Block, Carry, Graph, GraphError, Operator, Role, Tensor
from peakline.models.operators.registry import Node, operator_type

__all__ = ["Gradients", "differentiate", "requiring_gradient"]


@dataclass(frozen=True)
class Gradients:
    """Result of `differentiate`: the backward blocks, every tensor, and the gradient tensor of each parameter."""

    blocks: tuple[Block, ...]
    tensors: dict[str, Tensor]
    of: dict[str, str]


def requiring_gradient(graph: Graph) -> set[str]:
    """Names of the tensors autograd tracks: trainable ones and whatever differentiable operators make of them."""
    tracked = {t.name for t in graph.tensors.values() if t.trainable}
    for block in graph.blocks:
        for _ in range(2 if block.carries else 1):  # the second pass sees what the first carried round
            for port, carry in block.carries.items():
                if carry.initial in tracked or carry.following in tracked:
                    tracked.add(port)
            for operator in block.operators:
                if operator_type(operator.type).differentiable and not tracked.isdisjoint(operator.inputs):
                    made = [graph.tensors[o] for o in operator.outputs]
                    tracked.update(t.name for t in made if t.dtype.is_float)
    return tracked


def differentiate(
    graph: Graph, loss: str, *, into: Mapping[str, str] | None = None, suffix: str = "", seed: str | None = None
) -> Gradients:
    """Backward pass of `loss`.

    Args:
        graph: forward graph.
        loss: name of the tensor to differentiate.
        into: parameter → gradient tensor that exists already; new gradients are added into it and freed.
        suffix: appended to the names of new tensors and blocks, to tell microbatches apart.
        seed: a tensor to use as the loss's gradient; by default a scalar one is made.

    Raises:
        GraphError: the loss does not exist or depends on nothing trainable.
    """
    if loss not in graph.tensors:
        raise GraphError(f"the loss {loss!r} is not a tensor of graph {graph.name!r}")
    tracked = requiring_gradient(graph)
    if loss not in tracked:
        raise GraphError(f"the loss {loss!r} does not depend on any trainable tensor")
    walk = _Walk(graph, tracked, dict(into or {}), suffix)
    return walk.run(graph.tensors[loss], graph.tensors[seed] if seed else None)


@dataclass
class _Walk:
    """State of one backward walk; implements `GradientContext` for the operator being differentiated."""

    graph: Graph
    tracked: set[str]
    into: dict[str, str]
    suffix: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    pending: dict[str, Tensor] = field(default_factory=dict)
    gradients: dict[str, str] = field(default_factory=dict)
    blocks: list[Block] = field(default_factory=list)
    operators: list[Operator] = field(default_factory=list)
    prelude: list[Operator] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    forward: Operator | None = None
    family: str | None = None
    ports: set[str] = field(default_factory=set)
    given: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    views: set[str] = field(default_factory=set)
    uses: dict[str, int] = field(default_factory=dict)
    waiting: dict[str, int] = field(default_factory=dict)

    def run(self, loss: Tensor, seed: Tensor | None) -> Gradients:
        self.tensors = dict(self.graph.tensors)
        if seed is None:
            seed = self._declare(f"{loss.name}.grad", loss.shape, loss.dtype)
            self.operators.append(
                Operator(f"loss.ones{self.suffix}", "fill_backward", (), (seed.name,), phase="backward")
            )
        self.pending[loss.name] = seed
        for _, operator in self.graph.operators():
            for name in set(operator.inputs):
                if name in self.into:
                    self.uses[name] = self.uses.get(name, 0) + 1
        families = self.graph.families
        for block in reversed(self.graph.blocks):
            if block.family is None:
                self._differentiate(block, families)
                self._close(block.name)
            else:
                self._repeated(block, families)
        held = Operator(f"loss.held{self.suffix}", "release", (seed.name,), (), phase="backward")
        self.blocks.append(Block(f"end of backward{self.suffix}", (held,)))  # `torch.autograd.backward` holds its seed
        return Gradients(tuple(self.blocks), self.tensors, self.gradients)

    def _differentiate(self, block: Block, families: Mapping[str, int]) -> None:
        for operator in reversed(block.operators):
            if not any(o in self.pending for o in operator.outputs):
                continue
            self.forward = operator
            kind = operator_type(operator.type)
            if kind.differentiable:
                begin = len(self.operators)
                kind.backward(Node.of(self.graph, operator, families), self)
                self._end_node(begin)
                self._deliver()
            for output in operator.outputs:
                self.pending.pop(output, None)

    def _repeated(self, block: Block, families: Mapping[str, int]) -> None:
        (port_name, carry), *more = block.carries.items()
        if more:
            raise GraphError(f"block {block.name!r} has several carries; only one can be differentiated")
        arriving = self.pending.pop(carry.following, None)
        if arriving is None:
            return
        self._close(f"before {block.name}")
        self.family = block.family
        following = self.graph.tensors[carry.following]
        grad_port = self._declare(f"{block.family}.carry_grad", following.shape, following.dtype)
        self.ports.add(grad_port.name)
        self.pending[following.name] = grad_port
        self._differentiate(block, families)
        leaving = self.pending.pop(port_name, None)
        carries = {grad_port.name: Carry(arriving.name, (leaving or arriving).name)}
        operators, self.operators, self.family = self.operators, [], None
        if self.prelude:
            self.blocks.append(Block(f"zero {block.name}{self.suffix}", tuple(self.prelude)))
            self.prelude = []
        self.blocks.append(
            Block(
                f"{block.name}.backward{self.suffix}",
                tuple(operators),
                repeat=block.repeat,
                family=block.family,
                reverse=not block.reverse,
                carries=MappingProxyType(carries),
            )
        )
        if leaving is not None and carry.initial in self.tracked:
            self._accept(self.tensors[carry.initial], leaving)

    def _close(self, name: str) -> None:
        if self.operators:
            self.blocks.append(Block(f"{name}.backward{self.suffix}", tuple(self.operators)))
            self.operators = []

    # ---- names ----------------------------------------------------------------------------------------------------
    def _declare(
        self, name: str, shape: Shape, kind: DType, role: Role = "activation", storage: Tensor | None = None
    ) -> Tensor:
        owner = None if storage is None else (storage.storage or storage.name)
        name, base, n = name + self.suffix, name, 1
        while name in self.tensors:
            n += 1
            name = f"{base}_{n}{self.suffix}"
        tensor = Tensor(name, tuple(shape), kind, role, self.family, owner)
        self.tensors[name] = tensor
        return tensor

    def _operator_name(self, forward: str) -> str:
        name, n = f"{forward}.backward{self.suffix}", 1
        while name in self.names:
            n += 1
            name = f"{forward}.backward_{n}{self.suffix}"
        self.names.add(name)
        return name

    # ---- GradientContext ------------------------------------------------------------------------------------------
    def grad(self, output: Tensor) -> Tensor | None:
        return self.pending.get(output.name)

    def needs(self, tensor: Tensor) -> bool:
        return tensor.name in self.tracked

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
        assert self.forward is not None
        made = [
            self._declare(
                f"{self.forward.name}.{key}",
                shape,
                kind,
                (roles or {}).get(key, "activation"),
                (in_place or {}).get(key),
            )
            for key, (shape, kind) in outputs.items()
        ]
        name = self._operator_name(self.forward.name)
        if type == "view":
            self.views.update(t.name for t in made)
        self.operators.append(
            Operator(
                name,
                type,
                tuple(t.name for t in inputs),
                tuple(t.name for t in made),
                MappingProxyType(dict(attributes or {})),
                "backward",
                self.forward.module,
            )
        )
        return made

    def give(self, tensor: Tensor, gradient: Tensor, *, view: bool = False) -> None:
        self.given.append((tensor, gradient))
        if view:
            self.views.add(gradient.name)

    def _end_node(self, begin: int) -> None:
        """An autograd node keeps what it was given and what it saved until its last kernel: hold them to there."""
        operators = self.operators[begin:]
        if len(operators) < 2:
            return
        made = {name for operator in operators for name in operator.outputs}
        read = dict.fromkeys(name for operator in operators[:-1] for name in operator.inputs)
        held = [
            name
            for name in read
            if name not in made and name not in operators[-1].inputs and self.tensors[name].role not in RESIDENT_ROLES
        ]
        if held and self.forward is not None:
            name = self._operator_name(self.forward.name)
            self.operators.append(
                Operator(name, "release", tuple(held), (), phase="backward", module=self.forward.module)
            )

    def _deliver(self) -> None:
        """Pass on what the operator gave: all its gradients exist before the first is added to another."""
        for tensor, gradient in self.given:
            self._accept(tensor, gradient)
        self.given = []

    def _accept(self, tensor: Tensor, gradient: Tensor) -> None:
        if tensor.name in self.into:
            self._give_existing(tensor, gradient)
        elif tensor.role == "parameter" or tensor.trainable:
            self._give_leaf(tensor, gradient)
        elif self.family is not None and tensor.family is None:
            self._give_outer(tensor, gradient)
        else:
            self._give_activation(tensor, gradient)

    def _add(self, first: Tensor, second: Tensor, owner: str | None) -> Tensor:
        """first + second: in place unless another gradient (not `owner`'s) or a view's base holds first's memory."""
        held = first.storage or first.name
        shared = first.name in self.views or any(
            name != owner and held == (g.storage or g.name) for name, g in self.pending.items()
        )
        outputs = {"sum": (first.shape, first.dtype)}
        if shared:
            return self.emit("add", [first, second], outputs)[0]
        return self.emit("accumulate", [first, second], outputs, in_place={"sum": first})[0]

    def _give_existing(self, leaf: Tensor, gradient: Tensor) -> None:
        """Add into a gradient that exists, once all of the leaf's uses have contributed (`AccumulateGrad`)."""
        self.waiting[leaf.name] = self.waiting.get(leaf.name, self.uses.get(leaf.name, 1)) - 1
        first = self.pending.get(leaf.name)
        if first is not None:
            gradient = self._add(first, gradient, leaf.name)
        self.pending[leaf.name] = gradient
        if self.waiting[leaf.name] > 0 and self.family is None:
            return
        del self.pending[leaf.name]
        target = self.tensors[self.into[leaf.name]]
        outputs = {"into": (target.shape, target.dtype)}
        self.emit("accumulate", [target, gradient], outputs, in_place={"into": target})
        self.gradients[leaf.name] = target.name

    def _give_activation(self, tensor: Tensor, gradient: Tensor) -> None:
        first = self.pending.get(tensor.name)
        self.pending[tensor.name] = gradient if first is None else self._add(first, gradient, tensor.name)

    def _give_leaf(self, parameter: Tensor, gradient: Tensor) -> None:
        known = self.gradients.get(parameter.name)
        if known is not None:
            first = self.tensors[known]
            total = self._add(first, gradient, None)
            if total.storage is None:
                self._keep(parameter, total.name)
        elif self.family is not None and parameter.family is None:
            self._give_outer(parameter, gradient)
        else:
            name = gradient.storage or gradient.name
            held = [g.storage or g.name for g in self.pending.values()]
            if name in held or self.tensors[name].role != "activation" or name in self.ports:
                (gradient,) = self.emit("copy", [gradient], {"grad": (parameter.shape, parameter.dtype)})
                name = gradient.name
            elif gradient.name in self.views:
                self.views.add(name)
            self._keep(parameter, name)

    def _keep(self, parameter: Tensor, name: str) -> None:
        """The tensor `name` is what the parameter's `.grad` will hold."""
        self.tensors[name] = replace(self.tensors[name], role="gradient")
        self.gradients[parameter.name] = name

    def _give_outer(self, tensor: Tensor, gradient: Tensor) -> None:
        """A tensor outside the layers, used in each: an accumulator zeroed before the block, added into per layer."""
        known = self.gradients if tensor.role == "parameter" else {n: g.name for n, g in self.pending.items()}
        if tensor.name in known:
            total = self.tensors[known[tensor.name]]
        else:
            family, self.family = self.family, None
            role: Role = "gradient" if tensor.role == "parameter" else "activation"
            total = self._declare(f"{tensor.name}.grad", tensor.shape, tensor.dtype, role)
            self.family = family
            self.prelude.append(
                Operator(f"{tensor.name}.zero{self.suffix}", "fill_backward", (), (total.name,), phase="backward")
            )
            if tensor.role == "parameter":
                self.gradients[tensor.name] = total.name
            else:
                self.pending[tensor.name] = total
        self.emit("accumulate", [total, gradient], {"into": (total.shape, total.dtype)}, in_place={"into": total})
