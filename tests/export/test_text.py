"""An estimate in words."""

from __future__ import annotations

import numpy as np
import pytest

import peakline as pk
from peakline.text import Table, tables


@pytest.fixture(scope="module")
def est() -> pk.Estimate:
    return pk.estimate(pk.training_step("llama-3.2-1b", seq=512), "h100-sxm")


def test_printing_an_estimate_explains_it(est: pk.Estimate) -> None:
    assert str(est) == est.explain()
    assert est.explain().startswith("Fits: ")


def test_columns_line_up() -> None:
    table = Table("Sizes", ("<name", "bytes"), (("a", "1"), ("long name", "1000")))
    assert table.lines() == ["Sizes", "  name       bytes", "  a              1", "  long name   1000"]


def test_times_of_the_phases_add_up_to_the_run(est: pk.Estimate) -> None:
    table = next(t for t in tables(est) if t.title == "Time by phase")
    shares = [float(row[table.headings.index("share")].rstrip("%")) for row in table.rows]
    assert sum(shares) == pytest.approx(100, abs=0.2)


def test_notes_come_last(est: pk.Estimate) -> None:
    noted = pk.estimate(pk.training_step("llama-3.2-1b", seq=512).with_notes("mind the gap"), "h100-sxm")
    assert noted.explain().endswith("mind the gap")


def test_a_sweep_is_told_as_a_range() -> None:
    batch = np.array([1, 64])
    sweep = pk.estimate(pk.decode("llama-2-7b", batch=batch, context=4096), "a100-80gb")
    text = sweep.explain()
    assert text.startswith("Fits: 1 of 2 configurations on a100-80gb")
    single = pk.estimate(pk.decode("llama-2-7b", batch=1, context=4096), "a100-80gb")
    assert f"Peak: {single.explain().split('Fits: ')[1].split(' of ')[0]} to " in text


def test_a_notebook_gets_html_in_which_names_cannot_be_markup(est: pk.Estimate) -> None:
    html = pk.estimate(pk.training_step("llama-3.2-1b", seq=512).with_notes("a < b"), "h100-sxm")._repr_html_()
    assert "<table>" in html
    assert "a &lt; b" in html
