"""Count the bytes that Triton kernels move, load by load and store by store, under Triton's interpreter.

    with count_bytes() as moved:
        matmul(a, b, rows=64, cols=64, step=32)
    moved.traffic.loads["a"], moved.traffic.total

Every `tl.load` and `tl.store`, through whatever kind of pointer, ends in two methods of the interpreter's builder, and
every atomic in two more. While a counter is open these methods count the lanes that their mask leaves on, at the width
of the pointer's element; an atomic reads and writes. A launch tells which argument a pointer belongs to. The counter
looks on: results and order are the interpreter's.
"""

# mypy: disable-error-code="import-not-found,import-untyped"

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from peakline.cost.tiled.traffic import Traffic

__all__ = ["ByteCounter", "count_bytes", "interpreting"]

UNKNOWN = "?"
"""The name for bytes whose pointer lies in no argument of the launch."""


def interpreting() -> bool:
    """Whether Triton interprets its kernels in this process: decided when it is first imported."""
    import triton.language as tl

    return type(tl.sum).__name__ == "InterpretedFunction"


@dataclass
class ByteCounter:
    """Bytes moved while it was open, by the name of the kernel's argument.

    Attributes:
        loads, stores: bytes by argument, all kernels together; `?` for a pointer into no argument. Arguments that
            share memory count under the first of them.
        by_kernel: the same by (kernel, argument): [loaded, stored].
        launches: kernels launched.
    """

    loads: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    stores: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    by_kernel: dict[tuple[str, str], list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))
    launches: int = 0
    _kernel: str = ""
    _ranges: list[tuple[int, int, str]] = field(default_factory=list)

    @property
    def traffic(self) -> Traffic:
        """What was counted so far."""
        return Traffic(dict(self.loads), dict(self.stores))

    def _launched(self, kernel: str, ranges: list[tuple[int, int, str]]) -> None:
        self._kernel, self._ranges = kernel, ranges
        self.launches += 1

    def _moved(self, pointers: Any, mask: Any, *, loaded: bool, stored: bool) -> None:
        addresses = np.asarray(pointers.data)
        active = _lanes(mask, addresses.shape)
        lanes = int(np.count_nonzero(active))
        if not lanes:
            return
        width = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        name = self._owner(int(addresses[active][0]))
        if loaded:
            self.loads[name] += lanes * width
            self.by_kernel[self._kernel, name][0] += lanes * width
        if stored:
            self.stores[name] += lanes * width
            self.by_kernel[self._kernel, name][1] += lanes * width

    def _owner(self, address: int) -> str:
        return next((name for first, end, name in self._ranges if first <= address < end), UNKNOWN)


def _lanes(mask: Any, shape: tuple[int, ...]) -> Any:
    """The mask as an array of booleans of the pointers' shape; no mask leaves every lane on."""
    if mask is None:
        return np.ones(shape, dtype=bool)
    return np.broadcast_to(np.asarray(getattr(mask, "data", mask), dtype=bool), shape)


@contextmanager
def count_bytes() -> Iterator[ByteCounter]:
    """Count what every kernel launched inside moves. Counters may be nested, not used from several threads at once.

    Raises:
        RuntimeError: if Triton compiles its kernels in this process; set TRITON_INTERPRET=1 before it is imported.
    """
    if not interpreting():
        state = "set after Triton was imported" if "triton" in sys.modules else "not set"
        raise RuntimeError(f"only interpreted kernels can be counted, and TRITON_INTERPRET=1 is {state}")
    from triton.runtime import interpreter

    counter = ByteCounter()
    undo: list[tuple[Any, str, Any]] = []

    def replace(owner: Any, name: str, wrap: Callable[[Any], Any]) -> None:
        method = getattr(owner, name, None)
        if method is not None:
            undo.append((owner, name, method))
            setattr(owner, name, wrap(method))

    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    replace(builder, "create_masked_load", lambda old: _watch(counter, old, 1, loaded=True, stored=False))
    replace(builder, "create_masked_store", lambda old: _watch(counter, old, 2, loaded=False, stored=True))
    replace(builder, "create_atomic_rmw", lambda old: _watch_atomic(counter, old))
    replace(builder, "create_atomic_cas", lambda old: _watch(counter, old, None, loaded=True, stored=True))
    replace(executor, "_init_args_hst", lambda old: _watch_launch(counter, old))
    try:
        yield counter
    finally:
        for owner, name, method in reversed(undo):
            setattr(owner, name, method)


def _watch(counter: ByteCounter, method: Any, mask_at: int | None, *, loaded: bool, stored: bool) -> Any:
    """`method(builder, pointers, ...)` that counts first; its mask is argument `mask_at` after the builder."""

    def watched(builder: Any, pointers: Any, *args: Any, **kwargs: Any) -> Any:
        mask = None
        if mask_at is not None:
            mask = kwargs["mask"] if "mask" in kwargs else args[mask_at - 1]
        counter._moved(pointers, mask, loaded=loaded, stored=stored)
        return method(builder, pointers, *args, **kwargs)

    return watched


def _watch_atomic(counter: ByteCounter, method: Any) -> Any:
    def watched(builder: Any, operation: Any, pointers: Any, value: Any, mask: Any, *args: Any, **kwargs: Any) -> Any:
        counter._moved(pointers, mask, loaded=True, stored=True)
        return method(builder, operation, pointers, value, mask, *args, **kwargs)

    return watched


def _watch_launch(counter: ByteCounter, method: Any) -> Any:
    """Note the address range of each tensor argument of a launch."""

    def watched(executor: Any, args: Any, *rest: Any, **kwargs: Any) -> Any:
        result = method(executor, args, *rest, **kwargs)
        hosted = result if isinstance(result, tuple) else (result,)
        named = list(zip(executor.arg_names, hosted[0]))
        if len(hosted) > 1 and isinstance(hosted[1], dict):
            named += hosted[1].items()
        ranges = [(*_range(tensor), name) for name, tensor in named if hasattr(tensor, "data_ptr")]
        counter._launched(executor.fn.__name__, ranges)
        return result

    return watched


def _range(tensor: Any) -> tuple[int, int]:
    """First address of a tensor and the one after its last."""
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride())) + 1
    first = int(tensor.data_ptr())
    return first, first + (reach * tensor.element_size() if tensor.numel() else 0)
