"""The price of one program of many configurations on a device: kernel after kernel, over as much as a cache holds.

A stretch of configurations is priced kernel by kernel and added up at once, so that its figures never leave the core's
cache. Sizes that are the same in every configuration stay plain numbers, those along one axis stay on it. A matrix
product, the dearest kernel to price, is priced once for all configurations in which its sizes are the same: a batch of
2 sequences of 512 tokens multiplies what one of 1024 does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from peakline.cost.evaluate import Evaluation
from peakline.cost.evaluate import evaluate as price_chunk
from peakline.cost.machine import Machine
from peakline.cost.numeric import as_real
from peakline.models.kernels import Convolution, Gemm, GroupedGemm
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
    sizes_and_formats,
)

__all__ = ["Pass"]

STRETCH = 1 << 13
"""Configurations priced at a time: arrays of 64 KiB, of which a core's L2 cache holds a dozen."""

WORTH = 0.75
"""Share of distinct sizes up to which finding them pays."""

Figures: TypeAlias = list[tuple[int | str, Any]]
"""What a kernel adds to each row of the sums, and to the seconds of each limit: floats or arrays."""


class Distinct(NamedTuple):
    """Configurations with distinct sizes: where each stands first, and the number of each configuration's."""

    first: NDArray[np.int64]
    number: NDArray[np.int64]


class Pass:
    """A program to be walked through, on one device after another."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.arguments = [sizes_and_formats(work) for work in program.works]
        self.last = {w: i for i, (w, _) in enumerate(program.order)}
        self.distinct = self._distinct()

    def _distinct(self) -> dict[int, Distinct]:
        """For the kernels that are worth it, the configurations in which their sizes differ."""
        found: dict[int, Distinct] = {}
        keys: list[Distinct] = []
        count = math.prod(self.program.shape)
        for w, work in enumerate(self.program.works):
            if not isinstance(work.kernel, Gemm | GroupedGemm | Convolution) or work.shape != self.program.shape:
                continue
            arrays = [v for v in self.arguments[w][0] if isinstance(v, np.ndarray)]
            if any(v.shape != work.shape for v in arrays):
                continue
            for key in keys:
                if all(np.array_equal(v.reshape(-1)[key.first][key.number], v) for v in arrays):
                    break
            else:
                if len(keys) > 1:
                    continue
                _, first, number = np.unique(arrays[0], return_index=True, return_inverse=True)
                key = Distinct(first, number.reshape(work.shape))
                keys.append(key)
            if len(key.first) <= WORTH * count:
                found[w] = key
        return found

    def price(self, target: Machine, *, cuda_graph: bool = False) -> RunCost | Exception:
        """The program's price, or why it has none."""
        shape = self.program.shape
        sums = np.zeros((LIMITS, *shape))
        limits: dict[str, NDArray[np.float64]] = {}
        fixed: dict[int, Figures] = {}
        try:
            for cut in _stretches(shape):
                for row, total in self._added(cut, target, cuda_graph, fixed).items():
                    if isinstance(row, int):
                        sums[row, cut] = total
                    else:
                        limits.setdefault(row, np.zeros(shape))[cut] = total
        except Exception as error:
            return error
        return RunCost(sums, limits)

    def _added(self, cut: slice, target: Machine, cuda_graph: bool, fixed: dict[int, Figures]) -> dict[int | str, Any]:
        """The sums of one stretch, operator after operator; `fixed` are the figures priced once for all stretches."""
        shape = self.program.shape
        whole = (len(range(*cut.indices(shape[0]))), *shape[1:])
        scratch = np.empty(whole)
        totals: dict[int | str, Any] = {}
        kept: dict[int, Figures] = {}
        for i, (w, executions) in enumerate(self.program.order):
            figures = fixed.get(w) or kept.get(w)
            if figures is None:
                once, figures = self._figures(w, cut, target, cuda_graph)
                if once:
                    fixed[w] = figures
                elif self.last[w] > i:
                    kept[w] = figures
            chosen = self.distinct[w].number[cut] if w in self.distinct else None
            for row, value in figures:
                total = totals.get(row, 0.0)
                if isinstance(value, np.ndarray):
                    if chosen is not None:
                        value = np.take(value, chosen, out=scratch, mode="clip")
                    elif w in fixed and _varies(value, shape):
                        value = value[cut]
                if np.shape(total) != whole:
                    totals[row] = total + executions * value
                elif np.shape(value) == whole:
                    np.multiply(value, executions, out=scratch)
                    total += scratch
                else:
                    total += executions * value
        return totals

    def _figures(self, w: int, cut: slice, target: Machine, cuda_graph: bool) -> tuple[bool, Figures]:
        """A kernel's figures: on one stretch, or (True) on all its sizes where these are few."""
        shape, work = self.program.shape, self.program.works[w]
        sizes, formats = self.arguments[w]
        once = w in self.distinct or math.prod(work.shape) <= STRETCH

        def priced(values: list[Any]) -> Figures:
            return _figures(price_chunk(type(work.kernel), tuple(values), formats, target, cuda_graph), target)

        if w in self.distinct:
            first = self.distinct[w].first
            chosen = [as_real(v.reshape(-1)[first]) if isinstance(v, np.ndarray) else float(v) for v in sizes]
            parts = [
                priced([v[start : start + STRETCH] if isinstance(v, np.ndarray) else v for v in chosen])
                for start in range(0, len(first), STRETCH)
            ]
            return True, _joined(parts, len(first))
        return once, priced(
            [
                as_real(v if once or not _varies(v, shape) else v[cut]) if isinstance(v, np.ndarray) else float(v)
                for v in sizes
            ]
        )


