"""Where weights and KV cache lie when a model is served from less memory than it has: GPU, host, drive.

The program runs layer by layer over a *block* of sequences: a layer's weights come in once for all batches of the
block, each batch brings its part of the cache, and what it appends goes back, all while something computes. Which
shares of weights and cache lie in each place is a linear program for a given block (`serving_linear`), whose rows are
the waits of the schedule (`serving_passes`); blocks are tried in turn. Throughput wants large blocks, latency a single
sequence: the same program with a block of one batch. What is promised is what the timeline says (`serving_replay`).

The cache comes in layer by layer, or in smaller *units*, of which two lie on the device at a time: one key-value head
of a layer (HeadInfer), or a stretch of tokens whose partial softmax is merged. Heads may be told to stay.

Of a mixture of experts only those come in that some token of the block chose: n tokens that choose k of E evenly touch
E·(1 − (1 − k/E)^n). An expert that lies on the device is a hit. Which ones are missing is known when the layer's router
has run: their copies add to the computing, but for the share that was predicted a layer ahead (*prefetch*).

Weights come in layer by layer, or operator by operator, of which as many lie on the device as twice the largest takes.
Where only the neurons that a token activates come in, the feed-forward weights have fractions of their own and a window
on the device (`windows`); they are known when the layer's attention has run, so their copies add to the computing too.

Sources: Y. Sheng et al., "FlexGen", arXiv:2303.06865, §4.2 and appendix A.3: its zig-zag block schedule and linear
program. C. Luo et al., "HeadInfer", arXiv:2502.12574, §3 (head-wise offloading, prompts in chunks). A. Eliseev,
D. Mazur, "Fast Inference of Mixture-of-Experts Language Models with Offloading", arXiv:2312.17238, §3.1 and §3.2
(experts cached on the device, the next layer's guessed and loaded ahead). K. Alizadeh et al., "LLM in a flash",
arXiv:2312.11514, §3 (windows and bundles). Y. Liu et al., "PIPO: Pipelined Offloading for Efficient Inference on
Consumer Devices", arXiv:2504.03664 (loads, computing and saves as tasks within a layer).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peakline.hardware import Device
from peakline.hardware import device as find_device
from peakline.hardware.units import format_bytes, format_time
from peakline.planning.options import budget_of, bytes_of, one_of
from peakline.planning.serving_linear import bound, least, limits
from peakline.planning.serving_passes import BUFFERS, decoding, prompts
from peakline.planning.serving_problem import Block, Shares
from peakline.planning.serving_replay import measured, replayed
from peakline.planning.serving_search import Option, fastest
from peakline.planning.serving_sizes import STREAM_UNITS, UNITS, Sizes, by_neurons, by_operators, sizes_of
from peakline.planning.tiers import DRIVE, HOST_MEMORY, Surroundings, surroundings
from peakline.planning.windows import Activity
from peakline.streams import Timeline

__all__ = ["NoPlace", "Placement", "place", "replay"]


class NoPlace(ValueError):
    """The memories together are too small for even one batch.

    Attributes:
        floor_bytes: of the device, with which it would be placed; None if none are enough.
    """

    def __init__(self, message: str, floor_bytes: int | None) -> None:
        super().__init__(message)
        self.floor_bytes = floor_bytes


@dataclass(frozen=True)
class Placement:
    """Where things lie, and how fast that is.

    Attributes:
        model, device: what is served where.
        batch, batches: sequences in a batch, and batches in a block.
        prompt, generate: tokens per sequence.
        problem: what was placed.
        shares: where it lies, and what the linear program says.
        seconds: from the prompts to the last token of the block, as replayed.
        prompt_seconds: of the prompts of the block, as replayed.
        step_seconds: of one decoding step over the block, with half of what it generates in the cache, as replayed.
        lower_bound: seconds per generated token that no placement of the blocks tried goes below.
    """

    model: str
    device: Device
    batch: int
    batches: int
    prompt: int
    generate: int
    problem: Block
    shares: Shares
    seconds: float
    prompt_seconds: float
    step_seconds: float
    lower_bound: float

    @property
    def sizes(self) -> Sizes:
        """What the fractions are of."""
        return self.problem.sizes

    @property
    def around(self) -> Surroundings:
        """The places beside the device."""
        return self.problem.around

    @property
    def notes(self) -> tuple[str, ...]:
        """What was assumed, and what the model was not made for."""
        return (*self.around.notes, *self.sizes.notes)

    @property
    def weights(self) -> dict[str, float]:
        """Fractions of the weights by place (`device`, `host`, `ssd`)."""
        s, at = self.sizes, self.shares
        part = s.gathered / s.weights
        return {p: (1.0 - part) * w + part * at.neurons.get(p, 0.0) for p, w in at.weights.items()}

    @property
    def streamed(self) -> dict[str, float]:
        """Fractions by place of the weights that come in by layers."""
        return self.shares.weights

    @property
    def neurons(self) -> dict[str, float] | None:
        """Fractions of the feed-forward weights by place, where only active neurons come in."""
        return self.shares.neurons or None

    @property
    def cache(self) -> dict[str, float]:
        """Fractions of the cache by place."""
        return self.shares.cache

    @property
    def block(self) -> int:
        """Sequences that run together."""
        return self.batch * self.batches

    @property
    def throughput(self) -> float:
        """Generated tokens/s, prompts included."""
        return self.block * self.generate / self.seconds

    @property
    def latency(self) -> float:
        """Seconds per generated token of one sequence."""
        return self.step_seconds

    @property
    def gap(self) -> float:
        """How far the placement may be from the best of its kind: 1 − bound / replayed."""
        return max(1.0 - self.lower_bound * self.throughput, 0.0)

    @property
    def device_bytes(self) -> float:
        """Bytes of weights, cache, buffers and activations on the device."""
        return float(self.problem.needs(self.shares))

    @property
    def bound_by(self) -> str:
        """The resource that decides the step (of the prompts, where nothing else is generated)."""
        at = limits(self.problem, self.shares, self.problem.passes[-1 if self.generate > 1 else 0])
        return max(at, key=lambda name: at[name])

    def to_dict(self) -> dict[str, Any]:
        """The placement as JSON values, schema `peakline.place/1`: fractions by place, seconds, tokens/s."""
        return {
            "schema": "peakline.place/1", "fits": True, "model": self.model, "device": self.device.name,
            "prompt": self.prompt, "generate": self.generate, "batch": self.batch, "batches": self.batches,
            "weights": self.weights, **({"neurons": self.neurons} if self.neurons else {}),
            "cache": self.cache, "states": self.shares.states, "device_bytes": round(self.device_bytes),
            "prompt_seconds": self.prompt_seconds,
            "step_seconds": self.step_seconds, "seconds": self.seconds, "solved_seconds": self.shares.seconds,
            "tokens_per_second": self.throughput, "tokens_per_second_bound": 1.0 / self.lower_bound,
            "gap": self.gap, "bound_by": self.bound_by, "notes": list(self.notes),
        }  # fmt: skip

    def explain(self) -> str:
        """The placement in words and a table."""
        from peakline.text import Table

        s = self.sizes
        rows = []
        for name, shares, size in (
            ("weights", self.weights, s.weights * s.layers),
            *((("of them by neurons", self.neurons, s.gathered * s.layers),) if self.neurons else ()),
            ("cache", self.cache, s.cache * s.layers * self.block),
            *((("hidden states", self.shares.states, self.problem.hidden),) if self.problem.hidden else ()),
        ):
            places = (format_bytes(round(shares.get(p, 0.0) * size)) if shares.get(p) else "-" for p in _PLACES)
            rows.append((name, format_bytes(round(size)), *places))
        lines = [
            f"{self.model} on {self.device.name}: {_many(self.block, 'sequence')} in "
            f"{_many(self.batches, 'batch', 'batches')} of {self.batch}, "
            f"{_many(self.prompt, 'token')} each and {self.generate:,} generated",
            f"Speed: {_rate(self.throughput)} with the prompts; "
            + (f"{format_time(self.step_seconds)} a step, " if self.generate > 1 else "")
            + f"bound by {self.bound_by}; prompts {format_time(self.prompt_seconds)}",
            f"Proof: no block of these sizes makes more than {_rate(1.0 / self.lower_bound)} (gap {self.gap:.1%}); "
            f"{format_time(self.seconds)} in all as replayed, {format_time(self.shares.seconds)} by the linear program",
            "",
            *Table("Where it lies", ("<tensor", "bytes", *_PLACES), tuple(rows)).lines(),
        ]
        return "\n".join([*lines, "", *(f"note: {note}" for note in self.notes)])


_PLACES = ("device", "host", "ssd")


def _many(count: int, one: str, more: str | None = None) -> str:
    return f"{count:,} {one if count == 1 else more or one + 's'}"


def _rate(tokens: float) -> str:
    return f"{tokens:,.1f} tokens/s" if tokens >= 1.0 else f"{tokens:.3g} tokens/s"


def place(
    model: str,
    device: str | Device,
    *,
    prompt: int,
    generate: int,
    batches: Sequence[int] = (1, 2, 4, 8, 16),
    batch: Sequence[int] = (1, 4, 16, 32, 64),
    budget: int | str | None = None,
    host: int | str | None = None,
    ssd: int | str | None = None,
    objective: str = "throughput",
    dtype: str = "bf16",
    weight_dtype: str | None = None,
    kv_dtype: str | None = None,
    host_device: str | Device = HOST_MEMORY,
    ssd_device: str | Device = DRIVE,
    cache_unit: str = "layer",
    resident_heads: int | None = None,
    prompt_chunk: int | None = None,
    expert_prefetch: float = 0.0,
    active_share: float | None = None,
    window: int = 5,
    reuse_share: float | None = None,
    bundle: bool = True,
    stream_unit: str = "layer",
) -> Placement:
    """The best placement over all blocks tried.

    Args:
        prompt, generate: tokens of every sequence.
        batch, batches: sizes of a batch, and numbers of batches in a block, to try.
        budget: bytes of the device that may be used (`"12 GiB"`); None for its capacity.
        host, ssd: bytes there; None for what the host device has, and for no drive.
        objective: `throughput` (tokens/s) or `latency` (seconds per token; blocks of one batch).
        cache_unit: what of the cache comes in at a time: a `layer`, a key-value `head` of it, or 1,024 `tokens`.
        resident_heads: key-value heads of every layer whose cache stays on the device; None lets the program decide.
        prompt_chunk: tokens of the prompts that are computed at a time; None for all of them.
        expert_prefetch: share of the experts of a mixture that are guessed right a layer ahead, 0 to 1.
        active_share: share of the feed-forward neurons that a token activates: only those come in; None for all.
        window: tokens whose neurons stay on the device.
        reuse_share: share of a token's neurons that the token before activated too; None for independent draws.
        bundle: a neuron's rows and columns lie together on the drive.
        stream_unit: what of the weights comes in at a time: a `layer`, or an `operator` (one matrix).

    Raises:
        NoPlace: nothing fits; the message says what would.
        ValueError: an unknown objective or unit, no tokens, more heads than there are, or more bytes.
    """
    one_of("objective", objective, ("throughput", "latency"))
    for name, tokens in (("prompt", prompt), ("generate", generate)):
        if tokens < 1:
            raise ValueError(f"{name}: {tokens!r} is not a number of at least 1 token")
    for name, several in (("batch", batch), ("batches", batches)):
        if not several or min(several) < 1:
            raise ValueError(f"{name}: {tuple(several)!r} are not numbers of at least 1")
    one_of("cache_unit", cache_unit, UNITS)
    if prompt_chunk is not None and prompt_chunk < 1:
        raise ValueError(f"prompt_chunk: {prompt_chunk!r} is not a number of at least 1 token")
    if not 0.0 <= expert_prefetch <= 1.0:
        raise ValueError(f"expert_prefetch: {expert_prefetch!r} is not a share between 0 and 1")
    one_of("stream_unit", stream_unit, STREAM_UNITS)
    if stream_unit == "operator" and active_share is not None:
        raise ValueError(
            "stream_unit: 'operator' does not go with active_share, where neurons come in; accepted: layer"
        )
    if active_share is None and reuse_share is not None:
        raise ValueError(f"reuse_share: {reuse_share!r} says nothing without active_share")
    active = None if active_share is None else Activity(active_share, window, reuse_share)
    found = find_device(device)
    given = None if ssd is None else bytes_of("ssd", ssd)
    around = surroundings(
        found, host=None if host is None else bytes_of("host", host, least=0), ssd=given,
        host_device=host_device, ssd_device=ssd_device,
    )  # fmt: skip
    capacity = _budget(budget, found)
    formats = {"dtype": dtype, **({"weight_dtype": weight_dtype} if weight_dtype else {})}
    if kv_dtype:
        formats["kv_dtype"] = kv_dtype
    drive = None if ssd is None else ssd_device
    options: list[Option] = []
    smallest: tuple[Block, int] | None = None
    for size in sorted(set(batch)) if objective == "throughput" else (min(batch),):
        sizes, context = sizes_of(model, found, size, prompt, generate, formats, cache_unit, prompt_chunk)
        if active:
            sizes = by_neurons(sizes, model, active, drive, bundle, batch=size, context=prompt + generate, **formats)
        if stream_unit == "operator":
            sizes = by_operators(sizes, model, found, batch=size, prompt=prompt, generate=generate, formats=formats)
        kept = _resident(resident_heads, sizes)
        if expert_prefetch and not sizes.expert_count:
            raise ValueError(
                f"expert_prefetch: {expert_prefetch!r} says nothing of {model}, which has no routed experts"
            )
        for count in sorted(set(batches)) if objective == "throughput" else (1,):
            passes = (*prompts(sizes, size, count), decoding(sizes, size, count, expert_prefetch, generate - 1))
            problem = Block(
                sizes, passes, around, capacity - context, _window(sizes, size * count), size * count,
                sizes.cache * size / sizes.units, kept, max(way.states * way.slots for way in passes),
                _waiting(sizes, size, count),
            )  # fmt: skip
            smallest = smallest or (problem, context)
            seconds = bound(problem)
            if seconds is not None:
                options.append(Option(seconds / (size * count * generate), size, count, problem))
    best = fastest(options)
    if best is None or best.shares is None:
        assert smallest is not None
        raise _refusal(model, found, capacity, min(batch), *smallest)
    size, count, problem, shares = best.size, best.count, best.problem, best.shares
    total, first, step = measured(problem, shares)
    lower = min(option.seconds for option in options)
    return Placement(model, found, size, count, prompt, generate, problem, shares, total, first, step, lower)


def replay(placement: Placement, steps: int = 3, *, prompts: bool = False) -> Timeline:
    """Simulate `steps` decoding steps of the block: every layer's weights, every batch's cache, on their links.

    Weights of the next layer and the cache of the next batch come in while the present ones are used; buffers are held
    from the start of their copy to the end of their use.

    Args:
        prompts: the prompts come first (of their chunks, those that are alike once).
    """
    return replayed(placement.problem, placement.shares, steps, None, prompts, False).timeline


def _budget(given: int | str | None, found: Device) -> int:
    """Bytes of the device that may be used."""
    capacity = found.main.capacity
    if given is None:
        if not capacity:
            raise ValueError(f"budget: {found.name} states no memory capacity; name the bytes that may be used")
        return capacity
    return budget_of(given, found.name, capacity)


def _refusal(model: str, found: Device, capacity: int, batch: int, problem: Block, context: int) -> NoPlace:
    """Why nothing fits: the floor of the device and what holds it, and what more memory beside it would do."""
    sizes, least_bytes = problem.sizes, least(problem, "device")
    floor = None if least_bytes is None else math.ceil(least_bytes) + context
    said = f"{model} cannot be served on {found.name} with these memories: even a batch of {batch} does not fit. "
    if floor is not None:
        buffer = max(way.largest + way.neurons for way in problem.passes)
        windows = f", windows of neurons {format_bytes(round(problem.window))}" if problem.window else ""
        said += (
            f"The least of the device is {_enough(floor)}, and {format_bytes(capacity)} may be used: context "
            f"{format_bytes(context)}, workspaces {format_bytes(round(sizes.working))}, {BUFFERS} buffers of up to "
            f"{format_bytes(round(buffer))} of weights and {format_bytes(round(problem.slot))} of cache{windows}, and "
            "what the other memories cannot hold. "
        )
    more = [
        f"{tier.name}={_enough(needed)} (now {format_bytes(tier.capacity)})"
        for tier in problem.around.tiers
        if tier.capacity is not None and (needed := least(problem, tier.name)) and needed > tier.capacity
    ]
    if more:
        said += f"To fit, give more host memory or a drive (ssd=): {' or '.join(more)} would do"
    else:
        said += "To fit, bring in less at a time: cache_unit, stream_unit, prompt_chunk, a smaller batch"
    return NoPlace(said, floor)


def _enough(bytes_: float) -> str:
    """The bytes in words of four digits, rounded up: what is asked for is enough."""
    unit = 1024.0 ** int(math.log(max(bytes_, 1.0), 1024.0))
    grain = 10.0 ** (len(str(int(bytes_ / unit))) - 4) * unit
    return format_bytes(math.ceil(math.ceil(bytes_ / grain) * grain))


def _window(s: Sizes, block: int) -> float:
    """Bytes that a feed-forward part which lies elsewhere takes on the device: windows of all layers and what comes in,
    or, while the prompts run, whole layers."""
    if s.sparse is None:
        return 0.0
    beside = s.sparse.beside(block)
    return max(s.layers * beside.resident + BUFFERS * beside.loaded, BUFFERS * s.gathered)


def _waiting(s: Sizes, batch: int, batches: int) -> float:
    """Bytes of a block's batches that wait while another computes: a token of each, or, where all pass one matrix after
    the other, their activations."""
    if not s.pieces[0].cached:
        return (batches - 1) * s.working
    return s.hidden * batch * batches if batches > 1 else 0.0


def _resident(given: int | None, sizes: Sizes) -> float | None:
    """The share of the cache that stays, where heads are told to."""
    if given is None:
        return None
    if not 0 <= given <= sizes.heads:
        raise ValueError(f"resident_heads: {given!r} of {sizes.heads} key-value heads; accepted: 0 to {sizes.heads}")
    return given / sizes.heads
