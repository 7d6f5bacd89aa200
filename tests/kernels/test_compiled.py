"""The kernels that the interpreter counts are kernels that a GPU runs: each compiles to machine code for an H100."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from peakline.kernels import KERNELS

SHARED_MEMORY = 227 * 1024
"""Bytes of shared memory that one block may have from compute capability 9.0 on (CUDA Programming Guide, table of
technical specifications per compute capability)."""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    if find_spec("torch") is None or find_spec("triton") is None:
        pytest.skip("the kernels need torch and Triton")
    if tuple(int(part) for part in version("triton").split(".")[:2]) < (3, 3):
        pytest.skip("needs the compiler interface of Triton 3.3 or later")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    script = Path(__file__).parent / "compiling.py"
    done = subprocess.run([sys.executable, script, "90"], capture_output=True, text=True, env=environment)
    assert not done.returncode, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_compiles_for_compute_capability_9_0_and_fits_its_shared_memory(
    compiled: list[dict[str, Any]], kernel: str
) -> None:
    own = [row for row in compiled if row["kernel"] == kernel]
    assert own
    assert all(row["bytes"] > 0 and row["shared"] <= SHARED_MEMORY for row in own)


def test_products_of_tiles_run_on_tensor_cores(compiled: list[dict[str, Any]]) -> None:
    products = {"_matmul", "_dequantised_matmul", "_attention", "_of_keys", "_of_queries", "_linear_cross_entropy",
                "_linear_cross_entropy_backward"}  # fmt: skip
    assert {row["function"] for row in compiled if row["tensor cores"]} == products
