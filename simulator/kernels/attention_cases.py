"""Attention in the suite: problems with shared key heads, causal masks and sequences of different lengths."""

import torch

from peakline.cost.io_bounds import fused_attention_traffic
from peakline.cost.tiled import attention as cost
from peakline.cost.tiled.traffic import Traffic
from peakline.kernels.attention import attention
from peakline.kernels.attention_backward import attention_backward
from peakline.kernels.suite import Kernel, Shape, Tensors, Tile, gradients

__all__ = ["ATTENTION_CASES"]

_SHAPES: tuple[Shape, ...] = (
    {"batch": 1, "heads": 2, "kv_heads": 2, "queries": 64, "keys": 64, "dim": 16},
    {"batch": 1, "heads": 4, "kv_heads": 2, "queries": 50, "keys": 70, "dim": 24, "causal": True},
    {"batch": 1, "heads": 2, "kv_heads": 1, "queries": 37, "keys": 90, "dim": 16, "v_dim": 32},
    {"batch": 2, "heads": 2, "kv_heads": 2, "queries": 64, "keys": 64, "dim": 16, "causal": True},
    {"batch": 3, "heads": 2, "kv_heads": 1, "queries": 60, "keys": 60, "dim": 16, "causal": True,
     "lengths": (60, 17, 33)},
    {"batch": 2, "heads": 1, "kv_heads": 1, "queries": 40, "keys": 40, "dim": 16, "lengths": (40, 9)},
)  # fmt: skip
_TILES = (
    {"tile_queries": 16, "tile_keys": 16},
    {"tile_queries": 32, "tile_keys": 16},
    {"tile_queries": 16, "tile_keys": 64},
    {"tile_queries": 64, "tile_keys": 32},
)


def _forward_inputs(s: Shape, kind: torch.dtype, device: torch.device, generator: torch.Generator) -> Tensors:
    batch, v_dim = s["batch"], s.get("v_dim", s["dim"])
    sizes = {
        "q": (batch, s["heads"], s["queries"], s["dim"]),
        "k": (batch, s["kv_heads"], s["keys"], s["dim"]),
        "v": (batch, s["kv_heads"], s["keys"], v_dim),
    }
    drawn = {name: torch.randn(size, generator=generator).to(kind).to(device) for name, size in sizes.items()}
    if s.get("lengths"):
        drawn["lengths"] = torch.tensor(s["lengths"], dtype=torch.int32, device=device)
    return drawn


def _backward_inputs(s: Shape, kind: torch.dtype, device: torch.device, generator: torch.Generator) -> Tensors:
    """With o and its log-sum-exp from the forward kernel, as in a training step."""
    drawn = _forward_inputs(s, kind, device, generator)
    forward = _launch(drawn, s, {"tile_queries": 64, "tile_keys": 64})
    do = torch.randn(forward["o"].shape, generator=generator).to(kind).to(device)
    return {**drawn, **forward, "do": do}


def _launch(t: Tensors, s: Shape, tile: Tile) -> Tensors:
    o, lse = attention(
        t["q"], t["k"], t["v"], causal=s.get("causal", False), lengths=t.get("lengths"),
        tile_queries=tile["tile_queries"], tile_keys=tile["tile_keys"],
    )  # fmt: skip
    return {"o": o, "lse": lse}


def _launch_backward(t: Tensors, s: Shape, tile: Tile) -> Tensors:
    dq, dk, dv = attention_backward(
        t["q"], t["k"], t["v"], t["o"], t["lse"], t["do"], causal=s.get("causal", False), lengths=t.get("lengths"),
        tile_queries=tile["tile_queries"], tile_keys=tile["tile_keys"],
    )  # fmt: skip
    return {"dq": dq, "dk": dk, "dv": dv}


