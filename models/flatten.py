"""Unroll repeated blocks: resolve every reference to one layer's instance of a tensor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from types import MappingProxyType
from typing import Any

from peakline.models.graph import ALL, Block, Graph, Operator, Tensor, base_name

__all__ = ["Resolver", "flatten", "instance_name", "layer_by_layer", "to_networkx"]


class Resolver:
    """Turns a reference made inside a block, at a layer, into (tensor name, layer index) pairs.

    The rules are those of `peakline.models.graph`. Layer index is 0 for tensors without a family.
    """

    def __init__(self, graph: Graph) -> None:
        self._tensors = graph.tensors
        self._repeat = graph.families
        self._carries = {name: (block, carry) for block in graph.blocks for name, carry in block.carries.items()}
        self._last: dict[str, int] = {}
        for block in graph.blocks:
            final = 0 if block.reverse else block.repeat - 1
            for operator in block.operators:
                for output in operator.outputs:
                    self._last[base_name(output)] = final

    def __call__(self, reference: str, block: Block, index: int) -> tuple[tuple[str, int], ...]:
        """All instances that `reference` names when used by `block` in layer `index`."""
        if reference.endswith(ALL):
            name = reference[:-3]
            family = self._tensors[name].family
            return tuple((name, i) for i in range(self._repeat[family])) if family else ((name, 0),)
        return (self.one(reference, block, index),)

    def one(self, name: str, block: Block, index: int) -> tuple[str, int]:
        """The single instance that `name` (without `[*]`) stands for."""
        if name in self._carries:
            owner, carry = self._carries[name]
            first = owner.repeat - 1 if owner.reverse else 0
            if block.family != owner.family:  # seen from outside: the layer executed last
                index = 0 if owner.reverse else owner.repeat - 1
            if index == first:
                return self.one(carry.initial, _OUTSIDE, 0)
            return self.one(carry.following, owner, index + 1 if owner.reverse else index - 1)
        family = self._tensors[name].family
        if family is None:
            return name, 0
        if family == block.family:
            return name, index
        return name, self._last.get(name, self._repeat[family] - 1)


_OUTSIDE = Block("", ())


def instance_name(name: str, family: str | None, index: int) -> str:
    """`model.layers.mlp.out` of layer 3 is `model.layers.3.mlp.out`.

    A family that does not start at layer 0 says so, `model.layers@3`: index 0 is layer 3. One whose block holds
    several layers says how many, `model.layers@0/2`, and its names go on with the position in the group:
    `model.layers@0/2.1.mlp.out` of index 4 is `model.layers.9.mlp.out`.
    """
    if not family:
        return name
    rest = name[len(family) + 1 :]
    path, _, numbering = family.partition("@")
    first, _, group = numbering.partition("/")
    number = int(first or 0) + index * int(group or 1)
    if group:
        position, _, after = rest.partition(".")
        if position.isdigit():
            number, rest = number + int(position), after
    return f"{path}.{number}.{rest}" if rest else f"{path}.{number}"


_COUNTS = {"update_pass": ("writes", "tensors")}
"""Attributes, by type, that say how many of the first inputs are meant; `[*]` stands for several of them."""


def flatten(graph: Graph) -> Graph:
    """Unroll every block; later microbatches (`Block.times`) become copies with `#k` behind their tensors' names."""
    resolve = Resolver(graph)
    tensors: dict[str, Tensor] = {}
    operators: list[Operator] = []

    def declare(name: str, index: int, copy: int) -> str:
        tensor = graph.tensors[name]
        flat = instance_name(name, tensor.family, index) + (f"#{copy}" if copy and name in looped else "")
        if flat not in tensors:
            storage = None
            if tensor.storage is not None:
                walker = Block("", (), family=tensor.family)
                storage = declare(*resolve.one(tensor.storage, walker, index), copy)
                storage = tensors[storage].storage or storage
            tensors[flat] = replace(tensor, name=flat, family=None, storage=storage)
        return flat

    looped: set[str] = set()
    carried = {name for block in graph.blocks for name in block.carries}
    produced = {base_name(o) for _, operator in graph.operators() for o in operator.outputs}
    for tensor, i in layer_by_layer(graph):  # resident ones first, in order of creation
        if tensor.name not in carried and tensor.name not in produced:
            declare(tensor.name, i, 0)
    for times, group in groupby(graph.blocks, key=lambda b: b.times):
        blocks = list(group)
        looped = {base_name(o) for b in blocks for op in b.operators for o in op.outputs}
        for copy in range(times):
            for block, index, operator in _execution(blocks):
                suffix = f"#{copy}" if copy else ""
                found = [resolve(reference, block, index) for reference in operator.inputs]
                inputs = [r for instances in found for r in instances]
                outputs = [r for reference in operator.outputs for r in resolve(reference, block, index)]
                counts = {
                    key: sum(len(instances) for instances in found[: operator.attributes[key]])
                    for key in _COUNTS.get(operator.type, ())
                    if key in operator.attributes
                }
                name = instance_name(operator.name, block.family, index) if block.family else operator.name
                operators.append(
                    replace(
                        operator,
                        name=name + suffix,
                        module=_layer_module(operator.module, block.family, index),
                        inputs=tuple([declare(*r, copy) for r in inputs]),
                        outputs=tuple([declare(*r, copy) for r in outputs]),
                        attributes=MappingProxyType({**operator.attributes, **counts})
                        if counts
                        else operator.attributes,
                    )
                )
    previous = {
        declare(old, i, 0): declare(new, i, 0) for old, new in graph.previous.items() for i in range(graph.layers(old))
    }
    return replace(graph, tensors=tensors, blocks=(Block("main", tuple(operators)),), previous=previous)


