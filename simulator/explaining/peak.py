"""What stands at the live peak: by module path and role, and the largest tensors with the line that made them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from peakline.memory.lifetimes import Program, Storage
from peakline.memory.live import program_peak
from peakline.models.flatten import instance_name

__all__ = ["Held", "ModuleShare", "by_module", "held_at_peak", "largest"]

OUTSIDE = "(outside any module)"


@dataclass(frozen=True, slots=True)
class Held:
    """A tensor at the peak, its layers together.

    Attributes:
        tensor: its name, `*` for the layer's number.
        module: path of the module it belongs to, likewise.
        role: of the tensor.
        bytes: over all layers alive.
        count: layers in which it is alive.
        operator: type of the operator that made it; "" for what exists before the step.
        line: `file.py:12` of the user's code that asked for that operator, where it was captured.
    """

    tensor: str
    module: str
    role: str
    bytes: int
    count: int
    operator: str = ""
    line: str = ""


@dataclass(frozen=True, slots=True)
class ModuleShare:
    """Bytes at the peak of a module and all that is inside it, by role."""

    module: str
    bytes: int
    by_role: dict[str, int] = field(default_factory=dict)


def held_at_peak(program: Program) -> list[Held]:
    """Every tensor alive at the first live peak, layers of one tensor together, largest first; workspaces too.

    Raises:
        ValueError: a sweep has no single peak.
    """
    if program.graph.is_sweep:
        raise ValueError("a sweep has no single peak; explain one configuration")
    if not program.steps:
        return []
    step = int(program_peak(program).step)
    homes = _Homes(program)
    found: dict[tuple[str, str], Held] = {}
    for key in _alive(program, step):
        storage = program.storages[key]
        born = program.births[key]
        maker = program.steps[born].operator if born >= 0 else None
        line = str(maker.attributes.get("line", "")) if maker is not None else ""
        held = Held(homes.title(storage.name), homes.of(key), storage.tensor.role, int(program.sizes[key]), 1,
                    "" if maker is None else maker.type.split(".")[-1], line)  # fmt: skip
        _put(found, held)
    running = program.steps[step]
    inside = sum(int(size) for size in program.workspaces.get(id(running.operator), ()))
    if inside:
        module = _instance(running.operator.module, running.block.family, running.layer)
        line = str(running.operator.attributes.get("line", ""))
        _put(found, Held(f"{homes.title(running.name)} (inside)", starred(module) or OUTSIDE, "workspace", inside, 1,
                         running.operator.type.split(".")[-1], line))  # fmt: skip
    return sorted(found.values(), key=lambda held: (-held.bytes, held.tensor))


def _put(found: dict[tuple[str, str], Held], held: Held) -> None:
    key = held.tensor, held.role
    before = found.get(key)
    if before is not None:
        held = Held(held.tensor, held.module, held.role, before.bytes + held.bytes, before.count + 1,
                    before.operator or held.operator, before.line or held.line)  # fmt: skip
    found[key] = held


def _alive(program: Program, step: int) -> Iterator[int]:
    births, deaths, resident = program.births, program.deaths, set(program.resident)
    for key in range(len(program.storages)):
        if (0 <= births[key] <= step or key in resident) and deaths[key] >= step:
            yield key


def starred(name: str) -> str:
    """`model.layers.3.mlp` → `model.layers.*.mlp`."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def _instance(module: str, family: str | None, layer: int) -> str:
    """A module's path with the layer in it, where the path is the family's own."""
    path = (family or "").partition("@")[0]
    return instance_name(module, family, layer) if path and f"{module}.".startswith(f"{family}.") else module


class _Homes:
    """Which module a storage belongs to: its maker's; of what no module makes, the one whose name it bears."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.known: set[str] = set()
        for step in program.steps:
            if step.operator.phase != "optimizer":
                self.known.add(starred(_instance(step.operator.module, step.block.family, step.layer)))
        for storage in program.storages:
            if storage.tensor.role == "parameter":
                self.known.add(starred(storage.name).rpartition(".")[0])
        self.known.discard("")

    def of(self, key: int) -> str:
        """The module's path, `*` for numbers."""
        storage, born = self.program.storages[key], self.program.births[key]
        if born >= 0:
            step = self.program.steps[born]
            if step.operator.phase != "optimizer" and step.operator.module:
                return starred(_instance(step.operator.module, step.block.family, step.layer))
        return self._by_name(storage)

    def title(self, name: str) -> str:
        """A tensor's name with `*` for the numbers in its module's path."""
        parts = name.split(".")
        for at in range(len(parts) - 1, 0, -1):
            path = starred(".".join(parts[:at]))
            if path in self.known:
                return ".".join([path, *parts[at:]])
        return name

    def _by_name(self, storage: Storage) -> str:
        path = starred(storage.name)
        while path:
            path = path.rpartition(".")[0]
            if path in self.known:
                return path
        return OUTSIDE


def by_module(held: list[Held]) -> list[ModuleShare]:
    """Bytes of modules, largest first: layers together, each with its direct parts (`model.layers.*.mlp`)."""
    found: dict[str, dict[str, int]] = {}
    for tensor in held:
        roles = found.setdefault(_outlined(tensor.module), {})
        roles[tensor.role] = roles.get(tensor.role, 0) + tensor.bytes
    shares = [ModuleShare(module, sum(roles.values()), roles) for module, roles in found.items()]
    return sorted(shares, key=lambda share: (-share.bytes, share.module))


def _outlined(module: str) -> str:
    """The path down to the first part below the layer, or its first two parts."""
    parts = module.split(".")
    depth = parts.index("*") + 2 if "*" in parts else 2
    return ".".join(parts[:depth])


def largest(held: list[Held], count: int = 10) -> list[Held]:
    """The first `count` of what `held_at_peak` found."""
    return held[:count]
