"""Numbers that a program only reports: `loss.item()` where the loss has no value.

Nearly every training loop logs its loss. Such a number may be added up, scaled and printed, and the larger or smaller
of it and another be taken (Adafactor's steps); as soon as a program decides something by it, it is refused with the
line that does.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor

from peakline.models.capture.known import Known

__all__ = ["Unseen", "reported"]


class Unseen(float):
    """A finite number that nobody knows: it can be calculated with, not compared."""

    def __new__(cls, value: float = 1.0) -> Unseen:
        """The value is a stand-in."""
        return super().__new__(cls, 1.0)

    def __hash__(self) -> int:
        return id(self)


def _calculated(self: Any, *others: Any) -> Unseen:
    return Unseen()


def _refused(self: Any, *others: Any) -> Any:
    raise DataDependentOutputException(torch.ops.aten._local_scalar_dense.default)


for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "pow", "rpow", "neg", "abs", "round"):
    setattr(Unseen, f"__{_name}__", _calculated)
for _name in ("lt", "le", "gt", "ge", "eq", "ne", "bool", "int", "trunc", "floor", "ceil", "floordiv", "mod"):
    setattr(Unseen, f"__{_name}__", _refused)


def _unseen_among(choose: Callable[..., Any]) -> Callable[..., Any]:
    """`max` or `min`, whose result nobody knows where one of the numbers is unknown."""

    @wraps(choose)
    def chosen(*values: Any, **options: Any) -> Any:
        if len(values) == 1:
            values = (list(values[0]),)
        found = any(type(value) is Unseen for value in (values if len(values) > 1 else values[0]))
        return Unseen() if found else choose(*values, **options)

    return chosen


@contextmanager
def reported(known: Known) -> Iterator[None]:
    """`.item()` of a floating-point tensor without a value gives `Unseen`, and such tensors can be printed."""
    item: Callable[..., Any] = torch.Tensor.item
    written: Callable[..., Any] = torch.Tensor.__format__

    def seen(self: torch.Tensor) -> Any:
        if isinstance(self, FakeTensor) and self.numel() == 1 and self.is_floating_point():
            return Unseen() if known.value(self) is None else item(self)
        return item(self)

    def formatted(self: torch.Tensor, specification: str) -> str:
        if isinstance(self, FakeTensor) and self.numel() == 1 and self.is_floating_point():
            return format(float.__add__(self.item(), 0.0), specification)
        return str(written(self, specification))

    with ExitStack() as stack:
        stack.enter_context(patch.object(torch.Tensor, "item", seen))
        for choose in (max, min):
            stack.enter_context(patch.object(builtins, choose.__name__, _unseen_among(choose)))
        stack.enter_context(patch.object(torch.Tensor, "__format__", formatted))
        yield
