"""A command line that runs in the test's own process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from peakline.cli import main


@dataclass(frozen=True)
class Outcome:
    """What one command did."""

    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `peakline` with a command line as one would type it, or with separate arguments."""

    def command(*arguments: str) -> Outcome:
        capsys.readouterr()
        code = main(arguments[0].split() if len(arguments) == 1 else arguments)
        out, err = capsys.readouterr()
        return Outcome(code, out, err)

    return command
