"""Results whose shape depends on values, where those values are known though the operands as a whole are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["sized_by_values"]

_CTC = {torch.ops.aten._ctc_loss.default, torch.ops.aten._ctc_loss.Tensor}


def sized_by_values(func: Any, args: Any, value: Callable[[torch.Tensor], torch.Tensor | None]) -> Any:
    """The operator's result as fake tensors (fake mode is active); None where no rule is known or a value is missing.

    Args:
        value: of a tensor, None if unknown.
    """
    if func not in _CTC:
        return None
    log_probs, _, _, lengths = args[:4]
    if isinstance(lengths, torch.Tensor):
        known = value(lengths)
        if known is None:
            return None
        with torch._C._DisableTorchDispatch():
            lengths = known.tolist()
    return _ctc_loss(log_probs, max(map(int, lengths), default=0))


def _ctc_loss(log_probs: torch.Tensor, longest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of each sequence, and the forward variables [batch, time, 2 · longest target + 1] kept for backward
    (aten/src/ATen/native/LossCTC.cpp, `ctc_loss_allocate_outputs`; cuda/LossCTC.cu, `ctc_loss_gpu_template`)."""
    time, batch = (log_probs.shape[0], log_probs.shape[1]) if log_probs.dim() == 3 else (log_probs.shape[0], 1)
    shape = (batch,) if log_probs.dim() == 3 else ()
    return log_probs.new_empty(shape), log_probs.new_empty((batch, time, 2 * longest + 1))
