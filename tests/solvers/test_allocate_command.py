"""`peakline allocate`: files in, files and one JSON object out, exit codes, one clear line for bad input."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from peakline.cli import main

EXAMPLE = "id,lower,upper,size\nb1,0,3,4\nb2,3,9,4\nb3,0,9,4\nb4,9,21,4\nb5,0,21,4\n"
"""minimalloc's own example: 12 bytes are enough, and are needed."""


@pytest.fixture
def example(tmp_path: Path) -> Path:
    path = tmp_path / "example.csv"
    path.write_text(EXAMPLE)
    return path


def test_json_and_solution_of_minimallocs_example(
    example: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "solution.csv"
    assert main(["allocate", str(example), "--capacity", "12", "--out", str(out), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "peakline.allocation/1"
    assert (document["status"], document["peak"], document["lower_bound"]) == ("optimal", 12, 12)
    assert document["seconds"] >= 0
    assert document["method"]
    rows = list(csv.DictReader(out.open()))
    assert [row["id"] for row in rows] == ["b1", "b2", "b3", "b4", "b5"]
    boxes = [tuple(int(row[column]) for column in ("lower", "upper", "size", "offset")) for row in rows]
    for i, (low, high, size, at) in enumerate(boxes):
        assert 0 <= at <= 12 - size
        for since, until, other, there in boxes[:i]:
            assert until <= low or high <= since or there + other <= at or at + size <= there


def test_too_small_a_capacity_exits_1_says_why_and_writes_nothing(
    example: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "solution.csv"
    assert main(["allocate", str(example), "--capacity", "11", "--out", str(out)]) == 1
    text = capsys.readouterr().out
    assert "impossible in 11 bytes: no placement needs fewer than 12; the smallest found needs 12" in text
    assert "most crowded moment: 0, where 12 bytes are needed at once: b1 (4), b3 (4), b5 (4)" in text
    assert not out.exists()
    assert main(["allocate", str(example), "--capacity", "11", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["status"], document["peak"], document["lower_bound"]) == ("infeasible", None, 12)


def test_alignment_hint_and_fixed_offset_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "rich.csv", tmp_path / "out.csv"
    path.write_text("size,id,upper,lower,alignment,hint,offset\n3,a,4,0,8,8,\n5,b,4,0,,,16\n2,c,3,1,4,,\n")
    assert main(["allocate", str(path), "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["peak"] == 21
    offsets = {row["id"]: int(row["offset"]) for row in csv.DictReader(out.open())}
    assert offsets["b"] == 16
    assert offsets["a"] % 8 == offsets["c"] % 4 == 0


def test_a_solution_keeps_the_columns_of_its_instance(tmp_path: Path) -> None:
    path, out = tmp_path / "rich.csv", tmp_path / "out.csv"
    path.write_text("id,lower,upper,size,alignment,hint\na,0,4,3,8,8\nb,0,4,5,1,\n")
    assert main(["allocate", str(path), "--out", str(out)]) == 0
    given, written = ([*csv.reader(file.open())] for file in (path, out))
    assert [row[:-1] for row in written] == given
    assert written[0][-1] == "offset"


EMPTY = {
    "blank lines": "id,lower,upper,size\n\na,0,3,4\n  \nb,2,5,3\n,,,\n",
    "a comma at the end of each line": "id,lower,upper,size,\na,0,3,4,\nb,2,5,3,\n",
    "a constraint that nobody has": "id,lower,upper,size,gaps\na,0,3,4,\nb,2,5,3, \n",
    "Windows": "\ufeffid,lower,upper,size\r\na,0,3,4\r\nb,2,5,3\r\n",
}


@pytest.mark.parametrize("case", EMPTY)
def test_what_is_empty_in_a_file_says_nothing(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "empty.csv"
    path.write_bytes(EMPTY[case].encode())
    assert main(["allocate", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["peak"] == 7


def test_an_interrupt_before_any_placement_says_so(
    example: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("peakline.solvers.allocation.bounds.live_bound", interrupted)
    assert main(["allocate", str(example), "--json"]) == 130
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "interrupted before there was a placement\n")


def test_a_solution_may_be_read_back_as_an_instance_with_everything_fixed(
    example: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "solution.csv"
    assert main(["allocate", str(example), "--out", str(out)]) == 0
    assert main(["allocate", str(out), "--capacity", "12"]) == 0
    assert main(["allocate", str(out), "--capacity", "11"]) == 1


BAD = {
    "an empty file": ("", "the file is empty"),
    "a header alone": ("id,lower,upper,size\n", "no buffers"),
    "a missing column": ("id,lower,upper\na,0,1\n", "columns missing: size; found id, lower, upper"),
    "an unknown column": ("id,lower,upper,size,gaps\na,0,9,1,2-3\n", "column 'gaps' is not understood"),
    "a column twice": ("id,lower,upper,size,size\na,0,1,1,1\n", "a column is given twice"),
    "a zero size": ("id,lower,upper,size\na,0,1,0\n", "buffer 'a': size: must be at least 1, got 0"),
    "a negative size": ("id,lower,upper,size\na,0,1,-4\n", "buffer 'a': size: must be at least 1, got -4"),
    "an empty lifetime": ("id,lower,upper,size\na,3,3,1\n", "buffer 'a': lower must be below upper, got [3, 3)"),
    "an id twice": ("id,lower,upper,size\na,0,1,1\na,2,3,1\n", "buffer 'a': the id is given twice"),
    "an empty id": ("id,lower,upper,size\n,0,1,1\n", "line 2: id: must not be empty"),
    "words for a number": ("id,lower,upper,size\na,0,1,big\n", "line 2: size: must be an integer, got 'big'"),
    "half a byte": ("id,lower,upper,size\na,0,1,1.5\n", "line 2: size: must be an integer, got '1.5'"),
    "a huge number": (f"id,lower,upper,size\na,0,1,{10**30}\n", "line 2: size: must be within"),
    "a short row": ("id,lower,upper,size\na,0,1\n", "line 2: expected 4 fields, got 3"),
    "a zero alignment": ("id,lower,upper,size,alignment\na,0,1,1,0\n", "alignment: must be at least 1, got 0"),
    "an unaligned fixed offset": ("id,lower,upper,size,alignment,offset\na,0,1,1,8,12\n", "multiple of 8"),
    "colliding fixed offsets": ("id,lower,upper,size,offset\na,0,2,4,0\nb,1,3,4,2\n", "'a' and 'b'"),
    "not text": ("\x00\x01\udcff", "not a CSV file"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_exit_2_with_one_line(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, expected = BAD[case]
    path = tmp_path / "bad.csv"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert main(["allocate", str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert expected in printed.err
    assert len(printed.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--time-limit", "0"], "time limit: must be above 0 seconds and finite, got 0"),
        (["--time-limit", "-3"], "time limit"),
        (["--time-limit", "inf"], "and finite, got inf"),
        (["--capacity", "0"], "capacity: must be at least 1 byte, got 0"),
        (["--capacity", "many"], "--capacity"),
        (["--method", "magic"], "method: must be one of auto"),
    ],
)
def test_bad_options_exit_2(
    options: list[str], expected: str, example: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["allocate", str(example), *options]) == 2
    assert expected in capsys.readouterr().err


def test_a_capacity_may_have_a_unit(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["allocate", str(example), "--capacity", "0.5KiB", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["capacity"] == 512


def test_a_missing_file_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["allocate", str(tmp_path / "none.csv")]) == 2
    assert "No such file" in capsys.readouterr().err
