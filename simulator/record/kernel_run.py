"""Time our Triton kernels on a GPU, or count their bytes under the interpreter.

Triton decides when it is imported whether it compiles or interprets; `workers` sets TRITON_INTERPRET before that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from peakline.kernels.suite import Kernel, error_of
from peakline.record.build import DTYPES
from peakline.record.memory_run import is_out_of_memory
from peakline.record.schema import KernelCase, KernelRow
from peakline.record.timing import Clock
from peakline.record.words import describe

__all__ = ["kernel_cases", "measure_kernel"]

_LARGEST_REFERENCE = 1 << 27  # elements of the float64 reference's operands that are worth checking

# Sizes worth a GPU's time, and tiles for its tensor cores, beside each kernel's own.
_LARGE: Mapping[str, tuple[tuple[Mapping[str, Any], ...], tuple[Mapping[str, int], ...]]] = {
    "matmul": (
        tuple({"m": m, "n": n, "k": k} for m, n, k in ((4096, 4096, 4096), (2048, 11008, 4096), (512, 4096, 4096))),
        tuple(
            {"rows": r, "cols": c, "step": s}
            for r, c, s in ((64, 64, 32), (128, 64, 32), (128, 128, 32), (128, 128, 64), (64, 256, 32), (128, 256, 64))
        ),
    ),
    "dequantise (int4) and multiply": (
        ({"m": 16, "n": 4096, "k": 4096, "group": 128}, {"m": 128, "n": 11008, "k": 4096, "group": 128}),
        tuple({"rows": r, "cols": c, "step": s} for r, c, s in ((16, 64, 64), (16, 128, 64), (32, 128, 128))),
    ),
    "rms norm": (({"rows": 8192, "width": 4096}, {"rows": 2048, "width": 8192}), ({"tile_rows": 1}, {"tile_rows": 2})),
    "softmax": (({"rows": 8192, "width": 4096}, {"rows": 2048, "width": 32000}), ({"tile_rows": 1},)),
    "swiglu": (({"size": 8192 * 11008},), ()),
    "swiglu, backward": (({"size": 8192 * 11008},), ()),
    "flash attention": (
        tuple(
            {"batch": b, "heads": 32, "kv_heads": kv, "queries": s, "keys": s, "dim": 128, "causal": True}
            for b, s, kv in ((1, 4096, 32), (4, 2048, 8))
        ),
        tuple({"tile_queries": q, "tile_keys": k} for q, k in ((64, 32), (64, 64), (128, 64), (128, 32))),
    ),
    "flash attention, backward": (
        ({"batch": 1, "heads": 32, "kv_heads": 32, "queries": 2048, "keys": 2048, "dim": 128, "causal": True},),
        tuple({"tile_queries": q, "tile_keys": k} for q, k in ((32, 32), (64, 32), (64, 64))),
    ),
    "linear cross-entropy": (
        ({"tokens": 4096, "vocabulary": 32000, "dim": 2048},),
        tuple({"tile_tokens": t, "tile_vocabulary": v, "tile_dim": 32} for t, v in ((64, 64), (128, 128), (64, 128))),
    ),
}


def kernels() -> list[Kernel]:
    """All of peakline's kernels."""
    from peakline.kernels.attention_cases import ATTENTION_CASES
    from peakline.kernels.cases import CASES

    found = [*CASES, *ATTENTION_CASES]
    return list({kernel.name: kernel for kernel in found}.values())


def kernel_cases(device: str) -> list[KernelCase]:
    """Every kernel with its tiles: large sizes on CUDA and the grid of the tests, that grid alone on a CPU."""
    found: list[KernelCase] = []
    for kernel in kernels():
        if device == "cuda":
            shapes, tiles = _LARGE.get(kernel.name, ((), ()))
            for dtype in ("bf16", "fp16"):
                found += [_case(kernel, shape, tile, dtype) for shape in shapes for tile in tiles or kernel.tiles]
        found += [_case(kernel, shape, tile, "fp32") for shape in kernel.shapes for tile in kernel.tiles]
    return list({case.name: case for case in found}.values())


def measure_kernel(case: KernelCase, device: str, clock: Clock | None, *, seed: int = 0) -> KernelRow:
    """Times and error of one case on CUDA; bytes and error on a CPU. A failure is a row with its error."""
    found: dict[str, Any] = {"case": case, "device": device}
    try:
        kernel = next((k for k in kernels() if k.name == case.kernel), None)
        if kernel is None:
            raise ValueError(f"kernel: {case.kernel!r} is unknown")
        shape = {**case.sizes, **case.options}
        element = DTYPES[case.dtype].itemsize
        found["formula_bytes"] = int(kernel.traffic(shape, case.tiles, element).total)
        if device == "cuda":
            assert clock is not None
            found |= _on_device(kernel, shape, case, clock, seed)
        else:
            found |= _interpreted(kernel, shape, case, seed)
    except Exception as error:
        found |= {"error": describe(error), "out_of_memory": is_out_of_memory(error)}
    return KernelRow(**found)


def _interpreted(kernel: Kernel, shape: dict[str, Any], case: KernelCase, seed: int) -> dict[str, Any]:
    """The bytes that every load and store moves, counted."""
    from peakline.kernels.counting import count_bytes

    inputs = kernel.inputs(shape, DTYPES[case.dtype], torch.device("cpu"), torch.Generator().manual_seed(seed))
    with count_bytes() as counter:
        results = kernel.launch(inputs, shape, case.tiles)
    return {
        "loaded_bytes": int(counter.traffic.loaded),
        "stored_bytes": int(counter.traffic.stored),
        "largest_error": error_of(results, kernel.reference(_exact(inputs), shape)),
    }


def _exact(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: t.double() if t.is_floating_point() else t for name, t in inputs.items()}


def _on_device(kernel: Kernel, shape: dict[str, Any], case: KernelCase, clock: Clock, seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    inputs = kernel.inputs(shape, DTYPES[case.dtype], torch.device("cuda"), generator)
    results = kernel.launch(inputs, shape, case.tiles)
    found: dict[str, Any] = {}
    if sum(tensor.numel() for tensor in inputs.values()) <= _LARGEST_REFERENCE:
        found["largest_error"] = error_of(results, kernel.reference(_exact(inputs), shape))
    del results
    found["warm"] = clock.measure(lambda: kernel.launch(inputs, shape, case.tiles))
    found["cold"] = clock.measure(lambda: kernel.launch(inputs, shape, case.tiles), cold=True)
    return found


def _case(kernel: Kernel, shape: Mapping[str, Any], tile: Mapping[str, int], dtype: str) -> KernelCase:
    sizes = {key: value for key, value in shape.items() if type(value) is int}
    options = {key: _plain(value) for key, value in shape.items() if type(value) is not int and value is not None}
    words = [kernel.name, dtype, *_words(sizes), *_words(options), *_words(tile)]
    return KernelCase(
        name=" ".join(words)[:200], kernel=kernel.name, dtype=dtype, sizes=sizes, options=options, tiles=dict(tile)
    )


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


def _words(settings: Mapping[str, Any]) -> Iterator[str]:
    for key, value in settings.items():
        text = "-".join(map(str, value)) if isinstance(value, tuple) else str(value)
        yield f"{key}={text}"
