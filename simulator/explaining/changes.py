"""Changes to a workload that lower its memory: each is tried by building the workload again and pricing that.

What is listed here is only what can be asked for; what it saves, and what it costs in time, is never assumed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from peakline.models.graph import Graph
from peakline.models.origin import Origin

__all__ = ["Change", "changes_of"]


@dataclass(frozen=True)
class Change:
    """Something that could be done differently.

    Attributes:
        words: what to do, in the imperative.
        how: how to ask for it.
        options: what changes in the call that builds or captures the workload.
        same_result: whether the step computes the same, up to rounding in the same formats.
    """

    words: str
    how: str
    options: Mapping[str, Any]
    same_result: bool = True


def changes_of(graph: Graph, made: Origin, *, at_update: bool = True) -> list[Change]:
    """What could be changed in a workload, in no particular order.

    Args:
        at_update: whether the peak lies in the optimizer's update.
    """
    if made.kind == "built":
        return list(_built(graph, made.options))
    return list(_captured(graph, made.options, at_update=at_update))


# ---- built-in workloads ----------------------------------------------------------------------------------------------
def _built(graph: Graph, options: Mapping[str, Any]) -> Iterator[Change]:
    said = graph.workload
    if said["phase"] == "training":
        yield from _recomputed(said)
        yield from _losses(said)
        yield from _optimizers(said)
    else:
        yield from _serving(said)
    yield from _formats(said)
    yield from _halved(graph, options)
    if said.get("attention") in ("eager", "math"):
        yield Change("compute attention tile by tile", 'attention="flash"', {"attention": "flash"})
    if said.get("kernels") == "eager":
        yield Change("fuse elementwise kernels, as torch.compile does", 'kernels="fused"', {"kernels": "fused"})
    if options.get("set_to_none") is False:
        yield Change("let zero_grad free the gradients", "set_to_none=True", {"set_to_none": True})


def _recomputed(said: Mapping[str, Any]) -> Iterator[Change]:
    if said["recompute"] == "none":
        words = "recompute attention in the backward pass"
        yield Change(words, 'recompute="selective"', {"recompute": "selective"})
    if said["recompute"] != "full":
        words = "recompute every layer in the backward pass"
        yield Change(words, 'recompute="full"', {"recompute": "full"})


def _losses(said: Mapping[str, Any]) -> Iterator[Change]:
    loss = said.get("loss")
    if loss == "unfused":
        yield Change("keep the logits in their own format", 'loss="native"', {"loss": "native"})
    if loss in ("unfused", "native"):
        yield Change("compute the loss in 8 chunks of tokens", 'loss="chunked"', {"loss": "chunked", "loss_chunks": 8})
        yield Change("fuse the last projection with the loss", 'loss="fused"', {"loss": "fused"})


def _optimizers(said: Mapping[str, Any]) -> Iterator[Change]:
    name, variant = said["optimizer"], said.get("optimizer_implementation")
    if variant == "foreach":
        how = f'optimizer="{name}-fused"'
        yield Change("update the parameters with one fused kernel", how, {"optimizer": f"{name}-fused"})
    if name in ("adam", "adamw"):
        yield Change("keep the optimizer's states in 8 bits", 'optimizer="adam8bit"', {"optimizer": "adam8bit"}, False)
    if said.get("lora_rank") is None:
        yield Change("train adapters of rank 16, the base frozen (LoRA)", "lora=16", {"lora": 16}, False)


def _formats(said: Mapping[str, Any]) -> Iterator[Change]:
    if said.get("dtype") != "fp32":
        return
    if said["phase"] == "training" and said.get("autocast") is None:
        yield Change("multiply matrices in bf16 (autocast)", 'autocast="bf16"', {"autocast": "bf16"}, False)
    yield Change("keep parameters and activations in bf16", 'dtype="bf16"', {"dtype": "bf16", "autocast": None}, False)


def _serving(said: Mapping[str, Any]) -> Iterator[Change]:
    if said["phase"] in ("prefill", "decode") and said.get("kv_dtype") is None:
        yield Change("keep the KV cache in fp8", 'kv_dtype="fp8_e4m3"', {"kv_dtype": "fp8_e4m3"}, False)
    if said.get("weight_dtype") is None:
        for kind in ("int8", "int4"):
            yield Change(f"keep the weights in {kind}", f'weight_dtype="{kind}"', {"weight_dtype": kind}, False)


def _halved(graph: Graph, options: Mapping[str, Any]) -> Iterator[Change]:
    batch = graph.workload.get("batch")
    if not isinstance(batch, int) or batch < 2 or batch % 2:
        return
    half = batch // 2
    if graph.workload["phase"] != "training":
        yield Change(f"half the batch ({half})", f"batch={half}", {"batch": half}, False)
        return
    turns = 2 * int(options.get("accumulation") or 1)
    words = f"accumulate gradients over {turns} smaller batches of {half}"
    how = f"batch={half}, accumulation={turns}"
    yield Change(words, how, {"batch": half, "accumulation": turns}, _independent(graph))


def _independent(graph: Graph) -> bool:
    """Whether the samples of a batch do not see one another."""
    return not any("batch_norm" in operator.type for _, operator in graph.operators())


# ---- captured programs -----------------------------------------------------------------------------------------------
def _captured(graph: Graph, options: Mapping[str, Any], *, at_update: bool) -> Iterator[Change]:
    """What `peakline.models.capture.changes` can do to somebody else's program."""
    if graph.workload.get("phase") != "training":
        return
    if not any(operator.phase == "recompute" for _, operator in graph.operators()):
        yield Change("recompute the repeated layers in the backward pass", "torch.utils.checkpoint around each",
                     {"change": "checkpoint"})  # fmt: skip
    if at_update:  # nowhere else do its temporaries count
        yield Change("update the parameters with one fused kernel", "optimizer(…, fused=True)", {"change": "fused"})
        yield Change("update the parameters one by one", "optimizer(…, foreach=False)", {"change": "loop"})
    yield Change("accumulate gradients over 2 batches of half the size", "two backward passes a step",
                 {"change": "halved"}, _independent(graph))  # fmt: skip
    yield Change("compute the loss in 8 chunks of tokens", "last projection and loss chunk by chunk, checkpointed",
                 {"change": "chunked"})  # fmt: skip
    yield Change("compute attention with PyTorch's fused kernels", 'model.set_attn_implementation("sdpa")',
                 {"change": "attention"})  # fmt: skip
    yield Change("keep no keys and values for generation", "model.config.use_cache = False", {"change": "cache"})
    if options.get("autocast") is None and _float32(graph):
        yield Change("multiply matrices in bf16 (autocast)", 'torch.autocast("cuda", torch.bfloat16)',
                     {"autocast": "bf16"}, False)  # fmt: skip
    if options.get("dtype") is None and _float32(graph):
        yield Change("keep parameters and activations in bf16", "module.to(torch.bfloat16)", {"dtype": "bf16"}, False)


def _float32(graph: Graph) -> bool:
    return any(t.dtype.name == "fp32" for t in graph.of_role("parameter"))
