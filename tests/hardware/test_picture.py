"""The picture of a device shows its levels in order with what is known of each."""

from __future__ import annotations

import pytest

from peakline.hardware import describe, device, devices, draw
from peakline.hardware.table import catalogue_table


def test_the_hierarchy_reads_from_arithmetic_to_main_memory() -> None:
    text = describe(device("h100-sxm"))
    order = ["132 × SM", "registers", "shared", "l2", "hbm", "NVLink 4"]
    assert [text.index(word) for word in order] == sorted(text.index(word) for word in order)
    assert "3.352 TB/s" in text
    assert "132 × 228 KiB = 29.39 MiB" in text
    assert "989.4 TFLOP/s" in text


@pytest.mark.parametrize("name", devices())
def test_every_device_has_a_picture_no_wider_than_a_terminal(name: str) -> None:
    lines = describe(device(name), sources=True).splitlines()
    assert lines[0] == device(name).title
    assert max(map(len, lines)) <= 80


def test_unknown_figures_are_said_to_be_unknown() -> None:
    assert "capacity unknown" in describe(device("imec-spu"))
    assert "hypothetical" in describe(device("imec-spu"))


def test_the_drawing_has_a_box_for_every_level() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    h100 = device("h100-sxm")
    assert len(draw(h100).patches) == len(h100.memory) + 1


def test_the_table_has_a_row_for_every_device() -> None:
    table = catalogue_table()
    assert all(f"| `{name}` |" in table for name in devices())
