"""Entries of contests; in a module of their own, which other processes can import."""

from __future__ import annotations

import os
import time
from pathlib import Path

from peakline.solvers.contest import Answer, Report


def finds(report: Report, seconds: float, cost: int, bound: int, after: float = 0.0) -> Answer:
    time.sleep(after)
    return Answer(f"{cost} after {after}", cost, bound)


def fails(report: Report, seconds: float) -> Answer:
    raise RuntimeError("no solver here")


def writes_its_number_and_sleeps(report: Report, seconds: float, path: str) -> Answer:
    Path(path).write_text(str(os.getpid()))
    time.sleep(60)
    return Answer(None, 0, 0)
