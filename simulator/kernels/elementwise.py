"""SwiGLU, forward and backward; traffic in `peakline.cost.tiled.elementwise`."""

# mypy: disable-error-code="import-not-found,import-untyped,no-untyped-def,untyped-decorator"

import torch
import triton
import triton.language as tl

from peakline.cost.tiled.traffic import check_tiles
from peakline.kernels.launch import check_contiguous, check_shapes

__all__ = ["swiglu", "swiglu_backward"]


@triton.jit
def _swiglu(gate, up, y, size, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    g = tl.load(gate + at, mask=at < size, other=0.0).to(tl.float32)
    u = tl.load(up + at, mask=at < size, other=0.0).to(tl.float32)
    result = g / (1.0 + tl.exp(-g)) * u
    tl.store(y + at, result.to(y.dtype.element_ty), mask=at < size)


@triton.jit
def _swiglu_backward(gate, up, dy, dgate, dup, size, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    g = tl.load(gate + at, mask=at < size, other=0.0).to(tl.float32)
    u = tl.load(up + at, mask=at < size, other=0.0).to(tl.float32)
    d = tl.load(dy + at, mask=at < size, other=0.0).to(tl.float32)
    sigmoid = 1.0 / (1.0 + tl.exp(-g))
    of_gate = d * u * sigmoid * (1.0 + g * (1.0 - sigmoid))
    tl.store(dgate + at, of_gate.to(dgate.dtype.element_ty), mask=at < size)
    tl.store(dup + at, (d * g * sigmoid).to(dup.dtype.element_ty), mask=at < size)


def swiglu(gate: torch.Tensor, up: torch.Tensor, *, block: int = 1024, warps: int = 4) -> torch.Tensor:
    """silu(gate)·up, element by element.

    Args:
        gate, up: of one shape, contiguous, any float format.
        block: elements of one program, a power of two.
        warps: of the compiled kernel.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    check_tiles((("block", block),))
    check_shapes(up=(up.shape, gate.shape))
    check_contiguous(gate=gate, up=up)
    y = torch.empty_like(gate)
    _swiglu[(triton.cdiv(gate.numel(), block),)](gate, up, y, gate.numel(), BLOCK=block, num_warps=warps)
    return y


def swiglu_backward(
    gate: torch.Tensor, up: torch.Tensor, dy: torch.Tensor, *, block: int = 1024, warps: int = 4
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of `swiglu`: dgate and dup. Arguments as there, and dy of the same shape."""
    check_tiles((("block", block),))
    check_shapes(up=(up.shape, gate.shape), dy=(dy.shape, gate.shape))
    check_contiguous(gate=gate, up=up, dy=dy)
    dgate, dup = torch.empty_like(gate), torch.empty_like(up)
    _swiglu_backward[(triton.cdiv(gate.numel(), block),)](
        gate, up, dy, dgate, dup, gate.numel(), BLOCK=block, num_warps=warps
    )
    return dgate, dup
