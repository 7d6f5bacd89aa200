"""From a graph to the scheduling problem that `peakline.solvers.schedule` solves, in plain numbers.

Blocks are unrolled, tensors that share memory are one, views vanish. An in-place operator joins the operator that
made what it overwrites where nobody else reads the old value (batch norm and its ReLU become one); elsewhere, as for
a weight that an optimizer updates, its result is a tensor of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from peakline.cost.machine import machine
from peakline.cost.price import KernelCost, price
from peakline.cost.program import working
from peakline.files import json_of, text_of
from peakline.hardware import Device
from peakline.memory.lifetimes import Program, Step, unroll
from peakline.models.graph import ALL, RESIDENT_ROLES, Graph
from peakline.models.operators import operator_type
from peakline.solvers.alternatives import Choices
from peakline.solvers.problem import Operator, Problem, ProblemError, Role, Tensor

__all__ = ["Described", "Scope", "described", "on_chip_seconds", "part_of", "problem_of", "read_problem"]

Scope = Literal["all", "activations"]


def problem_of(graph: Graph, *, scope: Scope = "all", work: Device | Literal["flops"] | None = None) -> Problem:
    """The graph as tensors and operators for `peakline.solvers`.

    Parameters, optimizer states and buffers become `parameter`; inputs and caches `input`; what an operator makes is
    an `activation`, or an `output` if it is a gradient that nobody reads, the new value of something resident, left to
    the next step, or all that its operator makes and nobody reads it. Workspace inside an operator is an activation
    that it alone touches. `scope` "activations" leaves parameters out, as where weights stream from elsewhere.

    `work` says what operators take: on a device the seconds that its kernels take beside main memory's transfers
    (`on_chip_seconds`), or their FLOPs; None: nothing.

    Raises ValueError for a sweep of configurations or an unknown scope; UnsupportedDtype as `price`.
    """
    if scope not in ("all", "activations"):
        raise ValueError(f"scope: must be all or activations, got {scope!r}")
    if graph.is_sweep:
        raise ValueError(f"{graph.name}: a sweep has no single schedule; give one configuration")
    problem = _Reader(unroll(graph), _work_of(graph, work)).read(isinstance(work, Device))
    if scope == "all":
        return problem
    left = {tensor.name for tensor in problem.tensors if tensor.role == "parameter"}
    return Problem(
        tuple(t for t in problem.tensors if t.name not in left),
        tuple(o.without(left) for o in problem.operators),
    )


@dataclass(frozen=True)
class Described:
    """An operator of the problem: the types of those of the graph that it consists of, and its tensors' shapes."""

    types: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]


def described(graph: Graph) -> dict[str, Described]:
    """What each operator of `problem_of(graph)` is, by name; workspaces have no shape."""
    reader = _Reader(unroll(graph), {})
    reader.read(False)
    return {
        group.name: Described(tuple(group.types), {v.name: v.shape for v in (*group.reads, *group.makes) if v.shape})
        for group in reader.groups
    }


def on_chip_seconds(cost: KernelCost, main: str) -> float:
    """Seconds of a kernel whose operands lie on the chip: launch, the slowest resource but main memory, and what fills
    and drains beside it (`KernelCost.limits`).
    """
    beside = {name: float(seconds) for name, seconds in cost.limits.items() if name != main}
    fixed = beside.pop("launch", 0.0) + beside.pop("latency", 0.0)
    return fixed + max(beside.values(), default=0.0)


def _work_of(graph: Graph, work: Device | Literal["flops"] | None) -> dict[int, float]:
    """Seconds or FLOPs of one execution of each operator that starts kernels, by its identity."""
    if work is None:
        return {}
    found: dict[int, float] = {}
    for item in working(graph):
        if isinstance(work, Device):
            main = machine(work).main.name
            costs = [price(kernel, *moved, work) for kernel, moved in zip(item.kernels, item.moves)]
            found[id(item.operator)] = sum(on_chip_seconds(cost, main) for cost in costs)
        else:
            found[id(item.operator)] = sum(int(kernel.flops) for kernel in item.kernels)
    return found


