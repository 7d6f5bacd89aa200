"""A graph reduced to what its price depends on: distinct kernels, and in which order they run; and such a price."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peakline.cost.program import ExactSum, working
from peakline.models.dtypes import DType
from peakline.models.graph import Graph
from peakline.models.kernels import Kernel, Stream

__all__ = ["Program", "RunCost", "Work", "program_of"]

BOUND, IO, TILED, MAIN, MAIN_LEAST, CACHE, CACHE_LEAST, LIMITS = range(8)
"""Rows of the sums: seconds at three fidelities, bytes at two levels as tiled and at least; how many they are."""


@dataclass(frozen=True)
class Work:
    """One kernel with the operator's compulsory bytes; `shape` is what its sizes broadcast to."""

    kernel: Kernel
    reads: Any
    writes: Any
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Program:
    """A graph reduced to what its price depends on.

    Attributes:
        works: distinct kernels.
        order: (number in `works`, executions) in program order.
        flops, vector_work: totals; exact int, or float64 array.
        shape: of the sweep.
    """

    works: tuple[Work, ...]
    order: tuple[tuple[int, int], ...]
    flops: Any
    vector_work: Any
    shape: tuple[int, ...]


@dataclass(frozen=True)
class RunCost:
    """A program's price on a device: sums by row (`BOUND` and so on), and the seconds that each resource limits."""

    sums: NDArray[np.float64]
    limits: Mapping[str, NDArray[np.float64]]

    @property
    def limited_by(self) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
        """Number of the resource that limits most of the time, the first of equals, and its share of it."""
        tiled = self.sums[TILED]
        worst = np.zeros(tiled.shape, dtype=np.int8)
        highest: Any = None
        for i, seconds in enumerate(self.limits.values()):
            if highest is None:
                highest = seconds
                continue
            np.copyto(worst, i, where=seconds > highest)
            highest = np.maximum(highest, seconds)
        return worst, highest / np.where(tiled > 0, tiled, 1.0)


def program_of(graph: Graph, shape: tuple[int, ...]) -> Program:
    """The kernels of `graph` in order, equal ones once."""
    works: list[Work] = []
    known: dict[Any, list[int]] = {}
    order: list[tuple[int, int]] = []
    flops, vector = ExactSum(), ExactSum()
    for operator in working(graph):
        executions = operator.executions
        products: Any = 0
        others: Any = 0
        for kernel, moved in zip(operator.kernels, operator.moves):
            order.append((_number(works, known, kernel, *moved), executions))
            if isinstance(kernel, Stream):
                others = others + kernel.flops
            else:
                products = products + kernel.flops
        flops.add(products, executions)
        vector.add(others, executions)
    return Program(tuple(works), tuple(order), flops.value(), vector.value(), shape)


def _number(works: list[Work], known: dict[Any, list[int]], kernel: Kernel, reads: Any, writes: Any) -> int:
    """The kernel's number among the distinct ones; arrays are equal by content."""
    kind: Any = type(kernel)
    values = (*_fields(kind)(kernel), reads, writes)
    arrays = []
    said: list[Any] = [kind]
    exact = True  # the key holds every element
    for value in values:
        if not isinstance(value, np.ndarray):
            said.append(value)
            continue
        arrays.append(value)
        said.append(value.shape)
        if value.size <= _FEW:
            said.append(value.tobytes())
        else:
            said.append(value.flat[-1])
            exact = False
    candidates = known.setdefault(tuple(said), [])
    for number in candidates:
        if exact:
            return number
        other = works[number]
        theirs = (*_fields(kind)(other.kernel), other.reads, other.writes)
        if all(np.array_equal(a, b) for a, b in zip(arrays, (v for v in theirs if isinstance(v, np.ndarray)))):
            return number
    candidates.append(len(works))
    works.append(Work(kernel, reads, writes, _broadcast({a.shape for a in arrays})))
    return len(works) - 1


@cache
def _fields(kind: Any) -> Callable[[Kernel], tuple[Any, ...]]:
    """The values of all fields of such a kernel at once."""
    return attrgetter(*kind.__dataclass_fields__)


def _broadcast(shapes: set[tuple[int, ...]]) -> tuple[int, ...]:
    return next(iter(shapes), ()) if len(shapes) <= 1 else np.broadcast_shapes(*shapes)


_FEW = 256


def names_of(kernel: Kernel) -> tuple[str, ...]:
    """The kernel's fields, in the order of their declaration."""
    return tuple(kernel.__dataclass_fields__)


def sizes_and_formats(work: Work) -> tuple[list[Any], tuple[DType | bool, ...]]:
    """The kernel's sizes with its bytes behind them, and its formats: the arguments of `peakline.cost.evaluate`."""
    sizes: list[Any] = []
    formats: list[DType | bool] = []
    for name in names_of(work.kernel):
        value = getattr(work.kernel, name)
        if isinstance(value, DType | bool):
            formats.append(value)
        else:
            sizes.append(value)
    return [*sizes, work.reads, work.writes], tuple(formats)
