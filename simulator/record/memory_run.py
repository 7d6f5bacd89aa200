"""Run one case and keep the allocator's account of it.

On CUDA the account is the caching allocator's own history and statistics; on a CPU it is what torch's profiler records
of the CPU allocator. Run each case in a fresh process: libraries keep workspaces, and a history that begins with an
empty allocator can be replayed block for block.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, Protocol

import torch

from peakline.record.build import Built, build, run_step, storage_bytes
from peakline.record.environment import allocator_of_environment
from peakline.record.schema import MemoryCase, MemoryRow, PhaseMemory, StepMemory
from peakline.record.streams import AllocationTrace, Event, StreamHeader, from_snapshot
from peakline.record.words import describe

__all__ = ["measure_memory"]

HISTORY = 400_000  # events that torch keeps; a step of a 7B model has some thousands


def measure_memory(case: MemoryCase, device: str, *, seed: int = 0) -> tuple[MemoryRow, AllocationTrace | None]:
    """Run a case on `cuda` or `cpu`; its row, and its event stream if there is one.

    A failure is a row with its error; the steps done before are kept.
    """
    found: dict[str, Any] = {"case": case, "device": device}
    steps: list[StepMemory] = []
    probe: _Probe = _CudaProbe(case) if device == "cuda" else _CpuProbe(case)
    events: AllocationTrace | None = None
    built: Built | None = None
    try:
        found |= probe.start()
        built = build(case, device, seed=seed)
        found |= _describe(built) | probe.made(built)
        gc.collect()
        with probe:
            for number in range(case.steps):
                steps.append(probe.step(number, built))
    except Exception as error:
        found |= {"error": describe(error), "out_of_memory": is_out_of_memory(error)}
    try:
        steps, events = probe.finish(steps)
    except Exception as error:
        found.setdefault("error", describe(error))
    return MemoryRow(**found, steps=tuple(steps)), events


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory was the reason: CUDA's, or the host's."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _describe(built: Built) -> dict[str, Any]:
    """What the model holds; parameters that are shared count once."""
    parameters = list(built.module.parameters())
    transformers = None
    if built.case.source == "transformers":
        import transformers as library

        transformers = library.__version__
    return {
        "transformers": transformers,
        "attention_used": built.attention_used,
        "parameters": sum(p.numel() for p in parameters),
        "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        "parameter_bytes": storage_bytes(parameters),
        "buffer_bytes": storage_bytes(built.module.buffers()),
        "input_bytes": storage_bytes(_inputs(built)),
    }


def _inputs(built: Built) -> list[torch.Tensor]:
    return [*built.inputs.values(), *([] if built.target is None else [built.target])]


def _states(built: Built) -> Iterator[torch.Tensor]:
    """What an optimizer holds before its first step: Adagrad's sums, and nothing of most others."""
    for state in {} if built.optimizer is None else built.optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, torch.Tensor))


class _Probe(Protocol):
    """What a device can tell of a run."""

    def start(self) -> dict[str, Any]: ...
    def made(self, built: Built) -> dict[str, Any]: ...
    def __enter__(self) -> object: ...
    def __exit__(self, *_: object) -> object: ...
    def step(self, number: int, built: Built) -> StepMemory: ...
    def finish(self, steps: list[StepMemory]) -> tuple[list[StepMemory], AllocationTrace | None]: ...


# ---- CUDA ----------------------------------------------------------------------------------------------------------
def device_used() -> tuple[int | None, str | None]:
    """Bytes in use on the whole first device and who says so: NVML, else `mem_get_info` (which makes a context)."""
    try:
        return int(torch.cuda.device_memory_used(0)), "nvml"
    except Exception:  # no pynvml, or a driver that does not answer
        if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            return None, None
        free, total = torch.cuda.mem_get_info()
        return total - free, "mem_get_info"


