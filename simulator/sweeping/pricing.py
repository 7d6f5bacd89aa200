"""Prices of many graphs on one device at once: equal kernels once, kernels of a kind together in one array.

`peakline.cost.evaluate` prices a kernel element by element, so kernels of the same kind and formats, of whatever
operator, graph and size, can be laid one behind the other and priced in one call. Every sum then runs in program order,
as in `peakline.cost.program`, so that each figure is the one a single estimate gives, to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peakline.cost.evaluate import Evaluation
from peakline.cost.evaluate import evaluate as price_chunk
from peakline.cost.machine import Machine, machine
from peakline.cost.price import CHUNK
from peakline.cost.program import ExactSum, working
from peakline.hardware import Device
from peakline.models.dtypes import DType
from peakline.models.graph import Graph
from peakline.models.kernels import Kernel, Stream
from peakline.sweeping.structure import _padded

__all__ = ["Program", "RunCost", "price_programs", "program_of"]

BOUND, IO, TILED, MAIN, MAIN_LEAST, CACHE, CACHE_LEAST, LIMITS = range(8)
"""Rows of the sums: seconds at three fidelities, bytes at two levels as tiled and at least, then seconds by limit."""


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
    """A program's price on a device, arrays of its shape; names of limits in the order of `limits`' first axis."""

    sums: NDArray[np.float64]
    names: tuple[str, ...]

    @property
    def limited_by(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Number of the resource that limits most of the time, the first of equals, and its share of it."""
        limits = self.sums[LIMITS:]
        worst = limits.argmax(axis=0)
        tiled = self.sums[TILED]
        share = np.take_along_axis(limits, worst[None], axis=0)[0] / np.where(tiled > 0, tiled, 1.0)
        return worst, share


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
    values = [*(getattr(kernel, name) for name in _names(kernel)), reads, writes]
    arrays = [v for v in values if isinstance(v, np.ndarray)]
    key = (
        type(kernel),
        *[
            v if not isinstance(v, np.ndarray) else (v.shape, v.tobytes() if v.size <= _FEW else v.flat[-1])
            for v in values
        ],
    )
    candidates = known.setdefault(key, [])
    exact = all(a.size <= _FEW for a in arrays)  # the key then holds every element
    for number in candidates:
        if exact:
            return number
        other = works[number]
        theirs = [*(getattr(other.kernel, name) for name in _names(kernel)), other.reads, other.writes]
        if all(np.array_equal(a, b) for a, b in zip(arrays, (v for v in theirs if isinstance(v, np.ndarray)))):
            return number
    candidates.append(len(works))
    works.append(Work(kernel, reads, writes, _broadcast({a.shape for a in arrays})))
    return len(works) - 1


def _broadcast(shapes: set[tuple[int, ...]]) -> tuple[int, ...]:
    return next(iter(shapes), ()) if len(shapes) <= 1 else np.broadcast_shapes(*shapes)


_FEW = 256


def _names(kernel: Kernel) -> tuple[str, ...]:
    return tuple(kernel.__dataclass_fields__)


@dataclass
class _Stack:
    """Kernels of one kind and the same formats, one behind the other: `size` elements in all."""

    members: list[tuple[int, int]]
    size: int
    kernel: Kernel
    reads: Any
    writes: Any


def stacked(programs: Sequence[Program]) -> list[_Stack]:
    """All kernels of the programs in as few pieces as there are kinds of them.

    Kernels that differ in which of their sizes is a plain 0 stay apart: 0 may mean that a part does not exist.
    """
    groups: dict[Any, list[tuple[int, int]]] = {}
    for p, program in enumerate(programs):
        for w, work in enumerate(program.works):
            groups.setdefault(_sort(work.kernel), []).append((p, w))
    return [_stack(programs, members) for members in groups.values()]


def _sort(kernel: Kernel) -> Any:
    values = [getattr(kernel, name) for name in _names(kernel)]
    return (
        type(kernel),
        *(v if isinstance(v, DType | bool) else not isinstance(v, np.ndarray) and v == 0 for v in values),
    )


def _stack(programs: Sequence[Program], members: list[tuple[int, int]]) -> _Stack:
    works = [programs[p].works[w] for p, w in members]
    sizes: dict[str, Any] = {}
    for name in _names(works[0].kernel):
        first = getattr(works[0].kernel, name)
        if not isinstance(first, DType | bool):
            sizes[name] = _joined([getattr(work.kernel, name) for work in works], works)
    kernel = replace(works[0].kernel, **sizes)
    return _Stack(
        members,
        sum(math.prod(w.shape) for w in works),
        kernel,
        *(_joined([getattr(w, name) for w in works], works) for name in ("reads", "writes")),
    )


def _joined(values: list[Any], works: list[Work]) -> Any:
    """The values one behind the other as float64, which is what they are priced in; a common plain number stays one."""
    first = values[0]
    if not isinstance(first, np.ndarray) and all(not isinstance(v, np.ndarray) and v == first for v in values):
        return first
    out = np.empty(sum([math.prod(work.shape) for work in works]))
    start = 0
    for value, work in zip(values, works):
        stop = start + math.prod(work.shape)
        if isinstance(value, np.ndarray):
            value = (value if value.shape == work.shape else np.broadcast_to(value, work.shape)).reshape(-1)
        out[start:stop] = value
        start = stop
    return out


