"""A user's modules, optimizers and tensors under fake tensors, and back: nothing of theirs is altered or copied."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily

from peakline.models.capture.known import Known

__all__ = ["Faker"]


class Faker:
    """Makes fake tensors on the CPU of real and meta ones; one per tensor, storages shared where theirs are."""

    def __init__(self, mode: FakeTensorMode, known: Known) -> None:
        """Fake tensors of `mode`; the values of small integer ones go to `known`."""
        self.mode = mode
        self.known = known
        self._made: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._storages: dict[int, torch.Tensor] = {}
        self._undo: list[Callable[[], None]] = []

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        """The fake tensor that stands for `tensor`."""
        if isinstance(tensor, FakeTensor):
            return tensor
        if id(tensor) not in self._made:
            self._made[id(tensor)] = (tensor, self._fake(tensor))
        return self._made[id(tensor)][1]

    def _fake(self, tensor: torch.Tensor) -> torch.Tensor:
        with self.mode, torch.no_grad():
            if tensor.layout is not torch.strided:
                raise ValueError(f"a tensor of layout {tensor.layout} cannot be captured; accepted: strided tensors")
            fake = self._on_shared_storage(tensor)
            if fake is None:
                fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
        if isinstance(tensor, torch.nn.Parameter):
            fake = torch.nn.Parameter(fake, requires_grad=tensor.requires_grad)
        else:
            fake.requires_grad_(tensor.requires_grad)
        for name, value in getattr(tensor, "__dict__", {}).items():
            if name not in ("_known", "grad"):
                setattr(fake, name, value)
        plain = self.known.everything or not tensor.requires_grad
        if tensor.device.type == "cpu" and plain and self.known.worth(tensor):
            with unset_fake_temporarily():
                self.known.learn(fake, tensor.detach().clone())
        return fake

    def _on_shared_storage(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """A look at a storage that several tensors share; None where the tensor has its own."""
        memory = tensor.untyped_storage()
        own = memory.nbytes() in (0, tensor.numel() * tensor.element_size())  # 0: emptied until it is needed
        if own and memory._cdata not in self._storages:
            if tensor.is_contiguous():
                fake = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
                self._storages[memory._cdata] = fake
                return fake
            return None
        base = self._storages.get(memory._cdata)
        if base is None:
            base = self._storages[memory._cdata] = torch.empty(memory.nbytes(), dtype=torch.uint8, device="cpu")
        whole = torch.empty(0, dtype=tensor.dtype, device="cpu")
        whole.set_(base.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())
        return whole

    def tree(self, value: Any) -> Any:
        """The same nested structure with fake tensors in the place of tensors."""
        from torch.utils._pytree import tree_map_only

        return tree_map_only(torch.Tensor, self, value)

    # ---- in the place of the user's ---------------------------------------------------------------------------------
    def module(self, root: torch.nn.Module) -> None:
        """Put fake tensors in the place of the module's parameters, buffers and plain tensor attributes."""
        for module in root.modules():
            for held in (module._parameters, module._buffers):
                for name, tensor in held.items():
                    if isinstance(tensor, torch.Tensor) and not isinstance(tensor, FakeTensor):
                        self._put(held, name, self(tensor))
            for name, value in list(vars(module).items()):
                if isinstance(value, torch.Tensor) and not isinstance(value, FakeTensor):
                    self._put(vars(module), name, self(value))

    def convert(self, root: torch.nn.Module, kind: torch.dtype) -> None:
        """What `root.to(kind)` does to fake parameters and buffers."""
        made: dict[int, torch.Tensor] = {}
        with self.mode, torch.no_grad():
            for module in root.modules():
                for held in (module._parameters, module._buffers):
                    for name, tensor in held.items():
                        if tensor is None or not tensor.is_floating_point() or tensor.dtype == kind:
                            continue
                        if id(tensor) not in made:
                            fake = tensor.detach().to(kind)
                            is_parameter = isinstance(tensor, torch.nn.Parameter)
                            made[id(tensor)] = torch.nn.Parameter(fake, tensor.requires_grad) if is_parameter else fake
                        self._put(held, name, made[id(tensor)])

    def optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the optimizer update the fake parameters, with fake states."""
        for group in optimizer.param_groups:
            self._put(group, "params", [self(p) for p in group["params"]])
        states = type(optimizer.state)(dict)
        for parameter, state in optimizer.state.items():
            states[self(parameter)] = self.tree(dict(state))
        self._put(vars(optimizer), "state", states)

    def _put(self, held: Any, name: str, value: Any) -> None:
        before = held[name]
        held[name] = value

        def undo() -> None:
            held[name] = before

        self._undo.append(undo)

    @contextmanager
    def restoring(self) -> Iterator[None]:
        """At the end everything that was replaced is put back."""
        try:
            yield
        finally:
            while self._undo:
                self._undo.pop()()
            self._made.clear()
            self._storages.clear()
