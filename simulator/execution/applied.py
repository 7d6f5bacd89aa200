"""`plan.apply(module)`: the training loop stays as it is, and memory goes as planned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from peakline.execution.iteration import Handle, Iteration
from peakline.execution.packing import PackedMemory
from peakline.execution.parameters import Parameters
from peakline.execution.rehearsal import rehearsed
from peakline.execution.script import PACKED, Script, script_of
from peakline.execution.stores import Files, HostMemory, Store, checked_folder

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
    _check_parameters(script.shapes, module)
    tiers, states = set(script.moved.values()), script.states
    if states and optimizer is None:
        raise ValueError("optimizer: the plan moves optimizer states; pass the optimizer that holds them")
    if script.parameters and optimizer is None:
        raise ValueError("optimizer: the plan moves parameters; pass the optimizer that updates them")
    if "ssd" in tiers | set(states.values()):
        if folder is None:
            raise ValueError("folder: the plan moves tensors to a drive; name a folder on it")
        checked_folder(folder)
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    stores: dict[str, Store] = {}
    if "host" in tiers:
        stores["host"] = HostMemory(device)
    if "ssd" in tiers and folder is not None:
        stores["ssd"] = Files(folder)
    if PACKED in tiers and script.codec is not None:
        stores[PACKED] = PackedMemory(script.codec)
    undo: list[Callable[[], None]] = [store.close for store in stores.values()]
    turns = None
    if states and optimizer is not None:
        from peakline.execution.optimizers import offload_optimizer

        where = "ssd" if "ssd" in states.values() else "host"
        turns = offload_optimizer(
            optimizer, module, folder=folder if where == "ssd" else None, update=script.update, turns=script.turns,
            states=None if "*" in states else states, gradients=script.gradients, release=True,
        )  # fmt: skip
        undo.insert(0, turns.remove)
    parameters = None
    if script.parameters and optimizer is not None:
        places = {key: stores[script.moved[key]] for key in script.parameters}
        parameters = Parameters(module, script.parameters, places)
        undo.insert(len(undo) - len(stores), parameters.remove)
        if turns is not None:
            turns.parameters = parameters
        else:
            undo.insert(0, _around_steps(optimizer, parameters))
    return Applied(script, module, stores, undo, parameters)


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
        self, script: Script, module: torch.nn.Module, stores: dict[str, Store], undo: list[Callable[[], None]],
        parameters: Parameters | None = None,
    ) -> None:  # fmt: skip
        """Begin."""
        self.script, self.stores, self._undo, self._parameters = script, stores, undo, parameters
        self.iteration: Iteration | None = None
        self._lingering: set[int] | None = None
        self._rehearsing = False
        self._mode = _Following(self)
        self._saving = saved_tensors_hooks(self._pack, _unpack)
        self._hooks = [
            module.register_forward_pre_hook(self._enter, prepend=True, with_kwargs=True),
            module.register_forward_hook(self._leave, always_call=True),
        ]
        self._mode.__enter__()  # type: ignore[no-untyped-call]
        self._saving.__enter__()
        self._active = True

    def remove(self) -> None:
        """End: the module is as it was before. Backward passes of forward passes that have run must be over."""
        if not self._active:
            return
        self._active = False
        self._saving.__exit__(None, None, None)
        self._mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        for hook in self._hooks:
            hook.remove()
        self.iteration = None
        for undo in self._undo:
            undo()

    def __enter__(self) -> Applied:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def _enter(self, module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        if self._rehearsing:
            return
        self.iteration = None
        if self._parameters is not None:
            self._parameters.scatter()
        if torch.is_grad_enabled():
            if self._lingering is None:
                self._rehearsing = True
                self._lingering = rehearsed(self.script, module, args, kwargs)
                self._rehearsing = False
            self.iteration = Iteration(self.script, self.stores, self._lingering, self._parameters)
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

    def _pack(self, tensor: torch.Tensor) -> Any:
        iteration = self.iteration
        if iteration is None or torch._C._current_graph_task_id() >= 0:
            return tensor.detach()
        return iteration.save(tensor)


def _unpack(saved: Any) -> torch.Tensor:
    found: torch.Tensor = saved.get() if isinstance(saved, Handle) else saved
    return found


class _Following(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Shows the operators of a step to the iteration under way."""

    def __init__(self, applied: Applied) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.applied = applied

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        iteration = self.applied.iteration
        if iteration is None or iteration.busy or func.namespace in ("profiler", "prim"):
            return func(*args, **(kwargs or {}))
        if not iteration.recording:
            iteration.follow(func)
            return func(*args, **(kwargs or {}))
        if torch._C._current_graph_task_id() >= 0:
            return func(*args, **(kwargs or {}))
        return iteration.run(func, args, kwargs or {})


def _check_parameters(planned: Mapping[str, tuple[int, ...]], module: torch.nn.Module) -> None:
    """The module has the parameters of the plan.

    Raises:
        ValueError: naming the first that is missing, is another, or is too much.
    """
    if not isinstance(module, torch.nn.Module):
        raise ValueError(f"module: expected a torch.nn.Module, not {type(module).__name__}")
    there = {name: tuple(p.shape) for name, p in module.named_parameters()}
    for name, shape in planned.items():
        if there.get(name, shape) != shape:
            raise ValueError(f"module: {name} has shape {there[name]}, in the plan {shape}; plan it again")
    missing = {name: shape for name, shape in planned.items() if name not in there}
    further = {n: s for n, s in there.items() if n not in planned and module.get_parameter(n).requires_grad}
    spare = list(further.values())
    for name, shape in missing.items():  # repeated layers without a common path have made-up names
        if shape not in spare:
            raise ValueError(f"module: the plan is for another model: {name} of shape {shape} is missing")
        spare.remove(shape)
    if spare:
        name = next(name for name, shape in further.items() if shape in spare)
        raise ValueError(f"module: {name} of shape {further[name]} is not in the plan; the module changed since")
