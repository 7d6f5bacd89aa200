"""RMS norm, forward and backward, and softmax along rows; traffic in `peakline.cost.tiled.rows`."""

# mypy: disable-error-code="import-not-found,import-untyped,no-untyped-def,untyped-decorator"

import torch
import triton
import triton.language as tl

from peakline.cost.tiled.rows import rows_per_program
from peakline.cost.tiled.traffic import check_tiles, power_of_two
from peakline.kernels.launch import check_contiguous, check_shapes

__all__ = ["rms_norm", "rms_norm_backward", "softmax"]


@triton.jit
def _rms_norm(
    x, weight, y, rstd, rows, width, eps, ROWS: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr
):  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    real = row < rows
    if WHOLE:
        col = tl.arange(0, BLOCK)
        inside = real[:, None] & (col < width)[None, :]
        value = tl.load(x + row[:, None] * width + col[None, :], mask=inside, other=0.0).to(tl.float32)
        scale = 1.0 / tl.sqrt(tl.sum(value * value, axis=1) / width + eps)
        factor = tl.load(weight + col, mask=col < width, other=0.0).to(tl.float32)
        result = value * scale[:, None] * factor[None, :]
        tl.store(y + row[:, None] * width + col[None, :], result.to(y.dtype.element_ty), mask=inside)
    else:
        squares = tl.zeros((ROWS,), dtype=tl.float32)
        for start in range(0, width, BLOCK):
            col = start + tl.arange(0, BLOCK)
            inside = real[:, None] & (col < width)[None, :]
            value = tl.load(x + row[:, None] * width + col[None, :], mask=inside, other=0.0).to(tl.float32)
            squares += tl.sum(value * value, axis=1)
        scale = 1.0 / tl.sqrt(squares / width + eps)
        for start in range(0, width, BLOCK):
            col = start + tl.arange(0, BLOCK)
            inside = real[:, None] & (col < width)[None, :]
            value = tl.load(x + row[:, None] * width + col[None, :], mask=inside, other=0.0).to(tl.float32)
            factor = tl.load(weight + col, mask=col < width, other=0.0).to(tl.float32)
            result = value * scale[:, None] * factor[None, :]
            tl.store(y + row[:, None] * width + col[None, :], result.to(y.dtype.element_ty), mask=inside)
    tl.store(rstd + row, scale, mask=real)


