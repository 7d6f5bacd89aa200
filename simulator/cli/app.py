"""The commands joined into one application, and how it ends: an exit code, and one line on stderr for any fault."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from peakline.cli.allocate import allocate
from peakline.cli.calibrate import calibrate
from peakline.cli.estimate import estimate
from peakline.cli.io import io
from peakline.cli.listings import devices, models
from peakline.cli.place import place
from peakline.cli.plan import plan
from peakline.cli.record import record
from peakline.cli.roofline import roofline
from peakline.cli.schedule import schedule
from peakline.cli.send import report
from peakline.cli.sweep import sweep
from peakline.cli.validate import validate

__all__ = ["app", "run"]

BAD_INPUT = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells report it
PIPE_CLOSED = 141  # 128 + SIGPIPE

UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""What a wrong command line raises: typer names only its subclass."""

app = typer.Typer(
    name="peakline",
    help="Peak memory, time and traffic of a deep-learning workload on a device, before it runs.",
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 it fits, 1 it does not fit, 2 bad input.",
)
app.command()(estimate)
app.command()(devices)
app.command()(models)
app.command()(plan)
app.command()(place)
app.command()(schedule)
app.command()(validate)
app.command()(calibrate)
app.command()(allocate)
app.command()(sweep)
app.command()(roofline)
app.command()(io)
app.command()(report)
app.command()(record)


def _version(asked: bool) -> None:
    if asked:
        from peakline import __version__

        print(f"peakline {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", callback=_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere.")] = False,
) -> None:
    pass


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the application; every failure becomes one line on stderr and an exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"] or ["--help"]
    _never_fail_on_a_character()
    try:
        code = app(args=given, prog_name="peakline", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except (BrokenPipeError, SystemExit):  # typer exits by itself when its reader is gone, and only then
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except Exception as error:
        if debug:
            traceback.print_exc()
        print(f"peakline: error: {_one_line(error)}", file=sys.stderr)
        return BAD_INPUT


def _one_line(error: Exception) -> str:
    """What a user should read of an error, on one line."""
    if isinstance(error, UsageError):
        text = str(getattr(error, "format_message", error.__str__)())
    elif isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    elif isinstance(error, ValueError):
        text = str(error)
    elif isinstance(error, MemoryError | OverflowError):
        text = f"the sizes are too large to be evaluated: {error or type(error).__name__}"
    else:
        text = f"unexpected {type(error).__name__}: {error} (--debug shows where; please report it)"
    lines = [line.strip().removeprefix("- ").removeprefix("* ") for line in text.splitlines()]
    first, *rest = [line for line in lines if line] or [type(error).__name__]
    return f"{first} {'; '.join(rest)}" if first.endswith(":") else "; ".join([first, *rest])


def _never_fail_on_a_character() -> None:
    """A terminal or pipe that lacks a character gets a `?` for it."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
