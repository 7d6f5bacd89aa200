"""Record suites: decide what is left to do, measure it case by case, and write each row as soon as it is known."""

from __future__ import annotations

import fnmatch
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

from peakline.record.cases import MEMORY_CASES, STEP_CASES, memory_cases
from peakline.record.operator_cases import operator_cases
from peakline.record.reader import TraceError
from peakline.record.schema import Environment, MemoryCase, MemoryRow, Suite
from peakline.record.workers import Answer, Failed, Job, Worker, failure, work
from peakline.record.writer import LARGEST_RECORDING, TraceWriter

__all__ = ["SUITES", "Done", "jobs", "record", "suites_of"]

SUITES: tuple[Suite, ...] = get_args(Suite)
_LONGEST_CASE = 900.0  # seconds
_GRACE = 30.0  # seconds that a case under way may go on after the deadline
Progress = Callable[[Suite, int, int, str], None]
Kind = Literal["cuda", "cpu"]


@dataclass
class Done:
    """What a recording did.

    Attributes:
        recorded, failed, before, left: cases measured now, of these with an error, measured by earlier recordings, not
            reached.
        notes: what the reader should know, a line each.
    """

    recorded: int = 0
    failed: int = 0
    before: int = 0
    left: int = 0
    notes: list[str] = field(default_factory=list)


def suites_of(name: str) -> tuple[Suite, ...]:
    """The suites that a name means. Raises ValueError for an unknown one."""
    if name == "all":
        return SUITES
    if name not in SUITES:
        raise ValueError(f"SUITE: {name!r} is unknown; accepted: {', '.join(SUITES)}, all")
    return (name,)


def device_of(name: str) -> Kind:
    """The device that `auto`, `cuda` or `cpu` means here. Raises ValueError if there is no such, or no torch."""
    if name not in ("auto", "cuda", "cpu"):
        raise ValueError(f"--device: {name!r} is unknown; accepted: auto, cuda, cpu")
    if find_spec("torch") is None:
        raise ValueError("recording needs torch: pip install 'peakline[record]'")
    if name == "cpu":
        return "cpu"
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if name == "cuda":
        raise ValueError("--device: torch finds no CUDA GPU here; accepted: cpu, or auto")
    return "cpu"


def jobs(suite: Suite, device: Kind, *, only: Sequence[str] = (), compiled: bool = False, seed: int = 0) -> list[Job]:
    """The cases of a suite on a device, most valuable first; `only` keeps names that match or contain a pattern."""
    found: list[Job] = []
    if suite == "memory":
        found = [Job("memory", device, seed, case) for case in _with_libraries(_allowed(device, only))]
    elif suite == "operators":
        found = [Job("operator", device, seed, case) for case in operator_cases(device, seed)]
    elif suite == "steps":
        by_name = {case.name: case for case in _allowed(device, only)}
        chosen = tuple(by_name[name] for name in STEP_CASES if name in by_name)
        for case in _with_libraries(chosen):
            found.append(Job("step", device, seed, case))
            if compiled:
                found.append(Job("step", device, seed, case, compiled=True))
    elif find_spec("triton") is not None:
        from peakline.record.kernel_run import kernel_cases

        found = [Job("kernel", device, seed, case) for case in kernel_cases(device)]
    return [job for job in found if not only or _matches(job.key, only)]


def record(
    suites: Iterable[Suite],
    folder: Path,
    *,
    device: Kind,
    minutes: float | None = None,
    only: Sequence[str] = (),
    compiled: bool = False,
    seed: int = 0,
    max_bytes: int = LARGEST_RECORDING,
    isolate: bool = True,
    progress: Progress = lambda suite, done, total, name: None,
) -> Done:
    """Measure the cases of some suites that a folder does not have yet.

    Args:
        suites: in this order.
        folder: for the trace; made if missing. Rows there are kept, and their cases not measured again.
        device: `cuda` or `cpu`.
        minutes: begin no case after that many, shared among the suites; None: no limit.
        only: names, or patterns as of a shell, of the cases to measure; all if empty.
        compiled: time steps under `torch.compile`, too.
        seed: of weights, inputs and the order of the GEMM grid.
        max_bytes: size that all files of the folder may reach.
        isolate: measure in processes of their own; False for cases that are known to behave.
        progress: told suite, cases done, cases in all, and the name of the case that begins.

    Raises:
        ValueError: no case matches `only`, or the folder holds something else than a recording of this device.
    """
    chosen = {suite: jobs(suite, device, only=only, compiled=compiled, seed=seed) for suite in suites}
    if only and not any(chosen.values()):
        raise ValueError(f"--only: no case matches {', '.join(only)}; --list names them")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out: {folder} is not a folder")
    deadline = time.monotonic() + (minutes * 60 if minutes is not None else float("inf"))
    done = Done()
    if ("memory" in chosen or "steps" in chosen) and find_spec("transformers") is None:
        done.notes.append("transformers is not installed: its models are left out (pip install transformers)")
    crew = _Crew(isolate)
    try:
        for number, (suite, work_list) in enumerate(chosen.items()):
            if not work_list:
                done.notes.append(f"{suite}: nothing to record here")
                continue
            now = time.monotonic()
            share = now + (deadline - now) / (len(chosen) - number)  # what one suite does not use, the next ones have
            _record_suite(suite, work_list, folder, crew, done, share, max_bytes, progress)
    finally:
        crew.close()
    return done


