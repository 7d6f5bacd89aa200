"""C = activation(A·B + bias), tile by tile; traffic in `peakline.cost.tiled.matmul`."""

# mypy: disable-error-code="import-not-found,import-untyped,no-untyped-def,untyped-decorator"

import torch
import triton
import triton.language as tl

from peakline.cost.tiled.traffic import check_tiles
from peakline.kernels.launch import check_shapes, precision_of, warps_for

__all__ = ["ACTIVATIONS", "matmul"]

ACTIVATIONS = ("none", "relu", "silu", "gelu")


@triton.jit
def _activate(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        x = tl.maximum(x, 0.0)
    if ACTIVATION == "silu":
        x = x / (1.0 + tl.exp(-x))
    if ACTIVATION == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    return x


@triton.jit
def _matmul(
    a, b, bias, c, m, n, k, a_row, a_col, b_row, b_col, slice_size,
    ROWS: tl.constexpr, COLS: tl.constexpr, STEP: tl.constexpr, GROUP: tl.constexpr,
    BIAS: tl.constexpr, ACTIVATION: tl.constexpr, SPLIT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    part = tl.program_id(1)
    down = tl.cdiv(m, ROWS)
    across = tl.cdiv(n, COLS)
    # GROUP rows of tiles at a time, column by column, so that neighbours in time share operands in L2
    first = program // (GROUP * across) * GROUP
    height = tl.minimum(down - first, GROUP)
    inside = program % (GROUP * across)
    row = ((first + inside % height) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    col = (inside // height * COLS + tl.arange(0, COLS)).to(tl.int64)
    begin = part * slice_size
    end = tl.minimum(begin + slice_size, k)
    total = tl.zeros((ROWS, COLS), dtype=tl.float32)
    for start in range(begin, end, STEP):
        inner = start + tl.arange(0, STEP)
        x = tl.load(a + row[:, None] * a_row + inner[None, :] * a_col,
                    mask=(row < m)[:, None] & (inner < end)[None, :], other=0.0)  # fmt: skip
        y = tl.load(b + inner[:, None] * b_row + col[None, :] * b_col,
                    mask=(inner < end)[:, None] & (col < n)[None, :], other=0.0)  # fmt: skip
        total = tl.dot(x, y, total, input_precision=PRECISION)
    if BIAS and part == 0:
        total += tl.load(bias + col, mask=col < n, other=0.0).to(tl.float32)[None, :]
    total = _activate(total, ACTIVATION)
    place = c + row[:, None] * n + col[None, :]
    inside_c = (row < m)[:, None] & (col < n)[None, :]
    if SPLIT:
        tl.atomic_add(place, total, mask=inside_c, sem="relaxed")
    else:
        tl.store(place, total.to(c.dtype.element_ty), mask=inside_c)


def matmul(
    a: torch.Tensor,
    b: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str = "none",
    *,
    rows: int = 128,
    cols: int = 128,
    step: int = 32,
    split_k: int = 1,
    group: int = 8,
    precision: str = "ieee",
    warps: int | None = None,
    stages: int = 3,
) -> torch.Tensor:
    """activation(a @ b + bias), with float32 accumulators.

    Args:
        a: [m, k], any strides (a transposed view is read in place); float16, bfloat16 or float32.
        b: [k, n], likewise.
        bias: [n] or None.
        activation: "none", "relu", "silu" or "gelu" (by the error function).
        rows, cols, step: tile of C, and of k; powers of two, at least 16.
        split_k: slices of k, whose partial sums are added atomically; the result is float32 then, and no activation
            can be applied.
        group: rows of tiles that are walked together.
        precision: how float32 operands are multiplied: "ieee", "tf32" or "tf32x3".
        warps, stages: of the compiled kernel; 4 warps, or 8 for tiles above 128 × 128, by default.

    Returns:
        [m, n], of a's format (float32 where k is split).

    Raises:
        ValueError: naming the argument that does not fit.
    """
    (m, k), n = a.shape, b.shape[1]
    check_tiles((("rows", rows), ("cols", cols), ("step", step)))
    check_shapes(b=(b.shape, (k, n)), **({} if bias is None else {"bias": (bias.shape, (n,))}))
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: {activation!r} is not known; give one of {', '.join(ACTIVATIONS)}")
    if split_k < 1 or (split_k > 1 and activation != "none"):
        raise ValueError(f"split_k: {split_k} slices cannot be activated one by one; give 1, or activation='none'")
    c = a.new_zeros((m, n), dtype=torch.float32) if split_k > 1 else a.new_empty((m, n))
    slice_size = triton.cdiv(triton.cdiv(k, split_k), step) * step
    _matmul[(triton.cdiv(m, rows) * triton.cdiv(n, cols), split_k)](
        a, b, a if bias is None else bias, c, m, n, k, *a.stride(), *b.stride(), slice_size,
        ROWS=rows, COLS=cols, STEP=step, GROUP=group, BIAS=bias is not None, ACTIVATION=activation,
        SPLIT=split_k > 1, PRECISION=precision_of(a, precision), num_warps=warps_for(rows * cols, warps),
        num_stages=stages,
    )  # fmt: skip
    return c
