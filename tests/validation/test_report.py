"""The validation report: one Markdown page from whatever measurements are at hand."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import peakline.validation.report as report_module
from peakline.validation.report import report, write_report

SHARED = {
    "task": "training", "dtype": "fp32", "micro_batch_per_gpu": "8", "seq_or_image": "224", "optimizer": "Adam",
    "activation_checkpointing": "none", "sharding_or_parallelism": "none", "offload": "none",
    "attention_and_other_config": "", "gpu": "A100-40GB", "n_gpus": "1", "metric": "nvidia-smi",
    "measured_value_as_published": "1000", "unit": "MiB", "source": "made up",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [{"id": "GMN-1", "model": "ResNet-18"} | SHARED, {"id": "ZZZ-1", "model": "Unknown"} | SHARED]
    pd.DataFrame(rows).to_csv(tmp_path / "memory_points_two.csv", index=False)
    return tmp_path


def test_the_report_lists_predicted_rows_and_the_others_with_their_reason(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_module, "_parameters", lambda _: "parameters here")
    text = report(folder)
    assert "1 of 2 published measurements" in text
    assert "| GMN-1 | ResNet-18, training | A100-40GB | device | 1,000.0 |" in text
    assert "| no rule for this source | ZZZ-1 |" in text
    assert "No measured kernel tables were at hand." in text


def test_without_measurements_the_report_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_module, "_parameters", lambda _: "parameters here")
    assert "`memory_points*.csv` was not at hand." in report(None)


def test_a_report_is_written_whole(tmp_path: Path) -> None:
    target = tmp_path / "validation.md"
    write_report(target, "# Validation\n")
    assert target.read_text() == "# Validation\n"
    assert list(tmp_path.iterdir()) == [target]
