"""What a CPU kernel allocates inside one dispatched operator: asked of the kernel itself, once per kind of call.

A fake tensor's operator allocates nothing, yet the real one's kernel may: oneDNN reorders weights and keeps scratch
whose size depends on the processor's instruction set, reductions and normalisations keep partial sums per thread,
a Python number becomes a tensor. An operator with small operands is run once, on zeros of the same shapes and strides,
and its allocations and frees are read from torch's profiler; everything else of the step stays unrun. Of operators too
large to run, what they allocate inside is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from peakline.models.capture.calls import Call, View
from peakline.models.capture.views import torch_dtype
from peakline.models.dtypes import DType

__all__ = ["Inside", "Kernels", "inside"]

LARGEST = 256 << 20
"""Bytes of the operands and results of the largest operator that is run."""

MOST_WORK = 1 << 33
"""The most multiplications of a product that is run: a fraction of a second."""

SLOW = {"fp16": 32}
"""Formats whose products take so many times longer where the processor has no instructions for them."""

_NEVER = ("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.unique", "aten.set_", "aten.resize_",
          "aten._unique2", "aten.bincount", "aten.lift_fresh", "aten.get_rng_state")  # fmt: skip
_CONVOLUTIONS = ("aten.convolution", "aten.convolution_backward")


@dataclass(frozen=True, slots=True)
class Inside:
    """What happens to memory within one operator, besides its results.

    Attributes:
        peak: blocks that stand beside all results when most is alive.
        all: every block allocated and freed inside, in order.
        results: sizes of the results that stay, in order; () where they are as the fake tensors say.
        before: how many of `all` are allocated before the first result.
    """

    peak: tuple[int, ...] = ()
    all: tuple[int, ...] = ()
    results: tuple[int, ...] = ()
    before: int = 0


def inside(trace: list[int]) -> Inside:
    """Sort out a list of signed sizes: what is left in the end are results, the rest temporaries.

    Of several blocks of one size those allocated last are freed first, so that results, which a kernel makes early or
    is handed, are told from temporaries as well as sizes allow.
    """
    alive: dict[int, list[int]] = {}
    freed: set[int] = set()
    for place, size in enumerate(trace):
        if size > 0:
            alive.setdefault(size, []).append(place)
        elif size < 0 and alive.get(-size):
            freed.add(alive[-size].pop())
    results = [size for place, size in enumerate(trace) if size > 0 and place not in freed]
    live = highest = at = 0
    for place, size in enumerate(trace):
        live += size
        if live > highest:
            highest, at = live, place
    extra = highest - sum(results)
    if extra <= 0:
        peak: tuple[int, ...] = ()
    else:
        peak = tuple(_standing(trace[: at + 1], freed))
        peak = peak if sum(peak) == extra else (extra,)
    passing = [place for place in range(len(trace)) if place in freed]
    first = min((place for place, size in enumerate(trace) if size > 0 and place not in freed), default=0)
    return Inside(peak, tuple([trace[p] for p in passing]), tuple(results), sum(1 for p in passing if p < first))


def _standing(trace: list[int], freed: set[int]) -> Iterator[int]:
    """Temporaries that are alive after the events of `trace`."""
    alive: dict[int, list[int]] = {}
    for place, size in enumerate(trace):
        if size > 0:
            alive.setdefault(size, []).append(place)
        elif size < 0 and alive.get(-size):
            alive[-size].pop()
    for size, places in alive.items():
        for place in places:
            if place in freed:
                yield size


@dataclass
class Kernels:
    """Runs operators on zeros and remembers what they allocated."""

    _known: dict[Any, Inside | None] = field(default_factory=dict)

    def __call__(self, call: Call, flops: float = 0) -> Inside | None:
        """What `call`, of so many operations, allocates inside; None where it cannot or should not be run."""
        if call.packet in _NEVER or not call.packet.startswith("aten.") or _too_large(call, flops):
            return None
        key = (call.op, call.tracked, tuple((name, _key(value)) for name, value in call.arguments.items()))
        if key not in self._known:
            self._known[key] = self._run(call)
        return self._known[key]

    def _run(self, call: Call) -> Inside | None:
        packet, overload = call.packet.split(".", 1)[1], call.op.rsplit(".", 1)[1]
        operator = getattr(getattr(torch.ops.aten, packet), overload)
        for fill in (_nothing, _ones, _diagonal):  # none is a distribution, and only the last can be inverted
            try:
                return self._run_on(call, operator, fill)
            except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
                continue
        return None

    @staticmethod
    def _run_on(call: Call, operator: Any, fill: Callable[[torch.Tensor], Any]) -> Inside:
        memory: dict[int, torch.Tensor] = {}
        schema = operator._schema.arguments
        values = {name: _real(value, memory, fill) for name, value in call.arguments.items()}
        values = {a.name: _typed(values[a.name], a) for a in schema if a.name in values}
        if call.packet == "aten.mkldnn_rnn_layer_backward":
            values["workspace"] = _workspace_of_forward(values)
        args = [values.pop(a.name) for a in schema if not a.kwarg_only and a.name in values]
        with torch.set_grad_enabled(call.tracked):
            return inside(_traced(lambda: operator(*args, **values)))


def _workspace_of_forward(values: dict[str, Any]) -> torch.Tensor:
    """What the forward pass of a recurrent layer left for its backward: only oneDNN can fill it."""
    forward = torch.ops.aten.mkldnn_rnn_layer.default
    given = {**values, "weight0": values["weight1"], "weight1": values["weight2"], "weight2": values["weight3"],
             "weight3": values["weight4"], "cx_": values["cx_tmp"]}  # fmt: skip
    with torch.enable_grad():
        workspace: torch.Tensor = forward(*[given[a.name] for a in forward._schema.arguments])[3]
    return workspace


def _traced(run: Callable[[], Any]) -> list[int]:
    """Signed sizes of what happens to memory while `run` runs, its results kept."""
    profiler: Any = torch.autograd
    kind: Any = torch._C._profiler
    settings = profiler.ProfilerConfig(
        profiler.ProfilerState.CPU, False, True, False, False, False, kind._ExperimentalConfig()
    )
    profiler._enable_profiler_legacy(settings)
    try:
        kept = run()
    finally:
        threads = profiler._disable_profiler_legacy()
    del kept
    return [e.cpu_memory_usage() for events in threads for e in events if e.kind() == "memory_alloc"]


@contextmanager
def undisturbed() -> Iterator[None]:
    """The random number generator of the user's program is as it was afterwards."""
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)


