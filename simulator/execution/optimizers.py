"""Optimizers whose states lie elsewhere: brought in turn by turn, or updated on the host.

Any optimizer of torch that updates each parameter for itself (SGD, Adam, AdamW, RMSprop, Adagrad, ...) gives the same
numbers in turns: `step` is called once per turn with that turn's parameters alone. What a parameter's update takes from
all others (a norm over all gradients inside of the optimizer, as in LAMB or Muon's shards) would not be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from typing import Any

import torch

from peakline.execution.parameters import Emptied, Parameters
from peakline.execution.replay import storage_of
from peakline.execution.stores import Files, HostMemory, Store, Stored
from peakline.models.capture.recorder import references

__all__ = ["OffloadedOptimizer", "check_members", "layers_of", "offload_optimizer"]

SMALL = 1 << 16
"""Bytes below which a state stays (step counts; what the planner does not decide about either)."""


def offload_optimizer(
    optimizer: torch.optim.Optimizer,
    module: torch.nn.Module,
    *,
    folder: str | PathLike[str] | None = None,
    update: str = "device",
    turns: Sequence[Iterable[str]] | None = None,
    states: Iterable[str] | None = None,
    gradients: Iterable[str] = (),
    release: bool = False,
) -> OffloadedOptimizer:
    """Keep an optimizer's states off the device until `remove()`; `optimizer.step()` is called as ever.

    Args:
        module: whose parameters it updates.
        folder: put states into files there; None: into host memory, pinned beside a CUDA device.
        update: `device` brings states in for their turn; `host` updates copies of the parameters on the host.
        turns: names of the parameters of each turn; by default a turn per layer.
        states: names of the states that leave (`layers.0.weight.exp_avg`); None: all of at least 64 KiB.
        gradients: names of the parameters whose gradients leave as soon as they are complete, until their turn; in
            between `grad` is None, so nothing else may read them (no clipping by norm, no accumulation).
        release: let go of every gradient when its turn is over, as `zero_grad()` will.

    Raises:
        ValueError: an unknown `update`, a folder that cannot be written to, or parameters that are not the module's.
    """
    if update not in ("device", "host"):
        raise ValueError(f"update: {update!r} is unknown; accepted: device, host")
    names = {id(p): name for name, p in module.named_parameters()}
    held = [p for group in optimizer.param_groups for p in group["params"]]
    check_members(optimizer, module)
    chosen = list(turns) if turns is not None else layers_of([names[id(p)] for p in held])
    place = {name: i for i, turn in enumerate(chosen) for name in turn}
    ordered: list[list[torch.nn.Parameter]] = [[] for _ in range(len(chosen) + 1)]
    for parameter in held:
        ordered[place.get(names[id(parameter)], len(chosen))].append(parameter)
    device = next((p.device for p in held), torch.device("cpu"))
    leaving = set(gradients)
    away = [p for p in held if names[id(p)] in leaving]
    if update == "host":
        return _OnHost(optimizer, [turn for turn in ordered if turn], away, release)
    store: Store = HostMemory(device) if folder is None else Files(folder)
    wanted = None if states is None else set(states)
    return _InTurns(optimizer, [turn for turn in ordered if turn], names, store, wanted, away, release)


def check_members(optimizer: torch.optim.Optimizer, module: torch.nn.Module) -> None:
    """The optimizer updates the module's parameters alone.

    Raises:
        ValueError: giving the shape of one that it updates and the module does not have.
    """
    own = {id(p) for p in module.parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) not in own:
                raise ValueError(f"optimizer: a parameter of shape {tuple(parameter.shape)} is not the module's")


def layers_of(names: Iterable[str]) -> list[list[str]]:
    """Parameters by layer: by their path up to its first number, else by their module."""
    found: dict[str, list[str]] = {}
    for name in names:
        parts = name.split(".")
        number = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts) - 2)
        found.setdefault(".".join(parts[: number + 1]), []).append(name)
    return list(found.values())


class OffloadedOptimizer:
    """An optimizer under another `step`; `remove()` gives it back with all its states on the device."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.parameters: Parameters | None = None
        self.heard = False
        """Whether `ensure` is called before anybody reads a tensor: gradients that leave need not become None."""
        self._original: Callable[..., Any] = optimizer.step
        optimizer.step = self._step  # type: ignore[method-assign]
        self._hook = optimizer.register_state_dict_pre_hook(lambda _: self.gather())

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            self.update()
        return loss

    def update(self) -> None:
        """One step over all parameters."""
        raise NotImplementedError

    def gather(self) -> None:
        """Bring all states back."""
        raise NotImplementedError

    def ensure(self, tensors: Iterable[torch.Tensor]) -> None:
        """Have the gradients among the tensors in: somebody is about to read or to change them."""

    def remove(self) -> None:
        """End: the optimizer is as it was."""
        self.gather()
        self._hook.remove()
        self.optimizer.step = self._original  # type: ignore[method-assign]


