"""Reading traces that somebody else may have written.

Nothing in a trace is executed: rows are JSON, checked against the models of `schema`. What is cut, newer, of another
format, mistyped or absurdly large is refused with one line that names the file and, where there is one, the line.
"""

from __future__ import annotations

import gzip
import json
import re
import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from peakline.record.schema import (
    SCHEMA,
    VERSION,
    AnyRow,
    Environment,
    Header,
    KernelRow,
    MemoryRow,
    OperatorRow,
    Row,
    StepRow,
)
from peakline.record.streams import AllocationTrace, Event, StreamHeader

__all__ = ["Trace", "TraceError", "read_events", "read_trace"]

LARGEST_FILE = 256 << 20  # bytes, unpacked; a whole recording is at most 20 MB packed
LARGEST_LINE = 4 << 20  # bytes
_ROWS: TypeAdapter[AnyRow] = TypeAdapter(AnyRow)
_PICKLES = {b"PK": "a zip archive, as torch.save writes it (a pickle inside)", b"\x80": "a pickle"}
_GZIP = b"\x1f\x8b"
R = TypeVar("R", bound=Row)


class TraceError(ValueError):
    """A file that is not a trace this version can read, or not a whole one."""


@dataclass(frozen=True)
class Trace:
    """A recording: one file, or all files of a folder.

    Attributes:
        path: where it was read.
        rows: every row with the environment it was measured in, in order.
        warnings: what is missing, if `read_trace` was told to read what is whole.
    """

    path: Path
    rows: tuple[tuple[Row, Environment], ...]
    warnings: tuple[str, ...] = ()
    _homes: dict[str, Path] = field(default_factory=dict, repr=False)

    @property
    def environments(self) -> list[Environment]:
        """The environments, in order, each once."""
        found: list[Environment] = []
        for _, environment in self.rows:
            if environment not in found:
                found.append(environment)
        return found

    def of(self, kind: type[R]) -> list[R]:
        """The rows of one kind, e.g. `trace.of(MemoryRow)`."""
        return [row for row, _ in self.rows if isinstance(row, kind)]

    @property
    def memory(self) -> list[MemoryRow]:
        """Rows of the suite `memory`."""
        return self.of(MemoryRow)

    @property
    def operators(self) -> list[OperatorRow]:
        """Rows of the suite `operators`."""
        return self.of(OperatorRow)

    @property
    def steps(self) -> list[StepRow]:
        """Rows of the suite `steps`."""
        return self.of(StepRow)

    @property
    def kernels(self) -> list[KernelRow]:
        """Rows of the suite `kernels`."""
        return self.of(KernelRow)

    def events(self, row: MemoryRow) -> AllocationTrace | None:
        """The event stream recorded with a row; None if there is none.

        Raises TraceError if the file is missing or not such a stream.
        """
        if row.events is None:
            return None
        return read_events(self._homes.get(row.case.name, self.path) / row.events)


def read_trace(path: str | PathLike[str], *, partial: bool = False) -> Trace:
    """Read a recording: a .jsonl file, or a folder with some.

    Args:
        path: file or folder.
        partial: read the whole rows of a file whose end is cut off, and say so in `Trace.warnings`.

    Raises:
        TraceError: naming file and line, for a missing, cut, newer or foreign file and for every wrong row.
    """
    home = Path(path)
    files = sorted(p for p in home.glob("*.jsonl") if not p.name.startswith(".")) if home.is_dir() else [home]
    if not files:
        raise TraceError(f"{home}: no trace in this folder; accepted: files named *.jsonl, as `peakline record` writes")
    rows: list[tuple[Row, Environment]] = []
    warnings: list[str] = []
    homes: dict[str, Path] = {}
    for file in files:
        for row, environment in _rows(file, partial, warnings):
            rows.append((row, environment))
            if isinstance(row, MemoryRow):
                homes[row.case.name] = file.parent
    return Trace(home, tuple(rows), tuple(warnings), homes)


def read_events(path: str | PathLike[str]) -> AllocationTrace:
    """Read one event stream (`events-*.jsonl.gz`). Raises TraceError naming file and line."""
    file = Path(path)
    numbered = _lines(file)
    try:
        number, first = next(numbered)
    except StopIteration:
        raise TraceError(f"{file}: empty; a trace begins with a line that names its schema") from None
    _check_version(file, first)
    header = _model(StreamHeader, first, file, number)
    events: list[Event] = []
    for number, line in numbered:
        try:
            events.append(Event.from_row(json.loads(line, parse_constant=_no_constant)))
        except (ValueError, RecursionError) as error:
            raise TraceError(f"{file}: line {number}: {_short(error)}") from None
    if len(events) != header.events:
        raise TraceError(f"{file}: cut: it has {len(events)} of {header.events} events")
    return AllocationTrace(header, tuple(events))


