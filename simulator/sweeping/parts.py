"""A sweep on disk: one Parquet file per part, named after the hash of what it holds, each written whole or not at all.

    results/_sweep.json                       schema, version, the sweep's hash, rows, columns
    results/part-000000131072-<hash>.parquet  the rows from number 131072 on

A run computes the parts that are not there. A single file `results.parquet` is joined from `results.parquet.parts/`,
row group by row group, once all are there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peakline import __version__
from peakline.files import check_target, written_whole
from peakline.sweeping.evaluate import evaluate
from peakline.sweeping.plan import Part, Plan
from peakline.sweeping.table import SCHEMA, Table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Done", "Store", "Writer", "Written"]

MANIFEST = "_sweep.json"
KEY = b"peakline.sweep"


@dataclass(frozen=True)
class Done:
    """A part on disk: its file's name, rows, and rows with an error."""

    file: str
    rows: int
    errors: int


@dataclass(frozen=True)
class Written:
    """A sweep on disk.

    Attributes:
        path: the file or folder.
        rows: configurations kept.
        errors: rows among them that carry an error.
        parts: of the sweep.
        computed: parts that this run computed; the others were there.
        seconds: of this run.
    """

    path: Path
    rows: int
    errors: int
    parts: int
    computed: int
    seconds: float

    def read(self, columns: Sequence[str] | None = None, filters: Any = None) -> pd.DataFrame:
        """The rows as a DataFrame; `columns` and `filters` as in `pyarrow.parquet.read_table`."""
        wanted = None if columns is None else list(columns)
        frame: pd.DataFrame = parquet().read_table(self.path, columns=wanted, filters=filters).to_pandas()
        return frame


@dataclass(frozen=True)
class Writer:
    """Evaluates parts and writes them into a folder; goes to worker processes as it is."""

    folder: str

    def run(self, part: Part) -> Done:
        """Evaluate a part and write it."""
        return self.save(part, evaluate(part))

    def save(self, part: Part, table: Table) -> Done:
        """Write a part's rows; the file appears whole or not at all."""
        pq = parquet()
        arrow = table.arrow().replace_schema_metadata({KEY: part.key.encode(), b"errors": str(table.errors).encode()})
        target = Path(self.folder) / file_of(part)
        with written_whole(target) as temporary:
            pq.write_table(arrow, temporary, compression="zstd")
        return Done(target.name, table.rows, table.errors)


def file_of(part: Part) -> str:
    """A part's file: its first row and the hash of its specification."""
    return f"part-{part.start:012d}-{part.key}.parquet"


def parquet() -> Any:
    """pyarrow's Parquet module. Raises ValueError where pyarrow is not installed."""
    try:
        return import_module("pyarrow.parquet")
    except ImportError:
        raise ValueError("writing Parquet needs pyarrow: pip install 'peakline[sweep]'") from None


