"""A placement on the timeline: copies and uses of every layer, on their streams and links, in their buffers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from peakline.planning.serving_passes import BUFFERS, Event, Pass, early, layer, loads
from peakline.planning.serving_problem import Block, Seen, Shares
from peakline.streams import Hold, Link, Program, Task, Timeline, simulate
from peakline.streams import Tier as StreamTier

__all__ = ["Replayed", "measured", "periods", "replayed", "seen"]

_NEURONS = "neurons read"

LAYERS = 8
"""Layers that are simulated where only the time from one to the next is asked for."""

TASKS = 2_000
"""Tasks above which half as many are."""

_TENSORS = ("weights", "cache", "neurons", "states")

BEYOND = 2
"""Layers that go on after the last one, where it should be like any other."""

STEPS = 3
"""Decoding steps that are measured, at least; the last one is what the others take."""

SETTLED = 64
"""Layers of decoding after which every one takes the same: buffers that began full or empty have settled."""

ALL = 30_000
"""Tasks of a measurement: of larger ones, fewer layers are simulated."""

_STEP = 1e-3
"""Difference of shares that slopes are taken over."""


@dataclass(frozen=True)
class Replayed:
    """What the timeline says.

    Attributes:
        timeline: of the passes that were simulated.
        ends: seconds at which the computing of each pass ended.
        layers: of the model that were simulated.
        periods: seconds from one layer to the next, over the second half of each pass.
    """

    timeline: Timeline
    ends: tuple[float, ...]
    layers: int
    periods: tuple[float, ...]


class _Issue:
    """The tasks so far, and what later ones wait for."""

    def __init__(self, block: Block, shares: Shares) -> None:
        self.block, self.shares = block, shares
        around = block.around
        self.program = Program(dict(around.links), {"device": StreamTier("device")})
        self.back = {route.tier.name: route.back for route in around.routes}
        self.out = {route.tier.name: route.out for route in around.routes}
        self.near = dict(self.back)  # the way of neurons
        sparse = block.sizes.sparse
        if sparse and sparse.rate:
            latency = around.links["ssd read"].latency
            self.program.links[_NEURONS] = Link(_NEURONS, sparse.rate, latency)
            self.near = {p: tuple(_NEURONS if n == "ssd read" else n for n in way) for p, way in self.back.items()}
        self.arrived: dict[tuple[int, int], list[tuple[int, str]]] = {}  # (layer, piece): copies and their buffers
        self.late: list[tuple[int, str]] = []
        self.cached: list[tuple[int, str]] = []
        self.slots: list[list[int]] = []  # per slot: what has to end before its buffers are free
        self.saves: list[list[int]] = []
        self.handed: dict[int, list[int]] = {}  # slot: copies of what the layer before handed on
        self.ended: dict[tuple[int, int], int] = {}  # (layer, piece): last use
        self.last: dict[int, int] = {}  # layer: its last piece
        self._lies()

    def _lies(self) -> None:
        """What lies in each place throughout."""
        b, s, at = self.block, self.block.sizes, self.shares
        for place in b.places:
            weights = at.weights.get(place, 0.0) * (s.weights - s.gathered) + at.neurons.get(place, 0.0) * s.gathered
            held = (weights + at.cache.get(place, 0.0) * s.cache * b.sequences) * s.layers
            held += at.states.get(place, 0.0) * b.hidden
            if place not in self.program.tiers:
                self.program.tiers[place] = StreamTier(place)
            self.program.initial.append(Hold(f"lies in {place}", place, int(held)))
        self.program.initial.append(Hold("workspaces", "device", int(s.working + b.beside)))

    def copies(
        self, name: str, sizes: dict[str, float], after: Sequence[int], ways: dict[str, tuple[str, ...]]
    ) -> list[tuple[int, str]]:
        """Copies in of the parts that lie elsewhere: (task, buffer)."""
        found = []
        for place, way in ways.items():
            moved = int(sizes.get(place, 0.0))
            if moved:
                hold = Hold(f"{name} from {place}", "device", moved)
                task = Task(f"fetch {name}", f"from {place}", 0.0, moved, way, tuple(after), (hold,), (), "fetch")
                found.append((self.program.add(task), hold.buffer))
        return found

    def weights(self, way: Pass, at: tuple[int, int], share: float, after: Sequence[int]) -> None:
        """A part of a piece's weights."""
        size = share * way.pieces[at[1]].weights
        of = self.shares
        sizes = {p: size * (of.weights[p] * way.weights + of.neurons.get(p, 0.0) * way.neurons) for p in self.back}
        some = self.arrived.setdefault(at, [])
        some += self.copies(f"weights {at[0]}.{at[1]} part {len(some)}", sizes, after, self.back)

    def event(self, event: Event, number: int, way: Pass, ahead: Sequence[Pass]) -> None:
        """Issue one event of a layer; `ahead` are the passes of the layers to come, this one first."""
        of, piece = self.shares, way.pieces[event.piece]
        where, free = f"{number}.{event.piece}.{event.slot}", self.before(number, event.piece)
        if event.kind == "weights":
            assert event.load is not None
            if event.load.ahead < len(ahead) and ahead[event.load.ahead].pieces == way.pieces:
                self.weights(ahead[event.load.ahead], (number + event.load.ahead, event.load.piece), event.share, free)
        elif event.kind == "cache":
            sizes = {p: of.cache[p] * way.cached for p in self.back}
            wait = self.slots[-BUFFERS] if len(self.slots) >= BUFFERS else []
            self.cached = self.copies(f"cache {where}", sizes, wait, self.back)
            sizes = {p: of.states[p] * way.states for p in self.back}
            wait = [*wait, *self.handed.get(event.slot, [])]
            self.cached += self.copies(f"states {where}", sizes, wait, self.back)
        elif event.kind == "late":
            sizes = {p: of.weights[p] * way.late_weights for p in self.back}
            self.late = self.copies(f"late {where}", sizes, free, self.back)
            sizes = {p: of.neurons.get(p, 0.0) * way.late_neurons for p in self.back}
            self.late += self.copies(f"neurons {where}", sizes, free, self.near)
        elif event.kind == "use":
            self.use(event, number, way, piece.computing_of(way.decodes))
        else:
            self.save(where, event.slot, way)

    def before(self, number: int, piece: int) -> list[int]:
        """The last use of the piece before."""
        if piece:
            return [self.ended[number, piece - 1]]
        return [self.ended[number - 1, self.last[number - 1]]] if number else []

    def use(self, event: Event, number: int, way: Pass, share: float) -> None:
        """Computing of a slot, or of a piece without the cache."""
        slots, piece = round(1.0 / event.share), way.pieces[event.piece]
        came = [*self.cached] if piece.cached else []
        drops = [buffer for _, buffer in came]
        if event.slot == 0:
            came += [*self.arrived.get((number, event.piece), []), *(self.late if event.piece == 0 else [])]
        if event.slot == slots - 1:
            drops += [buffer for _, buffer in self.arrived.pop((number, event.piece), [])]
            if event.piece == len(way.pieces) - 1:
                drops += [buffer for _, buffer in self.late]
                self.late = []
        after, holds = [task for task, _ in came], []
        saves = piece.cached and (event.slot + 1) % way.every == 0
        if saves:
            after += self.saves[-BUFFERS] if len(self.saves) >= BUFFERS else []
            outs = self.saved(way).items()
            holds = [Hold(f"saved {what} {len(self.saves)}.{p}", "device", n) for (what, p), n in outs]
        window = int(self.window(number, event, way))
        if window:
            holds.append(Hold(f"window {number % self.block.sizes.layers}", "device", window))
        took = way.seconds * share * event.share
        name = f"{way.name} layer {number}.{event.piece}.{event.slot}".strip()
        done = self.program.add(Task(name, "compute", took, 0, (), tuple(after), tuple(holds), tuple(drops), "forward"))
        self.ended[number, event.piece], self.last[number] = done, event.piece
        if piece.cached:
            self.cached = []
            self.slots.append([done])

    def window(self, number: int, event: Event, way: Pass) -> float:
        """Bytes of the neurons' window that begins here: a layer's, in the first decoding step."""
        sparse = self.block.sizes.sparse
        if not sparse or not way.decodes or number - self.decoded >= self.block.sizes.layers or event.slot:
            return 0.0
        if event.piece or not self.shares.neurons:
            return 0.0
        return (1.0 - self.shares.neurons["device"]) * sparse.beside(self.block.sequences).resident

    decoded = 0
    """The first layer of the first decoding step."""

    def saved(self, way: Pass) -> dict[tuple[str, str], int]:
        """Bytes that go out after a slot, by what they are and their place."""
        found = {("cache", p): int(self.shares.cache[p] * way.saved) for p in self.out}
        found |= {("states", p): int(self.shares.states[p] * way.states) for p in self.out}
        return {key: n for key, n in found.items() if n}

    def save(self, where: str, slot: int, way: Pass) -> None:
        """Copies out of what a slot made."""
        turn = len(self.saves)
        gone: list[int] = []
        handed: list[int] = []
        for (what, place), moved in self.saved(way).items():
            task = Task(
                f"save {what} {where}", f"to {place}", 0.0, moved, self.out[place], tuple(self.slots[-1][:1]), (),
                (f"saved {what} {turn}.{place}",), "offload",
            )  # fmt: skip
            gone.append(self.program.add(task))
            if what == "states":
                handed.append(gone[-1])
        self.handed[slot] = handed
        self.saves.append(gone)
        if not way.decodes:  # the buffer of a slot is free when what it made has left
            self.slots[-1] = self.slots[-1] + gone


