"""Operators that may run in parts: alternatives of an operator, each its parts over slices of its tensors.

    {"name": "matmul", "inputs": ["x", "w"], "outputs": ["y"],
     "alternatives": [
       {"name": "columns/2",
        "split": {"w": [64, 64], "y": {"axis": "columns", "bytes": [8, 8]}},
        "tensors": [],
        "parts": [{"inputs": ["x", "w[0]"], "outputs": ["y[0]"]}, {"inputs": ["x", "w[1]"], "outputs": ["y[1]"]}]}]}

`split` cuts a tensor into slices of so many bytes along an axis (any name; "" if none is given), `w[0]` is the first of
them; `tensors` are activations of its own, which only its parts touch. The parts together read every input and make
every output. Whoever else touches a tensor that is cut touches all its slices. Where several of the alternatives taken
cut a tensor along one axis, it falls into the slices between all their cuts; along several axes, into the grid.

`Choices.expand` turns a choice into a plain problem: plans of it name the slices, `w[0:64]`, and the parts, `matmul/0`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise, product
from math import prod
from typing import Any

from peakline.solvers.problem import Operator, Problem, ProblemError, Tensor

__all__ = ["Alternative", "Choices", "Split"]


@dataclass(frozen=True, slots=True)
class Split:
    """Cuts `tensor` along `axis` into slices of `bytes` each; they add up to the tensor's."""

    tensor: str
    bytes: tuple[int, ...]
    axis: str = ""


@dataclass(frozen=True)
class Alternative:
    """One way to run an operator in parts; `parts` name slices `tensor[k]` beside whole tensors and own `tensors`."""

    name: str
    splits: tuple[Split, ...]
    parts: tuple[Operator, ...]
    tensors: tuple[Tensor, ...] = ()

    @property
    def slices(self) -> dict[str, tuple[Split, int]]:
        """What each name of a slice stands for."""
        return {f"{s.tensor}[{k}]": (s, k) for s in self.splits for k in range(len(s.bytes))}

    def largest_part(self, size: Mapping[str, int]) -> int:
        """Bytes of the largest working set of a part, sizes of whole tensors given."""
        own = {t.name: t.bytes for t in self.tensors}
        own |= {name: split.bytes[k] for name, (split, k) in self.slices.items()}
        return max(sum(own.get(n, size.get(n, 0)) for n in {*p.inputs, *p.outputs}) for p in self.parts)


