"""Allocation instances and solutions as CSV files that anyone can write by hand (the format of google/minimalloc)."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from peakline.solvers.allocation.greedy import Buffer

__all__ = ["Instance", "InstanceError", "read_csv", "write_csv"]

_REQUIRED = ("id", "lower", "upper", "size")
_OPTIONAL = ("alignment", "hint", "offset")
_ALIASES = {"buffer": "id", "buffer_id": "id", "start": "lower", "begin": "lower", "fixed_offset": "offset"}
_MOST_FAULTS = 5
_LARGEST = 1 << 60  # sizes, times and offsets: sums of a few stay within 64 bits


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


def read_csv(path: Path | str) -> Instance:
    """Read an instance.

    Columns, in any order: `id`, `lower`, `upper` (half-open; a column `end` instead of `upper` holds the last
    moment, as in minimalloc's older files), `size`; optional, cells may be empty: `alignment`, `hint`, `offset`
    (a fixed offset). Other columns are refused: they might be constraints.

    Raises InstanceError listing the faults, OSError if the file cannot be read.
    """
    name = str(path)
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = [(reader.line_num, row) for reader in [csv.reader(file)] for row in reader if any(row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InstanceError(f"{name}: not a CSV file: {error}") from error
    if not rows:
        raise InstanceError(f"{name}: the file is empty; expected a header with {', '.join(_REQUIRED)}")
    columns, addend = _header(name, [cell.strip().lower() for cell in rows[0][1]])
    if len(rows) == 1:
        raise InstanceError(f"{name}: no buffers under the header")
    faults: list[str] = []
    values: dict[str, list[int | None]] = {column: [] for column in (*_REQUIRED[1:], *_OPTIONAL)}
    ids: list[str] = []
    for line, row in rows[1:]:
        if len(row) != len(columns):
            faults.append(f"line {line}: expected {len(columns)} fields, got {len(row)}")
            continue
        cells = dict(zip(columns, (cell.strip() for cell in row)))
        ids.append(cells["id"])
        if not cells["id"]:
            faults.append(f"line {line}: id: must not be empty")
        for column, into in values.items():
            into.append(_integer(cells.get(column, ""), f"line {line}: {column}", column in _REQUIRED, faults))
    if faults:
        raise InstanceError(_summary(name, faults))
    lower, upper, size = (_present(values[column]) for column in _REQUIRED[1:])
    try:
        return Instance.of(
            [Buffer(low, high + addend, bytes_) for low, high, bytes_ in zip(lower, upper, size)],
            ids=ids,
            alignments=[1 if a is None else a for a in values["alignment"]],
            fixed=values["offset"],
            hints=values["hint"],
        )
    except InstanceError as error:
        raise InstanceError(f"{name}: {str(error).removeprefix('instance: ')}") from error


def write_csv(path: Path | str, instance: Instance, offsets: Sequence[int]) -> None:
    """Write a solution: id, lower, upper, size, alignment where there is one, offset; in the instance's order."""
    aligned = any(a > 1 for a in instance.alignments)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", "lower", "upper", "size", *(["alignment"] if aligned else []), "offset"])
        for name, b, alignment, offset in zip(instance.ids, instance.buffers, instance.alignments, offsets):
            writer.writerow([name, b.lower, b.upper, b.size, *([alignment] if aligned else []), offset])


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


def _integer(text: str, what: str, required: bool, faults: list[str]) -> int | None:
    if not text and not required:
        return None
    try:
        value = int(text)
    except ValueError:
        faults.append(f"{what}: must be an integer, got {text!r}")
        return None
    if abs(value) > _LARGEST:
        faults.append(f"{what}: must be within ±2^60, got {text}")
    return value


def _present(values: list[int | None]) -> list[int]:
    return [value for value in values if value is not None]


def _faults(item: Instance) -> list[str]:
    n = len(item.buffers)
    for field in ("ids", "alignments", "fixed", "hints"):
        if len(getattr(item, field)) != n:
            return [f"{field}: expected {n} entries, got {len(getattr(item, field))}"]
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
    """Pairs of fixed buffers that overlap in time and space."""
    pinned = [(b, o, name) for b, o, name in zip(item.buffers, item.fixed, item.ids) if o is not None]
    pinned.sort(key=lambda entry: entry[0].lower)
    faults: list[str] = []
    alive: list[tuple[Buffer, int, str]] = []
    for b, offset, name in pinned:
        alive = [entry for entry in alive if entry[0].upper > b.lower]
        for other, at, other_name in alive:
            if offset < at + other.size and at < offset + b.size:
                faults.append(f"buffers {other_name!r} and {name!r}: their fixed offsets overlap while both are alive")
        alive.append((b, offset, name))
    return faults


def _summary(name: str, faults: list[str]) -> str:
    more = f"; and {len(faults) - _MOST_FAULTS} more" if len(faults) > _MOST_FAULTS else ""
    return f"{name}: " + "; ".join(faults[:_MOST_FAULTS]) + more