def _record_suite(
    suite: Suite,
    work_list: list[Job],
    folder: Path,
    crew: _Crew,
    done: Done,
    deadline: float,
    max_bytes: int,
    progress: Progress,
) -> None:
    environment = crew.ask(Job("environment", work_list[0].device, work_list[0].seed), _LONGEST_CASE).row
    assert isinstance(environment, Environment)
    writer = TraceWriter(folder, suite, environment, limit=max_bytes)
    left = [job for job in work_list if job.key not in writer.done]
    done.before += len(work_list) - len(left)
    for number, job in enumerate(left):
        now = time.monotonic()
        if now >= deadline:
            done.left += len(left) - number
            return
        progress(suite, number, len(left), job.key)
        limit = min(_LONGEST_CASE, deadline - now + _GRACE)
        try:
            answer = crew.ask(job, limit)
        except Failed as error:
            if limit < _LONGEST_CASE and time.monotonic() >= deadline:  # the deadline's fault, not the case's
                done.left += len(left) - number
                return
            answer = Answer(failure(job, str(error)))
        row = answer.row
        if isinstance(row, MemoryRow) and answer.events is not None:
            name, why = writer.add_events(answer.events)
            row = row.model_copy(update={"events": name, "events_left_out": why})
        try:
            writer.add(row)
        except TraceError as error:
            done.notes.append(str(error))
            done.left += len(left) - number
            return
        done.recorded += 1
        done.failed += getattr(row, "error", None) is not None
    progress(suite, len(left), len(left), "")


class _Crew:
    """The processes of a recording: a fresh one for each run of a model, and one that stays for operators."""

    def __init__(self, isolate: bool) -> None:
        self._isolate = isolate
        self._method = "forkserver"
        self._lasting: Worker | None = None
        self._kind = ""
        self._kept: dict[str, object] = {}

    def ask(self, job: Job, seconds: float) -> Answer:
        """The answer to a job. Raises Failed if its process gave none."""
        if not self._isolate:
            return work(job, self._kept)
        if job.fresh:
            try:
                answer = self._ask_fresh(job, seconds)
                error = getattr(answer.row, "error", None)
            except Failed as failed:
                answer, error = None, str(failed)
                if self._method == "spawn" or not _forked_too_late(error):
                    raise
            if answer is None or (self._method == "forkserver" and _forked_too_late(error)):
                self._method = "spawn"
                answer = self._ask_fresh(job, seconds)
            return answer
        if self._lasting is None or self._kind != job.kind:
            self.close()
            interpret = job.kind == "kernel" and job.device == "cpu"
            self._lasting, self._kind = Worker("spawn", interpret=interpret), job.kind
        try:
            return self._lasting.ask(job, seconds)
        except Failed:
            self.close()
            raise

    def close(self) -> None:
        """End the process that stays."""
        if self._lasting is not None:
            self._lasting.close()
            self._lasting = None

    def _ask_fresh(self, job: Job, seconds: float) -> Answer:
        worker = Worker(self._method)
        try:
            return worker.ask(job, seconds)
        finally:
            worker.close()


def _forked_too_late(error: str | None) -> bool:
    """Whether CUDA had been touched before the process was forked, so that it must be spawned instead."""
    return error is not None and ("re-initialize CUDA" in error or "initialization error" in error)


def _allowed(device: Kind, only: Sequence[str]) -> tuple[MemoryCase, ...]:
    """The cases for a device; one too large for it runs if its whole name is given, never by a part of it."""
    fitting = memory_cases(device)
    return (*fitting, *(case for case in MEMORY_CASES if case.name in only and case not in fitting))


def _with_libraries(cases: Iterable[MemoryCase]) -> list[MemoryCase]:
    """The cases whose libraries are installed."""
    there = find_spec("transformers") is not None
    return [case for case in cases if there or case.source != "transformers"]


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(pattern in name or fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