class _CudaProbe:
    """History and statistics of the CUDA caching allocator."""

    def __init__(self, case: MemoryCase) -> None:
        self._case = case
        self._marks: list[tuple[int, str]] = []
        self._recording = False

    def start(self) -> dict[str, Any]:
        before, _ = device_used()
        if self._case.allocator:
            set_allocator(self._case.allocator)
        torch.cuda.init()  # type: ignore[no-untyped-call]
        torch.cuda.memory._record_memory_history("all", context=None, stacks="python", max_entries=HISTORY)
        self._recording = True
        self._mark("context")
        del_me = torch.zeros(1, device="cuda")
        del del_me
        torch.cuda.synchronize()
        after, _ = device_used()
        self._mark("model")
        return {
            "device_used_before_bytes": before,
            "device_used_after_context_bytes": after,
            "before_model_allocated_bytes": torch.cuda.memory_allocated(),
        }

    def made(self, built: Built) -> dict[str, Any]:
        torch.cuda.synchronize()
        return {"resident_allocated_bytes": torch.cuda.memory_allocated()}

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def step(self, number: int, built: Built) -> StepMemory:
        phases: list[PhaseMemory] = []
        begun: list[str] = []
        peaks = _Peaks()

        def close() -> None:
            if begun:
                allocated, reserved = peaks.read()
                phases.append(
                    PhaseMemory(
                        name=begun[-1],
                        peak_allocated_bytes=allocated,
                        end_allocated_bytes=torch.cuda.memory_allocated(),
                        peak_reserved_bytes=reserved,
                    )
                )

        def phase(name: str) -> None:
            close()
            begun.append(name)
            self._mark(f"step{number}/{name}")

        torch.cuda.synchronize()
        peaks.read()
        peaks.reset()
        started = time.perf_counter()
        loss = run_step(built, phase)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        close()
        stats = torch.cuda.memory_stats()
        used, source = device_used()
        return StepMemory(
            step=number,
            seconds=seconds,
            peak_allocated_bytes=peaks.allocated,
            peak_requested_bytes=peaks.requested,
            peak_reserved_bytes=peaks.reserved,
            end_allocated_bytes=torch.cuda.memory_allocated(),
            end_reserved_bytes=torch.cuda.memory_reserved(),
            device_used_bytes=used,
            device_used_source=source,  # type: ignore[arg-type]
            segments=stats.get("segment.all.current"),
            allocation_retries=stats.get("num_alloc_retries"),
            phases=_last_of_each(phases),
            loss=loss,
        )

    def finish(self, steps: list[StepMemory]) -> tuple[list[StepMemory], AllocationTrace | None]:
        if not self._recording:
            return steps, None
        snapshot = torch.cuda.memory._snapshot()
        torch.cuda.memory._record_memory_history(None)
        return steps, from_snapshot(
            snapshot,
            case=self._case.name,
            marks=self._marks,
            capacity=HISTORY,
            allocator=self._case.allocator or allocator_of_environment(),
        )

    def _mark(self, name: str) -> None:
        """A phase begins now; the history's clock is the host's, in microseconds since the epoch."""
        self._marks.append((time.time_ns() // 1000, name))


class _Peaks:
    """The highest figures since `reset`, over readings that each begin a new peak."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self.allocated = self.requested = self.reserved = 0

    def read(self) -> tuple[int, int]:
        """Highest allocated and reserved bytes since the last reading."""
        stats = torch.cuda.memory_stats()
        allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        self.allocated = max(self.allocated, allocated)
        self.requested = max(self.requested, int(stats.get("requested_bytes.all.peak", 0)))
        self.reserved = max(self.reserved, reserved)
        torch.cuda.reset_peak_memory_stats()
        return allocated, reserved


def set_allocator(settings: str) -> None:
    """Set the caching allocator's options at run time, as PYTORCH_CUDA_ALLOC_CONF would have."""
    modern: Callable[[str], None] | None = getattr(torch._C, "_accelerator_setAllocatorSettings", None)
    if modern is not None:
        modern(settings)
    else:  # torch before 2.9
        torch.cuda.memory._set_allocator_settings(settings)


def _last_of_each(phases: Iterable[PhaseMemory]) -> tuple[PhaseMemory, ...]:
    """Of phases with the same name (gradient accumulation) the last, in order."""
    return tuple({phase.name: phase for phase in phases}.values())


# ---- CPU -----------------------------------------------------------------------------------------------------------
class _CpuProbe:
    """What torch's profiler records of the CPU allocator, over all steps in one session."""

    def __init__(self, case: MemoryCase) -> None:
        from torch.profiler import ProfilerActivity, profile

        self._case = case
        self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True)
        self._resident = 0
        self._ran = False

    def start(self) -> dict[str, Any]:
        return {}

    def made(self, built: Built) -> dict[str, Any]:
        tensors = chain(built.module.parameters(), built.module.buffers(), _inputs(built), _states(built))
        self._resident = storage_bytes(tensors)
        return {"resident_allocated_bytes": self._resident}

    def __enter__(self) -> None:
        self._profile.__enter__()  # type: ignore[no-untyped-call]
        self._ran = True

    def __exit__(self, *error: Any) -> None:
        self._profile.__exit__(*error)  # type: ignore[no-untyped-call]

    def step(self, number: int, built: Built) -> StepMemory:
        open_ranges: list[Any] = []

        def phase(name: str) -> None:
            if open_ranges:
                open_ranges.pop().__exit__(None, None, None)
            open_ranges.append(torch.profiler.record_function(f"{_MARK}step{number}/{name}"))
            open_ranges[-1].__enter__()

        started = time.perf_counter()
        try:
            loss = run_step(built, phase)
        finally:
            phase("end")
            open_ranges.pop().__exit__(None, None, None)
        return StepMemory(
            step=number,
            seconds=time.perf_counter() - started,
            peak_allocated_bytes=0,  # from the events, in `finish`
            end_allocated_bytes=0,
            loss=loss,
        )

    def finish(self, steps: list[StepMemory]) -> tuple[list[StepMemory], AllocationTrace | None]:
        if not self._ran:
            return steps, None
        recorded: Any = self._profile.profiler
        tree = recorded.kineto_results.experimental_event_tree()
        events = tuple(_numbered(sorted(_events_of(tree), key=lambda found: found[0])))
        header = StreamHeader(
            schema="peakline.trace/1",
            case=self._case.name,
            device="cpu",
            complete=True,
            start_bytes=self._resident,
            events=len(events),
        )
        trace = AllocationTrace(header, events)
        return [_with_events(step, trace) for step in steps], trace


_MARK = "peakline:"


def _events_of(tree: Iterable[Any], operator: str = "") -> Iterator[tuple[int, str, Any]]:
    """(nanoseconds, operator or mark, allocation or None) for all marks and allocations of a profiler's tree."""
    for event in tree:
        kind = type(event.extra_fields).__name__
        inside = operator
        if kind == "_ExtraFields_Allocation":
            if event.extra_fields.device.type == "cpu":
                yield event.start_time_ns, operator, event.extra_fields
        elif event.name.startswith(_MARK):
            yield event.start_time_ns, event.name.removeprefix(_MARK), None
        elif kind == "_ExtraFields_TorchOp":
            inside = event.name[:200]
        yield from _events_of(event.children, inside)


def _numbered(found: Iterable[tuple[int, str, Any]]) -> Iterator[Event]:
    """The events with blocks numbered; a free of a block from before the recording is left out."""
    live: dict[int, int] = {}
    blocks = 0
    for _, text, allocation in found:
        if allocation is None:
            yield Event("mark", text=text)
        elif allocation.alloc_size >= 0:
            live[allocation.ptr] = blocks
            yield Event("alloc", blocks, allocation.alloc_size, text=text)
            blocks += 1
        elif allocation.ptr in live:
            yield Event("free", live.pop(allocation.ptr))


def _with_events(step: StepMemory, trace: AllocationTrace) -> StepMemory:
    """The step's peaks and ends by phase, as the events say."""
    prefix = f"step{step.step}/"
    spans = [span for span in trace.spans() if span.name.startswith(prefix)]
    peak = max(span.peak_bytes for span in spans)
    phases = [
        PhaseMemory(
            name=span.name.removeprefix(prefix),
            peak_allocated_bytes=span.peak_bytes,
            end_allocated_bytes=span.end_bytes,
        )
        for span in spans
        if not span.name.endswith("/end")
    ]
    return step.model_copy(
        update={
            "peak_allocated_bytes": peak,
            "peak_requested_bytes": peak,
            "end_allocated_bytes": spans[-1].end_bytes,
            "phases": _last_of_each(phases),
        }
    )
