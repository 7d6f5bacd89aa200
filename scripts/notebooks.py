"""Notebooks, run from a clean kernel: renew their outputs, or check that they still say what they said.

    python scripts/notebooks.py              # run all and write what they print and draw
    python scripts/notebooks.py 03 06        # only these
    python scripts/notebooks.py --check      # run all; nothing is written; exit code 1 where a text differs

Outputs are kept, so that notebooks read on a code host, and kept small: figures as PNG of at most 100 kB, nothing that
names the machine, nothing that changes from run to run without reason. Needs `pip install -e '.[notebooks]'`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "notebooks"
LARGEST_FIGURE = 100_000
SECONDS_A_CELL = 300


def notebooks(only: list[str] | None = None) -> list[Path]:
    """The notebooks in their order, or those whose names begin with one of `only`."""
    return [p for p in sorted(FOLDER.glob("[0-9]*.ipynb")) if not only or p.name.startswith(tuple(only))]


def read(path: Path) -> Any:
    """The notebook as it is stored."""
    import nbformat

    return nbformat.read(path, as_version=4)


def executed(path: Path) -> Any:
    """The notebook with the outputs of a run from a clean kernel, beginning to end.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed; the message holds its traceback.
    """
    from nbclient import NotebookClient

    notebook = read(path)
    # One thread: sums in another order would change last digits.
    quiet = {"OMP_NUM_THREADS": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"} | quiet
    client = NotebookClient(
        notebook, timeout=SECONDS_A_CELL, kernel_name="python3", resources={"metadata": {"path": FOLDER}}
    )
    client.execute(env=environment)
    return tidied(notebook)


def tidied(notebook: Any) -> Any:
    """Without what differs from run to run and from machine to machine: identifiers, times, versions, warnings."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02}"
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
            for output in cell.outputs:
                if "data" in output and "image/png" in output.data:
                    output.data.pop("text/plain", None)  # names the object's address or size
                    output.metadata = {}
    return notebook


def texts(notebook: Any) -> list[str]:
    """What the cells print and show, figures left out."""
    found = []
    for output in outputs(notebook):
        if "text" in output:
            found.append(output.text)
        elif "data" in output and "image/png" not in output.data:
            found.append(output.data.get("text/markdown") or output.data.get("text/plain", ""))
    return found


def figures(notebook: Any) -> list[bytes]:
    """The PNG files of the outputs."""
    return [b64decode(o.data["image/png"]) for o in outputs(notebook) if "data" in o and "image/png" in o.data]


def outputs(notebook: Any) -> Iterator[Any]:
    for cell in notebook.cells:
        if cell.cell_type == "code":
            yield from cell.outputs


def faults(notebook: Any) -> list[str]:
    """What must not be in a stored notebook: errors, cells not run, large figures, places on the machine."""
    found = [f"an error: {o.ename}: {o.evalue}" for o in outputs(notebook) if o.output_type == "error"]
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    if counts != list(range(1, len(counts) + 1)):
        found.append("cells were not run once each, in order")
    found += [f"a figure of {len(f):,} bytes" for f in figures(notebook) if len(f) > LARGEST_FIGURE]
    everything = "\n".join(str(o) for o in outputs(notebook))
    places = {str(FOLDER.parent), str(Path.home()), sys.prefix, "site-packages", "/tmp/", "/home/"} - {"/", "/root"}
    found += [f"a place on the machine: {place}" for place in sorted(places) if place in everything]
    return found


def main() -> int:
    import nbformat

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("only", nargs="*", help="beginnings of names; all where empty")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--execute", action="store_true", help="run and write (the default)")
    mode.add_argument("--check", action="store_true", help="run and compare; write nothing")
    given = parser.parse_args()
    chosen = notebooks(given.only)
    if not chosen:
        parser.error(f"no notebook in notebooks/ begins with {', '.join(given.only)}")
    bad = 0
    for path in chosen:
        start = time.perf_counter()
        before, after = texts(tidied(read(path))), executed(path)
        print(f"{path.name}: {time.perf_counter() - start:.1f} s")
        for fault in faults(after):
            bad += 1
            print(f"  {fault}")
        if given.check:
            for old, new in zip(before, texts(after), strict=False):
                if old != new:
                    bad += 1
                    print(f"  was: {old}\n  is:  {new}")
            bad += len(before) != len(texts(after))
        else:
            nbformat.write(after, path)
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(main())
