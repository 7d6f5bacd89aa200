"""`peakline validate SOURCE`: tables and traces beside predictions, and what is refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import peakline as pk
from peakline.cli import main
from peakline.cost.price import price
from peakline.cost.samples import gemm_samples
from peakline.hardware import device
from peakline.models.dtypes import dtype
from peakline.models.kernels import Gemm
from peakline.record import read_trace

BF16 = dtype("bf16")
ENVIRONMENT = {
    "kind": "environment", "device_kind": "cuda", "device_name": "NVIDIA H100 80GB HBM3", "recorded_on": "2025-01-01",
    "peakline": "0.1", "python": "3.12", "torch": "2.8",
}  # fmt: skip


@pytest.fixture
def tables(tmp_path):
    """A folder of tables: 400 products on an H100, measured 10 % slower than predicted, one five times slower."""
    random = np.random.default_rng(0)
    sizes = [16, 128, 512, 2048, 4096, 8192]
    table = pd.DataFrame({name: random.choice(sizes, 400) for name in ("m", "n", "k")})
    table = table.assign(gpu="h100_sxm", gemm_dtype="bfloat16", latency_us=1.0)
    (sample,) = gemm_samples(table)
    slower = np.where(np.arange(len(table)) == 7, 5.0, 1.1)
    with gzip.open(tmp_path / "aic_gemm.csv.gz", "wt") as file:
        table.assign(latency_us=sample.predicted() * slower * 1e6).to_csv(file, index=False)
    return tmp_path


def write_trace(folder, rows, version=1):
    header = {"kind": "header", "schema": f"peakline.trace/{version}", "suite": "operators"}
    lines = [json.dumps(line) for line in (header, ENVIRONMENT, *rows)]
    (folder / "operators.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def operator(name, kind, sizes, seconds):
    timing = {"median_seconds": seconds, "min_seconds": seconds, "repetitions": 10}
    case = {"name": f"{name}{sizes}", "operator": name, "dtype": kind, "sizes": sizes}
    return {"kind": "operator", "case": case, "device": "cuda", "forward": {"warm": timing, "cold": timing}}


def test_errors_are_those_of_the_table(tables):
    found = pk.validate(tables)
    assert len(found.table) == 400
    assert found.by_gpu["signed"].iloc[0] == pytest.approx(1 / 1.1 - 1, abs=1e-6)
    assert found.strata["rows"].sum() == 400


def test_every_miss_is_listed_with_an_explanation(tables):
    (miss,) = pk.validate(tables).misses.to_dict("records")
    assert miss["error"] == pytest.approx(1 / 5 - 1, abs=1e-6)
    assert "measured slower" in miss["explanation"]


def test_a_recorded_operator_sweep_is_compared_cold_and_warm(tmp_path):
    rows = [
        operator("gemm", "bf16", {"m": 4096, "n": 4096, "k": 4096}, 2.2e-4),
        operator("add", "bf16", {"rows": 8}, 1e-5),
    ]
    found = pk.validate(write_trace(tmp_path, rows))
    cold = found.table[found.table["size"] == "cold"].iloc[0]
    cost = price(Gemm(1, 4096, 4096, 4096, BF16, BF16, BF16), 2 * 2 * 4096**2, 2 * 4096**2, device("h100-sxm"))
    assert cold["predicted"] == pytest.approx(cost.tiled)
    assert set(found.table["size"]) == {"cold", "warm"}
    assert found.left_out["reason"].iloc[0].startswith("add")


def test_pictures_are_written(tables, tmp_path):
    folder = tmp_path / "plots"
    pk.validate(tables).plot(folder)
    assert (folder / "gemm.png").stat().st_size > 10_000


def test_json_says_what_the_tables_say(tables, capsys):
    assert main(["validate", str(tables), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "peakline.validation/1"
    assert (found["kernels"], found["missed"]) == (400, 1)


def test_misses_go_to_a_file(tables, tmp_path, capsys):
    assert main(["validate", str(tables), "--misses", str(tmp_path / "misses.csv")]) == 0
    assert len(pd.read_csv(tmp_path / "misses.csv")) == 1
    assert "## By GPU" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "source 'nowhere' does not exist; accepted: 'aiconfigurator'"),
        (["EMPTY"], "holds neither measured tables nor traces"),
        (["--json"], "--json needs a source"),
        (["EMPTY/missing.jsonl"], "does not exist"),
    ],
)
def test_what_is_no_source_is_refused_in_one_line(arguments, said, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    given = [argument.replace("EMPTY", str(tmp_path / "empty")) for argument in arguments]
    assert main(["validate", *given]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_trace_of_a_newer_schema_is_refused(tmp_path, capsys):
    assert main(["validate", str(write_trace(tmp_path, [], version=99))]) == 2
    assert "99" in capsys.readouterr().err


def test_a_missing_database_says_how_to_install_it(monkeypatch, capsys):
    from peakline.cost import samples

    monkeypatch.setattr(samples, "find_spec", lambda name: None)
    assert main(["validate", "aiconfigurator"]) == 2
    assert "pip install 'peakline[validate]'" in capsys.readouterr().err


def test_calibrating_what_was_not_measured_or_is_no_gpu_is_refused(tables, capsys):
    assert main(["calibrate", "v100-16gb", str(tables)]) == 2
    assert "no kernel of it was measured" in capsys.readouterr().err
    assert main(["calibrate", "stm32f746", str(tables)]) == 2
    assert "is a mcu" in capsys.readouterr().err


def test_calibrate_prints_constants_and_writes_a_device_file(tables, tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    assert main(["calibrate", "h100-sxm", str(tables), "--write", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["constants"]["gemm.main_share"] <= 1.0
    mine = device(str(path))
    assert mine.calibration.fitted["gemm.main_share"] == pytest.approx(found["constants"]["gemm.main_share"], rel=1e-3)
    assert Path(path).read_text().startswith("schema: peakline.device/1")


TRACE = Path(__file__).parents[1] / "traces" / "cpu-amd-epyc"


@pytest.fixture(scope="module")
def part(tmp_path_factory):
    """The committed CPU trace with two of its steps: a decoder over three microbatches, and a vision transformer."""
    folder = tmp_path_factory.mktemp("part")
    for name in ("operators.jsonl", "kernels.jsonl", "steps.jsonl"):
        (folder / name).write_bytes((TRACE / name).read_bytes())
    lines = (TRACE / "memory.jsonl").read_text().splitlines(keepends=True)
    kept = ("llama-tiny-accumulated", "vit-tiny-rmsprop")
    (folder / "memory.jsonl").write_text(
        "".join(line for line in lines if '"kind":"memory"' not in line or any(f'"name":"{n}"' in line for n in kept))
    )
    pytest.importorskip("transformers")
    return pk.validate(folder)


def test_recorded_steps_on_a_cpu_are_predicted_within_a_percent(part):
    peaks = part.memory.set_index("case")
    assert set(peaks.index) == {"llama-tiny-accumulated", "vit-tiny-rmsprop"}
    assert (peaks["error"].abs() < 0.01).all(), peaks


def test_operators_of_a_cpu_are_judged_where_the_fit_did_not_look(part):
    assert len(part.host) > 30
    assert part.host["error"].abs().median() < 0.4
    assert part.by_operator["rows"].sum() == len(part.host)


def test_every_triton_kernel_moves_the_bytes_of_its_formula(part):
    assert len(part.traffic) == 121
    assert (part.traffic["error"] == 0).all()
    assert part.by_kernel["exact"].sum() == 121


def test_every_row_of_a_recording_is_compared_or_left_out_with_its_reason(part):
    rows = len(read_trace(TRACE).operators) + len(read_trace(TRACE).steps)
    assert len(part.host) + part.left_out["rows"].sum() == rows


def test_hostile_cut_and_empty_recordings_are_refused_in_one_line(tmp_path, capsys):
    (tmp_path / "trace.pt").write_bytes(b"\x80\x04cos\nsystem\n(S'touch /tmp/pwned'\ntR.")
    (tmp_path / "memory.jsonl").write_bytes((tmp_path / "trace.pt").read_bytes())
    whole = (TRACE / "operators.jsonl").read_bytes()
    (tmp_path / "half.jsonl").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jsonl").write_bytes(b"")
    for name in ("trace.pt", "memory.jsonl", "half.jsonl", "empty.jsonl"):
        assert main(["validate", str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1, error
        assert name in error, error
