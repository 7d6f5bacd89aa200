"""Recurrent networks as cuDNN runs them: one operator for all layers and tokens, and a reserve kept for backward.

aten/src/ATen/native/cudnn/RNN.cpp: `_cudnn_rnn`, `_cudnn_rnn_backward`. Packed sequences are not covered and stay as
the CPU runs them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["RNN_COMPOSITES", "rnn_backward_results", "rnn_results"]

aten = torch.ops.aten
RELU, TANH, LSTM, GRU = range(4)
"""`cudnnRNNMode_t`."""

KEPT = {RELU: 1, TANH: 1, LSTM: 6, GRU: 4}
"""Numbers that the derivative needs of every token, unit, layer and direction: the gates' values, and an LSTM's cell
state and its tanh, a GRU's recurrent part of the candidate. cuDNN does not document its reserve; this is what it cannot
do without."""


def _run(
    mode: int,
    input: Tensor,
    hx: Tensor,
    cx: Tensor | None,
    params: list[Tensor],
    has_biases: bool,
    layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The weights lie in one buffer (`flatten_parameters`), so that none is copied."""
    hidden = (hx if cx is None else cx).shape[2]
    projection = hx.shape[2] if cx is not None and hx.shape[2] != hidden else 0
    stride = (4 if has_biases else 2) + (1 if projection else 0)
    made = aten._cudnn_rnn(
        input, params, stride, None, hx, cx, mode, hidden, projection, layers, batch_first, dropout, train,
        bidirectional, [], None,
    )  # fmt: skip
    return made[0], made[1], made[2]


def _lstm(input: Tensor, hx: list[Tensor], *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _run(LSTM, input, hx[0], hx[1], *rest)


def _plain(mode: int) -> Callable[..., tuple[Tensor, Tensor]]:
    def run(input: Tensor, hx: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        return _run(mode, input, hx, None, *rest)[:2]

    return run


RNN_COMPOSITES: dict[str, Callable[..., Any]] = {
    "lstm.input": _lstm,
    "gru.input": _plain(GRU),
    "rnn_tanh.input": _plain(TANH),
    "rnn_relu.input": _plain(RELU),
}


def rnn_results(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Output, last states, and the reserve: what is kept of every token, and the results of all layers but the last."""
    input, params = args[0], args[1]
    out, hy, cy, *_ = func(*args, **kwargs)
    mode, hidden, layers, train, bidirectional = args[6], args[7], args[9], args[12], args[13]
    tokens = input.shape[0] * input.shape[1]
    units = tokens * hidden * (2 if bidirectional else 1)
    numbers = units * (layers * KEPT[mode] + layers - 1) if train else 0
    reserve = input.new_empty(numbers * input.element_size(), dtype=torch.uint8)
    return out, hy, cy, reserve, params[0].new_empty(0)


def rnn_backward_results(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Gradients of input and states, and of the weights as parts of one buffer (`_cudnn_rnn_backward_weight`)."""
    input, weights, hx, cx, mask = args[0], args[1], args[4], args[5], args[-1]
    dx = torch.empty_like(input) if mask[0] else None
    dhx = torch.empty_like(hx) if mask[1] else None
    dcx = torch.empty_like(cx) if mask[2] and cx is not None else None
    if not mask[3]:
        return dx, dhx, dcx, [None] * len(weights)
    flat = weights[0].new_empty(sum(w.numel() for w in weights))
    parts, start = [], 0
    for w in weights:
        parts.append(flat.as_strided(w.shape, w.contiguous().stride(), start))
        start += w.numel()
    return dx, dhx, dcx, parts
