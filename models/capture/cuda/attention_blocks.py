"""Blocks inside fused attention: split keys, accumulators of the backward pass, operands made contiguous."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import TypeAlias

from peakline.models.capture.calls import Call, View
from peakline.models.capture.target import Target
from peakline.models.capture.work.attention import backward_node
from peakline.models.dims import ceil_div, round_up
from peakline.models.operators import operator_type

__all__ = ["cudnn_backward", "efficient_backward", "efficient_forward", "flash_backward", "flash_forward", "splits"]

Rule: TypeAlias = Callable[[Call, Target], tuple[int, ...]]


def _tokens_first(view: View, heads_first: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and strides as [B, S, H, d], which is how the kernels see a tensor."""
    shape, strides = view.shape, view.strides
    if heads_first:
        shape = (shape[0], shape[2], shape[1], shape[3])
        strides = (strides[0], strides[2], strides[1], strides[3])
    return shape, strides


def _copies(call: Call, names: tuple[str, ...], heads_first: bool) -> tuple[int, ...]:
    """Copies of those operands that do not lie as [B, S, H, d] (`grad_out.contiguous()`, `out.contiguous()`)."""
    made = []
    for name in names:
        view = call.arguments.get(name)
        if isinstance(view, View):
            shape, strides = _tokens_first(view, heads_first)
            expected = 1
            dense = True
            for size, stride in zip(reversed(shape), reversed(strides)):
                dense = dense and (size == 1 or stride == expected)
                expected *= size
            if not dense:
                made.append(view.elements * view.dtype.bits // 8)
    return tuple(made)


# ---- flash -----------------------------------------------------------------------------------------------------------
def splits(blocks: int, multiprocessors: int, key_blocks: int) -> int:
    """Parts that flash cuts the keys into when there are too few blocks of queries to fill the device.

    `num_splits_heuristic` of FlashAttention-2's flash_api.cpp: the fewest parts that reach 85 % of the best occupancy
    of `2·multiprocessors` places by `blocks` = batch·heads·⌈queries/64⌉ blocks; 1 when those fill 80 % of them.
    """
    places = 2 * multiprocessors
    if blocks >= 0.8 * places:
        return 1

    def eligible(n: int) -> bool:
        return n == 1 or ceil_div(key_blocks, n) != ceil_div(key_blocks, n - 1)

    def efficiency(n: int) -> float:
        waves = blocks * n / places
        return waves / ceil(waves)

    choices = [n for n in range(1, min(128, places, key_blocks) + 1) if eligible(n)]
    best = max(map(efficiency, choices), default=0.0)
    return next((n for n in choices if efficiency(n) >= 0.85 * best), 1)


def flash_forward(heads_first: bool) -> Rule:
    """Partial results and log-sum-exps in float32 when the keys are split, which dropout forbids.

    `set_params_splitkv`: blocks of 64 queries and of 256, 128 or 64 keys by the width. One query with grouped heads
    is computed as a group of queries (`seqlenq_ngroups_swapped`).
    """

    def rule(call: Call, target: Target) -> tuple[int, ...]:
        a = call.arguments
        (batch, queries, heads, width), _ = _tokens_first(a["query"], heads_first)
        (_, keys, kv_heads, _), _ = _tokens_first(a["key"], heads_first)
        if a.get("dropout_p"):
            return ()
        if queries == 1 and heads > kv_heads and width % 8 == 0:
            queries, heads = heads // kv_heads, kv_heads
        block = 256 if width <= 64 else 128 if width <= 128 else 64
        parts = splits(batch * heads * int(ceil_div(queries, 64)), target.multiprocessors, int(ceil_div(keys, block)))
        if parts == 1:
            return ()
        rows = parts * batch * heads * queries
        return (4 * rows, 4 * rows * int(round_up(width, 32)))

    return rule


def flash_backward(heads_first: bool) -> Rule:
    """float32 accumulator of dq, row sums, and expanded dk and dv under grouped heads, as the built-in operator has it;
    gradient and result made contiguous first (transformers/cuda/attention_backward.cu)."""

    def rule(call: Call, target: Target) -> tuple[int, ...]:
        node = backward_node(call, heads_first)
        blocks = operator_type(node.operator.type).workspace(node)
        copies = _copies(call, ("grad_out", "out"), heads_first)
        return (*copies, *(int(size) for size in blocks))

    return rule


def cudnn_backward(call: Call, target: Target) -> tuple[int, ...]:
    """A float32 accumulator of dq and row sums, as flash has: an estimate, the plan's workspace is cuDNN's own.

    A gradient is laid out anew only if its last dimension is not dense (`run_cudnn_SDP_bprop`, cudnn/MHA.cpp).
    """
    node = backward_node(call, True)
    blocks = tuple(int(size) for size in operator_type(node.operator.type).workspace(node))
    gradient = call.arguments.get("grad_out")
    if isinstance(gradient, View) and gradient.strides[-1] != 1:
        return (gradient.elements * gradient.dtype.bits // 8, *blocks)
    return blocks


# ---- memory-efficient ------------------------------------------------------------------------------------------------
LARGE_SHARED_MEMORY = 100 * 1024
"""Shared memory that tiles of 128 × 128 need: more than sm_86 and sm_89 (99 KiB) and sm_75 (64 KiB) have."""


def efficient_forward(heads_first: bool) -> Rule:
    """A float32 accumulator of the result when a block of keys is narrower than the values (`kSingleValueIteration`):
    wider than 128 in 16 bits (transformers/cuda/mem_eff_attention/kernel_forward.h; float32 adds up in the result)."""

    def rule(call: Call, target: Target) -> tuple[int, ...]:
        a = call.arguments
        (batch, queries, heads, _), _ = _tokens_first(a["query"], heads_first)
        width = a["value"].shape[-1]
        if a["query"].dtype.bits >= 32 or width <= 128:
            return ()
        return (4 * batch * queries * heads * width,)

    return rule


def _tile(width: int, half: bool, target: Target) -> tuple[int, int]:
    """Queries and keys of a backward tile (mem_eff_attention/kernels/generate_kernels.py: `max_k` 32, 64, 128, any).

    Above a width of 64 tiles of 128 queries come first, where the shared memory holds them; their results stay in
    registers in 16 bits up to a width of 128, and then the keys come 128 at a time too.
    """
    roomy = target.shared_memory > LARGE_SHARED_MEMORY and (target.capability >= (8, 0) or half)
    queries = 128 if width > 64 and roomy else 64
    registers = half and (64 if width <= 64 else 128 if width <= 128 else 65_536) <= queries
    return queries, 128 if registers and width > 64 and target.capability >= (8, 0) else 64


def efficient_backward(heads_first: bool) -> Rule:
    """Row sums, and one workspace with a float32 tile of dq per block of queries, and dk and dv where they do not stay
    in registers (mem_eff_attention/kernel_backward.h: `workspace_elements_gq`, `_gk`, `_gv`).

    In float32 the row sums are made by PyTorch, from a product of the gradient's size (attention_backward.cu).
    """

    def rule(call: Call, target: Target) -> tuple[int, ...]:
        a = call.arguments
        (batch, queries, heads, width), _ = _tokens_first(a["query"], heads_first)
        (_, keys, _, v_width), _ = _tokens_first(a["value"], heads_first)
        half = a["query"].dtype.bits < 32
        widest = max(width, v_width)
        rows, columns = _tile(widest, half, target)
        tiles = int(ceil_div(queries, rows) * ceil_div(width, columns))
        floats = tiles * (4 + rows * columns) if target.capability >= (7, 0) or half else 0
        if half and not (64 if widest <= 64 else 128 if widest <= 128 else 65_536) <= rows:
            parts = max(1, min(int(ceil_div(keys, columns)), 200 // (batch * heads)))
            floats += parts * int(round_up(keys, columns)) * int(round_up(width, rows) + round_up(v_width, rows))
        workspace = 4 * batch * heads * int(round_up(floats, 4))
        product = 0 if half else 4 * batch * queries * heads * v_width
        return (*_copies(call, ("grad_out", "grad_out_"), heads_first), 4 * batch * heads * queries,
                max(workspace, product))  # fmt: skip

    return rule
