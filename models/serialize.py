"""Graphs as versioned JSON, and back, unchanged (`peakline.graph/1`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from peakline.models.dims import Dim
from peakline.models.dtypes import dtype
from peakline.models.graph import Block, Carry, Graph, GraphError, Operator, Tensor

__all__ = ["SCHEMA", "graph_from_json", "graph_to_json"]

SCHEMA = "peakline.graph/1"


def graph_to_json(graph: Graph) -> str:
    """Serialise; arrays of sizes become lists, defaults are left out."""
    return json.dumps(
        {
            "schema": SCHEMA,
            "name": graph.name,
            "workload": _plain(graph.workload),
            "notes": list(graph.notes),
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
    except json.JSONDecodeError as error:
        raise GraphError(f"not JSON: {error}") from None
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        found = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise GraphError(f"field 'schema' is {found!r}; accepted: {SCHEMA!r}")
    try:
        graph = Graph(
            name=str(data["name"]),
            tensors={t["name"]: _tensor_in(t) for t in data["tensors"]},
            blocks=tuple(_block_in(b) for b in data["blocks"]),
            workload={k: _value_in(v) for k, v in data.get("workload", {}).items()},
            notes=tuple(data.get("notes", ())),
        )
    except KeyError as error:
        raise GraphError(f"field {error.args[0]!r} is missing") from None
    except (TypeError, ValueError) as error:
        raise GraphError(str(error)) from None
    graph.check()
    return graph


def _dim_out(value: Dim) -> Any:
    return {"sizes": value.tolist()} if isinstance(value, np.ndarray) else value


def _dim_in(value: Any) -> Dim:
    if isinstance(value, dict):
        return np.asarray(value["sizes"], dtype=np.int64)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise GraphError(f"a dimension must be an integer, not {value!r}")


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
    return Tensor(
        name=data["name"],
        shape=tuple(_dim_in(d) for d in data["shape"]),
        dtype=dtype(data["dtype"]),
        role=data["role"],
        family=data.get("family"),
        storage=data.get("storage"),
        trainable=bool(data.get("trainable", False)),
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
    return Block(
        name=data["name"],
        operators=tuple(_operator_in(o) for o in data["operators"]),
        repeat=int(data.get("repeat", 1)),
        family=data.get("family"),
        reverse=bool(data.get("reverse", False)),
        carries=MappingProxyType({n: Carry(*c) for n, c in data.get("carries", {}).items()}),
        times=int(data.get("times", 1)),
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
    return Operator(
        name=data["name"],
        type=data["type"],
        inputs=tuple(data["inputs"]),
        outputs=tuple(data["outputs"]),
        attributes=MappingProxyType({k: _value_in(v) for k, v in data.get("attributes", {}).items()}),
        phase=data.get("phase", "forward"),
        module=data.get("module", ""),
    )
