"""Allocation instances and solutions as CSV files that anyone can write by hand (the format of google/minimalloc)."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peakline.solvers.allocation.greedy import Buffer
from peakline.solvers.allocation.ordered import Ordered

__all__ = ["Column", "Instance", "InstanceError", "read_csv", "write_csv"]

Column = NDArray[Any]
"""Integers: int64, or Python's where sums could pass 64 bits."""

_REQUIRED = ("id", "lower", "upper", "size")
_OPTIONAL = ("alignment", "hint", "offset")
_ALIASES = {"buffer": "id", "buffer_id": "id", "start": "lower", "begin": "lower", "fixed_offset": "offset"}
_MOST_FAULTS = 5
_SHOWN = 40  # characters of a cell at fault
_LARGEST = 1 << 60  # sizes, times and offsets: sums of a few stay within 64 bits
_WIDE = 1 << 62  # an arena that may reach this is counted in Python's integers


class InstanceError(ValueError):
    """An instance that no solver should see; names the file, the line, the field, the value and what is accepted."""


@dataclass(frozen=True)
class Instance:
    """Buffers to place, in the order of their file.

    Attributes:
        buffers: lifetime (half-open, any integer clock) and size in bytes.
        ids: a unique name for each.
        alignments: each offset is a multiple of its alignment, in bytes (1: anywhere).
        fixed: the offset in bytes that a buffer must have; None leaves it to the solver.
        hints: an offset to prefer, in bytes; None for no preference. Never binding.
    """

    buffers: tuple[Buffer, ...]
    ids: tuple[str, ...]
    alignments: tuple[int, ...]
    fixed: tuple[int | None, ...]
    hints: tuple[int | None, ...]

    def __post_init__(self) -> None:
        faults = _faults(self)
        if faults:
            raise InstanceError(_summary("instance", faults))

    @classmethod
    def of(
        cls,
        buffers: Iterable[Buffer | tuple[int, int, int]],
        *,
        ids: Sequence[str] | None = None,
        alignments: Sequence[int] | int = 1,
        fixed: Sequence[int | None] | None = None,
        hints: Sequence[int | None] | None = None,
    ) -> Instance:
        """An instance from buffers or (lower, upper, size) triples; ids default to 0, 1, ….

        Raises InstanceError for a size below 1, an empty lifetime, a repeated id, an alignment below 1, or a fixed
        offset that is negative, unaligned or collides with another.
        """
        items = tuple(b if isinstance(b, Buffer) else Buffer(*b) for b in buffers)
        n = len(items)
        return cls(
            buffers=items,
            ids=tuple(ids) if ids is not None else tuple(str(i) for i in range(n)),
            alignments=(alignments,) * n if isinstance(alignments, int) else tuple(alignments),
            fixed=tuple(fixed) if fixed is not None else (None,) * n,
            hints=tuple(hints) if hints is not None else (None,) * n,
        )

    @property
    def plain(self) -> bool:
        """No alignment and no fixed offset."""
        return all(a == 1 for a in self.alignments) and all(o is None for o in self.fixed)

    @cached_property
    def columns(self) -> tuple[Column, Column, Column]:
        """`lower`, `upper` and `size` of the buffers."""
        highest = max((o for o in self.fixed if o is not None), default=0)
        reach = highest + sum(b.size for b in self.buffers) + sum(self.alignments)
        times = max((max(abs(b.lower), abs(b.upper)) for b in self.buffers), default=0)
        kind: type = np.int64 if reach < _WIDE and times < _WIDE else object
        return (
            np.array([b.lower for b in self.buffers], dtype=kind),
            np.array([b.upper for b in self.buffers], dtype=kind),
            np.array([b.size for b in self.buffers], dtype=kind),
        )

    @cached_property
    def events(self) -> list[int]:
        """Births (i of buffer i) and deaths (~i) by time: at equal times deaths first, then the largest births."""
        lower, upper, size = self.columns
        n = len(self.buffers)
        what = np.concatenate([np.arange(n), ~np.arange(n)])
        times, largest = np.concatenate([lower, upper]), np.concatenate([-size, np.zeros_like(size)])
        if size.dtype == object:
            order = sorted(range(2 * n), key=lambda k: (times[k], k < n, largest[k]))
        else:
            order = np.lexsort((largest, what >= 0, times)).tolist()
        found: list[int] = what[order].tolist() if n else []
        return found


