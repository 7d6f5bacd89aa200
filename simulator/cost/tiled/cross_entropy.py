"""Traffic of linear cross-entropy whose logits never reach memory.

Forward: a tile of TOKENS tokens walks the vocabulary, VOCABULARY rows of the weight at a time, forms that tile of
logits from slices of the hidden dimension, and keeps a running maximum, sum and the target's logit for each token:

    loads = h·tokens·dim·⌈vocabulary/VOCABULARY⌉ + w·vocabulary·dim·⌈tokens/TOKENS⌉ + 8·tokens,   stores = 8·tokens.

Backward: one program for each tile of logits forms it again, then walks the hidden dimension a second time and adds its
part of both gradients atomically in float32, so the operands are read twice and the gradients read and written:

    loads  = 2·(the same two terms) + 16·tokens·⌈vocabulary/VOCABULARY⌉ + atomics
    stores = atomics = 4·tokens·dim·⌈vocabulary/VOCABULARY⌉ + 4·vocabulary·dim·⌈tokens/TOKENS⌉.

The scheme is Cut Cross-Entropy (E. Wijmans et al., arXiv:2411.09009, algorithms 1-4), without its filter of small
gradients. The logits would have been tokens·vocabulary elements, written and read several times.
"""

from __future__ import annotations

from peakline.cost.tiled.traffic import Traffic, ceil_div

__all__ = ["linear_cross_entropy", "linear_cross_entropy_backward", "linear_cross_entropy_footprint"]


def linear_cross_entropy(
    tokens: int, vocabulary: int, dim: int, *, tile_tokens: int, tile_vocabulary: int, element: int
) -> Traffic:
    """Bytes of each token's loss and log-sum-exp (float32) from hidden[tokens, dim] and weight[vocabulary, dim].

    Args:
        element: bytes of one element of the hidden states and of the weight. Targets are int64.
    """
    across, down = ceil_div(vocabulary, tile_vocabulary), ceil_div(tokens, tile_tokens)
    loads = {
        "hidden": element * tokens * dim * across,
        "weight": element * vocabulary * dim * down,
        "targets": 8 * tokens,
    }
    return Traffic(loads, {"loss": 4 * tokens, "lse": 4 * tokens})


def linear_cross_entropy_backward(
    tokens: int, vocabulary: int, dim: int, *, tile_tokens: int, tile_vocabulary: int, element: int
) -> Traffic:
    """Bytes of the gradients of hidden states and weight, summed in float32, from each token's float32 gradient."""
    across, down = ceil_div(vocabulary, tile_vocabulary), ceil_div(tokens, tile_tokens)
    added = {"dhidden": 4 * tokens * dim * across, "dweight": 4 * vocabulary * dim * down}
    loads = {
        "hidden": 2 * element * tokens * dim * across,
        "weight": 2 * element * vocabulary * dim * down,
        "targets": 8 * tokens * across,
        "lse": 4 * tokens * across,
        "dloss": 4 * tokens * across,
    }
    return Traffic(loads | added, added)


def linear_cross_entropy_footprint(tile_tokens: int, tile_vocabulary: int, tile_dim: int, *, element: int) -> int:
    """Bytes that one forward program holds: slices of both operands, float32 logits, five numbers a token."""
    slices = element * (tile_tokens + tile_vocabulary) * tile_dim
    return slices + 4 * tile_tokens * tile_vocabulary + 20 * tile_tokens
