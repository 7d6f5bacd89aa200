"""The page about devices: its example is a device, and its table is the catalogue's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from peakline.hardware import describe, device
from peakline.hardware.table import BEGIN, END, catalogue_table

PAGE = Path(__file__).parents[2] / "docs" / "hardware.md"


def test_the_worked_example_is_a_device(tmp_path: Path) -> None:
    example = tmp_path / "example.yaml"
    example.write_text(
        re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[0], encoding="utf-8"
    )
    npu = device(example)
    assert npu.peak("int8") == pytest.approx(2 * 32768 * 2 * 1.4e9)
    assert npu.main.name == "hbm"
    assert npu.main.notes["bandwidth"] == "1.2 TB/s in the data sheet"
    assert npu.links["peer"].bandwidth == 100e9
    assert "weight stationary" in describe(npu)


def test_the_python_examples_run() -> None:
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), {"device": device})


def test_the_table_is_that_of_the_catalogue() -> None:
    table = PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0].strip()
    assert table == catalogue_table(), "renew it: python -m peakline.hardware.table --write docs/hardware.md"