def read_csv(path: Path | str) -> Instance:
    """Read an instance.

    Columns, in any order: `id`, `lower`, `upper` (half-open; a column `end` instead of `upper` holds the last
    moment, as in minimalloc's older files), `size`; optional, cells may be empty: `alignment`, `hint`, `offset`
    (a fixed offset). Other columns are refused unless all their cells are empty: they might be constraints.

    Raises InstanceError listing the faults, OSError if the file cannot be read.
    """
    name = str(path)
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = [
                (reader.line_num, row) for reader in [csv.reader(file)] for row in reader if any(map(str.strip, row))
            ]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InstanceError(f"{name}: not a CSV file: {error}") from error
    if not rows:
        raise InstanceError(f"{name}: the file is empty; expected a header with {', '.join(_REQUIRED)}")
    rows = _without_empty_columns(rows)
    columns, addend = _header(name, [cell.strip().lower() for cell in rows[0][1]])
    if len(rows) == 1:
        raise InstanceError(f"{name}: no buffers under the header")
    values = _values(name, columns, rows[1:])
    try:
        return Instance.of(
            [Buffer(low, high + addend, size) for low, high, size in zip(*(values[c] for c in _REQUIRED[1:]))],
            ids=values["id"],
            alignments=[1 if a is None else a for a in values["alignment"]],
            fixed=values["offset"],
            hints=values["hint"],
        )
    except InstanceError as error:
        raise InstanceError(f"{name}: {str(error).removeprefix('instance: ')}") from error


def write_csv(path: Path | str, instance: Instance, offsets: Sequence[int]) -> None:
    """Write a solution: the instance in its order, with a column `offset`.

    Columns: id, lower, upper, size; alignment and hint if any buffer has one; offset.
    """
    table: dict[str, Sequence[object]] = {
        "id": instance.ids,
        "lower": [b.lower for b in instance.buffers],
        "upper": [b.upper for b in instance.buffers],
        "size": [b.size for b in instance.buffers],
    }
    if any(a > 1 for a in instance.alignments):
        table["alignment"] = instance.alignments
    if any(hint is not None for hint in instance.hints):
        table["hint"] = ["" if hint is None else hint for hint in instance.hints]
    table["offset"] = offsets
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(table)
        writer.writerows(zip(*table.values()))


def _without_empty_columns(rows: list[tuple[int, list[str]]]) -> list[tuple[int, list[str]]]:
    """The rows without columns that are not ours and say nothing: every cell under the name is empty."""
    names = [cell.strip().lower() for cell in rows[0][1]]
    known = {*_REQUIRED, *_OPTIONAL, *_ALIASES, "end"}
    empty = {
        k
        for k, column in enumerate(names)
        if column not in known and not any(row[k].strip() for _, row in rows[1:] if k < len(row))
    }
    if not empty:
        return rows
    return [(line, [cell for k, cell in enumerate(row) if k not in empty]) for line, row in rows]


def _header(name: str, cells: list[str]) -> tuple[list[str], int]:
    """Column names in minimalloc's words, and what to add to `upper`: 1 where the file gives the last moment."""
    addend = 1 if "end" in cells else 0
    columns = ["upper" if cell == "end" else _ALIASES.get(cell, cell) for cell in cells]
    missing = [column for column in _REQUIRED if column not in columns]
    if missing:
        raise InstanceError(f"{name}: columns missing: {', '.join(missing)}; found {', '.join(cells)}")
    unknown = [column for column in columns if column not in (*_REQUIRED, *_OPTIONAL)]
    if unknown:
        accepted = ", ".join((*_REQUIRED, *_OPTIONAL))
        raise InstanceError(f"{name}: column {unknown[0]!r} is not understood; accepted: {accepted}")
    if len(set(columns)) != len(columns):
        raise InstanceError(f"{name}: a column is given twice: {', '.join(cells)}")
    return columns, addend


