"""What papers claim for kinds of hardware, and what these models say: `python -m peakline.device_claims [CASE ...]`.

Every case states what it assumes where the paper leaves it open; nothing is tuned to the claimed figure. A claim is
mostly one of a simulator: NeuPIMs, AttAcc, PIM-GPT and LARC were never built.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import peakline as pk
from peakline.cost.machine import machine
from peakline.cost.price import price
from peakline.execution_modes import Fabric, Stage, fabric_of, hybrid_groups, sequential, stages_of
from peakline.hardware import device, devices
from peakline.hybrid import hybrid, together
from peakline.models.dtypes import dtype
from peakline.models.graph import Graph
from peakline.models.kernels import Gemm
from peakline.planning.claims import Claim, table

__all__ = ["CASES", "lines"]

SHAREGPT = 161 + 338 // 2
"""Tokens in the cache halfway through a mean answer of ShareGPT: 161 given, 338 made (vLLM, arXiv:2309.06180, §6.1)."""


def gpt3(hidden: int, layers: int, batch: int, context: int, *, shards: int = 1, **more: Any) -> Graph:
    """A decode step of a GPT-3 of another size in fp16, heads of 128, one of `shards` tensor-parallel parts."""
    heads = hidden // 128 // shards
    sizes = {
        "layers": layers, "hidden": hidden, "heads": heads, "kv_heads": heads, "head_dim": 128,
        "ffn": 4 * hidden // shards, "embed_width": hidden, "vocab": 50_304 // shards, **more,
    }  # fmt: skip
    return pk.decode("gpt3-175b", batch=batch, context=context, dtype="fp16", kernels="fused", overrides=sizes)


# ---- memory that computes -------------------------------------------------------------------------------------------
def neupims() -> Iterator[Claim]:
    """NeuPIMs, arXiv:2403.00579, abstract: throughput of batched inference; it names no batch, so three are run."""
    for batch, stated in ((512, True), (256, False), (128, False)):
        whole, half = (gpt3(4096, 32, n, SHAREGPT, shards=4) for n in (batch, batch // 2))
        naive, overlapped = hybrid(whole, "neupims-npu", "neupims"), hybrid(half, "neupims-npu", "neupims").overlapped
        gpu = float(pk.estimate(whole, "a100-40gb").time)
        source, setup = "NeuPIMs (2403.00579)", f"GPT-3 7B on four devices, batch {batch}, {SHAREGPT} tokens (ShareGPT)"
        for what, claimed, alone, more in (
            ("over a GPU alone", 3.0, gpu, "A100 40 GB; "),
            ("over its systolic arrays alone", 2.4, naive.host_only, ""),
            ("over both, one at a time", 1.6, naive.in_turn, ""),
        ):
            name = what if stated else f"{what}, batch {batch}"
            yield Claim(source, name, claimed if stated else None, alone / overlapped, "times", more + setup)


def attacc() -> Iterator[Claim]:
    """AttAcc, ASPLOS 2024, abstract: up to 2.81 times the throughput of GPUs with as much memory."""
    context, layers, hidden = 2048 + 1024, 96, 12288
    weights = 175e9 * 2
    cache = 2 * layers * hidden * 2 * (2048 + 2048)
    host = pk.device("a100-80gb", **{"memory.hbm.bandwidth": "3352 GB/s"})
    beside = int(8 * 80 * 2**30 // cache)
    split = hybrid(gpt3(hidden, layers, beside, context, shards=8), host, "attacc")
    for memory, claimed in ((80, 2.81), (160, None)):
        alone = int((8 * memory * 2**30 - weights) // cache)
        eight = float(pk.estimate(gpt3(hidden, layers, alone, context, shards=8), host).time)
        yield Claim(
            "AttAcc (ASPLOS 2024)", f"GPT-3 175B: throughput over 8 GPUs of {memory} GB, at most", claimed,
            (beside / split.in_turn) / (alone / eight), "times",
            f"8 GPUs and 8 AttAcc against 8 GPUs, all with HBM3; 2,048 tokens in, 2,048 out, batch {beside} against "
            f"{alone} (what fits); no communication; which baseline and lengths 2.81 belongs to is not in the abstract",
        )  # fmt: skip


def duplex() -> Iterator[Claim]:
    """Duplex, arXiv:2409.01141, abstract: operations per byte of what Logic-PIM takes."""
    source = "Duplex (2409.01141)"
    for model in ("llama-3-8b", "llama-2-70b"):
        for o in pk.estimate(pk.decode(model, batch=1, context=4096, dtype="fp16"), "h100-sxm").cost.operators:
            if o.type == "attention":
                per_byte = float(o.flops) / float(o.reads)
                claimed = 4.0 if model == "llama-3-8b" else 8.0
                yield Claim(
                    source, f"{model}: attention of grouped heads", claimed, per_byte, "operations per byte", ""
                )
                break
    experts, chosen, batch = 8, 2, 32
    rows = batch * chosen // experts
    gemm = Gemm(1, rows, 14_336, 4096, *(dtype("fp16"),) * 3)
    moved = 2 * (rows * 4096 + 14_336 * 4096)
    yield Claim(
        source, "Mixtral 8×7B: an expert's product", None, float(gemm.flops) / moved, "op/B",
        f"batch {batch}; the paper: 1 and more",
    )  # fmt: skip
    step = pk.decode("mixtral-8x7b", batch=batch, context=2048, dtype="fp16", kernels="fused")
    split = hybrid(step, "h100-sxm", "duplex-logic-pim")
    yield Claim(
        source, "Mixtral 8×7B: throughput over the GPU, at most", 2.67, split.host_only / split.in_turn, "times",
        f"batch {batch}, 2,048 tokens; operators one after the other, experts whole on either side",
    )  # fmt: skip


def pim_gpt() -> Iterator[Claim]:
    """PIM-GPT, arXiv:2310.09385, abstract: 41 to 137 times a GPU, for eight GPT models."""
    source = "PIM-GPT (2310.09385)"
    for model, claimed in (("gpt2", 137.0), ("gpt2-xl", 41.0)):
        step = pk.decode(model, batch=1, context=1024, dtype="fp16")
        banks = hybrid(step, "t4", "pim-gpt")
        inside = sum(s.banks for s in banks.shares if s.banks is not None)
        launches = sum(o.executions * len(o.costs) for o in pk.estimate(step, "t4").cost.operators)
        ours = float(pk.estimate(step, "t4").time) / inside
        eager = launches * 10e-6 / inside
        yield Claim(
            source, f"{model}, a token, over a T4 whose kernels follow each other at once", None, ours, "times",
            "products and attention in the banks, the ASIC's work hidden",
        )  # fmt: skip
        yield Claim(
            source, f"{model}, a token, over a T4 that waits for the host", claimed, max(ours, eager), "times",
            "10 µs for each kernel that PyTorch issues; which model has which of 41 to 137 is not in the abstract",
        )  # fmt: skip


def hbm_pim() -> Iterator[Claim]:
    """HBM-PIM, ISCA 2021, abstract: memory-bound kernels 11.2 times, applications 3.5 times."""
    kind, size = dtype("fp16"), 2
    processor = pk.device("mi100", **{"memory.hbm.bandwidth": "1228.8 GB/s"})
    gains = []
    for n, k in ((1024, 4096), (2048, 4096), (4096, 8192), (8192, 8192)):
        gemv, moved = Gemm(1, 1, n, k, kind, kind, kind), (size * (k + n * k), size * n)
        four = together(machine(device("hbm-pim")), 4)
        gains.append(float(price(gemv, *moved, processor).tiled) / float(price(gemv, *moved, four).tiled))
    mean = math.exp(sum(map(math.log, gains)) / len(gains))
    yield Claim(
        "HBM-PIM (ISCA 2021)", "GEMV over the processor's own, four stacks", 11.2, mean, "times",
        "a processor whose library streams its matrix at full bandwidth; in-bank bandwidth is four times the pins'. "
        "The paper's processor library reached a fraction of its bandwidth on GEMV, how much it does not state",
    )  # fmt: skip


# ---- programmable logic ---------------------------------------------------------------------------------------------
def flightllm() -> Iterator[Claim]:
    """FlightLLM, arXiv:2401.03868: LLaMA2-7B, batch 1."""
    source, context = "FlightLLM (2401.03868)", 512
    small = pk.decode("llama-2-7b", batch=1, context=context, dtype="fp16", weight_dtype="int4", kv_dtype="int8")
    bits = 3.5 / 4
    stages = [Stage(s.name, s.work, s.weights * bits, s.reads, s.result) for s in stages_of(small)]
    speed = {name: 1 / sequential(fabric_of(name), stages) for name in ("alveo-u280", "vhk158")}
    step = pk.decode("llama-2-7b", batch=1, context=context, dtype="fp16", weight_dtype="int8", kernels="fused")
    a100 = 1 / float(pk.estimate(step, "a100-80gb", cuda_graph=True).time)
    v100 = 1 / float(pk.estimate(step, "v100s-pcie-32gb", cuda_graph=True).time)
    how = "3.5 bits a weight and an 8-bit cache, every stage at the bandwidth of long bursts"
    claims = (
        ("VHK158 over an A100", 1.2, speed["vhk158"] / a100, "times", "int8 weights on the A100, in a CUDA graph"),
        ("U280", 55.0, speed["alveo-u280"], "tokens/s", "the paper's figure may include the prompt's pass"),
        ("U280 over a V100S", 6.0, speed["alveo-u280"] / 45 / (v100 / 250), "times the tokens per joule",
         "45 W on the U280, the V100S at its limit of 250 W with int8 weights, in a CUDA graph"),
    )  # fmt: skip
    for what, claimed, ours, unit, more in claims:
        reached = f"the claim is met at {claimed / ours:.0%} of the bandwidth; the paper reaches 66 % of it"
        yield Claim(source, what, claimed, ours, unit, f"{how}; {more}; {reached}")


def intar() -> Iterator[Claim]:
    """InTAR, arXiv:2502.08807, abstract: 1.8 and 7.1 times a dataflow and a sequential design, five kernels."""
    whole, heads, tokens, width = fabric_of("alveo-u280"), 16, 1024, 64
    scores, ends = float(heads * tokens * tokens), float(heads * tokens * width)
    stages = [
        Stage("scores", scores * width, 0.0, 2 * ends, scores),
        Stage("weighted sum", scores * width, 0.0, scores + ends, ends),
    ]
    for memory, rate in (("HBM", whole.bandwidth), ("DDR4", 38.4e9)):
        board = Fabric(whole.multipliers, whole.clock, whole.memory, rate)
        best = sum(g.seconds for g in hybrid_groups(board, stages))
        yield Claim(
            "InTAR (2502.08807)", f"attention of GPT-2 medium over a sequential design, {memory}", 7.1,
            sequential(board, stages, spill=True) / best, "times",
            "1,024 tokens in int8 on a U280, scores leave the chip in the sequential design; the paper's five kernels, "
            "their sizes and its boards are not in the abstract",
        )  # fmt: skip


def seedlm() -> Iterator[Claim]:
    """SeedLM, arXiv:2410.10714, abstract: approaches four times the speed of fp16 as models grow to 70B."""
    board = fabric_of("alveo-u280")
    for model in ("llama-2-7b", "llama-2-70b"):
        wide, narrow = (
            sequential(board, stages_of(pk.decode(model, batch=1, context=128, dtype="fp16", weight_dtype=kind)))
            for kind in (None, "int4")
        )
        yield Claim(
            "SeedLM (2410.10714)", f"{model} at 4 bits over fp16", 4.0 if "70b" in model else None, wide / narrow,
            "times", "U280's bandwidth whatever its capacity; seeds expanded as fast as they arrive",
        )  # fmt: skip


# ---- processors and arrays ------------------------------------------------------------------------------------------
def sparamx() -> Iterator[Claim]:
    """SparAMX, arXiv:2502.12444, abstract: end to end 1.42 times faster, attention 1.14 times."""
    from peakline.cost.sparse import bitmap_bytes

    source, step = "SparAMX (2502.12444)", pk.decode("llama-3-8b", batch=1, context=512, dtype="bf16", kernels="fused")
    est = pk.estimate(step, "xeon-8480plus")
    linear = sum(o.executions * float(o.seconds("tiled")) for o in est.cost.operators if o.type == "linear")
    share = bitmap_bytes(1, 0.5, 16) / 2
    ours = est.time / (est.time - linear * (1 - share))
    yield Claim(
        source, "Llama 3 8B, a token, linear layers half zeros", 1.42, ours, "times",
        "bitmap and packed values stream at the memory's bandwidth, expanding them hidden behind it; the paper's "
        "baseline and its expansion take longer",
    )  # fmt: skip


def sn40l() -> Iterator[Claim]:
    """SN40L, arXiv:2405.07518, abstract: switching experts, and the machines that hold them."""
    source, sockets = "SN40L (2405.07518)", 8
    for name, link, claimed in (("DGX H100", "pcie-5-x16", 15.0), ("DGX A100", "pcie-4-x16", 31.0)):
        rate = device(link).links["lanes"].bandwidth or 0.0
        yield Claim(
            source, f"switching an expert, over {name}", claimed, 1e12 / rate, "times",
            "1 TB/s between the node's DDR and HBM as the paper reaches (1.6 TB/s of DDR), one GPU's host link at its "
            "peak on the other side",
        )  # fmt: skip
    ddr = sockets * (device("sambanova-sn40l").level("ddr").capacity or 0)
    yield Claim(
        source, "machines that hold as many experts", 19.0, ddr / (8 * 80 * 2**30), "times",
        "DDR of a node against the HBM of a DGX with 80 GB GPUs, all of both",
    )  # fmt: skip


def gaudi() -> Iterator[Claim]:
    """FP8 on Gaudi 2, arXiv:2503.09975, abstract: frequently more than 90 % of peak."""
    kind, out = dtype("fp8"), dtype("bf16")
    for side in (4096, 8192, 16384):
        gemm = Gemm(1, side, side, side, kind, kind, out)
        seconds = float(price(gemm, 2 * side * side, 2 * side * side, device("gaudi2")).tiled)
        yield Claim(
            "FP8 on Gaudi 2 (2503.09975)", f"a product of {side:,}³: share of peak", 90.0,
            100 * float(gemm.flops) / seconds / device("gaudi2").peak("fp8"), "%", "fp8 operands, bf16 results",
        )  # fmt: skip


def larc() -> Iterator[Claim]:
    """LARC, arXiv:2204.02235, abstract: 9.77 times a chip for what is sensitive to caches."""
    found = device("larc")
    groups, before = 16 / 4, {"units": 12, "bandwidth": 256e9}
    memory = (found.level("l2").bandwidth or 0.0) / before["bandwidth"]
    compute = (found.units or 0) / before["units"]
    assumed = "16 core groups where the A64FX has 4; per group 32 cores for 12"
    yield Claim(
        "LARC (2204.02235)", "a chip, bound by arithmetic", 9.77, groups * compute, "times", f"{assumed}, equal clocks"
    )
    yield Claim(
        "LARC (2204.02235)", "a chip, bound by memory that its cache now holds", None, groups * memory, "times",
        f"{assumed}, 1,536 GB/s of cache for 256 GB/s of HBM",
    )  # fmt: skip


def memory_wall() -> Iterator[Claim]:
    """AI and memory wall, arXiv:2403.14123, abstract: growth in two years of arithmetic, DRAM and links."""
    points: dict[str, list[tuple[int, float]]] = {"arithmetic": [], "main memory": [], "links": []}
    for name in (*devices("gpu"), *devices("npu")):
        found = device(name)
        if found.status != "product" or found.year is None or (found.tdp or 0) < 200:
            continue
        rates = {**found.rates("vector"), **found.rates("matrix")}
        best = max((rates[form] for form in ("bf16", "fp16", "fp32") if form in rates), default=0.0)
        peer = found.links["peer"].bandwidth if "peer" in found.links else None
        for kind, value in (("arithmetic", best), ("main memory", found.main.bandwidth), ("links", peer)):
            if value:
                points[kind].append((found.year, value))
    for kind, claimed in (("arithmetic", 3.0), ("main memory", 1.6), ("links", 1.4)):
        yield Claim(
            "AI and memory wall (2403.14123)", f"growth of {kind} in two years", claimed, _growth(points[kind]) ** 2,
            "times", f"{len(points[kind])} boards of the catalogue above 200 W, since 2016; the paper: 20 years",
        )  # fmt: skip


def _growth(points: list[tuple[int, float]]) -> float:
    """Yearly factor of a straight line through the logarithms."""
    mean = sum(year for year, _ in points) / len(points)
    slope = sum((year - mean) * math.log(value) for year, value in points)
    return math.exp(slope / sum((year - mean) ** 2 for year, _ in points))


# ---- microcontrollers and energy ------------------------------------------------------------------------------------
def microcontrollers() -> Iterator[Claim]:
    """MCUNetV2, arXiv:2110.15352, and on-device training, arXiv:2206.15472: abstracts."""
    from peakline.on_device import learning, read_update

    graph = pk.inference("mobilenet-v2", dtype="int8")
    whole, cut = pk.estimate(graph, "stm32h743"), pk.estimate(graph, "stm32h743", patches=4)
    yield Claim(
        "MCUNetV2 (2110.15352)", "MobileNetV2: peak memory, 4 to 8 times less", 8.0,
        whole.memory.live / cut.memory.live, "times",
        "16 patches, the stage that lowers the peak most, image arriving by patches",
    )  # fmt: skip
    net = pk.inference("mcunet-in1", dtype="int8", image=128, overrides={"classes": 10})
    est = pk.estimate(net, "stm32f746")
    scheme = read_update(est, "21,24,27,30,36:0.125,39:0.25,-1;biases=23")
    yield Claim(
        "On-device training (2206.15472)", "SRAM of a training step, at most", 256.0, learning(est, scheme).sram / 1024,
        "KiB", "MCUNet, 128 pixels, the authors' scheme named 99 kB, TinyEngine's buffers",
    )  # fmt: skip


def energy() -> Iterator[Claim]:
    """EfficientLLM, arXiv:2505.13840, abstract: int4 takes up to 3.9 times less memory and energy."""
    steps = [
        pk.decode("llama-2-70b", batch=1, context=128, dtype="fp16", weight_dtype=kind, kernels="fused")
        for kind in (None, "int4-g128")
    ]
    wide, narrow = (pk.estimate(step, "h200") for step in steps)
    source = "EfficientLLM (2505.13840)"
    held = [float(step.total_bytes("parameter")) for step in steps]
    yield Claim(source, "Llama 2 70B: weights at 4 bits", 3.9, held[0] / held[1], "times less", "groups of 128")
    assert wide.energy is not None
    assert narrow.energy is not None
    yield Claim(
        source, "Llama 2 70B: joules of a token at 4 bits", 3.9, wide.energy.total / narrow.energy.total, "times less",
        "H200, one sequence; arithmetic, L2 and HBM alone",
    )  # fmt: skip


CASES: dict[str, Callable[[], Iterator[Claim]]] = {
    "neupims": neupims,
    "attacc": attacc,
    "duplex": duplex,
    "pim-gpt": pim_gpt,
    "hbm-pim": hbm_pim,
    "flightllm": flightllm,
    "intar": intar,
    "seedlm": seedlm,
    "sparamx": sparamx,
    "sn40l": sn40l,
    "gaudi": gaudi,
    "larc": larc,
    "memory-wall": memory_wall,
    "microcontrollers": microcontrollers,
    "energy": energy,
}
"""The cases by name."""


def lines(names: list[str]) -> Iterator[str]:
    """Lines of the table in Markdown, as they are computed; raises ValueError for an unknown case."""
    return table(names, CASES)


if __name__ == "__main__":
    for line in lines(sys.argv[1:] or list(CASES)):
        print(line, flush=True)