def layer_by_layer(graph: Graph) -> list[tuple[Tensor, int]]:
    """Every instance in order of declaration, a family's layer by layer where its first tensor stands."""
    families = graph.families
    first: dict[str, int] = {}
    found: list[tuple[int, int, int, Tensor]] = []
    for position, tensor in enumerate(graph.tensors.values()):
        place = first.setdefault(tensor.family, position) if tensor.family else position
        layers = families[tensor.family] if tensor.family else 1
        found.extend((place, i, position, tensor) for i in range(layers))
    return [(tensor, i) for _, i, _, tensor in sorted(found, key=lambda entry: entry[:3])]


def _execution(blocks: list[Block]) -> Iterator[tuple[Block, int, Operator]]:
    for block in blocks:
        for index in block.indices():
            for operator in block.operators:
                yield block, index, operator


def _layer_module(module: str, family: str | None, index: int) -> str:
    inside = family is not None and (module == family or module.startswith(family + "."))
    return instance_name(module, family, index) if inside else module


def to_networkx(graph: Graph) -> Any:
    """Operators as nodes (with their `Operator`), an edge to each reader from whoever last wrote what it reads.

    Edges hold the names of the tensors between; operators that write in place count as writers of the shared storage.
    """
    import networkx as nx

    from peakline.models.operators import operator_type

    flat = flatten(graph)
    result: Any = nx.DiGraph(name=graph.name)
    maker: dict[str, int] = {}  # tensor → operator that makes it
    writer: dict[str, int] = {}  # storage → operator that wrote it last
    operators = flat.blocks[0].operators

    def owner(name: str) -> str:
        return flat.tensors[name].storage or name

    for position, operator in enumerate(operators):
        result.add_node(operator.name, operator=operator, type=operator.type, phase=operator.phase)
        for name in operator.inputs:
            source = max(maker.get(name, -1), writer.get(owner(name), -1))
            if source < 0:
                continue
            edge = operators[source].name, operator.name
            if not result.has_edge(*edge):
                result.add_edge(*edge, tensors=[])
            if name not in result.edges[edge]["tensors"]:
                result.edges[edge]["tensors"].append(name)
        maker.update(dict.fromkeys(operator.outputs, position))
        if operator_type(operator.type).launches:  # a view writes nothing
            counted = operator.attributes.get("writes", 0) if operator.type in _COUNTS else 0
            overwritten = operator.inputs[: int(counted)]
            writer.update((owner(name), position) for name in (*operator.outputs, *overwritten))
    return result
