"""`torch.autocast("cuda")` on CPU tensors: the CPU's autocast, with CUDA's lists of operators.

Operators in 16 bits, and the cache of their weights' copies, are the same on both; CUDA's list of operators that run
in float32 is longer (aten/src/ATen/autocast_mode.h: `AT_FORALL_FP32`, `AT_FORALL_FP32_SET_OPT_DTYPE`,
`AT_FORALL_PROMOTE`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import reduce
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from peakline.models.capture.cuda.composites import registered

__all__ = ["autocast_as_on_cuda"]

FLOAT32 = (
    "acos", "asin", "cosh", "erfinv", "exp", "expm1", "log", "log10", "log2", "log1p", "reciprocal", "rsqrt",
    "sinh", "tan", "pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar", "softplus", "layer_norm",
    "native_layer_norm", "rms_norm", "group_norm", "frobenius_norm.dim", "nuclear_norm", "nuclear_norm.dim",
    "cosine_similarity", "poisson_nll_loss", "cosine_embedding_loss", "nll_loss", "nll_loss2d",
    "hinge_embedding_loss", "kl_div", "l1_loss", "smooth_l1_loss", "huber_loss", "mse_loss",
    "margin_ranking_loss", "multilabel_margin_loss", "soft_margin_loss", "triplet_margin_loss",
    "multi_margin_loss", "binary_cross_entropy_with_logits", "dist", "pdist", "cdist", "renorm", "logsumexp",
    "upsample_nearest1d", "_upsample_nearest_exact1d", "upsample_nearest2d", "_upsample_nearest_exact2d",
    "upsample_nearest3d", "_upsample_nearest_exact3d", "upsample_linear1d", "upsample_bilinear2d",
    "_upsample_bilinear2d_aa", "upsample_trilinear3d", "upsample_bicubic2d", "_upsample_bicubic2d_aa",
)  # fmt: skip
"""Arguments are cast to float32."""

FLOAT32_RESULT = (
    "prod", "prod.dim_int", "softmax.int", "log_softmax.int", "cumprod", "cumsum", "linalg_vector_norm",
    "linalg_matrix_norm", "linalg_matrix_norm.str_ord", "sum", "sum.dim_IntList",
)  # fmt: skip
"""The `dtype` argument is set to float32, where the caller gave none."""

WIDEST = (
    "addcdiv", "addcmul", "atan2", "bilinear", "cross", "dot", "vdot", "grid_sampler", "index_put", "tensordot",
    "scatter_add",
)  # fmt: skip
"""Arguments are cast to the widest format among them."""

LOWER = (
    "addmv", "addr", "mv",
)  # fmt: skip
"""In 16 bits on CUDA and not in the CPU's list."""


def _operator(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload or "default")


def _eligible(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64


def _without_autocast() -> Any:
    return torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU))


def _casting(name: str, kind: Callable[[tuple[Any, ...]], torch.dtype]) -> Callable[..., Any]:
    """A kernel that casts eligible tensors to a format that the arguments decide, and runs the operator."""
    operator = _operator(name)

    def kernel(*args: Any, **kwargs: Any) -> Any:
        to = kind(args)
        with _without_autocast():
            args = tree_map(lambda v: v.to(to) if _eligible(v) else v, args)
            return operator(*args, **kwargs)

    return kernel


def _answering_float32(name: str) -> Callable[..., Any]:
    """A kernel that asks the operator for a float32 result (`fp32_set_opt_dtype`)."""
    operator = _operator(name)
    place = [a.name for a in operator._schema.arguments if not a.kwarg_only].index("dtype") if name in (
        "softmax.int", "log_softmax.int"
    ) else None  # fmt: skip

    def kernel(*args: Any, **kwargs: Any) -> Any:
        given = kwargs.get("dtype") if place is None else (args[place] if len(args) > place else kwargs.get("dtype"))
        with _without_autocast():
            if _eligible(args[0]) and given is None:
                if place is not None:
                    args = args[:place]
                kwargs = {**kwargs, "dtype": torch.float32}
            return operator(*args, **kwargs)

    return kernel


def _widest(args: tuple[Any, ...]) -> torch.dtype:
    found: list[torch.dtype] = []
    tree_map(lambda v: found.append(v.dtype) if _eligible(v) else None, args)
    return reduce(torch.promote_types, found) if found else torch.float32


def _as_cpu(original: Callable[..., Any]) -> Callable[..., Any]:
    """A function of a device type that takes CUDA for the CPU."""

    def ask(*args: Any, **kwargs: Any) -> Any:
        if not args and not kwargs:
            return original("cpu")
        args = tuple("cpu" if str(a).startswith("cuda") else a for a in args)
        kwargs = {k: "cpu" if str(v).startswith("cuda") else v for k, v in kwargs.items()}
        return original(*args, **kwargs)

    return ask


@contextmanager
def autocast_as_on_cuda() -> Iterator[None]:
    """`torch.autocast("cuda")` acts on CPU tensors, with CUDA's lists, and with fp16 as its default format."""
    kernels = {name: _casting(name, lambda args: torch.float32) for name in FLOAT32}
    kernels |= {name: _answering_float32(name) for name in FLOAT32_RESULT}
    kernels |= {name: _casting(name, _widest) for name in WIDEST}
    kernels |= {name: _casting(name, lambda args: torch.get_autocast_dtype("cpu")) for name in LOWER}
    start = torch.amp.autocast_mode.autocast.__init__

    def begin(self: Any, device_type: str, dtype: torch.dtype | None = None, *args: Any, **kwargs: Any) -> None:
        if device_type == "cuda":
            device_type, dtype = "cpu", torch.float16 if dtype is None else dtype
        start(self, device_type, dtype, *args, **kwargs)

    with ExitStack() as stack:
        stack.enter_context(registered(kernels, "AutocastCPU"))
        stack.enter_context(patch.object(torch.amp.autocast_mode.autocast, "__init__", begin))
        for name in ("is_autocast_enabled", "get_autocast_dtype"):
            stack.enter_context(patch.object(torch, name, _as_cpu(getattr(torch, name))))
        yield
