"""Exact live bytes: the largest sum of storages that are alive at the same time, for one size or a million.

While step e runs, n[e, t] storages of tensor t are alive, and the live bytes are n·sizes. The counts do not depend on
the sizes, so a sweep evaluates only the steps that no other step exceeds in every count: a few dozen rows, however
deep the model.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peakline.memory.lifetimes import Program
from peakline.models.dims import Dim, is_array

__all__ = ["LivePeak", "Occupancy", "live_peak", "occupancy", "program_peak"]

_CHUNK = 1 << 15


@dataclass(frozen=True)
class Occupancy:
    """Counts of live storages.

    Attributes:
        counts: `[steps, columns]`, storages of each tensor alive while each step runs; workspaces included.
        roles: role of each column.
        names: tensor of each column.
        sizes: bytes of one storage of each column.
    """

    counts: NDArray[np.int64]
    roles: list[str]
    names: list[str]
    sizes: list[Dim]


def occupancy(program: Program) -> Occupancy:
    """Count what is alive while each step runs: inputs, outputs, everything kept for later, and workspaces."""
    order: dict[str, int] = {}
    roles: list[str] = []
    sizes: list[Dim] = []
    column = np.empty(len(program.storages), dtype=np.int64)
    for key, storage in enumerate(program.storages):
        name = storage.tensor.name
        if name not in order:
            order[name] = len(roles)
            roles.append(storage.tensor.role)
            sizes.append(program.sizes[key])
        column[key] = order[name]
    names = list(order)
    workspace: dict[int, int] = {}
    for _, operator in program.graph.operators():
        blocks = program.workspaces.get(id(operator))
        if blocks:
            workspace[id(operator)] = len(roles)
            roles.append("workspace")
            names.append(f"{operator.name}.workspace")
            total: Dim = 0
            for size in blocks:
                total = total + size
            sizes.append(total)
    end = len(program.steps)
    change = np.zeros((end + 1, len(roles)), dtype=np.int64)
    births, deaths = np.asarray(program.births), np.asarray(program.deaths)
    resident = np.asarray(program.resident, dtype=np.int64)
    np.add.at(change, (np.zeros(len(resident), dtype=np.int64), column[resident]), 1)
    made = births >= 0
    np.add.at(change, (births[made], column[made]), 1)
    made[resident] = True  # some of them end: `Graph.previous`
    ends = made & (deaths < end)
    np.add.at(change, (deaths[ends] + 1, column[ends]), -1)
    counts = np.cumsum(change, axis=0)[:-1]
    for position, step in enumerate(program.steps):
        index = workspace.get(id(step.operator))
        if index is not None:
            counts[position, index] = 1
    return Occupancy(counts, roles, names, sizes)


def program_peak(program: Program) -> LivePeak:
    """`live_peak` of a program; a single configuration is added up storage by storage, without the table."""
    if is_array(*program.sizes, *(size for sizes in program.workspaces.values() for size in sizes)):
        return live_peak(occupancy(program))
    end = len(program.steps)
    sizes = np.asarray(program.sizes, dtype=np.int64)
    births, deaths = np.asarray(program.births), np.asarray(program.deaths)
    births[program.resident] = 0
    alive = births >= 0
    change = np.zeros(end + 1, dtype=np.int64)
    np.add.at(change, births[alive], sizes[alive])
    ends = alive & (deaths < end)
    np.subtract.at(change, deaths[ends] + 1, sizes[ends])
    live = np.cumsum(change[:-1])
    inside = {operator: sum(map(int, blocks)) for operator, blocks in program.workspaces.items()}
    if inside:
        live += np.asarray([inside.get(id(step.operator), 0) for step in program.steps], dtype=np.int64)
    if not end:
        return LivePeak(0, 0, {})
    step = int(live.argmax())
    by_role: dict[str, int] = {}
    for key in np.flatnonzero(alive & (births <= step) & (deaths >= step)).tolist():
        role = program.storages[key].tensor.role
        by_role[role] = by_role.get(role, 0) + int(program.sizes[key])
    workspace = inside.get(id(program.steps[step].operator), 0)
    if workspace:
        by_role["workspace"] = by_role.get("workspace", 0) + workspace
    return LivePeak(int(live[step]), step, {role: size for role, size in by_role.items() if size})


def undominated(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Row numbers that no other row equals or exceeds in every column: the only ones where a peak can lie.

    The parts of a large sweep ask for the same counts again and again; the last few answers are kept.
    """
    key = counts.shape, hashlib.blake2b(counts.tobytes(), digest_size=16).digest()
    if key not in _FRONTS:
        if len(_FRONTS) >= _FRONTS_KEPT:
            _FRONTS.pop(next(iter(_FRONTS)))
        _FRONTS[key] = _front(counts)
    return _FRONTS[key]


