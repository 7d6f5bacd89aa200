"""`peakline plan` answers with words, JSON and files, or with one line that says what is wrong."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import pytest
from cli_command import Run

from peakline.hardware import device

SIZES = "vit-b-16 --device a100-80gb --batch 16 --dtype bf16 --override layers=4"
TORCH = importlib.util.find_spec("torch") is not None
PROGRAM = """
import torch
from torch import nn


def make():
    torch.manual_seed(0)
    parts = [nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)) for _ in range(4)]
    return nn.Sequential(*parts), (torch.randn(1024, 64),)
"""
FINE = "--budget 905MiB"


def test_it_says_whether_it_fits_how_long_it_takes_and_how_good_that_is(run: Run) -> None:
    done = run(f"plan {SIZES} {FINE}")
    assert done.code == 0
    assert [line.partition(":")[0] for line in done.out.splitlines()[:5]] == [
        "Fits", "Time", "Proof", "Addresses", "Compute",
    ]  # fmt: skip
    for table in ("Tensors that do not simply stay", "Streams and links", "Held beside the device at most"):
        assert table in done.out
    assert "host (pinned)" in done.out


def test_every_output_is_of_the_same_plan(run: Run, tmp_path: Path) -> None:
    out, trace, plot = tmp_path / "plan.json", tmp_path / "trace.json", tmp_path / "plot.png"
    done = run(*f"plan {SIZES} {FINE} --json --out {out} --trace {trace} --plot {plot}".split())
    assert done.code == 0
    data = json.loads(done.out)
    assert {**json.loads(out.read_text()), "certificate": data["certificate"]} == data
    assert plot.read_bytes().startswith(b"\x89PNG")
    events = json.loads(trace.read_text())["traceEvents"]
    assert data["peaks_bytes"]["host"] == max(
        e["args"]["bytes"] for e in events if e["ph"] == "C" and e["name"] == "host"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.json", "plot.png", "trace.json"]


def test_the_trace_has_tracks_without_overlap_and_counters_in_order(run: Run, tmp_path: Path) -> None:
    done = run(f"plan {SIZES} {FINE} --trace {tmp_path / 't.json'} --json")
    data, events = json.loads(done.out), json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert next(iter(names.values())) == "compute"
    spans, counters = defaultdict(list), defaultdict(list)
    for event in events:
        assert event["pid"] == 1
        if event["ph"] == "X":
            spans[event["tid"]].append((event["ts"], event["dur"]))
        elif event["ph"] == "C":
            counters[event["name"]].append((event["ts"], event["args"]["bytes"]))
        else:
            assert event["ph"] == "M"
    assert set(spans) == set(names)
    for track in spans.values():
        assert all(duration >= 0 for _, duration in track)
        track.sort()
        assert all(start + duration <= later + 1e-6 for (start, duration), (later, _) in pairwise(track))
    for tier, points in counters.items():
        assert points == sorted(points)
        assert min(held for _, held in points) >= 0
        assert max(held for _, held in points) == data["peaks_bytes"][tier]
    ends = max(start + duration for track in spans.values() for start, duration in track)
    assert ends == pytest.approx(1e6 * data["seconds"])


def test_what_a_stream_waited_for_is_in_the_trace(run: Run, tmp_path: Path) -> None:
    done = run(f"plan {SIZES} {FINE} --allow swap --trace {tmp_path / 't.json'} --json")
    stalls = json.loads(done.out)["stalls"]
    found: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    for event in events:
        for cause, waited in event["args"].get("waited", {}).items():
            found[names[event["tid"]]][cause] += waited / 1e6
    assert {stream: pytest.approx(dict(causes)) for stream, causes in found.items()} == {
        stream: causes for stream, causes in stalls.items() if causes
    }


def test_the_curve_is_printed_budget_by_budget_and_kept_whole(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "curve.json"
    done = run(f"plan {SIZES} --allow recompute --curve 3 --out {out}")
    assert done.code == 0
    assert len(done.out.splitlines()) == 4
    rows = json.loads(out.read_text())
    assert len(rows) == 3


# ---- your own programs ----------------------------------------------------------------------------------------------
@pytest.mark.skipif(not TORCH, reason="torch is not installed")
def test_a_program_of_ones_own_is_planned_and_carried_out_from_the_file(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    import peakline as pk

    (tmp_path / "train.py").write_text(PROGRAM)
    monkeypatch.chdir(tmp_path)
    done = run("plan train.py:make --device xeon-8480plus --budget 9MiB --allow recompute --out plan.json")
    assert done.code == 0, done.err + done.out
    space: dict[str, object] = {}
    exec(PROGRAM, space)
    module, (x,) = space["make"]()  # type: ignore[operator]
    expected = torch.autograd.grad(module(x).sum(), list(module.parameters()))
    with pk.read_plan("plan.json").apply(module):
        found = torch.autograd.grad(module(x).sum(), list(module.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.skipif(not TORCH, reason="torch is not installed")
@pytest.mark.parametrize("optimizer", ["adamw-fused", "sgd-fused"])
def test_an_optimizer_in_one_pass_may_be_named_for_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    (tmp_path / "train.py").write_text(PROGRAM)
    monkeypatch.chdir(tmp_path)
    asked = "plan train.py:make --device rtx-3060-12gb --allow recompute,offload-optimizer --objective memory"
    done = run(f"{asked} --optimizer {optimizer}")
    assert done.code == 0, done.err
    assert run(f"{asked} --optimizer adamw").err.count("fused=True") == 1


# ---- bad input ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--budget 4XB", "budget: '4XB'"),
        ("--budget -4GiB", "budget: '-4GiB'"),
        ("--budget 0", "budget: 0 is not a number of bytes above 0"),
        ("--budget 100GiB", "budget: 100 GiB is more than a100-80gb has"),
        ("--allow swap,teleport", "allow: 'teleport' is unknown; accepted: recompute, swap"),
        ("--allow ,", "allow: nothing is allowed"),
        ("--objective speed", "objective: 'speed' is unknown; accepted: time, memory"),
        ("--objective memory --budget 1GiB", "leave out --budget and --curve"),
        ("--curve 3 --budget 1GiB", "--curve plans at many budgets; leave out --budget"),
        ("--curve 1", "--curve: 1 budgets; accepted: 2 to 1000"),
        ("--slowdown 1.1", "slowdown: bounds the time where memory is the objective"),
        ("--objective memory --slowdown nan", "slowdown: nan is not a number of at least 1"),
        ("--fit snugly", "fit: 'snugly' is unknown; accepted: allocated, reserved"),
        ("--quantise int3", "quantise: 'int3' is unknown"),
        ("--ssd 1TB --ssd-device h100-sxm", "h100-sxm is a gpu, not a drive"),
        ("--ssd 80TB", "ssd: 72.76 TiB is more than samsung-pm1743-7.68tb holds"),
        ("--host-device optane-p5800x-1.6tb", "is of kind ssd, not host memory"),
        ("--plot picture.xyz", "a plot is written as .png, .svg, .pdf"),
        ("--out /nowhere/plan.json", "there is no folder '/nowhere'"),
        ("--batch 0", "batch: must be at least 1"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run: Run, options: str, words: str) -> None:
    done = run(f"plan {SIZES} {options}")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("peakline: error: ")
    assert done.err.count("\n") == 1
    assert words in done.err


def test_a_device_without_a_link_is_bad_input_where_something_is_to_be_moved(run: Run) -> None:
    import peakline as pk

    bare = next(n for n in pk.devices("gpu") if "host" not in pk.device(n).links)
    done = run(f"plan vit-b-16 --device {bare} --batch 1 --dtype fp16 --override layers=2")
    assert done.code == 2
    assert "has no links.host.bandwidth, so nothing can be moved off it" in done.err


@pytest.mark.parametrize("json_", [False, True])
def test_below_the_floor_the_answer_is_no_with_the_floor_and_no_file(run: Run, tmp_path: Path, json_: bool) -> None:
    done = run(f"plan {SIZES} --allow recompute --budget 500MiB --out {tmp_path / 'p.json'}" + " --json" * json_)
    assert (done.code, done.err) == (1, "")
    assert list(tmp_path.iterdir()) == []
    if json_:
        data = json.loads(done.out)
        assert data["fits"] is False
        assert data["floor_bytes"] > 500 << 20
    else:
        assert "nothing fits 500 MiB; the least that would is" in done.out
        assert "; at its peak " in done.out


def test_a_drive_that_the_plan_wears_out_is_told_how_fast(run: Run) -> None:
    done = run(f"plan {SIZES} {FINE} --allow swap --host 0 --ssd 1TB --ssd-device samsung-990-pro-2tb")
    assert done.code == 0
    assert "bytes to the drive: its rated endurance lasts" in done.out


def test_a_curve_ends_at_the_bytes_of_the_device(run: Run) -> None:
    sizes = "--batch 768 --dtype bf16 --override layers=4"
    done = run(f"plan vit-b-16 --device rtx-3060-12gb {sizes} --allow recompute --curve 2 --json")
    assert done.code == 0, done.err
    largest = max(point["budget_bytes"] for point in json.loads(done.out))
    assert largest == device("rtx-3060-12gb").main.capacity


@pytest.mark.skipif(os.name == "nt", reason="signals of another kind")
def test_ctrl_c_leaves_nothing_half_written(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "peakline", *f"plan llama-3.1-8b --device a100-80gb --batch 1 --seq 8192 "
               f"--dtype bf16 --curve 50 --out {tmp_path / 'p.json'} --plot {tmp_path / 'p.png'}".split()]  # fmt: skip
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )  # fmt: skip
    time.sleep(4)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130, errors
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []
