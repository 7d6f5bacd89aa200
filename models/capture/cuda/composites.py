"""Functions that PyTorch composes differently for CUDA tensors than for CPU tensors, as CUDA composes them.

Each is registered in place of the CPU's composition while a program is recorded, so that calls from C++ (inside
`nn.MultiheadAttention`, a recurrent network) are reached as well as calls from Python. Autograd sees the operators
that the composition runs, so what is saved is what CUDA saves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from warnings import catch_warnings, simplefilter

import torch
from torch import Tensor

from peakline.models.capture.cuda.attention import DEFAULT_ORDER, AttentionCall, Backend, choose_attention
from peakline.models.capture.cuda.recurrent import RNN_COMPOSITES
from peakline.models.capture.target import Target
from peakline.models.dtypes import dtype as number_format

__all__ = ["composed_for"]

aten = torch.ops.aten
Kernel = Callable[..., Any]


@contextmanager
def registered(kernels: dict[str, Kernel], key: str) -> Iterator[None]:
    """Registers kernels of ATen operators under a dispatch key, and takes them back at the end."""
    library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    try:
        with catch_warnings():
            simplefilter("ignore")  # "Overriding a previously registered kernel": that is the purpose
            for name, kernel in kernels.items():
                library.impl(name, kernel, key, allow_override=True)  # type: ignore[no-untyped-call]
        yield
    finally:
        library._destroy()  # type: ignore[no-untyped-call]


@contextmanager
def composed_for(target: Target) -> Iterator[None]:
    """Composite functions run as they do on the target."""
    kernels: dict[str, Kernel] = {
        "dropout": _dropout,
        "linear": _linear,
        "batch_norm": _batch_norm,
        "scaled_dot_product_attention": _attention_for(target),
        "softmax.int": _softmax,
        "log_softmax.int": _log_softmax,
        **RNN_COMPOSITES,
    }
    backends: dict[str, Kernel] = {}
    if target.torch >= FUSED_RMS_NORM:
        kernels["rms_norm"] = _rms_norm
        backends["_fused_rms_norm"] = _fused_rms_norm
    with registered(kernels, "CompositeImplicitAutograd"), registered(backends, "CPU"):
        yield


# ---- dropout ---------------------------------------------------------------------------------------------------------
def _dropout(input: Tensor, p: float, train: bool) -> Tensor:
    """`native_dropout` with its bool mask (aten/src/ATen/native/Dropout.cpp `is_fused_kernel_acceptable`)."""
    if not train or p == 0 or input.numel() == 0:
        return input
    if p == 1:
        return input.mul(torch.zeros((), dtype=input.dtype, device=input.device))
    result: Tensor = aten.native_dropout(input, p, train)[0]
    return result


# ---- linear ----------------------------------------------------------------------------------------------------------
def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """One `addmm` over the rows of a contiguous input, else a product to which the bias is added in place.

    aten/src/ATen/native/Linear.cpp `linear`, `_flatten_nd_linear`; for fake tensors it adds the bias out of place.
    """
    if bias is None:
        return torch.matmul(input, weight.t())
    if input.dim() == 2:
        return torch.addmm(bias, input, weight.t())
    if input.is_contiguous() and bias.dim() == 1 and input.dim() > 1:
        rows = torch.addmm(bias, input.reshape(-1, input.shape[-1]), weight.t())
        return rows.view(*input.shape[:-1], rows.shape[-1])
    return torch.matmul(input, weight.t()).add_(bias)


# ---- normalisation ---------------------------------------------------------------------------------------------------
def _uses_cudnn(x: Tensor, w: Tensor | None, b: Tensor | None, mean: Tensor | None, training: bool) -> bool:
    """aten/src/ATen/native/Normalization.cpp `_select_batch_norm_backend`."""
    if w is None or b is None or x.dtype == torch.bfloat16 or w.dtype == torch.bfloat16:
        return False
    if x.dtype == torch.float16 and w.dtype != torch.float32:
        return False
    return (mean is not None or training) and x.dim() >= 3 and x.shape[0] <= (880_801 if training else 65_535)


def _layout(x: Tensor) -> torch.memory_format:
    """`suggest_memory_format`."""
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        return torch.channels_last
    if x.dim() == 5 and x.is_contiguous(memory_format=torch.channels_last_3d) and not x.is_contiguous():
        return torch.channels_last_3d
    return torch.contiguous_format


def _batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    """cuDNN's batch norm or PyTorch's own (`_batch_norm_impl_index`), which save the same but for their formats."""
    rest = (weight, bias, running_mean, running_var, training, momentum, eps)
    if cudnn_enabled and input.numel() and _uses_cudnn(input, weight, bias, running_mean, training):
        dense = input.contiguous(memory_format=_layout(input))
        result: Tensor = aten.cudnn_batch_norm(dense, *rest)[0]
    else:
        result = aten.native_batch_norm(input, *rest)[0]
    return result


FUSED_RMS_NORM = (2, 9)
"""Release whose CUDA kernel `F.rms_norm` calls (pytorch/pytorch#153666); before, it was composed of five operators."""


def _rms_norm(input: Tensor, normalized_shape: list[int], weight: Tensor | None = None, eps: float | None = None
              ) -> Tensor:  # fmt: skip
    """The fused kernel, unless input and weight differ in format (aten/src/ATen/native/layer_norm.cpp)."""
    result: Tensor
    if (
        input.is_complex()
        or (weight is not None and weight.dtype != input.dtype)
        or _layout(input) != torch.contiguous_format
    ):
        return _composed_rms_norm(input, normalized_shape, weight, eps)
    result = aten._fused_rms_norm(input, normalized_shape, weight, eps)[0]
    return result


def _composed_rms_norm(input: Tensor, shape: list[int], weight: Tensor | None, eps: float | None) -> Tensor:
    """`rms_norm_composite`: in float32 throughout for 16-bit inputs."""
    axes = list(range(-len(shape), 0))
    wide = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
    epsilon = torch.finfo(wide.dtype).eps if eps is None else eps
    normed = wide.mul(torch.rsqrt(torch.pow(wide, 2).mean(axes, keepdim=True).add_(epsilon)))
    return (normed if weight is None else normed.mul(weight)).type_as(input)


def _fused_rms_norm(input: Tensor, normalized_shape: list[int], weight: Tensor | None, eps: float | None
                    ) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The shapes of the fused kernel: the result, and one float32 number per row (`_fused_rms_norm_cuda`).

    It must be registered for the CPU: only then does autograd use the fused operator's own derivative.
    """
    kept = input.dim() - len(normalized_shape)
    statistics = [*input.shape[:kept], *(1,) * len(normalized_shape)]
    wide = torch.float32 if input.dtype in (torch.float16, torch.bfloat16) else input.dtype
    return torch.empty_like(input, memory_format=torch.contiguous_format), input.new_empty(statistics, dtype=wide)


# ---- softmax ---------------------------------------------------------------------------------------------------------
def _softmax(input: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """fp16 to float32 happens inside the kernel, anything else is cast first (aten/src/ATen/native/SoftMax.cpp)."""
    result: Tensor
    if input.dtype == torch.float16 and dtype == torch.float32:
        result = aten._softmax(input, dim, True)
    else:
        result = aten._softmax(input if dtype is None else input.to(dtype), dim, False)
    return result


def _log_softmax(input: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """As softmax."""
    result: Tensor
    if input.dtype == torch.float16 and dtype == torch.float32:
        result = aten._log_softmax(input, dim, True)
    else:
        result = aten._log_softmax(input if dtype is None else input.to(dtype), dim, False)
    return result


# ---- attention -------------------------------------------------------------------------------------------------------
_CODES: dict[int, Backend | None] = {0: "math", 1: "flash", 2: "efficient", 3: "cudnn", 4: None}
"""`at::SDPBackend` (aten/src/ATen/SDPBackend.h)."""


def _enabled() -> frozenset[Backend]:
    """What `torch.nn.attention.sdpa_kernel` and `torch.backends.cuda.enable_*_sdp` leave."""
    flags: dict[Backend, bool] = {
        "flash": torch._C._get_flash_sdp_enabled(),
        "efficient": torch._C._get_mem_efficient_sdp_enabled(),
        "cudnn": torch._C._get_cudnn_sdp_enabled(),
        "math": torch._C._get_math_sdp_enabled(),
    }
    return frozenset(backend for backend, on in flags.items() if on)


def _order() -> tuple[Backend, ...] | None:
    """The user's order of preference; None for the default one."""
    codes = [_CODES.get(int(code)) for code in torch._C._get_sdp_priority_order()]
    order = tuple(backend for backend in codes if backend is not None)
    return None if order == DEFAULT_ORDER else order


def _described(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, p: float, causal: bool, gqa: bool
) -> AttentionCall:
    tensors = (q, k, v) if mask is None else (q, k, v, mask)
    return AttentionCall(
        query=tuple(q.shape),
        key=tuple(k.shape),
        value=tuple(v.shape),
        dtype=number_format(str(q.dtype)).name,
        same_dtype=q.dtype == k.dtype == v.dtype,
        causal=causal,
        mask=None if mask is None else tuple(mask.shape),
        mask_requires_grad=mask is not None and mask.requires_grad,
        dropout=p,
        gqa=gqa,
        requires_grad=torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v)),
        last_strides=tuple(t.stride(-1) if t.dim() else 1 for t in tensors),
    )


