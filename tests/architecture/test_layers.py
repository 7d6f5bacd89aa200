"""The folders know of each other in one direction only, and the package stays light to import."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = {"simulator": "peakline", "hardware": "peakline.hardware", "models": "peakline.models",
           "solvers": "peakline.solvers"}  # fmt: skip
LONGEST_MODULE = 500


def _sources() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *(p for p in parts if p != "__init__")])] = path
    return found


MODULES = _sources()
LEAVES = [
    name for name in MODULES if name.startswith(tuple(f"{FOLDERS[f]}" for f in ("hardware", "models", "solvers")))
]


def _imports(node: ast.AST) -> Iterator[str]:
    """Dotted names that a statement imports; `from a import b` gives `a.b` where that is a module, else `a`."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            yield inner if inner in MODULES else node.module


def _everything_imported(path: Path) -> set[str]:
    return {name for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) for name in _imports(node)}


def _imported_on_load(path: Path) -> set[str]:
    """What loading the module loads: statements at its top, without those for type checkers alone."""
    return {name for node in ast.parse(path.read_text(encoding="utf-8")).body for name in _imports(node)}


@pytest.mark.parametrize("module", LEAVES)
def test_hardware_models_and_solvers_import_nothing_of_ours_but_themselves(module: str) -> None:
    own = ".".join(module.split(".")[:2])
    foreign = {name for name in _everything_imported(MODULES[module]) if name.split(".")[0] == "peakline"}
    assert {name for name in foreign if name != own and not name.startswith(f"{own}.")} == set()


@pytest.mark.parametrize("module", MODULES)
def test_nobody_imports_a_folder_by_its_bare_name(module: str) -> None:
    bare = {name for name in _everything_imported(MODULES[module]) if name.split(".")[0] in FOLDERS}
    assert bare == set()


def test_no_modules_import_each_other_in_a_circle() -> None:
    waiting = {name: {n for n in _imported_on_load(path) if n in MODULES} - {name} for name, path in MODULES.items()}
    while free := [name for name, needs in waiting.items() if not needs & waiting.keys()]:
        for name in free:
            del waiting[name]
    assert not waiting, f"in or behind a circle: {waiting}"


@pytest.mark.parametrize("module", MODULES)
def test_a_module_can_be_read_in_one_sitting(module: str) -> None:
    assert len(MODULES[module].read_text(encoding="utf-8").splitlines()) <= LONGEST_MODULE


def test_every_package_is_shipped() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    there = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert set(project["tool"]["setuptools"]["packages"]) == there


def test_every_data_file_is_shipped() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]
    for folder, package in FOLDERS.items():
        there = {path for path in (ROOT / folder).rglob("*") if path.suffix in (".yaml", ".json", ".csv", ".typed")}
        shipped = {path for pattern in patterns.get(package, ()) for path in (ROOT / folder).glob(pattern)}
        assert there - shipped == set()


def _loaded_by(statements: str) -> tuple[float, set[str]]:
    """Seconds that the statements take in a fresh interpreter, and the packages they load."""
    code = (
        "import sys, time\nstart = time.perf_counter()\n"
        f"{statements}\n"
        "print(time.perf_counter() - start, *sorted({name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, *packages = done.stdout.split()
    return float(seconds), set(packages)


HEAVY = {"torch", "matplotlib", "pulp", "highspy", "ortools", "transformers", "IPython"}


def test_importing_takes_less_than_half_a_second_and_loads_nothing_heavy() -> None:
    times = []
    for _ in range(3):
        seconds, packages = _loaded_by("import peakline")
        assert packages & (HEAVY | {"pandas", "pydantic", "networkx"}) == set()
        times.append(seconds)
    assert min(times) < 0.5


def test_the_command_line_starts_without_arrays_and_models() -> None:
    _, packages = _loaded_by("import peakline.cli.app")
    assert packages & (HEAVY | {"numpy", "pandas", "pydantic", "networkx"}) == set()


def test_an_estimate_loads_neither_torch_nor_a_solver_nor_matplotlib() -> None:
    _, packages = _loaded_by(
        "import peakline as pk; pk.estimate(pk.training_step('llama-3.2-1b', seq=128), 'h100-sxm').to_json()"
    )
    assert packages & HEAVY == set()
