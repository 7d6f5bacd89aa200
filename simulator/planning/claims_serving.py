"""What papers on serving and on long prompts claim: FlexGen's throughput, HeadInfer's and MOM's memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import peakline as pk
from peakline.memory.footprint import Memory, footprint
from peakline.memory.lifetimes import Program
from peakline.planning.claim import GIB, Claim, largest

__all__ = ["flexgen", "head_infer", "mom"]


def flexgen() -> Iterator[Claim]:
    """FlexGen, arXiv:2303.06865, table 1 (hardware), tables 2 and 3 (without compression, one GPU), 32 tokens each."""
    drive = pk.device(
        "samsung-pm1743-7.68tb",
        **{"memory.nand.read_bandwidth": "2 GB/s", "memory.nand.write_bandwidth": "1 GB/s",
           "memory.nand.capacity": "1.5 TB"},
    )  # fmt: skip
    models = (("opt-6.7b", "OPT-6.7B"), ("opt-30b", "OPT-30B"), ("gpt3-175b", "OPT-175B"))
    told = {512: ((25.26, 38.28), (7.32, 11.52), (0.69, 0.83)), 1024: ((13.72, None), (3.50, None), (0.35, None))}
    for prompt, rates in told.items():
        for (model, words), (rate, decoding) in zip(models, rates):
            options: dict[str, Any] = {"ssd": "1.5 TB", "ssd_device": drive} if words == "OPT-175B" else {}
            if words == "OPT-6.7B":
                options = {"batch": (1 if prompt > 512 else 2,), "batches": (1,)}
            found = pk.place(model, "t4", prompt=prompt, generate=32, dtype="fp16", host="208 GB", **options)
            assumes = (
                f"{found.batches} × {found.batch} sequences, PCIe 3.0 x16 at 80 % of its peak, attention on the GPU"
                + (", the paper's batch" if words == "OPT-6.7B" else "")
                + (", a drive of 2 GB/s" if words == "OPT-175B" else "")
            )
            what = f"{words} on a T4, prompts of {prompt:,}"
            yield Claim("FlexGen (2303.06865)", what, rate, found.throughput, "tokens/s", assumes)
            if decoding:
                steps = found.block / found.step_seconds
                yield Claim("FlexGen (2303.06865)", f"{what}: decoding alone", decoding, steps, "tokens/s", assumes)


def head_infer() -> Iterator[Claim]:
    """HeadInfer, arXiv:2502.12574, figure 1 and table 2: Llama-3-8B, a million tokens."""
    tokens, chunk = 1 << 20, 10_240
    before = pk.estimate(pk.prefill("llama-3-8b", batch=1, seq=tokens), "a100-80gb").memory
    part = pk.estimate(pk.prefill("llama-3-8b", batch=1, seq=chunk), "a100-80gb").memory
    kept = before.by_role["kv_cache"]
    heads = 32 * 8
    source = "HeadInfer (2502.12574)"
    yield Claim(source, "Llama-3-8B, 1M tokens: cache", 128.0, kept / GIB, "GiB", "bf16")
    yield Claim(source, "cache on the device, head by head", 1.0, 2 * kept / heads / GIB, "GiB", "two heads: ping-pong")
    yield Claim(
        source, "in all without offloading", 207.0, before.live / GIB, "GiB",
        "prompts in one piece, eager kernels: the activated gate, and what Python's calls hold, as well",
    )  # fmt: skip
    held = part.by_role["parameter"] + 2 * kept / heads + part.by_role["activation"]
    yield Claim(source, "in all with it", 17.0, held / GIB, "GiB", f"chunks of {chunk:,} tokens")
    placed = pk.place(
        "llama-3-8b", "a100-80gb", prompt=tokens, generate=1, batch=(1,), batches=(1,), host=512 << 30,
        cache_unit="head", resident_heads=0, prompt_chunk=chunk,
    )  # fmt: skip
    yield Claim(
        source, "the same as placed, head by head", 17.0, placed.device_bytes / GIB, "GiB",
        f"chunks of {chunk:,} tokens, buffers and workspaces counted",
    )  # fmt: skip


# ---- MOM ------------------------------------------------------------------------------------------------------------
_LLAMA = "llama-3-8b"
_DEVICE = "a100-80gb"
_LAYERS = 32

_CHUNK = 4096
"""Tokens of a mini-sequence: the default of the authors' wrapper."""

