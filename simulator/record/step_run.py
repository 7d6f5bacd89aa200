"""Time whole steps, eager or compiled, and their operators."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import torch

from peakline.record.build import Built, build, run_step
from peakline.record.memory_run import is_out_of_memory
from peakline.record.schema import MemoryCase, OperatorTime, StepRow
from peakline.record.timing import timing_of
from peakline.record.words import describe

__all__ = ["measure_steps"]

_WARM_UP = 2
_BUDGET = 8.0  # seconds for the repetitions of one case, about
_FEWEST, _MOST = 3, 20
_NAMED = 60  # operators that a row names


def measure_steps(case: MemoryCase, device: str, *, compiled: bool = False, seed: int = 0) -> StepRow:
    """Times of a case's steps; a failure is a row with its error."""
    found: dict[str, Any] = {"case": case, "device": device, "compiled": compiled}
    try:
        built = build(case, device, seed=seed)
        if case.source == "transformers":
            import transformers

            found["transformers"] = transformers.__version__
        if compiled:
            built.module.compile()
        first = _timed_step(built, device)[0]
        if compiled:
            found["compile_seconds"] = first
        warm = first
        for _ in range(_WARM_UP - 1):
            warm = _timed_step(built, device)[0]
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        count = min(max(int(_BUDGET / max(warm, 1e-6)), _FEWEST), _MOST)
        runs = [_timed_step(built, device) for _ in range(count)]
        found["step"] = timing_of([seconds for seconds, _ in runs])
        found["phases"] = {name: timing_of([phases[name] for _, phases in runs]) for name in runs[0][1]}
        if device == "cuda":
            found["peak_allocated_bytes"] = torch.cuda.max_memory_allocated()
        found |= _by_operator(built, device)
    except Exception as error:
        found |= {"error": describe(error), "out_of_memory": is_out_of_memory(error)}
    return StepRow(**found)


def _timed_step(built: Built, device: str) -> tuple[float, dict[str, float]]:
    """Seconds of one step and of its phases; microbatches of one phase add up."""
    stamps: list[tuple[str, Any]] = []

    def stamp(name: str) -> None:
        if device == "cuda":
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            stamps.append((name, event))
        else:
            stamps.append((name, time.perf_counter()))

    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    run_step(built, stamp)
    stamp("end")
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    phases: dict[str, float] = defaultdict(float)
    for (name, begin), (_, end) in pairwise(stamps):
        phases[name] += begin.elapsed_time(end) / 1e3 if device == "cuda" else end - begin
    return seconds, dict(phases)


def _by_operator(built: Built, device: str) -> dict[str, Any]:
    """The profiler's times of one step by operator and shapes, the most expensive first."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities, record_shapes=True, acc_events=True) as recorded:
        run_step(built, lambda _: None)
        if device == "cuda":
            torch.cuda.synchronize()
    return summarise(recorded.key_averages(group_by_input_shape=True), device, kernels=built.module._compiled_call_impl)


def summarise(averages: Iterable[Any], device: str, *, kernels: object = None) -> dict[str, Any]:
    """`operators` and `others_seconds` of a row from the profiler's averages (which are in microseconds).

    On CUDA a kernel's time belongs to the operator that launched it, and is listed there; of a compiled module
    (`kernels` is true) the kernels themselves are listed, because few of its operators are left.
    """
    named: list[OperatorTime] = []
    others = 0.0
    for average in averages:
        of_device = average.device_type.name != "CPU"
        if of_device != (device == "cuda" and bool(kernels)):
            continue
        seconds = (average.self_device_time_total if device == "cuda" else average.self_cpu_time_total) / 1e6
        if seconds <= 0:
            continue
        if not of_device and not average.key.startswith("aten::"):
            others += seconds
            continue
        shapes = str(average.input_shapes).replace(" ", "")[:300]
        named.append(OperatorTime(operator=average.key[:200], shapes=shapes, calls=average.count, self_seconds=seconds))
    named.sort(key=lambda time_: -time_.self_seconds)
    others += sum(time_.self_seconds for time_ in named[_NAMED:])
    return {"operators": tuple(named[:_NAMED]), "others_seconds": others}
