"""What one layer of a served model needs: bytes of weights, cache and activations, and seconds of computing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from peakline.cost.storage import drive_of
from peakline.estimator import estimate
from peakline.hardware import Device
from peakline.models.graph import Graph
from peakline.models.workloads import decode, prefill
from peakline.planning.windows import Activity, Sparse, feed_forward, read_rate

__all__ = ["STREAM_UNITS", "STRETCH", "UNITS", "Piece", "Sizes", "by_neurons", "by_operators", "sizes_of"]

UNITS = ("layer", "head", "tokens")
"""What of the cache comes in at a time."""

STRETCH = 1024
"""Tokens of a unit of tokens."""


STREAM_UNITS = ("layer", "operator")
"""What of the weights comes in at a time."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What of a layer comes in at a time and is computed then.

    Attributes:
        name: for people.
        weights, computing: shares of the layer's streamed bytes and of its computing.
        cached: the cache is read and written here.
    """

    name: str
    weights: float
    computing: float
    cached: bool


@dataclass(frozen=True)
class Sizes:
    """What one layer of a workload needs, for one batch.

    Attributes:
        layers: number of layers.
        weights: bytes of one layer's weights (all weights over the layers).
        cache: bytes of one layer's cache for one sequence at its full length.
        appended: bytes of one layer's cache for one token of one sequence.
        working: bytes of activations while a batch runs.
        step_seconds, prompt_seconds: computing of one layer for one batch: a token each, and the prompts.
        heads: key-value heads of a layer; 0 where the cache has none (latent attention).
        units: parts in which a layer's cache comes in.
        experts: bytes of a layer's routed experts, among its weights.
        expert_count, chosen: routed experts of a layer, and how many of them a token chooses.
        sparse: the feed-forward part, where only active neurons of it come in.
        pieces: in which a layer comes in, in the order of their use; one, or its operators.
    """

    layers: int
    weights: float
    cache: float
    appended: float
    working: float
    step_seconds: float
    prompt_seconds: float
    heads: int = 0
    units: int = 1
    experts: float = 0.0
    expert_count: int = 0
    chosen: int = 0
    sparse: Sparse | None = None
    pieces: tuple[Piece, ...] = (Piece("", 1.0, 1.0, True),)

    @property
    def largest(self) -> float:
        """Share of a layer's streamed weights that comes in at a time, at most."""
        return max(piece.weights for piece in self.pieces)

    @property
    def gathered(self) -> float:
        """Bytes of a layer's weights that come in by neurons."""
        return self.sparse.part.bytes if self.sparse else 0.0

    def touched(self, tokens: int) -> float:
        """Share of a layer's experts that some of the tokens choose, evenly and each for itself."""
        if not self.expert_count:
            return 0.0
        return float(1.0 - (1.0 - self.chosen / self.expert_count) ** tokens)

    def read(self, tokens: int) -> float:
        """Bytes of a layer's weights that these tokens need."""
        return self.weights - self.experts * (1.0 - self.touched(tokens))


