"""Y = X·dequantised(W)ᵀ with 4-bit weights and group-wise scales; traffic in `peakline.cost.tiled.matmul`."""

# mypy: disable-error-code="import-not-found,import-untyped,no-untyped-def,untyped-decorator"

import torch
import triton
import triton.language as tl

from peakline.cost.tiled.traffic import check_tiles
from peakline.kernels.launch import check_contiguous, check_shapes, precision_of

__all__ = ["ZERO_POINT", "dequantise_int4", "dequantised_matmul", "quantise_int4"]

ZERO_POINT = 8
"""The stored value that stands for 0: four bits hold -8 to 7 as 0 to 15."""


@triton.jit
def _dequantised_matmul(
    x, packed, scales, y, m, n, k, groups,
    ROWS: tl.constexpr, COLS: tl.constexpr, STEP: tl.constexpr, GROUP: tl.constexpr, ZERO: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    col = (tl.program_id(1) * COLS + tl.arange(0, COLS)).to(tl.int64)
    total = tl.zeros((ROWS, COLS), dtype=tl.float32)
    for start in range(0, k, STEP):
        inner = start + tl.arange(0, STEP)
        pair = start // 2 + tl.arange(0, STEP // 2)
        left = tl.load(x + row[:, None] * k + inner[None, :],
                       mask=(row < m)[:, None] & (inner < k)[None, :], other=0.0)  # fmt: skip
        both = tl.load(packed + col[:, None] * (k // 2) + pair[None, :],
                       mask=(col < n)[:, None] & (pair < k // 2)[None, :], other=0)  # fmt: skip
        scale = tl.load(scales + col * groups + start // GROUP, mask=col < n, other=0.0).to(tl.float32)
        weight = tl.interleave(both & 0xF, both >> 4).to(tl.float32) - ZERO
        weight = (weight * scale[:, None]).to(left.dtype)
        total = tl.dot(left, tl.trans(weight), total, input_precision=PRECISION)
    place = y + row[:, None] * n + col[None, :]
    tl.store(place, total.to(y.dtype.element_ty), mask=(row < m)[:, None] & (col < n)[None, :])


def dequantised_matmul(
    x: torch.Tensor,
    packed: torch.Tensor,
    scales: torch.Tensor,
    group: int,
    *,
    rows: int = 16,
    cols: int = 128,
    step: int = 64,
    precision: str = "ieee",
    warps: int = 4,
    stages: int = 3,
) -> torch.Tensor:
    """x @ w.T where w[j, i] = (nibble[j, i] - 8)·scales[j, i // group], dequantised on the chip.

    Args:
        x: [m, k] contiguous; float16, bfloat16 or float32. k is even.
        packed: [n, k / 2] uint8; the low four bits are the even element, the high four the odd one.
        scales: [n, ⌈k / group⌉], a float format.
        group: elements of k that share a scale; a multiple of `step`.
        rows, cols, step: tile of Y, and of k; powers of two, at least 16.
        precision, warps, stages: as for `peakline.kernels.matmul.matmul`.

    Returns:
        [m, n], of x's format.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    (m, k), n = x.shape, packed.shape[0]
    check_tiles((("rows", rows), ("cols", cols), ("step", step)))
    if k % 2:
        raise ValueError(f"x: has {k} columns; two weights share a byte, so give an even number")
    if group % step:
        raise ValueError(f"group: {group} elements share a scale, which is no multiple of a step of {step}")
    groups = triton.cdiv(k, group)
    check_shapes(packed=(packed.shape, (n, k // 2)), scales=(scales.shape, (n, groups)))
    check_contiguous(x=x, packed=packed, scales=scales)
    y = x.new_empty((m, n))
    _dequantised_matmul[(triton.cdiv(m, rows), triton.cdiv(n, cols))](
        x, packed, scales, y, m, n, k, groups, ROWS=rows, COLS=cols, STEP=step, GROUP=group, ZERO=ZERO_POINT,
        PRECISION=precision_of(x, precision), num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return y


def quantise_int4(weight: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Round a weight [n, k] to 4 bits with one scale for each row and group: max|w| maps to 7.

    Returns:
        packed [n, k / 2] uint8, scales [n, ⌈k / group⌉] of the weight's format, as `dequantised_matmul` takes them.
    """
    n, k = weight.shape
    groups = -(-k // group)
    padded = torch.nn.functional.pad(weight, (0, groups * group - k)).reshape(n, groups, group)
    scales = (padded.abs().amax(dim=2) / 7).clamp_min(torch.finfo(weight.dtype).tiny)
    codes = torch.clamp(torch.round(padded / scales[:, :, None]) + ZERO_POINT, 0, 15)
    codes = codes.reshape(n, -1)[:, :k].to(torch.uint8)
    return (codes[:, ::2] | (codes[:, 1::2] << 4)).contiguous(), scales.contiguous()


def dequantise_int4(packed: torch.Tensor, scales: torch.Tensor, group: int) -> torch.Tensor:
    """The weight [n, k] that `packed` and `scales` stand for, in the scales' format."""
    codes = torch.stack((packed & 0xF, packed >> 4), dim=2).reshape(packed.shape[0], -1)
    each = scales.repeat_interleave(group, dim=1)[:, : codes.shape[1]]
    return (codes.to(scales.dtype) - ZERO_POINT) * each
