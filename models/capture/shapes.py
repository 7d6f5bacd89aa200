"""What an operator returns for operands of given shapes: worked out once, then remembered.

A model runs the same operators on the same shapes layer after layer and step after step; fake tensors work the result
out anew each time, or look it up by a key that costs as much. The recorder has the operands as plain views already.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager

from peakline.models.capture.calls import View
from peakline.models.capture.views import Schema, tensors_in

__all__ = ["Shapes"]

_STORAGE: Any = torch._C._storage_id  # type: ignore[attr-defined]
_SELF = object()
"""In the place of a result: the first operand itself, changed."""


class _Fresh(NamedTuple):
    """A result in memory of its own."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


@dataclass
class Shapes:
    """Runs operators on fake tensors of `mode`."""

    mode: FakeTensorMode
    _known: dict[Any, Any] = field(default_factory=dict)

    def __call__(self, func: Any, schema: Schema, seen: dict[str, Any], args: Any, kwargs: Any) -> Any:
        """The operator's result; `seen` are its arguments as plain values."""
        if schema.is_view:
            return self._view(func, args, kwargs)
        if torch.Tag.inplace_view in func.tags or not args:
            return func(*args, **kwargs)
        key = (func, tuple([_key(value) for value in seen.values()]))
        found = self._known.get(key, self)
        if found is not self and found is not _UNKNOWN:
            return self._made(found, args)
        result = func(*args, **kwargs)
        if found is self:
            self._known[key] = _described(result, args, kwargs)
        return result

    def _view(self, func: Any, args: Any, kwargs: Any) -> Any:
        """A look at memory: what the operator does to a tensor without memory is the whole of it."""
        first = args[0] if args else None
        if type(first) is not FakeTensor or first.constant is not None or kwargs:
            return func(*args, **kwargs)
        with in_kernel_invocation_manager(self.mode):
            plain = func(*args)
        if isinstance(plain, torch.Tensor):
            return FakeTensor(self.mode, plain, first.fake_device)
        return type(plain)([FakeTensor(self.mode, one, first.fake_device) for one in plain])

    def _made(self, found: Any, args: Any) -> Any:
        if isinstance(found, _Fresh):
            with in_kernel_invocation_manager(self.mode):
                plain = torch.empty_strided(found.shape, found.strides, dtype=found.dtype, device="meta")
            return FakeTensor(self.mode, plain, found.device)
        if found is _SELF:
            return args[0]
        if isinstance(found, list | tuple):
            return type(found)([self._made(one, args) for one in found])
        return None


_UNKNOWN = object()


def _described(result: Any, args: Any, kwargs: Any) -> Any:
    """How to make such a result again; `_UNKNOWN` where that takes more than its shape."""
    if result is None:
        return None
    if result is args[0]:
        return _SELF
    if type(result) in (list, tuple):
        parts = [_described(one, args, kwargs) for one in result]
        whole = any(part is _UNKNOWN or part is _SELF for part in parts) or _shared(result)
        return _UNKNOWN if whole else type(result)(parts)
    if not isinstance(result, FakeTensor) or type(result) is not FakeTensor or result.constant is not None:
        return _UNKNOWN
    operands = [*args, *kwargs.values()]
    memory = _STORAGE(result)
    if any(_STORAGE(t) == memory for value in operands for t in tensors_in(value)):
        return _UNKNOWN
    if result.is_conj() or result.is_neg() or result.layout is not torch.strided or result.storage_offset():
        return _UNKNOWN
    shape, strides = tuple(result.shape), result.stride()
    last = sum((n - 1) * stride for n, stride in zip(shape, strides)) + 1 if result.numel() else 0
    if result.untyped_storage().nbytes() != last * result.element_size():
        return _UNKNOWN
    return _Fresh(shape, strides, result.dtype, result.fake_device)


def _shared(results: Any) -> bool:
    made = [_STORAGE(t) for t in results if isinstance(t, torch.Tensor)]
    return len(set(made)) < len(made)


def _key(value: Any) -> Any:
    if isinstance(value, View):
        return (value.shape, value.strides, value.dtype.name)
    if isinstance(value, tuple):
        return tuple([_key(v) for v in value])
    return (type(value), value)  # 1, 1.0 and True are equal and mean different results
