"""Several solvers on one problem: who wins, who is stopped, and that nothing is left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from contest_entries import fails, finds

from peakline.solvers.contest import Entry, contest

HERE = str(Path(__file__).parent)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z" if Path("/proc").exists() else True


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_the_least_cost_wins_and_every_bound_counts(jobs: int) -> None:
    entries = [Entry("a", finds, (7, 1)), Entry("b", finds, (6, 2)), Entry("c", finds, (9, 4))]
    best = contest(entries, jobs=jobs, seconds=20)
    assert best is not None
    assert (best.cost, best.bound, best.by) == (6, 4, "b")


@pytest.mark.parametrize("jobs", [1, 2])
def test_of_equal_answers_the_one_listed_first_wins_even_if_it_comes_last(jobs: int) -> None:
    entries = [Entry("slow", finds, (5, 0, 1.0)), Entry("quick", finds, (5, 5))]
    best = contest(entries, jobs=jobs, seconds=20)
    assert best is not None
    assert (best.by, best.bound) == ("slow", 5)


def test_what_is_listed_after_a_proven_answer_is_stopped() -> None:
    began = time.monotonic()
    best = contest([Entry("first", finds, (5, 5, 1.0)), Entry("late", finds, (5, 5, 60.0))], jobs=2, seconds=100)
    assert best is not None
    assert best.by == "first"
    assert time.monotonic() - began < 30


def test_an_entry_that_fails_elsewhere_counts_as_none() -> None:
    best = contest([Entry("a", finds, (3, 1)), Entry("b", fails, ())], jobs=2, seconds=20)
    assert best is not None
    assert (best.cost, best.bound) == (3, 1)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_process_is_left_behind(tmp_path: Path, how: signal.Signals) -> None:
    """After Ctrl-C, and even if the parent is killed."""
    told = tmp_path / "pid"
    script = (
        f"import sys; sys.path.insert(0, {HERE!r})\n"
        "import contest_entries as t; from peakline.solvers.contest import Entry, contest\n"
        f"contest([Entry('a', t.finds, (1, 0, 60.0)), Entry('b', t.writes_its_number_and_sleeps, ({str(told)!r},))], "
        "jobs=2, seconds=60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    until = time.monotonic() + 30
    while time.monotonic() < until and not (told.exists() and told.read_text()):
        time.sleep(0.05)
    child = int(told.read_text())
    assert alive(child)
    parent.send_signal(how)
    parent.wait(20)
    until = time.monotonic() + 10
    while time.monotonic() < until and alive(child):
        time.sleep(0.05)
    assert not alive(child)