def replayed(
    block: Block, shares: Shares, steps: int, most: int | None = None, prompts: bool = True, endless: bool = True
) -> Replayed:
    """Simulate the passes of the prompts, a time each, and then decoding steps.

    Args:
        steps: decoding steps.
        most: layers of the model that are simulated; None for all.
        prompts: begin with the prompts.
        endless: it goes on as if there were more layers, so that the last step is like any other.
    """
    layers = min(block.sizes.layers, most or block.sizes.layers)
    if layers < block.sizes.layers:
        block = replace(block, sizes=replace(block.sizes, layers=layers))
    first = [way for way in block.passes if not way.decodes and prompts]
    second = [way for way in block.passes if way.decodes]
    order = [way for way in [*first, *second * steps] for _ in range(layers)]
    last = len(order)
    issue = _Issue(block, shares)
    issue.decoded = len(first) * layers
    deepest = max(load.ahead for way in block.passes for some in loads(way.pieces) for load in some)
    order += order[-1:] * (BEYOND + deepest) * endless
    for number, way in enumerate(order[: last + BEYOND * endless]):
        if not number or order[number - 1].pieces != way.pieces:  # what earlier layers of the kind would have brought
            for piece, ahead in early(way.pieces):
                if number + ahead < len(order) and order[number + ahead].pieces == way.pieces:
                    issue.weights(order[number + ahead], (number + ahead, piece), 1.0, issue.before(number, 0))
        for event in layer(way, shares.comes(way), shares.sliced):
            issue.event(event, number, way, order[number : number + deepest + 1])
    done = simulate(issue.program)
    marks = [done.runs[issue.ended[number, issue.last[number]]].end for number in range(last)]
    ends = marks[layers - 1 :: layers]
    half = max(layers // 2, 1)
    periods = [(marks[i] - (marks[i - half] if i >= half else 0.0)) / half for i in range(layers - 1, last, layers)]
    return Replayed(done, tuple(ends), layers, tuple(periods))


def measured(block: Block, shares: Shares) -> tuple[float, float, float]:
    """Seconds in all, of the prompts, and of a decoding step, as replayed.

    Alike passes, layers of large models and decoding steps after the third take as long as those that were simulated.
    """
    passes, sizes = block.passes, block.sizes
    steps = min(max(STEPS, -(-SETTLED // sizes.layers)), round(passes[-1].times))
    tasks = (4 * passes[-1].slots + 3 * max(len(way.pieces) for way in passes)) * (len(passes) + steps)
    done = replayed(block, shares, steps, max(ALL // tasks, 6))
    left = sizes.layers - done.layers
    took = [b - a + left * period for a, b, period in zip((0.0, *done.ends), done.ends, done.periods)]
    more = sum((way.times - 1.0) * sizes.layers * period for way, period in zip(passes[:-1], done.periods))
    first = sum(took[: len(passes) - 1]) + more
    each = took[len(passes) - 1 :]
    step = each[-1] if each else 0.0
    return first + sum(each) + (passes[-1].times - len(each)) * step, first, step


def periods(block: Block, shares: Shares) -> list[float]:
    """Seconds from one layer to the next in every pass, once it has settled."""
    tasks = 4 * block.passes[-1].slots * (len(block.passes) + 1)
    layers = LAYERS if LAYERS * tasks <= TASKS else LAYERS // 2
    steps = SETTLED // (2 * LAYERS) if block.passes[-1].times else 0
    done = replayed(block, shares, steps, layers).periods
    return [*done[: len(block.passes) - 1], *done[-1:]][: len(block.passes)]


def seen(block: Block, shares: Shares, took: Sequence[float]) -> list[Seen]:
    """What the replay says beside these shares, as a row for every pass that `took` so many seconds a layer there."""
    at = {(name, p): share for name in _TENSORS for p, share in getattr(shares, name).items() if p != "device"}
    slopes: list[dict[tuple[str, str], float]] = [{} for _ in took]
    for (name, place), share in at.items():
        low = max(share - _STEP, min(share, _STEP / 2))  # nothing at all saves latencies as well
        ends = [periods(block, _moved(shares, name, place, value)) for value in (low, low + 2 * _STEP)]
        for i, (a, b) in enumerate(zip(*ends)):
            slopes[i][name, place] = (b - a) / (2 * _STEP)
    return [Seen(i, seconds, at, slope) for i, (seconds, slope) in enumerate(zip(took, slopes))]


def _moved(shares: Shares, name: str, place: str, value: float) -> Shares:
    """The shares with another one in a place."""
    of: dict[str, Any] = {name: getattr(shares, name) | {place: value}}
    return replace(shares, **of)