@dataclass(frozen=True)
class Choices:
    """A problem and the alternatives of some of its operators; every operator may also run as it stands."""

    problem: Problem
    alternatives: Mapping[str, tuple[Alternative, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        operators = {operator.name: operator for operator in self.problem.operators}
        for name, listed in self.alternatives.items():
            if name not in operators:
                raise ProblemError(f"alternatives: {name!r} is not an operator of the problem")
            seen: set[str] = set()
            for alternative in listed:
                if alternative.name in seen:
                    raise ProblemError(f"operator {name!r}: alternative {alternative.name!r} is given twice")
                seen.add(alternative.name)
                _check(self.problem, operators[name], alternative)
                self.expand({name: alternative.name})

    def named(self, operator: str, name: str) -> Alternative:
        """The alternative of that name. Raises ProblemError naming those there are."""
        listed = self.alternatives.get(operator, ())
        for alternative in listed:
            if alternative.name == name:
                return alternative
        known = ", ".join(repr(a.name) for a in listed) or "none"
        raise ProblemError(f"operator {operator!r}: has no alternative {name!r}; there are {known}")

    def expand(self, choice: Mapping[str, str]) -> Problem:
        """The problem in which the operators named run in the parts of the alternative named.

        Raises ProblemError for an unknown operator or alternative, or if cuts along several axes do not meet in whole
        bytes.
        """
        taken = {operator: self.named(operator, name) for operator, name in choice.items()}
        if not taken:
            return self.problem
        return _Expansion(self.problem, taken).problem()

    @classmethod
    def from_dict(cls, data: Any) -> Choices:
        """Read a problem whose operators may have the field `alternatives`. Raises ProblemError naming the fault."""
        if not isinstance(data, Mapping) or not isinstance(data.get("operators"), list):
            return cls(Problem.from_dict(data))
        plain, given = [], {}
        for entry in data["operators"]:
            if isinstance(entry, Mapping) and "alternatives" in entry:
                given[entry.get("name")] = entry["alternatives"]
                entry = {key: value for key, value in entry.items() if key != "alternatives"}
            plain.append(entry)
        problem = Problem.from_dict({**data, "operators": plain})
        return cls(problem, {str(name): _alternatives(f"operator {name!r}", entry) for name, entry in given.items()})

    def to_json(self) -> str:
        """The problem in the JSON format; `from_dict` gives it back unchanged."""
        document = json.loads(self.problem.to_json())
        for entry in document["operators"]:
            if entry["name"] in self.alternatives:
                entry["alternatives"] = [_document(one) for one in self.alternatives[entry["name"]]]
        return json.dumps(document)


class _Expansion:
    """One choice, carried out."""

    def __init__(self, problem: Problem, taken: Mapping[str, Alternative]) -> None:
        self.whole, self.taken = problem, taken
        cuts: dict[str, dict[str, set[int]]] = {}
        for alternative in taken.values():
            for split in alternative.splits:
                at = cuts.setdefault(split.tensor, {}).setdefault(split.axis, {0})
                at.update(accumulate(split.bytes))
        self.cuts = {name: {axis: sorted(at) for axis, at in sorted(axes.items())} for name, axes in cuts.items()}

    def atoms(self, tensor: Tensor) -> list[Tensor]:
        """The slices of a tensor, itself if nobody cuts it."""
        axes = self.cuts.get(tensor.name)
        if axes is None:
            return [tensor]
        found = []
        for spans in product(*(list(pairwise(at)) for at in axes.values())):
            volume, scale = prod(high - low for low, high in spans), tensor.bytes ** (len(spans) - 1)
            if volume % scale:
                cut = " and ".join(repr(axis) for axis in axes)
                raise ProblemError(f"tensor {tensor.name!r}: its cuts along {cut} do not meet in whole bytes")
            found.append(replace(tensor, name=f"{tensor.name}[{_label(zip(axes, spans))}]", bytes=volume // scale))
        return found

    def names(self, name: str, split: Split | None = None, k: int = 0) -> list[str]:
        """The slices that a whole tensor, or slice k of a split of it, consists of."""
        axes = self.cuts.get(name)
        if axes is None:
            return [name]
        spans = {axis: list(pairwise(at)) for axis, at in axes.items()}
        if split is not None:
            low, high = sum(split.bytes[:k]), sum(split.bytes[: k + 1])
            spans[split.axis] = [span for span in spans[split.axis] if low <= span[0] and span[1] <= high]
        return [f"{name}[{_label(zip(axes, chosen))}]" for chosen in product(*spans.values())]

    def problem(self) -> Problem:
        tensors = [atom for tensor in self.whole.tensors for atom in self.atoms(tensor)]
        operators: list[Operator] = []
        for operator in self.whole.operators:
            if operator.name not in self.taken:
                operators.append(
                    replace(
                        operator,
                        inputs=tuple(n for name in operator.inputs for n in self.names(name)),
                        outputs=tuple(n for name in operator.outputs for n in self.names(name)),
                        in_place=self.whole_pairs(operator),
                    )
                )
                continue
            alternative = self.taken[operator.name]
            tensors += [replace(t, name=f"{operator.name}/{t.name}") for t in alternative.tensors]
            operators += self.parts(operator, alternative)
        return Problem(tuple(tensors), tuple(operators))

    def whole_pairs(self, operator: Operator) -> tuple[tuple[str, str], ...] | None:
        """What may lie in place, of tensors that are not cut."""
        if operator.in_place is None:
            return None
        return tuple(pair for pair in operator.in_place if all(self.names(name) == [name] for name in pair))

    def parts(self, operator: Operator, alternative: Alternative) -> list[Operator]:
        slices, own = alternative.slices, {t.name for t in alternative.tensors}

        def listed(names: Iterable[str]) -> tuple[str, ...]:
            found: list[str] = []
            for name in names:
                if name in own:
                    found.append(f"{operator.name}/{name}")
                elif name in slices:
                    split, k = slices[name]
                    found += self.names(split.tensor, split, k)
                else:
                    found += self.names(name)
            return tuple(dict.fromkeys(found))

        count = len(alternative.parts)
        said = any(part.seconds is not None or part.flops is not None for part in alternative.parts)
        return [
            Operator(
                f"{operator.name}/{part.name}",
                listed(part.inputs),
                listed(part.outputs),
                part.seconds if said or operator.seconds is None else operator.seconds / count,
                part.flops if said or operator.flops is None else operator.flops / count,
                in_place=None if operator.in_place is None else (),
            )
            for part in alternative.parts
        ]


def _label(entries: Iterable[tuple[str, tuple[int, int]]]) -> str:
    return ", ".join(f"{axis}{'=' if axis else ''}{low}:{high}" for axis, (low, high) in entries)


def _check(problem: Problem, operator: Operator, alternative: Alternative) -> None:
    """Refuse an alternative that does not do what its operator does."""
    where = f"operator {operator.name!r}, alternative {alternative.name!r}"
    size = {tensor.name: tensor.bytes for tensor in problem.tensors}
    operands = {*operator.inputs, *operator.outputs}
    own = {tensor.name for tensor in alternative.tensors}
    for split in alternative.splits:
        if split.tensor not in operands:
            raise ProblemError(f"{where}: splits {split.tensor!r}, which the operator does not touch")
        if any(part < 1 for part in split.bytes) or sum(split.bytes) != size[split.tensor]:
            raise ProblemError(
                f"{where}: the slices of {split.tensor!r} must have at least 1 byte each and {size[split.tensor]} "
                f"together, got {list(split.bytes)}"
            )
    if len({split.tensor for split in alternative.splits}) < len(alternative.splits):
        raise ProblemError(f"{where}: splits a tensor twice")
    slices = alternative.slices
    for clash in sorted((own | slices.keys()) & {*size, *(own & slices.keys())}):
        raise ProblemError(f"{where}: the name {clash!r} has two meanings")
    if not alternative.parts:
        raise ProblemError(f"{where}: there must be at least one part")
    read: set[str] = set()
    made: list[str] = []
    for part in alternative.parts:
        for name in (*part.inputs, *part.outputs):
            if name not in own and name not in slices and name not in operands:
                raise ProblemError(
                    f"{where}: part {part.name!r} touches {name!r}; accepted: tensors of the operator, their slices as "
                    "in 'w[0]', tensors of the alternative"
                )
        read.update(part.inputs)
        made += part.outputs
    for name in operator.inputs:
        _check_whole(where, name, alternative.splits, read, "reads")
    for name in operator.outputs:
        _check_whole(where, name, alternative.splits, set(made), "makes")
        parts = {split.tensor for split in alternative.splits}
        if name in parts and name in made:
            raise ProblemError(f"{where}: makes {name!r} whole and splits it; name its slices")
    for name in made:
        if name in operator.inputs or (name in slices and slices[name][0].tensor in operator.inputs):
            raise ProblemError(f"{where}: makes {name!r}, an input of the operator")
    if len(set(made)) < len(made):
        raise ProblemError(f"{where}: two parts make {next(n for n in made if made.count(n) > 1)!r}")


def _check_whole(where: str, name: str, splits: Sequence[Split], touched: set[str], does: str) -> None:
    """All of a tensor is touched: the whole, or each of its slices."""
    count = next((len(split.bytes) for split in splits if split.tensor == name), 0)
    missing = [f"{name}[{k}]" for k in range(count) if f"{name}[{k}]" not in touched]
    if name not in touched and (missing or not count):
        raise ProblemError(f"{where}: no part {does} {(missing or [name])[0]!r}")


def _alternatives(where: str, entries: Any) -> tuple[Alternative, ...]:
    if not isinstance(entries, list):
        raise ProblemError(f"{where}: alternatives must be a list, got {type(entries).__name__}")
    return tuple(_alternative(where, position, entry) for position, entry in enumerate(entries))


def _alternative(where: str, position: int, entry: Any) -> Alternative:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str) or not entry["name"]:
        raise ProblemError(f"{where}: alternatives[{position}] must be an object with a name")
    where = f"{where}, alternative {entry['name']!r}"
    unknown = sorted(str(key) for key in entry if key not in ("name", "split", "tensors", "parts"))
    if unknown:
        raise ProblemError(f"{where}: unknown field {unknown[0]!r}; accepted: name, parts, split, tensors")
    split, parts = entry.get("split", {}), entry.get("parts")
    if not isinstance(split, Mapping):
        raise ProblemError(f"{where}: split must give the slices' bytes by tensor, got {split!r}")
    if not isinstance(parts, list) or not all(isinstance(part, Mapping) for part in parts):
        raise ProblemError(f"{where}: parts must be a list of objects with inputs and outputs")
    splits = []
    for name, cut in split.items():
        axis, listed = (cut.get("axis", ""), cut.get("bytes")) if isinstance(cut, Mapping) else ("", cut)
        whole = isinstance(listed, list) and all(isinstance(b, int) and not isinstance(b, bool) for b in listed)
        if listed is None or not whole or not isinstance(axis, str):
            raise ProblemError(f"{where}: split of {name!r} must be a list of bytes, or {{axis, bytes}}, got {cut!r}")
        splits.append(Split(name, tuple(listed), axis))
    own = entry.get("tensors", [])
    # read as a problem of its own: the same faults are named in the same words
    read = Problem.parts_from(
        [{"role": "activation", **t} if isinstance(t, Mapping) else t for t in own] if isinstance(own, list) else own,
        [{"name": str(k), **part} for k, part in enumerate(parts)],
        where,
    )
    return Alternative(entry["name"], tuple(splits), read[1], read[0])


def _document(one: Alternative) -> dict[str, Any]:
    return {
        "name": one.name,
        "split": {s.tensor: {"axis": s.axis, "bytes": list(s.bytes)} if s.axis else list(s.bytes) for s in one.splits},
        **({"tensors": [{"name": t.name, "bytes": t.bytes} for t in one.tensors]} if one.tensors else {}),
        "parts": [
            {
                "name": p.name,
                "inputs": list(p.inputs),
                "outputs": list(p.outputs),
                **({"seconds": p.seconds} if p.seconds is not None else {}),
                **({"flops": p.flops} if p.flops is not None else {}),
            }
            for p in one.parts
        ],
    }
