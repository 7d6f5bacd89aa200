"""Parts on disk: whole or absent, found again by a rerun, joined at the end; a kill or a full disk loses little."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import peakline as pk
from peakline.sweeping import evaluate as evaluation

pq = pytest.importorskip("pyarrow.parquet", reason="Parquet needs pyarrow")

AXES: dict[str, Any] = {
    "model": "gpt2", "device": ["h100-sxm", "a30"], "phase": "decode", "batch": list(range(1, 21)),
    "context": list(range(1, 11)), "replay": False,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peakline.sweeping.plan.PART_ROWS", 40)


def _same(written: pd.DataFrame, expected: pd.DataFrame) -> None:
    plain = {name: "object" for name in expected.columns if str(expected[name].dtype) == "category"}
    for name in expected.columns:
        left, right = written[name], expected[name]
        assert left.isna().tolist() == right.isna().tolist(), name
        assert left.dropna().astype(plain.get(name, right.dtype)).tolist() == right.dropna().tolist(), name


def test_a_file_and_a_folder_hold_the_rows_of_the_data_frame(tmp_path: Path) -> None:
    df = pk.sweep(**AXES)
    file, folder = pk.sweep_to(tmp_path / "all.parquet", **AXES), pk.sweep_to(tmp_path / "parts", **AXES)
    assert file.rows == folder.rows == len(df) == 400
    assert folder.parts == len(list((tmp_path / "parts").glob("part-*.parquet"))) == 10
    _same(file.read(), df)
    _same(folder.read(), df)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["all.parquet", "parts"]


def test_a_rerun_computes_only_what_is_not_there(tmp_path: Path) -> None:
    first = pk.sweep_to(tmp_path / "parts", **AXES)
    lost = sorted((tmp_path / "parts").glob("part-*.parquet"))[3]
    lost.unlink()
    again = pk.sweep_to(tmp_path / "parts", **AXES)
    assert (first.computed, again.computed) == (10, 1)
    assert lost.exists()
    once = pk.sweep_to(tmp_path / "one.parquet", **AXES)
    assert pk.sweep_to(tmp_path / "one.parquet", **AXES).computed == 0 < once.computed


def test_a_truncated_part_is_computed_again(tmp_path: Path) -> None:
    pk.sweep_to(tmp_path / "parts", **AXES)
    victim = sorted((tmp_path / "parts").glob("part-*.parquet"))[0]
    victim.write_bytes(victim.read_bytes()[:-7])
    assert pk.sweep_to(tmp_path / "parts", **AXES).computed == 1
    _same(pk.sweep_to(tmp_path / "parts", **AXES).read(), pk.sweep(**AXES))


SCRIPT = """
import sys, time
import peakline as pk
import peakline.sweeping.plan as plan
from peakline.sweeping import run
plan.PART_ROWS = 40
once = run.evaluate
def slow(part):
    time.sleep(0.15)
    return once(part)
import peakline.sweeping.parts as parts
parts.evaluate = slow
pk.sweep_to(sys.argv[1], model="gpt2", device=["h100-sxm", "a30"], phase="decode", batch=list(range(1, 21)),
            context=list(range(1, 11)), replay=False)
"""


def _start(out: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(out)], stderr=subprocess.PIPE)


def _wait_for_parts(folder: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(list(folder.glob("part-*.parquet"))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_or_interrupted_run_keeps_its_parts(tmp_path: Path, kill: signal.Signals) -> None:
    folder = tmp_path / "parts"
    process = _start(folder)
    _wait_for_parts(folder, 3)
    process.send_signal(kill)
    _, said = process.communicate(timeout=60)
    kept = len(list(folder.glob("part-*.parquet")))
    assert 3 <= kept < 10
    if kill is signal.SIGINT:
        assert f"{kept} of 10 parts are kept" in said.decode()
    again = pk.sweep_to(folder, **AXES)
    assert again.computed == 10 - kept
    assert not list(folder.glob(".part-*"))
    _same(again.read(), pk.sweep(**AXES))


def test_a_full_disk_is_said_so_and_loses_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, calls = pq.write_table, []

    def full(*args: Any, **kwargs: Any) -> None:
        calls.append(1)
        if len(calls) == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(*args, **kwargs)

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(ValueError, match=r"No space left on device; 3 of 10 parts are kept, make room and run again"):
        pk.sweep_to(tmp_path / "parts", **AXES)
    monkeypatch.undo()
    monkeypatch.setattr("peakline.sweeping.plan.PART_ROWS", 40)
    assert pk.sweep_to(tmp_path / "parts", **AXES).computed == 7


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o555)
    with pytest.raises(ValueError, match="cannot be"):
        pk.sweep_to(tmp_path / "locked" / "parts", **AXES)


def test_a_place_that_cannot_be_is_refused_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "built", None)
    with pytest.raises(ValueError, match="there is no folder"):
        pk.sweep_to(tmp_path / "nowhere" / "parts", **AXES)
    with pytest.raises(ValueError, match=r"give a file that ends in \.parquet, or a folder"):
        pk.sweep_to(tmp_path / "results.csv", **AXES)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    (tmp_path / "parts").mkdir()
    with pytest.raises(ValueError, match="cannot be written there: Read-only file system"):
        pk.sweep_to(tmp_path / "parts", **AXES)


def test_a_folder_of_an_older_version_is_refused_naming_both(tmp_path: Path) -> None:
    pk.sweep_to(tmp_path / "parts", **AXES)
    manifest = tmp_path / "parts" / "_sweep.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"version": "0.0.9"}))
    with pytest.raises(ValueError, match=rf"written by peakline 0\.0\.9 .* this is {pk.__version__}"):
        pk.sweep_to(tmp_path / "parts", **AXES)
    assert pk.sweep_to(tmp_path / "parts", replace=True, **AXES).computed == 10


def test_parts_of_another_sweep_are_not_mixed_in_nor_removed_unasked(tmp_path: Path) -> None:
    pk.sweep_to(tmp_path / "parts", **AXES)
    other = AXES | {"device": "h100-sxm", "batch": [1, 2]}
    with pytest.raises(ValueError, match="holds 10 parts of another sweep"):
        pk.sweep_to(tmp_path / "parts", **other)
    assert pk.sweep_to(tmp_path / "parts", replace=True, **other).rows == 20
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="files that no sweep wrote"):
        pk.sweep_to(tmp_path / "mine", **AXES)


def test_an_interrupt_in_memory_hands_over_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def impatient(part: Any) -> Any:
        calls.append(part)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return evaluation.evaluate(part)

    monkeypatch.setattr("peakline.sweeping.run.evaluate", impatient)
    with pytest.raises(KeyboardInterrupt, match="120 of 400 rows are done") as caught:
        pk.sweep(**AXES)
    assert len(caught.value.done) == 120  # type: ignore[attr-defined]


def test_processes_and_threads_give_the_same_rows() -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as executor:
        _same(pk.sweep(executor=executor, **AXES), pk.sweep(**AXES))