class Store:
    """Where a sweep is kept: a folder of parts, and the file they are joined to, if one was asked for."""

    def __init__(self, out: str | PathLike[str]) -> None:
        target = Path(out)
        if target.suffix == ".parquet" and not target.is_dir():
            self.file: Path | None = target
            self.folder = target.with_name(f"{target.name}.parts")
        else:
            if target.is_file() or target.suffix in (".csv", ".json", ".yaml", ".yml"):
                raise ValueError(f"out: {target}: give a file that ends in .parquet, or a folder")
            self.file, self.folder = None, target

    # ---- before ---------------------------------------------------------------------------------------------------
    def open(self, plan: Plan, *, replace: bool) -> None:
        """Make the folder ready: refuse what another version or another sweep left there.

        Raises:
            ValueError: saying what lies there, or why nothing can be written.
        """
        parquet()
        if self.file is not None:
            check_target(self.file)
        if not self.folder.parent.is_dir():
            raise ValueError(f"out: {self.folder}: there is no folder {str(self.folder.parent)!r}")
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise ValueError(f"out: {self.folder}: cannot be made: {error.strerror}") from None
        check_target(self.folder / MANIFEST)
        self._refuse_older(replace)
        for leftover in self.folder.glob(".*"):
            if leftover.name.startswith((".part-", f".{MANIFEST}")) and leftover.is_file():
                leftover.unlink(missing_ok=True)
        names = {file_of(plan.part(n)) for n in range(plan.parts)} if self._others() else set()
        strangers = [path for path in self._others() if path.name not in names]
        if strangers and self.file is None and not replace:
            raise ValueError(
                f"out: {self.folder} holds {len(strangers)} parts of another sweep, such as {strangers[0].name}; "
                "give another folder, or replace them (--replace, replace=True)"
            )
        if replace or self.file is not None:
            for path in strangers:
                path.unlink(missing_ok=True)
        self._write_manifest(plan, complete=False)

    def _others(self) -> list[Path]:
        return sorted(self.folder.glob("part-*.parquet"))

    def _refuse_older(self, replace: bool) -> None:
        manifest = self.folder / MANIFEST
        if not manifest.exists():
            if any(self.folder.iterdir()) and not self._only_ours():
                raise ValueError(f"out: {self.folder} holds files that no sweep wrote; give an empty folder")
            return
        try:
            said = json.loads(manifest.read_text(encoding="utf-8"))
            schema, version = str(said["schema"]), str(said["version"])
        except (ValueError, KeyError, TypeError):
            schema, version = "an unreadable schema", "an unknown version"
        if (schema, version) == (SCHEMA, __version__):
            return
        if replace:
            for path in self._others():
                path.unlink(missing_ok=True)
            return
        raise ValueError(
            f"out: {self.folder} was written by peakline {version} ({schema}), and this is {__version__} ({SCHEMA}): "
            "their rows do not mix; give another folder, or replace them (--replace, replace=True)"
        )

    def _only_ours(self) -> bool:
        return all(p.name.startswith((".part-", "part-", f".{MANIFEST}")) for p in self.folder.iterdir())

    def _write_manifest(self, plan: Plan, *, complete: bool, **more: Any) -> None:
        columns = [column.name for column in plan.settings.all_columns]
        document = {"schema": SCHEMA, "version": __version__, "sweep": plan.key, "rows_before_conditions": plan.rows}
        document |= {"parts": plan.parts, "complete": complete, "columns": columns, **more}
        with written_whole(self.folder / MANIFEST) as temporary:
            temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")

    # ---- meanwhile ------------------------------------------------------------------------------------------------
    def has(self, plan: Plan, number: int) -> bool:
        """Whether a part is there, whole, and what it says it is."""
        part = plan.part(number)
        path = self.folder / file_of(part)
        if not path.is_file():
            return False
        try:
            metadata = parquet().read_metadata(path).metadata or {}
        except (OSError, ValueError):
            return False
        return bool(metadata.get(KEY) == part.key.encode())

    def kept(self, plan: Plan) -> int:
        """How many parts are there."""
        return sum(self.has(plan, number) for number in range(plan.parts))

    # ---- after ----------------------------------------------------------------------------------------------------
    def complete(self, plan: Plan) -> bool:
        """Whether the single file is there already, of this very sweep."""
        if self.file is None or not self.file.is_file():
            return False
        try:
            metadata = parquet().read_metadata(self.file).metadata or {}
        except (OSError, ValueError):
            return False
        return bool(metadata.get(KEY) == plan.key.encode())

    def finish(self, plan: Plan, computed: int, seconds: float) -> Written:
        """Join the parts to the single file, if one was asked for, and count."""
        pq = parquet()
        rows = errors = 0
        paths = [self.folder / file_of(plan.part(n)) for n in range(plan.parts)]
        for path in paths:
            metadata = pq.read_metadata(path)
            rows += metadata.num_rows
            errors += int((metadata.metadata or {}).get(b"errors", b"0"))
        if self.file is not None:
            schema = Table.arrow_schema(plan.settings.all_columns)
            schema = schema.with_metadata({KEY: plan.key.encode(), b"errors": str(errors).encode()})
            with (
                written_whole(self.file) as temporary,
                pq.ParquetWriter(temporary, schema, compression="zstd") as joined,
            ):
                for path in paths:
                    joined.write_table(pq.read_table(path).replace_schema_metadata(schema.metadata))
            shutil.rmtree(self.folder)
        else:
            self._write_manifest(plan, complete=True, rows=rows, errors=errors)
        return Written(self.file or self.folder, rows, errors, plan.parts, computed, seconds)

    def written(self, plan: Plan, computed: int, seconds: float) -> Written:
        """What the complete single file holds."""
        assert self.file is not None
        metadata = parquet().read_metadata(self.file)
        errors = int((metadata.metadata or {}).get(b"errors", b"0"))
        return Written(self.file, metadata.num_rows, errors, plan.parts, computed, seconds)
