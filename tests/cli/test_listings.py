"""`peakline devices` and `peakline models`."""

from __future__ import annotations

import json

from cli_command import Run

import peakline as pk


def test_devices_lists_the_catalogue(run: Run) -> None:
    done = run("devices")
    assert done.code == 0
    assert {line.split()[0] for line in done.out.splitlines()[2:]} == set(pk.devices())


def test_devices_of_one_kind(run: Run) -> None:
    entries = json.loads(run("devices --kind mcu --json").out)
    assert {entry["kind"] for entry in entries} == {"mcu"}
    assert [entry["name"] for entry in entries] == pk.devices("mcu")


def test_a_device_is_drawn_with_its_levels(run: Run) -> None:
    out = run("devices h100-sxm").out
    for word in ("shared", "l2", "hbm", "3.352 TB/s", "NVLink"):
        assert word in out


def test_a_device_in_json_can_be_read_back(run: Run) -> None:
    assert pk.Device.from_json(run("devices h100-sxm --json").out) == pk.device("h100-sxm")


def test_sources_are_shown_on_demand(run: Run) -> None:
    assert "sources" not in run("devices stm32h743").out
    assert "DS12110" in run("devices stm32h743 --sources").out


def test_models_lists_the_catalogue(run: Run) -> None:
    entries = json.loads(run("models --json").out)
    assert [entry["name"] for entry in entries] == list(pk.model_names())
    assert len(entries) >= 40


def test_parameters_of_a_model_are_exact(run: Run) -> None:
    entry = json.loads(run("models llama-3.1-8b --json").out)
    assert entry["parameters"] == 8_030_261_248  # meta-llama/Llama-3.1-8B, model.safetensors.index.json
    assert "8,030,261,248 parameters" in run("models llama-3.1-8b").out


def test_parameters_agree_with_the_published_ones_wherever_there_are_any(run: Run) -> None:
    entries = json.loads(run("models --json").out)
    wrong = {e["name"]: (e["parameters"], e["published_parameters"]) for e in entries
             if e["published_parameters"] not in (None, e["parameters"])}  # fmt: skip
    assert wrong == {}


def test_the_version_is_the_packages(run: Run) -> None:
    assert run("--version").out.strip() == f"peakline {pk.__version__}"


def test_help_names_the_commands_and_exit_codes(run: Run) -> None:
    for command in ("--help", "-h"):
        done = run(command)
        assert done.code == 0
        for word in ("estimate", "devices", "models", "Exit codes"):
            assert word in done.out
