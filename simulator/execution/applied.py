"""`plan.apply(module)`: the training loop stays as it is, and memory goes as planned."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from os import PathLike
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from peakline.execution.in_place import held_by_a_buffer
from peakline.execution.iteration import Handle, Iteration
from peakline.execution.optimizers import OffloadedOptimizer, check_members, offload_optimizer
from peakline.execution.packing import PackedMemory
from peakline.execution.parameters import Parameters
from peakline.execution.rehearsal import rehearsed
from peakline.execution.script import PACKED, Script, script_of
from peakline.execution.stores import Files, HostMemory, Store, checked_folder
from peakline.models.capture.views import plain_dtype, schema_of, tensors_in

if TYPE_CHECKING:
    from peakline.planning.plan import OffloadPlan

__all__ = ["Applied", "apply", "carry_out"]


def apply(
    plan: OffloadPlan,
    module: torch.nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    folder: str | PathLike[str] | None = None,
) -> Applied:
    """Carry a plan out in the module that it was captured from, from now until `remove()` or the end of a `with`.

        with plan.apply(module, optimizer, folder="/scratch"):
            for batch in batches:
                module(**batch).loss.backward()
                optimizer.step()
                optimizer.zero_grad()

    Losses and gradients are what they would be without: operators executed a second time see the same operands and
    the same random numbers, and leave no trace in the model's buffers. The exception is `quantise-activations`: a
    step's loss is the same, its gradients are those of activations rounded to fewer bits.

    Args:
        plan: of what `pk.capture(module, inputs, ...)` returned.
        module: the module, with the same parameters; its training loop's shapes must be the captured ones.
        optimizer: to be carried out in turns where the plan decided so.
        folder: where a plan with an `ssd` tier puts its files; they are removed at the end.

    Raises:
        ValueError: a plan of a built-in graph or of another model, a folder that is missing or cannot be written to.
            In the forward pass: an operator or a shape that is not the plan's, naming both.
    """
    return carry_out(script_of(plan), module, optimizer, folder=folder)


def carry_out(
    script: Script,
    module: torch.nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    folder: str | PathLike[str] | None = None,
) -> Applied:
    """The same of a plan's instructions, however they came here; see `apply`."""
    _check_arguments(script, module, optimizer)
    _check_parameters(script, module)
    tiers, states = set(script.moved.values()), script.states
    if states and optimizer is None:
        raise ValueError("optimizer: the plan moves optimizer states; pass the optimizer that holds them")
    if script.parameters and optimizer is None:
        raise ValueError("optimizer: the plan moves parameters; pass the optimizer that updates them")
    if optimizer is not None and (states or script.parameters):
        check_members(optimizer, module)
    if "ssd" in tiers | set(states.values()):
        if folder is None:
            raise ValueError("folder: the plan moves tensors to a drive; name a folder on it")
        checked_folder(folder)
    with ExitStack() as stack:  # what has begun ends, in turn, where something cannot begin
        device = next((p.device for p in module.parameters()), torch.device("cpu"))
        stores: dict[str, Store] = {}
        if "host" in tiers:
            stores["host"] = HostMemory(device)
        if "ssd" in tiers and folder is not None:
            stores["ssd"] = Files(folder)
        if PACKED in tiers and script.codec is not None:
            stores[PACKED] = PackedMemory(script.codec)
        for store in stores.values():
            stack.callback(store.close)
        turns = parameters = None
        if states and optimizer is not None:
            where = "ssd" if "ssd" in states.values() else "host"
            turns = offload_optimizer(
                optimizer, module, folder=folder if where == "ssd" else None, update=script.update,
                turns=script.turns, states=None if "*" in states else states, gradients=script.gradients, release=True,
            )  # fmt: skip
            stack.callback(turns.remove)
        if script.parameters and optimizer is not None:
            places = {key: stores[script.moved[key]] for key in script.parameters}
            parameters = Parameters(module, script.parameters, places)
            stack.callback(parameters.remove)
            if turns is not None:
                turns.parameters = parameters
            else:
                stack.callback(_around_steps(optimizer, parameters))
        return Applied(script, module, stores, stack.pop_all(), parameters, turns)


