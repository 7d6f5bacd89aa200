"""The same sweep on a real Dask scheduler and two worker processes: one may die, another version may not take part."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import peakline as pk

pytest.importorskip("distributed", reason="needs dask[distributed]")
pytest.importorskip("pyarrow.parquet", reason="Parquet needs pyarrow")

AXES: dict[str, Any] = {
    "model": ["gpt2", "llama-3.2-1b"], "device": ["h100-sxm", "a30"], "phase": "decode", "batch": list(range(1, 31)),
    "context": list(range(1, 11)), "replay": False, "progress": False,
}  # fmt: skip

SLOW = """
import time
import peakline.sweeping.evaluate as module
import peakline.sweeping.parts as parts
once = module.evaluate
def slow(part):
    time.sleep(0.1)
    return once(part)
parts.evaluate = slow
"""
OTHER_VERSION = "import peakline\npeakline.__version__ = '0.0.9'\n"


class Cluster:
    """A scheduler on loopback and the workers started with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "scheduler.json"
        self.processes = [self._start("dask_scheduler", "--port", "0", "--host", "127.0.0.1", "--no-dashboard")]

    def _start(self, module: str, *options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.{module}", "--scheduler-file", str(self.file), *options]
        return subprocess.Popen(command, cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def worker(self, preload: str) -> subprocess.Popen[bytes]:
        script = self.folder / f"preload{len(self.processes)}.py"
        script.write_text(preload)
        options = ("--nthreads", "1", "--no-nanny", "--no-dashboard", "--preload", str(script), "--memory-limit", "0")
        self.processes.append(self._start("dask_worker", *options))
        return self.processes[-1]

    def close(self) -> None:
        for process in reversed(self.processes):
            process.kill()
            process.wait()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    started = Cluster(tmp_path)
    try:
        yield started
    finally:
        started.close()


def _client(cluster: Cluster, workers: int) -> Any:
    from dask.distributed import Client

    deadline = time.monotonic() + 60
    while not cluster.file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    client = Client(scheduler_file=str(cluster.file), timeout="60s")
    client.wait_for_workers(workers, timeout=60)
    return client


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_worker_dies_and_the_rows_are_those_of_one_machine(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peakline.sweeping.plan.PART_ROWS", 50)
    first, _ = cluster.worker(SLOW), cluster.worker(SLOW)
    expected = pk.sweep(**AXES)
    out = tmp_path / "parts"

    def kill_midway() -> None:
        while len(list(out.glob("part-*.parquet"))) < 4:
            time.sleep(0.01)
        first.send_signal(signal.SIGKILL)

    killer = threading.Thread(target=kill_midway, daemon=True)
    with _client(cluster, 2) as client:
        killer.start()
        written = pk.sweep_to(out, executor=client, **AXES)
        killer.join(timeout=60)
        assert first.poll() == -signal.SIGKILL
        assert written.rows == len(expected) == 1200
        assert written.computed == written.parts == 24
        _assert_same(written.read(), expected)
        gathered = pk.sweep(executor=client, **AXES)
        pd.testing.assert_frame_equal(gathered, expected, check_categorical=False)
        back = pk.sweep_to(tmp_path / "gathered.parquet", executor=client, gather=True, **AXES)
        _assert_same(back.read(), expected)

        cluster.worker(OTHER_VERSION)
        client.wait_for_workers(2, timeout=60)
        with pytest.raises(ValueError, match=rf"runs peakline 0\.0\.9, and this is {pk.__version__}"):
            pk.sweep(executor=client, **AXES)


def _assert_same(written: pd.DataFrame, expected: pd.DataFrame) -> None:
    for name in expected.columns:
        assert written[name].isna().tolist() == expected[name].isna().tolist(), name
        assert written[name].dropna().tolist() == expected[name].dropna().tolist(), name


def test_a_part_of_another_version_is_refused_by_the_worker_that_gets_it() -> None:
    from dataclasses import replace

    from peakline.sweeping.axes import plan_of
    from peakline.sweeping.evaluate import WorkerVersionError, evaluate

    part = plan_of("gpt2", device="a30", phase="decode", batch=1, context=8).part(0)
    with pytest.raises(WorkerVersionError, match=rf"0\.0\.9, and this worker runs {pk.__version__}"):
        evaluate(replace(part, version="0.0.9"))


def test_an_address_where_nobody_answers_is_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from peakline.cli import main

    document = tmp_path / "sweep.yaml"
    document.write_text("{model: gpt2, phase: decode, device: a30, batch: 1, context: 8}")
    arguments = ["sweep", str(document), "--out", str(tmp_path / "r.parquet"), "--dask", "tcp://127.0.0.1:1"]
    assert main([*arguments, "--workers", "2"]) == 2
    assert "--dask, --workers: choose one" in capsys.readouterr().err