def _too_large(call: Call, flops: float) -> bool:
    views = [*call.views(), *call.results]
    if flops * max((SLOW.get(view.dtype.name, 1) for view in views), default=1) > 2 * MOST_WORK:
        return True
    return sum(view.bytes for view in views) > LARGEST


def _key(value: Any) -> Any:
    if isinstance(value, View):
        return (value.shape, value.strides, value.dtype.name)
    return tuple([_key(v) for v in value]) if isinstance(value, tuple) else value


def _nothing(tensor: torch.Tensor) -> None:
    """Zeros, as the memory comes."""


def _ones(tensor: torch.Tensor) -> None:
    if tensor.is_floating_point():
        tensor.fill_(1)


def _diagonal(tensor: torch.Tensor) -> None:
    if tensor.is_floating_point() and tensor.dim() > 1:
        tensor.diagonal(0, -2, -1).fill_(1)


def _real(value: Any, memory: dict[int, torch.Tensor], fill: Callable[[torch.Tensor], Any]) -> Any:
    """Zeros of the same shape and strides, then filled; tensors of one storage share theirs."""
    if isinstance(value, View):
        kind = torch_dtype(value.dtype)
        last = sum((n - 1) * stride for n, stride in zip(value.shape, value.strides)) if value.elements else -1
        needed = (value.offset + last + 1) * kind.itemsize
        base = memory.get(value.storage)
        if base is None or base.numel() < needed:
            base = memory[value.storage] = torch.zeros(needed, dtype=torch.uint8)
        whole = base[: needed // kind.itemsize * kind.itemsize].view(kind)
        made = torch.as_strided(whole, value.shape, value.strides, value.offset)
        fill(made)
        return made
    if isinstance(value, tuple):
        return [_real(v, memory, fill) for v in value]
    return value


def _typed(value: Any, argument: Any) -> Any:
    """A plain value as the schema wants it."""
    if isinstance(value, DType):
        return torch_dtype(value)
    if isinstance(value, str):
        kind = str(argument.type)
        if "Device" in kind or argument.name == "device":
            return torch.device(value)
        if argument.name in ("layout", "memory_format"):
            return getattr(torch, value.removeprefix("torch."))
        if argument.name == "generator":
            return None
    return value
