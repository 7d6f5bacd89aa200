"""Our Triton kernels compute what torch computes, and move exactly the bytes that the closed forms say."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from peakline.kernels import KERNELS, format_table, traffic_table

ROOT = Path(__file__).parents[2]
Rows = list[dict[str, Any]]
WITH_TRITON = pytest.mark.skipif(
    find_spec("triton") is None or find_spec("torch") is None, reason="the kernels need torch and Triton"
)


def _of(table: Rows, kernel: str) -> Rows:
    rows = [row for row in table if row["kernel"] == kernel]
    assert rows
    return rows


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_byte_that_is_measured_is_predicted_tensor_by_tensor(table: Rows, kernel: str) -> None:
    for row in _of(table, kernel):
        assert row["measured_by_tensor"] == row["predicted_by_tensor"], (row["shape"], row["tile"])
        assert row["measured"] == row["predicted"] > 0


@pytest.mark.parametrize("kernel", KERNELS)
def test_results_are_those_of_torch_in_float64(table: Rows, kernel: str) -> None:
    assert max(row["error"] for row in _of(table, kernel)) < 2e-6


@pytest.mark.parametrize("kernel", KERNELS)
def test_no_tile_moves_less_than_the_lower_bound_at_its_own_size(table: Rows, kernel: str) -> None:
    for row in _of(table, kernel):
        assert row["measured"] >= row["bound"] * (1 - 1e-12), (row["shape"], row["tile"])


@pytest.mark.parametrize("kernel", ["matmul", "matmul, split k", "flash attention", "flash attention, backward",
                                    "dequantise (int4) and multiply", "linear cross-entropy"])  # fmt: skip
def test_tiles_decide_how_much_is_moved(table: Rows, kernel: str) -> None:
    """What the formulas are for: the same problem moves different bytes at different tiles."""
    by_shape: dict[str, set[int]] = {}
    for row in _of(table, kernel):
        by_shape.setdefault(json.dumps(row["shape"]), set()).add(row["measured"])
    assert all(len(sizes) > 1 for sizes in by_shape.values())


@WITH_TRITON
def test_half_as_wide_elements_move_half_the_bytes_of_operands() -> None:
    rows = traffic_table(["softmax", "dequantise (int4) and multiply"], dtype="float16")
    assert all(row["measured_by_tensor"] == row["predicted_by_tensor"] for row in rows)
    assert max(row["error"] for row in rows) < 1e-3
    softmax = next(row for row in rows if row["kernel"] == "softmax")
    assert softmax["measured_by_tensor"]["x"]["loaded"] == 2 * 16 * 64


def test_the_page_shows_what_the_program_prints(table: Rows) -> None:
    page = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    names = tuple(f"| {kernel} | " for kernel in KERNELS)
    shown = [line for line in page.splitlines() if line.startswith(names)]
    fresh = format_table(table).splitlines()
    assert [line for line in shown if line not in fresh] == []
    assert {line.split(" | ")[0] for line in shown} == {name.removesuffix(" | ") for name in names}


def test_unknown_kernels_and_formats_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="kernel: 'convolution' is not known; give one of 'matmul'"):
        traffic_table(["convolution"])
    with pytest.raises(ValueError, match="dtype: 'bfloat16' cannot be measured"):
        traffic_table(["softmax"], dtype="bfloat16")


@WITH_TRITON
def test_any_shape_and_tile_can_be_measured_and_what_does_not_fit_is_named() -> None:
    shape = {"batch": 3, "heads": 6, "kv_heads": 2, "queries": 21, "keys": 21, "dim": 5, "v_dim": 19, "causal": True,
             "lengths": [21, 0, 8]}  # fmt: skip
    (row,) = traffic_table(["flash attention"], shape=shape, tile={"tile_queries": 16, "tile_keys": 16})
    assert row["measured_by_tensor"] == row["predicted_by_tensor"]
    assert row["measured_by_tensor"]["o"]["stored"] == 4 * 6 * (21 + 0 + 8) * 19
    with pytest.raises(ValueError, match="shape: matmul needs k; give m, n, k"):
        traffic_table(["matmul"], shape={"m": 3, "n": 4})
    with pytest.raises(ValueError, match="tile: rows of matmul is 0; give an integer of at least 1"):
        traffic_table(["matmul"], tile={"rows": 0, "cols": 16, "step": 16})
    with pytest.raises(ValueError, match="kernel: a shape or tile belongs to one kernel, and 13 are chosen"):
        traffic_table(shape=shape)


def _child(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | variables
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)


def test_importing_the_package_loads_neither_triton_nor_torch() -> None:
    done = _child("import sys, peakline.kernels; print({'triton', 'torch', 'numpy'} & set(sys.modules))")
    assert done.stdout.strip() == "set()", done.stderr


@WITH_TRITON
def test_a_counter_refuses_compiled_kernels() -> None:
    """Silence would read as no traffic at all."""
    done = _child("from peakline.kernels.counting import count_bytes\nwith count_bytes(): pass")
    assert "RuntimeError: only interpreted kernels can be counted" in done.stderr


COUNTER = """
import torch, triton, triton.language as tl
import peakline.kernels.launch
from peakline.kernels.counting import count_bytes
{code}
"""


def _counted(tmp_path: Path, code: str) -> list[str]:
    """Lines that a program prints under the interpreter; in a file, because Triton reads kernels' sources."""
    script = tmp_path / "counted.py"
    script.write_text(COUNTER.format(code=code), encoding="utf-8")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True,
                          env=os.environ | {"TRITON_INTERPRET": "1"})  # fmt: skip
    assert not done.returncode, done.stderr
    return done.stdout.splitlines()


