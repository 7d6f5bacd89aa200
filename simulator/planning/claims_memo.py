"""MEMO's question (arXiv:2407.12117): 7B, a million tokens, 8 × A800; what share of the activations is moved?"""

from __future__ import annotations

from collections.abc import Iterator

import peakline as pk
from peakline.planning.claim import Claim
from peakline.planning.memo import Layer, Tensor, alpha, per_tensor, tied
from peakline.solvers.offload.problem import Tier
from peakline.timeline import step_seconds

__all__ = ["memo", "memo_flops", "memo_layer"]

A800 = 8
"""Devices of the node; tensor and sequence parallel over all of them."""

NVLINK = 200e9
"""Bytes/s of an A800's NVLink in each direction (400 GB/s in both; NVIDIA A800 datasheet)."""


_PARTS = (
    "ln_1",
    "attn.c_attn",
    "attn.c_proj",
    "attn.",
    "add_attention",
    "ln_2",
    "mlp.c_fc",
    "mlp.act_fn",
    "mlp.",
    "add_",
)


def memo_layer(tokens: int, attention: float | None = None) -> tuple[Layer, float]:
    """One layer of the 7B GPT on one of eight GPUs, and the seconds of what comes before and after the layers.

    Args:
        attention: FLOP/s of attention, five products backward against two forward; None for the cost model's own.

    Each GPU holds an eighth of every tensor: heads and MLP divided, the rest by tokens, two gathers and two scatters
    of the hidden state per layer and pass (sequence parallelism, arXiv:2205.05198, §4.2.2).
    """
    hidden = 4096
    sizes = {
        "layers": 2, "hidden": hidden, "heads": 32 // A800, "kv_heads": 32 // A800, "head_dim": 128,
        "ffn": 4 * hidden // A800, "vocab": 50_304 // A800, "position_rows": tokens, "embed_width": hidden,
    }  # fmt: skip
    step = pk.training_step(
        "gpt2-xl", batch=1, seq=tokens, dtype="bf16", optimizer="none", dropout=False, kernels="fused", overrides=sizes
    )
    found = pk.estimate(step, "a100-80gb")
    took: dict[str, float] = {}
    totals = {"forward": 0.0, "backward": 0.0, "ends": 0.0}
    for one, seconds in zip(found.memory.program.steps, step_seconds(found)):
        if any(word in one.name for word in (".ln_", "add_")):
            seconds /= A800  # divided by tokens
        if attention and ".flash" in one.name:
            products = 5 if one.operator.phase == "backward" else 2
            seconds = products * (hidden // A800) * float(tokens) ** 2 / attention
        if one.block.name.startswith("transformer.h"):
            if one.layer == 0:
                totals[one.operator.phase] += seconds
            if one.layer == 0 and one.operator.phase == "forward":
                part = one.name.removeprefix("transformer.h.0.").removeprefix("transformer.h.")
                part = next(known for known in _PARTS if part.startswith(known))
                took[part] = took.get(part, 0.0) + seconds
        else:
            totals["ends"] += seconds
    unit = tokens * hidden * 2 // A800  # b·s·h in half precision, one device's share
    gathers = 4 * unit * (A800 - 1) / NVLINK
    tensors = (
        Tensor("input", unit, 0.0, always=True),
        Tensor("ln_1", unit, took["ln_1"]),
        Tensor("qkv", 3 * unit, took["ln_1"] + took["attn.c_attn"]),
        Tensor("attention", unit, 0.0, always=True),
        Tensor("residual", unit, took["attn.c_proj"] + took["add_attention"]),
        Tensor("ln_2", unit, took["ln_2"]),
        Tensor("fc", 4 * unit, took["mlp.c_fc"]),
        Tensor("act", 4 * unit, took["mlp.act_fn"]),
    )
    return Layer(totals["forward"] + gathers, totals["backward"] + gathers, tensors), totals["ends"]


FLASH_2 = 189e12
"""FLOP/s of FlashAttention-2 forward and backward on an A100 80 GB at 16,384 tokens, causal, heads of 128: figure 4 (d)
of arXiv:2307.08691."""


def memo_flops(tokens: int) -> float:
    """Model FLOPs of a step: three times the forward products, causal attention at half (MEMO, §5.1)."""
    hidden, layers, vocab = 4096, 32, 50_304
    return 3.0 * (layers * (24.0 * tokens * hidden**2 + 2.0 * tokens**2 * hidden) + 2.0 * tokens * hidden * vocab)


def memo() -> Iterator[Claim]:
    """MEMO, arXiv:2407.12117: 7B, a million tokens, 8 × A800, 2 TB of host memory."""
    source, layers, rate, tokens = "MEMO (2407.12117)", 32, 25e9, 1 << 20
    layer, ends = memo_layer(tokens)
    base = layers * (layer.forward + layer.backward) + ends
    mfu = 100 * memo_flops(tokens) / (312e12 * A800)
    yield Claim(source, "7B, 1M tokens: MFU if nothing had to leave", None, mfu / base, "%", "kernels as estimated")
    quick, ends_too = memo_layer(tokens, FLASH_2)
    share, _ = alpha(quick, layers, rate, (2 << 40) // A800)
    told_by_authors = layers * (quick.forward + quick.backward) + ends_too + tied(quick, layers, share)
    yield Claim(
        source, "7B, 1M tokens, 2 TB of host memory: MFU with attention at its authors' own rate", 52.30,
        mfu / told_by_authors, "%", "189 TFLOP/s forward and backward (FlashAttention-2, arXiv:2307.08691, figure 4)",
    )  # fmt: skip
    for terabytes in (2, 1):
        host, told = (terabytes << 40) // A800, terabytes == 2
        with_host = f"7B, 1M tokens, {terabytes} TB of host memory"
        share, cause = alpha(layer, layers, rate, host)
        yield Claim(
            source, f"{with_host}: α", 0.467 if told else None, share, f"bound by {cause}",
            "16·b·s·h saved per layer, half precision",
        )  # fmt: skip
        yield Claim(
            source, f"{with_host}: MFU with that α", 52.30 if told else None,
            mfu / (base + tied(layer, layers, share)), "%",
            "tensor and sequence parallel over 8, kernels of an A100 as estimated, causal FLOPs at half",
        )  # fmt: skip
        states = int(6.7e9 * 16 / A800) + (8 << 30)  # parameters, gradients, Adam; context and working buffers
        room = (80 << 30) - states
        behind = (Tier("host", rate, rate, host), Tier("ssd", 3.5e9, 3.5e9, None))
        for words, tiers in (("every tensor for itself", behind[:1]), ("and drives behind the host", behind)):
            decisions, _ = per_tensor(layer, layers, room, tiers, (rate, rate))
            yield Claim(
                source, f"{with_host}: MFU, {words}", None, mfu / (decisions.seconds + ends), "%",
                "the same step; what fits the device stays there, the backward pass is a window too",
            )  # fmt: skip
