"""Several solvers on one problem, in as many processes as asked for.

Entries are listed by priority and never hear of each other, so that each gives the same answer however fast the others
are. The problem is settled when the least cost that any has found meets the largest bound that any has proven; then
the entries listed after the one that found it are stopped, and those before it have as long again: of equal answers the
one listed first wins, not the one that came first, unless it takes more than twice as long.

With one job they take turns in this process; with more each runs in an interpreter of its own (`subprocess`, not
`multiprocessing`, which would run the caller's main module again), with one thread of linear algebra. A process whose
parent is gone ends itself, with whatever it started.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

__all__ = ["Answer", "Entry", "Report", "contest", "cores", "serve"]

_BOOT = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from peakline.solvers.contest import serve; serve()"
)
_POLL = 0.05  # seconds between two looks at what other processes say, while this one has nothing to do
_AGAIN = 3.0  # seconds that entries before the one that found the least have at least
_GRACE = 2.0  # seconds over its budget after which a process is ended


@dataclass(frozen=True, slots=True)
class Answer:
    """What an entry has found so far: a solution (None: none) of `cost`, and a bound on every solution's cost.

    `by` is who found the solution and `proof` who proved the bound, once a contest has filled them in.
    """

    solution: Any
    cost: int
    bound: int
    by: str = ""
    proof: str = ""


Report = Callable[[Answer], None]
"""Publishes an answer before the end; raises `_Enough` where nobody waits for a better one."""


@dataclass(frozen=True, slots=True)
class Entry:
    """`run(report, seconds, *arguments)` gives an Answer within about `seconds`; a function of a module, not a closure.

    What it raises counts as no answer, except in this process's own KeyboardInterrupt. `weight`: its part of the time
    that it shares with others.
    """

    name: str
    run: Callable[..., Answer]
    arguments: tuple[Any, ...]
    weight: float = 1.0


class _Enough(Exception):
    """The problem is settled."""


def cores() -> int:
    """Processors that this process may use, at most 2: what `jobs` is unless asked otherwise."""
    affinity = getattr(os, "sched_getaffinity", None)
    return min(2, len(affinity(0)) if affinity else os.cpu_count() or 1)


def contest(
    entries: Sequence[Entry],
    *,
    jobs: int,
    seconds: float,
    known: int | None = None,
    heard: Callable[[Answer], None] = lambda answer: None,
) -> Answer | None:
    """The best answer of all entries with the best bound of all: least cost, then the order of the list.

    A bound of `known`, the cost of a solution that the caller has, settles the problem as well. `heard` is told of
    every answer. None if no entry has any. A KeyboardInterrupt ends all processes and is passed on.

    Raises ValueError for fewer than one job.
    """
    if jobs < 1:
        raise ValueError(f"jobs: must be at least 1, got {jobs}")
    held = _Held(entries, jobs if sys.executable else 1, seconds, known, heard)
    try:
        held.run()
    finally:
        held.close()
    return held.result()


class _Held:
    """One contest: who waits, who runs where, and the best of each."""

    def __init__(
        self,
        entries: Sequence[Entry],
        jobs: int,
        seconds: float,
        known: int | None,
        heard: Callable[[Answer], None],
    ) -> None:
        self.entries, self.jobs, self.known, self.heard = list(entries), jobs, known, heard
        self.began = time.perf_counter()
        self.deadline = self.began + seconds
        self.settled = float("inf")
        self.waiting = list(range(len(self.entries)))
        self.best: dict[int, Answer] = {}
        self.processes: dict[int, _Process] = {}
        self.news: queue.SimpleQueue[tuple[int, Answer | None]] = queue.SimpleQueue()

    def run(self) -> None:
        while self.waiting or self.processes:
            self._listen(0.0)
            if time.perf_counter() > self.deadline:
                return
            if self.jobs == 1:
                self._run_here(self.waiting.pop(0))
                continue
            while self.waiting and len(self.processes) < self.jobs:
                k = self.waiting.pop(0)
                self.processes[k] = _Process(self.entries[k], self._share(k), k, self.news)
            self._listen(_POLL)

    def _share(self, k: int) -> float:
        """Seconds for an entry that starts now: the first has all that are left, others share them with who waits."""
        left = max(0.0, self.deadline - time.perf_counter())
        mine = self.entries[k].weight
        part = mine / (mine + sum(self.entries[i].weight for i in self.waiting))
        if self.jobs > 1:
            return left if k == 0 else left * min(1.0, (self.jobs - 1) * part)
        return left * part

    def _run_here(self, k: int) -> None:
        entry = self.entries[k]

        def report(answer: Answer) -> None:
            self._learn(k, answer)
            self._listen(0.0)
            if self._settled_before(k):
                raise _Enough

        with contextlib.suppress(_Enough):
            self._learn(k, entry.run(report, self._share(k), *entry.arguments))

    def _listen(self, seconds: float) -> None:
        """Take in what other processes have said; stop those that nobody waits for, or that overstay."""
        while True:
            try:
                k, answer = self.news.get(timeout=seconds) if seconds else self.news.get_nowait()
            except queue.Empty:
                break
            if k not in self.processes:
                continue
            if answer is None:
                self.processes.pop(k).close()
            else:
                self._learn(k, answer)
            seconds = 0.0
        for k, process in list(self.processes.items()):
            if self._settled_before(k) or time.perf_counter() > process.until:
                self.processes.pop(k).close()

    def _learn(self, k: int, answer: Answer) -> None:
        named = answer if answer.by else replace(answer, by=self.entries[k].name)
        known = self.best.get(k)
        if known is not None:
            bound = max(known.bound, named.bound)
            better = named.solution is not None and (known.solution is None or named.cost < known.cost)
            named = replace(named if better else known, bound=bound)
        self.best[k] = named
        self.heard(named)
        self.waiting = [i for i in self.waiting if not self._settled_before(i)]

    def _settled_before(self, k: int) -> bool:
        """Whether entry `k` need not go on: bound and cost have met, and an entry before it holds such a solution, or
        the caller, or one after it for as long as it took."""
        found = self.result()
        if found is None:
            return False
        if found.solution is None:
            return self.known is not None and found.bound >= self.known
        if found.cost > found.bound:
            return False
        now = time.perf_counter()
        self.settled = min(self.settled, now)
        return self._holder() < k or (
            self._holder() > k and now > self.settled + max(_AGAIN, self.settled - self.began)
        )

    def _holder(self) -> int:
        return min(
            (k for k, a in self.best.items() if a.solution is not None),
            key=lambda k: (self.best[k].cost, k),
            default=-1,
        )

    def result(self) -> Answer | None:
        if not self.best:
            return None
        bound = max(answer.bound for answer in self.best.values())
        proof = next(self.entries[k].name for k in sorted(self.best) if self.best[k].bound == bound)
        holder = self._holder()
        if holder < 0:
            return Answer(None, 0, bound, "", proof)
        return replace(self.best[holder], bound=min(bound, self.best[holder].cost), proof=proof)

    def close(self) -> None:
        for process in self.processes.values():
            process.close()
        self.processes.clear()


class _Process:
    """An entry in an interpreter of its own, with a thread that reads what it says."""

    def __init__(
        self, entry: Entry, seconds: float, number: int, news: queue.SimpleQueue[tuple[int, Answer | None]]
    ) -> None:
        self.until = time.perf_counter() + seconds + _GRACE
        self.process = subprocess.Popen(
            [sys.executable, "-c", _BOOT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        )
        threading.Thread(target=self._read, args=(number, news), daemon=True).start()
        assert self.process.stdin is not None
        try:
            pickle.dump(sys.path, self.process.stdin)
            pickle.dump((entry.run, seconds, entry.arguments), self.process.stdin)
            self.process.stdin.flush()
        except OSError:
            pass  # it has ended already: the thread says so

    def _read(self, number: int, news: queue.SimpleQueue[tuple[int, Answer | None]]) -> None:
        stream = self.process.stdout
        assert stream is not None
        try:
            while True:
                news.put((number, pickle.load(stream)))
        except (EOFError, OSError, ValueError, pickle.UnpicklingError):
            news.put((number, None))

    def close(self) -> None:
        """End the process and all that it started."""
        kill = getattr(os, "killpg", None)
        try:
            if kill is not None:
                kill(self.process.pid, signal.SIGKILL)
            else:
                self.process.kill()
        except (ProcessLookupError, PermissionError):
            pass
        self.process.wait()
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()


def serve() -> None:
    """What a process of its own does: reads one entry from standard input, writes its answers to standard output."""
    given, said = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a solver prints must not mix with the answers
    run, seconds, arguments = pickle.load(given)
    threading.Thread(target=_end_with_parent, args=(given,), daemon=True).start()

    def report(answer: Answer) -> None:
        pickle.dump(answer, said)
        said.flush()

    report(run(report, seconds, *arguments))


def _end_with_parent(given: BinaryIO) -> None:
    """End this process, and those that it started, once the other end of its standard input is closed."""
    given.read()
    kill = getattr(os, "killpg", None)
    if kill is not None:
        kill(os.getpid(), signal.SIGKILL)
    os._exit(1)
