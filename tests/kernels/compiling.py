"""Compile every kernel for a GPU that is not there: Triton brings the assembler, so no driver is needed.

Run as a script, in a process of its own without TRITON_INTERPRET. Each launch of the suite, with its own tensors and
tiles, is caught at the door and compiled instead of run; prints one JSON list.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from peakline.kernels.suite import Kernel, suite

SCALARS = {bool: "i1", int: "i32", float: "fp32"}
FORMATS = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.int32: "i32",
           torch.int64: "i64", torch.uint8: "u8"}  # fmt: skip
FORMAT = torch.bfloat16
"""What GPUs are fed, and what the interpreter cannot multiply."""

GPU_TILES: dict[str, dict[str, int]] = {
    "matmul": {"rows": 128, "cols": 128, "step": 32},
    "matmul, split k": {"rows": 64, "cols": 64, "step": 32, "split_k": 4},
    "dequantise (int4) and multiply": {"rows": 16, "cols": 128, "step": 32},
    "linear cross-entropy": {"tile_tokens": 64, "tile_vocabulary": 64, "tile_dim": 32},
    "linear cross-entropy, backward": {"tile_tokens": 64, "tile_vocabulary": 64, "tile_dim": 32},
    "flash attention": {"tile_queries": 128, "tile_keys": 64},
    "flash attention, backward": {"tile_queries": 64, "tile_keys": 64},
}
"""Tiles as a GPU would want them; the other kernels are compiled with the last tile of the suite."""


def main(capability: int) -> None:
    target = GPUTarget("cuda", capability, 32)
    compiled: list[dict[str, Any]] = []
    now: list[str] = []

    def compile_instead(
        function: JITFunction,
        *args: Any,
        grid: Any,
        warmup: bool,
        num_warps: int = 4,
        num_stages: int = 3,
        **given: Any,
    ) -> None:
        values = dict(zip(function.arg_names, args)) | given
        # as at a real launch, an integer argument of 1 is a constant
        constants = {p.name: values[p.name] for p in function.params
                     if p.is_constexpr or (type(values[p.name]) is int and values[p.name] == 1)}  # fmt: skip
        signature = {
            name: "constexpr" if name in constants
            else f"*{FORMATS[value.dtype]}" if isinstance(value, torch.Tensor) else SCALARS[type(value)]
            for name, value in values.items()
        }  # fmt: skip
        source = ASTSource(function, signature=signature, constexprs=constants)
        result = triton.compile(source, target=target, options={"num_warps": num_warps, "num_stages": num_stages})
        ptx = result.asm["ptx"]
        compiled.append({"kernel": now[0], "function": function.__name__, "shared": result.metadata.shared,
                         "bytes": len(result.asm["cubin"]), "tensor cores": "wgmma" in ptx or "mma.sync" in ptx,
                         "loads": "ld.global" in ptx or "cp.async" in ptx})  # fmt: skip

    JITFunction.run = compile_instead  # type: ignore[method-assign]
    for kernel in suite().values():
        now[:] = [kernel.name]
        launch(kernel)
    print(json.dumps(compiled))


def launch(kernel: Kernel) -> None:
    """The kernel's first shape and the one with most switches on, with a tile for a GPU."""
    tile = GPU_TILES.get(kernel.name, kernel.tiles[-1])
    for shape in {id(s): s for s in (kernel.shapes[0], max(kernel.shapes, key=len))}.values():
        inputs = kernel.inputs(shape, FORMAT, torch.device("cpu"), torch.Generator().manual_seed(0))
        kernel.launch(inputs, shape, tile)


if __name__ == "__main__":
    main(int(sys.argv[1]))
