"""`nn.Module.to`, `.cuda`, `.half` on fake parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch
from weakref import ref

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

__all__ = ["modules_converted"]


@contextmanager
def modules_converted() -> Iterator[None]:
    """Modules whose parameters are fake are converted by replacing the parameters.

    `nn.Module._apply` swaps the contents of fake tensors, which fails for tensors that anything refers to weakly, as
    fake tensors always are. A parameter that nothing changes stays; tied parameters stay tied.
    """
    original = nn.Module._apply
    converted: dict[int, tuple[ref[Any], ref[Any]]] = {}

    def replacement(parameter: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        key = id(parameter)
        if key in converted and converted[key][0]() is parameter:
            known: Tensor | None = converted[key][1]()
            if known is not None:
                return known
        with torch.no_grad():
            changed = change(parameter)
        if changed is parameter:
            return parameter
        made = nn.Parameter(changed, parameter.requires_grad)
        if parameter.grad is not None:
            with torch.no_grad():
                made.grad = change(parameter.grad)
        converted[key] = (ref(parameter), ref(made))
        return made

    def apply(self: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        tensors = [*self._parameters.values(), *self._buffers.values()]
        if any(t is not None and not isinstance(t, FakeTensor) for t in tensors):
            return original(self, fn, recurse)  # type: ignore[no-any-return,no-untyped-call]
        if recurse:
            for module in self.children():
                module._apply(fn)  # type: ignore[no-untyped-call]
        for name, parameter in self._parameters.items():
            if parameter is not None:
                self._parameters[name] = replacement(parameter, fn)  # type: ignore[assignment]
        for name, buffer in self._buffers.items():
            if buffer is not None:
                self._buffers[name] = fn(buffer)
        return self

    with patch.object(nn.Module, "_apply", apply):
        yield
