"""Reading a trace somebody else wrote: what is refused, and how it says so."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peakline.record import Environment, MemoryCase, MemoryRow, OperatorCase, OperatorRow, TraceError, read_trace
from peakline.record.reader import read_events
from peakline.record.schema import Header, Measured, StepMemory, Timing
from peakline.record.streams import AllocationTrace, Event, StreamHeader
from peakline.record.writer import TraceWriter

HERE = Environment(device_kind="cpu", device_name="any", recorded_on="2026-01-31", peakline="0", python="3", torch="2")
CASE = MemoryCase(
    name="a",
    source="transformers",
    model_type="llama",
    architecture="LlamaForCausalLM",
    config={"hidden_size": 64, "scale": 1.5, "ids": (1, 2), "nested": {"x": None}},
    optimizer=None,
)
ROW = MemoryRow(
    case=CASE, device="cpu", steps=(StepMemory(step=0, seconds=1.0, peak_allocated_bytes=7, end_allocated_bytes=3),)
)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """A folder with one memory row."""
    writer = TraceWriter(tmp_path, "memory", HERE)
    writer.add(ROW)
    return tmp_path / "memory.jsonl"


def _refusal(path: Path, **how: Any) -> str:
    with pytest.raises(TraceError) as caught:
        read_trace(path, **how)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_what_is_written_is_read_unchanged(trace: Path) -> None:
    read = read_trace(trace)
    assert read.memory == [ROW]
    assert read.environments == [HERE]
    assert read_trace(trace.parent).memory == [ROW]


@given(
    st.builds(
        OperatorCase,
        name=st.text("abc_019", min_size=1, max_size=20),
        operator=st.sampled_from(["gemm", "add"]),
        dtype=st.just("bf16"),
        sizes=st.dictionaries(st.text("mnk", min_size=1, max_size=3), st.integers(0, 1 << 40)),
        options=st.dictionaries(st.text("xy", min_size=1, max_size=2), st.booleans() | st.text(max_size=30)),
    ),
    st.floats(0, 1e6, allow_nan=False),
)
def test_any_row_survives_its_line(case: OperatorCase, seconds: float) -> None:
    timing = Timing(median_seconds=seconds, min_seconds=0.0, repetitions=3)
    row = OperatorRow(case=case, device="cuda", forward=Measured(warm=timing))
    assert OperatorRow.model_validate_json(row.to_line()) == row


def test_a_trace_cut_in_half_names_the_line_and_gives_the_whole_rows_if_asked(trace: Path) -> None:
    text = trace.read_text()
    trace.write_text(text + text.splitlines()[2][:100])
    assert _refusal(trace).endswith("line 4: cut in the middle; the 3 lines before it are whole")
    read = read_trace(trace, partial=True)
    assert read.memory == [ROW]
    assert read.warnings == (_refusal(trace),)


def test_a_newer_schema_is_named(trace: Path) -> None:
    lines = trace.read_text().splitlines()
    lines[0] = lines[0].replace("peakline.trace/1", "peakline.trace/2")
    trace.write_text("\n".join(lines) + "\n")
    assert "schema peakline.trace/2 is newer than peakline.trace/1" in _refusal(trace)


def test_a_hostile_pickle_is_never_opened(tmp_path: Path) -> None:
    bomb = tmp_path / "gone"

    class Hostile:
        def __reduce__(self) -> Any:
            return Path.touch, (bomb,)

    for name, data in (("model.pt", pickle.dumps(Hostile())), ("trace.jsonl", pickle.dumps(Hostile(), 0))):
        (tmp_path / name).write_bytes(data)
        assert "pickle" in (text := _refusal(tmp_path / name)) or "not a trace" in text
    (tmp_path / "zip.pt").write_bytes(b"PK\x03\x04rest")
    assert "torch.save" in _refusal(tmp_path / "zip.pt")
    assert not bomb.exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda row: row["steps"][0].update(peak_allocated_bytes="7"), "memory.steps.0.peak_allocated_bytes"),
        (lambda row: row["steps"][0].update(peak_allocated_bytes=-1), "greater than or equal to 0"),
        (lambda row: row["steps"][0].update(peak_allocated_bytes=1 << 61), "peak_allocated_bytes"),
        (lambda row: row["steps"][0].update(peak_allocated_bytes=7.5), "peak_allocated_bytes"),
        (lambda row: row["steps"][0].update(seconds=float("nan")), "line 3"),
        (lambda row: row.update(surprise=1), "memory.surprise"),
        (lambda row: row.update(kind="other"), "'other'"),
        (lambda row: row.update(events="../../secret.jsonl.gz"), "memory.events"),
        (lambda row: row["case"].pop("architecture"), "memory.case.architecture"),
        (lambda row: row["case"].update(name="x" * 10_000), "memory.case.name"),
    ],
)
def test_a_wrong_field_is_named_with_its_line(trace: Path, change: Any, said: str) -> None:
    lines = trace.read_text().splitlines()
    row = json.loads(lines[2])
    change(row)
    lines[2] = json.dumps(row)
    trace.write_text("\n".join(lines) + "\n")
    text = _refusal(trace)
    assert "line 3" in text
    assert said in text
    assert len(text) < 600


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (b"\n", "not a trace"),
        (b"name,size\nb,1\n", "not a trace: the first line must name the schema peakline.trace/1"),
        (b'{"schema": "peakline.estimate/1"}\n', "schema is 'peakline.estimate/1'; accepted: peakline.trace/1"),
        (b'{"schema": 3}\n', "schema is '3'"),
        (b"[" * 100_000 + b"\n", "not a trace"),
        (b"\xff\xfe\x00\n", "not a trace"),
        (Header(schema="peakline.trace/1", suite="memory").to_line().encode() + b"\n" + ROW.to_line().encode() + b"\n",
         "line 2: a row before any environment"),
    ],
)  # fmt: skip
def test_what_is_no_trace_is_refused_in_one_line(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(data)
    assert said in _refusal(path)


def test_absurd_sizes_are_refused_before_they_fill_the_memory(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.jsonl"
    with gzip.open(bomb, "wb", compresslevel=1) as file:
        file.write(b'{"schema": "peakline.trace/1", "kind": "header", "suite": "memory"}\n')
        for _ in range(6):
            file.write(b" " * (1 << 20))
    assert bomb.stat().st_size < 100_000
    assert "line 2: longer than 4 MiB" in _refusal(bomb)
    sparse = tmp_path / "sparse.jsonl"
    with sparse.open("wb") as file:
        file.truncate(1 << 40)
    assert "a trace has at most" in _refusal(sparse)


def test_a_missing_file_a_folder_without_traces_and_a_device_are_refused(tmp_path: Path) -> None:
    assert "No such file" in _refusal(tmp_path / "nothing.jsonl")
    assert "no trace in this folder" in _refusal(tmp_path)
    assert "not a file" in _refusal(Path("/dev/null"))


# ---- event streams -------------------------------------------------------------------------------------------------
def _stream(tmp_path: Path, *lines: str, events: int = 1) -> Path:
    header = StreamHeader(schema="peakline.trace/1", case="a", device="cpu", events=events)
    path = tmp_path / "events-a.jsonl.gz"
    path.write_bytes(gzip.compress("".join(f"{line}\n" for line in (header.to_line(), *lines)).encode()))
    return path


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('["alloc",0]', "alloc: expected 3 to 6 entries, got 2"),
        ('["alloc",0,-5]', "whole numbers"),
        ('["alloc",0,1e3]', "whole numbers"),
        ('["alloc",0,true]', "whole numbers"),
        ('["alloc",0,NaN]', "NaN is no number"),
        ('["steal",0]', "begins with one of alloc"),
        ('{"a":1}', "must be an array"),
        ('["mark",3]', "must be a text"),
        (f'["free",{10**30}]', "whole numbers"),
        ("[" * 200_000, "line 2"),
    ],
)
def test_a_wrong_event_is_named_with_its_line(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(TraceError, match=r"events-a.jsonl.gz: line 2: ") as caught:
        read_events(_stream(tmp_path, line))
    assert said in str(caught.value)


def test_a_stream_with_too_few_events_or_a_cut_archive_is_refused(tmp_path: Path) -> None:
    path = _stream(tmp_path, '["alloc",0,8]', events=2)
    with pytest.raises(TraceError, match="cut: it has 1 of 2 events"):
        read_events(path)
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(TraceError, match="cut or damaged"):
        read_events(path)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1 << 40), st.text("ab:", max_size=9)), max_size=30))
def test_any_event_survives_its_line(rows: list[tuple[int, int, str]]) -> None:
    for stream, size, text in rows:
        for event in (
            Event("alloc", 3, size, stream, size, text),
            Event("free", stream),
            Event("segment_map", -1, size, stream, size),
            Event("oom", size=size, address=stream),
            Event("mark", text=text),
        ):
            assert Event.from_row(json.loads(event.to_line())) == event


def test_spans_follow_the_marks() -> None:
    header = StreamHeader(schema="peakline.trace/1", case="a", device="cpu", events=7, start_bytes=100)
    events = (
        Event("alloc", 0, 5),
        Event("mark", text="one"),
        Event("alloc", 1, 50),
        Event("free", 1),
        Event("mark", text="two"),
        Event("free", 0),
        Event("free", 9),  # from before the recording: not counted
    )
    trace = AllocationTrace(header, events)
    assert trace.spans() == [("one", 155, 105), ("two", 105, 100)]
    assert trace.peak_live_bytes() == 155
