"""Users' own files: no code needed, and every fault told at once in words that name the field."""

from __future__ import annotations

from pathlib import Path

import pytest

from peakline.hardware import Device, DeviceFileError, device, from_mapping

GOOD = """\
schema: peakline.device/1
name: toy
kind: npu
sources: {lab: "our own measurement, 2025"}
memory:
  sram: {capacity_per_unit: 1 MiB, bandwidth: 512 B/cycle, source: lab}
  dram: {capacity: 8 GiB, bandwidth: 50 GB/s, latency: 100 cycles, source: lab}
compute:
  units: 4
  clock: 1 GHz
  matrix: {int8: 256 MAC/cycle}
  source: lab
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "toy.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def faults_of(path: Path) -> str:
    with pytest.raises(DeviceFileError) as caught:
        device(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_file_of_ones_own_is_a_device(tmp_path: Path) -> None:
    toy = device(write(tmp_path, GOOD))
    assert toy.peak("int8") == 4 * 256 * 2 * 1e9
    assert toy.level("sram").capacity == 4 * 2**20
    assert toy.level("sram").bandwidth == 512e9
    assert toy.main.latency == pytest.approx(100e-9)
    assert toy.main.source == "our own measurement, 2025"
    assert device(str(tmp_path / "toy.yaml")) == toy


def test_all_faults_are_told_at_once_each_with_its_line(tmp_path: Path) -> None:
    text = (
        GOOD.replace("kind: npu", "kind: tpu\nvendr: me")
        .replace("8 GiB", "8 GB/s")
        .replace("50 GB/s", "-50 GB/s")
        .replace("units: 4", "units: four")
        .replace("clock: 1 GHz", "clock: 1000")
        .replace("int8: 256 MAC/cycle", "int9: 1 TOP/s")
        + "power: {tdp: 10 W, source: labb}\n"
    )
    told = faults_of(write(tmp_path, text))
    for words in (
        "line 3: kind: 'tpu' is unknown",
        "line 4: vendr: is not a field here; did you mean 'vendor'?",
        "memory.dram.capacity: '8 GB/s' is a bandwidth: a capacity is written like '80 GiB'",
        "memory.dram.bandwidth: '-50 GB/s' is negative",
        "compute.units: 'four' is not a whole number",
        "compute.clock: 1000 has no unit: a frequency is written like '1830 MHz'",
        "compute.matrix.int9: is not a field here; did you mean 'int8'?",
        "power.tdp: source 'labb' is not in `sources`; did you mean 'lab'?",
    ):
        assert words in told


def test_a_figure_without_a_source_is_a_fault(tmp_path: Path) -> None:
    told = faults_of(
        write(tmp_path, GOOD.replace("bandwidth: 50 GB/s, latency: 100 cycles, source: lab", "bandwidth: 50 GB/s"))
    )
    assert "memory.dram.capacity: has no source" in told
    assert "memory.dram.bandwidth: has no source" in told


def test_a_figure_may_have_its_own_source_and_note(tmp_path: Path) -> None:
    own = "{value: 8 GiB, source: the datasheet of the board, note: soldered}"
    dram = device(write(tmp_path, GOOD.replace("capacity: 8 GiB", f"capacity: {own}"))).main
    assert dram.capacity == 8 * 2**30
    assert dram.source_of("capacity") == "the datasheet of the board"
    assert dram.source_of("bandwidth") == "our own measurement, 2025"
    assert dram.notes["capacity"] == "soldered"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("# only a remark\n", "is empty"),
        ("- a\n- b\n", "holds a list"),
        ("just words", "holds a text"),
        ("name: x\nkind: gpu\n  memory: {\n", "line 3: is not YAML"),
        ("name: x\nname: y\nkind: gpu\n", "name: is given twice, first on line 1"),
        ("name: &a x\nkind: *a\n", "is a YAML alias"),
        ("name: !!python/object/apply:os.system [id]\nkind: gpu\n", "name"),
        ("name: x\nkind: gpu\n", "memory: at least one level is needed"),
        (
            "name: x\nkind: gpu\nmain: hbn\nmemory: {hbm: {capacity: 1 GiB, source: a datasheet}}\n",
            "main: 'hbn' is not",
        ),
        ("kind: gpu\nmemory: {hbm: {capacity: 1 GiB, source: a datasheet}}\n", "name: is required"),
        ("name: x\nkind: gpu\nmemory: [1, 2]\n", "memory: [1, 2] is not a mapping of fields"),
        ("name: x\nkind: gpu\nschema: peakline.device/9\nmemory: {}\n", "schema: 'peakline.device/9' is unknown"),
        ("[" * 20000, "is not YAML"),
    ],
)
def test_a_broken_file_is_told_in_words(tmp_path: Path, text: str, words: str) -> None:
    assert words in faults_of(write(tmp_path, text))


@pytest.mark.parametrize("units", ["true", "0", "-4", "4.5", "four", "[4]"])
def test_units_are_a_positive_whole_number(tmp_path: Path, units: str) -> None:
    assert "compute.units: " in faults_of(write(tmp_path, GOOD.replace("units: 4", f"units: {units}")))


def test_what_is_no_text_file_is_refused(tmp_path: Path) -> None:
    assert "is a directory" in faults_of(tmp_path)
    assert "does not exist" in faults_of(tmp_path / "none.yaml")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\x00\xff\xfe" * 100)
    assert "binary" in faults_of(binary)
    huge = tmp_path / "huge.yaml"
    huge.write_bytes(b"#" * (2**20 + 1))
    assert "larger than" in faults_of(huge)


def test_a_mapping_does_without_a_file() -> None:
    toy = from_mapping(
        {"name": "m", "kind": "dram", "memory": {"dram": {"capacity": "1 GiB", "source": "a guess of mine"}}}
    )
    assert toy.main.capacity == 2**30


def test_what_is_not_json_of_a_device_is_refused() -> None:
    for text in ("", "[]", "{}", '{"name": "x"}'):
        with pytest.raises(DeviceFileError):
            Device.from_json(text)
