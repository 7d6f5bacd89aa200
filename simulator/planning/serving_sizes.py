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

__all__ = ["STREAM_UNITS", "STRETCH", "UNITS", "Chunk", "Piece", "Sizes", "by_neurons", "by_operators", "sizes_of"]

UNITS = ("layer", "head", "tokens")
"""What of the cache comes in at a time."""

STRETCH = 1024
"""Tokens of a unit of tokens."""


CHUNKS = 4
"""Passes of the prompts that are told apart: of more, those that follow each other are taken to be alike."""

PARTS = 8
"""Parts in which a layer's experts come in while prompts are read, at most: one by one where there are few."""

STREAM_UNITS = ("layer", "operator")
"""What of the weights comes in at a time."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What of a layer comes in at a time and is computed then.

    Attributes:
        name: for people.
        weights, computing: shares of the layer's streamed bytes and of its computing while it decodes.
        cached: the cache is read and written here.
        prompting: share of the layer's computing while it reads prompts.
    """

    name: str
    weights: float
    computing: float
    cached: bool
    prompting: float = 1.0

    def computing_of(self, decodes: bool) -> float:
        """Share of the computing in a decoding step, or in a pass of the prompts."""
        return self.computing if decodes else self.prompting


@dataclass(frozen=True, slots=True)
class Chunk:
    """A pass of the prompts.

    Attributes:
        times: passes like it.
        tokens: of every sequence.
        cached: tokens of every sequence before them, on average.
        seconds: computing of one layer for one batch.
    """

    times: float
    tokens: int
    cached: float
    seconds: float


@dataclass(frozen=True)
class Sizes:
    """What one layer of a workload needs, for one batch.

    Attributes:
        layers: number of layers.
        weights: bytes of one layer's weights (all weights over the layers).
        cache: bytes of one layer's cache for one sequence at its full length.
        appended: bytes of one layer's cache that a token of one sequence writes: its keys and values, or a whole state.
        working: bytes of activations while a batch runs.
        step_seconds, prompt_seconds: computing of one layer for one batch: a token each, and the prompts.
        heads: key-value heads of a layer; 0 where the cache has none (latent attention).
        units: parts in which a layer's cache comes in.
        experts: bytes of a layer's routed experts, among its weights.
        expert_count, chosen: routed experts of a layer, and how many of them a token chooses.
        sparse: the feed-forward part, where only active neurons of it come in.
        pieces: in which a layer comes in, in the order of their use; one, or its operators.
        chunks: passes of the prompts.
        hidden: bytes of what one layer hands to the next, for one token of one sequence.
        filled: share of the cache that a decoding step reads, on average over the steps.
        notes: what a user should know of the workload.
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
    chunks: tuple[Chunk, ...] = ()
    hidden: float = 0.0
    filled: float = 1.0
    notes: tuple[str, ...] = ()

    @property
    def gathered(self) -> float:
        """Bytes of a layer's weights that come in by neurons."""
        return self.sparse.part.bytes if self.sparse else 0.0

    def pieces_of(self, tokens: int) -> tuple[Piece, ...]:
        """In which a layer comes in for the prompts: of a mixture, what is no expert, and then the experts in parts.

        Their shares of the computing are those of the parameters that a token uses.
        """
        if not self.expert_count:
            return self.pieces
        parts, read = min(self.expert_count, PARTS), self.read(tokens)
        experts = self.experts * self.touched(tokens)
        used = self.experts * self.chosen / self.expert_count
        rest = (self.weights - self.experts) / (self.weights - self.experts + used)
        first = Piece("rest", 1.0 - experts / read, rest, True, rest)
        share = experts / read / parts
        some = (Piece(f"experts {i}", share, (1 - rest) / parts, False, (1 - rest) / parts) for i in range(parts))
        return first, *some

    def held(self, tokens: float) -> float:
        """Bytes of one layer's cache for so many tokens of one sequence: windows and states hold no more of more."""
        return min(tokens * self.appended, self.cache)

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
    """Sizes of one batch, from estimates of a decoding step and of the prompts; and the context's bytes.

    Room is kept for the whole cache. A decoding step takes the time of the average one, whose cache holds the prompt
    and half of what is generated (FlexGen, appendix A.3: s + n/2).
    """
    graph, mean = decode(model, batch=batch, context=prompt + generate, **formats), prompt + max(generate // 2, 1)
    step = estimate(graph, device)
    middle = decode(model, batch=batch, context=mean, **formats) if mean < prompt + generate else graph
    average = step if middle is graph else estimate(middle, device)
    prompts = estimate(prefill(model, batch=batch, seq=prompt, **formats), device)
    layers = max(graph.families.values(), default=1)
    cache = float(graph.total_bytes("kv_cache")) / batch
    appended = float(decode(model, batch=1, context=1, **formats).total_bytes("kv_cache"))
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
        appended / layers,
        working,
        float(average.time) / layers,
        float(prompts.time) / layers,
        heads,
        units,
        *_experts(graph, batch, layers),
        hidden=_hidden(graph, batch),
        filled=float(middle.total_bytes("kv_cache")) / batch / cache if cache else 1.0,
        notes=graph.notes,
        chunks=_chunks(prompt, chunk, float(part.time) / layers, float(prompts.time) / layers),
    ), step.memory.context


