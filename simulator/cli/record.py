"""`peakline record`: measure real torch runs on this machine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from peakline.record.schema import Suite
    from peakline.record.suite import Progress

__all__ = ["record"]

_INTERRUPTED = 130


def record(
    suite: Annotated[str, typer.Argument(metavar="SUITE", help="memory, operators, steps, kernels or all.")],
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder for the trace; continued.")] = None,
    device: Annotated[str, typer.Option(help="auto, cuda or cpu.")] = "auto",
    minutes: Annotated[float | None, typer.Option(help="Begin no case after that long.")] = None,
    only: Annotated[str | None, typer.Option(metavar="NAMES", help="Cases, by parts of names; commas between.")] = None,
    compile_: Annotated[bool, typer.Option("--compile", help="Time steps under torch.compile, too.")] = False,
    max_bytes: Annotated[
        int | None, typer.Option("--max-bytes", metavar="BYTES", help="Size that the folder may reach (20 MB).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of weights, inputs, and the order of products.")] = 0,
    list_: Annotated[bool, typer.Option("--list", help="Name the cases, and measure none.")] = False,
) -> int:
    """Measure memory and time of real torch runs here, and keep them as a trace that can be read safely.

    The most valuable cases come first. Running it again with the same folder goes on where it stopped; Ctrl-C keeps
    what is measured.

    Exit codes: 0 every case is recorded, 1 some are left or failed, 2 bad input.
    """
    from peakline.record.suite import device_of, suites_of
    from peakline.record.suite import record as run
    from peakline.record.writer import LARGEST_RECORDING

    suites = suites_of(suite)
    if minutes is not None and not 0 < minutes < 1e6:
        raise ValueError(f"--minutes: must be above 0, got {minutes}")
    if max_bytes is not None and max_bytes < 1:
        raise ValueError(f"--max-bytes: must be at least 1, got {max_bytes}")
    if seed < 0:
        raise ValueError(f"--seed: must be at least 0, got {seed}")
    patterns = tuple(part.strip() for part in (only or "").split(",") if part.strip())
    kind = device_of(device)
    if list_:
        return _list(suites, kind, patterns, compile_, seed)
    if out is None:
        raise ValueError("--out: missing; give a folder for the trace")
    with _shown() as progress:
        try:
            done = run(
                suites,
                out,
                device=kind,
                minutes=minutes,
                only=patterns,
                compiled=compile_,
                seed=seed,
                max_bytes=LARGEST_RECORDING if max_bytes is None else max_bytes,
                progress=progress,
            )
        except KeyboardInterrupt:
            print(f"stopped; what was measured is in {out}, and the same command goes on from there", file=sys.stderr)
            return _INTERRUPTED
    for note in done.notes:
        print(f"note: {note}", file=sys.stderr)
    words = [f"{done.recorded} recorded"]
    words += [f"{done.failed} of these failed"] if done.failed else []
    words += [f"{done.before} were there"] if done.before else []
    words += [f"{done.left} left for the next run"] if done.left else []
    print(f"{out}: {', '.join(words)}")
    return 1 if done.left or done.failed else 0


def _list(suites: tuple[Suite, ...], kind: str, patterns: tuple[str, ...], compiled: bool, seed: int) -> int:
    """One line for each case."""
    from peakline.record.suite import jobs

    found = 0
    for suite in suites:
        for job in jobs(suite, kind, only=patterns, compiled=compiled, seed=seed):  # type: ignore[arg-type]
            print(f"{suite}\t{job.key}")
            found += 1
    if patterns and not found:
        raise ValueError(f"--only: no case matches {', '.join(patterns)}; --list alone names all")
    return 0


@contextmanager
def _shown() -> Iterator[Progress]:
    """Progress on stderr: a bar on a terminal, a line per suite elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    columns = (TextColumn("{task.fields[suite]}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bar(*columns, TextColumn("{task.description}"), console=console, disable=not console.is_terminal) as bar:
        tasks: dict[str, object] = {}

        def show(suite: str, done: int, total: int, name: str) -> None:
            if suite not in tasks:
                tasks[suite] = bar.add_task("", total=total, suite=suite)
                if not console.is_terminal:
                    print(f"{suite}: {total} cases", file=sys.stderr)
            bar.update(tasks[suite], completed=done, description=name)  # type: ignore[arg-type]

        yield show
