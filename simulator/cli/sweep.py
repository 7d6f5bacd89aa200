"""`peakline sweep`: every configuration of a YAML file's axes into Parquet, resumed where it was left."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["sweep"]

_MORE = "More machines"


def sweep(
    file: Annotated[Path, typer.Argument(metavar="SWEEP.yaml", help="Axes, zips, conditions: docs/sweep.md.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="A file .parquet, or a folder for the parts.")],
    yes: Annotated[bool, typer.Option("--yes", help="Go on, however many rows there are.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Remove what another sweep left in the folder.")] = False,
    workers: Annotated[
        int, typer.Option(metavar="N", min=1, help="Processes on this machine.", rich_help_panel=_MORE)
    ] = 1,
    dask: Annotated[
        str | None, typer.Option(metavar="tcp://HOST:PORT", help="A Dask scheduler.", rich_help_panel=_MORE)
    ] = None,
    gather: Annotated[
        bool, typer.Option("--gather", help="Workers send rows back: no shared storage.", rich_help_panel=_MORE)
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> int:
    """Estimate every combination of the axes in a YAML file, and write a row for each.

    Parts are kept on disk as they come: after an interrupt, or a crash, the same command goes on from there.

    Exit codes: 0 all rows are written (those that cannot be estimated say why), 2 bad input, 130 interrupted.
    """
    from peakline.sweeping.document import read_document
    from peakline.sweeping.run import Interrupted, sweep_to

    given = read_document(file)
    executor: Any = None
    if dask is not None:
        if workers > 1:
            raise ValueError("--dask, --workers: choose one")
        from peakline.sweeping.distributed import client_of

        executor = client_of(dask)
    elif workers > 1:
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor

        executor = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        written = sweep_to(out, executor=executor, yes=yes, gather=gather, replace=replace, **given)
    except Interrupted as interrupt:
        print(interrupt, file=sys.stderr)
        raise
    finally:
        if dask is not None:
            executor.close()
        elif executor is not None:
            executor.shutdown(cancel_futures=True)
    said = {
        "schema": "peakline.sweep/1",
        "path": str(written.path),
        "rows": written.rows,
        "errors": written.errors,
        "parts": written.parts,
        "computed": written.computed,
        "seconds": written.seconds,
    }
    if json_:
        print(json.dumps(said))
        return 0
    kept = written.parts - written.computed
    print(
        f"{written.rows:,} rows in {written.path}" + (f", {written.errors:,} with an error" if written.errors else "")
    )
    if kept:
        print(f"{kept:,} of {written.parts:,} parts were there already")
    return 0
