"""Where weights and KV cache lie when a model is served from less memory than it has: GPU, host, drive.

The program runs layer by layer over a *block* of sequences: a layer's weights come in once for all batches of the
block, each batch brings its part of the cache, and what it appends goes back. With fractions w of the weights and c of
the cache in each place (g GPU, h host, d drive), a layer of one decoding step takes

    T ≥ computing:  batches · t(batch)
    T ≥ link in:    ((w_h + w_d)·W + (c_h + c_d)·K) / rate in
    T ≥ link out:   (c_h + c_d)·N / rate out
    T ≥ drive:      (w_d·W + c_d·K) / read,  c_d·N / write

The cache comes in layer by layer, or in smaller *units*, of which two lie on the device at a time: one key-value head
of a layer (HeadInfer), or a stretch of tokens whose partial softmax is merged. Heads may be told to stay.

Of a mixture of experts only those come in that some token of the block chose: n tokens that choose k of E evenly touch
E·(1 − (1 − k/E)^n). An expert that lies on the device is a hit. Which ones are missing is known when the layer's router
has run: their copies add to the computing, but for the share that was predicted a layer ahead (*prefetch*).

Weights come in layer by layer, or operator by operator, of which as many lie on the device as twice the largest takes.
Where only the neurons that a token activates come in, the feed-forward weights have fractions of their own and a window
on the device (`windows`); they are known when the layer's attention has run, so their copies add to the computing too.

(W bytes of a layer's weights, K of the block's cache that it reads, N that it appends), because copies and computing
overlap; the memory of each place is bounded. For a given block the fractions are a linear program; blocks are tried in
turn. Throughput wants large blocks, latency a single sequence: the same program with a block of one batch.

Sources: Y. Sheng et al., "FlexGen", arXiv:2303.06865, §4.2 and appendix A.3: its zig-zag block schedule and linear
program. C. Luo et al., "HeadInfer", arXiv:2502.12574, §3 (head-wise offloading, prompts in chunks). A. Eliseev,
D. Mazur, "Fast Inference of Mixture-of-Experts Language Models with Offloading", arXiv:2312.17238, §3.1 and §3.2
(experts cached on the device, the next layer's guessed and loaded ahead). K. Alizadeh et al., "LLM in a flash",
arXiv:2312.11514, §3 (windows and bundles). Y. Liu et al., "PIPO: Pipelined Offloading for Efficient Inference on
Consumer Devices", arXiv:2504.03664 (loads, computing and saves as tasks within a layer).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import product
from typing import Any

from peakline.hardware import Device
from peakline.hardware import device as find_device
from peakline.planning.options import one_of
from peakline.planning.serving_sizes import STREAM_UNITS, UNITS, Sizes, by_neurons, by_operators, sizes_of
from peakline.planning.tiers import DRIVE, HOST_MEMORY, Surroundings, surroundings
from peakline.planning.windows import Activity
from peakline.streams import Hold, Link, Program, Task, Timeline, simulate
from peakline.streams import Tier as StreamTier

__all__ = ["NoPlace", "Placement", "place", "replay"]

BUFFERS = 2
"""Layers of streamed weights and units of cache on the GPU at once: one in use, one on its way."""


class NoPlace(ValueError):
    """The memories together are too small for even one sequence."""


@dataclass(frozen=True)
class Placement:
    """Where things lie, and how fast that is.

    Attributes:
        model, device: what is served where.
        batch, batches: sequences in a batch, and batches in a block.
        prompt, generate: tokens per sequence.
        weights, cache: fractions by place (`device`, `host`, `ssd`).
        step_seconds: of one decoding step over the block: the linear program's.
        prompt_seconds: of the prompts of the block.
        bound_by: the resource that decides the step.
        sizes: what the fractions are of.
        around: the places beside the device.
        prefetch: share of the experts that are known a layer ahead.
        neurons: fractions of the feed-forward weights by place, where only active neurons come in.
    """

    model: str
    device: Device
    batch: int
    batches: int
    prompt: int
    generate: int
    weights: dict[str, float]
    cache: dict[str, float]
    step_seconds: float
    prompt_seconds: float
    bound_by: str
    sizes: Sizes
    around: Surroundings
    prefetch: float = 0.0
    neurons: dict[str, float] | None = None

    @property
    def streamed(self) -> dict[str, float]:
        """Fractions by place of the weights that come in by layers."""
        s, f = self.sizes, self.neurons
        if not f:
            return self.weights
        return {p: (w * s.weights - f[p] * s.gathered) / (s.weights - s.gathered) for p, w in self.weights.items()}

    @property
    def block(self) -> int:
        """Sequences that run together."""
        return self.batch * self.batches

    @property
    def seconds(self) -> float:
        """From the prompts to the last token of the block."""
        return self.prompt_seconds + (self.generate - 1) * self.step_seconds

    @property
    def throughput(self) -> float:
        """Generated tokens/s, prompts included."""
        return self.block * self.generate / self.seconds

    @property
    def device_bytes(self) -> float:
        """Bytes of weights, cache, buffers and activations on the device."""
        s, away = self.sizes, (1.0 - self.streamed["device"], 1.0 - self.cache["device"])
        kept = self.weights["device"] * s.weights * s.layers + self.cache["device"] * s.cache * s.layers * self.block
        kept += (1.0 - self.neurons["device"]) * _window(s, self.block) if self.neurons else 0.0
        came = away[0] * (s.read(self.block) - s.gathered) * s.largest + away[1] * s.cache * self.batch / s.units
        return kept + BUFFERS * came + s.working

    @property
    def latency(self) -> float:
        """Seconds per generated token of one sequence."""
        return self.step_seconds

    def to_dict(self) -> dict[str, Any]:
        """The placement as JSON values, schema `peakline.place/1`: fractions by place, seconds, tokens/s."""
        return {
            "schema": "peakline.place/1", "fits": True, "model": self.model, "device": self.device.name,
            "prompt": self.prompt, "generate": self.generate, "batch": self.batch, "batches": self.batches,
            "weights": self.weights, **({"neurons": self.neurons} if self.neurons else {}),
            "cache": self.cache, "prompt_seconds": self.prompt_seconds,
            "step_seconds": self.step_seconds, "tokens_per_second": self.throughput, "bound_by": self.bound_by,
            "notes": list(self.around.notes),
        }  # fmt: skip

    def explain(self) -> str:
        """The placement in words and a table."""
        from peakline.hardware.units import format_bytes, format_time
        from peakline.text import Table

        s = self.sizes
        rows = []
        for name, shares, size in (
            ("weights", self.weights, s.weights * s.layers),
            *((("of them by neurons", self.neurons, s.gathered * s.layers),) if self.neurons else ()),
            ("cache", self.cache, s.cache * s.layers * self.block),
        ):
            places = (format_bytes(round(shares.get(p, 0.0) * size)) if shares.get(p) else "-" for p in _PLACES)
            rows.append((name, format_bytes(round(size)), *places))
        lines = [
            f"{self.model} on {self.device.name}: {self.block} sequences in {self.batches} batches of {self.batch}, "
            f"{self.prompt:,} tokens each and {self.generate:,} generated",
            f"Speed: {self.throughput:,.1f} tokens/s with the prompts; {format_time(self.step_seconds)} a step, "
            f"bound by {self.bound_by}; prompts {format_time(self.prompt_seconds)}",
            "",
            *Table("Where it lies", ("<tensor", "bytes", *_PLACES), tuple(rows)).lines(),
        ]
        return "\n".join([*lines, "", *(f"note: {note}" for note in self.around.notes)])


def place(
    model: str,
    device: str | Device,
    *,
    prompt: int,
    generate: int,
    batches: Sequence[int] = (1, 2, 4, 8, 16),
    batch: Sequence[int] = (1, 4, 16, 32, 64),
    budget: int | None = None,
    host: int | None = None,
    ssd: int | None = None,
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
        budget: bytes of the device that may be used; None for its capacity.
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
        NoPlace: nothing fits.
        ValueError: an unknown objective or unit, no tokens, or more heads than the model has.
    """
    one_of("objective", objective, ("throughput", "latency"))
    if prompt < 1 or generate < 1:
        raise ValueError("prompt and generate: at least one token each")
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
    around = surroundings(found, host=host, ssd=ssd, host_device=host_device, ssd_device=ssd_device)
    formats = {"dtype": dtype, **({"weight_dtype": weight_dtype} if weight_dtype else {})}
    if kv_dtype:
        formats["kv_dtype"] = kv_dtype
    drive = None if ssd is None else ssd_device
    best: Placement | None = None
    for size in sorted(set(batch)) if objective == "throughput" else (min(batch),):
        sizes, context = sizes_of(model, found, size, prompt, generate, formats, cache_unit, prompt_chunk)
        if active:
            sizes = by_neurons(sizes, model, active, drive, bundle, batch=size, context=prompt + generate, **formats)
        if stream_unit == "operator":
            sizes = by_operators(sizes, model, batch=size, context=prompt + generate, **formats)
        kept = _resident(resident_heads, sizes)
        room = (budget or found.main.capacity or 0) - context
        for count in sorted(set(batches)) if objective == "throughput" else (1,):
            option = _solve(model, found, around, sizes, size, count, prompt, generate, room, kept, expert_prefetch)
            if option is not None and (best is None or _better(option, best, objective)):
                best = option
    if best is None:
        raise NoPlace(
            f"{model} cannot be served on {found.name} with these memories: even a batch of {min(batch)} does not fit; "
            "give more host memory or a drive (ssd=)"
        )
    return best


