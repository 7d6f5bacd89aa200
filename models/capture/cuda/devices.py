"""Devices named in a program: `cuda` means the fake CPU tensors that stand for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["Devices", "devices_replaced"]


def _is_cuda(value: Any) -> bool:
    if isinstance(value, torch.device):
        return value.type == "cuda"
    return isinstance(value, str) and (value == "cuda" or value.startswith("cuda:"))


def _here(value: Any) -> Any:
    return "cpu" if _is_cuda(value) else value


class Devices(TorchFunctionMode):
    """Replaces the device `cuda` in every call of torch, and keeps tensors where they are."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[Any], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.cuda or func is Tensor.pin_memory:
            return args[0]
        if func is Tensor.to:
            args = (args[0], *map(_here, args[1:]))
        if kwargs:
            if "device" in kwargs and _is_cuda(kwargs["device"]):
                kwargs = {**kwargs, "device": "cpu"}
            if kwargs.get("pin_memory"):
                kwargs = {**kwargs, "pin_memory": False}
        return func(*args, **kwargs)


@contextmanager
def devices_replaced() -> Iterator[None]:
    """The mode, which also holds while the autograd engine runs and forward passes are recomputed there.

    `Tensor.backward` leaves every mode that sees it, and the engine keeps the modes it was started with.
    """
    mode = Devices()
    engine = torch.autograd._engine_run_backward  # type: ignore[attr-defined]

    def run(*args: Any, **kwargs: Any) -> Any:
        with mode:
            return engine(*args, **kwargs)

    with patch.object(torch.autograd, "_engine_run_backward", run), mode:
        yield