@WITH_TRITON
def test_masked_lanes_move_nothing_and_atomics_read_and_write(tmp_path: Path) -> None:
    lines = _counted(tmp_path, """
@triton.jit
def kernel(x, y, total, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < n, other=0.0)
    tl.store(y + 2 * at, value.to(tl.float16), mask=at < n - 1)
    tl.atomic_add(total + at % 4, value, mask=at < 3)
    first = tl.load(x)

x, y, total = torch.ones(10), torch.zeros(20, dtype=torch.float16), torch.zeros(4)
with count_bytes() as outer:
    with count_bytes() as inner:
        kernel[(3,)](x, y, total, 10, BLOCK=4)
    kernel[(3,)](x, y, total, 10, BLOCK=4)
print(inner.traffic.nonzero())
print(outer.traffic.total == 2 * inner.traffic.total, outer.launches, inner.launches)
kernel[(3,)](x, y, total, 10, BLOCK=4)
print(inner.launches, total.tolist())
""")  # fmt: skip
    assert lines[0] == str({"total": (12, 12), "x": (4 * (10 + 3), 0), "y": (0, 2 * 9)})
    assert lines[1] == "True 2 1"
    assert lines[2] == "1 [3.0, 3.0, 3.0, 0.0]"


@WITH_TRITON
def test_tensor_descriptors_are_counted_like_plain_pointers(tmp_path: Path) -> None:
    """What lies beyond the described shape is not moved."""
    if tuple(int(part) for part in version("triton").split(".")[:2]) < (3, 4):
        pytest.skip("needs Triton 3.4 or later, which has tensor descriptors")
    lines = _counted(tmp_path, """
@triton.jit
def kernel(x, y, rows, cols, ROWS: tl.constexpr, COLS: tl.constexpr):
    source = tl.make_tensor_descriptor(x, [rows, cols], [16, 1], [ROWS, COLS])
    target = tl.make_tensor_descriptor(y, [rows, cols], [16, 1], [ROWS, COLS])
    target.store([0, 0], source.load([0, 0]))

x, y = torch.ones(5, 16), torch.zeros(5, 16)
with count_bytes() as moved:
    kernel[(1,)](x, y, 5, 13, ROWS=8, COLS=16)
print(moved.traffic.nonzero(), y.sum().item())
""")  # fmt: skip
    assert lines == [str({"x": (4 * 5 * 13, 0), "y": (0, 4 * 5 * 13)}) + " 65.0"]


@WITH_TRITON
@pytest.mark.parametrize(("change", "message"), [
    ("matmul(a, b[:5])", r"b: has shape \(5, 8\); give \(6, 8\)"),
    ("matmul(a, b, rows=48)", "rows: 48 is no tile size; give a power of two"),
    ("matmul(a, b, activation='tanh')", "activation: 'tanh' is not known; give one of none, relu, silu, gelu"),
    ("matmul(a, b, activation='relu', split_k=2)", "split_k: 2 slices cannot be activated one by one"),
    ("matmul(a.bfloat16(), b.bfloat16())", "dtype: Triton's interpreter multiplies the bits of bfloat16"),
    ("softmax(b.T)", "x: is not contiguous; give x.contiguous()"),
    ("dequantised_matmul(a, a, a, group=24, step=16)", "group: 24 elements share a scale, which is no multiple"),
    ("attention(q, k, k, causal=True)", "causal: 4 queries see 3 keys, so some see none"),
])  # fmt: skip
def test_arguments_that_do_not_fit_are_named(tmp_path: Path, change: str, message: str) -> None:
    lines = _refusals(tmp_path)
    assert re.search(message, lines[change]), lines[change]


_REFUSED: dict[str, str] = {}


def _refusals(tmp_path: Path) -> dict[str, str]:
    """What each of the calls above says, all tried in one child."""
    if not _REFUSED:
        marks = test_arguments_that_do_not_fit_are_named.pytestmark
        calls = [call for call, _ in marks[0].args[1]]
        lines = _counted(tmp_path, f"""
from peakline.kernels.matmul import matmul
from peakline.kernels.rows import softmax
from peakline.kernels.quantized import dequantised_matmul
from peakline.kernels.attention import attention
a, b, q, k = torch.ones(4, 6), torch.ones(6, 8), torch.ones(1, 2, 4, 16), torch.ones(1, 2, 3, 16)
for call in {calls!r}:
    try:
        eval(call)
        print("no complaint")
    except ValueError as error:
        print(error)
""")  # fmt: skip
        _REFUSED.update(zip(calls, lines))
    return _REFUSED
