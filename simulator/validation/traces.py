"""Recorded traces beside predictions: memory through capture, operators through the kernels they run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from peakline.cost.samples import Sample
from peakline.hardware import Device, UnknownDevice, device
from peakline.record import Environment, MemoryRow, Trace, read_trace
from peakline.record.schema import KernelRow, MemoryCase, OperatorRow, StepRow

__all__ = [
    "HOST_COLUMNS", "MEMORY_COLUMNS", "TRAFFIC_COLUMNS", "Recorded", "device_recorded", "host_table", "memory_table",
    "read", "recorded", "traffic_table",
]  # fmt: skip

MEMORY_COLUMNS = ("source", "case", "device", "what", "measured", "predicted", "error", "reason")
HOST_COLUMNS = ("source", "kind", "gpu", "dtype", "shape", "measured", "predicted", "error")
TRAFFIC_COLUMNS = HOST_COLUMNS


def read(path: str | Path) -> Trace:
    """A recording, whole. Raises TraceError (a ValueError) for one that is cut, newer, or none at all."""
    return read_trace(path)


def device_recorded(environment: Environment) -> Device | None:
    """The catalogue's device that a trace was recorded on, by the name torch gives it; None if it is not there."""
    name = environment.device_name.lower()
    for word in ("nvidia ", "tesla ", "geforce ", "amd ", "intel(r) "):
        name = name.replace(word, "")
    for guess in (name, name.replace(" ", "-"), name.split(" ")[0]):
        try:
            found = device(guess.strip())
        except (UnknownDevice, ValueError):
            continue
        return found if found.kind in ("gpu", "cpu") else None
    return None


def memory_table(trace: Trace, source: str, progress: Callable[[str], None] = lambda _: None) -> pd.DataFrame:
    """Peaks of every recorded run: measured and predicted bytes, error, or the reason why there is no prediction.

    The recorded case is built without memory for its weights, its steps are captured, and, on a GPU, laid out as the
    allocator would.
    """
    rows: list[dict[str, Any]] = []
    recorded = [(row, environment) for row, environment in trace.rows if isinstance(row, MemoryRow)]
    for number, (row, environment) in enumerate(recorded, 1):
        progress(f"{source}: {row.case.name} ({number} of {len(recorded)})")
        measured = {"peak allocated": row.peak_allocated_bytes}
        reserved = [step.peak_reserved_bytes for step in row.steps if step.peak_reserved_bytes is not None]
        if reserved:
            measured["peak reserved"] = max(reserved)
        predicted: dict[str, int] = {}
        reason = ""
        if row.error is not None or row.peak_allocated_bytes is None:
            reason = "the run was out of memory" if row.out_of_memory else "the run failed"
        else:
            try:
                predicted = predicted_peaks(row, environment)
            except Exception as error:  # a case that cannot be captured is listed with what stood in its way
                reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        for what, value in measured.items():
            said = predicted.get(what)
            rows.append(
                {
                    "source": source, "case": row.case.name, "device": environment.device_name, "what": what,
                    "measured": value, "predicted": said,
                    "error": np.nan if said is None or not value else said / value - 1.0, "reason": reason,
                }
            )  # fmt: skip
    return pd.DataFrame(rows, columns=list(MEMORY_COLUMNS))


