"""`peakline.sweep`: every configuration of some axes, in one process or many, as a DataFrame or as Parquet."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import contextmanager
from os import PathLike
from typing import TYPE_CHECKING, Any

from peakline.sweeping.axes import plan_of
from peakline.sweeping.evaluate import evaluate
from peakline.sweeping.plan import Part, Plan
from peakline.sweeping.table import Table

if TYPE_CHECKING:
    import pandas as pd

    from peakline.sweeping.parts import Store, Written

__all__ = ["MOST_IN_MEMORY", "MOST_ON_DISK", "Interrupted", "TooManyRows", "sweep", "sweep_to"]

MOST_IN_MEMORY = 20_000_000
"""Rows that `sweep` makes without `yes`: 8 GB of DataFrame."""

MOST_ON_DISK = 1_000_000_000
"""Rows that `sweep_to` makes without `yes`."""

ROW_BYTES_IN_MEMORY, ROW_BYTES_ON_DISK = 356, 90
"""Bytes of a row: in a DataFrame by the types of its columns, in Parquet as measured (docs/sweep.md)."""


class TooManyRows(ValueError):
    """A sweep larger than anyone means by accident; the message says how large and how long."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in a sweep; `done` is the DataFrame of the parts that were complete, None for a sweep on disk."""

    def __init__(self, message: str, done: pd.DataFrame | None = None) -> None:
        super().__init__(message)
        self.done = done


def sweep(
    model: Any,
    *,
    device: Any,
    phase: Any = None,
    zip: Any = (),
    where: Any = (),
    replay: bool | str = "auto",
    prices: Mapping[str, float] | None = None,
    executor: Any = None,
    progress: bool | None = None,
    yes: bool = False,
    **axes: Any,
) -> pd.DataFrame:
    """Estimate every combination of the axes: a tidy DataFrame, a row per configuration (docs/sweep.md).

    Args:
        model: names, paths of `config.json`, configurations, or `Graph`s (which fix everything but the device).
        device: names, paths, `Device`s, or mappings `{"base": name, field: value or values}`.
        phase: `training`, `prefill`, `decode`, `inference`, or several.
        zip: names of axes that vary together, or several groups of them; all others are multiplied.
        where: conditions over columns, as `"batch * context <= 4e6"`; all must hold for a row to be kept.
        replay: whether the allocator is replayed for every row; "auto": up to 1024 rows.
        prices: currency per hour by device.
        executor: a `concurrent.futures.Executor` or a `dask.distributed.Client`; None: this process.
        progress: a bar with rate and time left on standard error; None: on a terminal.
        yes: go on beyond `MOST_IN_MEMORY` rows.
        **axes: sizes (batch, seq, context, image), options of `peakline.training_step` and the others, `allocator`,
            `cuda_graph`, and fields of the device (`**{"memory.hbm.bandwidth": ["4 TB/s", "8 TB/s"]}`); one value or
            several, or a range `{"from": 1, "to": 64, "count": 7, "scale": "log"}`.

    Returns:
        One row per configuration. Axes in the order given, sizes innermost, the last fastest.

    Raises:
        ValueError: bad input, by name and value. A configuration that cannot be estimated is a row with its `error`.
        TooManyRows: see `yes`.
        Interrupted: Ctrl-C; holds what is done.
    """
    plan = plan_of(model, device=device, phase=phase, zip=zip, where=where, replay=replay, prices=prices, **axes)
    refuse_too_many(plan, MOST_IN_MEMORY, ROW_BYTES_IN_MEMORY, yes, "in memory; `sweep_to` writes to disk")
    tables: dict[int, Table] = {}
    try:
        with meter(plan, progress) as advance:
            for number, table in mapped(evaluate, _numbered(plan, range(plan.parts)), executor):
                tables[number] = table
                advance(plan_rows(plan, number), table.errors)
    except KeyboardInterrupt:
        done = Table.frame([tables[i] for i in sorted(tables)]) if tables else None
        rows = 0 if done is None else len(done)
        raise Interrupted(f"interrupted: {rows:,} of {plan.rows:,} rows are done", done) from None
    return Table.frame([tables[i] for i in range(plan.parts)])


def sweep_to(
    out: str | PathLike[str],
    model: Any,
    *,
    device: Any,
    phase: Any = None,
    zip: Any = (),
    where: Any = (),
    replay: bool | str = "auto",
    prices: Mapping[str, float] | None = None,
    executor: Any = None,
    progress: bool | None = None,
    yes: bool = False,
    gather: bool = False,
    replace: bool = False,
    **axes: Any,
) -> Written:
    """`sweep`, written to Parquet part by part; what is there already is not computed again.

    Args:
        out: a file `.parquet`, or a folder that receives the parts.
        gather: workers send rows back instead of writing them to `out`, where they do not share its file system.
        replace: remove what another sweep left in the folder.
        **axes: and all else, as for `sweep`.

    Returns:
        What was written; `.read()` gives the DataFrame.

    Raises:
        ValueError: bad input; a folder of another version or another sweep; a place that cannot be written.
        Interrupted: Ctrl-C; the parts done stay on disk and the next run goes on from them.
    """
    from peakline.sweeping.parts import Store

    plan = plan_of(model, device=device, phase=phase, zip=zip, where=where, replay=replay, prices=prices, **axes)
    refuse_too_many(plan, MOST_ON_DISK, ROW_BYTES_ON_DISK, yes, "on disk")
    return write(plan, Store(out), executor, progress, gather=gather, replace=replace)


