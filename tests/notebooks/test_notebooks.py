"""The notebooks run from a clean kernel, and what is stored of them reads on a code host."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
pytest.importorskip("nbclient", reason="nbclient runs the notebooks: pip install -e '.[notebooks]'")
pytest.importorskip("ipykernel", reason="ipykernel is what they run in: pip install -e '.[notebooks]'")

_spec = importlib.util.spec_from_file_location("notebooks_script", ROOT / "scripts" / "notebooks.py")
assert _spec is not None
assert _spec.loader is not None
script: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(script)

ALL = script.notebooks()
NEEDS = {"01": ("torch",), "04": ("torch",), "05": ("torch", "transformers"), "07": ("torch", "triton")}


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_runs_from_a_clean_kernel(path: Path) -> None:
    for package in NEEDS.get(path.name[:2], ()):
        pytest.importorskip(package, reason=f"{path.name} needs {package}")
    notebook = script.executed(path)
    assert script.faults(notebook) == []
    assert len(script.figures(notebook)) == len(script.figures(script.read(path))), "stored figures are out of date"


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_stored_outputs_are_small_and_name_no_machine(path: Path) -> None:
    notebook = script.read(path)
    assert script.faults(notebook) == []
    assert script.figures(notebook), "a notebook without figures answers nothing"
    assert path.stat().st_size < 1_000_000


def test_there_are_seven_each_begun_by_its_question() -> None:
    assert [path.name[:2] for path in ALL] == [f"{number:02}" for number in range(1, 8)]
    for path in ALL:
        first = script.read(path).cells[0]
        assert first.cell_type == "markdown"
        assert first.source.startswith("# ")


def test_readme_of_the_notebooks_links_every_one() -> None:
    text = (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in ALL if f"]({path.name})" not in text] == []


def test_a_place_on_the_machine_and_a_large_figure_are_faults() -> None:
    import base64

    import nbformat.v4 as v4

    figure = base64.b64encode(b"x" * (script.LARGEST_FIGURE + 1)).decode()
    cell = v4.new_code_cell(
        "1",
        execution_count=1,
        outputs=[
            v4.new_output("stream", name="stdout", text=f"{Path.home()}/site-packages/thing.py"),
            v4.new_output("display_data", data={"image/png": figure}),
        ],
    )
    found = " ".join(script.faults(v4.new_notebook(cells=[cell])))
    assert "a place on the machine" in found
    assert "a figure of 100,001 bytes" in found