_FRONTS: dict[tuple[tuple[int, ...], bytes], NDArray[np.int64]] = {}
_FRONTS_KEPT = 64


def _front(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    kept = np.sort(np.unique(counts, axis=0, return_index=True)[1])
    rows = counts[kept]
    order = np.argsort(-rows.sum(axis=1), kind="stable")
    front: list[int] = []
    for i in order:
        if not any(bool((rows[j] >= rows[i]).all()) for j in front):
            front.append(int(i))
    return np.asarray(sorted(kept[front]), dtype=np.int64)


@dataclass(frozen=True)
class LivePeak:
    """Live bytes at the peak (arrays in a sweep), the step at which it stands, and its bytes by role."""

    bytes: Any
    step: Any
    by_role: dict[str, Any]


def live_peak(table: Occupancy) -> LivePeak:
    """The largest live bytes over the steps, first such step, and their breakdown."""
    if not is_array(*table.sizes):
        sizes = np.asarray(table.sizes, dtype=np.int64)
        step = int((table.counts @ sizes).argmax())
        held = table.counts[step] * sizes
        by_role: dict[str, int] = {}
        for role, amount in zip(table.roles, held.tolist()):
            by_role[role] = by_role.get(role, 0) + amount
        return LivePeak(int(held.sum()), step, {r: b for r, b in by_role.items() if b})
    return _sweep_peak(table)


def _sweep_peak(table: Occupancy) -> LivePeak:
    rows = undominated(table.counts)
    shape = np.broadcast_shapes(*(np.shape(s) for s in table.sizes))
    counts = table.counts[rows]
    columns, merged = _distinct([np.broadcast_to(s, shape).reshape(-1) for s in map(_int64, table.sizes)], counts)
    total = int(np.prod(shape))
    peak, step = np.zeros(total, dtype=np.int64), np.zeros(total, dtype=np.int64)
    for start in range(0, total, _CHUNK):
        chunk = slice(start, min(start + _CHUNK, total))
        live = np.zeros((len(rows), chunk.stop - start), dtype=np.int64)
        for j, column in enumerate(columns):
            live += merged[:, j, None] * column[chunk]
        best = live.argmax(axis=0)
        peak[chunk] = np.take_along_axis(live, best[None], axis=0)[0]
        step[chunk] = rows[best]
    by_role: dict[str, Any] = {}
    position = np.searchsorted(rows, step)
    roles = np.asarray(table.roles)
    for role in dict.fromkeys(table.roles):
        mine = np.flatnonzero((roles == role) & counts.any(axis=0))
        sizes = [np.broadcast_to(_int64(table.sizes[j]), shape).reshape(-1) for j in mine]
        held = np.zeros(total, dtype=np.int64)
        for column, count in zip(*_distinct(sizes, counts[:, mine], by_row=True)):
            held += count[position] * column
        if len(mine):
            by_role[role] = held.reshape(shape)
    return LivePeak(peak.reshape(shape), step.reshape(shape), by_role)


def _int64(size: Any) -> NDArray[np.int64]:
    return np.asarray(size, dtype=np.int64)


def _distinct(
    columns: list[NDArray[np.int64]], counts: NDArray[np.int64], *, by_row: bool = False
) -> tuple[list[NDArray[np.int64]], NDArray[np.int64]]:
    """Merge columns of equal sizes, adding their counts: `[rows, columns]`, or `[columns, rows]` if `by_row`."""
    groups: dict[bytes, list[int]] = {}
    for j, column in enumerate(columns):
        if counts[:, j].any():
            groups.setdefault(column.tobytes(), []).append(j)
    merged = np.asarray([counts[:, members].sum(axis=1) for members in groups.values()], dtype=np.int64)
    merged = merged.reshape(len(groups), len(counts))
    return [columns[members[0]] for members in groups.values()], merged if by_row else merged.T
