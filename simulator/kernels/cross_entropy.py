"""Cross-entropy of hidden·weightᵀ whose logits never reach memory; traffic in `peakline.cost.tiled.cross_entropy`."""

# mypy: disable-error-code="import-not-found,import-untyped,no-untyped-def,untyped-decorator"

import torch
import triton
import triton.language as tl

from peakline.cost.tiled.traffic import check_tiles
from peakline.kernels.launch import check_contiguous, check_shapes, precision_of

__all__ = ["linear_cross_entropy", "linear_cross_entropy_backward"]


@triton.jit
def _logits(
    hidden, weight, token, word, tokens, vocabulary, dim,
    TOKENS: tl.constexpr, VOCABULARY: tl.constexpr, DIM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of logits, -∞ beyond the vocabulary."""
    logit = tl.zeros((TOKENS, VOCABULARY), dtype=tl.float32)
    for start in range(0, dim, DIM):
        at = start + tl.arange(0, DIM)
        left = tl.load(hidden + token[:, None] * dim + at[None, :],
                       mask=(token < tokens)[:, None] & (at < dim)[None, :], other=0.0)  # fmt: skip
        right = tl.load(weight + word[:, None] * dim + at[None, :],
                        mask=(word < vocabulary)[:, None] & (at < dim)[None, :], other=0.0)  # fmt: skip
        logit = tl.dot(left, tl.trans(right), logit, input_precision=PRECISION)
    return tl.where((word < vocabulary)[None, :], logit, -float("inf"))


@triton.jit
def _linear_cross_entropy(
    hidden, weight, targets, loss, lse, tokens, vocabulary, dim, ignore,
    TOKENS: tl.constexpr, VOCABULARY: tl.constexpr, DIM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    token = (tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)
    target = tl.load(targets + token, mask=token < tokens, other=ignore)
    top = tl.full((TOKENS,), -float("inf"), dtype=tl.float32)
    total = tl.zeros((TOKENS,), dtype=tl.float32)
    hit = tl.zeros((TOKENS,), dtype=tl.float32)
    for start in range(0, vocabulary, VOCABULARY):
        word = (start + tl.arange(0, VOCABULARY)).to(tl.int64)
        logit = _logits(hidden, weight, token, word, tokens, vocabulary, dim, TOKENS, VOCABULARY, DIM, PRECISION)
        higher = tl.maximum(top, tl.max(logit, axis=1))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(logit - higher[:, None]), axis=1)
        top = higher
        hit += tl.sum(tl.where(word[None, :] == target[:, None], logit, 0.0), axis=1)
    norm = top + tl.log(total)
    tl.store(lse + token, norm, mask=token < tokens)
    tl.store(loss + token, tl.where(target == ignore, 0.0, norm - hit), mask=token < tokens)


@triton.jit
def _linear_cross_entropy_backward(
    hidden, weight, targets, lse, dloss, dhidden, dweight, tokens, vocabulary, dim, ignore,
    TOKENS: tl.constexpr, VOCABULARY: tl.constexpr, DIM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    token = (tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)
    word = (tl.program_id(1) * VOCABULARY + tl.arange(0, VOCABULARY)).to(tl.int64)
    real = token < tokens
    target = tl.load(targets + token, mask=real, other=ignore)
    norm = tl.load(lse + token, mask=real, other=0.0)
    upstream = tl.load(dloss + token, mask=real, other=0.0)
    logit = _logits(hidden, weight, token, word, tokens, vocabulary, dim, TOKENS, VOCABULARY, DIM, PRECISION)
    hit = word[None, :] == target[:, None]
    share = tl.exp(logit - norm[:, None]) - tl.where(hit, 1.0, 0.0)
    share = tl.where((real & (target != ignore))[:, None], share * upstream[:, None], 0.0)
    for start in range(0, dim, DIM):
        at = start + tl.arange(0, DIM)
        hidden_place = token[:, None] * dim + at[None, :]
        weight_place = word[:, None] * dim + at[None, :]
        hidden_inside = real[:, None] & (at < dim)[None, :]
        weight_inside = (word < vocabulary)[:, None] & (at < dim)[None, :]
        left = tl.load(hidden + hidden_place, mask=hidden_inside, other=0.0)
        right = tl.load(weight + weight_place, mask=weight_inside, other=0.0)
        part = share.to(left.dtype)
        of_hidden = tl.dot(part, right, input_precision=PRECISION)
        of_weight = tl.dot(tl.trans(part), left, input_precision=PRECISION)
        tl.atomic_add(dhidden + hidden_place, of_hidden, mask=hidden_inside, sem="relaxed")
        tl.atomic_add(dweight + weight_place, of_weight, mask=weight_inside, sem="relaxed")


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    ignore_index: int = -100,
    tile_tokens: int = 64,
    tile_vocabulary: int = 64,
    tile_dim: int = 32,
    precision: str = "ieee",
    warps: int = 4,
    stages: int = 3,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each token's cross-entropy of hidden @ weight.T against its target.

    Args:
        hidden: [tokens, dim] contiguous; float16, bfloat16 or float32.
        weight: [vocabulary, dim], likewise.
        targets: [tokens] int64; `ignore_index` gives a loss of 0.
        tile_tokens, tile_vocabulary, tile_dim: tile of logits, and slice of the hidden dimension; powers of two, at
            least 16.
        precision, warps, stages: as for `peakline.kernels.matmul.matmul`.

    Returns:
        loss [tokens], log-sum-exp of the logits [tokens], both float32.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    tokens, dim = hidden.shape
    _check(hidden, weight, targets, tile_tokens, tile_vocabulary, tile_dim)
    loss = hidden.new_empty((tokens,), dtype=torch.float32)
    lse = torch.empty_like(loss)
    _linear_cross_entropy[(triton.cdiv(tokens, tile_tokens),)](
        hidden, weight, targets, loss, lse, tokens, weight.shape[0], dim, ignore_index, TOKENS=tile_tokens,
        VOCABULARY=tile_vocabulary, DIM=tile_dim, PRECISION=precision_of(hidden, precision), num_warps=warps,
        num_stages=stages,
    )  # fmt: skip
    return loss, lse


def linear_cross_entropy_backward(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    lse: torch.Tensor,
    dloss: torch.Tensor,
    *,
    ignore_index: int = -100,
    tile_tokens: int = 64,
    tile_vocabulary: int = 64,
    tile_dim: int = 32,
    precision: str = "ieee",
    warps: int = 4,
    stages: int = 3,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of `linear_cross_entropy`, summed atomically in float32.

    Args:
        hidden, weight, targets, ignore_index, tiles, precision, warps, stages: as there.
        lse: as it returned it.
        dloss: [tokens] float32, the gradient of each token's loss.

    Returns:
        dhidden [tokens, dim], dweight [vocabulary, dim], float32.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    (tokens, dim), vocabulary = hidden.shape, weight.shape[0]
    _check(hidden, weight, targets, tile_tokens, tile_vocabulary, tile_dim)
    check_shapes(lse=(lse.shape, (tokens,)), dloss=(dloss.shape, (tokens,)))
    check_contiguous(lse=lse, dloss=dloss)
    dhidden = torch.zeros_like(hidden, dtype=torch.float32)
    dweight = torch.zeros_like(weight, dtype=torch.float32)
    _linear_cross_entropy_backward[(triton.cdiv(tokens, tile_tokens), triton.cdiv(vocabulary, tile_vocabulary))](
        hidden, weight, targets, lse, dloss, dhidden, dweight, tokens, vocabulary, dim, ignore_index,
        TOKENS=tile_tokens, VOCABULARY=tile_vocabulary, DIM=tile_dim, PRECISION=precision_of(hidden, precision),
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return dhidden, dweight


def _check(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, tokens: int, vocabulary: int, dim: int
) -> None:
    check_tiles((("tile_tokens", tokens), ("tile_vocabulary", vocabulary), ("tile_dim", dim)))
    check_shapes(weight=(weight.shape, (weight.shape[0], hidden.shape[1])), targets=(targets.shape, hidden.shape[:1]))
    check_contiguous(hidden=hidden, weight=weight, targets=targets)
    if targets.dtype != torch.int64:
        raise ValueError(f"targets: are {targets.dtype}; give int64")
