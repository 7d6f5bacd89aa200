"""The code of docs/memory.md runs, and prints the figures that its comments promise."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "memory.md"


def test_the_examples_print_what_their_comments_say(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    promised: list[str] = []
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), names)
        promised += re.findall(r"^print\(.*\)\s+# (.+)$", block, re.MULTILINE)
    printed = capsys.readouterr().out.splitlines()
    assert len(promised) >= 5
    for line in promised:
        assert line in printed