def part_of(problem: Problem, prefix: str) -> Problem:
    """The operators whose names start with `prefix`: a layer or a block as a problem of its own.

    What they read of the rest becomes an input, what the rest reads of them an output.

    Raises ValueError if no operator's name starts so.
    """
    inside = tuple(o for o in problem.operators if o.name.startswith(prefix))
    if not inside:
        sample = ", ".join(o.name for o in problem.operators[:3])
        raise ValueError(f"only: no operator's name starts with {prefix!r}; the first ones are {sample}")
    made = {name for o in inside for name in o.outputs}
    touched = made | {name for o in inside for name in o.inputs}
    asked = {name for o in problem.operators if o not in inside for name in o.inputs}
    tensors = []
    for tensor in problem.tensors:
        if tensor.name in made and tensor.name in asked:
            tensors.append(replace(tensor, role="output"))
        elif tensor.name in touched:
            outside = tensor.name not in made and tensor.role != "parameter"
            tensors.append(replace(tensor, role="input") if outside else tensor)
    return Problem(tuple(tensors), inside)


def read_problem(path: Path) -> Choices | Graph | None:
    """A problem with its alternatives, or a graph, from a JSON file; None if it is neither (a model's config.json).

    Raises ValueError for a file that is no whole JSON, ProblemError or GraphError naming the entry at fault.
    """
    accepted = "a problem or a graph in JSON, or a model's config.json"
    text = text_of(path, accepted)
    data = json_of(path, text, accepted)
    if isinstance(data, dict) and str(data.get("schema", "")).startswith("peakline.graph/"):
        return Graph.from_json(text)
    if isinstance(data, dict) and not {"tensors", "operators"} & data.keys() and "model_type" in data:
        return None
    try:
        return Choices.from_dict(data)
    except ProblemError as error:
        raise ProblemError(f"{path}: {error}") from None


def _overwriting(group: _Group) -> tuple[tuple[str, str], ...]:
    """(output, input) pairs of one shape and size of which the output may take the input's place.

    All inputs of an element-wise operator serve; of another, those that element-wise operators which joined it read
    (what a fused addition adds).
    """
    first, *joined = group.types
    inputs = group.reads if first in _ELEMENTWISE else group.joined_reads
    if not set(joined) <= _ELEMENTWISE:
        return ()
    return tuple(
        (made.name, read.name)
        for made in group.makes
        for read in inputs
        if read.shape and read.shape == made.shape and read.bytes == made.bytes
    )


@dataclass
class _Version:
    """A value of a storage: its number, bytes, who makes it (None: exists before) and which groups read it."""

    name: str
    bytes: int
    role: str
    maker: _Group | None = None
    readers: list[_Group] = field(default_factory=list)
    renews: bool = False
    shape: tuple[int, ...] = ()


_ELEMENTWISE = frozenset(
    {"accumulate", "add", "batch_norm", "cast", "dropout", "elementwise_backward", "exp", "gelu", "gelu_tanh",
     "hardsigmoid", "hardswish", "leaky_relu", "mul", "neg", "pow", "relu", "relu6", "relu_squared", "rsqrt", "scale",
     "sigmoid", "silu", "softplus", "tanh"}
)  # fmt: skip
"""Types that read each element before they write it: an output may overwrite an input of its shape."""


@dataclass(eq=False)
class _Group:
    """An operator and the in-place operators that joined it."""

    name: str
    reads: list[_Version] = field(default_factory=list)
    makes: list[_Version] = field(default_factory=list)
    work: float = 0
    types: list[str] = field(default_factory=list)
    joined_reads: list[_Version] = field(default_factory=list)


