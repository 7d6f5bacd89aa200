"""What the papers on offloading claim, and what these models say: `python -m peakline.planning.claims`.

Every case states what it assumes where the paper leaves it open; nothing is tuned to the claimed figure.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import peakline as pk
from peakline.planning.extract import problem_of, profile
from peakline.planning.memo import Layer, Tensor, alpha, per_tensor, tied
from peakline.planning.tiers import surroundings
from peakline.planning.turns import HostOptimizer
from peakline.solvers.offload.linear import least_budget
from peakline.solvers.offload.problem import Tier
from peakline.timeline import step_seconds

__all__ = ["CASES", "Claim", "table"]

GIB = float(1 << 30)


@dataclass(frozen=True, slots=True)
class Claim:
    """A figure of a paper beside ours.

    Attributes:
        source: system and paper.
        what: the claim in words.
        claimed, ours: in `unit`; `claimed` None where the paper gives no figure of its own.
        unit: of both.
        assumes: what the paper leaves open.
    """

    source: str
    what: str
    claimed: float | None
    ours: float
    unit: str
    assumes: str

    @property
    def difference(self) -> float | None:
        """(ours − claimed) / claimed."""
        return None if not self.claimed else self.ours / self.claimed - 1.0


def _largest(fits: Callable[[int], bool], low: int, high: int, grain: int = 1) -> int:
    """The largest multiple of `grain` in [low, high] that fits; 0 if `low` does not."""
    if not fits(low):
        return 0
    low, high = low // grain, high // grain
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle * grain) else (low, middle - 1)
    return low * grain


def _floor(step: Any, device: str, states: set[str], **beside: int) -> int:
    """Bytes of the device that recomputing, moving and an optimizer on the host cannot go below; context included."""
    before = pk.estimate(step, device)
    around = surroundings(pk.device(device), host=beside.get("host"), ssd=beside.get("ssd"))
    taken = profile(before, host=HostOptimizer(around.host_bandwidth, around.common[1]))
    problem, _ = problem_of(taken, 1 << 20, around.tiers, states=frozenset(states))
    outside = before.memory.context + 2 * pk.device(device).software.cublas_workspace_bytes
    return least_budget(replace(problem, common=around.common)) + outside


# ---- training -------------------------------------------------------------------------------------------------------
def zero_offload() -> Iterator[Claim]:
    """ZeRO-Offload, arXiv:2101.06840, figure 7 and table 2: hidden 4096 for 13 B, 2048 below 2 B."""

    def step(layers: int, hidden: int, master: bool) -> Any:
        sizes = {"layers": layers, "hidden": hidden, "ffn": 4 * hidden, "head_dim": 128}
        heads = {"heads": hidden // 128, "kv_heads": hidden // 128}
        return pk.training_step(
            "gpt2-xl", batch=1, seq=1024, dtype="fp16", optimizer="adamw-fused", master_weights=master,
            overrides=sizes | heads,
        )  # fmt: skip

    capacity = pk.device("v100-32gb").main.capacity or 0
    source = "ZeRO-Offload (2101.06840)"
    layers = _largest(lambda n: bool(pk.estimate(step(n, 2048, True), "v100-32gb").fits), 1, 60)
    yield Claim(
        source, "largest model on one V100 32 GB, PyTorch", 1.4, float(step(layers, 2048, True).parameters) / 1e9,
        "10⁹ parameters", "fp16 with fp32 master weights and Adam, batch 1 of 1,024 tokens, no recomputation",
    )  # fmt: skip
    states = {"optimizer_state", "gradient"}
    layers = _largest(
        lambda n: _floor(step(n, 4096, False), "v100-32gb", states, host=1500 << 30) <= capacity, 40, 104, 4
    )
    yield Claim(
        source, "the same with states and optimizer on the host", 13.0,
        float(step(layers, 4096, False).parameters) / 1e9, "10⁹ parameters",
        "fp16 parameters on the device, 1.5 TB of host memory, activations recomputed or moved, batch 1",
    )  # fmt: skip


def mezo() -> Iterator[Claim]:
    """MeZO, arXiv:2305.17333, §3.4; ZO2, arXiv:2503.12668, table 2."""
    family = ("opt-1.3b", "opt-2.7b", "opt-6.7b", "opt-13b", "opt-30b", "opt-66b")

    def largest(step: Callable[[str], Any]) -> float:
        fitting = [name for name in family if pk.estimate(step(name), "a100-80gb").fits]
        return float(fitting[-1].removeprefix("opt-").removesuffix("b"))

    yield Claim(
        "MeZO (2305.17333)", "largest OPT trained on one A100 80 GB with Adam", 2.7,
        largest(lambda n: pk.training_step(n, batch=1, seq=2048, dtype="fp32", optimizer="adamw")),
        "10⁹ parameters", "fp32, batch 1 of 2,048 tokens",
    )  # fmt: skip
    yield Claim(
        "MeZO (2305.17333)", "the same with forward passes alone", 30.0,
        largest(lambda n: pk.inference(n, batch=1, seq=2048, dtype="fp16")),
        "10⁹ parameters", "fp16, perturbed in place from a seed: what inference needs",
    )  # fmt: skip
    one, two = (
        pk.estimate(
            pk.inference("gpt3-175b", batch=1, seq=2048, dtype="fp16", overrides={"layers": n, "vocab": 50272}),
            "a100-80gb",
        )
        for n in (1, 2)
    )
    block = float(two.memory.by_role["parameter"] - one.memory.by_role["parameter"])
    held = float(one.memory.live) + 2 * block + one.memory.context
    yield Claim(
        "ZO2 (2503.12668)", "OPT-175B fine-tuned with parameters in host memory", 18.0, held / 1e9, "GB held",
        "three blocks on the device (in, in use, out), embedding and head resident, one sequence of 2,048 tokens",
    )  # fmt: skip


def galore() -> Iterator[Claim]:
    """GaLore, arXiv:2403.03507, figure 1: LLaMA 7B, token batch 256, 8-bit Adam, per-layer updates; rank 1,024."""
    rank = 1024
    step = pk.training_step("llama-2-7b", batch=1, seq=256, dtype="bf16", optimizer="none")
    before = pk.estimate(step, "rtx-4090")
    weights, states, largest = 0, 0, 0
    for tensor in step.of_role("parameter"):
        count, shape = step.layers(tensor.name), [int(n) for n in tensor.shape]
        size = int(tensor.elements)
        weights, largest = weights + count * int(tensor.bytes), max(largest, int(tensor.bytes))
        projected = len(shape) == 2 and min(shape) > rank and "embed" not in tensor.name and "head" not in tensor.name
        low = 2 * min(shape) * rank + 2 * max(shape) * rank if projected else 2 * size  # bf16 projector, 8-bit moments
        states += count * low
    activations = int(before.memory.by_role.get("activation", 0))
    total = weights + states + largest + activations + before.memory.context
    yield Claim(
        "GaLore (2403.03507)", "LLaMA 7B pre-training in 24 GB of an RTX 4090", 24.0, total / 1e9, "GB held",
        "rank 1,024, 8-bit moments, bf16 projectors, full-rank embeddings, one layer's gradient at a time, 256 tokens",
    )  # fmt: skip


def fuyou() -> Iterator[Claim]:
    """Fuyou, arXiv:2403.06504, §5.1: RTX 4090, 768 GB of host memory, twelve 3.84 TB drives."""
    step = pk.training_step("gpt3-175b", batch=8, seq=1024, dtype="fp16", optimizer="adamw-fused")
    states = {"optimizer_state", "gradient", "parameter"}
    least = _floor(step, "rtx-4090", states, host=768 << 30, ssd=12 * 3840 * 10**9)
    yield Claim(
        "Fuyou (2403.06504)", "GPT-3 175B fine-tuned on one 24 GB card with drives", 24.0, least / 1e9,
        "GB held", "batch 8 of 1,024 tokens; parameters, gradients and activations stream, states on the host",
    )  # fmt: skip


def ssdtrain() -> Iterator[Claim]:
    """SSDTrain, arXiv:2408.10013, §IV: BERT, A100 40 GB, P5800X drives; the peak of activations at no cost in time."""
    drive = pk.device(
        "optane-p5800x-1.6tb",
        **{"memory.xpoint.read_bandwidth": "28.8 GB/s", "memory.xpoint.write_bandwidth": "24.8 GB/s",
           "memory.xpoint.capacity": "6.4 TB"},
    )  # fmt: skip
    outside = 2 * pk.device("a100-40gb").software.cublas_workspace_bytes
    for layers, hidden in ((4, 8192), (3, 12288)):
        sizes = {"layers": layers, "hidden": hidden, "heads": hidden // 128, "ffn": 4 * hidden}
        step = pk.training_step(
            "bert-large-uncased", batch=16, seq=1024, dtype="fp16", optimizer="sgd-fused", set_to_none=False,
            overrides=sizes,
        )  # fmt: skip
        before = pk.estimate(step, "a100-40gb").memory
        fixed = sum(int(before.by_role[role]) for role in ("parameter", "gradient"))

        def free(share: int, step: Any = step, before: Any = before, fixed: int = fixed) -> bool:
            budget = fixed + (100 - share) * (before.live - fixed) // 100 + before.context + outside
            try:
                found = pk.plan(
                    step, "a100-40gb", budget=budget, host="1 MiB", ssd="6 TB", ssd_device=drive, allow=["swap"]
                )
            except pk.NothingFits:
                return False
            return found.overhead <= 0.01

        yield Claim(
            "SSDTrain (2408.10013)", "activation peak saved at negligible cost", 47.0,
            float(_largest(free, 1, 95)), "%",
            f"BERT, {layers} layers of width {hidden:,}, batch 16 of 1,024 tokens, four P5800X, 1 % longer at most",
        )  # fmt: skip


def pipe_offload() -> Iterator[Claim]:
    """PipeOffload, arXiv:2503.01328, §3.1: the share of activations that leaves while a micro-batch is computed."""
    rate = surroundings(pk.device("a100-80gb"), host=None, ssd=None).common[0]
    for hidden, seq in ((2048, 4096), (4096, 4096), (8192, 8192)):
        sizes = {"layers": 2, "hidden": hidden, "heads": hidden // 128, "kv_heads": hidden // 128, "ffn": 4 * hidden}
        step = pk.training_step(
            "gpt2-xl", batch=1, seq=seq, dtype="bf16", optimizer="none", dropout=False, kernels="fused",
            overrides=sizes | {"head_dim": 128, "position_rows": seq},
        )  # fmt: skip
        taken = profile(pk.estimate(step, "a100-80gb"))
        inside = [i for i, s in enumerate(taken.steps) if s.block.name.startswith("transformer.h") and s.layer == 0]
        seconds = sum(taken.seconds[i] for i in inside)
        problem, _ = problem_of(taken, 1 << 50, surroundings(pk.device("a100-80gb"), host=None, ssd=None).tiers)
        saved = sum(item.bytes for item in problem.items if ".h.0." in item.name and not item.extra)
        yield Claim(
            "PipeOffload (2503.01328)", f"activations offloaded free of cost, hidden {hidden:,}, {seq:,} tokens", None,
            min(1.0, rate * seconds / saved), "of all (claim: half to all)",
            f"PCIe 4.0 at {rate / 1e9:.0f} GB/s each way, forward and backward of a micro-batch as the window",
        )  # fmt: skip


# ---- inference ------------------------------------------------------------------------------------------------------
def head_infer() -> Iterator[Claim]:
    """HeadInfer, arXiv:2502.12574, figure 1 and table 2: Llama-3-8B, a million tokens."""
    tokens, chunk = 1 << 20, 10_240
    before = pk.estimate(pk.prefill("llama-3-8b", batch=1, seq=tokens), "a100-80gb").memory
    part = pk.estimate(pk.prefill("llama-3-8b", batch=1, seq=chunk), "a100-80gb").memory
    cache = before.by_role["kv_cache"]
    heads = 32 * 8
    source = "HeadInfer (2502.12574)"
    yield Claim(source, "Llama-3-8B, 1M tokens: cache", 128.0, cache / GIB, "GiB", "bf16")
    yield Claim(
        source, "cache on the device, head by head", 1.0, 2 * cache / heads / GIB, "GiB", "two heads: ping-pong"
    )
    yield Claim(
        source, "in all without offloading", 207.0, before.live / GIB, "GiB",
        "prompts in one piece, eager kernels (which keep the activated gate as well: 28 GiB)",
    )  # fmt: skip
    held = part.by_role["parameter"] + 2 * cache / heads + part.by_role["activation"]
    yield Claim(source, "in all with it", 17.0, held / GIB, "GiB", f"chunks of {chunk:,} tokens")
    placed = pk.place(
        "llama-3-8b", "a100-80gb", prompt=tokens, generate=1, batch=(1,), batches=(1,), host=512 << 30,
        cache_unit="head", resident_heads=0, prompt_chunk=chunk,
    )  # fmt: skip
    yield Claim(
        source, "the same as placed, head by head", 17.0, placed.device_bytes / GIB, "GiB",
        f"chunks of {chunk:,} tokens, buffers and workspaces counted",
    )  # fmt: skip


def mom() -> Iterator[Claim]:
    """MOM, arXiv:2504.12526, figure 1: Llama-3 8B in 80 GB."""
    splits, device = 64, pk.device("a100-80gb")
    capacity = device.main.capacity or 0

    def standard(tokens: int) -> bool:
        whole = pk.estimate(pk.inference("llama-3-8b", batch=1, seq=tokens), device).memory
        return int(whole.live) + _cache(tokens) + whole.context <= capacity

    def split(tokens: int) -> bool:
        thin = pk.prefill("llama-3-8b", batch=1, seq=tokens, overrides={"ffn": 14336 // splits})
        whole = pk.prefill("llama-3-8b", batch=1, seq=1)
        memory = pk.estimate(thin, device).memory
        lost = int(whole.total_bytes("parameter")) - int(thin.total_bytes("parameter"))
        return int(memory.live) + lost + memory.context <= capacity

    source = "MOM (2504.12526)"
    yield Claim(
        source, "Llama-3 8B on an A100 80 GB: longest prompt", 155.0, _largest(standard, 1000, 400_000, 1000) / 1e3,
        "10³ tokens", "logits of every token in bf16, cache on the device",
    )  # fmt: skip
    yield Claim(
        source, "the same in mini-sequences", 455.0, _largest(split, 1000, 900_000, 1000) / 1e3, "10³ tokens",
        f"MLP in {splits} mini-sequences, logits of the last token, cache on the device",
    )  # fmt: skip


def _cache(tokens: int) -> int:
    return int(pk.prefill("llama-3-8b", batch=1, seq=tokens).total_bytes("kv_cache"))


# ---- MEMO -----------------------------------------------------------------------------------------------------------
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


CASES: dict[str, Callable[[], Iterator[Claim]]] = {
    "zero-offload": zero_offload,
    "mezo": mezo,
    "head-infer": head_infer,
    "mom": mom,
    "ssdtrain": ssdtrain,
    "pipe-offload": pipe_offload,
    "fuyou": fuyou,
    "galore": galore,
    "memo": memo,
}
"""The cases by name."""


def row(claim: Claim) -> str:
    """A line of the table, in Markdown."""
    claimed = "–" if claim.claimed is None else f"{claim.claimed:g}"
    off = "" if claim.difference is None else f"{claim.difference:+.1%}"
    return f"| {claim.source} | {claim.what} | {claimed} | {claim.ours:.4g} | {claim.unit} | {off} | {claim.assumes} |"


def table(names: list[str], cases: Mapping[str, Callable[[], Iterator[Claim]]] = CASES) -> Iterator[str]:
    """Lines of the table in Markdown, as they are computed.

    Raises:
        ValueError: an unknown case.
    """
    for name in names:
        if name not in cases:
            raise ValueError(f"case: {name!r} is unknown; accepted: {', '.join(cases)}")
    yield "| paper | claim | theirs | ours | unit | difference | assuming |"
    yield "|---|---|---:|---:|---|---:|---|"
    for name in names:
        for claim in cases[name]():
            yield row(claim)


if __name__ == "__main__":
    for line in table(sys.argv[1:] or list(CASES)):
        print(line, flush=True)
