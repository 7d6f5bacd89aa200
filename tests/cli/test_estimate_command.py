"""`peakline estimate`: what it prints, what it writes, how it exits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_command import Run

import peakline as pk

SMALL = "estimate llama-3.2-1b -d h100-sxm --train --seq 256 --recompute full"


# ---- the answer -----------------------------------------------------------------------------------------------------
def test_exit_code_0_says_that_it_fits(run: Run) -> None:
    done = run("estimate llama-3.2-1b -d h100-sxm --decode --context 1024")
    assert done.code == 0
    assert done.out.startswith("Fits: ")


def test_exit_code_1_says_that_it_does_not(run: Run) -> None:
    done = run("estimate llama-2-7b -d rtx-4090 --decode --batch 16 --context 4096")
    assert done.code == 1
    assert done.out.startswith("Does not fit: ")
    assert done.err == ""


def test_the_first_five_lines_say_fit_peak_dominant_time_and_bound(run: Run) -> None:
    lines = run(SMALL).out.splitlines()
    assert [line.split(":")[0] for line in lines[:5]] == ["Fits", "Peak", "Dominated by", "Time", "Bounded by"]
    assert lines[5] == ""


def test_the_first_line_sets_the_devices_bytes_against_its_capacity(run: Run) -> None:
    est = pk.estimate(pk.training_step("llama-3.2-1b", seq=256, recompute="full"), "h100-sxm")
    first = run(SMALL).out.splitlines()[0]
    assert f"{est.memory.device / 2**30:.2f} GiB of {est.memory.capacity / 2**30:.2f} GiB" in first


def test_what_is_piped_has_no_colour_and_no_shortened_names(run: Run) -> None:
    out = run(SMALL).out
    assert "\x1b" not in out
    assert "…" not in out
    assert "model.layers.mlp.down_proj.weight" in out


def test_a_terminal_gets_colour_unless_no_color_is_set(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes the captured output for a terminal
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "\x1b[" in run(SMALL).out
    monkeypatch.setenv("NO_COLOR", "1")
    plain = run(SMALL).out
    assert "\x1b[3" not in plain
    assert plain.startswith("\x1b[1mFits:") or plain.startswith("Fits:")


def test_every_operator_is_listed_on_demand(run: Run) -> None:
    assert "model.layers.self_attn.q_proj.linear" not in run(SMALL).out
    assert "model.layers.self_attn.q_proj.linear" in run(f"{SMALL} --breakdown").out


def test_shares_of_the_memory_by_role_add_up_to_one(run: Run) -> None:
    lines = run(SMALL).out.split("Memory at the live peak\n")[1].split("\n\n")[0].splitlines()[1:]
    shares = [float(word.rstrip("%")) for line in lines for word in line.split() if word.endswith("%")]
    assert sum(shares) == pytest.approx(100, abs=0.5)


# ---- for machines ---------------------------------------------------------------------------------------------------
def test_json_is_one_object_equal_to_the_estimates_own(run: Run) -> None:
    done = run(f"{SMALL} --json")
    est = pk.estimate(pk.training_step("llama-3.2-1b", seq=256, recompute="full"), "h100-sxm")
    assert json.loads(done.out) == est.to_dict()
    assert done.err == ""


def test_json_has_the_documented_keys_and_whole_bytes(run: Run) -> None:
    data = json.loads(run(f"{SMALL} --json").out)
    assert data["schema"] == "peakline.estimate/1"
    assert data["fits"] is True
    for name in ("live", "allocated", "reserved", "device", "capacity"):
        assert type(data["memory"][name]) is int
    assert sum(data["memory"]["by_role"].values()) == data["memory"]["live"]
    assert data["time"]["bound"] <= data["time"]["io"] <= data["time"]["tiled"]
    assert sum(data["time"]["limited_by"].values()) == pytest.approx(1)
    assert type(data["flops"]) is int
    for level, least in data["io_lower_bound"].items():
        assert type(least) is int
        assert least <= data["traffic"][level]


# ---- options --------------------------------------------------------------------------------------------------------
def test_a_phase_must_be_chosen_where_several_make_sense(run: Run) -> None:
    done = run("estimate llama-3.2-1b -d h100-sxm")
    assert done.code == 2
    assert "--train, --prefill, --decode, --infer" in done.err


def test_a_vision_model_is_run_forward_by_default(run: Run) -> None:
    assert json.loads(run("estimate resnet-50 -d h100-sxm --json").out)["workload"]["phase"] == "inference"


def test_options_reach_the_workload(run: Run) -> None:
    done = run(
        "estimate llama-3.2-1b -d h100-sxm --train --batch 2 --seq 128 --dtype fp32 --autocast bf16 --optimizer sgd "
        "--recompute selective --attention math --accumulation 3 --loss chunked --json"
    )
    workload = json.loads(done.out)["workload"]
    wanted = {"phase": "training", "batch": 2, "seq": 128, "dtype": "fp32", "autocast": "bf16", "optimizer": "sgd",
              "recompute": "selective", "attention": "math", "accumulation": 3, "loss": "chunked"}  # fmt: skip
    assert wanted.items() <= workload.items()


def test_a_field_of_the_configuration_can_be_overridden(run: Run) -> None:
    whole = json.loads(run("estimate llama-3.2-1b -d h100-sxm --prefill --json").out)["parameters"]
    less = json.loads(run("estimate llama-3.2-1b -d h100-sxm --prefill --override layers=1 --json").out)["parameters"]
    assert 0 < less < whole


def test_a_device_can_be_varied(run: Run) -> None:
    smaller = run("estimate llama-3.2-1b -d h100-sxm --set memory.hbm.capacity=1GB --prefill --json")
    assert smaller.code == 1
    assert json.loads(smaller.out)["memory"]["capacity"] == 1_000_000_000


def test_allocator_settings_are_read_as_pytorch_writes_them(run: Run) -> None:
    one = json.loads(run(f"{SMALL} --json").out)["memory"]
    other = json.loads(run(f"{SMALL} --json --allocator expandable_segments:True").out)["memory"]
    assert one["live"] == other["live"]
    assert one["reserved"] != other["reserved"]


def test_replaying_a_graph_costs_less_where_the_host_was_measured(run: Run) -> None:
    command = "estimate llama-3.2-1b -d arc-pro-b60 --decode --context 128 --json"
    slow, fast = (json.loads(run(c).out)["time"]["tiled"] for c in (command, f"{command} --cuda-graph"))
    assert fast < slow


# ---- files ----------------------------------------------------------------------------------------------------------
def test_plot_snapshot_and_trace_are_written_beside_the_answer(run: Run, tmp_path: Path) -> None:
    plot, snapshot, trace = (tmp_path / name for name in ("memory.png", "memory.pickle", "trace.json"))
    done = run(f"{SMALL} --plot {plot} --snapshot {snapshot} --trace {trace}")
    assert (done.code, done.err) == (0, "")
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert snapshot.read_bytes().startswith(b"\x80\x04")
    assert json.loads(trace.read_text())["traceEvents"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["memory.pickle", "memory.png", "trace.json"]


@pytest.mark.parametrize("option", ["--plot", "--snapshot", "--trace"])
def test_a_file_that_cannot_be_written_is_refused_before_the_answer(run: Run, tmp_path: Path, option: str) -> None:
    done = run(f"{SMALL} {option} {tmp_path}/nowhere/file.png")
    assert (done.code, done.out) == (2, "")
    assert "nowhere" in done.err
    folder = run(f"{SMALL} {option} {tmp_path}")
    assert (folder.code, folder.out) == (2, "")


def test_a_plot_of_unknown_kind_is_refused(run: Run, tmp_path: Path) -> None:
    done = run(f"{SMALL} --plot {tmp_path}/memory.bmp")
    assert (done.code, done.out) == (2, "")
    assert ".png, .svg, .pdf" in done.err


def test_a_snapshot_of_a_device_without_pytorchs_allocator_is_refused(run: Run, tmp_path: Path) -> None:
    done = run(f"estimate mobilenet-v2 -d stm32h743 --dtype int8 --snapshot {tmp_path}/memory.pickle")
    assert (done.code, done.out) == (2, "")
    assert "mcu" in done.err


# ---- as a process ---------------------------------------------------------------------------------------------------
def _process(*arguments: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, **variables}
    return subprocess.run([sys.executable, "-m", "peakline", *arguments], capture_output=True, env=environment)


def test_a_reader_that_leaves_early_is_no_error() -> None:
    shell = f"set -o pipefail; {sys.executable} -m peakline devices --json | head -c 10"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.returncode in (0, 141)


def test_an_output_without_unicode_still_gets_the_answer() -> None:
    done = _process("estimate", "resnet-50", "-d", "h100-sxm", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"Fits: ")


def test_help_comes_at_once() -> None:
    code = (
        "import time; start = time.process_time()\n"
        "from peakline.cli import main\nmain(['--help'])\nprint(time.process_time() - start)"
    )
    times = [float(subprocess.check_output([sys.executable, "-c", code]).split()[-1]) for _ in range(3)]
    assert min(times) < 0.5


def test_files_are_written_even_if_the_reader_of_the_answer_leaves_early(tmp_path: Path) -> None:
    shell = f"{sys.executable} -m peakline {SMALL} --breakdown --trace {tmp_path}/trace.json | head -c 1"
    assert subprocess.check_output(["bash", "-c", shell]) == b"F"
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