def _chunks(prompt: int, chunk: int | None, first: float, seconds: float) -> tuple[Chunk, ...]:
    """The passes of the prompts, alike ones together.

    Attention of a chunk grows with the tokens before it: chunks take `first` seconds and evenly more, together those of
    the prompts in one piece, or as many times `first` where small pieces alone are slower than that.
    """
    if chunk is None or chunk >= prompt:
        return (Chunk(1.0, prompt, 0.0, seconds),)
    count = -(-prompt // chunk)
    more = max(2.0 * (seconds - count * first) / (count * (count - 1)), 0.0)
    tokens, kinds = -(-prompt // count), min(count, CHUNKS)
    middles = [(count / kinds) * (kind + 0.5) - 0.5 for kind in range(kinds)]
    return tuple(Chunk(count / kinds, tokens, tokens * i, first + more * i) for i in middles)


def _hidden(graph: Graph, tokens: int) -> float:
    """Bytes per token of what the repeated layers hand on: what their last operator makes."""
    made = [o.outputs[0] for block, o in graph.operators() if block.repeat > 1]
    return float(graph.tensors[made[-1]].bytes) / tokens if made else 0.0


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


def by_operators(
    sizes: Sizes, model: str, device: Device, *, batch: int, prompt: int, generate: int, formats: dict[str, Any]
) -> Sizes:
    """The sizes with layers that come in operator by operator.

    An operator with weights takes, of the layer's computing, its own estimated seconds and those of what follows it up
    to the next one; what follows the writes of keys and values is the attention, which reads the cache.

    Raises:
        ValueError: a mixture of experts, or no operators with weights.
    """
    if sizes.expert_count:
        raise ValueError("stream_unit: the experts of a mixture come in as they are chosen; accepted: layer")
    decoding = _pieces(decode(model, batch=batch, context=prompt + generate, **formats), device)
    prompting = _pieces(prefill(model, batch=batch, seq=prompt, **formats), device)
    if not sum(size for _, size, _, _ in decoding) or not any(cached for _, _, _, cached in decoding):
        raise ValueError(f"stream_unit: {model} has no layers of operators with a cache; accepted: layer")
    weights, seconds = sum(piece[1] for piece in decoding), sum(piece[2] for piece in decoding)
    before = sum(piece[2] for piece in prompting)
    pieces = tuple(
        Piece(name, size / weights, took / seconds, cached, prompt_took / before)
        for (name, size, took, cached), (_, _, prompt_took, _) in zip(decoding, prompting, strict=True)
    )
    return replace(sizes, pieces=pieces)


def _pieces(graph: Graph, device: Device) -> list[tuple[str, float, float, bool]]:
    """What of the repeated layers comes in at a time: name, bytes, seconds, and whether it reads the cache."""
    seconds = {o.name: float(o.seconds("tiled")) * o.executions for o in estimate(graph, device).cost.operators}
    parameters = {tensor.name for tensor in graph.of_role("parameter")}
    found: list[tuple[str, float, float, bool]] = []
    early = 0.0  # seconds before the first of them
    for block, operator in graph.operators():
        if block.repeat < 2:
            continue
        own = sum(int(graph.tensors[name].bytes) for name in operator.inputs if name in parameters)
        took = seconds.get(operator.name, 0.0)
        if own:
            found.append((operator.name, float(own) * block.repeat, took, False))
        elif operator.type == "cache_write":  # attention runs once keys and values are written
            took += sum(piece[2] for piece in found if piece[3])
            found = [*(piece for piece in found if not piece[3]), ("attention", 0.0, took, True)]
        elif found:
            name, size, so_far, cached = found[-1]
            found[-1] = (name, size, so_far + took, cached)
        else:
            early += took
    if found:
        name, size, took, cached = found[0]
        found[0] = (name, size, took + early, cached)
    return found


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