def _reference(t: Tensors, s: Shape) -> Tensors:
    """Attention written out, one sequence at a time; 0 on padding."""
    group = s["heads"] // s["kv_heads"]
    o = t["q"].new_zeros((*t["q"].shape[:3], t["v"].shape[3]))
    lse = t["q"].new_zeros(t["q"].shape[:3])
    lengths = s.get("lengths") or [max(s["queries"], s["keys"])] * s["batch"]
    for i, length in enumerate(lengths):
        queries, keys = min(s["queries"], length), min(s["keys"], length)
        q = t["q"][i, :, :queries]
        k, v = (t[name][i, :, :keys].repeat_interleave(group, dim=0) for name in ("k", "v"))
        scores = q @ k.transpose(1, 2) * s["dim"] ** -0.5
        if s.get("causal"):
            seen = torch.ones((queries, keys), dtype=torch.bool, device=q.device).tril(keys - queries)
            scores = scores.masked_fill(~seen, -torch.inf)
        o[i, :, :queries] = torch.softmax(scores, dim=2) @ v
        lse[i, :, :queries] = torch.logsumexp(scores, dim=2)
    return {"o": o, "lse": lse}


def _gradients(t: Tensors, s: Shape) -> Tensors:
    leaves = {name: t[name].clone().requires_grad_() for name in ("q", "k", "v")}
    o = _reference({**t, **leaves}, s)["o"]
    return gradients(o, t["do"], dq=leaves["q"], dk=leaves["k"], dv=leaves["v"])


def _pairs_and_rows(s: Shape) -> tuple[int, int, int]:
    """(query, key) pairs that the mask leaves, rows of Q, rows of K: over all heads and sequences."""
    pairs = rows = own = 0
    for length in s.get("lengths") or [max(s["queries"], s["keys"])] * s["batch"]:
        queries, keys = min(s["queries"], length), min(s["keys"], length)
        seen = sum(keys - queries + i + 1 for i in range(queries)) if s.get("causal") else queries * keys
        pairs += s["heads"] * seen
        rows += s["heads"] * queries
        own += s["kv_heads"] * keys
    return pairs, rows, own


def _bound(s: Shape, capacity: int, e: int) -> float:
    dim, v_dim = s["dim"], s.get("v_dim", s["dim"])
    pairs, rows, own = _pairs_and_rows(s)
    compulsory = (e * (rows + own) * (dim + v_dim)) + 4 * rows
    return max(float(fused_attention_traffic(float(pairs), dim, v_dim, capacity, e, e, e, e)), float(compulsory))


def _backward_bound(s: Shape, capacity: int, e: int) -> float:
    """The forward pass's products come again with dO and dV; o, its gradient and the log-sum-exp are read too."""
    dim, v_dim = s["dim"], s.get("v_dim", s["dim"])
    pairs, rows, own = _pairs_and_rows(s)
    compulsory = e * (rows * (2 * dim + 2 * v_dim) + 2 * own * (dim + v_dim)) + 4 * rows
    return max(float(fused_attention_traffic(float(pairs), dim, v_dim, capacity, e, e, e, e)), float(compulsory))


def _moved(s: Shape, tile: Tile, e: int) -> Traffic:
    return cost.attention(**s, **tile, element=e)


def _moved_backward(s: Shape, tile: Tile, e: int) -> Traffic:
    return cost.attention_backward(**s, **tile, element=e)


ATTENTION_CASES = (
    Kernel(
        "flash attention", _SHAPES, _TILES, _forward_inputs, _launch, _reference, _moved,
        lambda s, tile, e: cost.attention_footprint(**tile, dim=s["dim"], v_dim=s.get("v_dim"), element=e),
        _bound,
    ),
    Kernel(
        "flash attention, backward", _SHAPES, _TILES[:3], _backward_inputs, _launch_backward, _gradients,
        _moved_backward,
        lambda s, tile, e: cost.attention_backward_footprint(**tile, dim=s["dim"], v_dim=s.get("v_dim"), element=e),
        _backward_bound,
    ),
)  # fmt: skip
