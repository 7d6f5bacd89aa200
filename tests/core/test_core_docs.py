"""The code of docs/graph.md and docs/training.md prints the figures that its comments promise."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", ["graph.md", "training.md"])
def test_the_examples_print_what_their_comments_say(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    promised: list[str] = []
    for block in re.findall(r"```python\n(.*?)```", (DOCS / name).read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, name, "exec"), names)
        promised += re.findall(r"^print\(.*\)\s+# (.+)$", block, re.MULTILINE)
    printed = capsys.readouterr().out.splitlines()
    assert len(promised) >= 3
    for line in promised:
        assert line in printed, (line, printed)
