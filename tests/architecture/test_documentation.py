"""The documentation's code runs, its links lead somewhere, and its tables are complete."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import peakline as pk

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
WITH_CODE = [page for page in PAGES if "```python\n" in page.read_text(encoding="utf-8")]


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", WITH_CODE, ids=_name)
def test_the_python_blocks_of_a_page_run_one_after_the_other(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, _name(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if not (page.parent / link).exists()]
    assert missing == []


def test_every_set_up_command_is_one_line() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = dict(re.findall(r"<!-- set-up: (\w+) -->\s*```bash\n(.*?)\n```", text, re.DOTALL))
    assert found.keys() == {"try", "test"}
    assert all("\n" not in command for command in found.values())


def _paths(value: Any, path: str = "") -> set[str]:
    """Dotted paths of the fields of a JSON object; what is keyed by a role, level or resource counts as one field."""
    keyed = ("memory.by_role", "time.limited_by", "traffic", "io_lower_bound", "workload")
    if isinstance(value, dict) and path not in keyed:
        inner = [_paths(v, f"{path}.{'*' if path == 'memory.stores' else k}".lstrip(".")) for k, v in value.items()]
        return set().union(*inner)
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return _paths(value[0], f"{path}[]")
    return {path}


def test_the_page_on_json_documents_exactly_the_fields_there_are() -> None:
    data = pk.estimate(pk.inference("mcunet-in0", dtype="int8"), "stm32f746").to_dict()
    page = (ROOT / "docs" / "json.md").read_text(encoding="utf-8").partition("\n## peakline.")[0]
    documented = set(re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE))
    assert _paths(data) | {"memory.largest", "memory.stores"} == documented


def test_it_names_the_fields_of_a_plan_and_of_its_parts() -> None:
    step = pk.training_step("vit-b-16", batch=16, dtype="bf16", optimizer="adamw-fused", overrides={"layers": 2})
    data = pk.plan(step, "a100-80gb", objective="memory", allow=["recompute"]).to_dict()
    section = (ROOT / "docs" / "json.md").read_text(encoding="utf-8").partition("\n## peakline.offload/1\n")[2]
    section = section.partition("\n## ")[0]
    assert {field for field in data if f"`{field}" not in section} == set()
    for part in ("baseline", "certificate"):
        assert {field for field in data[part] if f"`{part}.{field}`" not in section} == set()
    assert {field for field in data["decisions"][0] if f".{field}`" not in section} == set()


def _commands() -> dict[str, Any]:
    import typer.main

    from peakline.cli.app import app

    return typer.main.get_command(app).commands  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("name", sorted(_commands()))
def test_the_page_on_the_command_line_names_every_option_of_every_command(name: str) -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    options = {option for parameter in _commands()[name].params for option in parameter.opts if option[:2] == "--"}
    assert f"## peakline {name}" in page
    assert {option for option in options if option not in page} == set()


def test_the_page_on_python_names_everything_public() -> None:
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    assert [name for name in pk.__all__ if name[0] != "_" and not re.search(rf"\b{name}\b", page)] == []
