"""Recording real runs on a CPU: rows, event streams, going on after a stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="recording needs torch")

from peakline.record import MemoryCase, MemoryRow, OperatorCase, TraceError, read_trace, suite, workers  # noqa: E402
from peakline.record.build import build, make_optimizer, run_step  # noqa: E402
from peakline.record.memory_run import measure_memory  # noqa: E402
from peakline.record.operator_run import OPERATORS, measure_operator  # noqa: E402
from peakline.record.step_run import measure_steps  # noqa: E402
from peakline.record.timing import Clock  # noqa: E402
from peakline.record.workers import Failed, Job, Worker  # noqa: E402

RESNET = MemoryCase(
    name="resnet-toy",
    source="peakline",
    model_type="resnet",
    architecture="ResNet",
    config={"layers": (1, 1, 1, 1), "width": 8, "classes": 10},
    batch=2,
    image=32,
    dtype="fp32",
    attention=None,
    loss="cross_entropy",
    steps=2,
)
DIT = RESNET.model_copy(
    update={
        "name": "dit-toy",
        "model_type": "dit",
        "architecture": "DiT",
        "config": {"hidden": 48, "depth": 2, "heads": 3, "patch": 2, "channels": 4, "classes": 10},
        "image": 16,
        "optimizer": "sgd",
        "loss": "mse",
        "checkpointing": True,
    }
)


@pytest.fixture
def two_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory suite is two toys."""
    monkeypatch.setattr(suite, "memory_cases", lambda device: (RESNET, DIT))
    monkeypatch.setattr(suite, "MEMORY_CASES", (RESNET, DIT))


def test_two_cases_from_end_to_end_in_processes_of_their_own(two_cases: None, tmp_path: Path) -> None:
    done = suite.record(["memory"], tmp_path, device="cpu")
    assert (done.recorded, done.failed, done.left) == (2, 0, 0)
    trace = read_trace(tmp_path)
    assert [row.case for row in trace.memory] == [RESNET, DIT]
    assert trace.environments[0].torch == str(torch.__version__)
    for row in trace.memory:
        events = trace.events(row)
        assert events is not None
        assert len(row.steps) == 2
        assert events.peak_live_bytes() == row.peak_allocated_bytes
        assert row.resident_allocated_bytes == row.parameter_bytes + row.buffer_bytes + row.input_bytes
        assert {event.text for event in events.events if event.action == "mark"} >= {"step0/forward", "step1/optimizer"}
    text = "".join(p.read_text() for p in tmp_path.glob("*.jsonl"))
    assert str(Path.home()) not in text
    assert str(tmp_path) not in text


def test_the_bytes_of_a_row_are_those_of_the_tensors() -> None:
    row, events = measure_memory(RESNET, "cpu")
    model = build(RESNET, "cpu").module
    parameters = sum(p.numel() for p in model.parameters())
    assert row.parameters == parameters
    assert row.parameter_bytes == 4 * parameters
    first, second = row.steps
    phases = {phase.name: phase for phase in second.phases}
    assert list(phases) == ["forward", "backward", "optimizer", "zero_grad"]
    assert second.peak_allocated_bytes == max(phase.peak_allocated_bytes for phase in phases.values())
    freed = phases["optimizer"].end_allocated_bytes - phases["zero_grad"].end_allocated_bytes
    assert 4 * parameters <= freed < 4 * parameters + 64  # the gradients
    states = first.end_allocated_bytes - (row.resident_allocated_bytes or 0)
    assert 8 * parameters <= states <= 8 * parameters + 8 * len(list(model.parameters())) + 64  # AdamW's, and its steps
    assert second.end_allocated_bytes == first.end_allocated_bytes
    assert events is not None
    live = {event.block for event in events.events if event.action == "alloc"}
    assert {event.block for event in events.events if event.action == "free"} <= live


def test_recomputation_lowers_the_recorded_peak() -> None:
    with_it, _ = measure_memory(DIT, "cpu")
    without, _ = measure_memory(DIT.model_copy(update={"checkpointing": False}), "cpu")
    assert with_it.peak_allocated_bytes < without.peak_allocated_bytes


def test_a_recording_that_is_stopped_goes_on_with_what_is_missing(two_cases: None, tmp_path: Path) -> None:
    def stop_before_the_second(name: str, number: int, total: int, case: str) -> None:
        if number == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        suite.record(["memory"], tmp_path, device="cpu", isolate=False, progress=stop_before_the_second)
    assert [row.case.name for row in read_trace(tmp_path).memory] == ["resnet-toy"]
    file = tmp_path / "memory.jsonl"
    before = file.read_text()
    file.write_text(before + '{"kind":"memory","case":{"name":"dit-t')  # killed while it wrote
    done = suite.record(["memory"], tmp_path, device="cpu", isolate=False)
    assert (done.before, done.recorded) == (1, 1)
    assert file.read_text().startswith(before)
    assert [row.case.name for row in read_trace(tmp_path).memory] == ["resnet-toy", "dit-toy"]
    again = suite.record(["memory"], tmp_path, device="cpu", isolate=False)
    assert (again.before, again.recorded) == (2, 0)


