"""Triton kernels of our own, whose memory traffic is known to the byte.

Matrix product with epilogue, flash attention forward and backward, RMS norm, softmax, linear cross-entropy, SwiGLU,
dequantise-and-multiply, selective scan: correct against torch in float64, compiled for NVIDIA GPUs or interpreted on a
CPU (`TRITON_INTERPRET=1`), where every byte they load and store is counted and equals `peakline.cost.tiled`.

Importing this package loads neither Triton nor torch; its modules do. A table of measured, predicted and least bytes:

    python -m peakline.kernels
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["KERNELS", "format_table", "traffic_table"]

KERNELS = (
    "matmul", "matmul, split k", "dequantise (int4) and multiply", "rms norm", "rms norm, backward", "softmax",
    "linear cross-entropy", "linear cross-entropy, backward", "swiglu", "swiglu, backward", "selective scan",
    "flash attention", "flash attention, backward",
)  # fmt: skip
"""Names of the kernels in the suite, in the order of the table."""

INTERPRET = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
"""Environment of the child that measures: small arrays gain nothing from threads."""


def traffic_table(
    kernels: Iterable[str] = KERNELS,
    dtype: str = "float32",
    *,
    shape: Mapping[str, Any] | None = None,
    tile: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Measure kernels under Triton's interpreter: one row for each kernel, shape and tile.

    Triton decides at its import whether it interprets, so the work is done in a child process unless this one already
    interprets. About half a minute for the whole suite.

    Args:
        kernels: names out of `KERNELS`.
        dtype: of the operands: "float32" or "float16".
        shape: one problem instead of the suite's, for one kernel: its sizes by the names that the suite's shapes have.
        tile: one tile instead of the suite's, likewise.

    Returns:
        Rows with `kernel`, `shape`, `tile`, `dtype`; `measured` and `predicted` bytes, and both by tensor; `footprint`,
        the bytes that one program holds; `bound`, the bytes that no schedule with so much fast memory beats; `ratio`,
        measured over bound; `error`, the largest difference to torch in float64 over the largest value.

    Raises:
        ValueError: for an unknown kernel, format, size or tile, or without Triton or torch.
    """
    chosen = tuple(kernels)
    for name in chosen:
        if name not in KERNELS:
            raise ValueError(f"kernel: {name!r} is not known; give one of {', '.join(map(repr, KERNELS))}")
    if dtype not in ("float32", "float16"):
        raise ValueError(f"dtype: {dtype!r} cannot be measured; give 'float32' or 'float16'")
    if shape is not None:
        shape = {name: tuple(value) if isinstance(value, list) else value for name, value in shape.items()}
    if (shape is not None or tile is not None) and len(chosen) != 1:
        raise ValueError(f"kernel: a shape or tile belongs to one kernel, and {len(chosen)} are chosen")
    missing = [package for package in ("triton", "torch") if importlib.util.find_spec(package) is None]
    if missing:
        raise ValueError(f"kernels: need {' and '.join(missing)}: pip install torch 'peakline[kernels]' (Linux)")
    if os.environ.get("TRITON_INTERPRET") == "1":
        from peakline.kernels.counting import interpreting

        if interpreting():
            from peakline.kernels.suite import measure_all

            return measure_all(chosen, dtype, shape, tile)
    return _in_a_child(chosen, dtype, shape, tile)


def _in_a_child(
    kernels: Sequence[str], dtype: str, shape: Mapping[str, Any] | None, tile: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "peakline.kernels", "--json", "--dtype", dtype]
    for name in kernels:
        command += ["--kernel", name]
    for option, values in (("--shape", shape), ("--tile", tile)):
        if values is not None:
            command += [option, json.dumps(dict(values))]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | INTERPRET)
    said = (done.stderr.strip().splitlines() or [""])[-1]
    if done.returncode == 2:
        raise ValueError(said.removeprefix("error: "))
    if done.returncode:
        raise RuntimeError(f"the kernels could not be measured: {said}")
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def format_table(rows: Iterable[dict[str, Any]]) -> str:
    """The rows as a Markdown table; sizes in bytes."""
    head = ("kernel", "shape", "tile", "measured", "predicted", "on chip", "bound", "measured / bound")
    lines = ["| " + " | ".join(head) + " |", "|---|---|---|---:|---:|---:|---:|---:|"]
    for row in rows:
        sizes = (f"{row[name]:,.0f}" for name in ("measured", "predicted", "footprint", "bound"))
        cells = (row["kernel"], _words(row["shape"]), _words(row["tile"]), *sizes, f"{row['ratio']:.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _words(values: dict[str, Any]) -> str:
    """`{"m": 64, "causal": True}` as "m 64, causal"."""
    words = []
    for name, value in values.items():
        spoken = name.removeprefix("tile_").replace("_", " ")
        if value is True or value is False:
            words.append(spoken if value else f"no {spoken}")
        elif isinstance(value, list | tuple):
            words.append(f"{spoken} {'/'.join(map(str, value))}")
        else:
            words.append(f"{spoken} {value}")
    return ", ".join(words)