def _values(name: str, columns: list[str], rows: list[tuple[int, list[str]]]) -> dict[str, list[Any]]:
    """The cells of each column: text under `id`, integers or None under the others. Raises InstanceError."""
    faults = [
        f"line {line}: expected {len(columns)} fields, got {len(row)}" for line, row in rows if len(row) != len(columns)
    ]
    rows = [entry for entry in rows if len(entry[1]) == len(columns)]
    values: dict[str, list[Any]] = {column: [None] * len(rows) for column in (*_REQUIRED, *_OPTIONAL)}
    for column, cells in zip(columns, zip(*(row for _, row in rows))):
        values[column] = [cell.strip() for cell in cells]
        if column == "id":
            faults += [f"line {line}: id: must not be empty" for (line, _), cell in zip(rows, values["id"]) if not cell]
        else:
            values[column] = _integers(column, values[column], [line for line, _ in rows], faults)
    if faults:
        raise InstanceError(_summary(name, faults))
    return values


def _integers(column: str, cells: list[str], lines: list[int], faults: list[str]) -> list[int | None]:
    """Integers of a column, None where an optional cell is empty; what is wrong is added to `faults`."""
    required = column in _REQUIRED
    try:  # at once, which is what large files need
        found: list[int | None] = [int(cell) if cell or required else None for cell in cells]
    except ValueError:
        found = []
        for line, cell in zip(lines, cells):
            try:
                found.append(int(cell) if cell or required else None)
            except ValueError:
                faults.append(f"line {line}: {column}: must be an integer, got {_short(cell)!r}")
                found.append(None)
    faults += [
        f"line {line}: {column}: must be within ±2^60, got {value}"
        for line, value in zip(lines, found)
        if value is not None and not -_LARGEST <= value <= _LARGEST
    ]
    return found


def _short(cell: str) -> str:
    return cell if len(cell) <= _SHOWN else f"{cell[:_SHOWN]}…"


def _faults(item: Instance) -> list[str]:
    n = len(item.buffers)
    for field in ("ids", "alignments", "fixed", "hints"):
        if len(getattr(item, field)) != n:
            return [f"{field}: expected {n} entries, got {len(getattr(item, field))}"]
    lower, upper, size = item.columns
    if len(set(item.ids)) == n and (size >= 1).all() and (lower < upper).all() and item.plain:
        return []  # at once, which is what large files need
    faults: list[str] = []
    seen: set[str] = set()
    for name, b, alignment, offset in zip(item.ids, item.buffers, item.alignments, item.fixed):
        if name in seen:
            faults.append(f"buffer {name!r}: the id is given twice")
        seen.add(name)
        if b.size < 1:
            faults.append(f"buffer {name!r}: size: must be at least 1, got {b.size}")
        if b.lower >= b.upper:
            faults.append(f"buffer {name!r}: lower must be below upper, got [{b.lower}, {b.upper})")
        if alignment < 1:
            faults.append(f"buffer {name!r}: alignment: must be at least 1, got {alignment}")
        elif offset is not None and (offset < 0 or offset % alignment):
            accepted = f"a multiple of {alignment}, at least 0" if alignment > 1 else "at least 0"
            faults.append(f"buffer {name!r}: fixed offset: must be {accepted}, got {offset}")
    return faults or _collisions(item)


def _collisions(item: Instance) -> list[str]:
    """Fixed buffers that overlap in time and space with one fixed before them; each is compared with its neighbours."""
    pinned = [(b, offset, name) for b, offset, name in zip(item.buffers, item.fixed, item.ids) if offset is not None]
    births = [(b.lower, 1, k) for k, (b, _, _) in enumerate(pinned)]
    deaths = [(b.upper, 0, k) for k, (b, _, _) in enumerate(pinned)]
    alive, faults = Ordered(), dict[int, str]()
    for _, born, k in sorted(births + deaths):
        b, offset, name = pinned[k]
        entry = (offset, k)
        if not born:
            if k not in faults:
                alive.remove(entry)
            continue
        for near in (alive.below(entry), next(alive.from_(entry), None)):
            if near is not None and near[0] < offset + b.size and offset < near[0] + pinned[near[1]][0].size:
                faults[k] = (
                    f"buffers {pinned[near[1]][2]!r} and {name!r}: their fixed offsets overlap while both are alive"
                )
        if k not in faults:
            alive.add(entry)
    return list(faults.values())


def _summary(name: str, faults: list[str]) -> str:
    more = f"; and {len(faults) - _MOST_FAULTS} more" if len(faults) > _MOST_FAULTS else ""
    return f"{name}: " + "; ".join(faults[:_MOST_FAULTS]) + more
