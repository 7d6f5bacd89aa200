"""Attention masks that are written out: transformers makes one where a sliding window cuts keys off.

`create_sliding_window_causal_mask` (transformers/masking_utils.py) leaves the mask out, and attention to the flash
kernels, only while the sequence is shorter than the window. Beyond, every layer turns the boolean mask into numbers to
add to its scores (`convert_boolean_attn_mask`, aten/src/ATen/native/transformers/attention.cpp) and keeps them for the
backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass

from peakline.models.builder import GraphBuilder
from peakline.models.dims import Dim, round_up
from peakline.models.dtypes import DType, dtype
from peakline.models.graph import Tensor
from peakline.models.operators.registry import GradientContext, Node, OperatorType, register

__all__ = ["mask_bias", "window_mask"]

ALIGNED = 8
"""Elements that a row of the memory-efficient kernel's 16-bit bias is padded to (`pad_bias`, attention.cpp)."""


@dataclass(frozen=True)
class WindowMask(OperatorType):
    """Which keys each query sees: two comparisons and a conjunction over [1, 1, S, T], from positions."""

    name: str = "window_mask"
    launches: int = 3

    def workspace(self, node: Node) -> tuple[Dim, ...]:
        """The comparisons' results."""
        return (node.outputs[0].bytes, node.outputs[0].bytes)


@dataclass(frozen=True)
class MaskBias(OperatorType):
    """0 where the mask lets a key through and −∞ elsewhere, [B, 1, S, T], T padded."""

    name: str = "mask_bias"

    def backward(self, node: Node, context: GradientContext) -> None:
        """None: a mask has no gradient."""


for _type in (WindowMask(), MaskBias()):
    register(_type)


def window_mask(b: GraphBuilder, positions: Tensor, keys: Dim) -> Tensor:
    """The boolean mask [1, 1, S, T] of a causal sliding window over `positions` [1, S]."""
    shape = (1, 1, positions.shape[-1], keys)
    return b.add("window_mask", (positions,), {"out": (shape, dtype("bool"))}, name="window_mask")[0]


def mask_bias(b: GraphBuilder, mask: Tensor, batch: Dim, kind: DType) -> Tensor:
    """`mask` [1, 1, S, T] as numbers to add to the scores, [batch, 1, S, T]."""
    *_, queries, keys = mask.shape
    shape = (batch, 1, queries, round_up(keys, ALIGNED))
    return b.add("mask_bias", (mask,), {"out": (shape, kind)}, name="mask_bias")[0]
