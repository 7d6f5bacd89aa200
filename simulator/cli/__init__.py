"""The command line: `peakline estimate`, `peakline devices`, `peakline models`."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; `arguments` default to the process's own.

    0: the answer is yes (it fits); 1: the answer is no (it does not fit); 2: no answer, because of bad input.
    """
    from peakline.cli.app import run

    return run(arguments)
