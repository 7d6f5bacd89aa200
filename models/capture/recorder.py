"""The recorder: every ATen operator that a program dispatches, and every storage's birth and death, in order.

Deaths are seen by weak references to the storages, called by the very decrement that frees the memory: what Python
variables, autograd and temporaries inside composite operators hold is right by construction.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from peakline.models.capture.calls import Call, Free, Recording, Storage, View
from peakline.models.capture.host import HOST
from peakline.models.capture.known import Known
from peakline.models.capture.place import Place, Places
from peakline.models.capture.shapes import Shapes
from peakline.models.capture.strides import contiguous, elementwise_strides
from peakline.models.capture.views import Schema, plain_dtype, plain_value, schema_of, tensors_in, view_of
from peakline.models.graph import Role

__all__ = ["Recorder", "references"]

_DEVICE_OF = torch.ops.prim.device.default
storage_id: Any = torch._C._storage_id  # type: ignore[attr-defined]
_ADD = torch.ops.aten.add.Tensor
_FRESH = torch.ops.aten.lift_fresh.default
"""Hands on what `torch.tensor` made: its operand is its result."""

_aten = torch.ops.aten
_IN_PLACE = {
    _aten.index_put.default: _aten.index_put_.default,
    _aten.scatter_add.default: _aten.scatter_add_.default,
    _aten.scatter.src: _aten.scatter_.src,
    _aten.index_add.default: _aten.index_add_.default,
    _aten.put.default: _aten.put_.default,
    _aten.index_fill.int_Scalar: _aten.index_fill_.int_Scalar,
}
"""Scatters into fresh zeros that autograd's formulas run in place for plain tensors and out of place for fake ones
(torch/csrc/autograd/FunctionsManual.cpp: `areAnyTensorSubclassLike` in `gather_backward`, `index_backward`,
`value_selecting_reduction_backward`, `take_backward`, `trace_backward_symint`)."""

_WRAPPERS = ("torch/_dynamo/eval_frame.py", "torch/_compile.py")
"""Files of the frames that torch before 2.9 puts around a dispatch mode."""

_RESIZES = {torch.ops.aten.resize_.default, torch.ops.aten.resize_as_.default, torch.ops.aten.set_.source_Storage,
            torch.ops.aten.set_.source_Storage_storage_offset, torch.ops.aten.set_.source_Tensor,
            torch.ops.aten.set_.default}  # fmt: skip


class _Death(weakref.ref):  # type: ignore[type-arg]
    """A weak reference to a storage that knows the storage's number and address."""

    __slots__ = ("key", "number")
    key: int
    number: int


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records calls and frees into `recording`; enter it above `FakeTensorMode`."""

    def __init__(self, places: Places, known: Known, shapes: Shapes) -> None:
        """A recorder that asks `places` where calls come from."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.recording = Recording()
        self.places = places
        self.known = known
        self.shapes = shapes
        self.step = -1
        self.origin: dict[int, tuple[int, int]] = {}
        self._numbers: dict[int, int] = {}
        self._deaths: dict[int, _Death] = {}
        self._addresses: dict[int, int] = {}
        self._held = _references_of_a_temporary()
        self.attending = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or a frame of torch.compile's machinery stands between this and the caller

    # ---- storages -------------------------------------------------------------------------------------------------
    def number(self, tensor: torch.Tensor) -> int:
        """Number of the tensor's storage; a new one if it was never seen."""
        found = self._numbers.get(storage_id(tensor))
        return self._register(tensor) if found is None else found

    def knows(self, tensor: torch.Tensor) -> bool:
        """Whether the tensor's storage was seen."""
        return storage_id(tensor) in self._numbers

    def adopt(self, tensor: torch.Tensor, role: Role, name: str, *, trainable: bool = False) -> int:
        """Give the tensor's storage a role and a name; the first name given stays."""
        number = self.number(tensor)
        storage = self.recording.storages[number]
        if not storage.name:
            storage.role, storage.name, storage.trainable = role, name, trainable
        return number

    def born(self, tensor: torch.Tensor, maker: str) -> None:
        """A tensor was made without an operator, by the function `maker` of torch."""
        if self.knows(tensor):
            return
        place = self.places.here(sys._getframe(1))
        number = self._register(tensor)
        result = (view_of(tensor, number),)
        self.recording.events.append(
            Call(maker, {}, result, (number,), place.phase, place.module, place.line, self.step)
        )

    def _register(self, tensor: torch.Tensor, number: int | None = None) -> int:
        memory = tensor.untyped_storage()
        key = storage_id(tensor)
        if number is None:
            number = len(self.recording.storages)
            is_parameter = isinstance(tensor, torch.nn.Parameter)
            self.recording.storages.append(
                Storage(
                    number, memory.nbytes(), "parameter" if is_parameter else "activation", "",
                    plain_dtype(tensor.dtype), tuple(tensor.shape), is_parameter and tensor.requires_grad,
                    HOST.asked,
                )
            )  # fmt: skip
        death = _Death(memory, self._died)
        death.key, death.number = key, number
        self._numbers[key] = number
        self._deaths[key] = death
        self._addresses[number] = key
        return number

    def _forget(self, number: int) -> None:
        """The storage's memory lives on under another address: its death there means nothing."""
        key = self._addresses[number]
        del self._deaths[key], self._numbers[key]

    def _died(self, death: _Death) -> None:
        if self._deaths.get(death.key) is death:
            del self._deaths[death.key], self._numbers[death.key]
            self.recording.events.append(Free(death.number, self.step))

    # ---- calls ----------------------------------------------------------------------------------------------------
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator under the modes below and write down what happened."""
        if func is _DEVICE_OF:
            return args[0].fake_device if hasattr(args[0], "fake_device") else args[0].device
        kwargs = kwargs or {}
        if func.namespace == "profiler":
            return func(*args, **kwargs)
        frame = sys._getframe(1)
        while frame.f_back is not None and frame.f_code.co_filename.endswith(_WRAPPERS):
            frame = frame.f_back
        with torch._C.DisableTorchFunction():
            place = self.places.here(frame)
            if func in _IN_PLACE and place.engine and self.origin.get(self.number(args[0])) == (self.step, place.node):
                func = _IN_PLACE[func]
            schema = schema_of(func)
            resized = [(t, self.number(t), t.untyped_storage().nbytes()) for t in args[:1]] if func in _RESIZES else ()
            alias = self._accumulates(func, args, place)
            seen = {} if func is _FRESH else self._arguments(schema, args, kwargs)
        result = self.known.run(func, args, kwargs, lambda: self.shapes(func, schema, seen, args, kwargs))
        if schema.elementwise:
            result = _laid_out(result, seen)
        with torch._C.DisableTorchFunction():
            self._note(schema, seen, result, place, alias)
            for tensor, number, size in resized:
                self._resized(tensor, number, size)
        return result

    def _arguments(self, schema: Schema, args: Iterable[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        seen = dict(schema.defaults)
        for name, value in zip(schema.names, args):
            seen[name] = self._plain(value)
        for name, value in kwargs.items():
            seen[name] = self._plain(value)
        return seen

    def _plain(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return view_of(value, self.number(value))
        if isinstance(value, list | tuple) and any(isinstance(v, torch.Tensor) for v in value):
            return tuple([self._plain(v) for v in value])
        return plain_value(value)

    def _note(self, schema: Schema, seen: dict[str, Any], result: Any, place: Place, alias: int | None) -> None:
        numbers, makes, results = self._numbers, [], []
        for tensor in tensors_in(result):
            number = numbers.get(storage_id(tensor))
            if number is None:
                if alias is not None:
                    self._forget(alias)
                number = self._register(tensor, alias)
                if alias is None:
                    makes.append(number)
                    self.origin[number] = (self.step, place.node)
            results.append(view_of(tensor, number))
        op = "aten.add_.Tensor" if alias is not None else schema.op
        writes = (alias,) if alias is not None else _written(schema, seen)
        self.recording.events.append(
            Call(
                op, seen, tuple(results), tuple(makes), place.phase, place.module, place.line, self.step, writes,
                torch.is_grad_enabled(),
            )
        )  # fmt: skip

    def _resized(self, tensor: torch.Tensor, number: int, size: int) -> None:
        """A storage that changed its size is a new piece of memory; the old one is given back."""
        memory = tensor.untyped_storage()
        if memory.nbytes() == size:
            return
        key = storage_id(tensor)
        if self._numbers.get(key) != number:
            return
        self._deaths.pop(key)
        self._register(tensor)
        new = self._numbers[key]
        call = self.recording.events[-1]
        assert isinstance(call, Call)
        moved = tuple([view_of(tensor, new) if v.storage == number else v for v in call.results])
        self.recording.events[-1] = replace(call, results=moved, makes=(*call.makes, new))
        self.recording.events.append(Free(number, self.step))

    def _accumulates(self, func: Any, args: Any, place: Place) -> int | None:
        """The storage into which autograd would add a second gradient, had it seen plain tensors.

        `torch/csrc/autograd/input_buffer.cpp`, `can_accumulate_inplace`: never into tensor subclasses or under a
        dispatch mode, else where the buffer holds the last reference to a dense gradient and to its storage. Under
        fake tensors it calls `add`; without, `add_`. So does `_scaled_dot_product_attention_math` with its mask
        (transformers/attention.cpp), within which `attending` holds.
        """
        if func is _ADD and self.attending and isinstance(args[1], torch.Tensor):
            return self.number(args[0])
        if func is not _ADD or not place.engine or len(args) < 2:
            return None
        old, new = args[0], args[1]
        if not isinstance(old, torch.Tensor) or not isinstance(new, torch.Tensor) or old.shape != new.shape:
            return None
        number = self.number(old)
        if self.origin.get(number) == (self.step, place.node) or old.dtype != new.dtype:
            return None
        if not torch._prims_common.is_non_overlapping_and_dense_or_false(old):
            return None
        held = references(old)
        return number if held[0] <= self._held[0] and held[1] <= self._held[1] else None


def _laid_out(result: Any, seen: dict[str, Any]) -> Any:
    """An elementwise result with the strides that ATen's kernels give it."""
    if not isinstance(result, FakeTensor):
        return result
    with torch._C.DisableTorchFunction():
        shape = tuple(result.shape)
        operands = [v for v in seen.values() if isinstance(v, View) and v.shape]
        plain = contiguous(shape)
        if all(v.shape == shape and v.strides == plain for v in operands) or not operands:
            return result
        strides = elementwise_strides(shape, operands)
        given = result.stride()
        if all(n < 2 or a == b for n, a, b in zip(shape, strides, given)):
            return result
        better = torch.empty_strided(shape, strides, dtype=result.dtype, device=result.device)
        if "_known" in result.__dict__:
            better._known = result._known  # type: ignore[attr-defined]
        return better


