"""What variables of a `forward` hold, found out before the first step: the forward pass once on fake tensors.

A plan lets a storage go after its last operator, but a list of skips or an argument may hold it for a while yet. The
rehearsal follows the module as the real pass will be followed (`iteration`), with tensors that have a shape and no
memory, and sees which storages outlive their planned time and are gone when the module returns: these may be emptied.
"""

from __future__ import annotations

import gc
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from peakline.execution.iteration import Iteration
from peakline.execution.script import Script
from peakline.execution.stores import Store, Stored, Ticket
from peakline.models.capture.around import as_without_fakes
from peakline.models.capture.fakes import Faker
from peakline.models.capture.known import Known

__all__ = ["rehearsed"]


def rehearsed(script: Script, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> set[int]:
    """Storages that variables hold beyond their planned time, and let go before the module returns.

    None are known where the pass cannot be rehearsed (control flow by values, a module that is not the plan's): the
    first step then finds them out. The module, its tensors and the random numbers are left as they were.
    """
    if not (script.again or script.moved) or any(p.device.type != "cpu" for p in module.parameters()):
        return set()
    try:
        return _forward(script, module, args, kwargs)
    except Exception:  # whatever it is, the step itself will meet it and say so
        return set()
    finally:
        gc.collect()  # fake tensors and their mode refer to each other, and some have values


def _forward(script: Script, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> set[int]:
    lingering: set[int] = set()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        mode, known = FakeTensorMode(allow_non_fake_inputs=True), Known()
        faker = Faker(mode, known)
        stack.enter_context(faker.restoring())
        stack.enter_context(mode)
        stack.enter_context(as_without_fakes())
        faker.module(module)
        given, named = faker.tree(args), faker.tree(kwargs)
        activations = {
            step: [action for action in actions if action.kind not in ("leave", "bring")]
            for step, actions in script.actions.items()
        }
        stores: dict[str, Store] = dict.fromkeys(script.moved.values(), _Nowhere())
        iteration = Iteration(replace(script, actions=activations), stores, lingering)
        stack.enter_context(_Knowing(known))
        stack.enter_context(_Rehearsing(iteration))
        stack.enter_context(saved_tensors_hooks(iteration.save, lambda saved: saved))
        stack.enter_context(torch.enable_grad())
        output = module(*given, **named)
        iteration.leave()
        del output
    return lingering


class _Rehearsing(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Shows the operators to the iteration."""

    def __init__(self, iteration: Iteration) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.iteration = iteration

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.iteration.busy or not self.iteration.recording or func.namespace in ("profiler", "prim"):
            return func(*args, **(kwargs or {}))
        return self.iteration.run(func, args, kwargs or {})


class _Knowing(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Computes what follows from the values of integer and boolean inputs beside the fake tensors."""

    def __init__(self, known: Known) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.known = known

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.known.run(func, args, kwargs or {})


class _There:
    """A copy that is done: there is nothing to copy."""

    ticket: Ticket

    def __init__(self) -> None:
        self.ticket = self

    def wait(self) -> None:
        return None

    def fetch(self) -> tuple[torch.Tensor, Ticket]:
        raise RuntimeError("a rehearsal has no backward pass")

    def into(self, target: torch.Tensor) -> Ticket:
        return self

    def free(self) -> None:
        return None


class _Nowhere:
    """A tier in which fakes vanish."""

    def put(self, source: torch.Tensor) -> Stored:
        return _There()

    def close(self) -> None:
        return None
