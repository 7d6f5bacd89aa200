"""The traces in the repository: small, readable, and consistent in themselves."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from peakline.record import read_trace

TRACES = Path(__file__).parents[1] / "traces"
FOLDERS = sorted(path for path in TRACES.iterdir() if path.is_dir())


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_trace_is_small_and_names_no_machine_and_no_folder(folder: Path) -> None:
    assert sum(path.stat().st_size for path in folder.iterdir()) <= (1_000_000 if "cpu" in folder.name else 20_000_000)
    for path in folder.glob("*.jsonl"):
        assert not re.search(r"(?<![\w.])/(?:home|root|tmp|work|usr|opt)\b", path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_stream_of_a_trace_agrees_with_its_row(folder: Path) -> None:
    trace = read_trace(folder)
    assert trace.memory
    for row in trace.memory:
        events = trace.events(row)
        if row.device != "cpu" or events is None:
            continue
        live: set[int] = set()
        for event in events.events:
            if event.action == "alloc":
                live.add(event.block)
            elif event.action == "free":
                live.remove(event.block)
        assert events.peak_live_bytes() == row.peak_allocated_bytes
        first, *_, last = row.steps
        if row.case.optimizer is not None:  # states are made in the first step; then nothing is added
            assert last.end_allocated_bytes == pytest.approx(first.end_allocated_bytes, abs=64)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_kernels_bytes_are_those_of_the_formula(folder: Path) -> None:
    counted = [row for row in read_trace(folder).kernels if row.loaded_bytes is not None]
    for row in counted:
        assert row.stored_bytes is not None
        assert row.loaded_bytes is not None
        assert row.loaded_bytes + row.stored_bytes == row.formula_bytes, row.case.name


def test_the_cpu_trace_has_enough_steps_to_be_the_truth() -> None:
    rows = [r for r in read_trace(TRACES / "cpu-amd-epyc").memory if r.case.mode == "training" and r.error is None]
    assert len(rows) >= 15
    assert len({row.case.model_type for row in rows}) >= 12