class _Away:
    """A state that lies in a store."""

    def __init__(self, tensor: torch.Tensor, store: Store) -> None:
        whole = tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
        self._like = (tensor.dtype, tuple(tensor.shape), tensor.stride() if whole is tensor else whole.stride())
        self.stored: Stored = store.put(whole)
        self.source: torch.Tensor | None = whole

    def leave(self) -> None:
        """Let go of the device's copy, once the store's is complete."""
        self.stored.ticket.wait()
        self.source = None

    def back(self) -> torch.Tensor:
        """The state on the device."""
        memory, ticket = self.stored.fetch()
        ticket.wait()
        self.stored.free()
        dtype, shape, strides = self._like
        return torch.empty(0, dtype=dtype, device=memory.device).set_(memory.untyped_storage(), 0, shape, strides)


class _InTurns(OffloadedOptimizer):
    """States come in for their turn and leave after it."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, turns: list[list[torch.nn.Parameter]], names: dict[int, str],
        store: Store, wanted: set[str] | None, leaving: list[torch.nn.Parameter], release: bool,
    ) -> None:  # fmt: skip
        super().__init__(optimizer)
        self._release = release
        self._gradients: dict[torch.nn.Parameter, _Away] = {}
        self._emptied: dict[torch.nn.Parameter, Emptied] = {}
        self._hooks: list[Any] = [
            p.register_post_accumulate_grad_hook(self._send_gradient)  # type: ignore[no-untyped-call]
            for p in leaving
        ]
        self._turns, self._names, self._store, self._wanted = turns, names, store, wanted
        self._away: dict[torch.nn.Parameter, dict[str, _Away]] = {}
        for turn in turns:
            self._send(turn)

    def update(self) -> None:
        groups = self.optimizer.param_groups
        whole = [group["params"] for group in groups]
        if self.parameters is not None:
            self.parameters.scatter()
        try:
            for turn in self._turns:
                self._bring(turn)
                members = {id(p) for p in turn}
                for group, parameters in zip(groups, whole):
                    group["params"] = [p for p in parameters if id(p) in members]
                self.optimizer.param_groups = [group for group in groups if group["params"]]
                self._original()
                if self._release:
                    for parameter in turn:
                        parameter.grad = None
                self._send(turn)
        finally:
            self.optimizer.param_groups = groups
            for group, parameters in zip(groups, whole):
                group["params"] = parameters

    def gather(self) -> None:
        for turn in self._turns:
            self._bring(turn)

    def remove(self) -> None:
        super().remove()
        for hook in self._hooks:
            hook.remove()
        self._store.close()

    def _send_gradient(self, parameter: torch.Tensor) -> None:
        gradient = parameter.grad
        if gradient is None or not isinstance(parameter, torch.nn.Parameter):
            return
        self._forget(parameter)
        own = references(gradient)[1] == references(torch.empty(0))[1]  # its memory is nobody else's
        if self.heard and own and gradient.untyped_storage().nbytes() == gradient.nbytes:
            self._emptied[parameter] = emptied = Emptied(gradient, self._store)
            emptied.write()
            return
        del gradient
        self._gradients[parameter] = away = _Away(parameter.grad, self._store)  # type: ignore[arg-type]
        parameter.grad = None
        away.leave()

    def _forget(self, parameter: torch.nn.Parameter) -> None:
        """Have an emptied gradient in, if it still is the parameter's, and give its room back."""
        emptied = self._emptied.pop(parameter, None)
        if emptied is None:
            return
        if parameter.grad is not None and storage_of(parameter.grad) == storage_of(emptied.tensor):
            emptied.ready()
        if emptied.stored is not None:
            emptied.stored.free()

    def ensure(self, tensors: Iterable[torch.Tensor]) -> None:
        if not self._emptied:
            return
        by_storage = {storage_of(emptied.tensor): emptied for emptied in self._emptied.values()}
        for tensor in tensors:
            emptied = by_storage.get(storage_of(tensor))
            if emptied is not None:
                emptied.ready()

    def _bring(self, turn: list[torch.nn.Parameter]) -> None:
        if self.parameters is not None:
            self.parameters.bring(turn)
        for parameter in turn:
            self._forget(parameter)
            gradient = self._gradients.pop(parameter, None)
            if gradient is not None:
                parameter.grad = gradient.back()
            for key, away in self._away.pop(parameter, {}).items():
                self.optimizer.state[parameter][key] = away.back()

    def _send(self, turn: list[torch.nn.Parameter]) -> None:
        sent = []
        for parameter in turn:
            state = self.optimizer.state.get(parameter, {})
            for key, value in list(state.items()):
                if self._leaves(parameter, key, value):
                    away = self._away.setdefault(parameter, {})[key] = _Away(value, self._store)
                    sent.append(away)
                    del state[key], value
        for away in sent:
            away.leave()
        if self.parameters is not None:
            self.parameters.send(turn)

    def _leaves(self, parameter: torch.nn.Parameter, key: str, value: Any) -> bool:
        if not isinstance(value, torch.Tensor) or value.nbytes < SMALL:
            return False
        return self._wanted is None or f"{self._names[id(parameter)]}.{key}" in self._wanted