def test_a_case_that_fails_is_a_row_with_its_error_and_the_others_go_on(
    two_cases: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = DIT.model_copy(update={"name": "broken", "config": {**DIT.config, "heads": 7}})
    monkeypatch.setattr(suite, "memory_cases", lambda device: (broken, RESNET))
    done = suite.record(["memory"], tmp_path, device="cpu", isolate=False)
    assert (done.recorded, done.failed) == (2, 1)
    first, second = read_trace(tmp_path).memory
    assert first.error is not None
    assert first.error.startswith("RuntimeError: shape")
    assert first.steps == ()
    assert second.error is None


def test_a_process_that_dies_is_a_failed_case_and_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker()
    try:
        worker._process.kill()
        with pytest.raises(Failed, match="the process ended with code -9"):
            worker.ask(Job("memory", "cpu", 0, RESNET), 20)
    finally:
        worker.close()
    row = workers.failure(Job("memory", "cpu", 0, RESNET), "the process ended with code -9")
    assert isinstance(row, MemoryRow)
    assert row.error == "the process ended with code -9"


def test_no_case_begins_after_the_deadline(two_cases: None, tmp_path: Path) -> None:
    done = suite.record(["memory"], tmp_path, device="cpu", minutes=1e-9, isolate=False)
    assert (done.recorded, done.left) == (0, 2)
    assert read_trace(tmp_path).memory == []


def test_a_recording_never_grows_beyond_its_limit(two_cases: None, tmp_path: Path) -> None:
    done = suite.record(["memory"], tmp_path, device="cpu", isolate=False, max_bytes=4000)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 4000
    assert done.recorded == 1
    assert "full" in done.notes[-1]
    (row,) = read_trace(tmp_path).memory
    assert row.events is None
    assert row.events_left_out is not None


def test_another_machine_must_record_into_another_folder(two_cases: None, tmp_path: Path) -> None:
    suite.record(["memory"], tmp_path, device="cpu", isolate=False, only=["resnet"])
    file = tmp_path / "memory.jsonl"
    lines = file.read_text().splitlines()
    environment = json.loads(lines[1])
    lines[1] = json.dumps({**environment, "device_name": "another"})
    file.write_text("\n".join(lines) + "\n")
    with pytest.raises(TraceError, match=r"recorded with device_name 'another'.*another folder"):
        suite.record(["memory"], tmp_path, device="cpu", isolate=False)


@pytest.mark.parametrize("operator", sorted(OPERATORS))
def test_every_operator_is_timed_forward_and_where_it_has_one_backward(operator: str) -> None:
    sizes = {
        "m": 8, "n": 16, "k": 32, "batch": 2, "rows": 8, "columns": 16, "tokens": 4, "vocab": 32, "width": 8,
        "tensors": 2, "bytes": 64, "seq": 8, "context": 8, "heads": 4, "kv_heads": 2, "head_dim": 8, "channels_in": 4,
        "channels_out": 4, "side": 6, "kernel": 3, "stride": 1,
    }  # fmt: skip
    options: dict[str, Any] = {"direction": "d2d", "optimizer": "adamw-loop", "causal": True}
    case = OperatorCase(name="x", operator=operator, dtype="fp32", sizes=sizes, options=options)
    row = measure_operator(case, "cpu", Clock("cpu", budget=0.0))
    assert row.error is None
    assert row.forward is not None
    assert row.forward.warm is not None
    assert 0 < row.forward.warm.min_seconds <= row.forward.warm.median_seconds
    has_backward = operator in (
        *("attention", "gelu", "silu", "swiglu", "softmax", "layer_norm", "rms_norm"),
        *("cross_entropy", "embedding", "convolution"),
    )
    assert (row.backward is not None) == has_backward


def test_whole_steps_are_timed_with_their_phases_and_operators() -> None:
    row = measure_steps(RESNET, "cpu")
    assert row.error is None
    assert row.step is not None
    assert set(row.phases) == {"forward", "backward", "optimizer", "zero_grad"}
    assert sum(t.min_seconds for t in row.phases.values()) <= row.step.median_seconds * 1.05
    assert any("convolution" in time.operator for time in row.operators)
    seconds = [time.self_seconds for time in row.operators]
    assert seconds == sorted(seconds, reverse=True)


def test_gradient_accumulation_steps_once_for_all_microbatches() -> None:
    case = RESNET.model_copy(update={"accumulation": 3})
    begun: list[str] = []
    run_step(build(case, "cpu"), begun.append)
    assert begun == [*["forward", "backward"] * 3, "optimizer", "zero_grad"]


def test_the_suites_of_a_recording_share_its_time(
    two_cases: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[float] = []
    monkeypatch.setattr(suite, "_record_suite", lambda *how: ends.append(how[5]))
    now = suite.time.monotonic()
    suite.record(["memory", "operators"], tmp_path, device="cpu", minutes=10, isolate=False)
    assert [round((end - now) / 60) for end in ends] == [5, 10]


def test_without_torch_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs torch: pip install 'peakline\[record\]'"):
        suite.device_of("auto")


def test_an_unknown_optimizer_is_refused_with_what_is_known() -> None:
    with pytest.raises(ValueError, match="optimizer: 'lion' is unknown; accepted: adamw"):
        make_optimizer("lion", [])
