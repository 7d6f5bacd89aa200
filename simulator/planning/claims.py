"""What the papers on offloading claim, and what these models say: `python -m peakline.planning.claims`.

Every case states what it assumes where the paper leaves it open; nothing is tuned to the claimed figure.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import peakline as pk
from peakline.planning.claim import Claim, largest, row
from peakline.planning.claims_memo import memo
from peakline.planning.claims_serving import flexgen, head_infer, mom
from peakline.planning.claims_tables import (
    activations,
    card,
    galore,
    lomo,
    long_sequences,
    megatron,
    mini_sequences,
    qlora,
)
from peakline.planning.extract import problem_of, profile
from peakline.planning.tiers import DRIVE, surroundings
from peakline.planning.turns import HostOptimizer
from peakline.solvers.offload.linear import least_budget

__all__ = ["CASES", "Claim", "table"]


def _floor(step: Any, device: str, states: set[str], *, host: int, ssd: str | pk.Device | None = None,
           swap: bool = True) -> int:  # fmt: skip
    """Bytes of the device that recomputing, moving and an optimizer on the host cannot go below; context included.

    Args:
        states: roles that leave the device.
        host: bytes of host memory.
        ssd: drives behind it, all of them.
        swap: activations may leave too.
    """
    before, drive = pk.estimate(step, device), pk.device(DRIVE if ssd is None else ssd)
    held = None if ssd is None else drive.main.capacity
    around = surroundings(pk.device(device), host=host, ssd=held, ssd_device=drive)
    taken = profile(before, host=HostOptimizer(around.host_bandwidth, around.common[1]))
    problem, _ = problem_of(taken, 1 << 20, around.tiers, swap=swap, states=frozenset(states))
    outside = before.memory.context + 2 * pk.device(device).software.cublas_workspace_bytes
    return least_budget(replace(problem, common=around.common)) + outside


# ---- training -------------------------------------------------------------------------------------------------------
def zero_offload() -> Iterator[Claim]:
    """ZeRO-Offload, arXiv:2101.06840, figure 7 and table 2: hidden 4096 for 13 B, 2048 below 2 B."""

    def step(layers: int, hidden: int, batch: int, master: bool) -> Any:
        sizes = {"layers": layers, "hidden": hidden, "ffn": 4 * hidden, "head_dim": 128}
        heads = {"heads": hidden // 128, "kv_heads": hidden // 128}
        return pk.training_step(
            "gpt2-xl", batch=batch, seq=1024, dtype="fp16", optimizer="adamw-fused", master_weights=master,
            overrides=sizes | heads,
        )  # fmt: skip

    def billions(graph: Any) -> float:
        return float(graph.parameters) / 1e9

    capacity = pk.device("v100-32gb").main.capacity or 0
    source, unit = "ZeRO-Offload (2101.06840)", "10⁹ parameters"
    for batch in (1, 2):

        def fits(layers: int, batch: int = batch) -> bool:
            return bool(pk.estimate(step(layers, 2048, batch, True), "v100-32gb").fits)

        yield Claim(
            source, f"largest model on one V100 32 GB, PyTorch, batch {batch}", 1.4,
            billions(step(largest(fits, 1, 60), 2048, batch, True)), unit,
            "fp16 with fp32 master weights and Adam, 1,024 tokens, no recomputation; the paper names no batch",
        )  # fmt: skip
    for batch in (1, 4):

        def reaches(layers: int, batch: int = batch) -> bool:
            graph = step(layers, 4096, batch, False)
            return _floor(graph, "v100-32gb", {"optimizer_state", "gradient"}, host=1500 << 30, swap=False) <= capacity

        yield Claim(
            source, f"the same with states and optimizer on the host, batch {batch}", 13.0,
            billions(step(largest(reaches, 40, 104, 2), 4096, batch, False)), unit,
            "fp16 parameters and checkpoints on the device, 1.5 TB of host memory, no buffers of the framework",
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
    thin, thick = (
        pk.inference("gpt3-175b", batch=1, seq=2048, dtype="fp16", overrides={"layers": n, "vocab": 50272})
        for n in (1, 2)
    )
    one = pk.estimate(thin, "a100-80gb").memory
    parameters = int(one.by_role["parameter"])
    block = int(thick.total_bytes("parameter")) - int(thin.total_bytes("parameter"))
    matrix = max(int(t.bytes) for t in thick.of_role("parameter") if thick.layers(t.name) > 1)
    held = parameters + 2 * block + max(int(one.live) - parameters, 4 * matrix) + one.context
    yield Claim(
        "ZO2 (2503.12668)", "OPT-175B fine-tuned with parameters in host memory", 18.0, held / 1e9, "GB held",
        "three blocks on the device (in, in use, out), embedding and head resident, 2,048 tokens; updating a matrix "
        "takes four more of its size (noise, its product with the gradient, decay, their sum)",
    )  # fmt: skip


def fuyou() -> Iterator[Claim]:
    """Fuyou, arXiv:2403.06504, §5.1: RTX 4090, 768 GB of host memory, twelve 3.84 TB drives."""
    step = pk.training_step("gpt3-175b", batch=8, seq=1024, dtype="fp16", optimizer="adamw-fused")
    states = {"optimizer_state", "gradient", "parameter"}
    drives = pk.device("samsung-pm1743-7.68tb", **{"memory.nand.capacity": "46.08 TB"})
    least = _floor(step, "rtx-4090", states, host=768 << 30, ssd=drives)
    yield Claim(
        "Fuyou (2403.06504)", "GPT-3 175B fine-tuned on one 24 GB card with drives", card("rtx-4090"), least / 1e9,
        "GB held", "batch 8 of 1,024 tokens; parameters, gradients and activations stream, states beside the device",
        within=True,
    )  # fmt: skip


def ssdtrain() -> Iterator[Claim]:
    """SSDTrain, arXiv:2408.10013, §IV: BERT, A100 40 GB, P5800X drives; the peak of activations at no cost in time.

    47 % is the paper's largest figure; a tensor of the layer at the turn of the step has no time to go and come back.
    """
    drive = pk.device(
        "optane-p5800x-1.6tb",
        **{"memory.xpoint.read_bandwidth": "28.8 GB/s", "memory.xpoint.write_bandwidth": "24.8 GB/s",
           "memory.xpoint.capacity": "6.4 TB"},
    )  # fmt: skip
    roomy = pk.device("a100-40gb", **{"memory.hbm.capacity": "80 GB"})  # what is saved is measured against everything
    outside = 2 * roomy.software.cublas_workspace_bytes
    for layers, hidden in ((4, 8192), (3, 12288)):
        sizes = {"layers": layers, "hidden": hidden, "heads": hidden // 128, "ffn": 4 * hidden}
        step = pk.training_step(
            "bert-large-uncased", batch=16, seq=1024, dtype="fp16", optimizer="sgd-fused", set_to_none=False,
            overrides=sizes,
        )  # fmt: skip
        before = pk.estimate(step, roomy).memory
        fixed = sum(int(before.by_role[role]) for role in ("parameter", "gradient"))

        def free(share: int, step: Any = step, before: Any = before, fixed: int = fixed) -> bool:
            budget = fixed + (100 - share) * (before.live - fixed) // 100 + before.context + outside
            try:
                found = pk.plan(step, roomy, budget=budget, host="1 MiB", ssd="6 TB", ssd_device=drive, allow=["swap"])
            except pk.NothingFits:
                return False
            return found.overhead <= 0.01

        yield Claim(
            "SSDTrain (2408.10013)", "activation peak saved at negligible cost", 47.0,
            float(largest(free, 1, 95)), "%",
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


CASES: dict[str, Callable[[], Iterator[Claim]]] = {
    "zero-offload": zero_offload,
    "mezo": mezo,
    "flexgen": flexgen,
    "head-infer": head_infer,
    "mom": mom,
    "ssdtrain": ssdtrain,
    "pipe-offload": pipe_offload,
    "fuyou": fuyou,
    "galore": galore,
    "lomo": lomo,
    "qlora": qlora,
    "activations": activations,
    "megatron": megatron,
    "mini-sequences": mini_sequences,
    "alst": long_sequences,
    "memo": memo,
}
"""The cases by name."""


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