def _around_steps(optimizer: torch.optim.Optimizer, parameters: Parameters) -> Callable[[], None]:
    """Have the optimizer's parameters in for its step, and away after it; returns what ends that."""
    held = [p for group in optimizer.param_groups for p in group["params"]]
    hooks = [
        optimizer.register_step_pre_hook(lambda *_: parameters.bring(held)),
        optimizer.register_step_post_hook(lambda *_: parameters.send(held)),
    ]

    def end() -> None:
        for hook in hooks:
            hook.remove()

    return end


class Applied:
    """A plan at work; a context manager that ends it, as `remove()` does."""

    def __init__(
        self, script: Script, module: torch.nn.Module, stores: dict[str, Store], undo: ExitStack,
        parameters: Parameters | None = None, turns: OffloadedOptimizer | None = None,
    ) -> None:  # fmt: skip
        """Begin; `undo` ends what has begun beside."""
        self._turns = turns
        if turns is not None:
            turns.heard = True
        self.script, self.stores, self._undo, self._parameters = script, stores, undo, parameters
        self.module = weakref.ref(module)
        self.iteration: Iteration | None = None
        self._lingering: set[int] | None = None
        self._rehearsing = False
        self._hooks = [
            module.register_forward_pre_hook(self._enter, prepend=True, with_kwargs=True),
            module.register_forward_hook(self._leave, always_call=True),
        ]
        self._others = _at_work()
        self._others.begin(self)

    def remove(self) -> None:
        """End: the module is as it was before. Backward passes of forward passes that have run must be over."""
        if self not in self._others.plans:
            return
        self._others.end(self)
        for hook in self._hooks:
            hook.remove()
        self.iteration = None
        self._undo.close()

    def __enter__(self) -> Applied:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def bring_what_is_read(self, func: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Have in what an operator outside of the plan is about to read: parameters (a copy, an average), gradients
        (their norm, a sum over several backward passes)."""
        if self._parameters is None and self._turns is None:
            return
        schema = schema_of(func)
        if schema.is_view:
            return
        read = list(tensors_in([*args, *kwargs.values()]))
        if self._parameters is not None:
            self._parameters.ensure(read, to_change=bool(schema.writes))
        if self._turns is not None:
            self._turns.ensure(read)

    def __deepcopy__(self, memo: Any) -> Applied:
        """Of a copied module: a plan that has ended."""
        other = object.__new__(Applied)
        other.__dict__.update(self.__dict__, iteration=None, _hooks=[], _rehearsing=True, _parameters=None, _turns=None)
        return other

    def _enter(self, module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        if self._rehearsing:
            return
        if self.iteration is not None:
            self.iteration.called_again = True
        self.iteration = None
        if self._parameters is not None:
            self._parameters.scatter()
        if torch.is_grad_enabled():
            if self._lingering is None:
                self._rehearsing = self._others.paused = True
                try:
                    self._lingering = rehearsed(self.script, module, args, kwargs)
                finally:
                    self._rehearsing = self._others.paused = False
            self.iteration = Iteration(
                self.script, self.stores, self._lingering, self._parameters, training=module.training
            )
            self._others.latest = self
            return
        if self._parameters is not None:
            self._parameters.gather(to_change=False)

    def _leave(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        if self._rehearsing:
            return
        if self.iteration is not None:
            self.iteration.leave()
        elif self._parameters is not None:
            self._parameters.scatter()


class _AtWork(threading.local):
    """The plans at work in a thread: one dispatch mode and one pair of hooks serve all, so that they end in any order.

    Attributes:
        plans: those at work.
        latest: the one whose module has been called last; the operators of the forward pass are its.
        paused: nothing is to be followed.
    """

    def __init__(self) -> None:
        self.plans: list[Applied] = []
        self.latest: Applied | None = None
        self.paused = False
        self._mode = _Following(self)
        self._saving = saved_tensors_hooks(self._pack, _unpack)

    def begin(self, applied: Applied) -> None:
        held_by_a_buffer()  # cannot be measured later
        if not self.plans:
            self._mode.__enter__()  # type: ignore[no-untyped-call]
            self._saving.__enter__()
        self.plans.append(applied)

    def end(self, applied: Applied) -> None:
        self.plans.remove(applied)
        if self.latest is applied:
            self.latest = None
        if not self.plans:
            self._saving.__exit__(None, None, None)
            self._mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def _pack(self, tensor: torch.Tensor) -> Any:
        iteration = self.latest.iteration if self.latest is not None and not self.paused else None
        if iteration is None or torch._C._current_graph_task_id() >= 0:
            return tensor.detach()
        return iteration.save(tensor)


@cache
def _at_work() -> _AtWork:
    return _AtWork()


def _unpack(saved: Any) -> torch.Tensor:
    found: torch.Tensor = saved.get() if isinstance(saved, Handle) else saved
    return found


class _Following(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Shows the operators of a step to the iterations under way."""

    def __init__(self, work: _AtWork) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.work = work

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.work.paused or func.namespace in ("profiler", "prim"):
            return func(*args, **(kwargs or {}))
        iterations = [applied.iteration for applied in self.work.plans if applied.iteration is not None]
        if any(iteration.busy for iteration in iterations):
            return func(*args, **(kwargs or {}))
        forward = None
        for iteration in iterations:
            if not iteration.recording:
                func = iteration.follow(func, args)
            elif self.work.latest is not None and iteration is self.work.latest.iteration:
                forward = iteration
        if forward is not None and torch._C._current_graph_task_id() < 0:
            return forward.run(func, args, kwargs or {})
        for applied in self.work.plans:
            applied.bring_what_is_read(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


def _check_arguments(script: Script, module: Any, optimizer: Any) -> None:
    """The module and the optimizer are such, and no other plan is at work in the module.

    Raises:
        ValueError: saying which is not.
    """
    if not isinstance(module, torch.nn.Module):
        raise ValueError(f"module: expected a torch.nn.Module, not {type(module).__name__}")
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError(f"optimizer: expected a torch.optim.Optimizer, not {type(optimizer).__name__}")
    for other in _at_work().plans:
        known = other.module()
        if known is not None and (known in set(module.modules()) or module in set(known.modules())):
            raise ValueError("module: another plan is at work in it, or in a part of it; end that with remove() first")


def _check_parameters(script: Script, module: torch.nn.Module) -> None:
    """The module has the parameters of the plan.

    Raises:
        ValueError: naming the first that is missing, is another, or is too much.
    """
    planned = script.shapes
    own = dict(module.named_parameters())
    there = {name: tuple(p.shape) for name, p in own.items()}
    for name, shape in planned.items():
        if there.get(name, shape) != shape:
            raise ValueError(f"module: {name} has shape {there[name]}, in the plan {shape}; plan it again")
    missing = {name: shape for name, shape in planned.items() if name not in there}
    further = {n: s for n, s in there.items() if n not in planned and own[n].requires_grad}
    spare = list(further.values())
    for name, shape in missing.items():  # repeated layers without a common path have made-up names
        if shape not in spare:
            raise ValueError(f"module: the plan is for another model: {name} of shape {shape} is missing")
        spare.remove(shape)
    if spare:
        name = next(name for name, shape in further.items() if shape in spare)
        raise ValueError(f"module: {name} of shape {further[name]} is not in the plan; the module changed since")
    for name, kind in script.formats.items():
        if name in own and plain_dtype(own[name].dtype).name != kind:
            found = plain_dtype(own[name].dtype).name
            raise ValueError(f"module: {name} has format {found}, in the plan {kind}; plan it again")
    for name in script.trained:
        if name in own and not own[name].requires_grad:
            raise ValueError(f"module: {name} is frozen, in the plan it is trained; plan it again")
