"""Where in the user's program a call happens: module, line, phase.

A forward call belongs to the module whose `forward` runs (global hooks of `torch.nn.Module`) and to the line that
asked for it (the innermost frame outside torch). A backward call belongs where its forward call did: autograd numbers
every node in order of creation, and the number of the node that runs says which forward call made it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any, NamedTuple

import torch

from peakline.models.graph import Phase

__all__ = ["Place", "Places"]

_TORCH = os.path.dirname(torch.__file__) + os.sep
_OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_DRIVER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "step.py")
_CONTEXTLIB = contextmanager.__code__.co_filename
_UPDATES = (_TORCH + "optim" + os.sep, _TORCH + os.path.join("nn", "utils", "clip_grad.py"))


class Place(NamedTuple):
    """Where a call comes from."""

    module: str
    line: str
    phase: Phase
    node: int
    """Number of the autograd node that runs; −1 outside of a backward pass."""
    engine: bool
    """Asked for by the autograd engine itself, not by Python code."""


class Places:
    """Keeps track of modules, autograd nodes and the optimizer while a step runs."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self.paths: dict[int, str] = {}
        self.stack: list[tuple[str, int]] = []
        self.by_node: dict[int, tuple[str, str]] = {}
        self.updating = 0
        self.last = ("", "")
        self._roots: list[torch.nn.Module] = []
        self._kinds: dict[CodeType, int] = {}
        self._files: dict[str, str] = {}

    def name(self, root: torch.nn.Module, prefix: str = "") -> None:
        """Learn the paths of the modules under `root`."""
        if any(r is root for r in self._roots):
            return
        self._roots.append(root)
        for path, module in root.named_modules():
            self.paths.setdefault(id(module), ".".join(p for p in (prefix, path) if p))

    # ---- hooks ----------------------------------------------------------------------------------------------------
    @contextmanager
    def watching(self, started: Any) -> Iterator[None]:
        """Follow modules and optimizers; `started(optimizer)` is called before each optimizer step."""
        from torch.nn.modules import module as modules
        from torch.optim import optimizer as optimizers

        def enter(module: torch.nn.Module, args: Any) -> None:
            if id(module) not in self.paths and not self.stack:
                self.name(module, "" if not self._roots else type(module).__name__.lower())
            outer = self.stack[-1][0] if self.stack else ""  # of a module that the model makes as it runs
            self.stack.append((self.paths.get(id(module), outer), torch._C._current_graph_task_id()))

        def leave(module: torch.nn.Module, args: Any, output: Any) -> None:
            if self.stack:
                self.stack.pop()

        def before(optimizer: Any, args: Any, kwargs: Any) -> None:
            self.updating += 1
            started(optimizer)

        def after(optimizer: Any, args: Any, kwargs: Any) -> None:
            self.updating -= 1

        hooks = [
            modules.register_module_forward_pre_hook(enter),
            modules.register_module_forward_hook(leave, always_call=True),
            optimizers.register_optimizer_step_pre_hook(before),
            optimizers.register_optimizer_step_post_hook(after),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def restart(self) -> None:
        """A new step begins: whatever an exception left open is closed."""
        self.stack.clear()
        self.by_node.clear()
        self.updating = 0

    # ---- the answer -----------------------------------------------------------------------------------------------
    def here(self, frame: FrameType) -> Place:
        """The place of the call that the Python frame `frame` (or the C++ code it called) makes."""
        task = torch._C._current_graph_task_id()
        if task < 0:
            line, update = self._line(frame)
            module = self.stack[-1][0] if self.stack else ""
            if torch.is_grad_enabled():
                self.by_node.setdefault(torch._C._autograd._get_sequence_nr() - 1, (module, line))
            return Place(module, line, "optimizer" if update or self.updating else "forward", -1, False)
        node = torch._C._current_autograd_node()
        number = node._sequence_nr() if node is not None else -1
        if torch.is_grad_enabled():
            line, _ = self._line(frame)
            inside = self.stack and self.stack[-1][1] == task
            module = self.stack[-1][0] if inside else self.by_node.get(number, self.last)[0]
            self.by_node.setdefault(torch._C._autograd._get_sequence_nr() - 1, (module, line))
            return Place(module, line, "recompute", number, False)
        if self.updating:
            line, _ = self._line(frame)
            return Place("", line, "optimizer", number, False)
        self.last = self.by_node.get(number, self.last)
        return Place(*self.last, "backward", number, frame.f_code is _ENGINE)

    def _line(self, frame: FrameType | None) -> tuple[str, bool]:
        """`file.py:12` of the innermost frame outside torch, and whether torch's optimizers lie between."""
        kinds, update = self._kinds, False
        while frame is not None:
            code = frame.f_code
            kind = kinds.get(code)
            if kind is None:
                kind = kinds[code] = _kind(code.co_filename)
            if kind == 3:
                return "", update
            if kind == 0:
                return f"{self._short(code.co_filename)}:{frame.f_lineno}", update
            update = update or kind == 2
            frame = frame.f_back
        return "", update

    def _short(self, path: str) -> str:
        found = self._files.get(path)
        if found is None:
            found = self._files[path] = shortened(path, [os.getcwd(), *sys.path])
        return found


def shortened(path: str, roots: Iterable[str]) -> str:
    """The path below the longest of the folders in `roots` that holds it."""
    folders = [os.path.abspath(root) + os.sep for root in roots if root]
    inside = [folder for folder in folders if path.startswith(folder)]
    return path[len(max(inside, key=len)) :] if inside else path


def _kind(path: str) -> int:
    """0: the user's or a model's code; 1: torch or this package; 2: torch's optimizers; 3: what runs the steps."""
    if path.startswith(_UPDATES):
        return 2
    if path == _DRIVER:
        return 3
    return int(path.startswith((_TORCH, _OWN)) or path == _CONTEXTLIB)


_ENGINE: CodeType = torch.autograd.graph._engine_run_backward.__code__