def _stretches(shape: tuple[int, ...]) -> Iterator[slice]:
    """Cuts of the first axis into about `STRETCH` configurations each."""
    step = max(STRETCH // math.prod(shape[1:]), 1)
    for start in range(0, shape[0], step):
        yield slice(start, start + step)


def _varies(size: NDArray[Any], shape: tuple[int, ...]) -> bool:
    """Whether an array varies along the first axis of `shape`."""
    return size.ndim == len(shape) and size.shape[0] == shape[0]


def _joined(parts: list[Figures], size: int) -> Figures:
    """Figures of consecutive sizes one behind the other; a row that a part lacks is 0 there."""
    rows: dict[int | str, NDArray[np.float64]] = {}
    start = 0
    for part in parts:
        stop = min(start + STRETCH, size)
        for row, value in part:
            if row not in rows:
                rows[row] = np.zeros(size)
            rows[row][start:stop] = value
        start = stop
    return list(rows.items())


def _figures(cost: Evaluation, target: Machine) -> Figures:
    """What a kernel adds to each row of the sums; to the highest of the limits, first of equals, all of its time."""
    rows: Figures = [(BOUND, cost.bound), (IO, cost.io), (TILED, cost.tiled)]
    for level, moved, least in ((target.main, MAIN, MAIN_LEAST), (target.cache, CACHE, CACHE_LEAST)):
        if level is not None:
            rows.append((moved, cost.traffic.get(level.name, 0.0)))
            rows.append((least, cost.io_lower_bound.get(level.name, 0.0)))
    names = list(cost.limits)
    if not any(isinstance(seconds, np.ndarray) for seconds in cost.limits.values()):
        highest = max(names, key=lambda name: cost.limits[name])
        return rows + [(name, cost.tiled if name == highest else 0.0) for name in names]
    shape = np.broadcast_shapes(*(np.shape(seconds) for seconds in cost.limits.values()))
    most: Any = cost.limits[names[0]]
    ranked = np.zeros(shape, dtype=np.int8)
    for i, name in enumerate(names[1:], 1):
        np.copyto(ranked, i, where=cost.limits[name] > most)
        most = np.maximum(most, cost.limits[name])
    found = np.flatnonzero(np.bincount(ranked.reshape(-1))).tolist()
    for i, name in enumerate(names):
        if i not in found:
            rows.append((name, 0.0))
        else:
            rows.append((name, cost.tiled if len(found) == 1 else cost.tiled * (ranked == i)))
    return rows
