"""Exact live bytes: the largest sum of storages that are alive at the same time, for one size or a million.

While step e runs, n[e, t] storages of tensor t are alive, and the live bytes are n·sizes. The counts do not depend on
the sizes, so a sweep evaluates only the steps that no other step exceeds in every count: a few dozen rows, however
deep the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peakline.memory.lifetimes import Program
from peakline.memory.peaks import highest
from peakline.models.dims import Dim, is_array

__all__ = ["LivePeak", "Occupancy", "live_peak", "occupancy", "program_peak"]


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
    shape = np.broadcast_shapes(*(np.shape(size) for size in table.sizes))
    roles = list(dict.fromkeys(table.roles))
    kinds = np.asarray([roles.index(role) for role in table.roles])
    found = highest(table.counts, table.sizes, kinds, len(roles), shape)
    return LivePeak(found.total, found.row, {role: found.by_kind[i] for i, role in enumerate(roles)})
