"""Traffic of kernels that reduce along rows: RMS norm and softmax.

A program owns a few whole rows. Where its block holds a row, the row is read once and kept; else the program walks it
twice in blocks, first for its statistic and then for its result, and reads it twice:

    loads = passes·x·rows·width (+ weight·width·⌈rows/ROWS⌉),  stores = y·rows·width (+ statistics).

Compulsory traffic is one read and one write, so a row that fits attains the bound but for the weight, which every
program reads for itself. Softmax in two passes keeps a running maximum and rescales its running sum (M. Milakov,
N. Gimelshein, arXiv:1805.02867).
"""

from __future__ import annotations

from peakline.cost.tiled.traffic import Traffic, ceil_div

__all__ = ["rms_norm", "rms_norm_backward", "softmax"]


def _passes(width: int, block: int) -> int:
    return 1 if block >= width else 2


def rms_norm(rows: int, width: int, *, tile_rows: int, block: int, element: int) -> Traffic:
    """Bytes of y = x·rstd·weight with rstd = (mean(x²) + eps)^(-1/2), stored as float32 (arXiv:1910.07467).

    Args:
        rows, width: sizes of x.
        tile_rows: rows of one program.
        block: elements of a row that it holds; smaller than a row means two passes over x, one over the weight.
        element: bytes of one element of x, the weight and y.
    """
    loads = {
        "x": element * rows * width * _passes(width, block),
        "weight": element * width * ceil_div(rows, tile_rows),
    }
    return Traffic(loads, {"y": element * rows * width, "rstd": 4 * rows})


def rms_norm_backward(
    rows: int, width: int, *, tile_rows: int, programs: int, sum_rows: int, sum_cols: int, element: int
) -> Traffic:
    """Bytes of dx and dweight, in two kernels.

        dx = rstd·(w·dy - x̂·mean(w·dy·x̂)),    dweight = Σ over rows of dy·x̂,    x̂ = x·rstd

    At most `programs` programs own a run of rows each, read the weight once, add up dweight on the chip and store one
    float32 partial row; a second kernel adds the partial rows, reading each once (its tiles, sum_rows × sum_cols,
    change nothing).
    """
    del sum_rows, sum_cols
    used = ceil_div(rows, rows_per_program(rows, tile_rows, programs))
    partial = 4 * used * width
    first = Traffic(
        {
            "x": element * rows * width,
            "dy": element * rows * width,
            "rstd": 4 * rows,
            "weight": element * width * used,
        },
        {"dx": element * rows * width, "partial": partial},
    )
    return first + Traffic({"partial": partial}, {"dweight": element * width})


def rows_per_program(rows: int, tile_rows: int, programs: int) -> int:
    """Rows that each of at most `programs` programs owns: whole tiles, as even as that goes."""
    return tile_rows * ceil_div(ceil_div(rows, tile_rows), programs)


def softmax(rows: int, width: int, *, block: int, element: int) -> Traffic:
    """Bytes of y = softmax(x·scale) along rows; a `block` smaller than a row reads x twice."""
    return Traffic({"x": element * rows * width * _passes(width, block)}, {"y": element * rows * width})
