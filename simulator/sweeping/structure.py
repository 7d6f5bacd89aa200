"""Live memory of many graphs of one structure: lifetimes are worked out once, sizes put in as often as wanted.

How many storages of each tensor are alive while each operator runs depends on the graph's structure alone. Two graphs
that differ in nothing but shapes, formats and attributes share the counts. Of these only steps can be the peak that
no other step exceeds in every size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peakline.memory.lifetimes import unroll, workspace
from peakline.memory.live import occupancy
from peakline.memory.peaks import highest
from peakline.models.dims import Dim
from peakline.models.graph import Block, Graph, Operator, Tensor
from peakline.models.operators.reductions import Multiprocessors
from peakline.sweeping.table import ROLES

__all__ = ["LiveBytes", "Lives", "live_bytes"]

_KEPT = 512


@dataclass(frozen=True)
class Skeleton:
    """What graphs of one structure have in common.

    Attributes:
        tensors: names of the tensors whose storages are counted, column by column.
        workspaces: positions of the operators with a workspace, in further columns.
        counts: `[rows, columns]`, storages alive in the steps where a peak can lie; float64, whole numbers.
        role_of: number in `ROLES` of each column.
    """

    tensors: tuple[str, ...]
    workspaces: tuple[int, ...]
    counts: NDArray[np.float64]
    role_of: NDArray[np.int64]


@dataclass(frozen=True)
class LiveBytes:
    """Peak live bytes (int64, of the sweep's shape) and by role (`[len(ROLES), *shape]`)."""

    live: NDArray[np.int64]
    by_role: NDArray[np.int64]


def live_bytes(graph: Graph, shape: tuple[int, ...], on: Multiprocessors | None = None) -> LiveBytes:
    """The figures of `peakline.memory.live.program_peak` for every configuration of `graph`.

    Args:
        on: the GPU's multiprocessors, where thread blocks of sums meet in buffers.

    Raises:
        ValueError: more bytes than can be added up exactly (9 PB).
    """
    return _live_bytes(graph, shape, on, _workspaces(graph, on))


class Lives:
    """Live bytes of a graph's configurations on any device, worked out when first asked for."""

    def __init__(self, graph: Graph, shape: tuple[int, ...]) -> None:
        self.graph, self.shape = graph, shape
        self._positions: dict[Multiprocessors | None, dict[int, Dim]] = {}
        self._known: dict[Multiprocessors | None, LiveBytes] = {}

    def kind(self, on: Multiprocessors | None) -> Multiprocessors | None:
        """`on` if thread blocks of any sum meet there in a buffer; None: the memory is the same as anywhere else."""
        return None if on is None or self._inside(on).keys() == self._inside(None).keys() else on

    def bytes(self, on: Multiprocessors | None) -> LiveBytes:
        """`live_bytes` on devices of this `kind`."""
        if on not in self._known:
            self._known[on] = _live_bytes(self.graph, self.shape, on, self._inside(on))
        return self._known[on]

    def _inside(self, on: Multiprocessors | None) -> dict[int, Dim]:
        if on not in self._positions:
            self._positions[on] = _workspaces(self.graph, on)
        return self._positions[on]


def _live_bytes(
    graph: Graph, shape: tuple[int, ...], on: Multiprocessors | None, workspaces: dict[int, Dim]
) -> LiveBytes:
    skeleton = _skeleton(graph, tuple(workspaces), on)
    sizes = _bytes_of(graph, skeleton.tensors)
    sizes += [workspaces[position] for position in skeleton.workspaces]
    found = highest(skeleton.counts, sizes, skeleton.role_of, len(ROLES), shape)
    return LiveBytes(found.total, found.by_kind)


def _workspaces(graph: Graph, on: Multiprocessors | None) -> dict[int, Dim]:
    """Bytes of each operator's workspace, by the operator's position."""
    families = graph.families
    found: dict[int, Dim] = {}
    for position, (_, operator) in enumerate(graph.operators()):
        blocks = workspace(graph, operator, families, on)
        if blocks:
            total: Dim = 0
            for size in blocks:
                total = total + size
            found[position] = total
    return found


def _bytes_of(graph: Graph, names: Sequence[str]) -> list[Dim]:
    """Bytes of each tensor; tensors of one format whose dimensions are the same objects have the same."""
    known: dict[Any, Dim] = {}
    out: list[Dim] = []
    for name in names:
        tensor = graph.tensors[name]
        key = tuple([d if isinstance(d, int) else id(d) for d in tensor.shape]), tensor.dtype, id(tensor.bytes_override)
        if tensor.bytes_override is not None or key not in known:
            known[key] = tensor.bytes
        out.append(known[key])
    return out


_SIZES_OF_A_TENSOR = ("shape", "dtype", "bytes_override")
_TENSOR = tuple(f.name for f in fields(Tensor) if f.name not in _SIZES_OF_A_TENSOR)
_OPERATOR = tuple(f.name for f in fields(Operator) if f.name not in ("attributes", "module"))
_BLOCK = tuple(f.name for f in fields(Block) if f.name not in ("operators", "carries"))
_GRAPH = tuple(f.name for f in fields(Graph) if f.name not in ("name", "tensors", "blocks", "workload", "notes"))

_known: dict[Any, Skeleton] = {}


def _skeleton(graph: Graph, workspaces: tuple[int, ...], on: Multiprocessors | None) -> Skeleton:
    key = _structure(graph), workspaces
    found = _known.get(key)
    if found is None:
        while len(_known) >= _KEPT:
            for oldest in list(_known)[:1]:  # a copy: other threads may be at it
                _known.pop(oldest, None)
        found = _known[key] = _worked_out(graph, workspaces, on)
    return found


def _structure(graph: Graph) -> Any:
    """Everything about a graph that lifetimes may depend on: all but shapes, formats and attributes."""
    tensors = tuple([tuple([getattr(t, name) for name in _TENSOR]) for t in graph.tensors.values()])
    blocks = tuple(
        [
            (
                *[getattr(b, name) for name in _BLOCK],
                tuple(b.carries.items()),
                tuple([tuple([getattr(o, name) for name in _OPERATOR]) for o in b.operators]),
            )
            for b in graph.blocks
        ]
    )
    return tensors, blocks, tuple([_frozen(getattr(graph, name)) for name in _GRAPH])


def _frozen(value: Any) -> Any:
    return tuple(value.items()) if hasattr(value, "items") else value


def _worked_out(graph: Graph, workspaces: tuple[int, ...], on: Multiprocessors | None) -> Skeleton:
    table = occupancy(unroll(graph).on(on))
    rows = _hills(table.counts)
    owners = [name for name in table.names if name in graph.tensors]
    held = table.counts[rows]
    used = held.any(axis=0)
    number = {role: i for i, role in enumerate(ROLES)}
    keep = np.flatnonzero(used)
    tensors = len(owners)
    return Skeleton(
        tuple(table.names[j] for j in keep if j < tensors),
        tuple(workspaces[j - tensors] for j in keep if j >= tensors),
        held[:, keep].astype(np.float64),
        np.asarray([number[table.roles[j]] for j in keep], dtype=np.int64),
    )


def _hills(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows that exceed or equal neither neighbour in every column; of equal neighbours the first."""
    if len(counts) < 2:
        return np.arange(len(counts))
    below_next = (counts[:-1] <= counts[1:]).all(axis=1)
    below_last = (counts[1:] <= counts[:-1]).all(axis=1)
    keep = np.ones(len(counts), dtype=np.bool_)
    keep[:-1] &= ~(below_next & ~below_last)
    keep[1:] &= ~below_last
    rows = np.flatnonzero(keep)
    return rows if len(rows) == len(counts) else rows[_hills(counts[rows])]
