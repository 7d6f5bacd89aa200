"""A scheduling problem in plain numbers: tensors with bytes and roles, operators with inputs and outputs.

    {"tensors": [{"name": "x", "bytes": 4096, "role": "input"}, ...],
     "operators": [{"name": "conv", "inputs": ["x"], "outputs": ["y"]}, ...]}

An operator may say how long it computes, `"seconds": 2e-6`, or how much, `"flops": 4096`; only time asks for it. It may
say which inputs an output may overwrite, `"in_place": {"y": ["x"]}`; where it does not, any that is large enough.
Inputs and parameters exist off-chip before anything runs; activations and outputs are made by one operator each;
outputs must end off-chip. Operators are listed in an order in which they may run; any topological order is as good.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf
from typing import Any, Literal, TypeAlias, get_args

__all__ = ["OFF_CHIP", "ROLES", "Operator", "Problem", "ProblemError", "Role", "Tensor"]

Role: TypeAlias = Literal["input", "parameter", "activation", "output"]
ROLES: tuple[str, ...] = get_args(Role)

OFF_CHIP = frozenset({"input", "parameter"})
"""Roles of the tensors that exist off-chip before the first step and that no operator makes."""

_LARGEST = 1 << 62  # sums of sizes stay within what a MILP solver's and NumPy's 64 bits hold


class ProblemError(ValueError):
    """A problem that no plan can solve or that is not well formed; names the field, the value and what is accepted."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """`bytes` (at least 1) of data with a name and a role."""

    name: str
    bytes: int
    role: Role = "activation"


@dataclass(frozen=True, slots=True)
class Operator:
    """Reads its inputs and makes its outputs; all of them lie in the scratchpad while it runs.

    `seconds` that it computes, its operands being there, or `flops` that it computes; None: not said. `in_place`: the
    (output, input) pairs of which the output may lie within the input's bytes, where plans may do that; None: all.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    seconds: float | None = None
    flops: float | None = None
    in_place: tuple[tuple[str, str], ...] | None = None

    def without(self, tensors: Collection[str]) -> Operator:
        """The operator that does not read these tensors."""
        inputs = tuple(name for name in self.inputs if name not in tensors)
        kept = None if self.in_place is None else tuple(pair for pair in self.in_place if pair[1] not in tensors)
        return replace(self, inputs=inputs, in_place=kept)