def predicted_peaks(row: MemoryRow, environment: Environment) -> dict[str, int]:
    """Bytes allocated, and on a GPU reserved, at the peak of the steps of a recorded case.

    Raises:
        ValueError: the device is not in the catalogue, or the case cannot be captured.
        ImportError: torch or transformers is missing.
    """
    from peakline.capturing import capture
    from peakline.estimator import estimate
    from peakline.memory.lifetimes import unroll
    from peakline.memory.live import program_peak

    where: Any = "cpu" if row.device == "cpu" else device_recorded(environment)
    if where is None:
        raise ValueError(f"device {environment.device_name!r} is not in the catalogue")
    with _threads(environment.cpu_threads if row.device == "cpu" else None):
        graph = capture(steps_of(row.case), device=where, steps=min(row.case.steps, 2), name=row.case.name)
    if row.device == "cpu":
        return {"peak allocated": int(program_peak(unroll(graph)).bytes)}
    found = estimate(graph, where, allocator=row.case.allocator or environment.allocator or None).memory
    bytes_ = {"peak allocated": found.allocated, "peak reserved": found.reserved}
    return {what: int(value) for what, value in bytes_.items() if value is not None}


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """torch uses so many threads for an operator, as it did where a trace was recorded: the CPU's kernels keep partial
    results for each."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def steps_of(case: MemoryCase) -> Callable[[], Callable[[], None]]:
    """A function that builds a case and returns its step, the one that was recorded, without a look at any value.

    Raises:
        ImportError: torch, or the library that makes the case's model, is missing.
    """
    from peakline.record.build import build, loss_of_step

    if case.source == "transformers":
        import transformers  # noqa: F401  (before any tensor is a fake one: capture has to know what is loaded)

    def program() -> Callable[[], None]:
        built = build(case, "cpu")

        def step() -> None:
            loss_of_step(built, lambda _: None)

        return step

    return program


@dataclass(frozen=True)
class Recorded:
    """A recording beside predictions: samples of GPUs' kernels, peaks, a CPU's operators, kernels' bytes, the rest."""

    samples: list[Sample]
    memory: pd.DataFrame
    host: pd.DataFrame
    traffic: pd.DataFrame
    left_out: list[dict[str, Any]]


def recorded(path: Path, progress: Callable[[str], None] = lambda _: None) -> Recorded:
    """Everything of a recording that can be predicted, and what cannot.

    Raises:
        TraceError: a ValueError; the recording is cut, of a newer schema, or none.
    """
    from peakline.calibration.traces import samples_of_rows

    trace, source = read(path), path.name
    on_cpu = replace(trace, rows=tuple(pair for pair in trace.rows if pair[1].device_kind == "cpu"))
    on_gpu = replace(trace, rows=tuple(pair for pair in trace.rows if pair[1].device_kind != "cpu"))
    samples, others = samples_of_rows(on_gpu, source)
    host, left = host_table(on_cpu, source)
    steps = sum(isinstance(row, StepRow) for row, _ in trace.rows)
    if steps:
        left["times of whole steps: predicted by `peakline estimate`, not compared here"] = steps
    left_out = [{"source": source, "rows": n, "reason": reason} for reason, n in {**others, **left}.items()]
    return Recorded(samples, memory_table(trace, source, progress), host, traffic_table(trace, source), left_out)


def host_table(trace: Trace, source: str) -> tuple[pd.DataFrame, dict[str, int]]:
    """A CPU's operators by rates fitted on half of them (`peakline.calibration.local`): the other half, cold times."""
    from peakline.calibration.local import fit_local

    count = sum(isinstance(row, OperatorRow) for row, _ in trace.rows)
    empty = pd.DataFrame(columns=list(HOST_COLUMNS))
    if not count:
        return empty, {}
    try:
        fitted = fit_local(trace)
    except ValueError as error:
        return empty, {f"operators on a CPU: {error}": count}
    name = next(where.device_name for _, where in trace.rows)
    rows = [
        (source, operator, name, kind, shape, measured, predicted, predicted / measured - 1.0)
        for shape, operator, kind, measured, predicted, held in fitted.rows
        if held
    ]
    fitted_on = len(fitted.rows) - len(rows)
    left = {**fitted.left_out, "rates of the CPU were fitted on them": fitted_on}
    return pd.DataFrame(rows, columns=list(HOST_COLUMNS)), left


def traffic_table(trace: Trace, source: str) -> pd.DataFrame:
    """Bytes that Triton kernels were counted to load and store, beside the cost model's formulas."""
    rows = []
    for row, where in trace.rows:
        if not isinstance(row, KernelRow) or row.loaded_bytes is None or row.formula_bytes is None:
            continue
        moved = row.loaded_bytes + (row.stored_bytes or 0)
        case = row.case
        error = row.formula_bytes / moved - 1.0 if moved else np.nan
        rows.append((source, case.kernel, where.device_name, case.dtype, case.name, moved, row.formula_bytes, error))
    return pd.DataFrame(rows, columns=list(TRAFFIC_COLUMNS))
