"""`peakline roofline`: intensities against their definition, ridges, what binds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import peakline as pk
from peakline.cli import main

WORDS = ["roofline", "gpt2", "--device", "h100-sxm", "--decode", "--batch", "4", "--context", "512"]


def test_json_gives_work_over_bytes_at_every_level_and_ridges(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "peakline.roofline/1"
    peak = max(p["operations_per_s"] for p in found["peaks"])
    for level in found["levels"]:
        assert level["ridge"] == pytest.approx(peak / level["bytes_per_s"])
    for point in found["points"]:
        for level, moved in point["bytes"].items():
            assert point["intensity"][level] == pytest.approx(point["operations"] / moved)
    est = pk.estimate(pk.decode("gpt2", batch=4, context=512), "h100-sxm")
    work = sum(p["operations"] for p in found["points"])
    assert work == pytest.approx(float(est.cost.flops) + float(est.cost.vector_work))


def test_no_point_lies_above_a_roof(capsys: pytest.CaptureFixture[str]) -> None:
    main([*WORDS, "--json"])
    found = json.loads(capsys.readouterr().out)
    peak = max(p["operations_per_s"] for p in found["peaks"])
    main_memory = found["levels"][-1]
    for point in found["points"]:
        assert point["operations_per_s"] <= peak * 1.0001
        slope = point["intensity"][main_memory["level"]] * main_memory["bytes_per_s"]
        assert point["operations_per_s"] <= slope * 1.0001


def test_the_table_names_what_binds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(WORDS) == 0
    out = capsys.readouterr().out
    assert "ridge" in out
    assert "op/B hbm" in out
    assert "launch" in out


def test_it_takes_every_word_of_estimate_that_says_what_runs(capsys: pytest.CaptureFixture[str]) -> None:
    main(["estimate", "--help"])
    estimate = capsys.readouterr().out
    main(["roofline", "--help"])
    roofline = capsys.readouterr().out
    words = {word for line in estimate.splitlines() for word in line.split() if word.startswith("--")}
    output = {"--json", "--breakdown", "--explain", "--plot", "--snapshot", "--trace", "--price"}
    own = output | {"--pim", "--sparse-update"}
    missing = {word for word in words - own if word not in roofline}
    assert words
    assert not missing


def test_a_picture_is_drawn_or_refused_before_anything_is_computed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*WORDS, "--plot", str(tmp_path / "r.svg")]) == 0
    assert (tmp_path / "r.svg").stat().st_size > 1000
    capsys.readouterr()
    assert main([*WORDS, "--plot", str(tmp_path / "r.gif")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