def price_programs(
    programs: Sequence[Program], stacks: Sequence[_Stack], device: Device, *, cuda_graph: bool = False
) -> list[RunCost | Exception]:
    """Each program's price on `device`, or why it has none.

    Args:
        programs: what to price.
        stacks: `stacked(programs)`.
    """
    failed: dict[int, tuple[int, Exception]] = {}
    priced: dict[tuple[int, int], NDArray[np.float64]] = {}
    names: tuple[str, ...] = ()
    try:
        target = machine(device)
    except ValueError as error:
        return [error for _ in programs]
    for stack in stacks:
        try:
            figures, found = _figures(stack, target, cuda_graph)
        except Exception as error:
            for p, w in stack.members:
                first = next(i for i, (number, _) in enumerate(programs[p].order) if number == w)
                if p not in failed or first < failed[p][0]:
                    failed[p] = (first, error)
            continue
        names = tuple(dict.fromkeys((*names, *found)))
        start = 0
        for p, w in stack.members:
            stop = start + math.prod(programs[p].works[w].shape)
            priced[p, w] = _spread(figures[:, start:stop], found, names)
            start = stop
    return [failed[p][1] if p in failed else _summed(program, p, priced, names) for p, program in enumerate(programs)]


def _figures(stack: _Stack, target: Machine, cuda_graph: bool) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """`[quantities, elements]` of a stack, and the names of its limits."""
    values: list[Any] = []
    formats: list[Any] = []
    for name in _names(stack.kernel):
        value = getattr(stack.kernel, name)
        (formats if isinstance(value, DType | bool) else values).append(value)
    values += [stack.reads, stack.writes]
    size = stack.size
    arrays = any(isinstance(value, np.ndarray) for value in values)
    names: tuple[str, ...] = ()
    out = np.zeros((0, size))
    for start in range(0, size, CHUNK):
        cut = slice(start, min(start + CHUNK, size))
        chunk = tuple([value[cut] if isinstance(value, np.ndarray) else float(value) for value in values])
        cost = price_chunk(type(stack.kernel), chunk, tuple(formats), target, cuda_graph)
        if not names:
            names = tuple(cost.limits)
            out = np.zeros((LIMITS + len(names), size))
        _write(out[:, cut], cost, target, names, arrays)
    return out, names


def _write(out: NDArray[np.float64], cost: Evaluation, target: Machine, names: tuple[str, ...], arrays: bool) -> None:
    """One chunk's quantities; of the limits only the highest counts, the first of equals, with all of the time."""
    out[BOUND], out[IO], out[TILED] = cost.bound, cost.io, cost.tiled
    for level, row, least in ((target.main, MAIN, MAIN_LEAST), (target.cache, CACHE, CACHE_LEAST)):
        if level is not None:
            out[row] = cost.traffic.get(level.name, 0.0)
            out[least] = cost.io_lower_bound.get(level.name, 0.0)
    if not arrays:
        worst = max(range(len(names)), key=lambda i: cost.limits[names[i]])
        out[LIMITS + worst] = cost.tiled
        return
    highest = np.broadcast_to(cost.limits[names[0]], out[TILED].shape)
    ranked = np.zeros(highest.shape, dtype=np.int8)
    for i, name in enumerate(names[1:], 1):
        higher = cost.limits[name] > highest
        ranked[higher] = i
        highest = np.maximum(highest, cost.limits[name])
    for i in range(len(names)):
        np.multiply(out[TILED], ranked == i, out=out[LIMITS + i])


def _spread(figures: NDArray[np.float64], own: tuple[str, ...], names: tuple[str, ...]) -> NDArray[np.float64]:
    """Limits moved to their places among `names`, which grow from stack to stack."""
    if own == names[: len(own)]:
        return figures
    out = np.zeros((LIMITS + len(names), figures.shape[1]))
    out[:LIMITS] = figures[:LIMITS]
    for i, name in enumerate(own):
        out[LIMITS + names.index(name)] = figures[LIMITS + i]
    return out


def _summed(
    program: Program, number: int, priced: Mapping[tuple[int, int], NDArray[np.float64]], names: tuple[str, ...]
) -> RunCost:
    """The program's sums, operator after operator."""
    rank = len(program.shape)
    sums = np.zeros((LIMITS + len(names), *(1,) * rank))
    shaped = [
        priced[number, w].reshape((-1, *_padded(work.shape, program.shape))) for w, work in enumerate(program.works)
    ]
    for w, executions in program.order:
        term = executions * shaped[w]
        if len(term) < len(sums):
            term = np.concatenate([term, np.zeros((len(sums) - len(term), *term.shape[1:]))])
        if sums.shape[1:] == program.shape:
            sums += term
        else:
            sums = sums + term
    return RunCost(np.broadcast_to(sums, (len(sums), *program.shape)), names)
