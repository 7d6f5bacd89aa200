"""Exported snapshots are what PyTorch's own tools read."""

from __future__ import annotations

import importlib.util
import pickle
import pickletools
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_caching_allocator import any_options, streams

from peakline.memory.caching_allocator import replay
from peakline.memory.events import EventBuilder, EventStream
from peakline.memory.options import MIB, AllocatorOptions
from peakline.memory.snapshot import Label, snapshot, write_snapshot

# Opcodes of the unpickler in torch/utils/viz/MemoryViz.js.
# fmt: off
VISUALISER_OPCODES = {
    "APPEND", "APPENDS", "BINFLOAT", "BINGET", "BININT", "BININT1", "BININT2", "BINPUT", "BINUNICODE", "DICT",
    "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "FRAME", "LIST", "LONG1", "LONG_BINGET", "LONG_BINPUT", "MARK",
    "MEMOIZE", "NEWFALSE", "NEWTRUE", "NONE", "PROTO", "SETITEM", "SETITEMS", "SHORT_BINUNICODE", "STOP", "TUPLE",
    "TUPLE1", "TUPLE2", "TUPLE3",
}
# fmt: on


def small_step() -> EventStream:
    """A weight, two activations, a temporary, and a block used on another stream."""
    builder = EventBuilder()
    builder.mark("init")
    builder.alloc("weight", 30 * MIB)
    builder.mark("linear")
    builder.alloc("activation", 5 * MIB + 3)
    builder.alloc(("temporary", 1), 700)
    builder.free(("temporary", 1))
    builder.mark("all_reduce")
    builder.alloc("bucket", 25 * MIB)
    builder.use("bucket", 1)
    builder.free("bucket")
    builder.sync(1)
    builder.alloc("next bucket", 25 * MIB)
    return builder.build()


def torch_viz() -> ModuleType:
    """torch/cuda/_memory_viz.py, which needs nothing of torch itself."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        pytest.skip("torch is not installed")
    path = Path(spec.origin).parent / "cuda" / "_memory_viz.py"
    if not path.exists():
        pytest.skip("this torch has no _memory_viz.py")
    loader = importlib.util.spec_from_file_location("memory_viz_of_torch", path)
    assert loader is not None
    assert loader.loader is not None
    module = importlib.util.module_from_spec(loader)
    loader.loader.exec_module(module)
    return module


def written(tmp_path: Path, events: EventStream, options: AllocatorOptions | None = None) -> tuple[Path, Any]:
    path = tmp_path / "snapshot.pickle"
    result = replay(events, 10**10, options, record=True)
    write_snapshot(path, result, events, {"activation": Label("x @ W", "aten::mm", "layers.0.mlp.up")})
    with path.open("rb") as file:
        return path, pickle.load(file)  # our own file


@pytest.mark.parametrize("expandable", [False, True])
def test_torchs_own_tools_digest_the_file(tmp_path: Path, expandable: bool) -> None:
    viz = torch_viz()
    _, data = written(tmp_path, small_step(), AllocatorOptions(expandable_segments=expandable))
    assert "total_reserved" in viz.segsum(data)
    assert ("segment_map" if expandable else "cudaMalloc") in viz.trace(data)
    assert "Active Memory Timeline" in viz.trace_plot(data)
    assert "Allocator State History" in viz.segment_plot(data)
    lines = viz.memory(data, format_flamegraph=lambda text: text)
    assert "0:weight" in lines
    assert "aten::mm" in lines
    assert "layers.0.mlp.up" in lines


def test_the_file_holds_only_what_the_visualisers_unpickler_knows(tmp_path: Path) -> None:
    path, _ = written(tmp_path, small_step())
    used = {opcode.name for opcode, _, _ in pickletools.genops(path.read_bytes())}
    assert used <= VISUALISER_OPCODES


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = written(tmp_path, small_step())
    before = path.read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(pickle, "dump", fail)
    with pytest.raises(OSError, match="disk full"):
        write_snapshot(path, replay(small_step(), record=True), small_step())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_replay_without_records_cannot_be_exported() -> None:
    with pytest.raises(ValueError, match="record=True"):
        snapshot(replay(small_step()), small_step())


@settings(max_examples=150, deadline=None)
@given(streams(), any_options(), st.sampled_from([150 * MIB, 10**11]))
def test_the_trace_played_from_nothing_ends_in_the_segments(
    events: EventStream, options: AllocatorOptions, capacity: int
) -> None:
    data = snapshot(replay(events, capacity, options, record=True), events)
    mapped: dict[int, int] = {}
    used: dict[int, int] = {}
    pending: dict[int, int] = {}
    for entry in data["device_traces"][0]:
        action, size = entry["action"], entry["size"]
        if action in ("segment_alloc", "segment_map"):
            for page in range(entry["addr"], entry["addr"] + size, MIB):
                assert page not in mapped
                mapped[page] = 1
        elif action in ("segment_free", "segment_unmap"):
            for page in range(entry["addr"], entry["addr"] + size, MIB):
                del mapped[page]
        elif action == "alloc":
            assert entry["addr"] not in used
            assert entry["addr"] not in pending
            assert entry["addr"] // MIB * MIB in mapped
            used[entry["addr"]] = size
        elif action == "free_requested":
            pending[entry["addr"]] = used.pop(entry["addr"])
        elif action == "free_completed":
            assert pending.pop(entry["addr"]) == size
    blocks = [block for segment in data["segments"] for block in segment["blocks"]]
    live = {b["address"]: b["requested_size"] for b in blocks if b["state"] == "active_allocated"}
    waiting = {b["address"]: b["requested_size"] for b in blocks if b["state"] == "active_pending_free"}
    pages = {p for s in data["segments"] for p in range(s["address"], s["address"] + s["total_size"], MIB)}
    assert (live, waiting, pages) == (used, pending, set(mapped))
    assert sum(b["size"] for b in blocks) == sum(s["total_size"] for s in data["segments"])
