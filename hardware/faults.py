"""What is wrong with a device, said once for each fault: where, what was found, what is accepted."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

__all__ = ["DeviceFileError", "Fault", "nearest", "pydantic_faults", "submodel"]


@dataclass(frozen=True)
class Fault:
    """One fault: the path of the field, the value found, the problem, and the line in the file."""

    path: tuple[str, ...]
    value: Any
    problem: str
    line: int | None = None

    def at(self, lines: Mapping[tuple[str, ...], int]) -> Fault:
        """This fault with the line of its field, or of the nearest enclosing field that has one."""
        if self.line is not None:
            return self
        found = (lines[self.path[:n]] for n in range(len(self.path), -1, -1) if self.path[:n] in lines)
        return replace(self, line=next(found, None))

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line is not None else ""
        return f"{where}{'.'.join(self.path)}{': ' if self.path else ''}{self.problem}"


class DeviceFileError(ValueError):
    """A device description that does not hold together; `faults` has every fault found, not only the first."""

    def __init__(self, origin: str, faults: Iterable[Fault]) -> None:
        self.origin = origin
        self.faults = list(faults)
        if len(self.faults) == 1:
            super().__init__(f"{origin}: {self.faults[0]}")
        else:
            super().__init__("\n  ".join([f"{origin}: {len(self.faults)} faults", *map(str, self.faults)]))


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` with the closest of `known`, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def pydantic_faults(error: ValidationError, model: type[BaseModel]) -> list[Fault]:
    """Pydantic's errors in the words of the file."""
    return [_fault(dict(entry), model) for entry in error.errors()]


def _fault(entry: dict[str, Any], model: type[BaseModel]) -> Fault:
    path = tuple(str(part) for part in entry["loc"])
    kind, value, context = entry["type"], entry.get("input"), entry.get("ctx", {})
    if kind == "missing":
        return Fault(path, None, "is required")
    if kind == "extra_forbidden":
        known = _accepted(model, path[:-1])
        return Fault(path, value, f"is not a field here{nearest(path[-1], known)} accepted: {', '.join(known)}")
    if kind == "value_error":
        message = str(context["error"])
        if not path and ":" in message:  # a check of the whole device names its field first
            field, message = message.split(": ", 1)
            path = (field,)
        return Fault(path, value, message)
    if kind in ("greater_than_equal", "greater_than"):
        least = context.get("ge", context.get("gt"))
        small = isinstance(value, (int, float)) and value < 0
        return Fault(
            path, value, f"{value!r} is {'negative' if small else f'below {least}' if least else 'not positive'}"
        )
    if kind == "less_than_equal":
        return Fault(path, value, f"{value!r} is above {context['le']}")
    if kind == "model_type":
        known = _accepted(model, path)
        return Fault(path, value, f"{value!r} is not a mapping of fields; accepted: {', '.join(known)}")
    if kind == "literal_error":
        return Fault(path, value, f"{value!r} is unknown; accepted: {context['expected']}")
    said = entry["msg"].removeprefix("Input should be ")
    if "type" in kind or "parsing" in kind:
        return Fault(path, value, f"{value!r} is not {_plain(said)}")
    return Fault(path, value, f"{value!r}: {entry['msg']}")


def _plain(said: str) -> str:
    said = said.replace("a valid dictionary or instance of ", "a mapping of fields: ").replace("a valid ", "a ")
    return (
        said.replace("a dictionary", "a mapping of fields").split(", unable")[0].replace("a integer", "a whole number")
    )


def submodel(annotation: Any) -> type[BaseModel] | None:
    """The model inside `Model`, `Model | None` or `dict[str, Model]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := submodel(part)) is not None), None)


def _accepted(model: type[BaseModel], path: tuple[str, ...]) -> list[str]:
    """Field names accepted at `path` below `model`, as a file spells them."""
    current, inside_mapping = model, False
    for part in path:
        if inside_mapping:
            inside_mapping = False
            continue
        fields = {info.alias or name: info for name, info in current.model_fields.items()}
        if part not in fields:
            return []
        annotation = fields[part].annotation
        found = submodel(annotation)
        if found is None:
            return []
        inside_mapping = "dict[" in str(annotation)
        current = found
    hidden = {"cited", "notes"}
    names = [info.alias or name for name, info in current.model_fields.items() if name not in hidden]
    return [*names, "source", "note"] if "cited" in current.model_fields else names