@dataclass(frozen=True)
class Problem:
    """Tensors and operators; `given_order` (positions in `operators`) is the order of the list where that is valid."""

    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]

    def __post_init__(self) -> None:
        _check(self.tensors, self.operators)
        self.given_order  # noqa: B018  raises for a cycle

    @cached_property
    def given_order(self) -> tuple[int, ...]:
        """Positions of the operators in a topological order: the list's own order, changed only where it must be."""
        maker = {name: i for i, operator in enumerate(self.operators) for name in operator.outputs}
        waiting = [{maker[name] for name in operator.inputs if name in maker} for operator in self.operators]
        readers: list[list[int]] = [[] for _ in self.operators]
        for i, needs in enumerate(waiting):
            for j in needs:
                readers[j].append(i)
        import heapq

        missing = [len(needs) for needs in waiting]
        ready = [i for i, count in enumerate(missing) if count == 0]
        heapq.heapify(ready)
        order: list[int] = []
        while ready:
            i = heapq.heappop(ready)
            order.append(i)
            for j in readers[i]:
                missing[j] -= 1
                if missing[j] == 0:
                    heapq.heappush(ready, j)
        if len(order) < len(self.operators):
            raise ProblemError(f"operators: {_cycle(self.operators, waiting, set(order))}")
        return tuple(order)

    @property
    def compulsory(self) -> int:
        """Bytes that any plan moves: each used input or parameter once, each output once."""
        read = {name for operator in self.operators for name in operator.inputs}
        return sum(t.bytes for t in self.tensors if t.role == "output" or (t.role in OFF_CHIP and t.name in read))

    @classmethod
    def from_dict(cls, data: Any) -> Problem:
        """Read the JSON format of this module's docstring, already parsed.

        Raises ProblemError naming the entry at fault.
        """
        if not isinstance(data, Mapping) or not {"tensors", "operators"} <= data.keys():
            raise ProblemError("problem: must be an object with the fields tensors and operators")
        unknown = sorted(data.keys() - {"tensors", "operators", "schema", "name"})
        if unknown:
            raise ProblemError(f"problem: unknown field {unknown[0]!r}; accepted: tensors, operators, schema, name")
        tensors = tuple(_tensor(i, entry) for i, entry in enumerate(_list(data, "tensors")))
        operators = tuple(_operator(i, entry) for i, entry in enumerate(_list(data, "operators")))
        return cls(tensors, operators)

    @classmethod
    def parts_from(cls, tensors: Any, operators: Any, where: str) -> tuple[tuple[Tensor, ...], tuple[Operator, ...]]:
        """Tensors and operators of the JSON format that are no problem by themselves: parts of an operator.

        Raises ProblemError, its message beginning with `where`.
        """
        try:
            listed = [_tensor(i, entry) for i, entry in enumerate(_list({"tensors": tensors}, "tensors"))]
            parts = [_operator(i, entry) for i, entry in enumerate(_list({"parts": operators}, "parts"))]
            for part in parts:
                _check_work(part)
        except ProblemError as error:
            raise ProblemError(f"{where}: {error}") from None
        for tensor in listed:
            if tensor.role != "activation":
                raise ProblemError(f"{where}: tensor {tensor.name!r} must be an activation, got {tensor.role!r}")
        return tuple(listed), tuple(parts)

    @classmethod
    def from_json(cls, text: str) -> Problem:
        """Read the JSON format; raises ProblemError naming the entry at fault, or the place where it is no JSON."""
        try:
            data = json.loads(text)
        except ValueError as error:
            raise ProblemError(f"problem: not JSON: {error}") from None
        except RecursionError:
            raise ProblemError("problem: not JSON of this format: nested too deep") from None
        return cls.from_dict(data)

    def to_json(self) -> str:
        """The problem in the JSON format; `from_json` gives it back unchanged."""
        tensors = [{"name": t.name, "bytes": t.bytes, "role": t.role} for t in self.tensors]
        operators = [
            {
                "name": o.name,
                "inputs": list(o.inputs),
                "outputs": list(o.outputs),
                **({"seconds": o.seconds} if o.seconds is not None else {}),
                **({"flops": o.flops} if o.flops is not None else {}),
                **({"in_place": _by_output(o.in_place)} if o.in_place is not None else {}),
            }
            for o in self.operators
        ]
        return json.dumps({"tensors": tensors, "operators": operators})


def _check(tensors: Sequence[Tensor], operators: Sequence[Operator]) -> None:
    """Refuse what is not well formed, apart from cycles."""
    by_name: dict[str, Tensor] = {}
    for tensor in tensors:
        if tensor.name in by_name:
            raise ProblemError(f"tensor {tensor.name!r}: is given twice")
        if isinstance(tensor.bytes, bool) or not isinstance(tensor.bytes, int) or not 1 <= tensor.bytes <= _LARGEST:
            raise ProblemError(
                f"tensor {tensor.name!r}: bytes must be a whole number from 1 to {_LARGEST:,}, got {tensor.bytes!r}"
            )
        if tensor.role not in ROLES:
            raise ProblemError(f"tensor {tensor.name!r}: role must be one of {', '.join(ROLES)}, got {tensor.role!r}")
        by_name[tensor.name] = tensor
    if sum(tensor.bytes for tensor in tensors) > _LARGEST:
        raise ProblemError(f"tensors: their bytes add up to more than {_LARGEST}")
    if not operators:
        raise ProblemError("operators: there must be at least one")
    maker: dict[str, str] = {}
    names: set[str] = set()
    for operator in operators:
        if operator.name in names:
            raise ProblemError(f"operator {operator.name!r}: is given twice")
        names.add(operator.name)
        _check_work(operator)
        _check_in_place(operator)
        for name in (*operator.inputs, *operator.outputs):
            if name not in by_name:
                raise ProblemError(f"operator {operator.name!r}: tensor {name!r} is not among the tensors")
        for name in operator.outputs:
            if by_name[name].role in OFF_CHIP:
                raise ProblemError(
                    f"operator {operator.name!r}: makes {name!r}, whose role {by_name[name].role} says that it exists "
                    "before anything runs; accepted for what is made: activation, output"
                )
            if name in maker:
                raise ProblemError(f"tensor {name!r}: has two producers, {maker[name]!r} and {operator.name!r}")
            maker[name] = operator.name
    for operator in operators:
        for name in operator.inputs:
            if name not in maker and by_name[name].role not in OFF_CHIP:
                raise ProblemError(
                    f"operator {operator.name!r}: reads {name!r}, an {by_name[name].role} that nobody makes"
                )
            if maker.get(name) == operator.name:
                raise ProblemError(f"operator {operator.name!r}: reads {name!r}, which it makes itself (a cycle)")
    for tensor in tensors:
        if tensor.role == "output" and tensor.name not in maker:
            raise ProblemError(f"tensor {tensor.name!r}: an output that nobody makes")


