"""`torch.compile` in a program that is captured: what it wraps runs as it is, kernel by kernel."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch

__all__ = ["NOTE", "plain", "without_compilation"]

NOTE = (
    "torch.compile is not simulated: the program is captured as eager PyTorch runs it, which needs at least as many "
    "kernels and, as a rule, more memory"
)


def plain(module: Any, notes: list[str]) -> Any:
    """The module that `torch.compile` wrapped, or the module itself."""
    inner = module.__dict__.get("_modules", {}).get("_orig_mod") if isinstance(module, torch.nn.Module) else None
    if inner is None or type(module).__name__ != "OptimizedModule":
        return module
    _say(notes)
    return inner


def _say(notes: list[str]) -> None:
    if NOTE not in notes:
        notes.append(NOTE)


@contextmanager
def without_compilation(notes: list[str]) -> Iterator[None]:
    """`torch.compile` and `nn.Module.compile` hand back what they are given; what was compiled before runs eagerly."""

    def unchanged(model: Any = None, **options: Any) -> Any:
        _say(notes)
        given: Callable[[Any], Any] = lambda function: function  # noqa: E731
        return given if model is None else model

    def in_place(self: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
        _say(notes)

    with ExitStack() as stack:
        stack.enter_context(patch.object(torch, "compile", unchanged))
        stack.enter_context(patch.object(torch.nn.Module, "compile", in_place))
        dynamo: Any = sys.modules.get("torch._dynamo.config")
        if dynamo is not None:
            stack.enter_context(dynamo.patch(disable=True))
        yield
