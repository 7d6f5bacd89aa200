"""Writing traces: whole rows, at once on disk, and never more bytes in all than a repository should carry."""

from __future__ import annotations

import gzip
import os
import re
from pathlib import Path

from peakline.files import written_whole
from peakline.record.reader import TraceError, read_trace
from peakline.record.schema import (
    SCHEMA,
    VERSION,
    Environment,
    Header,
    KernelRow,
    MemoryRow,
    OperatorRow,
    Row,
    StepRow,
    Suite,
)
from peakline.record.streams import AllocationTrace

__all__ = ["LARGEST_RECORDING", "TraceWriter", "key_of"]

LARGEST_RECORDING = 20_000_000  # bytes, over all files of a folder
_ROOM_FOR_ROWS = 2_000_000  # bytes that event streams leave
_SAME_MACHINE = ("device_kind", "device_name", "torch", "cuda", "transformers")


class TraceWriter:
    """Adds rows to one suite's file in a folder, after those of earlier recordings.

    Attributes:
        done: keys of the rows there are (`key_of`).
    """

    def __init__(self, folder: Path, suite: Suite, environment: Environment, *, limit: int = LARGEST_RECORDING) -> None:
        """Open `folder`/`suite`.jsonl, mending an end that was cut.

        Raises:
            TraceError: the file is no trace, or was recorded on another device or with other libraries.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._limit = folder, limit
        self._path = folder / f"{suite}.jsonl"
        self._bytes = sum(p.stat().st_size for p in folder.iterdir() if p.is_file())
        self.done: set[str] = set()
        fresh = not self._path.exists() or self._path.stat().st_size == 0
        if not fresh:
            fresh = self._mend()
        if fresh:
            self.add(Header(schema=f"{SCHEMA}/{VERSION}", suite=suite))
        else:
            trace = read_trace(self._path)
            for before in trace.environments:
                self._check_same(before, environment)
            self.done = {key_of(row) for row, _ in trace.rows}
        self.add(environment)

    def add(self, row: Row) -> None:
        """Append one row; it is on disk when this returns.

        Raises:
            TraceError: the recording would grow beyond its limit.
        """
        line = (row.to_line() + "\n").encode()
        if self._bytes + len(line) > self._limit:
            raise TraceError(f"{self._folder}: full: a recording has at most {self._limit} bytes in all")
        handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(handle, line)
            os.fsync(handle)
        finally:
            os.close(handle)
        self._bytes += len(line)
        if not isinstance(row, Header | Environment):
            self.done.add(key_of(row))

    def add_events(self, trace: AllocationTrace) -> tuple[str | None, str | None]:
        """Write an event stream beside the rows; its file's name, or why it was left out."""
        name = f"events-{re.sub(r'[^A-Za-z0-9._-]', '-', trace.header.case)[:120]}.jsonl.gz"
        packed = gzip.compress("".join(line + "\n" for line in trace.lines()).encode(), 9, mtime=0)
        if self._bytes + len(packed) > self._limit - min(_ROOM_FOR_ROWS, self._limit // 4):
            return None, f"{len(packed)} bytes would leave too little of the {self._limit} that a recording may have"
        with written_whole(self._folder / name) as temporary:
            temporary.write_bytes(packed)
        self._bytes += len(packed)
        return name, None

    def _mend(self) -> bool:
        """Cut off a last line that was not finished; True if nothing is left."""
        data = self._path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            with written_whole(self._path) as temporary:
                temporary.write_bytes(data[:whole])
            self._bytes -= len(data) - whole
        return whole == 0

    def _check_same(self, before: Environment, now: Environment) -> None:
        for name in _SAME_MACHINE:
            old, new = getattr(before, name), getattr(now, name)
            if old != new:
                raise TraceError(
                    f"{self._path}: was recorded with {name} {old!r}, here it is {new!r}; record into another folder"
                )


def key_of(row: Row) -> str:
    """What tells a row from the others of its suite: the case's name, and for steps whether they were compiled."""
    if isinstance(row, StepRow):
        return f"{row.case.name}{' compiled' if row.compiled else ''}"
    if isinstance(row, MemoryRow | OperatorRow | KernelRow):
        return row.case.name
    raise TypeError(f"{type(row).__name__} rows have no key")
