"""The code on the pages about kinds of hardware runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("page", ["energy.md", "tiers.md", "accelerators.md"])
def test_the_python_on_the_page_runs(page: str) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)


def test_the_figures_beside_the_code_are_those_that_it_gives() -> None:
    from peakline.cost.storage import drive_of, near_data

    text, drive = (DOCS / "tiers.md").read_text(encoding="utf-8"), drive_of("990-pro")
    assert f"{drive.random('read', 4096, 512) / 4096 / 1e6:.2f} of the 1.4 million" in text
    assert f"{drive.sequential('read', 128 << 10, 1) / 1e9:.1f} GB/s: one request" in text
    assert f"{near_data(16, drive_of('smartssd'), 1e12, 1e9, link=12e9).gain:.1f} times" in text


def test_the_table_of_claims_is_what_the_command_prints() -> None:
    from peakline.device_claims import CASES, lines

    text = (DOCS / "claims.md").read_text(encoding="utf-8")
    table = text[text.index("<!-- claims -->") : text.index("<!-- end of claims -->")].splitlines()[1:]
    assert table == list(lines(list(CASES))), "renew it: python -m peakline.device_claims, between the marks"