_CACHED = ("self_attn.k_rotary.add.out", "self_attn.v_proj.linear.out")
"""What a cache that is a list of tensors keeps of a layer."""


def mom() -> Iterator[Claim]:
    """MOM, arXiv:2504.12526, §1, §4.1 table 1 and §4.2; what its published scripts run and read off.

    They read `allocated_bytes.all.peak` in binary units, keep the prompt's logits while the cache comes back from the
    host, and hold the cache of the layer under way and of the one before while it leaves.
    """
    source, kept = "MOM (2504.12526)", "Llama-3 8B on an A100 80 GB"
    logits = "logits of every token in bf16, cache on the device"
    split = f"MLP by {_CHUNK:,} tokens, logits of the last token, cache on the host until the prompt is through"
    yield Claim(source, f"{kept}: 155,000 tokens", 72.0, _standard(155_000) / GIB, "GiB allocated", logits)
    yield Claim(source, "the same in mini-sequences", 35.0, _offloaded(155_000) / GIB, "GiB allocated", split)
    yield Claim(
        source, f"{kept}: longest prompt", 155.0, largest(_fits, 100_000, 200_000, 1000) / 1e3, "10³ tokens",
        f"{logits}; the caching allocator replayed",
    )  # fmt: skip
    room = (pk.device(_DEVICE).main.capacity or 0) - _estimate(1000).context
    yield Claim(
        source, "the same in mini-sequences", 455.0,
        largest(lambda n: _offloaded(n) <= room, 100_000, 900_000, 1000) / 1e3, "10³ tokens", f"{split}; allocated",
    )  # fmt: skip
    for tokens, told, moved in ((48_000, 71.682, 64.834), (144_000, 59.235, 49.065)):
        yield Claim(
            source, f"{tokens:,} tokens: peak with mini-sequences against without", told,
            100 * _split(tokens) / _standard(tokens), "%", "cache on the device in both",
        )  # fmt: skip
        coming = _weights() + tokens * 128_256 * 2 + _cache(tokens) * (_LAYERS + 1) // _LAYERS
        yield Claim(
            source, f"{tokens:,} tokens: the same, cache on the host meanwhile", moved,
            100 * _offloaded(tokens) / coming, "%", "without: the cache comes back while the prompt's logits are there",
        )  # fmt: skip


@cache
def _estimate(tokens: int) -> Memory:
    return pk.estimate(pk.inference(_LLAMA, batch=1, seq=tokens), _DEVICE).memory


def _standard(tokens: int) -> int:
    """Bytes at the peak of a prompt in one piece: at the head all of the cache is there."""
    return int(_estimate(tokens).live) + _cache(tokens)


def _fits(tokens: int) -> bool:
    """Whether PyTorch's allocator can serve a prompt in one piece, keys and values kept as they are made."""
    return bool(footprint(_keeping(_estimate(tokens).program, _CACHED), pk.device(_DEVICE)).fits)


def _keeping(program: Program, names: tuple[str, ...]) -> Program:
    """The program with the storages of these tensors kept to its end."""
    kept, deaths = replace(program), list(program.deaths)
    for key, storage in enumerate(program.storages):
        if storage.tensor.name.endswith(names):
            deaths[key] = len(program.steps)
    kept.__dict__["deaths"] = deaths
    return kept


def _split(tokens: int) -> int:
    """Bytes at the peak of a prompt whose MLP runs in mini-sequences, the cache on the device.

    As many bytes as a mini-sequence's features are those of a thinner MLP over all tokens; its weights are not thinner.
    """
    thin = pk.prefill(_LLAMA, batch=1, seq=tokens, overrides={"ffn": max(14_336 * _CHUNK // tokens, 1)})
    lost = _weights() - int(thin.total_bytes("parameter"))
    return int(pk.estimate(thin, _DEVICE).memory.live) + lost


def _offloaded(tokens: int) -> int:
    """The same with the cache on the host: the prompt with two layers of it, then all of it, one layer's grown anew."""
    layer = _cache(tokens) // _LAYERS
    decoding = int(pk.estimate(pk.decode(_LLAMA, batch=1, context=tokens), _DEVICE).memory.live)
    return max(_split(tokens) - (_LAYERS - 2) * layer, decoding + layer)


@cache
def _weights() -> int:
    return int(pk.prefill(_LLAMA, batch=1, seq=1).total_bytes("parameter"))


def _cache(tokens: int) -> int:
    return int(pk.decode(_LLAMA, batch=1, context=tokens).total_bytes("kv_cache"))