class _OnHost(OffloadedOptimizer):
    """The host holds states and a copy of the parameters, and updates them there."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, turns: list[list[torch.nn.Parameter]],
        leaving: list[torch.nn.Parameter], release: bool,
    ) -> None:  # fmt: skip
        super().__init__(optimizer)
        self._turns, self._release = turns, release
        self._copies = {p: _host_copy(p) for turn in turns for p in turn}
        groups = [
            {**_plain_options(group), "params": [self._copies[p] for p in group["params"]]}
            for group in optimizer.param_groups
        ]
        self._host = type(optimizer)(groups)  # type: ignore[call-arg]
        for parameter, copy in self._copies.items():
            state = optimizer.state.pop(parameter, {})
            if state:
                self._host.state[copy] = {key: _moved(value, copy.device) for key, value in state.items()}
        self._gone: set[torch.nn.Parameter] = set()
        self._hooks: list[Any] = [
            p.register_post_accumulate_grad_hook(self._send_gradient)  # type: ignore[no-untyped-call]
            for p in leaving
        ]

    def _send_gradient(self, parameter: torch.Tensor) -> None:
        """Its gradient goes to the host as soon as it is complete, and is let go here."""
        if parameter.grad is not None and isinstance(parameter, torch.nn.Parameter):
            self._receive(parameter)
            self._gone.add(parameter)
            parameter.grad = None

    def _receive(self, parameter: torch.nn.Parameter) -> None:
        copy, gradient = self._copies[parameter], parameter.grad
        if gradient is None:
            copy.grad = None
        else:
            held = torch.empty_like(gradient, device=copy.device, pin_memory=gradient.is_cuda)
            copy.grad = held.copy_(gradient, non_blocking=True)

    def update(self) -> None:
        for group, hosted in zip(self.optimizer.param_groups, self._host.param_groups):
            hosted.update(_plain_options(group))  # a schedule may have changed them
        for parameter in self._copies:
            if parameter not in self._gone:
                self._receive(parameter)
        self._gone.clear()
        for parameter in self._copies:
            if parameter.is_cuda:
                torch.cuda.current_stream(parameter.device).synchronize()  # gradients have arrived
                break
        self._host.step()
        for parameter, copy in self._copies.items():
            copy.grad = None
            if self._release:
                parameter.grad = None
            if self.parameters is not None:
                self.parameters.bring([parameter])
            parameter.copy_(copy, non_blocking=True)
            if self.parameters is not None:
                self.parameters.send([parameter])

    def gather(self) -> None:
        for parameter, copy in self._copies.items():
            state = self._host.state.get(copy)
            if state:
                self.optimizer.state[parameter] = {key: _moved(value, parameter.device) for key, value in state.items()}

    def remove(self) -> None:
        super().remove()
        for hook in self._hooks:
            hook.remove()
        self._copies.clear()


def _host_copy(parameter: torch.nn.Parameter) -> torch.nn.Parameter:
    plain = parameter.detach()
    copy = torch.empty_like(plain, device="cpu", pin_memory=plain.is_cuda).copy_(plain)
    return torch.nn.Parameter(copy, requires_grad=parameter.requires_grad)


def _moved(value: Any, device: torch.device) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return value.detach().to(device) if value.numel() > 1 else value.detach().clone()


def _plain_options(group: dict[str, Any]) -> dict[str, Any]:
    """Hyperparameters of a group, without what only CUDA has."""
    options = {key: value for key, value in group.items() if key != "params"}
    if "capturable" in options:
        options["capturable"] = False
    return options
