"""Values that do not depend on weights or activations: masks, positions, counters.

Fake tensors have no values, yet a model may look at some to decide what to run (`if mask.all()`), and the answer
follows from the example inputs. Small tensors whose every operand is known are therefore computed beside the fake
ones; `.item()` and `nonzero` of them have answers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensor

from peakline.models.capture.sized import sized_by_values
from peakline.models.capture.views import schema_of, tensors_in

__all__ = ["Known", "is_small"]

LARGEST = 1 << 22
"""Elements of the largest integer or boolean tensor whose values are computed."""

LARGEST_FLOAT = 64
"""The same for floating-point tensors that come from outside: counters and settings, never data."""

LARGEST_DERIVED = 1 << 16
"""… and for those worked out from known values alone: a mask as it is added to scores. Also of integer ones that are
filled like another tensor."""

_aten = torch.ops.aten
_ITEM = _aten._local_scalar_dense.default
_FRESH = {
    getattr(getattr(_aten, name), overload)
    for name, overloads in {
        "arange": ("default", "start", "start_step"), "zeros": ("default",), "ones": ("default",),
        "full": ("default",), "scalar_tensor": ("default",), "lift_fresh": ("default",),
        "rand": ("default", "generator"),
        "randint": ("default", "low", "generator", "low_generator"), "eye": ("default", "m"), "linspace": ("default",),
        "randperm": ("default", "generator"), "_to_copy": ("default",),
    }.items()
    for overload in overloads
}  # fmt: skip

_OVERWRITTEN = {_aten.zeros.default, _aten.rand.default, _aten.rand.generator}
"""What others are added into, or nobody can have asked for."""

_ALIKE = {_aten.ones_like.default, _aten.zeros_like.default, _aten.full_like.default}
_NEW = {_aten.new_ones.default, _aten.new_zeros.default, _aten.new_full.default}
"""What is filled with a number has known values, whatever its example's are."""

_DRAWN = {getattr(_aten.random_, overload) for overload in ("default", "from", "to")}
"""Whole numbers drawn at random do not depend on what was there before: a seed (`torch.empty(()).random_().item()`)."""