def _check_work(operator: Operator) -> None:
    for field, value in (("seconds", operator.seconds), ("flops", operator.flops)):
        number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < inf
        if value is not None and not number:
            raise ProblemError(f"operator {operator.name!r}: {field} must be a finite number from 0 on, got {value!r}")
    if operator.seconds is not None and operator.flops is not None:
        raise ProblemError(f"operator {operator.name!r}: gives seconds and flops; accepted: one of them")


def _check_in_place(operator: Operator) -> None:
    for made, read in operator.in_place or ():
        if made not in operator.outputs or read not in operator.inputs:
            what, name = ("output", made) if made not in operator.outputs else ("input", read)
            raise ProblemError(f"operator {operator.name!r}: in_place: {name!r} is not an {what} of it")


def _by_output(pairs: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for made, read in pairs:
        found.setdefault(made, []).append(read)
    return found


def _cycle(operators: Sequence[Operator], needs: Sequence[set[int]], done: set[int]) -> str:
    """One cycle among the operators that never became ready, in words."""
    at = next(i for i in range(len(operators)) if i not in done)
    path: list[int] = []
    while at not in path:
        path.append(at)
        at = min(j for j in needs[at] if j not in done)
    loop = [*path[path.index(at) :], at]
    return "a cycle: " + " needs ".join(repr(operators[i].name) for i in loop)


def _list(data: Mapping[str, Any], field: str) -> list[Any]:
    if not isinstance(data[field], list):
        raise ProblemError(f"{field}: must be a list, got {type(data[field]).__name__}")
    return list(data[field])


def _name(where: str, entry: Any) -> str:
    if not isinstance(entry, Mapping):
        raise ProblemError(f"{where}: must be an object, got {type(entry).__name__}")
    if not isinstance(entry.get("name"), str) or not entry["name"]:
        raise ProblemError(f"{where}: name must be a text, got {entry.get('name')!r}")
    return str(entry["name"])


def _only(where: str, entry: Mapping[str, Any], accepted: set[str]) -> None:
    unknown = sorted(str(key) for key in entry if key not in accepted)
    if unknown:
        raise ProblemError(f"{where}: unknown field {unknown[0]!r}; accepted: {', '.join(sorted(accepted))}")


def _tensor(position: int, entry: Any) -> Tensor:
    name = _name(f"tensors[{position}]", entry)
    where = f"tensor {name!r}"
    _only(where, entry, {"name", "bytes", "role"})
    if "bytes" not in entry:
        raise ProblemError(f"{where}: bytes is missing")
    size = entry["bytes"]
    if isinstance(size, float) and size.is_integer():
        size = int(size)
    role = entry.get("role", "activation")
    if not isinstance(role, str):
        raise ProblemError(f"{where}: role must be one of {', '.join(ROLES)}, got {role!r}")
    return Tensor(name, size, role)  # type: ignore[arg-type]  # checked by Problem


def _operator(position: int, entry: Any) -> Operator:
    name = _name(f"operators[{position}]", entry)
    where = f"operator {name!r}"
    _only(where, entry, {"name", "inputs", "outputs", "seconds", "flops", "in_place"})
    sides: list[tuple[str, ...]] = []
    for side in ("inputs", "outputs"):
        given = entry.get(side, [])
        if not isinstance(given, list) or not all(isinstance(tensor, str) for tensor in given):
            raise ProblemError(f"{where}: {side} must be a list of tensor names, got {given!r}")
        sides.append(tuple(dict.fromkeys(given)) if side == "inputs" else tuple(given))
    return Operator(
        name, sides[0], sides[1], entry.get("seconds"), entry.get("flops"), _pairs(where, entry.get("in_place"))
    )


def _pairs(where: str, given: Any) -> tuple[tuple[str, str], ...] | None:
    """(output, input) pairs of the field in_place."""
    if given is None:
        return None
    lists = isinstance(given, Mapping) and all(isinstance(listed, list) for listed in given.values())
    if not lists or not all(isinstance(name, str) for listed in given.values() for name in listed):
        raise ProblemError(f'{where}: in_place must be like {{"output": ["input"]}}, got {given!r}')
    return tuple((made, read) for made, listed in given.items() for read in dict.fromkeys(listed))
