"""`peakline sweep`: a YAML file in, Parquet out; exit codes, errors on one line, a run that goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

import peakline as pk
from peakline.cli import main

pytest.importorskip("pyarrow.parquet", reason="Parquet needs pyarrow")

DOCUMENT = """
model: gpt2
phase: decode
device:
  - a30
  - {base: h100-sxm, memory.hbm.bandwidth: [4 TB/s, 8 TB/s]}
batch: {from: 1, to: 8, scale: log}
context: [64, 128, 256, 512]
zip: [[batch, context]]
kv_dtype: [bf16, fp8]
where: ["batch * context <= 2048"]
prices: {a30: 0.35}
replay: false
"""


def _run(*arguments: str) -> int:
    code = main(list(arguments))
    assert isinstance(code, int)
    return code


def test_a_file_of_axes_becomes_a_file_of_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document, out = tmp_path / "sweep.yaml", tmp_path / "results.parquet"
    document.write_text(DOCUMENT)
    assert _run("sweep", str(document), "--out", str(out)) == 0
    assert capsys.readouterr().out == f"18 rows in {out}\n"
    df = pd.read_parquet(out)
    assert set(zip(df["batch"], df["context"])) == {(1, 64), (2, 128), (4, 256)}
    assert df["device"].nunique() == 3
    expected = pk.sweep(
        "gpt2", phase="decode", device=["a30", *(pk.device("h100-sxm", **{"memory.hbm.bandwidth": b}) for b in
        ("4 TB/s", "8 TB/s"))], batch=[1, 2, 4], context=[64, 128, 256], zip=("batch", "context"),
        kv_dtype=["bf16", "fp8"], replay=False,
    )  # fmt: skip
    assert df["time_s"].tolist() == expected["time_s"].tolist()
    assert _run("sweep", str(document), "-o", str(out), "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["schema"], said["rows"], said["computed"]) == ("peakline.sweep/1", 18, 0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("batch: {from: 1, to: 8, scale: log}", "batch: []"), "batch: the axis is empty"),
        (("kv_dtype: [bf16, fp8]", "kv_dtyp: [bf16]"), "did you mean 'kv_dtype'"),
        (("model: gpt2", "modle: gpt2"), "model: is missing"),
        (("model: gpt2", "model: ["), "is not YAML"),
        (("model: gpt2", "schema: peakline.sweep/9\nmodel: gpt2"), "schema: 'peakline.sweep/9' is not"),
        (('["batch * context <= 2048"]', '["__import__(1)"]'), "calls what is not one of"),
        (("zip: [[batch, context]]", "zip: [[batch, contxt]]"), "did you mean 'context'"),
    ],
)
def test_a_faulty_file_is_one_line_on_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, str], said: str
) -> None:
    document = tmp_path / "sweep.yaml"
    document.write_text(DOCUMENT.replace(*change))
    assert _run("sweep", str(document), "--out", str(tmp_path / "r.parquet")) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error


def test_too_many_rows_need_a_yes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = tmp_path / "sweep.yaml"
    document.write_text(
        "{model: gpt2, phase: decode, device: a30, batch: {from: 1, to: 1000000}, context: {from: 1, to: 1000000}}"
    )
    assert _run("sweep", str(document), "--out", str(tmp_path / "r")) == 2
    error = capsys.readouterr().err
    assert "1,000,000,000,000 rows" in error
    assert "--yes" in error
    assert not (tmp_path / "r").exists()


def test_a_sample_in_the_file_is_drawn(tmp_path: Path) -> None:
    document = tmp_path / "sweep.yaml"
    document.write_text(
        "{model: gpt2, phase: decode, device: a30, sample: {count: 7, seed: 2, "
        "axes: {batch: {from: 1, to: 32, scale: log}, context: {from: 16, to: 512}}}}"
    )
    assert _run("sweep", str(document), "--out", str(tmp_path / "r.parquet")) == 0
    drawn = pk.sample({"batch": (1, 32, "log"), "context": (16, 512)}, 7, seed=2)
    df = pd.read_parquet(tmp_path / "r.parquet")
    assert sorted(zip(df["batch"], df["context"])) == sorted(zip(drawn["batch"], drawn["context"]))
