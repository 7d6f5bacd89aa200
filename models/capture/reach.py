"""The modules and optimizers that a step function uses: what its closure, globals, arguments and owner lead to."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator, Mapping
from typing import Any

import torch

__all__ = ["Reached", "reached"]

DEPTH = 5
"""Steps from the function to a module: its owner's attribute's element is three."""


class Reached:
    """Modules by the names they were found under, outermost ones only, and optimizers."""

    def __init__(self, modules: dict[str, torch.nn.Module], optimizers: list[torch.optim.Optimizer]) -> None:
        """What was found."""
        inside = {id(part) for root in modules.values() for part in root.modules() if part is not root}
        self.modules = {name: root for name, root in modules.items() if id(root) not in inside}
        self.optimizers = optimizers

    def prefix(self, name: str) -> str:
        """What to put before the paths of a module: its name, where there are several."""
        return name if len(self.modules) > 1 else ""


def reached(function: Any) -> Reached:
    """Look for modules and optimizers, breadth first."""
    modules: dict[str, torch.nn.Module] = {}
    optimizers: list[torch.optim.Optimizer] = []
    seen: set[int] = set()
    level: list[tuple[str, Any]] = [("step", function)]
    for _ in range(DEPTH):
        below: list[tuple[str, Any]] = []
        for name, thing in level:
            if id(thing) in seen:
                continue
            seen.add(id(thing))
            if isinstance(thing, torch.nn.Module):
                modules.setdefault(name, thing)
            elif isinstance(thing, torch.optim.Optimizer):
                optimizers.append(thing)
            else:
                below += _leads_to(name, thing)
        level = below
    return Reached(modules, optimizers)


def _leads_to(name: str, thing: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(thing, types.FunctionType):
        for variable, cell in zip(thing.__code__.co_freevars, thing.__closure__ or ()):
            try:
                yield variable, cell.cell_contents
            except ValueError:
                continue  # a variable not yet assigned
        for variable in thing.__code__.co_names:
            if variable in thing.__globals__:
                yield variable, thing.__globals__[variable]
        yield from (("default", value) for value in thing.__defaults__ or ())
    elif isinstance(thing, types.MethodType):
        yield "self", thing.__self__
        yield name, thing.__func__
    elif isinstance(thing, functools.partial):
        yield name, thing.func
        yield from (("argument", value) for value in thing.args)
        yield from thing.keywords.items()
    elif isinstance(thing, Mapping):
        yield from ((str(key), value) for key, value in list(thing.items())[:100])
    elif isinstance(thing, list | tuple):
        yield from ((f"{name}.{place}", value) for place, value in enumerate(thing[:100]))
    elif not isinstance(thing, type | types.ModuleType | torch.Tensor | str | bytes) and hasattr(thing, "__dict__"):
        yield from vars(thing).items()