@triton.jit
def _rms_norm_backward(
    x, weight, dy, rstd, dx, partial, rows, width, own, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    program = tl.program_id(0)
    col = tl.arange(0, BLOCK)
    factor = tl.load(weight + col, mask=col < width, other=0.0).to(tl.float32)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    end = tl.minimum((program + 1) * own, rows)
    for start in range(program * own, end, ROWS):
        row = (start + tl.arange(0, ROWS)).to(tl.int64)
        inside = (row < end)[:, None] & (col < width)[None, :]
        place = row[:, None] * width + col[None, :]
        scale = tl.load(rstd + row, mask=row < end, other=0.0)
        normal = tl.load(x + place, mask=inside, other=0.0).to(tl.float32) * scale[:, None]
        upstream = tl.load(dy + place, mask=inside, other=0.0).to(tl.float32)
        total += tl.sum(upstream * normal, axis=0)
        weighted = upstream * factor[None, :]
        mean = tl.sum(weighted * normal, axis=1) / width
        result = (weighted - normal * mean[:, None]) * scale[:, None]
        tl.store(dx + place, result.to(dx.dtype.element_ty), mask=inside)
    tl.store(partial + program * width + col, total, mask=col < width)


@triton.jit
def _add_rows(partial, dweight, rows, width, ROWS: tl.constexpr, COLS: tl.constexpr):
    col = tl.program_id(0) * COLS + tl.arange(0, COLS)
    total = tl.zeros((COLS,), dtype=tl.float32)
    for start in range(0, rows, ROWS):
        row = start + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (col < width)[None, :]
        total += tl.sum(tl.load(partial + row[:, None] * width + col[None, :], mask=inside, other=0.0), axis=0)
    tl.store(dweight + col, total.to(dweight.dtype.element_ty), mask=col < width)


@triton.jit
def _softmax(x, y, rows, width, scale, ROWS: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    real = row < rows
    if WHOLE:
        col = tl.arange(0, BLOCK)
        inside = real[:, None] & (col < width)[None, :]
        value = tl.load(x + row[:, None] * width + col[None, :], mask=inside, other=0.0).to(tl.float32) * scale
        value = tl.where((col < width)[None, :], value, -float("inf"))
        power = tl.exp(value - tl.max(value, axis=1)[:, None])
        result = power / tl.sum(power, axis=1)[:, None]
        tl.store(y + row[:, None] * width + col[None, :], result.to(y.dtype.element_ty), mask=inside)
    else:
        top = tl.full((ROWS,), -float("inf"), dtype=tl.float32)
        total = tl.zeros((ROWS,), dtype=tl.float32)
        for start in range(0, width, BLOCK):
            col = start + tl.arange(0, BLOCK)
            inside = real[:, None] & (col < width)[None, :]
            value = tl.load(x + row[:, None] * width + col[None, :], mask=inside, other=0.0).to(tl.float32) * scale
            value = tl.where((col < width)[None, :], value, -float("inf"))
            higher = tl.maximum(top, tl.max(value, axis=1))
            total = total * tl.exp(top - higher) + tl.sum(tl.exp(value - higher[:, None]), axis=1)
            top = higher
        for start in range(0, width, BLOCK):
            col = start + tl.arange(0, BLOCK)
            inside = real[:, None] & (col < width)[None, :]
            value = tl.load(x + row[:, None] * width + col[None, :], mask=inside, other=0.0).to(tl.float32) * scale
            result = tl.exp(value - top[:, None]) / total[:, None]
            tl.store(y + row[:, None] * width + col[None, :], result.to(y.dtype.element_ty), mask=inside)


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float = 1e-6,
    *,
    tile_rows: int = 1,
    block: int | None = None,
    warps: int = 4,
) -> tuple[torch.Tensor, torch.Tensor]:
    """x·rstd·weight with rstd = (mean(x²) + eps)^(-1/2) along rows.

    Args:
        x: [rows, width] contiguous, any float format.
        weight: [width].
        eps: added to the mean square.
        tile_rows: rows of one program, a power of two.
        block: elements of a row that it holds, a power of two; None for the whole row. A smaller block reads x twice.
        warps: of the compiled kernel.

    Returns:
        y [rows, width] of x's format, rstd [rows] float32.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    rows, width = x.shape
    block = power_of_two(width) if block is None else block
    check_tiles((("tile_rows", tile_rows), ("block", block)))
    check_shapes(weight=(weight.shape, (width,)))
    check_contiguous(x=x, weight=weight)
    y, rstd = torch.empty_like(x), x.new_empty((rows,), dtype=torch.float32)
    _rms_norm[(triton.cdiv(rows, tile_rows),)](
        x, weight, y, rstd, rows, width, eps, ROWS=tile_rows, BLOCK=block, WHOLE=block >= width, num_warps=warps
    )
    return y, rstd


def rms_norm_backward(
    x: torch.Tensor,
    weight: torch.Tensor,
    dy: torch.Tensor,
    rstd: torch.Tensor,
    *,
    tile_rows: int = 1,
    programs: int = 132,
    sum_rows: int = 32,
    sum_cols: int = 64,
    warps: int = 4,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of `rms_norm`: dx and dweight. Two kernels; rows are held whole.

    Args:
        x, dy: [rows, width] contiguous.
        weight: [width].
        rstd: [rows] float32, as `rms_norm` returned it.
        tile_rows: rows that a program takes at a time, a power of two.
        programs: at most so many programs share the rows; each leaves one partial row of dweight.
        sum_rows, sum_cols: tile of the kernel that adds the partial rows, powers of two.
        warps: of the compiled kernels.

    Returns:
        dx [rows, width], dweight [width], of the formats of x and weight.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    rows, width = x.shape
    check_tiles((("tile_rows", tile_rows), ("sum_rows", sum_rows), ("sum_cols", sum_cols)))
    check_shapes(weight=(weight.shape, (width,)), dy=(dy.shape, x.shape), rstd=(rstd.shape, (rows,)))
    check_contiguous(x=x, weight=weight, dy=dy, rstd=rstd)
    if programs < 1:
        raise ValueError(f"programs: {programs} cannot share the rows; give at least 1")
    own = rows_per_program(rows, tile_rows, programs)
    used = triton.cdiv(rows, own)
    dx, dweight = torch.empty_like(x), torch.empty_like(weight)
    partial = x.new_empty((used, width), dtype=torch.float32)
    _rms_norm_backward[(used,)](
        x, weight, dy, rstd, dx, partial, rows, width, own, ROWS=tile_rows, BLOCK=power_of_two(width), num_warps=warps
    )
    _add_rows[(triton.cdiv(width, sum_cols),)](
        partial, dweight, used, width, ROWS=sum_rows, COLS=sum_cols, num_warps=warps
    )
    return dx, dweight


def softmax(
    x: torch.Tensor, scale: float = 1.0, *, tile_rows: int = 1, block: int | None = None, warps: int = 4
) -> torch.Tensor:
    """softmax(x·scale) along rows.

    Args:
        x: [rows, width] contiguous, any float format.
        scale: factor on x.
        tile_rows, block, warps: as for `rms_norm`.

    Returns:
        [rows, width], of x's format.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    rows, width = x.shape
    block = power_of_two(width) if block is None else block
    check_tiles((("tile_rows", tile_rows), ("block", block)))
    check_contiguous(x=x)
    y = torch.empty_like(x)
    _softmax[(triton.cdiv(rows, tile_rows),)](
        x, y, rows, width, scale, ROWS=tile_rows, BLOCK=block, WHOLE=block >= width, num_warps=warps
    )
    return y
