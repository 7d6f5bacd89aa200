"""Published measurements of peak memory beside predictions, through the loader that `peakline validate` uses."""

from __future__ import annotations

import functools
from pathlib import Path

import pandas as pd
import pytest

from peakline.validation.memory_points import memory_points, tables

REFERENCE = Path(__file__).parents[2].parent / "shared" / "reference"
TABLE = REFERENCE / "memory_points_dev.csv"
measured = pytest.mark.skipif(not TABLE.exists(), reason="the table of published measurements is not at hand")


@functools.cache
def predictions() -> pd.DataFrame:
    return memory_points(TABLE)


def rows(*sources: str) -> pd.DataFrame:
    table = predictions()
    return table[table["id"].str.startswith(sources) & table["error"].notna()].astype({"error": float})


@measured
@pytest.mark.parametrize("source", ["LIG", "CCE"])
def test_single_operators_are_predicted_to_the_byte_or_nearly(source: str) -> None:
    errors = rows(source)["error"].abs()
    assert len(errors) >= 3
    assert errors.max() < 0.002
    assert (errors < 2e-6).mean() >= 0.6  # the table rounds to 2⁻⁷ MiB


@measured
def test_lit_gpt_rows_are_within_one_percent() -> None:
    assert rows("LIT")["error"].abs().max() < 0.01


@measured
@pytest.mark.parametrize(("source", "worst"), [("HFB", 0.05), ("TAO", 0.02), ("MEG", 0.04), ("XMM", 0.06)])
def test_whole_training_steps_stay_within(source: str, worst: float) -> None:
    errors = rows(source)["error"].abs()
    assert len(errors) >= 2
    assert errors.max() < worst


@measured
def test_the_median_error_of_all_predicted_rows_is_below_five_percent() -> None:
    errors = rows("")["error"].abs()
    assert len(errors) >= 45
    assert errors.median() < 0.05


@measured
def test_every_row_has_a_prediction_or_a_reason() -> None:
    table = predictions()
    published = pd.read_csv(TABLE, dtype=str)["id"]
    assert list(table["id"]) == list(published)
    assert (table["error"].notna() ^ table["reason"].notna()).all()
    assert not table["reason"].fillna("").str.startswith("refused").any()


COLUMNS = {
    "id": "GMN-900", "model": "ResNet-18", "task": "training", "dtype": "fp32", "micro_batch_per_gpu": "8",
    "seq_or_image": "224", "optimizer": "Adam", "activation_checkpointing": "none", "sharding_or_parallelism": "none",
    "offload": "none", "attention_and_other_config": "", "gpu": "A100-40GB", "n_gpus": "1", "metric": "nvidia-smi",
    "measured_value_as_published": "3000", "unit": "MiB", "source": "made up",
}  # fmt: skip


def one_row(folder: Path, **changed: str) -> pd.Series:
    pd.DataFrame([COLUMNS | changed]).to_csv(folder / "memory_points_made_up.csv", index=False)
    return memory_points(folder).iloc[0]


def test_any_table_of_the_folder_is_read(tmp_path: Path) -> None:
    row = one_row(tmp_path)
    assert [p.name for p in tables(tmp_path)] == ["memory_points_made_up.csv"]
    assert row["predicted"] > 1 << 29
    assert row["error"] == row["predicted"] / (3000 * 2**20) - 1


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"model": "NoSuchNet"}, "not in the catalogue"),
        ({"gpu": "GeForce 256"}, "GPU 'GeForce 256'"),
        ({"unit": "furlong"}, "unit 'furlong'"),
        ({"measured_value_as_published": "OOM"}, "not a number"),
        ({"micro_batch_per_gpu": "auto"}, "not a whole number"),
        ({"optimizer": "Lion"}, "refused: optimizer"),
        ({"sharding_or_parallelism": "FSDP"}, "needs parallelism"),
        ({"offload": "CPU"}, "needs offload"),
        ({"id": "XYZ-1"}, "no rule"),
        ({"id": "LIT-1", "task": "pre-train"}, "not modelled"),
        ({"id": "LIG-1", "dtype": "float64"}, "not modelled"),
        ({"id": "MEG-1"}, "not plain GPT"),
        ({"id": "TAO-1"}, "not stated"),
    ],
)
def test_a_row_that_cannot_be_predicted_says_why(tmp_path: Path, changed: dict[str, str], says: str) -> None:
    row = one_row(tmp_path, **changed)
    assert says in row["reason"]
    assert row["predicted"] is None


def test_a_table_without_a_column_is_refused_by_name(tmp_path: Path) -> None:
    frame = pd.DataFrame([COLUMNS]).drop(columns="unit")
    frame.to_csv(tmp_path / "memory_points_x.csv", index=False)
    with pytest.raises(ValueError, match="'unit' is missing"):
        memory_points(tmp_path)


def test_an_empty_folder_has_no_table(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="memory_points"):
        memory_points(tmp_path)
