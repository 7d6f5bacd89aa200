"""Processes that measure: one for each run of a model, one for all operators.

A run in its own process begins with an empty allocator and no libraries' workspaces, and a crash or a lack of memory
ends that run alone. Processes are forked from a server that has loaded torch but never touched the GPU.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import warnings
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, Literal

from peakline.record.schema import (
    KernelCase,
    KernelRow,
    MemoryCase,
    MemoryRow,
    OperatorCase,
    OperatorRow,
    Row,
    StepRow,
)
from peakline.record.streams import AllocationTrace

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

__all__ = ["Answer", "Failed", "Job", "Worker", "failure", "work"]

_SETTINGS = {
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # asking whether there is a GPU makes no context, which could not be forked
    "KINETO_LOG_LEVEL": "99",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_OFFLINE": "1",  # models are made from configurations; nothing is fetched
    "TOKENIZERS_PARALLELISM": "false",
}


_GENTLE = 10  # seconds that an idle process has to leave by itself


@dataclass(frozen=True)
class Job:
    """One measurement: what kind, of which case, on which device."""

    kind: Literal["environment", "memory", "operator", "step", "kernel"]
    device: Literal["cuda", "cpu"]
    seed: int = 0
    case: MemoryCase | OperatorCase | KernelCase | None = None
    compiled: bool = False

    @property
    def fresh(self) -> bool:
        """Whether it needs a process of its own."""
        return self.kind in ("memory", "step", "environment")

    @property
    def key(self) -> str:
        """As `writer.key_of` the row it gives."""
        name = "" if self.case is None else self.case.name
        return f"{name} compiled" if self.compiled else name


@dataclass(frozen=True)
class Answer:
    """A row, and the event stream that belongs to it."""

    row: Row
    events: AllocationTrace | None = None


class Failed(RuntimeError):
    """A process ended, or took too long, before it answered."""


def work(job: Job, kept: dict[str, Any]) -> Answer:
    """Measure in this process; `kept` holds what later jobs use again."""
    if job.kind == "environment":
        from peakline.record.environment import describe_environment

        return Answer(describe_environment(job.device, seed=job.seed))
    if isinstance(job.case, MemoryCase):
        _quiet()
        if job.kind == "memory":
            from peakline.record.memory_run import measure_memory

            return Answer(*measure_memory(job.case, job.device, seed=job.seed))
        from peakline.record.step_run import measure_steps

        return Answer(measure_steps(job.case, job.device, compiled=job.compiled, seed=job.seed))
    if isinstance(job.case, OperatorCase):
        from peakline.record.operator_run import measure_operator

        return Answer(measure_operator(job.case, job.device, _clock(job, kept), seed=job.seed))
    assert isinstance(job.case, KernelCase)
    from peakline.record.kernel_run import measure_kernel

    clock = _clock(job, kept) if job.device == "cuda" else None
    return Answer(measure_kernel(job.case, job.device, clock, seed=job.seed))


def failure(job: Job, why: str) -> Row:
    """The row of a case whose process gave no answer."""
    if isinstance(job.case, OperatorCase):
        return OperatorRow(case=job.case, device=job.device, error=why)
    if isinstance(job.case, KernelCase):
        return KernelRow(case=job.case, device=job.device, error=why)
    assert isinstance(job.case, MemoryCase)
    if job.kind == "memory":
        return MemoryRow(case=job.case, device=job.device, error=why)
    return StepRow(case=job.case, device=job.device, compiled=job.compiled, error=why)


def _clock(job: Job, kept: dict[str, Any]) -> Any:
    from peakline.record.timing import Clock

    if "clock" not in kept:
        kept["clock"] = Clock(job.device)
    return kept["clock"]


def _quiet() -> None:
    """No advice on stderr from libraries: what matters of a run is in its row."""
    warnings.filterwarnings("ignore")


class Worker:
    """A process that answers jobs one after the other."""

    def __init__(self, method: str = "forkserver", *, interpret: bool = False) -> None:
        """Start a process; `interpret` makes Triton interpret its kernels there."""
        context = multiprocessing.get_context(method if method in multiprocessing.get_all_start_methods() else "spawn")
        settings = dict(_SETTINGS, **({"TRITON_INTERPRET": "1"} if interpret else {}))
        if method == "forkserver":
            context.set_forkserver_preload(["torch", "peakline.record.memory_run"])
        self._busy = False
        before = {name: os.environ.get(name) for name in settings}
        os.environ.update(settings)  # a spawned process and the fork server inherit these
        try:
            self._here, there = context.Pipe()
            self._process: BaseProcess = context.Process(target=_serve, args=(there, settings))  # type: ignore[attr-defined]
            self._process.start()
            there.close()
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

    def ask(self, job: Job, seconds: float) -> Answer:
        """The answer to a job.

        Raises:
            Failed: the process ended (a crash, or the system ran out of memory), or took longer than `seconds`.
        """
        self._busy = True
        try:
            self._here.send(job)
            if not self._here.poll(seconds):
                raise Failed(f"no answer within {seconds:.0f} s")
            answer = self._here.recv()
        except (EOFError, OSError):
            self._process.join(5)
            raise Failed(f"the process ended with code {self._process.exitcode}") from None
        self._busy = False
        if isinstance(answer, Answer):
            return answer
        raise Failed(str(answer))

    def close(self) -> None:
        """End the process: at once if it is at work."""
        self._here.close()
        if not self._busy:
            self._process.join(_GENTLE)
        self._process.terminate()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _serve(pipe: Connection, settings: dict[str, str]) -> None:
    """Answer jobs until the other end closes. An interrupt is the parent's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(settings)
    kept: dict[str, Any] = {}
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(work(job, kept))
        except Exception as error:
            from peakline.record.words import describe

            pipe.send(describe(error))
