"""When every storage is born and when it dies, in program order.

A graph's blocks are walked layer by layer; tensors that share memory (views, in-place results) are one *storage*.
A storage made by an operator lives until the last operator that touches it; what exists before the step (parameters,
optimizer states, inputs, caches) lives throughout. What one step leaves to the next (`Graph.previous`) dies there after
its last use, and what takes its place lives to the end of the step. Nothing here knows of devices or allocators.

Where Python runs a model without gradients, module by module, more is alive than what is still needed (`Program.on`):
a call holds its arguments until it returns, so a layer's input lives as long as the layer, and what an embedding looked
up as long as the module that asked for it. With gradients most of that is saved anyway, and nothing is added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, TypeAlias

from peakline.models.dims import Dim
from peakline.models.flatten import Resolver, instance_name
from peakline.models.graph import ALL, RESIDENT_ROLES, Block, Graph, Operator, Tensor, base_name
from peakline.models.operators import Node, OperatorType, operator_type
from peakline.models.operators.reductions import Multiprocessors

__all__ = ["Program", "Step", "Storage", "unroll", "workspace"]

CALLED = ("prefill", "decode", "inference")
"""Phases without gradients."""


class Storage(NamedTuple):
    """One piece of memory: the tensor that owns it, and in which layer."""

    tensor: Tensor
    layer: int

    @property
    def name(self) -> str:
        """The tensor's name with the layer in it."""
        return instance_name(self.tensor.name, self.tensor.family, self.layer)


class Step(NamedTuple):
    """One executed operator: which storages (by number) it makes and touches."""

    operator: Operator
    block: Block
    layer: int
    makes: tuple[int, ...]
    touches: tuple[int, ...]

    @property
    def name(self) -> str:
        """The operator's name with the layer in it."""
        family = self.block.family
        return instance_name(self.operator.name, family, self.layer) if family else self.operator.name


@dataclass(frozen=True)
class Program:
    """The unrolled program.

    Attributes:
        graph: what was unrolled.
        storages: by number.
        steps: executed operators in order; later microbatches (`Block.times`) appear once.
        resident: numbers of the storages that exist before the first operator of a steady step.
        multiprocessors: of the GPU it runs on, where that is one whose sums are known.
        called: its modules are called from Python, which holds what it hands them.
    """

    graph: Graph
    storages: list[Storage]
    steps: list[Step]
    resident: list[int]
    multiprocessors: Multiprocessors | None = None
    called: bool = False

    def on(self, multiprocessors: Multiprocessors | None) -> Program:
        """The same program in a process on such a GPU, where its sums meet in buffers of their own; a model that runs
        kernel by kernel without gradients is called module by module there."""
        work = self.graph.workload
        called = work.get("kernels") == "eager" and work.get("phase") in CALLED
        if multiprocessors == self.multiprocessors and called == self.called:
            return self
        other = replace(self, multiprocessors=multiprocessors, called=called)
        own = ["multiprocessors", "workspaces", "called", *(("deaths", "dying") if called != self.called else ())]
        other.__dict__.update({name: value for name, value in self.__dict__.items() if name not in own})
        return other

    @cached_property
    def previous(self) -> dict[int, int]:
        """Storages left by the step before → those that take their place (`Graph.previous`), layer by layer."""
        if not self.graph.previous:
            return {}
        number = {(s.tensor.name, s.layer): key for key, s in enumerate(self.storages)}
        return {
            number[old, i]: number[new, i]
            for old, new in self.graph.previous.items()
            for i in range(self.graph.layers(old))
        }

    @cached_property
    def births(self) -> list[int]:
        """Step that makes each storage; −1 for resident ones and those never made."""
        births = [-1] * len(self.storages)
        for position, step in enumerate(self.steps):
            for key in step.makes:
                births[key] = position
        return births

    @cached_property
    def deaths(self) -> list[int]:
        """Last step that touches each storage; the number of steps for those that are there when the step ends."""
        deaths = [-1] * len(self.storages)
        for position, step in enumerate(self.steps):
            for key in step.touches:
                deaths[key] = position
        for key, position in _held(self).items() if self.called else ():
            deaths[key] = max(deaths[key], position)
        mortal = self.previous
        for key in self.resident:
            if key not in mortal:
                deaths[key] = len(self.steps)
        for key in mortal.values():
            deaths[key] = len(self.steps)
        return deaths

    @cached_property
    def dying(self) -> list[list[int]]:
        """Storages to free after each step."""
        dying: list[list[int]] = [[] for _ in self.steps]
        end = len(self.steps)
        for key, position in enumerate(self.deaths):
            if 0 <= position < end:
                dying[position].append(key)
        return dying

    @cached_property
    def workspaces(self) -> dict[int, tuple[Dim, ...]]:
        """Sizes of the blocks each operator allocates and frees inside itself, by `id` of the operator."""
        found: dict[int, tuple[Dim, ...]] = {}
        families = self.graph.families
        for _, operator in self.graph.operators():
            sizes = workspace(self.graph, operator, families, self.multiprocessors)
            if sizes:
                found[id(operator)] = sizes
        return found

    @cached_property
    def sizes(self) -> list[Dim]:
        """Bytes of each storage."""
        by_tensor: dict[str, Dim] = {}
        sizes: list[Dim] = []
        for storage in self.storages:
            name = storage.tensor.name
            if name not in by_tensor:
                by_tensor[name] = storage.tensor.bytes
            sizes.append(by_tensor[name])
        return sizes


