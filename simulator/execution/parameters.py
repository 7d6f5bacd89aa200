"""Parameters that lie elsewhere until they are used: forward, backward, and in their optimizer's turn.

A parameter stays the same tensor throughout, and so do the views of it that autograd saves: only the memory of its
storage comes and goes (`UntypedStorage.resize_`, as PyTorch's FSDP does). What the optimizer changed is written again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from peakline.execution.replay import storage_of
from peakline.execution.stores import Store, Stored, Ticket, storage_bytes

__all__ = ["Emptied", "Parameters"]


class Emptied:
    """A parameter or its gradient, its place in the store, and whether its memory is here."""

    def __init__(self, parameter: torch.Tensor, store: Store) -> None:
        plain = parameter.detach()
        if plain.untyped_storage().nbytes() != plain.nbytes:
            raise ValueError(
                f"module: a parameter of shape {tuple(plain.shape)} shares its memory with another; it cannot be moved"
            )
        self.tensor, self.size, self._store = plain, plain.nbytes, store
        self.stored: Stored | None = None
        self.ticket: Ticket | None = None
        self.changed = False

    def write(self) -> None:
        """Put what is here into the store, and let the memory go."""
        old, self.stored = self.stored, self._store.put(self.tensor)
        self.stored.ticket.wait()
        if old is not None:
            old.free()
        self.changed = False
        self.tensor.untyped_storage().resize_(0)

    def drop(self) -> None:
        """Let the memory go; the store has it."""
        if self.changed:
            self.write()
        elif self.here:
            self.ready()
            self.tensor.untyped_storage().resize_(0)

    def fetch(self) -> None:
        """Begin to bring it in."""
        if not self.here:
            assert self.stored is not None
            self.tensor.untyped_storage().resize_(self.size)
            self.ticket = self.stored.into(storage_bytes(self.tensor))

    def ready(self) -> None:
        """Have it in."""
        self.fetch()
        if self.ticket is not None:
            self.ticket.wait()
            self.ticket = None

    @property
    def here(self) -> bool:
        """Whether its memory is here, or on its way."""
        return self.tensor.untyped_storage().nbytes() > 0


class Parameters:
    """Parameters by the plan's numbers of their storages."""

    def __init__(self, module: torch.nn.Module, names: dict[int, str], stores: dict[int, Store]) -> None:
        """Put them away.

        Args:
            names: of the parameters, by number.
            stores: where each goes.

        Raises:
            ValueError: a parameter that the module does not have, or that shares its memory.
        """
        own = dict(module.named_parameters())
        unknown = [name for name in names.values() if name not in own]
        if unknown:
            raise ValueError(f"module: parameter {unknown[0]} of the plan is missing; plan the module again")
        self._away = {number: Emptied(own[name], stores[number]) for number, name in names.items()}
        self._of_tensor = {id(own[name]): self._away[number] for number, name in names.items()}
        self._of_storage = {storage_of(away.tensor): number for number, away in self._away.items()}
        for away in self._away.values():
            away.write()
        register: Any = module.register_state_dict_pre_hook
        self._hook = register(lambda *_: self.gather())

    def number_of(self, tensor: torch.Tensor) -> int | None:
        """The number of the parameter that the tensor is, or looks at."""
        return self._of_storage.get(storage_of(tensor))

    def fetch(self, number: int) -> None:
        """Begin to bring a parameter in."""
        self._away[number].fetch()

    def drop(self, number: int) -> None:
        """Let a parameter's memory go."""
        self._away[number].drop()

    def ensure(self, tensors: Iterable[torch.Tensor], *, to_change: bool = False) -> None:
        """Have the parameters among the tensors in; `to_change`: what is here now is not what the store has."""
        for tensor in tensors:
            number = self.number_of(tensor)
            if number is not None:
                self._away[number].ready()
                self._away[number].changed |= to_change

    def bring(self, turn: Iterable[torch.nn.Parameter]) -> None:
        """Have those in that an optimizer is about to change."""
        for parameter in turn:
            away = self._of_tensor.get(id(parameter))
            if away is not None:
                away.ready()
                away.changed = True

    def send(self, turn: Iterable[torch.nn.Parameter]) -> None:
        """Put those away again that it changed."""
        for parameter in turn:
            away = self._of_tensor.get(id(parameter))
            if away is not None:
                away.drop()

    def gather(self, *, to_change: bool = True) -> None:
        """Have all in; who sees them may change them, unless `to_change` says otherwise."""
        for away in self._away.values():
            away.ready()
            away.changed |= to_change

    def scatter(self) -> None:
        """Put all away."""
        for away in self._away.values():
            away.drop()

    def remove(self) -> None:
        """End: all parameters are back."""
        self._hook.remove()
        for away in self._away.values():
            away.ready()
            if away.stored is not None:
                away.stored.free()