def _attention_for(target: Target) -> Kernel:
    """`scaled_dot_product_attention` (aten/src/ATen/native/transformers/attention.cpp) on a target."""

    def attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        call = _described(query, key, value, attn_mask, dropout_p, is_causal, enable_gqa)
        backend = choose_attention(call, target, enabled=_enabled(), order=_order())
        lse = call.requires_grad
        result: Tensor
        if backend == "flash":
            return _flash(query, key, value, dropout_p, is_causal, scale)
        mask = _additive(attn_mask, query.dtype)
        if backend == "efficient":
            mask = None if mask is None else _aligned(mask).expand(*query.shape[:3], key.shape[2])
            result = aten._scaled_dot_product_efficient_attention(
                query, key, value, mask, lse, dropout_p, is_causal, scale=scale
            )[0]
            return result
        if backend == "cudnn":
            result = aten._scaled_dot_product_cudnn_attention(
                query, key, value, mask, lse, dropout_p, is_causal, False, scale=scale
            )[0]
            return result
        return _math(query, key, value, mask, dropout_p, is_causal, scale, enable_gqa, target.torch >= WIDE_MATH)

    return attention


def _flash(q: Tensor, k: Tensor, v: Tensor, p: float, causal: bool, scale: float | None) -> Tensor:
    """Widths are padded to a multiple of 8 and the result sliced back (`pad_last_dim`, `post_process_flash_output`)."""
    width = q.shape[-1]
    factor = 1 / math.sqrt(width) if scale is None else scale
    if width % 8:
        q, k, v = (torch.constant_pad_nd(t, [0, 8 - width % 8]) for t in (q, k, v))
    out: Tensor = aten._scaled_dot_product_flash_attention(q, k, v, p, causal, False, scale=factor)[0]
    return out[..., :width] if width % 8 else out


