"""Bad input gives one clear line on stderr, nothing on stdout, and exit code 2."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from cli_command import Run

import peakline as pk

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096,
    "intermediate_size": 11008, "num_hidden_layers": 2, "num_attention_heads": 32, "num_key_value_heads": 32,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
}  # fmt: skip

BAD_COMMANDS = {
    "an unknown model": ("estimate llama-3.1-8x -d h100-sxm --train", "llama-3.1-8b"),
    "an unknown device": ("estimate resnet-50 -d h100-smx", "h100-sxm"),
    "an unknown option": ("estimate resnet-50 -d h100-sxm --optimizr adamw", "--optimizer"),
    "an unknown command": ("estimat resnet-50 -d h100-sxm", "estimat"),
    "no device": ("estimate resnet-50", "--device"),
    "two phases": ("estimate llama-3.1-8b -d h100-sxm --train --prefill", "--train and --prefill"),
    "a phase the model cannot run": ("estimate resnet-50 -d h100-sxm --decode", "inference"),
    "a training option without training": ("estimate resnet-50 -d h100-sxm --optimizer adamw", "--optimizer"),
    "a sequence for an image model": ("estimate resnet-50 -d h100-sxm --seq 12", "seq"),
    "a negative batch": ("estimate resnet-50 -d h100-sxm --batch -1", "at least 1, not -1"),
    "an empty batch": ("estimate resnet-50 -d h100-sxm --batch 0", "at least 1, not 0"),
    "half an image": ("estimate resnet-50 -d h100-sxm --batch 1.5", "--batch"),
    "a batch in words": ("estimate resnet-50 -d h100-sxm --batch many", "--batch"),
    "a negative sequence": ("estimate llama-3.1-8b -d h100-sxm --train --seq -8", "seq"),
    "an absurd batch": (f"estimate resnet-50 -d h100-sxm --batch {10**24}", "batch"),
    "sizes beyond counting": (f"estimate llama-3.1-8b -d h100-sxm --train --seq {2**40} --batch {2**40}", "too large"),
    "an absurd image": (f"estimate resnet-50 -d h100-sxm --image {10**11}", "too large"),
    "an absurd depth": ("estimate llama-3.1-8b -d h100-sxm --train --override layers=1000000000", "layers"),
    "an unknown number format": ("estimate resnet-50 -d h100-sxm --dtype bf17", "bf16"),
    "a format the GPU lacks": ("estimate llama-3.1-8b -d v100-16gb --prefill --dtype bf16", "fp16"),
    "a format the accelerator lacks": ("estimate llama-3.1-8b -d a100-80gb --prefill --dtype fp8", "bf16"),
    "a format the microcontroller lacks": ("estimate mobilenet-v2 -d stm32h743 --dtype bf16", "int8"),
    "training in integers": ("estimate resnet-50 -d h100-sxm --train --dtype int8", "gradients"),
    "an unknown optimizer": ("estimate resnet-50 -d h100-sxm --train --optimizer adamww", "adamw"),
    "an unknown recomputation": ("estimate llama-3.1-8b -d h100-sxm --train --recompute some", "selective"),
    "an unknown allocator setting": ("estimate resnet-50 -d h100-sxm --allocator expandable:True", "expandable"),
    "a variant of no field": ("estimate resnet-50 -d h100-sxm --set memory.hbm.capacty=1GB", "memory.hbm.capacity"),
    "a variant without a value": ("estimate resnet-50 -d h100-sxm --set memory.hbm.capacity", "--set"),
    "a variant in wrong units": ("estimate resnet-50 -d h100-sxm --set memory.hbm.capacity=3TB/s", "bandwidth"),
    "an override of no field": ("estimate llama-3.1-8b -d h100-sxm --train --override layer=2", "layers"),
    "an override of the wrong type": ("estimate resnet-50 -d h100-sxm --override layers=2", "layers"),
    "heads that do not divide": ("estimate llama-3.1-8b -d h100-sxm --train --override kv_heads=5", "5"),
    "a device that does not compute": ("estimate resnet-50 -d ddr5-4800", "ddr5-4800"),
    "a device without memory": ("estimate resnet-50 -d nvlink-4", "nvlink-4"),
    "an unknown kind of device": ("devices --kind cluster", "gpu"),
    "an unknown device to describe": ("devices h100-smx", "h100-sxm"),
    "an unknown model to describe": ("models llama-3.1-8x", "llama-3.1-8b"),
}  # fmt: skip


def _is_one_clear_line(done: Any, *words: str) -> None:
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith("peakline: error: ")
    assert done.err.count("\n") == 1
    assert "unexpected" not in done.err
    assert "Traceback" not in done.err
    for word in words:
        assert word in done.err


@pytest.mark.parametrize("what", BAD_COMMANDS)
def test_bad_command(run: Run, what: str) -> None:
    command, hint = BAD_COMMANDS[what]
    _is_one_clear_line(run(command), hint)


# ---- model files ----------------------------------------------------------------------------------------------------
BAD_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "a missing field": ({"num_hidden_layers": ...}, "num_hidden_layers"),
    "a null field": ({"hidden_size": None}, "hidden_size"),
    "a negative size": ({"hidden_size": -4096}, "-4096"),
    "a size in words": ({"hidden_size": "large"}, "'large'"),
    "a fraction of a size": ({"hidden_size": 4096.5}, "4096.5"),
    "a truth as a size": ({"hidden_size": True}, "True"),
    "heads that do not divide the width": ({"num_attention_heads": 33}, "33"),
    "key-value heads that do not divide the heads": ({"num_key_value_heads": 5}, "5"),
    "an unknown architecture": ({"architectures": ["OwlForCausalLM"], "model_type": "owl"}, "LlamaForCausalLM"),
    "a billion layers": ({"num_hidden_layers": 10**9}, "layers"),
}


@pytest.mark.parametrize("what", BAD_CONFIGS)
def test_config_json_with(run: Run, tmp_path: Path, what: str) -> None:
    change, hint = BAD_CONFIGS[what]
    config = {key: value for key, value in {**LLAMA, **change}.items() if value is not ...}
    (tmp_path / "config.json").write_text(json.dumps(config))
    _is_one_clear_line(run("estimate", str(tmp_path), "-d", "h100-sxm", "--prefill"), hint)


def test_the_configuration_that_the_bad_ones_are_made_of_is_good(run: Run, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    assert run("estimate", str(tmp_path), "-d", "h100-sxm", "--prefill").code == 0
    assert run("estimate", str(tmp_path / "config.json"), "-d", "h100-sxm", "--prefill").code == 0


def test_a_sequence_past_the_models_limit_warns_and_goes_on(run: Run) -> None:
    done = run("estimate llama-2-7b -d h100-sxm --prefill --seq 5000")
    assert done.code == 0
    assert "4096" in done.out.split("Notes\n")[1]


# ---- files that are no files of ours --------------------------------------------------------------------------------
CONTENTS = {
    "empty": b"",
    "binary": bytes(range(256)) * 20,
    "a list": b"[1, 2, 3]",
    "a text": b'"llama"',
    "cut short": b'{"model_type": "llama", ',
    "too deep": b"[" * 100_000,
}


@pytest.mark.parametrize("what", CONTENTS)
def test_a_model_file_that_is(run: Run, tmp_path: Path, what: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(CONTENTS[what])
    _is_one_clear_line(run("estimate", str(path), "-d", "h100-sxm", "--prefill"), "config.json")


@pytest.mark.parametrize("what", CONTENTS)
def test_a_device_file_that_is(run: Run, tmp_path: Path, what: str) -> None:
    path = tmp_path / "device.yaml"
    path.write_bytes(CONTENTS[what])
    _is_one_clear_line(run("estimate", "resnet-50", "-d", str(path)), "device.yaml")
    _is_one_clear_line(run("devices", str(path)), "device.yaml")


@pytest.mark.parametrize("what", CONTENTS)
def test_a_problem_a_sweep_or_a_plan_in_a_file_that_is(run: Run, tmp_path: Path, what: str) -> None:
    for name, command in (("problem.json", "schedule {} --capacity 8"), ("sweep.yaml", "sweep {} --out rows.parquet")):
        path = tmp_path / name
        path.write_bytes(CONTENTS[what])
        _is_one_clear_line(run(*command.format(path).split()), name)
    with pytest.raises(ValueError, match=r"problem\.json: .*accepted: "):
        pk.read_plan(tmp_path / "problem.json")


@pytest.mark.parametrize("name", ["config.json", "device.yaml"])
def test_a_huge_file_is_refused_unread(run: Run, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with path.open("wb") as file:
        os.truncate(file.fileno(), 20 << 30)  # a hole: takes no room on the disk
    model, device = (str(path), "h100-sxm") if name == "config.json" else ("resnet-50", str(path))
    _is_one_clear_line(run("estimate", model, "-d", device), name)


def test_a_folder_is_neither_a_model_nor_a_device(run: Run, tmp_path: Path) -> None:
    _is_one_clear_line(run("estimate", str(tmp_path), "-d", "h100-sxm", "--prefill"), "config.json")
    _is_one_clear_line(run("estimate", "resnet-50", "-d", str(tmp_path)), tmp_path.name)


def test_a_file_that_is_not_there(run: Run, tmp_path: Path) -> None:
    _is_one_clear_line(run("estimate", str(tmp_path / "nothing.json"), "-d", "h100-sxm", "--prefill"), "nothing.json")
    _is_one_clear_line(run("estimate", "resnet-50", "-d", str(tmp_path / "nothing.yaml")), "nothing.yaml")


def test_a_device_file_with_wrong_units_reports_every_fault_on_the_line(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "schema: peakline.device/1\nname: mine\nkind: gpu\nsources: {me: measured}\nmain: hbm\n"
        "memory:\n  hbm: {capacity: 80 TB/s, bandwidth: 3 parsecs, source: me}\n"
        "compute: {units: -4, matrix: {bf16: 100 GB}, source: me}\n"
    )
    _is_one_clear_line(
        run("estimate", "resnet-50", "-d", str(path)),
        "memory.hbm.capacity", "memory.hbm.bandwidth", "compute.units", "compute.matrix.bf16",
    )  # fmt: skip


# ---- faults of ours -------------------------------------------------------------------------------------------------
def test_an_unexpected_fault_is_one_line_too_and_debug_shows_where(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no\nluck")

    monkeypatch.setattr("peakline.hardware.devices", broken)
    done = run("devices")
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert "RuntimeError" in done.err
    assert "Traceback" in run("devices --debug").err


def test_an_interrupt_is_reported_as_shells_do(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("peakline.hardware.devices", interrupted)
    done = run("devices")
    assert (done.code, done.out, done.err) == (130, "", "")
