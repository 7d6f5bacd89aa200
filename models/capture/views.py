"""From torch's objects to the plain data of a recording: tensors to views, schemas to names, values to values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from peakline.models.capture.calls import View
from peakline.models.dtypes import DType, dtype

__all__ = ["Schema", "plain_dtype", "schema_of", "tensors_in", "torch_dtype", "view_of"]

_OPAQUE = {
    torch.complex64: DType("complex64", 64, is_float=True, source="two fp32"),
    torch.complex128: DType("complex128", 128, is_float=True, source="two fp64"),
}
_DTYPES: dict[torch.dtype, DType] = dict(_OPAQUE)


def plain_dtype(kind: torch.dtype) -> DType:
    """The number format of a torch dtype; one that has no name here keeps torch's name and size."""
    found = _DTYPES.get(kind)
    if found is None:
        try:
            found = dtype(str(kind))
        except ValueError:
            name = str(kind).removeprefix("torch.")
            found = DType(name, kind.itemsize * 8, is_float=kind.is_floating_point, source="torch.dtype.itemsize")
        _DTYPES[kind] = found
    return found


def torch_dtype(kind: DType) -> torch.dtype:
    """The torch dtype that `plain_dtype` was given.

    Raises:
        ValueError: torch has no such format.
    """
    for known, plain in _DTYPES.items():
        if plain == kind:
            return known
    found = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}.get(kind.name)
    found = found or getattr(torch, kind.name, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"torch has no dtype {kind.name!r}")
    return found


def view_of(tensor: torch.Tensor, storage: int) -> View:
    """What an operator sees of storage number `storage` through `tensor`."""
    kind = _DTYPES.get(tensor.dtype) or plain_dtype(tensor.dtype)
    return View(storage, tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()), kind)


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Tensors of an operator's argument or result: itself, or those of a list (of lists)."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from tensors_in(one)


@dataclass(frozen=True, slots=True)
class Schema:
    """What a recording needs of an operator's schema.

    Attributes:
        op: name with overload, `aten.addmm.default`.
        names: of the arguments, in order.
        defaults: the arguments that have one, and its plain value.
        writes: names of the arguments the operator changes.
        is_view: results are looks at an argument, and nothing is computed.
        elementwise: one new result, an element of each operand for each of its own.
    """

    op: str
    names: tuple[str, ...]
    defaults: dict[str, Any]
    writes: frozenset[str]
    is_view: bool
    elementwise: bool


_KEEPS_LAYOUT = {torch.ops.aten.clone.default, torch.ops.aten._to_copy.default}
"""Tagged as elementwise, but not computed by `TensorIterator`'s rule for new results."""

_SCHEMAS: dict[Any, Schema] = {}


def schema_of(operator: Any) -> Schema:
    """The schema of an `OpOverload`, looked up once."""
    found = _SCHEMAS.get(operator)
    if found is None:
        arguments = operator._schema.arguments
        writes = frozenset(a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write)
        found = _SCHEMAS[operator] = Schema(
            str(operator),
            tuple(a.name for a in arguments),
            {a.name: plain_value(a.default_value) for a in arguments if a.has_default_value()},
            writes,
            operator.is_view,
            torch.Tag.pointwise in operator.tags and not writes and operator not in _KEEPS_LAYOUT,
        )
    return found


def plain_value(value: Any) -> Any:
    """An argument that holds no tensor, without torch's types."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.dtype):
        return plain_dtype(value)
    if isinstance(value, list | tuple):
        return tuple([plain_value(v) for v in value])
    return str(value)