def workspace(
    graph: Graph, operator: Operator, families: Mapping[str, int], multiprocessors: Multiprocessors | None
) -> tuple[Dim, ...]:
    """Sizes of the blocks an operator allocates and frees inside itself, on a GPU with such multiprocessors."""
    kind = operator_type(operator.type)
    sizes: tuple[Dim, ...] = ()
    if type(kind).workspace is not _NO_WORKSPACE:
        sizes = kind.workspace(Node.of(graph, operator, families))
    if multiprocessors is not None and type(kind).meeting is not _NO_MEETING:
        sizes = (*sizes, *kind.meeting(Node.of(graph, operator, families), multiprocessors))
    return sizes


def _held(program: Program) -> dict[int, int]:
    """Until which step calls hold storages: those handed to a module to its last operator, what an embedding looked up
    to the last one of the module that asked.

    Modules are the scopes of operators' names; of a list of layers, every layer is one.
    """
    births, scopes = program.births, dict[int, list[tuple[str, bool]]]()
    first: dict[tuple[str, int], int] = {}
    last: dict[tuple[str, int], int] = {}
    given: set[tuple[int, tuple[str, int]]] = set()
    for position, step in enumerate(program.steps):
        operator, layer = step.operator, step.layer
        known = scopes.get(id(operator))
        if known is None:
            known = scopes[id(operator)] = _scopes(operator.name, step.block.family)
        names = [(name, layer if inside else -1) for name, inside in known]
        for name in names:
            first.setdefault(name, position)
            last[name] = position
        for key in step.touches:
            born = births[key]
            if born < 0 or not names or first[names[-1]] <= born:
                continue
            given.add((key, next(name for name in names if first[name] > born)))  # the outermost that was handed it
        if operator.type == "embedding" and len(names) > 1:
            given.update((key, names[-2]) for key in step.makes)
    held: dict[int, int] = {}
    for key, name in given:
        held[key] = max(held.get(key, -1), last[name])
    return held


def _scopes(operator: str, family: str | None) -> list[tuple[str, bool]]:
    """The modules that an operator runs in, from the outermost, and whether they repeat with the layers.

    A family's name stands for one of its layers, or for a group of several (`model.layers@0/2`), which is no module.
    """
    parts = operator.split(".")[:-1]
    names = [".".join(parts[: i + 1]) for i in range(len(parts))]
    if family is None:
        return [(name, False) for name in names]
    return [(name, f"{name}.".startswith(f"{family}.")) for name in names if name != family or "/" not in family]


