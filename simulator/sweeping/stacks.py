"""Prices of many small programs on one device at once: kernels of a kind together in one array.

`peakline.cost.evaluate` prices a kernel element by element, so kernels of the same kind and formats, of whatever
operator, graph and size, can be laid one behind the other and priced in one call.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peakline.cost.evaluate import Evaluation
from peakline.cost.evaluate import evaluate as price_chunk
from peakline.cost.machine import Machine
from peakline.cost.price import CHUNK
from peakline.models.dtypes import DType
from peakline.models.kernels import Kernel
from peakline.sweeping.reduced import (
    BOUND,
    CACHE,
    CACHE_LEAST,
    IO,
    LIMITS,
    MAIN,
    MAIN_LEAST,
    TILED,
    Program,
    RunCost,
    Work,
    names_of,
)

__all__ = ["Stack", "price_stacks", "stacked"]


@dataclass
class Stack:
    """Kernels of one kind and the same formats, one behind the other: `size` elements in all."""

    members: list[tuple[int, int]]
    size: int
    kernel: Kernel
    reads: Any
    writes: Any


def stacked(programs: Sequence[Program]) -> list[Stack]:
    """All kernels of the programs in as few pieces as there are kinds of them.

    Kernels that differ in which of their sizes is a plain 0 stay apart: 0 may mean that a part does not exist.
    """
    groups: dict[Any, list[tuple[int, int]]] = {}
    for p, program in enumerate(programs):
        for w, work in enumerate(program.works):
            groups.setdefault(_sort(work.kernel), []).append((p, w))
    return [_stack(programs, members) for members in groups.values()]


def _sort(kernel: Kernel) -> Any:
    values = [getattr(kernel, name) for name in names_of(kernel)]
    return (
        type(kernel),
        *(v if isinstance(v, DType | bool) else not isinstance(v, np.ndarray) and v == 0 for v in values),
    )


def _stack(programs: Sequence[Program], members: list[tuple[int, int]]) -> Stack:
    works = [programs[p].works[w] for p, w in members]
    sizes: dict[str, Any] = {}
    for name in names_of(works[0].kernel):
        first = getattr(works[0].kernel, name)
        if not isinstance(first, DType | bool):
            sizes[name] = _joined([getattr(work.kernel, name) for work in works], works)
    kernel = replace(works[0].kernel, **sizes)
    return Stack(
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


def price_stacks(
    programs: Sequence[Program], stacks: Sequence[Stack], target: Machine, *, cuda_graph: bool = False
) -> list[RunCost | Exception]:
    """Each program's price on `target`, or why it has none.

    Args:
        programs: what to price.
        stacks: `stacked(programs)`.
    """
    failed: dict[int, tuple[int, Exception]] = {}
    priced: dict[tuple[int, int], NDArray[np.float64]] = {}
    names: tuple[str, ...] = ()
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


def _figures(stack: Stack, target: Machine, cuda_graph: bool) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """`[quantities, elements]` of a stack, and the names of its limits."""
    values: list[Any] = []
    formats: list[Any] = []
    for name in names_of(stack.kernel):
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


@lru_cache(maxsize=1024)
def _padded(own: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """`own` with leading ones, so that it broadcasts against `shape` behind another axis."""
    return (1,) * (len(shape) - len(own)) + own


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
    whole = np.broadcast_to(sums, (len(sums), *program.shape))
    return RunCost(whole[:LIMITS], dict(zip(names, whole[LIMITS:])))
