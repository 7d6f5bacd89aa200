"""The price of one kernel on one device: `price(kernel, reads, writes, device)`.

Three times, always bound ≤ io ≤ tiled: what physics asks of the datasheet's rates (`bound`), what no schedule can
beat with this much on-chip memory (`io`), and what a good library attains (`tiled`). Dimensions may be arrays; each
element then equals the scalar result exactly, because both run the same float64 arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from peakline.cost.evaluate import Evaluation, evaluate
from peakline.cost.machine import Machine, machine
from peakline.cost.numeric import Real, as_real
from peakline.models.dims import Dim
from peakline.models.dtypes import DType
from peakline.models.kernels import Kernel

__all__ = ["Bytes", "KernelCost", "Seconds", "price"]

Seconds: TypeAlias = Real
Bytes: TypeAlias = Real

CHUNK = 1 << 14
"""Elements priced at a time: temporaries of 128 KiB stay in a core's L2 cache."""


@dataclass(frozen=True)
class KernelCost:
    """What one kernel costs. Seconds and bytes; floats, or arrays of the dimensions' common shape.

    Attributes:
        bound: max(FLOPs / peak, compulsory bytes / bandwidth of main memory).
        io: the same with the traffic that no schedule can beat, at every level whose bandwidth is known.
        tiled: what a good library kernel takes, launch included.
        launch: the part of `tiled` that starting kernels takes.
        traffic: bytes of `tiled` by memory level.
        io_lower_bound: least bytes of any schedule by memory level.
        limits: seconds that each resource alone would need (`compute`, the main level, `l2`, `launch`), and `latency`:
            what is left of `tiled` beyond its launch and its slowest resource: pipeline fill, waves, imperfect overlap.
    """

    bound: Seconds
    io: Seconds
    tiled: Seconds
    launch: Seconds
    traffic: dict[str, Bytes]
    io_lower_bound: dict[str, Bytes]
    limits: dict[str, Seconds]

    @property
    def limited_by(self) -> str | NDArray[np.str_]:
        """The resource that takes most of `tiled`: a name from `limits`, or an array of names."""
        names = list(self.limits)
        if not isinstance(self.tiled, np.ndarray):
            return max(names, key=lambda name: self.limits[name])
        stacked = np.stack([np.broadcast_to(self.limits[name], self.tiled.shape) for name in names])
        named: NDArray[np.str_] = np.asarray(names)[stacked.argmax(axis=0)]
        return named


def price(
    kernel: Kernel, reads: Dim, writes: Dim, device: Any, *, cuda_graph: bool = False, copies: Dim | None = None
) -> KernelCost:
    """What `kernel` costs on `device`.

    Args:
        kernel: what is computed; dimensions may be int64 arrays that broadcast against each other.
        reads, writes: compulsory bytes, each operand and each result once.
        device: a `peakline.hardware.Device` or a `Machine`.
        cuda_graph: the kernel is replayed in a CUDA graph; else kernels follow each other no faster than empty ones
            do on a stream, where the device states that.
        copies: the kernel is measured by itself, run again and again over this many copies of its second operand (1:
            the same operands each time): what caches still hold of the run before is not read again, and counts
            neither in `tiled` nor in `bound`. None: it is part of a program.

    Raises:
        ValueError: if the device cannot compute, cannot multiply in the kernel's format or any wider one, or its main
            memory's bandwidth is unknown.
    """
    target = machine(device)
    values: dict[str, Any] = {}
    formats: dict[str, DType | bool] = {}
    arrays = isinstance(reads, np.ndarray) or isinstance(writes, np.ndarray) or isinstance(copies, np.ndarray)
    kind: Any = type(kernel)
    for name in _names(kind):
        value = getattr(kernel, name)
        if isinstance(value, np.ndarray):
            arrays = True
        if isinstance(value, DType | bool):
            formats[name] = value
        else:
            values[name] = value
    values["reads"], values["writes"] = reads, writes
    if not arrays:
        plain = tuple(float(value) for value in values.values())
        again = None if copies is None else float(copies)
        return _scalar(kind, plain, tuple(formats.values()), target, cuda_graph, again)
    return _array(kind, values, tuple(formats.values()), target, cuda_graph, copies)


@lru_cache(maxsize=64)
def _names(kind: type[Any]) -> tuple[str, ...]:
    return tuple(f.name for f in fields(kind))


@lru_cache(maxsize=8192)
def _scalar(
    kind: type[Any],
    values: tuple[float, ...],
    formats: tuple[DType | bool, ...],
    target: Machine,
    cuda_graph: bool,
    copies: float | None,
) -> KernelCost:
    return KernelCost(*evaluate(kind, values, formats, target, cuda_graph, copies))


def _array(
    kind: type[Any],
    values: dict[str, Any],
    formats: tuple[DType | bool, ...],
    target: Machine,
    cuda_graph: bool,
    copies: Dim | None,
) -> KernelCost:
    shape = np.broadcast_shapes(*(np.shape(value) for value in values.values()))
    size = int(np.prod(shape))
    again = None if copies is None else np.broadcast_to(copies, shape).reshape(-1).astype(np.float64)
    flat = [
        np.broadcast_to(value, shape).reshape(-1) if isinstance(value, np.ndarray) else float(value)
        for value in values.values()
    ]
    found: Evaluation | None = None
    for start in range(0, size, CHUNK):
        stop = min(start + CHUNK, size)
        part = evaluate(
            kind,
            tuple(as_real(value[start:stop]) if isinstance(value, np.ndarray) else value for value in flat),
            formats,
            target,
            cuda_graph,
            None if again is None else again[start:stop],
        )
        if found is None:
            found = _map(lambda _: np.empty(size), part)
        _fill(found, part, start, stop)
    if found is None:  # no elements at all
        found = _map(lambda _: np.empty(0), evaluate(kind, (1.0,) * len(flat), formats, target, cuda_graph))
    return KernelCost(*_map(lambda value: value.reshape(shape), found))


def _map(change: Callable[[Any], Any], part: Evaluation) -> Evaluation:
    """`part` with `change` applied to every value, those in dictionaries included."""
    changed: list[Any] = [
        {name: change(value) for name, value in entry.items()} if isinstance(entry, dict) else change(entry)
        for entry in part
    ]
    return Evaluation(*changed)


def _fill(whole: Evaluation, part: Evaluation, start: int, stop: int) -> None:
    """Writes the values of one chunk into their place."""
    targets: tuple[Any, ...] = whole
    for target, source in zip(targets, part, strict=True):
        if isinstance(source, dict):
            for name, value in source.items():
                target[name][start:stop] = value
        else:
            target[start:stop] = source
