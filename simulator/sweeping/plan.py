"""What a sweep consists of: axes, in which order their product is walked, and how it is cut into parts.

Axes of sizes (batch, seq, context, image) are walked innermost and evaluated as arrays; every other axis changes the
structure of the graph, or the device, and makes a group. Rows are numbered: groups outside, then devices, then sizes,
each in the order given, the last fastest. A part is a range of rows; it describes itself in plain values, so that it
can be sent to another process, and hashed.
"""

from __future__ import annotations

import hashlib
import json
import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peakline import __version__
from peakline.sweeping.devices import DeviceSpec, varied_spec
from peakline.sweeping.table import RESULTS, SCHEMA, Column

__all__ = ["SIZES", "Dim", "Grid", "Part", "Plan", "Run", "Settings", "blocks"]

SIZES = ("batch", "seq", "context", "image")

PART_ROWS = 1 << 17
"""Rows of a part: seconds of work, megabytes on disk."""

PART_GROUPS = 128
"""Groups of a part, where groups are small: seconds of work."""

PART_REPLAYS = 64
"""Rows of a part whose allocator is replayed: seconds of work."""


@dataclass(frozen=True)
class Dim:
    """One dimension of a grid: axes that vary together. `values` are tuples, or for sizes one int64 array per axis."""

    names: tuple[str, ...]
    values: Any
    length: int


@dataclass(frozen=True)
class Grid:
    """A product of dimensions: groups × devices × sizes."""

    groups: tuple[Dim, ...]
    devices: tuple[Dim, ...]
    sizes: tuple[Dim, ...]

    @cached_property
    def inner(self) -> int:
        """Configurations of sizes."""
        return math.prod(dim.length for dim in self.sizes)

    @cached_property
    def outer(self) -> int:
        """Groups times devices."""
        return math.prod(dim.length for dim in (*self.groups, *self.devices))

    @property
    def rows(self) -> int:
        return self.inner * self.outer


@dataclass(frozen=True)
class Settings:
    """What holds for every row of a sweep.

    Attributes:
        columns: of the configuration, before those of the results.
        fields: device fields with a column of their own → that column.
        replay: whether the allocator is replayed.
        conditions: `where`, as written.
        prices: currency per hour by device name.
    """

    columns: tuple[Column, ...]
    fields: tuple[tuple[str, str], ...] = ()
    replay: bool = False
    conditions: tuple[str, ...] = ()
    prices: tuple[tuple[str, float], ...] = ()

    @property
    def all_columns(self) -> tuple[Column, ...]:
        """The columns of a row: the configuration's, then the results'."""
        return (*self.columns, *RESULTS)