def _written(schema: Schema, seen: dict[str, Any]) -> tuple[int, ...]:
    """Storages that the operator changes."""
    if not schema.writes:
        return ()
    views = []
    for name in schema.writes:
        value = seen.get(name)
        views += [value] if isinstance(value, View) else [v for v in value if isinstance(v, View)] if value else []
    return tuple(dict.fromkeys(v.storage for v in views))


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Looks at the references to the first operand of each sum."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[tuple[int, int]] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _ADD and torch._C._current_graph_task_id() >= 0:
            self.seen.append(references(args[0]))
        return func(*args, **(kwargs or {}))


def references(tensor: torch.Tensor) -> tuple[int, int]:
    """How many references there are to the tensor and to its storage."""
    counted: Any = tensor
    return counted._use_count(), torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)


def _references_of_a_temporary() -> tuple[int, int]:
    """The counts of a gradient that autograd's buffer alone holds, as the recorder sees them: measured once.

    y = sin x + cos x: the gradient by way of cos arrives while the buffer of x holds the one by way of sin.
    """
    with FakeTensorMode(), torch.enable_grad():
        x = torch.empty(2, requires_grad=True) * 1
        y = (x.sin() + x.cos()).sum()
        counter = _Counter()
        with counter:
            y.backward()  # type: ignore[no-untyped-call]
    return counter.seen[0]
