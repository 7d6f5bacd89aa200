"""Which kernel `F.scaled_dot_product_attention` runs on a CUDA device.

The rules are those of `aten/src/ATen/native/transformers/cuda/sdp_utils.cpp` (`select_sdp_backend` and the checks that
`can_use_flash_attention`, `can_use_mem_efficient_attention` and `can_use_cudnn_attention` list) and of
`aten/src/ATen/native/transformers/sdp_utils_cpp.h`; each function below is one check, under the source's name. Nested
tensors are not covered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from peakline.models.capture.target import Target

__all__ = ["DEFAULT_ORDER", "AttentionCall", "Backend", "choose_attention"]

Backend: TypeAlias = Literal["flash", "efficient", "cudnn", "math"]

DEFAULT_ORDER: tuple[Backend, ...] = ("flash", "efficient", "math", "cudnn")
"""`Context::sdp_priority_order` (aten/src/ATen/Context.h); math always accepts, so that cuDNN stands behind it."""


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """One call of attention, as far as the choice of its kernel goes.

    Attributes:
        query, key, value: shapes, [batch, heads, tokens, width] for all kernels but math.
        dtype: of the query; `same_dtype` says whether key and value have it too.
        causal: the `is_causal` flag.
        mask: shape of the mask, or None; `mask_requires_grad`.
        dropout: probability.
        gqa: the `enable_gqa` flag: fewer key heads than query heads.
        requires_grad: whether a gradient of query, key or value will be wanted (and grad mode is on).
        last_strides: strides of the last dimension of query, key and value (and of the mask, if any).
    """

    query: tuple[int, ...]
    key: tuple[int, ...]
    value: tuple[int, ...]
    dtype: str = "bf16"
    same_dtype: bool = True
    causal: bool = False
    mask: tuple[int, ...] | None = None
    mask_requires_grad: bool = False
    dropout: float = 0.0
    gqa: bool = False
    requires_grad: bool = True
    last_strides: tuple[int, ...] = (1, 1, 1)


# ---- checks that all fused kernels share -----------------------------------------------------------------------------
def _four_dimensions(call: AttentionCall) -> bool:
    """`check_tensor_shapes`."""
    return len(call.query) == len(call.key) == len(call.value) == 4


def _batch_and_heads(call: AttentionCall) -> bool:
    """`check_batch_size_and_num_heads_dense`: equal, or grouped heads when asked for."""
    (bq, hq), (bk, hk), (bv, hv) = (shape[:2] for shape in (call.query, call.key, call.value))
    if not bq == bk == bv:
        return False
    return (hk == hv and hq % hk == 0) if call.gqa else hq == hk == hv


def _some_tokens(call: AttentionCall) -> bool:
    """`check_nonzero_sequence_lengths_dense`."""
    return call.query[-2] > 0 and call.key[-2] > 0


def _last_stride_one(call: AttentionCall, singleton: bool) -> bool:
    """`check_last_dim_stride_equals_1_dense`; a width of 1 may have any stride for flash and cuDNN (`singleton`)."""
    inputs = all(stride == 1 for stride in call.last_strides[:3]) or (singleton and call.query[-1] == 1)
    return inputs and all(stride == 1 for stride in call.last_strides[3:])


def _between(target: Target, low: tuple[int, int], high: tuple[int, int]) -> bool:
    """`check_sm_version`."""
    return low <= target.capability <= high


def _newest(target: Target) -> tuple[int, int]:
    """Newest architecture the fused kernels accept: sm_90, sm_100 and sm_120 since 2.7, sm_121 since 2.8."""
    if target.torch >= (2, 8):
        return (12, 1)
    return (12, 0) if target.torch >= (2, 7) else (9, 0)


# ---- flash -----------------------------------------------------------------------------------------------------------
def _low_precision(call: AttentionCall, target: Target) -> bool:
    """`check_dtypes_low_precision`: fp16 and, from sm_80, bf16."""
    return call.same_dtype and call.dtype in (("fp16", "bf16") if target.capability >= (8, 0) else ("fp16",))


def _flash_width(call: AttentionCall) -> bool:
    """`check_head_dim_size_flash`: one width of at most 256 (others are padded to a multiple of 8)."""
    return call.query[-1] == call.key[-1] == call.value[-1] <= 256


def _flash_training_width(call: AttentionCall, target: Target) -> bool:
    """`check_requires_grad_and_head_dim_gt192_constraints_on_sm86_89_or_120`."""
    small = _between(target, (8, 6), (8, 9)) or _between(target, (12, 0), (12, 1))
    if not (call.requires_grad and small):
        return True
    return call.query[-1] <= 192 or (call.query[-1] > 224 and call.dropout == 0)


def _square_if_causal(call: AttentionCall) -> bool:
    """`check_flash_causal_non_square_seqlens`: flash aligns a causal mask lower right, SDPA upper left."""
    return not call.causal or call.query[-2] == call.key[-2]


def _flash(call: AttentionCall, target: Target) -> bool:
    """`can_use_flash_attention`."""
    return (
        _four_dimensions(call)
        and call.mask is None
        and _flash_width(call)
        and _between(target, (8, 0), _newest(target))
        and _flash_training_width(call, target)
        and _square_if_causal(call)
        and _low_precision(call, target)
        and _batch_and_heads(call)
        and _some_tokens(call)
        and _last_stride_one(call, singleton=True)
    )


# ---- memory-efficient ------------------------------------------------------------------------------------------------
def alignment(dtype: str, target: Target) -> int:
    """Elements that the width must be a multiple of (`minimum_gemm_alignment`)."""
    half = dtype in ("fp16", "bf16")
    least = 4 if target.capability >= (8, 0) else 1
    tensor_cores = target.capability >= (8, 0) or (target.capability >= (7, 0) and half)
    return max(least, 128 // (16 if half else 32)) if tensor_cores else least


def _aligned_widths(call: AttentionCall, target: Target) -> bool:
    """`check_head_dim_size_mem_efficient`."""
    step = alignment(call.dtype, target)
    widths = (call.query[-1], call.value[-1])
    return call.query[-1] == call.key[-1] and all(width > 0 and width % step == 0 for width in widths)


def _efficient(call: AttentionCall, target: Target) -> bool:
    """`can_use_mem_efficient_attention`; a mask may have any shape that broadcasts."""
    formats = ("fp16", "fp32", "bf16") if target.capability >= (8, 0) else ("fp16", "fp32")
    return (
        _four_dimensions(call)
        and _between(target, (5, 0), _newest(target))
        and _aligned_widths(call, target)
        and _some_tokens(call)
        and _last_stride_one(call, singleton=False)
        and _equal_heads_or_grouped(call, target)
        and call.same_dtype
        and call.dtype in formats
    )


def _equal_heads_or_grouped(call: AttentionCall, target: Target) -> bool:
    """Grouped heads only after 2.13 (`supports_gqa`; `q_heads_per_kv` in the kernel's parameters)."""
    return _batch_and_heads(call) and (target.torch > (2, 13) or call.query[1] == call.key[1] == call.value[1])


# ---- cuDNN -----------------------------------------------------------------------------------------------------------
def _mask_shape(call: AttentionCall) -> bool:
    """`check_attn_mask_shape`: [q or 1, k or 1], or that with batch and heads (or 1) in front; without a gradient."""
    if call.mask is None:
        return True
    batch, heads, queries = call.query[:3]
    if call.mask_requires_grad or len(call.mask) not in (2, 4):
        return False
    if call.mask[-2] not in (queries, 1) or call.mask[-1] not in (call.key[-2], 1):
        return False
    return len(call.mask) == 2 or (call.mask[0] in (1, batch) and call.mask[1] in (1, heads))


def _cudnn_shapes(call: AttentionCall, target: Target) -> bool:
    """`check_cudnn_tensor_shapes` with cuDNN 9.11 or later: Hopper up to 256, Blackwell DeepSeek's widths."""
    width, v_width = call.query[-1], call.value[-1]
    limit = 128
    if target.capability == (9, 0):
        limit = 256
    elif target.capability[0] == 10 and (width, v_width) == (192, 128):
        limit = 192
    if max(width, v_width) > limit or width % 8 or v_width % 8:
        return False
    return call.key[-2] != 1 and not (call.dropout and call.query[-2] == 1)


def _cudnn(call: AttentionCall, target: Target) -> bool:
    """`can_use_cudnn_attention`; dropout in steps of 1/16 (`check_cudnn_dropout`)."""
    return (
        _four_dimensions(call)
        and _low_precision(call, target)
        and _mask_shape(call)
        and _between(target, (8, 0), (12, 1))
        and (call.dropout * 16).is_integer()
        and _some_tokens(call)
        and _last_stride_one(call, singleton=True)
        and _batch_and_heads(call)
        and _cudnn_shapes(call, target)
    )


# ---- choice ----------------------------------------------------------------------------------------------------------
def choose_attention(
    call: AttentionCall,
    target: Target,
    *,
    enabled: frozenset[Backend] = frozenset({"flash", "efficient", "cudnn", "math"}),
    order: tuple[Backend, ...] | None = None,
) -> Backend:
    """The kernel PyTorch picks (`select_sdp_backend`): the first of its order that accepts the call.

    Args:
        call, target: what is asked, and where.
        enabled: what `torch.nn.attention.sdpa_kernel` leaves.
        order: its `set_priority`; by default flash, efficient, math, cuDNN, or cuDNN first where the target says so.

    Raises:
        ValueError: nothing that is enabled accepts the call (PyTorch: "No available kernel").
    """
    accepts: dict[Backend, Callable[[AttentionCall, Target], bool]] = {
        "flash": _flash,
        "efficient": _efficient,
        "cudnn": _cudnn,
        "math": lambda call, target: True,
    }
    if order is None:
        order = ("cudnn", *(b for b in DEFAULT_ORDER if b != "cudnn")) if target.prefers_cudnn else DEFAULT_ORDER
    for backend in order:
        if backend in enabled and accepts[backend](call, target):
            return backend
    raise ValueError(
        f"attention of {call.dtype} query {call.query}, key {call.key}: none of the kernels enabled "
        f"({', '.join(sorted(enabled))}) runs it on sm_{target.capability[0]}{target.capability[1]}"
    )
