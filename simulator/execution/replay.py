"""Operators of the forward pass written down, and executed again below autograd.

An operator is written down with references to storages instead of tensors, so that writing it down keeps nothing
alive; parameters and inputs, which the step does not free, are kept as they are. Executed again it gets the same
arguments, the same state of the random number generator, and private copies of what it would change of the model's
(running statistics), so that a second execution leaves no trace.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from peakline.models.capture.views import tensors_in

__all__ = [
    "FRESH",
    "Outside",
    "Reference",
    "Written",
    "execute",
    "is_random",
    "mutable",
    "storage_of",
    "write_down",
]


FRESH = torch.ops.aten.lift_fresh.default
"""Hands on what `torch.tensor` made: its operand is its result."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A look at a storage of the forward pass."""

    key: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    def view(self, memory: torch.Tensor) -> torch.Tensor:
        """The same look at the storage of `memory`."""
        empty = torch.empty(0, dtype=self.dtype, device=memory.device)
        return empty.set_(memory.untyped_storage(), self.offset, self.shape, self.strides)


@dataclass(frozen=True, slots=True)
class Outside:
    """A tensor that the step did not make."""

    tensor: torch.Tensor


@dataclass(frozen=True, slots=True)
class Written:
    """An operator to execute again; `state` is the random number generator's before it ran, by device."""

    operator: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    makes: tuple[int, ...]
    state: tuple[torch.device, torch.Tensor] | None


def storage_of(tensor: torch.Tensor) -> int:
    """What identifies the tensor's storage while it lives."""
    identify: Any = getattr(torch._C, "_storage_id")  # noqa: B009  (missing in torch's stubs)
    return int(identify(tensor))


def is_random(operator: Any) -> bool:
    """Whether it draws from a random number generator."""
    return torch.Tag.nondeterministic_seeded in operator.tags


@cache
def mutable(operator: Any) -> frozenset[int | str]:
    """Places and names of the arguments that the operator changes, as its schema says."""
    found: set[int | str] = set()
    for place, argument in enumerate(operator._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found |= {place, argument.name}
    return frozenset(found)


@cache
def _changed(operator: Any) -> frozenset[int | str]:
    """`mutable`, and what batch normalisation changes without saying so."""
    running = [(i, a.name) for i, a in enumerate(operator._schema.arguments) if a.name in _RUNNING]
    return mutable(operator) | {x for pair in running for x in pair}


_RUNNING = frozenset({"running_mean", "running_var"})
"""Arguments of `aten.native_batch_norm`, `aten.cudnn_batch_norm` and others, which their schemas call unchanged."""


def refer(tensor: torch.Tensor, key: int) -> Reference:
    """A reference to the tensor's look at storage `key`."""
    return Reference(key, tensor.dtype, tuple(tensor.shape), tuple(tensor.stride()), int(tensor.storage_offset()))


def write_down(
    operator: Any, args: Any, kwargs: Any, key_of: Callable[[torch.Tensor], int | None]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments with references in the place of tensors that the step made; `key_of`: their storage, if they are."""

    def plain(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            key = key_of(value)
            return Outside(value.detach()) if key is None else refer(value, key)
        if isinstance(value, tuple | list):
            return type(value)([plain(v) for v in value])
        return value

    return tuple([plain(a) for a in args]), {name: plain(value) for name, value in kwargs.items()}


def random_state(device: torch.device) -> tuple[torch.device, torch.Tensor]:
    """The state of the device's generator."""
    state = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
    return device, state


def _set_state(state: tuple[torch.device, torch.Tensor]) -> None:
    device, value = state
    if device.type == "cuda":
        torch.cuda.set_rng_state(value, device)
    else:
        torch.set_rng_state(value)


def execute(written: Written, memory: Callable[[int], torch.Tensor]) -> dict[int, torch.Tensor]:
    """Run it again; `memory(key)` has the storages it reads. Returns a tensor on each storage that it made."""
    changes = _changed(written.operator)

    def real(value: Any, changed: bool) -> Any:
        if isinstance(value, Reference):
            return value.view(memory(value.key))
        if isinstance(value, Outside):
            return value.tensor.clone() if changed else value.tensor
        if isinstance(value, tuple | list):
            return type(value)([real(v, changed) for v in value])
        return value

    args = [real(value, place in changes) for place, value in enumerate(written.args)]
    kwargs = {name: real(value, name in changes) for name, value in written.kwargs.items()}
    known = {storage_of(t) for t in tensors_in([*args, *kwargs.values()])}
    before = random_state(written.state[0]) if written.state else None
    if written.state:
        _set_state(written.state)
    try:
        with torch._C._AutoDispatchBelowAutograd(), torch.enable_grad():
            result = args[0].clone() if written.operator is FRESH else written.operator(*args, **kwargs)
    finally:
        if before:
            _set_state(before)
    made: dict[int, torch.Tensor] = {}
    for tensor in tensors_in(result):
        made.setdefault(storage_of(tensor), tensor)
    fresh = [tensor for number, tensor in made.items() if number not in known]
    return dict(zip(written.makes, fresh, strict=True))
