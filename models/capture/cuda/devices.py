"""Devices named in a program: `cuda` means the fake CPU tensors that stand for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from peakline.models.capture.host import HOST

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
        if func in _MOVES:
            return _moved(func, args, kwargs)
        if kwargs:
            if "device" in kwargs and _is_cuda(kwargs["device"]):
                kwargs = {**kwargs, "device": "cpu"}
            if kwargs.get("pin_memory"):
                with HOST.memory():
                    return HOST.mark(func(*args, **{**kwargs, "pin_memory": False}))
        return func(*args, **kwargs)


_MOVES = {Tensor.to, Tensor.cuda, Tensor.cpu, Tensor.pin_memory}


def _moved(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A tensor taken to the host or back; one that is there already stays the same."""
    tensor, *rest = args
    named = [*rest, kwargs.get("device")]
    to_host = func in (Tensor.cpu, Tensor.pin_memory) or (
        func is Tensor.to and "cpu" in [n for n in named if isinstance(n, str)]
    )
    to_device = func is Tensor.cuda or any(isinstance(n, torch.device) or _is_cuda(n) for n in named)
    if func is Tensor.pin_memory and not HOST.holds(tensor):
        return tensor  # of the loader's batches, which stand for what is on the device
    kwargs = {name: _here(value) if name == "device" else value for name, value in kwargs.items()}

    def run() -> Any:
        return func(tensor, *map(_here, rest), **kwargs) if func is Tensor.to else tensor

    if to_host and not HOST.holds(tensor):
        with HOST.memory():
            made = run()
            return HOST.mark(tensor.clone() if made is tensor else made)
    if to_device and HOST.holds(tensor):
        made = run()
        return tensor.clone() if made is tensor else made
    return run()


@contextmanager
def devices_replaced() -> Iterator[None]:
    """The mode, which also holds while the autograd engine runs and forward passes are recomputed there.

    `Tensor.backward` leaves every mode that sees it, and the engine keeps the modes it was started with. Hooks of
    saved tensors run inside a call that has left them already.
    """
    mode = Devices()
    engine = torch.autograd._engine_run_backward  # type: ignore[attr-defined]

    def run(*args: Any, **kwargs: Any) -> Any:
        with mode:
            return engine(*args, **kwargs)

    hooks = torch.autograd.graph.saved_tensors_hooks
    original = hooks.__init__

    def within(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def called(value: Any) -> Any:
            with mode:
                return hook(value)

        return called

    def initialised(self: Any, pack_hook: Callable[[Any], Any], unpack_hook: Callable[[Any], Any]) -> None:
        original(self, within(pack_hook), within(unpack_hook))

    with (
        patch.object(torch.autograd, "_engine_run_backward", run),
        patch.object(hooks, "__init__", initialised),
        mode,
    ):
        yield