def sizes_of(
    model: str, device: Device, batch: int, prompt: int, generate: int, formats: dict[str, Any], unit: str = "layer",
    chunk: int | None = None,
) -> tuple[Sizes, int]:  # fmt: skip
    """Sizes of one batch, from estimates of a decoding step and of the prompts; and the context's bytes."""
    graph = decode(model, batch=batch, context=prompt + generate, **formats)
    step = estimate(graph, device)
    prompts = estimate(prefill(model, batch=batch, seq=prompt, **formats), device)
    layers = max(graph.families.values(), default=1)
    cache = float(graph.total_bytes("kv_cache")) / batch
    resident = float(graph.total_bytes("parameter", "kv_cache", "buffer"))
    working = max(float(step.memory.live) - resident, 0.0)
    part = prompts if chunk is None or chunk >= prompt else estimate(
        prefill(model, batch=batch, seq=chunk, **formats), device
    )  # fmt: skip
    working = max(working, float(part.memory.by_role.get("activation", 0) + part.memory.by_role.get("workspace", 0)))
    heads = _heads(graph)
    if unit == "head" and not heads:
        raise ValueError(f"cache_unit: the cache of {model} has no heads; accepted: layer, tokens")
    units = {"layer": 1, "head": heads, "tokens": -(-(prompt + generate) // STRETCH)}[unit]
    return Sizes(
        layers,
        float(graph.total_bytes("parameter")) / layers,
        cache / layers,
        cache / layers / (prompt + generate),
        working,
        float(step.time) / layers,
        float(prompts.time) / layers,
        heads,
        units,
        *_experts(graph, batch, layers),
    ), step.memory.context


def _heads(graph: Graph) -> int:
    """Key-value heads of a layer's attention; 0 where it keeps latent vectors."""
    if any("latent" in tensor.name for tensor in graph.of_role("kv_cache")):
        return 0
    found = [int(o.attributes["kv_heads"]) for _, o in graph.operators() if "kv_heads" in o.attributes]
    return max(found, default=0)


def _experts(graph: Graph, tokens: int, layers: int) -> tuple[float, int, int]:
    """Bytes of routed experts per layer, their number, and how many a token chooses, of a decoding step."""
    routed = [tensor for tensor in graph.of_role("parameter") if ".experts." in tensor.name and len(tensor.shape) == 3]
    chosen = [t for name, t in graph.tensors.items() if name.endswith("experts.expert_ids.out")]
    if not routed or not chosen:
        return 0.0, 0, 0
    size = sum(graph.layers(tensor.name) * int(tensor.bytes) for tensor in routed)
    return size / layers, int(routed[0].shape[0]), int(chosen[0].elements) // tokens


def by_operators(sizes: Sizes, model: str, **workload: Any) -> Sizes:
    """The sizes with layers that come in operator by operator.

    A decoding step takes as long as its bytes take to be read, so an operator's share of the computing is that of the
    weights and the cache it reads.

    Raises:
        ValueError: a mixture of experts, or no operators with weights.
    """
    if sizes.expert_count:
        raise ValueError("stream_unit: the experts of a mixture come in as they are chosen; accepted: layer")
    graph, batch = decode(model, **workload), int(workload["batch"])
    parameters = {tensor.name for tensor in graph.of_role("parameter")}
    found: list[tuple[str, float, bool]] = []
    for block, operator in graph.operators():
        if block.repeat < 2:
            continue
        own = sum(int(graph.tensors[name].bytes) for name in operator.inputs if name in parameters)
        if own:
            found.append((operator.name, float(own), False))
        elif operator.type == "cache_write":
            found = [piece for piece in found if not piece[2]]  # attention runs once keys and values are written
            found.append(("attention", 0.0, True))
    weights, cache = sum(size for _, size, _ in found), sizes.cache * batch
    if not weights or not any(cached for _, _, cached in found):
        raise ValueError(f"stream_unit: {model} has no layers of operators with a cache; accepted: layer")
    scale = sizes.weights / weights  # embeddings and head are spread over the layers
    reads = sizes.weights + cache
    return replace(
        sizes,
        pieces=tuple(
            Piece(name, size / weights, (cache if cached else size * scale) / reads, cached)
            for name, size, cached in found
        ),
    )


def by_neurons(
    sizes: Sizes, model: str, active: Activity, drive: str | Device | None, bundle: bool, **workload: Any
) -> Sizes:
    """The sizes with a feed-forward part of which only active neurons come in.

    Args:
        drive: the drive behind the host, if there is one.
        bundle: a neuron's rows and columns lie together there.
        workload: arguments of the decoding step.
    """
    part = feed_forward(decode(model, **workload), sizes.layers)
    chunk = part.neuron if bundle else part.row
    return replace(sizes, sparse=Sparse(part, active, None if drive is None else read_rate(drive_of(drive), chunk)))