class Known:
    """Runs operators on fake tensors, and beside them on the values that are known.

    Attributes:
        everything: compute every value, weights' and activations' too, whatever their size.
    """

    def __init__(self, *, everything: bool = False) -> None:
        """Nothing is known yet."""
        self.everything = everything
        self._stale: dict[int, torch.Tensor] = {}

    def worth(self, value: torch.Tensor) -> bool:
        """Whether the value of such a tensor is to be known."""
        return self.everything or is_small(value)

    def learn(self, fake: torch.Tensor, value: torch.Tensor) -> None:
        """From here on the value of `fake` is known."""
        if (self.everything or is_small(value, LARGEST_DERIVED)) and not isinstance(value, FakeTensor):
            fake._known = value  # type: ignore[attr-defined]

    def value(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """The tensor's value, if known; real tensors have their own."""
        if not isinstance(tensor, FakeTensor):
            return tensor if self.worth(tensor) else None
        found: torch.Tensor | None = tensor.__dict__.get("_known")
        if found is not None and self._stale and found.untyped_storage()._cdata in self._stale:
            return None
        return found

    def run(self, func: Any, args: Any, kwargs: Any, fake: Callable[..., Any] | None = None) -> Any:
        """The operator's result, a fake tensor with a value where it can be known; `fake` runs it on fake tensors."""
        if func in _DRAWN and isinstance(args[0], FakeTensor) and self.worth(args[0]):
            with torch._C._DisableTorchDispatch():
                drawn = torch.zeros(tuple(args[0].shape), dtype=args[0].dtype)
            self.learn(args[0], drawn)
        if not self._all_known(func, args, kwargs):
            self._forget(func, args, kwargs)
            try:
                result = func(*args, **kwargs) if fake is None else fake()
            except DynamicOutputShapeException:
                result = sized_by_values(func, args, self.value)
                if result is None:
                    raise
            answer = _taken_for_granted(func, args)
            if answer is not None and isinstance(result, FakeTensor) and self.worth(result):
                with torch._C._DisableTorchDispatch():
                    value = torch.full(tuple(result.shape), answer)
                self.learn(result, value)
            return result
        try:
            with torch._C._DisableTorchDispatch():
                operands = self._values(args) if func not in _ALIKE | _NEW else (_example(func, args[0]), *args[1:])
                values = func(*operands, **self._values(kwargs))
        except (NotImplementedError, RuntimeError):
            if not self.everything:
                raise
            return self._without_kernel(func, args, kwargs)
        if func is _ITEM:
            return values
        try:
            result = func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            result = _like(values)
        for made, value in zip(tensors_in(result), tensors_in(values)):
            if isinstance(made, FakeTensor):
                self.learn(made, value)
        return result

    def _without_kernel(self, func: Any, args: Any, kwargs: Any) -> Any:
        """An operator that only CUDA has: attention computed another way, what else it returns taken for zero."""
        result = func(*args, **kwargs)
        with torch._C._DisableTorchDispatch():
            made = [torch.zeros(tuple(t.shape), dtype=t.dtype) for t in tensors_in(result)]
            name = str(func)
            if "scaled_dot_product" in name and "backward" not in name:
                q, k, v = self._values(args[:3])
                named = {**dict(zip(schema_of(func).names, self._values(args))), **self._values(kwargs)}
                mask, causal = named.get("attn_bias"), bool(named.get("is_causal", False))
                made[0].copy_(torch._C._nn.scaled_dot_product_attention(q, k, v, mask, 0.0, causal))
        for fake, value in zip(tensors_in(result), made):
            if isinstance(fake, FakeTensor):
                self.learn(fake, value)
        return result

    def _all_known(self, func: Any, args: Any, kwargs: Any) -> bool:
        if self.everything and func in _ALIKE | _NEW:
            return True
        if func in _ALIKE | _NEW:
            size = args[0].shape if func in _ALIKE else args[1]
            kind = kwargs.get("dtype") or args[0].dtype
            return _count(size) <= (LARGEST_FLOAT if kind.is_floating_point or kind.is_complex else LARGEST_DERIVED)
        found = False
        for value in (*args, *kwargs.values()):
            for tensor in tensors_in(value):
                if self.value(tensor) is None:
                    return False
                found = True
        if found:
            return True
        if self.everything:
            return True
        if func not in _FRESH:
            return False
        kind = kwargs.get("dtype")
        size = args[0] if args and isinstance(args[0], list | tuple) else ()
        floating = kind.is_floating_point if isinstance(kind, torch.dtype) else func is not _aten.arange.default
        few = LARGEST_FLOAT if func in _OVERWRITTEN else LARGEST_DERIVED
        return _count(size) <= (few if floating else LARGEST)

    def _values(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self.value(value)
        if isinstance(value, list | tuple):
            return type(value)([self._values(v) for v in value])
        if isinstance(value, dict):
            return {name: self._values(v) for name, v in value.items()}
        return value

    def _forget(self, func: Any, args: Any, kwargs: Any) -> None:
        """A known tensor that is overwritten with something unknown is known no more, nor are its views."""
        schema = schema_of(func)
        if not schema.writes:
            return
        named = {**dict(zip(schema.names, args)), **kwargs}
        for name in schema.writes:
            for tensor in tensors_in(named.get(name)):
                value = self.value(tensor) if isinstance(tensor, FakeTensor) else None
                if value is not None:
                    self._stale[value.untyped_storage()._cdata] = value


def _taken_for_granted(func: Any, args: Any) -> bool | None:
    """The answer to a question after infinities and NaNs, as composite operators ask it: there are none; and to what
    only checks of arguments ask (`torch.distributions`): all are valid.

    aten/src/ATen/native/TensorCompare.cpp: `isinf` is |x| = ∞, `isfinite` x = x and |x| ≠ ∞, `isnan` x ≠ x.
    """
    if func is _aten._is_all_true.default:
        return True
    if func in (_aten.isnan.default, _aten.isinf.default):
        return False
    same = len(args) == 2 and (args[1] is args[0] or (isinstance(args[1], float) and args[1] == float("inf")))
    if func in (_aten.eq.Tensor, _aten.eq.Scalar, _aten.ne.Tensor, _aten.ne.Scalar) and same:
        equal = args[1] is args[0]
        return equal if func in (_aten.eq.Tensor, _aten.eq.Scalar) else not equal
    return None


def is_small(value: torch.Tensor, floats: int = LARGEST_FLOAT) -> bool:
    """Whether the value of such a tensor is worth knowing, floating-point ones up to so many elements."""
    return value.numel() <= (floats if value.is_floating_point() or value.is_complex() else LARGEST)


def _count(size: Any) -> int:
    count = 1
    for n in size:
        count *= int(n)
    return count


def _example(func: Any, tensor: torch.Tensor) -> torch.Tensor:
    """In the place of the tensor whose like is asked for: of the same format, and shape where that counts."""
    if func in _NEW:
        return torch.empty((), dtype=tensor.dtype)
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)


def _like(value: Any) -> Any:
    """A fake tensor of the same shape and dtype (fake mode is active)."""
    if isinstance(value, torch.Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)
    if isinstance(value, list | tuple):
        return type(value)([_like(v) for v in value])
    return value
