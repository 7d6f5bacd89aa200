"""What papers tabulate about the memory of training: activations, gradients, states, and how long a sequence may be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import peakline as pk
from peakline.memory.saved import saved_bytes
from peakline.models.graph import Graph
from peakline.planning.claim import GIB, Claim, largest

__all__ = ["activations", "card", "galore", "lomo", "long_sequences", "megatron", "mini_sequences", "qlora"]


def _roomy() -> pk.Device:
    """A device that holds everything, on which peaks are counted."""
    return pk.device("a100-80gb", **{"memory.hbm.capacity": "800 GB"})


def _moving(graph: Graph) -> int:
    """Bytes of activations and workspaces at their peak: what is there beside parameters, gradients and states."""
    held = pk.estimate(graph, _roomy()).memory.timeline()
    return int(np.max(sum(held[role] for role in ("activation", "workspace") if role in held)))


def _largest_matrix(graph: Graph) -> int:
    return max(int(tensor.bytes) for tensor in graph.of_role("parameter"))


# ---- activations ----------------------------------------------------------------------------------------------------
def activations() -> Iterator[Claim]:
    """V. Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models", arXiv:2205.05198, §4.1
    (s·b·h·(34 + 5·a·s/h) bytes a layer) and §5 (what selective recomputation leaves out)."""
    source, tokens = "Selective recomputation (2205.05198)", 2048
    for words, heads, hidden, share in (("GPT-3", 96, 12_288, 70.0), ("MT-NLG", 128, 20_480, 65.0)):
        sizes = {"hidden": hidden, "heads": heads, "kv_heads": heads, "ffn": 4 * hidden, "head_dim": hidden // heads,
                 "vocab": 512, "position_rows": tokens}  # fmt: skip

        def a_layer(recompute: str, sizes: dict[str, int] = sizes) -> float:
            thin, thick = (
                pk.training_step(
                    "gpt2-xl", batch=1, seq=tokens, dtype="fp16", attention="eager", kernels="fused", optimizer="none",
                    recompute=recompute, overrides=sizes | {"layers": layers},
                )
                for layers in (2, 3)
            )  # fmt: skip
            return float(saved_bytes(thick) - saved_bytes(thin)) / (tokens * sizes["hidden"])

        everything, selected = a_layer("none"), a_layer("selective")
        yield Claim(
            source, f"{words}: bytes that a layer saves", 34.0 + 5 * heads * tokens / hidden, everything, "s·b·h",
            "scores written out, dropout, fused GELU, fp16",
        )  # fmt: skip
        yield Claim(
            source, f"{words}: saved by recomputing scores alone", share, 100 * (1 - selected / everything), "%", ""
        )


# ---- states and gradients -------------------------------------------------------------------------------------------
def lomo() -> Iterator[Claim]:
    """LOMO, arXiv:2306.09782, table 1: LLaMA-7B, 8 sequences of 512 tokens, half precision."""
    source, states = "LOMO (2306.09782)", 12  # float32 weights, momentum and variance

    def step(recompute: str) -> Graph:
        return pk.training_step(
            "llama-2-7b", batch=8, seq=512, dtype="fp16", attention="eager", loss="native", optimizer="none",
            recompute=recompute,
        )  # fmt: skip

    plain, thrifty = step("none"), step("full")
    parameters = int(plain.total_bytes("parameter"))
    count, matrix = int(plain.parameters), _largest_matrix(plain)
    moving, kept = _moving(thrifty), _moving(plain)
    for words, told, ours in (
        ("activations, all saved", 45.61, kept),
        ("activations, layers recomputed", 1.79, moving),
        ("AdamW, layers recomputed", 102.20, 2 * parameters + states * count + moving),
        ("SGD, layers recomputed", 51.99, 2 * parameters + 4 * count + moving),
        ("LOMO, layers recomputed", 14.58, parameters + matrix + moving),
        ("LOMO, all saved", 59.40, parameters + matrix + kept),
    ):
        yield Claim(
            source, f"LLaMA-7B, {words}", told, ours / GIB, "GiB",
            "scores written out, loss in fp16; one matrix's gradient at a time with LOMO",
        )  # fmt: skip


def galore() -> Iterator[Claim]:
    """GaLore, arXiv:2403.03507: abstract and figure 1 (LLaMA 7B, token batch 256, 8-bit Adam, per-layer updates, rank
    1,024), table 2 (weights and states in bf16, LLaMA 60M to 1B)."""
    source = "GaLore (2403.03507)"
    step = pk.training_step("llama-2-7b", batch=1, seq=256, dtype="bf16", optimizer="none")
    full, low, thin = _states(step, None, 2), _states(step, 1024, 2), _states(step, 1024, 1)
    for told, states, words in ((65.5, low, "bf16"), (82.5, thin, "8-bit")):
        yield Claim(
            source, f"optimizer states saved, {words} moments, LLaMA 7B", told, 100 * (1 - states / full), "%",
            "rank 1,024, bf16 projectors, full-rank embeddings, against both moments in bf16",
        )  # fmt: skip
    before = pk.estimate(step, "rtx-4090").memory
    activations = int(before.by_role.get("activation", 0))
    total = int(step.total_bytes("parameter")) + thin + _largest_matrix(step) + activations + before.context
    yield Claim(
        source, "LLaMA 7B pre-training in 24 GB of an RTX 4090", card("rtx-4090"), total / 1e9, "GB held",
        "rank 1,024, 8-bit moments, bf16 projectors, full-rank embeddings, one layer's gradient at a time, 256 tokens",
        within=True,
    )  # fmt: skip
    for words, layers, hidden, ffn, heads, rank, told, ours in (
        ("60M", 8, 512, 1376, 8, 128, 0.36, 0.24),
        ("130M", 12, 768, 2048, 12, 256, 0.76, 0.52),
        ("350M", 24, 1024, 2736, 16, 256, 2.06, 1.22),
        ("1B", 24, 2048, 5461, 32, 512, 7.80, 4.38),
    ):
        sizes = {"layers": layers, "hidden": hidden, "ffn": ffn, "heads": heads, "kv_heads": heads,
                 "head_dim": hidden // heads, "rotary_dim": hidden // heads, "embed_width": hidden}  # fmt: skip
        small = pk.training_step("llama-2-7b", batch=1, seq=256, dtype="bf16", optimizer="none", overrides=sizes)
        weights = int(small.total_bytes("parameter"))
        for method, claimed, at in (("full rank", told, None), (f"rank {rank}", ours, rank)):
            yield Claim(
                source, f"LLaMA {words}, {method}: weights and states", claimed,
                (weights + _states(small, at, 2)) / GIB, "GiB",
                "bf16, full-rank embeddings, the authors' files of sizes",
            )  # fmt: skip


def _states(graph: Graph, rank: int | None, width: int) -> int:
    """Bytes of Adam's states, moments of `width` bytes an element: of every matrix of a layer whose sides exceed the
    rank, those of its projection, and the projector in bf16."""
    total = 0
    for tensor in graph.of_role("parameter"):
        count, shape, size = graph.layers(tensor.name), [int(n) for n in tensor.shape], int(tensor.elements)
        outside = any(word in tensor.name for word in ("embed", "head"))
        if rank is None or len(shape) != 2 or min(shape) <= rank or outside:
            total += count * 2 * width * size
        else:
            total += count * (2 * width * max(shape) * rank + 2 * min(shape) * rank)
    return total


def card(name: str) -> float:
    """What a program can have of a card, in 10⁹ bytes."""
    return round((pk.device(name).main.capacity or 0) / 1e9, 1)


def qlora() -> Iterator[Claim]:
    """QLoRA, arXiv:2305.14314, abstract and §3: LLaMA-65B in 48 GB; more than 780 GB for 16-bit fine-tuning."""
    source = "QLoRA (2305.14314)"
    sizes = {"kv_heads": 64, "ffn": 22_016}  # of LLaMA-65B
    whole = pk.training_step("llama-2-70b", batch=1, seq=512, dtype="bf16", optimizer="none", overrides=sizes)
    yield Claim(
        source, "LLaMA 65B, 16-bit fine-tuning: weights, gradients and states", 780.0,
        12 * float(whole.parameters) / 1e9, "GB",
        "16-bit weights and gradients, both moments in float32; the paper: more than 780 GB",
    )  # fmt: skip
    every = pk.Lora(64, ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"))
    step = pk.training_step(
        "llama-2-70b", batch=1, seq=512, dtype="bf16", weight_dtype="nf4", lora=every, recompute="full",
        optimizer="adamw", overrides=sizes,
    )  # fmt: skip
    found = pk.estimate(step, "rtx-6000-ada").memory
    yield Claim(
        source, "LLaMA 65B fine-tuned in 48 GB", 48.0, (int(found.live) + found.context) / 1e9, "GB held",
        "4-bit weights, adapters of rank 64 on all matrices, one sequence of 512 tokens, layers recomputed; states are "
        "on the device, where the paper pages them",
        within=True,
    )  # fmt: skip


def megatron() -> Iterator[Claim]:
    """The largest GPT of width 2,048 that Megatron-LM trains on one V100 32 GB: the table in the artefact of STRONGHOLD
    (X. Sun et al., SC22), 4 sequences of 1,024 tokens."""

    def step(layers: int) -> Graph:
        sizes = {"layers": layers, "hidden": 2048, "ffn": 8192, "head_dim": 128, "heads": 16, "kv_heads": 16}
        return pk.training_step(
            "gpt2-xl", batch=4, seq=1024, dtype="fp16", optimizer="adamw-fused", master_weights=True, recompute="full",
            overrides=sizes,
        )  # fmt: skip

    layers = largest(lambda n: bool(pk.estimate(step(n), "v100-32gb").fits), 1, 60)
    yield Claim(
        "STRONGHOLD (SC22)", "largest GPT of Megatron-LM on one V100 32 GB", 1.717,
        float(step(layers).parameters) / 1e9,
        "10⁹ parameters", "width 2,048, fp16 with float32 weights and Adam, layers recomputed, 4 × 1,024 tokens",
    )  # fmt: skip


# ---- long sequences -------------------------------------------------------------------------------------------------
def mini_sequences() -> Iterator[Claim]:
    """Mini-Sequence Transformer, arXiv:2407.15892 (its repository's page): 60k tokens on one A100 80 GB, 12 times
    longer than the standard implementation and 4 times longer than with recomputation; updates as gradients come.

    As published the MLP's parts are saved while their layer is recomputed: what is split is the loss.
    """
    for told, recompute, loss, how in (
        (5.0, "none", "unfused", "all saved"), (15.0, "full", "unfused", "layers recomputed"),
        (60.0, "full", "chunked", "in mini-sequences"),
    ):  # fmt: skip

        def held(tokens: int, recompute: str = recompute, loss: str = loss) -> int:
            graph = _long("llama-3-8b", tokens, recompute=recompute, loss=loss)
            return _moving(graph) + 3 * _weights("llama-3-8b") + _largest_matrix(graph)  # and Adam's states, in bf16

        yield Claim(
            "Mini-Sequence Transformer (2407.15892)", f"Llama-3 8B, {how}: longest sequence on an A100 80 GB", told,
            _longest(held, "a100-80gb", 100, 200_000), "10³ tokens",
            "bf16 weights and Adam, one matrix's gradient at a time, "
            + ("the loss in 32 parts" if loss == "chunked" else "float32 logits"),
        )  # fmt: skip


def long_sequences() -> Iterator[Claim]:
    """Arctic Long Sequence Training, arXiv:2506.13996, abstract and its announcement: 500k tokens of Llama 8B on one
    H100 80 GB, 16 times the longest of the standard stack (32k)."""
    model = "llama-3.1-8b"
    for told, tiled, kernels in ((32.0, False, "eager"), (500.0, True, "eager"), (500.0, True, "fused")):

        def held(tokens: int, tiled: bool = tiled, kernels: str = kernels) -> int:
            sizes = {"layers": 1, "ffn": min(max(14_336 * 4096 // tokens, 1), 14_336)} if tiled else {}
            graph = _long(model, tokens, recompute="full", loss="chunked" if tiled else "unfused", kernels=kernels,
                          overrides=sizes)  # fmt: skip
            return _moving(graph) + _weights(model) + _largest_matrix(graph)

        how = "everything tiled and moved" if tiled else "layers recomputed"
        yield Claim(
            "ALST (2506.13996)", f"Llama 8B, longest sequence on one H100 80 GB, {how}", told,
            _longest(held, "h100-sxm", 1000, 1_000_000), "10³ tokens",
            "bf16 weights on the device, optimizer and gradients on the host"
            + ("; layers' inputs too, MLP by 4,096 tokens, the loss in 32 parts" if tiled else "; float32 logits")
            + ("; norms in one kernel" if kernels == "fused" else "; norms in float32"),
        )  # fmt: skip


def _long(model: str, tokens: int, **options: Any) -> Graph:
    return pk.training_step(model, batch=1, seq=tokens, dtype="bf16", optimizer="none", loss_chunks=32, **options)


def _weights(model: str) -> int:
    return int(pk.prefill(model, batch=1, seq=1).total_bytes("parameter"))


def _longest(held: Callable[[int], int], device: str, grain: int, most: int) -> float:
    """10³ tokens with which a step fits, beside the context."""
    found = pk.device(device)
    room = (found.main.capacity or 0) - found.software.context_bytes - found.software.library_bytes
    return largest(lambda tokens: held(tokens) <= room, grain, most, grain) / 1e3
