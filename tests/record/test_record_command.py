"""`peakline record` on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_command import Run

pytest.importorskip("torch", reason="recording needs torch")


def test_the_cases_can_be_listed_without_measuring_any(run: Run) -> None:
    found = run("record memory --device cpu --list --only resnet50-small")
    assert found.code == 0
    assert found.out.splitlines() == ["memory\tresnet50-small", "memory\tresnet50-small-inference"]


def test_a_large_case_runs_on_a_cpu_only_if_its_whole_name_is_given(run: Run) -> None:
    part = run("record memory --device cpu --list --only llama,checkpointed").out
    assert "llama-tiny-checkpointed" in part
    assert "llama-7b" not in part
    assert run("record memory --device cpu --list --only gpt2-b8").out == "memory\tgpt2-b8\n"


def test_some_operators_are_recorded_and_found_again(run: Run, tmp_path: Path) -> None:
    from peakline.record import read_trace

    arguments = [
        "record",
        "operators",
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "t"),
        "--only",
        "copy_uint8_bytes16384*",
    ]
    first = run(*arguments)
    assert (first.code, first.out) == (0, f"{tmp_path / 't'}: 1 recorded\n")
    assert first.err == "operators: 1 cases\n"
    assert run(*arguments).out == f"{tmp_path / 't'}: 0 recorded, 1 were there\n"
    (row,) = read_trace(tmp_path / "t").operators
    assert row.case.sizes == {"bytes": 16384}
    assert row.forward is not None


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("record nothing --out x", "SUITE: 'nothing' is unknown; accepted: memory, operators, steps, kernels, all"),
        ("record memory --device cpu", "--out: missing"),
        ("record memory --device cpu --out x --only xyz", "--only: no case matches xyz"),
        ("record memory --device cpu --list --only xyz", "--only: no case matches xyz"),
        ("record memory --device gpu --out x", "--device: 'gpu' is unknown; accepted: auto, cuda, cpu"),
        ("record memory --device cpu --out x --minutes 0", "--minutes: must be above 0"),
        ("record memory --device cpu --out x --seed -1", "--seed: must be at least 0"),
        ("record memory --device cpu --out x --max-bytes 0", "--max-bytes: must be at least 1"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    run: Run,
    command: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    found = run(command)
    assert found.code == 2
    assert found.err.startswith("peakline: error: ")
    assert said in found.err
    assert found.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_else_is_left_alone(run: Run, tmp_path: Path) -> None:
    (tmp_path / "operators.jsonl").write_text("my notes\n")
    found = run("record", "operators", "--device", "cpu", "--out", str(tmp_path), "--only", "copy_uint8_bytes16384*")
    assert found.code == 2
    assert "not a trace" in found.err
    assert (tmp_path / "operators.jsonl").read_text() == "my notes\n"


def test_without_a_gpu_asking_for_one_says_what_is_accepted(run: Run) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert "torch finds no CUDA GPU here" in run("record memory --device cuda --list").err