def write(
    plan: Plan, store: Store, executor: Any, progress: bool | None, *, gather: bool = False, replace: bool = False
) -> Written:
    """Evaluate the parts of `plan` that `store` lacks, and finish the store."""
    from peakline.sweeping.parts import Writer

    task: Callable[[Part], Any]
    started = time.perf_counter()
    if store.complete(plan):
        return store.written(plan, computed=0, seconds=0.0)
    store.open(plan, replace=replace)
    writer = Writer(str(store.folder.resolve()))
    missing = [number for number in range(plan.parts) if not store.has(plan, number)]
    there = plan.parts - len(missing)
    task = evaluate if gather and executor is not None else writer.run
    try:
        with meter(plan, progress) as advance:
            if there:
                advance(sum(plan_rows(plan, n) for n in set(range(plan.parts)) - set(missing)), 0)
            for number, result in mapped(task, _numbered(plan, missing), executor):
                if isinstance(result, Table):
                    result = writer.save(plan.part(number), result)
                elif not store.has(plan, number):
                    raise ValueError(
                        f"{store.folder}: a worker wrote its part where this process does not see it; "
                        "give a folder that all share, or gather the rows"
                    )
                advance(plan_rows(plan, number), result.errors)
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted: {store.kept(plan):,} of {plan.parts:,} parts are kept in {store.folder}; run again to go on"
        ) from None
    except OSError as error:
        raise ValueError(
            f"{store.folder}: {error.strerror or error}; {store.kept(plan):,} of {plan.parts:,} parts are kept, "
            "make room and run again"
        ) from error
    return store.finish(plan, computed=len(missing), seconds=time.perf_counter() - started)


def _numbered(plan: Plan, numbers: Any) -> Iterator[tuple[int, Part]]:
    for number in numbers:
        yield number, plan.part(number)


def plan_rows(plan: Plan, number: int) -> int:
    """Rows of a part, before conditions."""
    return min(plan.part_rows, plan.rows - number * plan.part_rows)


# ---- refusing -------------------------------------------------------------------------------------------------------
def refuse_too_many(plan: Plan, most: int, row_bytes: int, yes: bool, where: str) -> None:
    """Refuse a plan of more than `most` rows, with an estimate of its time and bytes from a first small part."""
    if plan.rows <= most or yes:
        return
    seconds = plan.rows * seconds_per_row(plan)
    raise TooManyRows(
        f"{plan.rows:,} rows are too many {where}: about {_duration(seconds)} on one core and "
        f"{_amount(plan.rows * row_bytes)}; at most {most:,} go without asking (--yes, or yes=True)"
    )


def seconds_per_row(plan: Plan) -> float:
    """Seconds of a row, measured on some of the first; those of a large part take least."""
    runs: list[Any] = []
    for run in plan.runs(0, min(plan.part_rows, plan.rows)):
        runs.append(run)
        if len(runs) >= 8:
            break
    part = Part(0, plan.settings, tuple(runs), models=plan.models)
    started = time.perf_counter()
    evaluate(part)
    return (time.perf_counter() - started) / max(part.rows, 1)


def _duration(seconds: float) -> str:
    for size, name in ((31_557_600, "years"), (86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {name}"
    return f"{max(seconds, 1):,.0f} seconds"


def _amount(size: float) -> str:
    exponent = min(int(math.log(max(size, 1), 1000)), 6)
    return f"{size / 1000**exponent:.3g} {('B', 'kB', 'MB', 'GB', 'TB', 'PB', 'EB')[exponent]}"


# ---- running --------------------------------------------------------------------------------------------------------
def mapped(task: Callable[[Part], Any], parts: Iterator[tuple[int, Part]], executor: Any) -> Iterator[tuple[int, Any]]:
    """(number, result) of every part as they come; a few more parts than workers wait at a time."""
    if executor is None:
        for number, part in parts:
            yield number, task(part)
        return
    if hasattr(executor, "get_executor"):
        from peakline.sweeping.distributed import executor_of

        executor = executor_of(executor)
    most = 2 * workers_of(executor) + 2
    running: dict[Future[Any], int] = {}
    exhausted = False
    try:
        while running or not exhausted:
            while not exhausted and len(running) < most:
                item = next(parts, None)
                if item is None:
                    exhausted = True
                    break
                running[executor.submit(task, item[1])] = item[0]
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                yield running.pop(future), future.result()
    finally:
        for future in running:
            future.cancel()


def workers_of(executor: Executor) -> int:
    """How many tasks an executor runs at a time."""
    count = getattr(executor, "_max_workers", None) or getattr(executor, "workers", None)
    return count if isinstance(count, int) else os.cpu_count() or 1


@contextmanager
def meter(plan: Plan, wanted: bool | None) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error: rows, rate, time left, errors; call it with (rows done, errors among them)."""
    import sys

    if wanted is False or (wanted is None and not sys.stderr.isatty()):
        yield lambda rows, errors: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Any) -> Text:
            return Text(f"{task.speed:,.0f} rows/s" if task.speed else "")

    failures = 0
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(f"{plan.rows:,} rows", total=plan.rows)

        def advance(rows: int, errors: int) -> None:
            nonlocal failures
            failures += errors
            said = f"{plan.rows:,} rows" + (f", {failures:,} errors" if failures else "")
            bar.update(task, advance=rows, description=said)

        yield advance
