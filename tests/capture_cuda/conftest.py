"""A small recorder: runs a function on fake CPU tensors, rerouted to a target, and lists its ATen calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="capture needs torch")

from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from peakline.models.capture.calls import Call, View  # noqa: E402
from peakline.models.capture.cuda import rerouting  # noqa: E402
from peakline.models.capture.target import Target  # noqa: E402
from peakline.models.capture.views import plain_dtype  # noqa: E402


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.numbers: dict[int, int] = {}
        self.kept: list[Any] = []
        self.bytes: list[int] = []

    def plain(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            if storage._cdata not in self.numbers:
                self.numbers[storage._cdata] = len(self.kept)
                self.kept.append(storage)
                self.bytes.append(storage.nbytes())
            number = self.numbers[storage._cdata]
            return View(number, tuple(value.shape), value.stride(), value.storage_offset(), plain_dtype(value.dtype))
        if isinstance(value, list | tuple):
            return tuple(self.plain(v) for v in value)
        return plain_dtype(value) if isinstance(value, torch.dtype) else value

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace == "aten":
            declared = func._schema.arguments
            seen = {a.name: self.plain(a.default_value) for a in declared if a.has_default_value()}
            seen |= {a.name: self.plain(v) for a, v in zip(declared, args)}
            seen |= {name: self.plain(v) for name, v in (kwargs or {}).items()}
            before = len(self.kept)
            results = tuple(v for v in _flat(self.plain(result)) if isinstance(v, View))
            makes = tuple(range(before, len(self.kept)))
            self.calls.append(Call(str(func), seen, results, makes))
        return result


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple):
        for one in value:
            yield from _flat(one)
    else:
        yield value


class Recorded(list[Call]):
    """The calls, with the bytes of every storage by number."""

    storages: list[int]

    def of(self, packet: str) -> list[Call]:
        """The calls of one operator, named without `aten.`."""
        return [call for call in self if call.packet == f"aten.{packet}"]

    def names(self) -> list[str]:
        """Operators in order, without `aten.` and overload."""
        return [call.packet.removeprefix("aten.") for call in self]


@pytest.fixture
def record() -> Callable[..., Recorded]:
    """record(function, target) → the calls it dispatched; without a target, on a GPU that prefers flash."""

    def run(function: Callable[[], Any], target: Target | None = None) -> Recorded:
        recorder = _Recorder()
        with FakeTensorMode(allow_non_fake_inputs=True), rerouting(target or Target(cudnn_attention=False)), recorder:
            function()
        recorded = Recorded(recorder.calls)
        recorded.storages = recorder.bytes
        return recorded

    return run