class _Reader:
    """Walks the unrolled program and keeps track of the current version of every storage."""

    def __init__(self, program: Program, work: Mapping[int, float]) -> None:
        self.program, self.work = program, work
        self.groups: list[_Group] = []
        self.current: dict[int, _Version] = {}
        self.names: dict[str, int] = {}
        self.left: set[int] = set()

    def read(self, timed: bool) -> Problem:
        """The problem; the work is in seconds if `timed`, else in FLOPs."""
        for step in self.program.steps:
            self._step(step)
        self.left = {id(self._version(key)) for key in self.program.previous.values()}
        versions = {id(v): v for g in self.groups for v in (*g.reads, *g.makes) if v.bytes}
        tensors = tuple(Tensor(v.name, v.bytes, self._role(v)) for v in versions.values())
        operators = tuple(
            Operator(
                g.name,
                tuple(dict.fromkeys(v.name for v in g.reads if v.bytes)),
                tuple(v.name for v in g.makes if v.bytes),
                g.work if self.work and timed else None,
                g.work if self.work and not timed else None,
                _overwriting(g),
            )
            for g in self.groups
        )
        return Problem(tensors, operators)

    def _step(self, step: Step) -> None:
        graph = self.program.graph
        count = sum(graph.layers(o) if o.endswith(ALL) else 1 for o in step.operator.outputs)
        split = len(step.touches) - count
        touched = list(dict.fromkeys(step.touches[:split]))
        fresh = list(step.makes)
        renewed = [key for key in dict.fromkeys(step.touches[split:]) if key not in step.makes]
        if operator_type(step.operator.type).launches == 0 and not fresh:
            return  # a view, or the end of a tensor's life
        host = self._host(touched, renewed) if len(renewed) == 1 else None
        if host is not None:
            host.name += f"+{step.operator.type}"
            before = len(host.reads)
            self._add_reads(host, [key for key in touched if key not in renewed])
            host.joined_reads += host.reads[before:]
        else:
            host = _Group(self._unique(step.name))
            self.groups.append(host)
            self._add_reads(host, [key for key in touched if key not in fresh])
            for key in renewed:
                old = self._version(key)
                self._add_reads(host, [key])
                new = _Version(
                    self._unique(f"{old.name.split('#')[0]}#"), old.bytes, old.role, host, renews=True, shape=old.shape
                )
                self.current[key] = new
                host.makes.append(new)
        host.types.append(step.operator.type)
        host.work += self.work.get(id(step.operator), 0)
        for key in fresh:
            version = self._version(key)
            version.maker = host
            host.makes.append(version)
        workspace = sum(int(size) for size in self.program.workspaces.get(id(step.operator), ()))
        if workspace:
            host.makes.append(_Version(self._unique(f"{step.name}.workspace"), workspace, "workspace", host))

    def _host(self, touched: list[int], renewed: list[int]) -> _Group | None:
        """The group that an in-place operator can join: it made the old value, which nobody else reads."""
        old = self._version(renewed[0])
        host = old.maker
        if host is None or any(reader is not host for reader in old.readers):
            return None
        others = [self._version(key).maker for key in touched if key not in renewed]
        return None if any(maker is not None and self._needs(maker, host) for maker in others) else host

    def _needs(self, group: _Group, other: _Group) -> bool:
        """Whether `group`, not being `other`, needs a result of `other`, directly or not."""
        if group is other:
            return False
        seen, stack = {id(group)}, [group]
        while stack:
            for version in stack.pop().reads:
                maker = version.maker
                if maker is other:
                    return True
                if maker is not None and id(maker) not in seen:
                    seen.add(id(maker))
                    stack.append(maker)
        return False

    def _add_reads(self, group: _Group, keys: list[int]) -> None:
        for key in keys:
            version = self._version(key)
            if version.maker is not group and version not in group.reads:
                group.reads.append(version)
                version.readers.append(group)

    def _version(self, key: int) -> _Version:
        if key not in self.current:
            storage = self.program.storages[key]
            size = int(self.program.sizes[key])
            shape = tuple(int(length) for length in storage.tensor.shape)
            self.current[key] = _Version(self._unique(storage.name), size, storage.tensor.role, shape=shape)
        return self.current[key]

    def _unique(self, name: str) -> str:
        """The name, numbered from its second appearance on; one ending in # is always numbered, from 2."""
        self.names[name] = self.names.get(name, 1 if name.endswith("#") else 0) + 1
        number = self.names[name]
        return f"{name}{number}" if name.endswith("#") else name if number == 1 else f"{name}@{number}"

    def _role(self, version: _Version) -> Role:
        if version.maker is None:
            return "input" if version.role in ("input", "kv_cache", "activation", "gradient") else "parameter"
        if id(version) in self.left:
            return "output"
        if version.readers or version.role == "workspace":
            return "activation"
        if version.role in RESIDENT_ROLES or version.role == "gradient":
            return "output"
        beside = [v for v in version.maker.makes if v.role != "workspace"]
        return "activation" if any(v.readers for v in beside) else "output"