def _rows(file: Path, partial: bool, warnings: list[str]) -> Iterator[tuple[Row, Environment]]:
    """The rows of one file under their environments."""
    environment: Environment | None = None
    begun = False
    for number, line in _lines(file, partial, warnings):
        if not begun:
            _check_version(file, line)
            _model(Header, line, file, number)
            begun = True
            continue
        try:
            row = _ROWS.validate_json(line)
        except ValidationError as error:
            raise TraceError(f"{file}: line {number}: {_explain(error)}") from None
        if isinstance(row, Environment):
            environment = row
        elif environment is None:
            raise TraceError(f"{file}: line {number}: a row before any environment")
        else:
            yield row, environment
    if not begun:
        raise TraceError(f"{file}: empty; a trace begins with a line that names its schema")


def _lines(file: Path, partial: bool = False, warnings: list[str] | None = None) -> Iterator[tuple[int, bytes]]:
    """Numbered lines of a plain or gzip'd file, none too long, not too many bytes in all, the last one whole."""
    _check_file(file)
    total, number = 0, 0
    try:
        with file.open("rb") as plain:
            packed = plain.read(2) == _GZIP
        with gzip.open(file, "rb") if packed else file.open("rb") as opened:
            while line := opened.readline(LARGEST_LINE + 1):
                number += 1
                total += len(line)
                if len(line) > LARGEST_LINE:
                    raise TraceError(f"{file}: line {number}: longer than {LARGEST_LINE >> 20} MiB")
                if total > LARGEST_FILE:
                    raise TraceError(f"{file}: line {number}: more than {LARGEST_FILE >> 20} MiB unpacked")
                if not line.endswith(b"\n"):
                    text = f"{file}: line {number}: cut in the middle; the {number - 1} lines before it are whole"
                    if not partial or number == 1:
                        raise TraceError(text if number > 1 else f"{file}: {_foreign(line)}")
                    if warnings is not None:
                        warnings.append(text)
                    return
                yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise TraceError(f"{file}: cut or damaged after line {number}; record the case again") from None
    except OSError as error:
        raise TraceError(f"{file}: {error.strerror or error}") from None


def _check_file(file: Path) -> None:
    """Refuse what is no regular file, is too large, or is plainly something else."""
    try:
        found = file.stat()
    except OSError as error:
        raise TraceError(f"{file}: {error.strerror or error}") from None
    if not stat.S_ISREG(found.st_mode):
        raise TraceError(f"{file}: not a file; accepted: a folder or a .jsonl file that `peakline record` wrote")
    if found.st_size > LARGEST_FILE:
        raise TraceError(f"{file}: {found.st_size} bytes; a trace has at most {LARGEST_FILE}")
    with file.open("rb") as opened:
        start = opened.read(2)
    for magic, what in _PICKLES.items():
        if start.startswith(magic):
            raise TraceError(
                f"{file}: {what}: never opened, because that can run code; accepted: JSON Lines of {SCHEMA}"
            )


def _check_version(file: Path, line: bytes) -> None:
    """Refuse another format, and a newer version of ours, before anything else is read."""
    try:
        first = json.loads(line)
        schema = first["schema"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise TraceError(f"{file}: {_foreign(line)}") from None
    match = re.fullmatch(rf"{re.escape(SCHEMA)}/([0-9]{{1,6}})", schema) if isinstance(schema, str) else None
    if match is None:
        raise TraceError(f"{file}: schema is {str(schema)[:80]!r}; accepted: {SCHEMA}/{VERSION}")
    if int(match[1]) > VERSION:
        raise TraceError(
            f"{file}: schema {SCHEMA}/{match[1]} is newer than {SCHEMA}/{VERSION}, which this version of peakline "
            "reads; update peakline"
        )


def _foreign(line: bytes) -> str:
    return f"not a trace: the first line must name the schema {SCHEMA}/{VERSION}, it begins {line[:40]!r}"


def _model(kind: type[R], line: bytes, file: Path, number: int) -> R:
    try:
        return kind.model_validate_json(line)
    except ValidationError as error:
        raise TraceError(f"{file}: line {number}: {_explain(error)}") from None


def _explain(error: ValidationError) -> str:
    """The first fault of a row, with the field's path, and how many more there are."""
    faults = error.errors(include_url=False, include_context=False)
    first = faults[0]
    where = ".".join(str(part) for part in first["loc"]) or "row"
    given = repr(first["input"])
    given = "" if isinstance(first["input"], dict) else f", got {given[:60]}"
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return f"{where}: {first['msg']}{given}{more}"


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _short(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
