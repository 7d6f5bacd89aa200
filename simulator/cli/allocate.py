"""`peakline allocate`: buffers with lifetimes in one arena, with a certificate."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from peakline.cli.schedule_levels import bytes_of
from peakline.files import check_target, written_whole

if TYPE_CHECKING:
    from peakline.solvers.allocation import Allocation, Instance, Progress

__all__ = ["allocate"]

SCHEMA = "peakline.allocation/1"
_NOT_PLACED = 1
_INTERRUPTED = 130  # as shells report SIGINT
_NAMED = 5  # buffers of the crowd that are named
_LEAST = 1e-3  # seconds left to the solver, whatever reading took: a greedy placement and bounds there always are
_AROUND = 1.3  # reading and writing beside reading alone
_REDRAW = 0.2  # seconds between two lines of progress


def allocate(
    instance: Annotated[
        Path, typer.Argument(metavar="INSTANCE.csv", help="Columns id, lower, upper, size [alignment, hint, offset].")
    ],
    capacity: Annotated[
        str | None,
        typer.Option(
            metavar="BYTES", help="1048576, 1MiB: stop at the first placement within it; else smallest arena."
        ),
    ] = None,
    time_limit: Annotated[
        float, typer.Option(metavar="SECONDS", help="Best answer and bound by then, reading included.")
    ] = 60.0,
    seed: Annotated[int, typer.Option(help="Of the restarts; the same seed gives the same placement.")] = 0,
    method: Annotated[str, typer.Option(help="auto, heuristics, search, milp or cp-sat.")] = "auto",
    out: Annotated[
        Path | None, typer.Option(metavar="SOLUTION.csv", help="The instance with a column `offset`.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> int:
    """Place buffers with known lifetimes in the smallest arena, or within a capacity.

    Lifetimes are half-open: a buffer is alive from `lower` up to, but not at, `upper`. An `offset` in the input
    fixes that buffer; a `hint` does not bind. Ctrl-C ends the work and keeps the best placement so far.

    Exit codes: 0 placed (within the capacity, if given), 1 impossible or not found, 2 bad input, 130 interrupted before
    there was a placement.
    """
    started = time.monotonic()
    from peakline.solvers.allocation import allocate as solve
    from peakline.solvers.allocation import read_csv, write_csv

    within = None if capacity is None else bytes_of(capacity)
    if out is not None:
        check_target(out)
    try:
        item = read_csv(instance)
        around = _AROUND * (time.monotonic() - started)
        answer = solve(
            item,
            within,
            time_limit=time_limit if time_limit <= 0 else max(time_limit - around, _LEAST),
            seed=seed,
            method=method,  # type: ignore[arg-type]
            progress=_meter() if sys.stderr.isatty() else None,
        )
    except ImportError as error:
        raise ValueError(str(error)) from error
    except KeyboardInterrupt:
        print("interrupted before there was a placement", file=sys.stderr)
        return _INTERRUPTED
    finally:
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    if answer.offsets is not None and out is not None:
        with written_whole(out) as temporary:
            write_csv(temporary, item, answer.offsets)
    if json_:
        print(json.dumps(_document(answer, within)))
    else:
        print("\n".join(_lines(item, answer, within, out)))
    return 0 if answer.offsets is not None else _NOT_PLACED


def _document(answer: Allocation, capacity: int | None) -> dict[str, Any]:
    """The JSON of schema `peakline.allocation/1`; bytes and seconds."""
    return {
        "schema": SCHEMA,
        "status": answer.status,
        "peak": answer.peak,
        "lower_bound": answer.lower_bound,
        "seconds": round(answer.seconds, 3),
        "method": answer.method,
        "capacity": capacity,
        "smallest_found": answer.smallest_found,
        "gap": answer.gap,
        "nodes": answer.nodes,
        "notes": list(answer.notes),
    }


def _lines(item: Instance, answer: Allocation, capacity: int | None, out: Path | None) -> list[str]:
    """What a person reads: the verdict, what forces it, how it was reached."""
    from peakline.solvers.allocation.bounds import crowd

    moment, need = crowd(item)
    lines = [
        _verdict(answer, capacity),
        f"most crowded moment: {moment}, where {need:,} bytes are needed at once: {_alive(item, moment)}",
        f"by {answer.method}; {answer.seconds:.2f} s, {answer.nodes:,} nodes",
        *(f"note: {note}" for note in answer.notes),
    ]
    if answer.offsets is not None and out is not None:
        lines.append(f"offsets in {out}")
    return lines


def _alive(item: Instance, moment: int) -> str:
    """The largest buffers alive at a moment, and how many more there are."""
    alive = [(b.size, name) for b, name in zip(item.buffers, item.ids) if b.lower <= moment < b.upper]
    alive.sort(key=lambda entry: -entry[0])
    named = ", ".join(f"{name} ({size:,})" for size, name in alive[:_NAMED])
    return f"{named} and {len(alive) - _NAMED} more" if len(alive) > _NAMED else named


def _verdict(answer: Allocation, capacity: int | None) -> str:
    bound = f"no placement needs fewer than {answer.lower_bound:,}"
    found = f"the smallest found needs {answer.smallest_found:,}"
    if answer.peak is not None:
        if answer.status == "optimal":
            return f"optimal: {answer.peak:,} bytes, and {bound}"
        return f"placed in {answer.peak:,} bytes; {bound} (gap {answer.gap:.2%})"
    if answer.status == "infeasible":
        return f"impossible in {capacity:,} bytes: {bound}; {found}"
    return f"not found within {capacity:,} bytes, nor proven impossible: {found}, {bound}"


def _meter() -> Callable[[Progress], None]:
    """A line on the terminal, redrawn now and then: incumbent, bound, gap, time left."""
    drawn = [0.0]

    def draw(state: Progress) -> None:
        if state.seconds - drawn[0] < _REDRAW or not state.incumbent:
            return
        drawn[0] = state.seconds
        gap = 1 - state.lower_bound / state.incumbent
        print(
            f"\r\x1b[Kfound {state.incumbent:,} bytes, bound {state.lower_bound:,}, gap {gap:.2%}, "
            f"{state.seconds_left:.0f} s left",
            end="",
            file=sys.stderr,
            flush=True,
        )

    return draw
