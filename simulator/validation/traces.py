"""Recorded traces beside predictions: memory through capture, operators through the kernels they run."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from peakline.cost.samples import Sample
from peakline.hardware import Device, UnknownDevice, device
from peakline.record import Environment, MemoryRow, Trace, read_trace

__all__ = ["MEMORY_COLUMNS", "device_recorded", "memory_table", "read"]

MEMORY_COLUMNS = ("source", "case", "device", "what", "measured", "predicted", "error", "reason")


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


def memory_table(trace: Trace, source: str) -> pd.DataFrame:
    """Peak allocated bytes of every recorded run: measured, predicted, error, or the reason why there is none.

    The recorded case is built without memory for its weights, captured, and laid out as the device's allocator would.
    """
    rows: list[dict[str, Any]] = []
    for row, environment in trace.rows:
        if not isinstance(row, MemoryRow):
            continue
        measured, predicted, reason = row.peak_allocated_bytes, None, ""
        if row.error is not None or measured is None:
            reason = "the run failed" if not row.out_of_memory else "the run was out of memory"
        else:
            try:
                predicted = predicted_peak(row, environment)
            except Exception as error:  # a case that cannot be captured is listed with what stood in its way
                reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        rows.append(
            {
                "source": source, "case": row.case.name, "device": environment.device_name, "what": "peak allocated",
                "measured": measured, "predicted": predicted,
                "error": np.nan if predicted is None or not measured else predicted / measured - 1.0, "reason": reason,
            }
        )  # fmt: skip
    return pd.DataFrame(rows, columns=list(MEMORY_COLUMNS))


def predicted_peak(row: MemoryRow, environment: Environment) -> int:
    """Bytes allocated at the peak of a step of a recorded case.

    Raises:
        ValueError: the case accumulates gradients, which capture of a module does not.
        ImportError: torch or transformers is missing.
    """
    import torch
    from torch.nn import functional

    from peakline.capturing import capture
    from peakline.estimator import estimate
    from peakline.record.build import build, make_optimizer

    case = row.case
    if case.accumulation > 1:
        raise ValueError("gradient accumulation is not captured from a case")
    built = build(case, "meta")
    loss: Any = None
    if case.mode == "training" and case.source == "peakline":
        between = functional.cross_entropy if case.loss == "cross_entropy" else functional.mse_loss
        target = None if built.target is None else torch.zeros(built.target.shape, dtype=built.target.dtype)
        loss = partial(_loss_against, between, target)
    optimizer = (
        None if case.optimizer is None or case.mode != "training" else partial(_made, make_optimizer, case.optimizer)
    )
    inputs: Any = built.inputs if case.source == "transformers" else tuple(built.inputs.values())
    where: Any = "cpu" if row.device == "cpu" else device_recorded(environment)
    if where is None:
        raise ValueError(f"device {environment.device_name!r} is not in the catalogue")
    graph = capture(
        built.module, inputs, optimizer=optimizer, loss=loss, mode=case.mode, device=where, autocast=case.autocast,
        steps=2,
    )  # fmt: skip
    found = estimate(graph, "xeon-8480plus" if where == "cpu" else where).memory
    return int(found.live if row.device == "cpu" or found.allocated is None else found.allocated)


def _loss_against(between: Any, target: Any, output: Any) -> Any:
    return between(output, target)


def _made(make: Any, name: str, parameters: Any) -> Any:
    return make(name, parameters)


def operator_samples_of(trace: Trace, source: str) -> tuple[list[Sample], dict[str, int]]:
    """Kernels of a trace's operator sweep, and how many rows of each operator are not modelled as one kernel."""
    from peakline.calibration.traces import samples_of_rows

    return samples_of_rows(trace, source)
