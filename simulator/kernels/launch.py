"""What every launcher needs: Triton in a state that works, and arguments that make sense.

Importing this module loads Triton. `TRITON_INTERPRET=1` must be set before Triton is first imported, because Triton
decides when a kernel is decorated whether it will be compiled or interpreted.
"""

# mypy: disable-error-code="import-not-found,import-untyped"

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from peakline.kernels.counting import interpreting

__all__ = ["check_contiguous", "check_shapes", "precision_of", "repair_interpreter", "warps_for"]


def repair_interpreter() -> None:
    """Let Triton's interpreter count its loops with any NumPy.

    Its scalars are arrays of one element, and up to Triton 3.4 `range(0, n)` in a kernel calls int() on one, which
    NumPy 2.4 refuses. The interpreter sets `tensor.__index__` anew at each launch, so the function that does
    is wrapped.
    """
    from triton.runtime import interpreter

    patch = getattr(interpreter, "_patch_lang_tensor", None)
    if patch is None or getattr(patch, "repaired", False):
        return

    def repaired(tensor: Any, *args: Any) -> None:
        patch(tensor, *args)
        tensor.__index__ = lambda self: int(np.asarray(self.handle.data).item())

    repaired.repaired = True  # type: ignore[attr-defined]
    interpreter._patch_lang_tensor = repaired


if interpreting():
    repair_interpreter()


def precision_of(tensor: torch.Tensor, precision: str) -> str:
    """The `input_precision` of `tl.dot` for operands of this format: it matters for float32 alone.

    Raises:
        ValueError: for bfloat16 under the interpreter (seen in Triton 3.2 to 3.9), or an unknown precision.
    """
    if precision not in ("ieee", "tf32", "tf32x3"):
        raise ValueError(f"precision: {precision!r} is not known; give 'ieee', 'tf32' or 'tf32x3'")
    if tensor.dtype == torch.bfloat16 and interpreting():
        raise ValueError("dtype: Triton's interpreter multiplies the bits of bfloat16 as integers; give float16")
    return precision


def warps_for(accumulators: int, warps: int | None) -> int:
    """Warps of a program with so many float32 accumulators, unless chosen: 8 where 4 could not hold them in registers.

    A thread has at most 255 registers (CUDA Programming Guide, technical specifications), of which accumulators can
    have about half, beside operands and addresses: 4 · 32 · 128 = 16,384 of them.
    """
    return warps if warps is not None else 4 if accumulators <= 4 * 32 * 128 else 8


def check_shapes(**shapes: tuple[Sequence[int], Sequence[int]]) -> None:
    """Refuse tensors that do not fit each other.

    Args:
        shapes: by the tensor's name, the shape it has and the shape it must have.

    Raises:
        ValueError: naming the tensor, its shape and the one expected.
    """
    for name, (given, expected) in shapes.items():
        if tuple(given) != tuple(expected):
            raise ValueError(f"{name}: has shape {tuple(given)}; give {tuple(expected)}")


def check_contiguous(**tensors: torch.Tensor | None) -> None:
    """Refuse tensors with gaps or transposed dimensions: a copy would move bytes that nobody asked for.

    Raises:
        ValueError: naming the tensor.
    """
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.is_contiguous():
            raise ValueError(f"{name}: is not contiguous; give {name}.contiguous()")
