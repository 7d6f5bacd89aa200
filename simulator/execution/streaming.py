"""Inference with layers that come in one by one: parameters lie in host memory or files until they are used."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from types import TracebackType
from typing import Any

import torch

from peakline.execution.stores import Files, HostMemory, Store, Stored, Ticket

__all__ = ["Streamed", "stream_layers"]


def stream_layers(
    module: torch.nn.Module,
    layers: str | Sequence[torch.nn.Module] | None = None,
    *,
    folder: str | PathLike[str] | None = None,
    ahead: int = 1,
    device: str | torch.device | None = None,
) -> Streamed:
    """Bring a module's layers in one by one as it runs, `ahead` of them in advance, until `remove()`.

        with torch.no_grad(), stream_layers(model, "model.layers", folder="/scratch"):
            logits = model(ids).logits

    At most `ahead` + 1 layers are on the device at once. Outputs are those of the module as it is.

    Args:
        layers: path of the `ModuleList` or `Sequential` that holds them, or the layers in the order in which they
            run; None: the longest list of the module.
        folder: put the parameters into files there; None: into host memory, pinned beside a CUDA device.
        ahead: layers to fetch while one runs.
        device: where the layers run; None: where the module's other parameters are.

    Raises:
        ValueError: no such list of layers, `ahead` below 0, layers that share a parameter, or a folder that cannot be
            written to. In the forward pass: gradients are on.
    """
    if isinstance(ahead, bool) or not isinstance(ahead, int) or ahead < 0:
        raise ValueError(f"ahead: {ahead!r} is not a whole number of at least 0")
    chosen = _layers(module, layers)
    seen: set[int] = set()
    for layer in chosen:
        own = {id(t) for t in _tensors(layer)}
        if own & seen:
            raise ValueError("layers: two of them share a parameter; one would take it from the other")
        seen |= own
    where = torch.device(device) if device is not None else _device(module, seen)
    store: Store = HostMemory(where) if folder is None else Files(folder)
    return Streamed(chosen, store, where, ahead)


def _layers(module: torch.nn.Module, given: str | Sequence[torch.nn.Module] | None) -> list[torch.nn.Module]:
    lists = {
        name: list(child)
        for name, child in module.named_modules()
        if isinstance(child, torch.nn.ModuleList | torch.nn.Sequential)
    }
    if given is None:
        if not lists:
            raise ValueError("layers: the module has no ModuleList and no Sequential; pass the layers in their order")
        return max(lists.values(), key=len)
    if isinstance(given, str):
        if given not in lists:
            raise ValueError(f"layers: {given!r} is no list of modules; accepted: {', '.join(lists) or 'none here'}")
        return lists[given]
    return list(given)


def _tensors(layer: torch.nn.Module) -> list[torch.Tensor]:
    return [*layer.parameters(), *layer.buffers()]


def _device(module: torch.nn.Module, streamed: set[int]) -> torch.device:
    others = [t for t in _tensors(module) if id(t) not in streamed]
    return (others or _tensors(module))[0].device if others or _tensors(module) else torch.device("cpu")


class _Layer:
    """A layer whose parameters lie in the store, unless it is its time."""

    def __init__(self, layer: torch.nn.Module, store: Store, device: torch.device) -> None:
        self.here: list[tuple[torch.Tensor, Ticket]] | None = None
        self._tensors = [(t, t.dtype, tuple(t.shape)) for t in _tensors(layer)]
        self._stored: list[Stored] = []
        for tensor, *_ in self._tensors:
            source = tensor.detach().to(device).contiguous().clone()
            stored = store.put(source)
            stored.ticket.wait()
            self._stored.append(stored)
        self._empty = torch.empty(0, device=device)
        self.drop()

    def fetch(self) -> None:
        """Begin to bring it in."""
        if self.here is None:
            self.here = [stored.fetch() for stored in self._stored]

    def use(self) -> None:
        """Have it in."""
        self.fetch()
        assert self.here is not None
        for (tensor, dtype, shape), (memory, ticket) in zip(self._tensors, self.here):
            ticket.wait()
            tensor.data = memory.view(dtype).view(shape)

    def drop(self) -> None:
        """Let it go; the store still has it."""
        if self.here is not None:
            for _, ticket in self.here:
                ticket.wait()
        self.here = None
        for tensor, dtype, _ in self._tensors:
            tensor.data = self._empty.to(dtype)


class Streamed:
    """Layers that come and go; a context manager that ends it, as `remove()` does."""

    def __init__(self, layers: list[torch.nn.Module], store: Store, device: torch.device, ahead: int) -> None:
        """Put the layers' parameters away."""
        self._store, self._ahead = store, ahead
        self._layers = [_Layer(layer, store, device) for layer in layers]
        self._hooks: list[Any] = []
        for number, layer in enumerate(layers):
            self._hooks.append(layer.register_forward_pre_hook(self._entering(number), prepend=True))
            self._hooks.append(layer.register_forward_hook(self._leaving(number), always_call=True))

    def _entering(self, number: int) -> Any:
        def enter(module: torch.nn.Module, args: Any) -> None:
            if torch.is_grad_enabled():
                raise ValueError("stream_layers serves inference: run the module under torch.no_grad()")
            self._layers[number].use()
            for following in self._layers[number + 1 : number + 1 + self._ahead]:
                following.fetch()

        return enter

    def _leaving(self, number: int) -> Any:
        def leave(module: torch.nn.Module, args: Any, output: Any) -> None:
            self._layers[number].drop()

        return leave

    def remove(self) -> None:
        """End: all parameters are back where they were."""
        if not self._hooks:
            return
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        for layer in self._layers:
            layer.use()
        self._store.close()

    def __enter__(self) -> Streamed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()
