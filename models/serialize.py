"""Graphs as versioned JSON, and back, unchanged (`peakline.graph/1`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np

from peakline.models.dims import Dim, as_dim
from peakline.models.dtypes import dtype
from peakline.models.graph import Block, Carry, Graph, GraphError, Operator, Tensor
from peakline.models.operators import operator_type

__all__ = ["SCHEMA", "graph_from_json", "graph_to_json"]

SCHEMA = "peakline.graph/1"

T = TypeVar("T")


def graph_to_json(graph: Graph) -> str:
    """Serialise; arrays of sizes become lists, defaults are left out."""
    return json.dumps(
        {
            "schema": SCHEMA,
            "name": graph.name,
            "workload": _plain(graph.workload),
            "notes": list(graph.notes),
            **({"previous": dict(graph.previous)} if graph.previous else {}),
            "tensors": [_tensor_out(t) for t in graph.tensors.values()],
            "blocks": [_block_out(b) for b in graph.blocks],
        },
        indent=1,
    )


def graph_from_json(text: str) -> Graph:
    """Read a graph and check it.

    Raises:
        GraphError: not JSON, another schema, a field missing or of the wrong type, or an inconsistent graph.
    """
    try:
        data = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise GraphError(f"not JSON: {error}") from None
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        found = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise GraphError(f"field 'schema' is {found!r}; accepted: {SCHEMA!r}")
    tensors: dict[str, Tensor] = {}
    for i, item in enumerate(_field(data, "tensors", list)):
        tensor = _tensor_in(_checked(item, dict, f"tensors[{i}]"))
        if tensor.name in tensors:
            raise GraphError(f"tensor {tensor.name!r} appears twice")
        tensors[tensor.name] = tensor
    blocks = [_checked(b, dict, f"blocks[{i}]") for i, b in enumerate(_field(data, "blocks", list))]
    graph = Graph(
        name=_field(data, "name", str),
        tensors=tensors,
        blocks=tuple(map(_block_in, blocks)),
        workload={k: _value_in(v) for k, v in _field(data, "workload", dict, {}).items()},
        notes=_names(data, "notes", []),
        previous={
            old: _checked(new, str, f"every value of 'previous' ({old!r})")
            for old, new in _field(data, "previous", dict, {}).items()
        },
    )
    graph.check()
    return graph


def _field(data: dict[str, Any], name: str, kind: type[T], default: Any = ...) -> T:
    """A field of an object, of the right type.

    Raises:
        GraphError: it is missing without a default, or of another type.
    """
    if name not in data and default is ...:
        where = f" of {data['name']!r}" if "name" in data else ""
        raise GraphError(f"field {name!r}{where} is missing")
    value = data.get(name, default)
    return _checked(value, kind, f"field {name!r}" + (f" of {data['name']!r}" if "name" in data else ""))


def _checked(value: Any, kind: type[T], where: str) -> T:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise GraphError(f"{where} must be a JSON {_JSON[kind]}, not {str(value)[:40]!r}")
    return value


_JSON: dict[type, str] = {dict: "object", list: "array", str: "string", int: "integer", bool: "boolean"}


def _names(data: dict[str, Any], field: str, default: Any = ...) -> tuple[str, ...]:
    return tuple([_checked(item, str, f"every item of {field!r}") for item in _field(data, field, list, default)])


def _dim_out(value: Dim) -> Any:
    return {"sizes": value.tolist()} if isinstance(value, np.ndarray) else value


def _dim_in(value: Any) -> Dim:
    sizes = value.get("sizes") if isinstance(value, dict) else value
    try:
        if isinstance(value, int) or (isinstance(value, dict) and isinstance(sizes, list)):
            return as_dim(sizes)
    except (TypeError, ValueError, OverflowError):
        pass
    raise GraphError(f"a dimension must be an integer or {{'sizes': [integers]}}, not {str(value)[:40]}")


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return _dim_out(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def _value_in(value: Any) -> Any:
    if isinstance(value, dict):
        return _dim_in(value) if set(value) == {"sizes"} else {k: _value_in(v) for k, v in value.items()}
    if isinstance(value, list):
        return tuple(_value_in(v) for v in value)
    return value


def _tensor_out(tensor: Tensor) -> dict[str, Any]:
    out: dict[str, Any] = {
        "name": tensor.name,
        "shape": [_dim_out(d) for d in tensor.shape],
        "dtype": tensor.dtype.name,
        "role": tensor.role,
    }
    if tensor.family:
        out["family"] = tensor.family
    if tensor.storage is not None:
        out["storage"] = tensor.storage
    if tensor.trainable:
        out["trainable"] = True
    if tensor.bytes_override is not None:
        out["bytes"] = _dim_out(tensor.bytes_override)
    return out


def _tensor_in(data: dict[str, Any]) -> Tensor:
    name = _field(data, "name", str)
    try:
        kind = dtype(_field(data, "dtype", str))
    except ValueError as error:
        raise GraphError(f"tensor {name!r}: {error}") from None
    return Tensor(
        name=name,
        shape=tuple([_dim_in(d) for d in _field(data, "shape", list)]),
        dtype=kind,
        role=_field(data, "role", str),  # type: ignore[arg-type]  # `Graph.check` looks at it
        family=_field(data, "family", str) if "family" in data else None,
        storage=_field(data, "storage", str) if "storage" in data else None,
        trainable=_field(data, "trainable", bool, False),
        bytes_override=_dim_in(data["bytes"]) if "bytes" in data else None,
    )


def _block_out(block: Block) -> dict[str, Any]:
    out: dict[str, Any] = {"name": block.name, "repeat": block.repeat}
    if block.family:
        out |= {"family": block.family, "reverse": block.reverse}
    if block.carries:
        out["carries"] = {n: [c.initial, c.following] for n, c in block.carries.items()}
    if block.times != 1:
        out["times"] = block.times
    out["operators"] = [_operator_out(o) for o in block.operators]
    return out


def _block_in(data: dict[str, Any]) -> Block:
    carries = {}
    for port in _field(data, "carries", dict, {}):
        pair = _names(data["carries"], port)
        if len(pair) != 2:
            raise GraphError(f"carry {port!r} must be [initial, following], not {list(pair)}")
        carries[port] = Carry(*pair)
    operators = _field(data, "operators", list)
    return Block(
        name=_field(data, "name", str),
        operators=tuple([_operator_in(_checked(o, dict, "every item of 'operators'")) for o in operators]),
        repeat=_field(data, "repeat", int, 1),
        family=_field(data, "family", str) if "family" in data else None,
        reverse=_field(data, "reverse", bool, False),
        carries=MappingProxyType(carries),
        times=_field(data, "times", int, 1),
    )


def _operator_out(operator: Operator) -> dict[str, Any]:
    out: dict[str, Any] = {
        "name": operator.name,
        "type": operator.type,
        "inputs": list(operator.inputs),
        "outputs": list(operator.outputs),
        "phase": operator.phase,
    }
    if operator.module:
        out["module"] = operator.module
    if operator.attributes:
        out["attributes"] = _plain(operator.attributes)
    return out


def _operator_in(data: dict[str, Any]) -> Operator:
    name, kind = _field(data, "name", str), _field(data, "type", str)
    try:
        operator_type(kind)
    except ValueError as error:
        raise GraphError(f"operator {name!r}: {error}") from None
    return Operator(
        name=name,
        type=kind,
        inputs=_names(data, "inputs"),
        outputs=_names(data, "outputs"),
        attributes=MappingProxyType({k: _value_in(v) for k, v in _field(data, "attributes", dict, {}).items()}),
        phase=_field(data, "phase", str, "forward"),  # type: ignore[arg-type]  # `Graph.check` looks at it
        module=_field(data, "module", str, ""),
    )