def _better(a: Placement, b: Placement, objective: str) -> bool:
    return a.throughput > b.throughput if objective == "throughput" else a.latency < b.latency


def _window(s: Sizes, block: int) -> float:
    """Bytes that a feed-forward part which lies elsewhere takes on the device: windows of all layers and what comes in,
    or, while the prompts run, whole layers."""
    if s.sparse is None:
        return 0.0
    beside = s.sparse.beside(block)
    return max(s.layers * beside.resident + BUFFERS * beside.loaded, BUFFERS * s.gathered)


def _resident(given: int | None, sizes: Sizes) -> float | None:
    """The share of the cache that stays, where heads are told to."""
    if given is None:
        return None
    if not 0 <= given <= sizes.heads:
        raise ValueError(f"resident_heads: {given!r} of {sizes.heads} key-value heads; accepted: 0 to {sizes.heads}")
    return given / sizes.heads


_GATHERED = {"ssd read": "neurons read"}
"""Links on which neurons come in place of others."""

_PLACES = ("device", "host", "ssd")


def _solve(
    model: str, device: Device, around: Surroundings, s: Sizes, batch: int, batches: int, prompt: int, generate: int,
    room: int, kept: float | None = None, prefetch: float = 0.0,
) -> Placement | None:  # fmt: skip
    """The linear program for one block; None if it does not fit."""
    pulp = import_module("pulp")
    program = pulp.LpProblem("placement", pulp.LpMinimize)
    places = ("device", *(tier.name for tier in around.tiers))
    w = {p: pulp.LpVariable(f"w_{p}", 0, 1) for p in places}
    c = {p: pulp.LpVariable(f"c_{p}", 0, 1) for p in places}
    step, first = pulp.LpVariable("step", 0), pulp.LpVariable("first", 0)
    block = batch * batches
    held, read, new = s.cache * s.layers * block, s.cache * block, s.appended * block
    f = {p: pulp.LpVariable(f"f_{p}", 0, 1) for p in places} if s.sparse else w
    away_w, away_c, away_f = (pulp.lpSum(share[p] for p in places[1:]) for share in (w, c, f))
    needed, late = s.read(block) - s.gathered, (1.0 - prefetch) * s.experts * s.touched(block)
    gather = {p: s.sparse.slower(around.common[1], p) for p in places[1:]} if s.sparse else {}
    some = s.sparse.beside(block).loaded if s.sparse else 0.0
    limits = {
        "compute": batches * s.step_seconds,
        "experts after their router": batches * s.step_seconds + away_w * late / around.common[1],
        "neurons after their attention": batches * s.step_seconds + pulp.lpSum(f[p] * some / gather[p] for p in gather),
        "host in": (away_w * needed + away_f * some + away_c * read) / around.common[1],
        "host out": away_c * new / around.common[0],
    }
    prompts = {
        "compute": batches * s.prompt_seconds,
        "host in": (away_w * (s.read(block * prompt) - s.gathered) + away_f * s.gathered) / around.common[1],
        "host out": away_c * new * prompt / around.common[0],
    }
    if "ssd" in places:
        drive = around.tiers[-1]
        limits |= {
            "ssd read": (w["ssd"] * needed + c["ssd"] * read) / drive.back
            + (f["ssd"] * some / gather["ssd"] if gather else 0.0),
            "ssd write": c["ssd"] * new / drive.out,
        }
        prompts |= {
            "ssd read": (w["ssd"] * (s.read(block * prompt) - s.gathered) + f["ssd"] * s.gathered) / drive.back,
            "ssd write": c["ssd"] * new * prompt / drive.out,
        }
    program.setObjective(s.layers * (first + (generate - 1) * step))
    for shares in (w, c, f) if s.sparse else (w, c):
        program += pulp.lpSum(shares.values()) == 1
    if kept is not None:
        program += c["device"] == kept
    for seconds in limits.values():
        program += step >= seconds
    for seconds in prompts.values():
        program += first >= seconds
    streamed = BUFFERS * (away_w * needed * s.largest + away_c * s.cache * batch / s.units)
    unit = 1e9
    lies = {p: (w[p] * (s.weights - s.gathered) + f[p] * s.gathered) * s.layers + c[p] * held for p in places}
    program += (lies["device"] + away_f * _window(s, block) + streamed + s.working) / unit <= room / unit
    for place_, tier in zip(places[1:], around.tiers):
        if tier.capacity is not None:
            program += lies[place_] / unit <= tier.capacity / unit
    program.solve(pulp.HiGHS(msg=False, threads=1))
    if program.sol_status != pulp.LpSolutionOptimal:
        return None
    taken = {name: float(pulp.value(seconds)) for name, seconds in limits.items()}
    neurons = {p: max(float(pulp.value(v)), 0.0) for p, v in f.items()} if s.sparse else None
    part = s.gathered / s.weights
    weights = {p: max((1.0 - part) * pulp.value(w[p]) + part * pulp.value(f[p]), 0.0) for p in places}
    return Placement(
        model, device, batch, batches, prompt, generate,
        weights, {p: float(pulp.value(v)) for p, v in c.items()},
        s.layers * float(pulp.value(step)), s.layers * float(pulp.value(first)),
        max(taken, key=lambda name: taken[name]), s, around, prefetch, neurons,
    )  # fmt: skip


