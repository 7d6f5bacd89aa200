"""Device files: YAML read safely, every fault found in one pass and named with its field, value and line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from peakline.hardware.faults import DeviceFileError, Fault, pydantic_faults
from peakline.hardware.resolve import resolve
from peakline.hardware.schema import SCHEMA, Device

__all__ = ["MAX_BYTES", "device_from_json", "device_from_tree", "read_device", "shared_sources"]

MAX_BYTES = 2**20
MAX_DEPTH = 500
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_device(path: Path) -> Device:
    """The device a YAML file describes.

    Raises:
        DeviceFileError: naming the file and every fault in it.
    """
    tree, lines = _read_yaml(path)
    return device_from_tree(tree, origin=str(path), lines=lines)


def device_from_tree(
    tree: Mapping[str, Any], *, origin: str, lines: Mapping[tuple[str, ...], int] | None = None, si: bool = False
) -> Device:
    """The device that a mapping as written in a file describes; `si` lets bare numbers stand for SI units.

    Raises:
        DeviceFileError: naming `origin` and every fault.
    """
    resolved, faults = resolve(tree, shared_sources(), si=si)
    try:
        built = Device.of(tree, resolved, si=si)
    except ValidationError as error:
        faults += pydantic_faults(error, Device)
    if faults:
        located = [fault.at(lines or {}) for fault in faults]
        raise DeviceFileError(origin, sorted(located, key=lambda f: f.line or 0))
    return built


def device_from_json(text: str) -> Device:
    """The device that `Device.to_json` wrote. Raises DeviceFileError."""
    try:
        tree = json.loads(text)
    except json.JSONDecodeError as error:
        raise DeviceFileError("JSON", [Fault((), None, f"is not JSON: {error}")]) from None
    if not isinstance(tree, dict):
        raise DeviceFileError("JSON", [Fault((), None, f"is a {type(tree).__name__}, not a device")])
    return device_from_tree(tree, origin=str(tree.get("name", "JSON")), si=True)


@cache
def shared_sources() -> dict[str, str]:
    """Citations that any device file may use by their short names, from `devices/sources.yaml`."""
    tree, _ = _read_yaml(Path(__file__).parent / "devices" / "sources.yaml")
    return {str(key): str(text) for key, text in tree.items()}


# --- YAML ---------------------------------------------------------------------------------------------------------


def _read_yaml(path: Path) -> tuple[dict[str, Any], dict[tuple[str, ...], int]]:
    """The mapping in a YAML file and the line of each of its fields."""
    text = _read_text(path)
    try:
        if sum(map(text.count, ("[", "{", "- ", "? "))) > MAX_DEPTH:
            _refuse_depth(text)
        root = yaml.compose(text, Loader=_Loader)
        reader = _Nodes()
        tree = reader.value(root, ()) if root is not None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = mark.line + 1 if mark is not None else None
        problem = f"is not YAML: {' '.join(p for p in (error.context, error.problem) if p)}"
        raise DeviceFileError(str(path), [Fault((), None, problem, line)]) from None
    except (yaml.YAMLError, RecursionError) as error:
        raise DeviceFileError(str(path), [Fault((), None, f"is not YAML: {' '.join(str(error).split())}")]) from None
    if tree is None:
        raise DeviceFileError(str(path), [Fault((), None, f"is empty; a device file starts with 'schema: {SCHEMA}'")])
    if not isinstance(tree, dict):
        what = {"list": "a list", "str": "a text"}.get(type(tree).__name__, f"a {type(tree).__name__}")
        raise DeviceFileError(str(path), [Fault((), None, f"holds {what}; a device file is a mapping of fields")])
    if reader.faults:
        raise DeviceFileError(str(path), reader.faults)
    return tree, reader.lines


def _refuse_depth(text: str) -> None:
    """Raise YAMLError for nesting that would exhaust the C stack of libyaml's composer, which does not check it."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise yaml.YAMLError(f"nested more than {MAX_DEPTH} deep")


def _read_text(path: Path) -> str:
    if path.is_dir():
        raise DeviceFileError(str(path), [Fault((), None, "is a directory; a device is one YAML file")])
    if not path.exists():
        raise DeviceFileError(str(path), [Fault((), None, "does not exist")])
    if not path.is_file():
        raise DeviceFileError(str(path), [Fault((), None, "is not a regular file")])
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DeviceFileError(str(path), [Fault((), None, f"cannot be read: {error.strerror}")]) from None
    if len(data) > MAX_BYTES:
        raise DeviceFileError(str(path), [Fault((), None, f"is larger than {MAX_BYTES} bytes: no device file is")])
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise DeviceFileError(str(path), [Fault((), None, "is not text in UTF-8 (a binary file?)")])
    return text


@dataclass
class _Nodes:
    """Turns YAML nodes into plain values: no tags, no aliases (one line could expand without end), no repeated keys."""

    def __post_init__(self) -> None:
        self.lines: dict[tuple[str, ...], int] = {}
        self.faults: list[Fault] = []
        self._seen: set[int] = set()

    def value(self, node: yaml.Node, path: tuple[str, ...]) -> Any:
        line = node.start_mark.line + 1
        self.lines.setdefault(path, line)
        if id(node) in self._seen:
            self.faults.append(Fault(path, None, "is a YAML alias; write the value out", line))
            return None
        self._seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(child, (*path, str(i))) for i, child in enumerate(node.value)]
        return self._scalar(node, path, line)

    def _mapping(self, node: yaml.MappingNode, path: tuple[str, ...]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            line = key_node.start_mark.line + 1
            if key in out:
                self.faults.append(
                    Fault((*path, key), None, f"is given twice, first on line {self.lines[*path, key]}", line)
                )
                continue
            self.lines[*path, key] = line
            out[key] = self.value(value_node, (*path, key))
        return out

    def _scalar(self, node: yaml.Node, path: tuple[str, ...], line: int) -> Any:
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        text: str = node.value
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() in ("yes", "true", "on")
        if kind in ("int", "float"):
            return _number(text)
        if kind in ("str", "timestamp"):
            return text
        self.faults.append(Fault(path, text, f"has the YAML tag {node.tag!r}; plain values only", line))
        return None


def _number(text: str) -> int | float | str:
    """YAML 1.1's numbers in decimal; its octal, hexadecimal and base-60 forms stay text."""
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return text
