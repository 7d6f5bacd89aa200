"""What other people's viewers read: trace, snapshot, and files that are written whole or not at all."""

from __future__ import annotations

import json
import pickle
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import peakline as pk
from peakline.export import trace
from peakline.files import written_whole


@pytest.fixture(scope="module")
def est() -> pk.Estimate:
    """A training step whose microbatches and layers repeat."""
    step = pk.training_step("llama-3.2-1b", seq=512, recompute="full", accumulation=3)
    return pk.estimate(step, "h100-sxm")


# ---- Trace Event Format ---------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def events(est: pk.Estimate) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = trace(est)["traceEvents"]
    return found


def test_every_event_has_what_its_kind_requires(events: list[dict[str, Any]]) -> None:
    required = {
        "X": {"name", "ts", "dur", "pid", "tid"},
        "C": {"name", "ts", "pid", "args"},
        "M": {"name", "pid", "args"},
    }
    for event in events:
        assert required[event["ph"]] <= event.keys()
        assert event.get("ts", 0) >= 0
        assert event.get("dur", 0) >= 0


def test_operators_follow_each_other_without_gap_or_overlap(events: list[dict[str, Any]]) -> None:
    runs = [e for e in events if e["ph"] == "X"]
    for earlier, later in pairwise(runs):
        assert later["ts"] == pytest.approx(earlier["ts"] + earlier["dur"], abs=1e-3)


def test_the_last_event_ends_at_the_estimated_time(est: pk.Estimate, events: list[dict[str, Any]]) -> None:
    last = [e for e in events if e["ph"] == "X"][-1]
    assert (last["ts"] + last["dur"]) * 1e-6 == pytest.approx(est.time, rel=1e-9)


def test_every_execution_of_every_operator_is_there(est: pk.Estimate, events: list[dict[str, Any]]) -> None:
    assert sum(e["ph"] == "X" for e in events) == sum(o.executions for o in est.cost.operators)


def test_flops_of_the_events_add_up_to_the_estimates(est: pk.Estimate, events: list[dict[str, Any]]) -> None:
    assert sum(e["args"]["flops"] for e in events if e["ph"] == "X") == est.cost.flops


def test_each_phase_has_its_named_track(events: list[dict[str, Any]]) -> None:
    names = {e["tid"]: e["args"]["name"] for e in events if e["ph"] == "M" and e["name"] == "thread_name"}
    assert set(names.values()) == {"forward", "recompute", "backward", "optimizer"}
    assert {e["tid"] for e in events if e["ph"] == "X"} == set(names)


def test_the_memory_counter_reaches_the_live_peak(est: pk.Estimate, events: list[dict[str, Any]]) -> None:
    assert max(sum(e["args"].values()) for e in events if e["ph"] == "C") == est.memory.live


def test_the_file_is_json_that_says_for_what_it_was_made(est: pk.Estimate, tmp_path: Path) -> None:
    est.write_trace(tmp_path / "trace.json")
    data = json.loads((tmp_path / "trace.json").read_text())
    assert data["otherData"] == {"model": "llama-3.2-1b", "device": "h100-sxm"}


# ---- PyTorch's memory snapshot --------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def snapshot(est: pk.Estimate, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("snapshot") / "memory.pickle"
    est.write_snapshot(path)
    found: dict[str, Any] = pickle.loads(path.read_bytes())
    return found


def test_the_history_peaks_at_the_live_bytes_of_the_steady_step(est: pk.Estimate, snapshot: dict[str, Any]) -> None:
    held = most = 0
    for entry in snapshot["device_traces"][0]:
        if entry["action"] == "alloc":
            held += entry["size"]
        elif entry["action"] == "free_completed":
            held -= entry["size"]
        most = max(most, held)
    libraries = 2 * pk.device("h100-sxm").software.cublas_workspace_bytes  # forward and autograd thread
    assert most == est.memory.live + libraries


def test_reserved_bytes_of_the_history_peak_where_the_estimate_says(est: pk.Estimate, snapshot: dict[str, Any]) -> None:
    held = most = 0
    for entry in snapshot["device_traces"][0]:
        held += {"segment_alloc": entry["size"], "segment_free": -entry["size"]}.get(entry["action"], 0)
        most = max(most, held)
    assert most == est.memory.reserved


def test_the_step_is_there_twice(est: pk.Estimate, snapshot: dict[str, Any]) -> None:
    allocated = [e for e in snapshot["device_traces"][0] if e["action"] == "alloc"]
    losses = [e for e in allocated if e["frames"][0]["name"].startswith("loss")]
    assert losses
    assert len(losses) % 2 == 0


def test_parameters_are_still_held_at_the_end_and_named(est: pk.Estimate, snapshot: dict[str, Any]) -> None:
    blocks = [b for s in snapshot["segments"] for b in s["blocks"] if b["state"] == "active_allocated"]
    names = {b["frames"][0]["name"] for b in blocks}
    assert "model.layers.15.mlp.down_proj.weight" in names
    assert "model.embed_tokens.weight" in names


def test_a_run_that_does_not_fit_ends_with_the_allocation_that_failed(tmp_path: Path) -> None:
    est = pk.estimate(pk.training_step("llama-3.1-8b", seq=512), "rtx-4090")
    assert not est.fits
    est.write_snapshot(tmp_path / "memory.pickle")
    data = pickle.loads((tmp_path / "memory.pickle").read_bytes())
    assert data["device_traces"][0][-1]["action"] == "oom"


def test_pytorchs_visualiser_reads_the_snapshot(est: pk.Estimate, tmp_path: Path) -> None:
    memory_viz = pytest.importorskip("torch.cuda._memory_viz", reason="torch is not installed")
    est.write_snapshot(tmp_path / "memory.pickle")
    data = pickle.loads((tmp_path / "memory.pickle").read_bytes())
    allocations = sum(e["action"] == "alloc" for e in data["device_traces"][0])
    assert memory_viz.trace(data).count(" = ") >= allocations  # one line for each, in PyTorch's own words
    assert memory_viz.segsum(data)
    assert memory_viz.trace_plot(data).startswith("\n<!DOCTYPE html>") or "<html" in memory_viz.trace_plot(data)


# ---- sweeps and files -----------------------------------------------------------------------------------------------
def test_a_sweep_has_no_single_time_line_or_history(tmp_path: Path) -> None:
    sweep = pk.estimate(pk.prefill("llama-3.2-1b", batch=[1, 2], seq=128), "h100-sxm")
    for write in (sweep.write_trace, sweep.write_snapshot):
        with pytest.raises(ValueError, match="sweep"):
            write(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_while_writing_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")

    def fail() -> None:
        with written_whole(target) as temporary:
            temporary.write_text("half of the n")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


def test_a_written_file_has_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    with written_whole(tmp_path / "file") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "usual").stat().st_mode