def replay(placement: Placement, steps: int = 3) -> Timeline:
    """Simulate `steps` decoding steps of the block: every layer's weights, every batch's cache, on their links.

    Weights of the next layer and the cache of the next batch come in while the present ones are used; buffers are held
    from the start of their copy to the end of their use.
    """
    p, s = placement, placement.sizes
    program = Program(dict(p.around.links), {"device": StreamTier("device")})
    fixed = p.weights["device"] * s.weights * s.layers + p.cache["device"] * s.cache * s.layers * p.block
    some = s.sparse.beside(p.block) if s.sparse and p.neurons else None
    if some and s.sparse and p.neurons:
        fixed += (1.0 - p.neurons["device"]) * some.resident * s.layers
        if s.sparse.rate:
            program.links["neurons read"] = Link("neurons read", s.sparse.rate)
    program.initial.append(Hold("fixed", "device", round(fixed + s.working)))
    link_in, link_out = _routes(p.around)
    by = {place_: tuple(_GATHERED.get(link, link) for link in route) for place_, route in link_in.items()}
    uses: list[int] = []
    ends: list[int] = []  # last use of each piece's weights
    sizes: list[float] = []  # and their bytes
    room = BUFFERS * s.largest * (s.read(p.block) - s.gathered) * (1.0 + 1e-9)
    for step in range(steps):
        for layer, piece in product(range(s.layers), s.pieces):
            name = f"{step}.{layer}" + f" {piece.name}" * bool(piece.name)
            late = (1.0 - p.prefetch) * s.experts * s.touched(p.block)
            size = (s.read(p.block) - s.gathered - late) * piece.weights
            sizes.append(size)
            weights = _fetches(program, link_in, f"weights {name}", p.streamed, size, _freed(ends, sizes, room))
            if late:  # the router has to run first
                weights += _fetches(program, link_in, f"experts {name}", p.weights, late, uses[-1:])
            for batch in range(p.batches):
                use, parts = 0, s.units if piece.cached else 1
                for unit in range(parts):
                    what = f"cache {name}.{batch}" + f".{unit}" * (parts > 1)
                    came = s.cache * p.batch / s.units if piece.cached else 0.0
                    cached = _fetches(program, link_in, what, p.cache, came, uses[-BUFFERS:-1])
                    if some and p.neurons and (batch, unit) == (0, 0):  # the attention has to run first
                        weights += _fetches(program, by, f"neurons {name}", p.neurons, some.loaded, uses[-1:])
                    drops = [hold for _, hold in cached]
                    if (batch, unit) == (p.batches - 1, parts - 1):
                        drops += [hold for _, hold in weights]
                    after = tuple(task for task, _ in (*weights, *cached))
                    took, label = s.step_seconds * piece.computing / parts, f"layer {name}.{batch}"
                    use = program.add(Task(label, "compute", took, 0, (), after, (), tuple(drops), "forward"))
                    if piece.cached:
                        uses.append(use)
                for place_, route in link_out.items():
                    moved = round(p.cache.get(place_, 0.0) * s.appended * p.batch)
                    if moved and piece.cached:
                        program.add(Task(f"append {name}.{batch}", f"to {place_}", 0.0, moved, route, (use,)))
            ends.append(use)
    return simulate(program)


def _routes(around: Surroundings) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    return (
        {route.tier.name: route.back for route in around.routes},
        {route.tier.name: route.out for route in around.routes},
    )


def _freed(ends: list[int], sizes: list[float], room: float) -> list[int]:
    """The use that has to end before the last of the pieces has room beside those before it."""
    taken, piece = 0.0, len(sizes)
    while piece and taken + sizes[piece - 1] <= room:
        piece -= 1
        taken += sizes[piece]
    return ends[piece - 1 : piece] if piece else []


def _fetches(
    program: Program, routes: dict[str, tuple[str, ...]], name: str, shares: dict[str, float], size: float,
    after: list[int],
) -> list[tuple[int, str]]:  # fmt: skip
    """Copies of the parts that lie elsewhere, not before `after` has ended: (task, buffer)."""
    found = []
    for place_, route in routes.items():
        moved = round(shares.get(place_, 0.0) * size)
        if moved:
            hold = Hold(f"{name} from {place_}", "device", moved)
            task = Task(f"fetch {name}", f"from {place_}", 0.0, moved, route, tuple(after), (hold,), (), "fetch")
            found.append((program.add(task), hold.buffer))
    return found
