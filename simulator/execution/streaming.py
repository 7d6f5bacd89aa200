"""Inference with layers that come in one by one: parameters lie in host memory or files until they are used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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
    if not isinstance(module, torch.nn.Module):
        raise ValueError(f"module: expected a torch.nn.Module, not {type(module).__name__}")
    if isinstance(ahead, bool) or not isinstance(ahead, int) or ahead < 0:
        raise ValueError(f"ahead: {ahead!r} is not a whole number of at least 0")
    chosen = _layers(module, layers)
    if any(isinstance(hook, _Hook) for layer in chosen for m in layer.modules() for hook in m._forward_hooks.values()):
        raise ValueError("layers: one of them is streamed already; end that with remove() first")
    stays = _outside(module, chosen)
    tensors = [[t for t in _tensors(layer) if id(t) not in stays] for layer in chosen]
    seen: set[int] = set()
    for own in tensors:
        if seen & {id(t) for t in own}:
            raise ValueError("layers: two of them share a parameter; one would take it from the other")
        seen |= {id(t) for t in own}
    try:
        where = torch.device(device) if device is not None else _device(module, seen)
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: {device!r} cannot be used ({str(error).splitlines()[0]})") from None
    store: Store = HostMemory(where) if folder is None else Files(folder)
    return Streamed(module, chosen, tensors, store, where, ahead)


def _outside(module: torch.nn.Module, layers: list[torch.nn.Module]) -> set[int]:
    """Parameters and buffers that something beside the layers has too; they stay."""
    inside = {id(part) for layer in layers for part in layer.modules()}
    return {
        id(tensor)
        for part in module.modules() if id(part) not in inside
        for tensor in [*part.parameters(recurse=False), *part.buffers(recurse=False)]
    }  # fmt: skip


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
    chosen = list(given) if isinstance(given, Iterable) else [given]
    if not chosen or not all(isinstance(layer, torch.nn.Module) for layer in chosen):
        raise ValueError(f"layers: {given!r} is not modules; accepted: a path, or the layers in their order")
    return chosen


def _tensors(layer: torch.nn.Module) -> list[torch.Tensor]:
    return [*layer.parameters(), *layer.buffers()]


def _device(module: torch.nn.Module, streamed: set[int]) -> torch.device:
    others = [t for t in _tensors(module) if id(t) not in streamed]
    return (others or _tensors(module))[0].device if others or _tensors(module) else torch.device("cpu")


class _Layer:
    """A layer whose parameters lie in the store, unless it is its time."""

    def __init__(self, tensors: list[torch.Tensor], store: Store, device: torch.device) -> None:
        self.here: list[tuple[torch.Tensor, Ticket]] | None = None
        self._store = store
        self._tensors, self._stored = tensors, list[Stored]()
        self._like: list[tuple[torch.dtype, torch.Size, tuple[int, ...]]] = []
        self._versions: list[int] = []
        for tensor in tensors:
            source = torch.empty_like(tensor, device=device).copy_(tensor.detach())  # keeps strides that have no gaps
            self._like.append((source.dtype, source.shape, source.stride()))
            self._put(len(self._stored), source)
        self._empty = torch.empty(0, device=device)
        self.drop()

    def _put(self, number: int, source: torch.Tensor) -> None:
        stored = self._store.put(source)
        stored.ticket.wait()
        if number < len(self._stored):
            self._stored[number].free()
        self._stored[number : number + 1] = [stored]

    def fetch(self) -> None:
        """Begin to bring it in."""
        if self.here is None:
            self.here = [stored.fetch() for stored in self._stored]

    def use(self) -> None:
        """Have it in."""
        if self._versions:
            return
        self.fetch()
        assert self.here is not None
        for tensor, (dtype, shape, strides), (memory, ticket) in zip(self._tensors, self._like, self.here):
            ticket.wait()
            whole = torch.empty(0, dtype=dtype, device=memory.device)
            tensor.data = whole.set_(memory.untyped_storage(), 0, shape, strides)
        self._versions = [_version(tensor) for tensor in self._tensors]

    def drop(self, *, training: bool = False) -> None:
        """Let it go; the store has it, and what the layer changed: caches, statistics where it is in `training` mode
        (batch normalisation does not say that it changes them)."""
        for number, version in enumerate(self._versions):
            tensor = self._tensors[number]
            if _version(tensor) != version or (training and not isinstance(tensor, torch.nn.Parameter)):
                self._put(number, tensor.detach())
        if self.here is not None:
            for _, ticket in self.here:
                ticket.wait()
        self.here, self._versions = None, []
        for tensor, (dtype, *_) in zip(self._tensors, self._like):
            tensor.data = self._empty.to(dtype)


def _version(tensor: torch.Tensor) -> int:
    """How often it was changed in place; tensors of inference mode do not say."""
    return -1 if tensor.is_inference() else tensor._version


class _Hook:
    """A hook that a copy of the module must not have."""

    def __init__(self, run: Callable[..., Any]) -> None:
        self._run = run

    def __call__(self, *args: Any) -> Any:
        return self._run(*args)

    def __deepcopy__(self, memo: Any) -> Any:
        raise ValueError("a module whose layers are streamed has them elsewhere: copy it before, or after remove()")


class Streamed:
    """Layers that come and go; a context manager that ends it, as `remove()` does."""

    def __init__(
        self, module: torch.nn.Module, layers: list[torch.nn.Module], tensors: list[list[torch.Tensor]], store: Store,
        device: torch.device, ahead: int,
    ) -> None:  # fmt: skip
        """Put the layers' parameters away."""
        self._store, self._ahead = store, ahead
        self._layers = [_Layer(own, store, device) for own in tensors]
        register: Any = module.register_state_dict_pre_hook
        self._hooks: list[Any] = [register(_Hook(lambda *_: self._gather()))]
        for number, layer in enumerate(layers):
            self._hooks.append(layer.register_forward_pre_hook(_Hook(self._entering(number)), prepend=True))
            self._hooks.append(layer.register_forward_hook(_Hook(self._leaving(number)), always_call=True))

    def _gather(self) -> None:
        """Somebody wants to see all parameters."""
        for layer in self._layers:
            layer.use()

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
            self._layers[number].drop(training=module.training)

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
