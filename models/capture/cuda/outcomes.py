"""Operators whose results on CUDA differ from the CPU's in format or in the memory they hold.

A fake tensor mode answers every operator with the CPU's result. `results` is a table of those that need another one,
and while `answering` holds, fake tensor modes look there first: below autograd and below whatever records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from peakline.models.capture.cuda.composites import _fused_rms_norm
from peakline.models.capture.cuda.recurrent import rnn_backward_results, rnn_results
from peakline.models.capture.target import Target

__all__ = ["Result", "answering", "results"]

aten = torch.ops.aten
Result: TypeAlias = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
_HALF = (torch.float16, torch.bfloat16)


def _wide(statistics: Tensor) -> Tensor:
    """The same tensor in float32 (`toAccumulateType(…, is_cuda=true)`)."""
    return statistics.new_empty(statistics.shape, dtype=torch.float32) if statistics.dtype in _HALF else statistics


def _norm_statistics(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Mean and deviation in float32 where the CPU keeps the input's format.

    cuda/layer_norm_kernel.cu `layer_norm_cuda`, cuda/Normalization.cu `batch_norm_cuda`, cudnn/BatchNorm.cpp (the
    weight's format, which is float32 wherever cuDNN is chosen for 16-bit inputs).
    """
    out, mean, deviation, *reserve = func(*args, **kwargs)
    return out, _wide(mean), _wide(deviation), *reserve


def _contiguous(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Results in memory of their own in plain order, where fake tensors follow an operand's strides.

    layer_norm.cpp `layer_norm_backward_cpu`, cuda/layer_norm_kernel.cu `layer_norm_backward_cuda`: the gradient of the
    input is `empty_like(…, LEGACY_CONTIGUOUS_MEMORY_FORMAT)`.
    """
    made = func(*args, **kwargs)
    return tuple([t.new_empty(t.shape) if isinstance(t, Tensor) and not t.is_contiguous() else t for t in made])


def _rms_norm(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _fused_rms_norm(*args, **kwargs)


def _grouped(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A product of any floating-point format, rows padded to 16 bytes; fake tensors know bfloat16 alone.

    cuda/GroupedBlas.cpp `_grouped_mm_cuda`: without the bfloat16 kernel of Hopper and Blackwell it multiplies group by
    group; either way the result is `create_grouped_gemm_output_tensor`'s.
    """
    a, b = args[0], args[1]
    groups = kwargs.get("offs", args[2] if len(args) > 2 else None)
    flat = [a.shape[-2], b.shape[-1]]
    leading = [a.shape[0]] if a.dim() == b.dim() == 3 else []
    if isinstance(groups, Tensor) and a.dim() == b.dim() == 2:
        leading = [groups.shape[0]]
    kind = kwargs.get("out_dtype") or a.dtype
    aligned = 16 // kind.itemsize
    width = -(-flat[1] // aligned) * aligned
    strides = [flat[0] * width, width, 1] if leading else [width, 1]
    return a.new_empty_strided([*leading, *flat], strides, dtype=kind)


def _scalar_in_full_size(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A mean or sum that lies in memory of the input's size: the elementwise result's, resized to a scalar.

    `TORCH_META_FUNC(mse_loss)`, `(smooth_l1_loss)` (Loss.cpp), `binary_cross_entropy_out_cuda` (cuda/Loss.cu):
    resizing to fewer elements frees nothing.
    """
    out = func(*args, **kwargs)
    if out.dim() or not isinstance(args[0], Tensor) or not args[0].numel():
        return out
    return out.new_empty([args[0].numel()]).as_strided((), ())


def results(target: Target) -> Mapping[Any, Result]:
    """Operators (with their overload) whose results are not the CPU's, and how to get them; on a CPU those that fake
    tensors get wrong."""
    everywhere = {
        aten._grouped_mm.default: _grouped,
        aten.native_layer_norm_backward.default: _contiguous,
    }
    if target.kind != "cuda":
        return everywhere
    return {
        **everywhere,
        aten.native_layer_norm.default: _norm_statistics,
        aten.native_batch_norm.default: _norm_statistics,
        aten.cudnn_batch_norm.default: _norm_statistics,
        aten._fused_rms_norm.default: _rms_norm,
        aten._cudnn_rnn.default: rnn_results,
        aten._cudnn_rnn_backward.default: rnn_backward_results,
        aten.mse_loss.default: _scalar_in_full_size,
        aten.smooth_l1_loss.default: _scalar_in_full_size,
        aten.binary_cross_entropy.default: _scalar_in_full_size,
    }


@contextmanager
def answering(target: Target) -> Iterator[None]:
    """Fake tensor modes give operators the results they have on the target."""
    table = results(target)
    original = FakeTensorMode.dispatch

    def dispatch(self: FakeTensorMode, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        run = table.get(func)
        if run is None:
            return original(self, func, types, args, kwargs)
        return run(lambda *a, **k: original(self, func, types, a, k), args, kwargs or {})

    with patch.object(FakeTensorMode, "dispatch", dispatch):
        yield