@dataclass(frozen=True)
class Run:
    """Consecutive rows of one group on one device.

    Attributes:
        options: model, phase and every other option that makes the group.
        device: the device.
        sizes: by axis; arrays that broadcast against each other to `shape`.
        shape: its rows, in row-major order.
    """

    options: tuple[tuple[str, Any], ...]
    device: DeviceSpec
    sizes: tuple[tuple[str, Any], ...]
    shape: tuple[int, ...]

    @property
    def rows(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Part:
    """A range of a sweep's rows, complete in itself."""

    start: int
    settings: Settings
    runs: tuple[Run, ...]
    version: str = __version__
    models: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return sum(run.rows for run in self.runs)

    @cached_property
    def key(self) -> str:
        """Hash of everything that its rows depend on: the specification, the package's version and the schema."""
        digest = hashlib.sha256(f"{SCHEMA} {self.version} {self.start}\n".encode())
        digest.update(repr(self.settings).encode())
        digest.update(repr(sorted((name, content_hash(m)) for name, m in self.models.items())).encode())
        for run in self.runs:
            digest.update(repr((run.options, run.device.name, run.device.json, run.shape)).encode())
            for name, value in run.sizes:
                digest.update(name.encode())
                digest.update(np.ascontiguousarray(value, dtype=np.int64).tobytes())
                digest.update(repr(np.shape(value)).encode())
        return digest.hexdigest()[:24]


def content_hash(model: Any) -> str:
    """Hash of a model that is given by its content: a configuration as JSON, or a graph."""
    text = model if isinstance(model, str) else json.dumps(model, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Plan:
    """A sweep before it is evaluated.

    Attributes:
        grids: one below the other; more than one where axes of sizes are zipped with others.
        settings: what holds for every row.
        models: content of models that are not named in the catalogue, by the name their rows carry.
    """

    grids: tuple[Grid, ...]
    settings: Settings
    models: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def offsets(self) -> list[int]:
        """Number of the first row of each grid, and the number of rows."""
        return [0, *np.cumsum([grid.rows for grid in self.grids], dtype=object).tolist()]

    @property
    def rows(self) -> int:
        """Rows before any condition removes some."""
        return int(self.offsets[-1])

    @property
    def groups(self) -> int:
        """Groups times devices: how often arrays of sizes are evaluated."""
        return sum(grid.outer for grid in self.grids)

    @cached_property
    def part_rows(self) -> int:
        """Rows of a part, whole products of the innermost axes where one grid is cut."""
        most = PART_REPLAYS if self.settings.replay else PART_ROWS
        most = max(1, min(most, PART_GROUPS * max(1, self.rows // max(self.groups, 1))))
        if len(self.grids) > 1:
            return most
        whole = 1
        grid = self.grids[0]
        for dim in reversed((*grid.groups, *grid.devices, *grid.sizes)):
            if whole * dim.length > most:
                break
            whole *= dim.length
        return most // whole * whole

    @property
    def parts(self) -> int:
        return -(-self.rows // self.part_rows)

    @cached_property
    def key(self) -> str:
        """Hash of the whole sweep."""
        digest = hashlib.sha256(f"{SCHEMA} {__version__} {self.part_rows}\n".encode())
        digest.update(repr(self.settings).encode())
        digest.update(repr(sorted((name, content_hash(m)) for name, m in self.models.items())).encode())
        for grid in self.grids:
            for dim in (*grid.groups, *grid.devices):
                digest.update(repr((dim.names, dim.values)).encode())
            for dim in grid.sizes:
                digest.update(repr(dim.names).encode())
                for array in dim.values:
                    digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:24]

    def part(self, number: int) -> Part:
        """Part `number`: rows from `number · part_rows` on."""
        start = number * self.part_rows
        runs = tuple(self.runs(start, min(start + self.part_rows, self.rows)))
        used = {str(dict(run.options)["model"]) for run in runs}
        models = {name: content for name, content in self.models.items() if name in used}
        return Part(start, self.settings, runs, models=models)

    def runs(self, start: int, stop: int) -> Iterator[Run]:
        """Rows `start` to `stop`, group by group and device by device."""
        at = bisect_right(self.offsets, start) - 1
        while start < stop:
            grid, base = self.grids[at], self.offsets[at]
            end = min(stop, self.offsets[at + 1])
            yield from _runs(grid, start - base, end - base)
            start, at = end, at + 1


def _runs(grid: Grid, start: int, stop: int) -> Iterator[Run]:
    lengths = tuple(dim.length for dim in grid.sizes)
    outer_dims = (*grid.groups, *grid.devices)
    cuts: dict[tuple[int, int], list[tuple[tuple[tuple[str, Any], ...], tuple[int, ...]]]] = {}
    while start < stop:
        group, first = divmod(start, grid.inner)
        last = min(grid.inner, first + stop - start)
        chosen = np.unravel_index(group, tuple(dim.length for dim in outer_dims)) if outer_dims else ()
        values = {
            name: value for dim, i in zip(outer_dims, chosen) for name, value in zip(dim.names, dim.values[int(i)])
        }
        device: DeviceSpec = values.pop("device")
        fields = {name: values.pop(name) for dim in grid.devices for name in dim.names if name != "device"}
        device = _varied(device, fields)
        if (first, last) not in cuts:
            cuts[first, last] = [_sizes(grid.sizes, block) for block in blocks(lengths, first, last)]
        for sizes, shape in cuts[first, last]:
            yield Run(tuple(values.items()), device, sizes, shape)
        start += last - first


def _varied(device: DeviceSpec, fields: Mapping[str, Any]) -> DeviceSpec:
    """The variant; one that cannot be is named all the same, and says why where it is evaluated."""
    try:
        return varied_spec(device, fields)
    except ValueError:
        return DeviceSpec(f"{device.base}[{', '.join(f'{field}={value}' for field, value in fields.items())}]")


def _sizes(
    dims: tuple[Dim, ...], block: tuple[tuple[int, int], ...]
) -> tuple[tuple[tuple[str, Any], ...], tuple[int, ...]]:
    """The sizes of a block, shaped so that they broadcast against each other; dimensions of one value are left out."""
    wide = [i for i, (first, last) in enumerate(block) if last - first > 1]
    out: list[tuple[str, Any]] = []
    for i, (dim, (first, last)) in enumerate(zip(dims, block)):
        for name, array in zip(dim.names, dim.values):
            cut: NDArray[np.int64] = array[first:last]
            if i in wide:
                out.append((name, cut.reshape([-1 if j == i else 1 for j in wide])))
            else:
                out.append((name, int(cut[0])))
    return tuple(out), tuple(block[i][1] - block[i][0] for i in wide)


def blocks(lengths: tuple[int, ...], start: int, stop: int) -> list[tuple[tuple[int, int], ...]]:
    """Rows `start` to `stop` of a row-major grid as rectangles, in order: at most two per dimension and one more."""
    if start >= stop:
        return []
    if not lengths:
        return [()]
    if len(lengths) == 1:
        return [((start, stop),)]
    inner = math.prod(lengths[1:])
    whole = tuple((0, length) for length in lengths[1:])
    first, last = start // inner, (stop - 1) // inner
    if first == last and (start % inner or stop % inner):
        rest = blocks(lengths[1:], start - first * inner, stop - first * inner)
        return [((first, first + 1), *block) for block in rest]
    out: list[tuple[tuple[int, int], ...]] = []
    if start % inner:
        out += [((first, first + 1), *block) for block in blocks(lengths[1:], start % inner, inner)]
        first += 1
    full = stop // inner
    if full > first:
        out.append(((first, full), *whole))
    if stop % inner:
        out += [((full, full + 1), *block) for block in blocks(lengths[1:], 0, stop % inner)]
    return out