def unroll(graph: Graph) -> Program:
    """Execute the graph's blocks on paper; see `Program`."""
    return _Unroller(graph).run()


_NO_WORKSPACE, _NO_MEETING = OperatorType.workspace, OperatorType.meeting
_Plan: TypeAlias = list[tuple[int, int]] | tuple[tuple[int, int] | str, ...]


class _Unroller:
    """Numbers every tensor instance and follows references, views and carries to storages."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.resolve = Resolver(graph)
        self.carried = {name for block in graph.blocks for name in block.carries}
        self.base: dict[str, int] = {}
        self.storages: list[Storage] = []
        families = graph.families
        for tensor in graph.tensors.values():
            if tensor.name in self.carried:
                continue
            self.base[tensor.name] = len(self.storages)
            layers = families[tensor.family] if tensor.family else 1
            self.storages.extend([Storage(tensor, i) for i in range(layers)])
        self.owner = list(range(len(self.storages)))

    def run(self) -> Program:
        graph = self.graph
        produced = {base_name(o) for _, operator in graph.operators() for o in operator.outputs}
        resident = [
            key
            for key, storage in enumerate(self.storages)
            if storage.tensor.name not in produced
            and storage.tensor.storage is None
            and (
                storage.tensor.role in RESIDENT_ROLES
                or storage.tensor.role == "gradient"
                or storage.tensor.name in graph.previous
            )
        ]
        steps: list[Step] = []
        owner = self.owner
        for block in graph.blocks:
            plans = [(o, self._plan(o.inputs, block), self._plan(o.outputs, block)) for o in block.operators]
            aliases = [self._aliases(o) for o in block.operators]
            for index in block.indices():
                for (operator, inputs, outputs), alias in zip(plans, aliases):
                    made = self._keys(outputs, block, index)
                    if alias:
                        self._share(operator, block, index)
                        owners = tuple([owner[k] for k in made])
                        fresh = tuple([k for k in made if owner[k] == k])
                    else:
                        owners = fresh = tuple(made)
                    touched = tuple([owner[k] for k in self._keys(inputs, block, index)]) + owners
                    steps.append(Step(operator, block, index, fresh, touched))
        return Program(graph, self.storages, steps, resident)

    def _plan(self, references: Sequence[str], block: Block) -> _Plan:
        """Numbers as base + step·layer, where that is all a reference needs; else its name, resolved per layer."""
        plans: list[tuple[int, int] | str] = []
        for reference in references:
            if reference.endswith(ALL) or reference in self.carried:
                plans.append(reference)
            elif self.graph.tensors[reference].family == block.family and block.family is not None:
                plans.append((self.base[reference], 1))
            else:
                name, layer = self.resolve.one(reference, block, 0)
                plans.append((self.base[name] + layer, 0))
        simple = [plan for plan in plans if not isinstance(plan, str)]
        return simple if len(simple) == len(plans) else tuple(plans)

    def _keys(self, plan: _Plan, block: Block, index: int) -> list[int]:
        if isinstance(plan, list):
            return [base + step * index for base, step in plan]
        keys: list[int] = []
        for part in plan:
            if isinstance(part, str):
                keys.extend([self.base[name] + layer for name, layer in self.resolve(part, block, index)])
            else:
                keys.append(part[0] + part[1] * index)
        return keys

    def _aliases(self, operator: Operator) -> bool:
        return any(self.graph.tensors[base_name(o)].storage is not None for o in operator.outputs)

    def _share(self, operator: Operator, block: Block, index: int) -> None:
        """Let outputs that are views or in-place results own no storage of their own."""
        for reference in operator.outputs:
            tensor = self.graph.tensors[base_name(reference)]
            if tensor.storage is None:
                continue
            walker = block if tensor.family == block.family else Block("", (), family=tensor.family)
            for made, layer in self.resolve(reference, block, index):
                name, at = self.resolve.one(tensor.storage, walker, layer if tensor.family else index)
                self.owner[self.base[made] + layer] = self.owner[self.base[name] + at]
