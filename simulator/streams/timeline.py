"""What a simulated program did: starts and ends, stalls and their causes, and memory over time in every tier."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from peakline.streams.program import Hold, Program, Task

__all__ = ["Run", "Stall", "Timeline"]

_MICROSECONDS = 1e6


@dataclass(frozen=True, slots=True)
class Run:
    """A task with its start and end in seconds."""

    task: Task
    start: float
    end: float

    @property
    def seconds(self) -> float:
        """How long it ran."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Stall:
    """A stream stood still before a task.

    Attributes:
        stream, task: which stream, and the number of the task it could not start.
        start, end: seconds.
        cause: the stream of the task it waited for, or `memory: <tier>`.
        waited_for: number of that task, None for memory.
    """

    stream: str
    task: int
    start: float
    end: float
    cause: str
    waited_for: int | None

    @property
    def seconds(self) -> float:
        """How long it stood still."""
        return self.end - self.start


@dataclass(frozen=True)
class Timeline:
    """The simulated program.

    Attributes:
        program: what ran.
        runs: start and end of each task, by number.
        stalls: idle time of every stream before its last task, by cause.
        levels: (seconds, bytes from then on) of each tier, in order.
        moved: bytes carried by each link.
        link_busy: seconds during which each link carried anything.
        events: every buffer as it is allocated (True) and freed (False), in the order in which that happens.
    """

    program: Program
    runs: tuple[Run, ...]
    stalls: tuple[Stall, ...]
    levels: dict[str, tuple[tuple[float, int], ...]]
    moved: dict[str, int]
    link_busy: dict[str, float]
    events: tuple[tuple[Hold, bool], ...] = ()

    @cached_property
    def makespan(self) -> float:
        """Seconds until the last task ended."""
        return max((run.end for run in self.runs), default=0.0)

    @property
    def streams(self) -> tuple[str, ...]:
        """Streams in order of first use."""
        return tuple(dict.fromkeys(run.task.stream for run in self.runs))

    def busy(self, stream: str) -> float:
        """Seconds during which the stream ran something."""
        return sum(run.seconds for run in self.runs if run.task.stream == stream)

    def use(self, stream: str) -> float:
        """Share of the makespan during which the stream ran something."""
        return self.busy(stream) / self.makespan if self.makespan else 0.0

    def stalled(self, stream: str) -> dict[str, float]:
        """Seconds the stream stood still before its tasks, by cause."""
        found: dict[str, float] = {}
        for stall in self.stalls:
            if stall.stream == stream:
                found[stall.cause] = found.get(stall.cause, 0.0) + stall.seconds
        return found

    def peak(self, tier: str) -> int:
        """Most bytes held in a tier at once."""
        return max(bytes_ for _, bytes_ in self.levels[tier])

    def memory_at(self, tier: str, seconds: float) -> int:
        """Bytes held in a tier at a moment (after what happens at it)."""
        level = self.levels[tier]
        return level[bisect_right(level, (seconds, float("inf"))) - 1][1]

    def by_kind(self, stream: str) -> dict[str, float]:
        """Seconds of each kind of task on a stream."""
        found: dict[str, float] = {}
        for run in self.runs:
            if run.task.stream == stream:
                found[run.task.kind] = found.get(run.task.kind, 0.0) + run.seconds
        return found

    def trace(self) -> dict[str, Any]:
        """The timeline in the Trace Event Format (Perfetto): a track per stream, a counter of memory per tier.

        What a task carries (`bytes`) and what its stream waited for before it (`waited`, µs by cause) are arguments.
        """
        tracks = {stream: i + 1 for i, stream in enumerate(self.streams)}
        waited: dict[int, dict[str, float]] = {}
        for stall in self.stalls:
            causes = waited.setdefault(stall.task, {})
            causes[stall.cause] = causes.get(stall.cause, 0.0) + stall.seconds * _MICROSECONDS
        events: list[dict[str, Any]] = [{"name": "process_name", "ph": "M", "pid": 1, "args": {"name": "step"}}]
        for stream, track in tracks.items():
            where: dict[str, Any] = {"ph": "M", "pid": 1, "tid": track}
            events.append({"name": "thread_name", **where, "args": {"name": stream}})
            events.append({"name": "thread_sort_index", **where, "args": {"sort_index": track}})
        for number, run in enumerate(self.runs):
            arguments: dict[str, Any] = {"bytes": run.task.moves} if run.task.moves else {}
            if number in waited:
                arguments["waited"] = waited[number]
            events.append(
                {
                    "name": run.task.name, "cat": run.task.kind, "ph": "X", "pid": 1, "tid": tracks[run.task.stream],
                    "ts": run.start * _MICROSECONDS, "dur": run.seconds * _MICROSECONDS, "args": arguments,
                }
            )  # fmt: skip
        for tier, level in self.levels.items():
            for seconds, held in dict(level).items():
                event = {"name": tier, "ph": "C", "pid": 1, "ts": seconds * _MICROSECONDS, "args": {"bytes": held}}
                events.append(event)
        return {"displayTimeUnit": "ms", "traceEvents": events}