def _additive(mask: Tensor | None, kind: torch.dtype) -> Tensor | None:
    """A bool mask as zeros and −∞ (`convert_boolean_attn_mask`)."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    minus_infinity = torch.scalar_tensor(-math.inf, dtype=kind, device=mask.device)
    return torch.where(mask, 0.0, minus_infinity)


def _aligned(mask: Tensor, step: int = 8) -> Tensor:
    """Rows of the mask start at multiples of 16 bytes; else it is padded and sliced (`preprocess_mask`, `pad_bias`)."""
    if mask.stride(-1) == 1 and all(stride % step == 0 for stride in mask.stride()[:-1]):
        return mask
    keys = mask.shape[-1]
    return torch.constant_pad_nd(mask, [0, step - keys % step])[..., :keys]


WIDE_MATH = (2, 5)
"""Release since which attention written out runs in float32, with a softmax that knows rows of −∞."""


def _math(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    p: float,
    causal: bool,
    scale: float | None,
    gqa: bool,
    wide: bool,
) -> Tensor:
    """`_scaled_dot_product_attention_math`: `wide`, 16-bit inputs in float32 unless reductions in 16 bits are allowed.

    Written out because the composition in PyTorch adds the mask out of place to fake tensors and in place to real ones.
    """
    kind = query.dtype
    half = wide and kind in (torch.float16, torch.bfloat16)
    half = half and not torch._C._get_math_sdp_allow_fp16_bf16_reduction()
    q, k, v = (t.float() if half else t for t in (query, key, value))
    factor = math.sqrt(abs(1 / math.sqrt(query.shape[-1]) if scale is None else scale))
    q = q * (-factor if scale is not None and scale < 0 else factor)
    if causal:
        ones = torch.ones((q.shape[-2], k.shape[-2]), dtype=torch.bool, device=q.device)
        mask = _additive(ones.tril(), q.dtype)
    if gqa and q.shape[-3] != k.shape[-3]:
        k = k.repeat_interleave(q.shape[-3] // k.shape[-3], -3)
        v = v.repeat_interleave(q.shape[-3] // v.shape[-3], -3)
    scores = torch.matmul(q, k.transpose(-2, -1) * factor)
    if mask is not None:
        scores.add_(mask)
    weights = aten._safe_softmax(scores, -1) if wide else torch.softmax(scores, -1)
    del scores
    if p > 0:
        weights = torch.dropout(weights, p, True)
    returned = weights.to(kind)  # the function's second result, made before the product
    out = torch.matmul(weights, v).to(kind)
    del returned
    return out
