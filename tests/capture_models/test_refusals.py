"""What cannot be captured is refused in one line that names the cause and the user's line."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_command import Run, run  # noqa: F401  (a fixture)

torch = pytest.importorskip("torch")

import peakline as pk  # noqa: E402

PROGRAM = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(9, 9)])
    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x.sum()

class Frozen(nn.Module):
    def forward(self, x):
        return x.sum()

class Failing(nn.Module):
    def forward(self, x):
        raise RuntimeError("no such luck")

def shapes(): return Net(), torch.zeros(2, 8)
def number(): return 3
def swapped(): return torch.zeros(2, 8), Net()
def bare(): return Net()
def pair(): return nn.LSTM(8, 8), torch.zeros(2, 3, 8)
made = nn.Linear(8, 8)
def raising(): raise KeyError("no data")
def leaving(): raise SystemExit(3)
def frozen(): return Frozen(), torch.zeros(2, 8), torch.optim.SGD
def failing(): return Failing(), torch.zeros(2, 8), torch.optim.SGD
value = 3
"""

CASES = {
    "shapes": ("train.py:11:", "in module layers.1 (Linear)", "[2, 8] X [9, 9]"),
    "number": ("returned int", "(module, inputs)"),
    "swapped": ("returned a tuple of Tensor, Net", "(module, inputs)"),
    "bare": ("returned Net", "(module, inputs)"),
    "pair": ("output is a tuple of Tensor, tuple without a loss", "loss="),
    "made": ("made is a module", "(module, inputs)"),
    "raising": ("train.py:28:", "KeyError", "no data"),
    "leaving": ("train.py:29:", "sys.exit(3)"),
    "frozen": ("no trainable parameters", "mode='inference'"),
    "failing": ("train.py:20:", "RuntimeError", "no such luck"),
    "value": ("value is a int, not a function",),
    "nothing": ("no function 'nothing'",),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a program, where the command runs."""
    (tmp_path / "train.py").write_text(PROGRAM)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("function", CASES)
def test_a_program_that_fails_is_explained(function: str, run: Run) -> None:  # noqa: F811
    done = run("estimate", f"train.py:{function}", "-d", "a100-80gb")
    assert done.code == 2
    assert done.out == ""
    assert done.err.count("\n") == 1
    for words in CASES[function]:
        assert words in done.err


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("named", ["nowhere.py:step", "nowhere:step", "no.where:step"])
def test_a_file_that_is_not_there_is_named(named: str, run: Run) -> None:  # noqa: F811
    done = run("estimate", named, "-d", "a100-80gb")
    assert done.code == 2
    assert named.rpartition(":")[0] in done.err


class _Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.mark}'",)


@pytest.mark.parametrize("command", ["estimate {} -d a100-80gb", "estimate {}:step -d a100-80gb", "validate {}"])
def test_a_pickle_is_never_opened(command: str, folder: Path, run: Run) -> None:  # noqa: F811
    mark = folder / "opened"
    (folder / "model.pt").write_bytes(pickle.dumps(_Hostile(mark)))
    done = run(*command.format("model.pt").split())
    assert done.code == 2
    assert "model.pt" in done.err
    assert not mark.exists()


@pytest.mark.usefixtures("folder")
def test_without_torch_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"pip install 'peakline\[torch\]'"):
        pk.capture(lambda: None)


@pytest.mark.usefixtures("folder")
def test_a_program_that_imports_a_torch_that_is_not_there_says_so(
    run: Run,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    done = run("estimate", "train.py:shapes", "-d", "a100-80gb")
    assert done.code == 2
    assert "pip install 'peakline[torch]'" in done.err


@pytest.mark.usefixtures("folder")
def test_the_command_line_says_so_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    (Path.cwd() / "plain.py").write_text("def step():\n    return 1\n")
    monkeypatch.setitem(sys.modules, "torch", None)
    done = run("estimate", "plain.py:step", "-d", "a100-80gb")
    assert done.code == 2
    assert "pip install 'peakline[torch]'" in done.err
    assert "Traceback" not in done.err


@pytest.mark.usefixtures("folder")
def test_the_command_line_explains_a_captured_step(run: Run) -> None:  # noqa: F811
    (Path.cwd() / "good.py").write_text(
        "import torch\nfrom torch import nn\n\n"
        "def step():\n"
        "    layers = [nn.Sequential(nn.Linear(512, 2048), nn.GELU(), nn.Linear(2048, 512)) for _ in range(6)]\n"
        "    return nn.Sequential(*layers), torch.zeros(8192, 512), torch.optim.AdamW\n"
    )
    done = run("estimate", "good.py:step", "-d", "a100-80gb", "--explain")
    assert done.code == 0
    assert "The peak by module" in done.out
    assert "recompute the repeated layers" in done.out
