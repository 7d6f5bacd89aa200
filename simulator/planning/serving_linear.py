"""Where weights, cache and neurons lie, as a linear program: the waits of one layer, repeated for ever.

Shares w of the weights, c of the cache and f of the neurons lie in each place. Every event of a layer
(`serving_passes`) ends at x; T is the time from one layer to the next. An event that waits for another, or follows it
on its stream, ends no sooner than that one plus its own seconds:

    x[event] ≥ x[other] − T · (layers in between) + seconds(event)

the steady state of a timed event graph (F. Baccelli et al., "Synchronization and Linearity", 1992, §2.5). Seconds are
those of computing, or latency + bytes · share / rate of the slowest link on the way; a latency counts where anything
moves, by one binary per tensor and tier. Beside these waits

    no link beyond its bandwidth:     Σ bytes · share / bandwidth ≤ T      (host link and host memory: of both tiers)
    no copies faster than fair:       Σ gradient · bytes · share ≤ T       (found as they bind, `shared`)
    no place beyond its bytes:        what lies there + buffers + workspaces ≤ capacity

A pass of L layers after another takes L·T; the first one T·(L − 1) and one layer by itself. Without the waits, the
latencies and the fair shares the program is a bound for every order of copies and computing.

`shared`: copies share links max-min fairly, so two that meet on a link slow each other down even where the link could
carry both: of a slow copy of b bytes from a drive (rate r) beside a fast one of a bytes (link R, r > R/2), the drive's
takes (b − a)/r + 2a/R, not b/r. The time is linear in the bytes while the order of ends stays the same; its gradient
there is a row of the program.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

from peakline.planning.serving_passes import BUFFERS, Event, Pass, layer
from peakline.planning.serving_problem import Block, Seen, Shares
from peakline.solvers.linear import highs
from peakline.streams import Link, Program, Task, simulate

__all__ = ["WAYS", "bound", "least", "limits", "solve"]

SLOTS = 32
"""Slots of a layer that are told apart; of more, several are taken as one."""

LITTLE = 0.01
"""Share of the device below which hidden states are left there."""

CUTS = 12
"""Rows for fair sharing that are looked for."""

_GRAIN = 1024
"""Parts of a byte that rates are told by."""

_TIE = 1e-3
"""What a second of the drive's own counts, in seconds: where it does not decide, use it least."""

_NEAR = 1e-5
"""Shares that are the same."""

_UNIT = 1e9
"""Bytes and seconds of rows are near one."""


class _Rows:
    """A program under construction."""

    def __init__(self, block: Block, integer: bool) -> None:
        self.pulp: Any = import_module("pulp")
        self.block, self.program = block, self.pulp.LpProblem("placement", self.pulp.LpMinimize)
        self.weights, self.cache = self._shares("w"), self._shares("c")
        self.neurons = self._shares("f") if block.sizes.sparse else {}
        self.states = self._shares("s")
        self.used: dict[tuple[str, str], Any] = {}
        for name, shares in (("w", self.weights), ("c", self.cache), ("f", self.neurons), ("s", self.states)):
            for place in block.places[1:]:
                used: Any = 0.0
                if integer and shares and (self.latency(place, False) or self.latency(place, True)):
                    used = self.pulp.LpVariable(f"used_{name}_{place}", 0, 1, "Binary")
                    self.program += shares[place] <= used
                self.used[name, place] = used
        self.count = 0
        if block.kept is not None:
            self.program += self.cache["device"] == block.kept

    def _shares(self, name: str) -> dict[str, Any]:
        found = {place: self.pulp.LpVariable(f"{name}_{place}", 0, 1) for place in self.block.places}
        self.program += self.pulp.lpSum(found.values()) == 1
        return found

    def route(self, place: str, out: bool) -> tuple[str, ...]:
        """Links on the way to a place, or from it."""
        way = next(r for r in self.block.around.routes if r.tier.name == place)
        return tuple(way.out if out else way.back)

    def fits(self, free: str | None = None) -> None:
        """No place beyond its bytes, but for `free`."""
        b = self.block
        if free != "device":
            self.program += b.needs(self) / _UNIT <= b.room / _UNIT
        for place, tier in zip(b.places[1:], b.around.tiers):
            if tier.capacity is not None and place != free:
                self.program += b.lies(place, self) / _UNIT <= tier.capacity / _UNIT

    # ---- one pass -------------------------------------------------------------------------------------------------
    def carried(self, way: Pass) -> dict[tuple[str, str], Any]:
        """Bytes of a layer by (tier, kind): `ahead`, `gathered` one by one, and `saved`."""
        found: dict[tuple[str, str], Any] = {}
        for place in self.block.places[1:]:
            f = self.neurons.get(place, 0.0)
            ahead = self.weights[place] * (way.weights + way.late_weights) + f * way.neurons
            slots = self.cache[place] * way.cached + self.states[place] * way.states
            found[place, "ahead"] = ahead + slots * way.slots
            found[place, "gathered"] = f * way.late_neurons
            saved = self.cache[place] * (way.saved * way.slots / way.every)
            found[place, "saved"] = saved + self.states[place] * (way.states * way.slots)
        return found

    def limits(self, way: Pass) -> dict[str, Any]:
        """Seconds of a layer: of the computing, of it and what is known late one after the other, of each link."""
        loaded: dict[str, Any] = {}
        for (place, kind), bytes_ in self.carried(way).items():
            for link in self.route(place, kind == "saved"):
                loaded[link] = loaded.get(link, 0.0) + bytes_ * (1.0 / self.pace(link, place, kind == "gathered"))
        found = {"compute": way.seconds, **loaded}
        for what, shares, bytes_ in (
            ("experts after their router", self.weights, way.late_weights),
            ("neurons after their attention", self.neurons, way.late_neurons),
        ):
            late: dict[str, Any] = {}
            for place in self.block.places[1:] if bytes_ else ():
                for link in self.route(place, False):
                    rate = self.pace(link, place, shares is self.neurons)
                    late[link] = late.get(link, 0.0) + shares[place] * (bytes_ / rate)
            found |= {f"{what} ({link})": way.seconds + seconds for link, seconds in late.items()}
        return found

    def times(self) -> list[Any]:
        """T of every pass."""
        return [self.pulp.LpVariable(f"T{i}", 0) for i in range(len(self.block.passes))]

    def paced(self, way: Pass, took: Any) -> None:
        """No layer faster than a resource allows."""
        for limit in self.limits(way).values():
            self.program += took >= limit

    def first(self, passes: Sequence[Pass], took: Sequence[Any]) -> Any:
        """Seconds of the prompts: one layer by itself, whose copies come before their use, and the others after it; or
        what they save, after the first two slots."""
        layers = self.block.sizes.layers
        found, way, pieces = self.pulp.LpVariable("first", 0), passes[0], passes[0].pieces
        rest = layers * self.pulp.lpSum(p.times * t for p, t in zip(passes, took)) - took[0]
        begin = next(piece.weights for piece in pieces if piece.weights)
        final = next(piece.prompting for piece in reversed(pieces) if piece.weights)
        slot = way.seconds * sum(piece.prompting for piece in pieces if piece.cached) / way.slots
        self.program += found >= rest + way.seconds
        for place in self.block.places[1:]:
            save = self.cache[place] * (way.saved / self.rate(place, True))
            save += self.states[place] * (way.states / self.rate(place, True))
            save += (self.used["c", place] + self.used["s", place] * bool(way.states)) * self.latency(place, True)
            count = layers * sum(p.times * p.slots for p in passes) - BUFFERS
            arrives = self.arrival(way)[0]
            self.program += found >= arrives * begin + BUFFERS * slot + save * max(count, 0.0)
        for seconds in self.arrival(way):
            self.program += found >= rest + seconds * begin + way.seconds
            self.program += found >= rest + seconds + way.seconds * final
        return found

    def arrival(self, way: Pass) -> list[Any]:
        """Seconds until a layer's weights have come, when nothing else does: by tier, and by link."""
        found: list[Any] = []
        loaded: dict[str, Any] = {}
        for place in self.block.places[1:]:
            size = self.weights[place] * way.weights + (self.neurons[place] * way.neurons if self.neurons else 0.0)
            found.append(size * (1.0 / self.rate(place, False)) + self.used["w", place] * self.latency(place, False))
            for link in self.route(place, False):
                loaded[link] = loaded.get(link, 0.0) + size * (1.0 / self.block.around.links[link].bandwidth)
        return [*found, *loaded.values()]

    def begin(self, passes: Sequence[Pass]) -> Any:
        """Seconds until decoding begins after prompts whose weights came in other pieces: nothing came ahead."""
        found = self.pulp.LpVariable("begin", 0)
        if passes[-1].pieces != passes[-2].pieces:
            for seconds in self.arrival(passes[-1]):
                self.program += found >= seconds
        return found

    def least_first(self, passes: Sequence[Pass], took: Sequence[Any]) -> Any:
        """Next to nothing: of placements that take the same, the one that asks least of the drive, and ends soonest."""
        slow = [
            way.times * self.block.sizes.layers * bytes_ * (1.0 / self.rate(place, kind == "saved"))
            for way in passes
            for (place, kind), bytes_ in self.carried(way).items()
            if place == "ssd"
        ]
        return _TIE * self.pulp.lpSum([*slow, *took])

    def latency(self, place: str, out: bool) -> float:
        """Seconds before the first byte of a copy arrives."""
        return sum(self.block.around.links[name].latency for name in self.route(place, out))

    def solve(self) -> bool:
        """Whether there is a solution."""
        self.program.solve(highs(gapRel=1e-4))
        return bool(self.program.sol_status == self.pulp.LpSolutionOptimal)

    def cut(self, passes: Sequence[Pass], took: Sequence[Any]) -> bool:
        """Add what max-min fair sharing takes beyond the rows there are; whether there was something."""
        value, added = self.pulp.value, False
        for way, seconds in zip(passes, took):
            places = self.block.places[1:] if way.late_weights else ()
            late = {(place, "late"): self.weights[place] * way.late_weights for place in places}
            for flows, beside in ((self.carried(way), 0.0), (late, way.seconds)):
                moved = {
                    key: flow for key, flow in flows.items()
                    if key[1] != "gathered" and float(value(flow) or 0.0) > 1.0
                }  # fmt: skip
                if len(moved) < 2:
                    continue
                routes = [self.route(place, kind == "saved") for place, kind in moved]
                sizes = [float(value(flow)) for flow in moved.values()]
                needed, gradient = shared(list(zip(routes, sizes)), self.block.around.links)
                if needed + beside > float(value(seconds)) * (1.0 + 1e-5):
                    self.program += seconds >= beside + self.pulp.lpSum(
                        g * flow for g, flow in zip(gradient, moved.values())
                    )
                    added = True
        return added

    @property
    def gathers(self) -> dict[str, float]:
        """Bytes/s of neurons that come one by one, where that is slower than a copy."""
        sparse = self.block.sizes.sparse
        return {"ssd": sparse.rate} if sparse and sparse.rate else {}

    def pace(self, link: str, place: str, gathered: bool) -> float:
        """Bytes/s of a link for what comes from a place, as a copy or one by one."""
        rate = self.block.around.links[link].bandwidth
        return min(rate, self.gathers.get(place, rate)) if gathered and link == "ssd read" else rate

    def rate(self, place: str, out: bool, gathered: bool = False) -> float:
        """Bytes/s of a copy by itself."""
        rate = min(self.block.around.links[name].bandwidth for name in self.route(place, out))
        return min(rate, self.gathers.get(place, rate)) if gathered else rate

    def seconds(self, event: Event, way: Pass, place: str) -> Any:
        """Of a copy."""
        out = event.kind == "save"
        rate, latency = self.rate(place, out), self.latency(place, out)
        w, c, f = (shares.get(place, 0.0) for shares in (self.weights, self.cache, self.neurons))
        if event.kind in ("cache", "save"):
            size = way.saved if out else way.cached
            took = c * (size / rate) + self.used["c", place] * (way.copies * latency * bool(size))
            took += self.states[place] * (way.states / rate)
            return took + self.used["s", place] * (way.copies * latency * bool(way.states))
        if event.kind == "late":
            took = w * (way.late_weights / rate) + self.used["w", place] * (latency * bool(way.late_weights))
            took += f * (way.late_neurons / self.rate(place, False, True))
            return took + self.used["f", place] * (latency * bool(way.late_neurons))
        assert event.load is not None
        share = event.share * way.pieces[event.load.piece].weights / rate
        return (w * way.weights + f * way.neurons) * share + self.used["w", place] * latency

    def waits(self, way: Pass, took: Any, cached: bool, sliced: bool) -> None:
        """Every event of a layer after those it waits for, of this layer or of one `took` earlier."""
        pieces, places = way.pieces, self.block.places[1:]
        events = list(layer(way, cached, sliced))
        kinds = {kind: [n for n, e in enumerate(events) if e.kind == kind] for kind in ("use", "save", "weights")}
        uses = kinds["use"]
        coming = [n for n, e in enumerate(events) if e.kind in ("cache", "late", "weights")]
        last = {events[n].piece: n for n in uses}
        slots = [n for n in uses if pieces[events[n].piece].cached]
        saving = [slots[events[n].slot] for n in kinds["save"]]  # uses whose result is saved
        moments = [self.moments("compute") if e.kind == "use" else self.moments(*places) for e in events]
        computing = way.seconds * 1.0

        def after(n: int, m: int, back: int, seconds: Mapping[str, Any] | float) -> None:
            for name, end in moments[n].items():
                for other in moments[m].values() if "compute" in (name, *moments[m]) else (moments[m][name],):
                    own = seconds if isinstance(seconds, float) else seconds[name]
                    self.program += end >= other - back * took + own

        for n, event in enumerate(events):
            if event.kind == "use":
                own = computing * pieces[event.piece].computing_of(way.decodes) * event.share
                lasts: Mapping[str, Any] | float = own
                order = uses
            else:
                lasts = {place: self.seconds(event, way, place) for place in places}
                order = kinds["save"] if event.kind == "save" else coming
            i = order.index(n)
            after(n, order[i - 1], int(i == 0), lasts)
            if event.kind == "cache":
                i = event.slot - BUFFERS
                after(n, slots[i % len(slots)], _laps(i, len(slots)), lasts)
                if not way.decodes:  # what the slot two before saved, and what the layer before handed on, are away
                    after(n, kinds["save"][i % len(slots)], _laps(i, len(slots)), lasts)
                    if way.states:
                        after(n, kinds["save"][event.slot], 1, lasts)
            elif event.kind == "save":
                after(n, slots[event.slot], 0, lasts)
            elif event.kind != "use":
                after(n, last[(event.piece - 1) % len(pieces)], int(event.piece == 0), lasts)
            else:
                for m in coming:
                    other = events[m]
                    if other.piece == event.piece and (other.kind, other.slot) in (("cache", event.slot), ("late", 0)):
                        after(n, m, 0, lasts)
                    elif other.load and other.load.piece == event.piece and event.slot == 0:
                        after(n, m, other.load.ahead, lasts)
                if n in saving:
                    i = saving.index(n) - BUFFERS
                    after(n, kinds["save"][i % len(saving)], _laps(i, len(saving)), lasts)

    def moments(self, *names: str) -> dict[str, Any]:
        """When an event ends, by stream."""
        self.count += 1
        return {name: self.pulp.LpVariable(f"x{self.count}_{name}") for name in names}


def _laps(index: int, count: int) -> int:
    """Layers back of an index below zero."""
    return -(index // count)


# ---- the program ----------------------------------------------------------------------------------------------------
def least(block: Block, place: str) -> float | None:
    """The fewest bytes of a place with which the block fits, the others as they are; None if none are enough."""
    rows = _Rows(block, integer=False)
    rows.fits(place)
    needed = block.needs(rows) if place == "device" else block.lies(place, rows)
    rows.program.setObjective(needed * (1.0 / _UNIT))
    return float(rows.pulp.value(needed)) if rows.solve() else None


def limits(block: Block, shares: Shares, way: Pass) -> dict[str, float]:
    """Seconds that each resource takes for a layer of a pass: computing, what waits for it, and links."""
    rows = _Rows(block, integer=False)
    rows.weights, rows.cache, rows.neurons, rows.states = shares.weights, shares.cache, shares.neurons, shares.states
    return {name: float(seconds) for name, seconds in rows.limits(way).items()}


def bound(block: Block) -> float | None:
    """Seconds of all passes that no order of copies and computing goes below; None if the block does not fit.

    What `BUFFERS` layers of a pass bring in may have come during the pass before.
    """
    rows = _Rows(block, integer=False)
    rows.fits()
    took = rows.times()
    for way, seconds in zip(block.passes, took):
        rows.paced(way, seconds)
    layers, passes = block.sizes.layers, [way for way in block.passes if way.times]
    before = [float(BUFFERS * bool(i)) for i in range(len(passes))]
    rows.program.setObjective(
        rows.pulp.lpSum(max(way.times * layers - n, 0.0) * t for way, t, n in zip(passes, took, before))
    )
    return float(rows.pulp.value(rows.program.objective)) if rows.solve() else None


WAYS = (
    (False, False, False), (True, False, False), (True, True, False),
    (False, True, True), (True, False, True), (True, True, True),
)  # fmt: skip
"""How copies are cut: the cache comes in; weights in slices; hidden states come in."""


def solve(
    block: Block, way_: tuple[bool, bool, bool], seen: Sequence[Seen] = (), near: Shares | None = None
) -> Shares | None:
    """The best shares with copies cut in one of the `WAYS`; None if the block does not fit.

    Args:
        seen: rows that the replay of earlier solutions gave.
        near: shares that it stays next to.
    """
    cached, sliced, handed = way_
    if (block.kept is not None and cached != (block.kept < 1.0)) or (handed and block.hidden < LITTLE * block.room):
        return None
    rows = _Rows(block, integer=True)
    rows.fits()
    if not cached:
        rows.program += rows.cache["device"] == 1
    if not handed:
        rows.program += rows.states["device"] == 1
    took = rows.times()
    for way, seconds in zip(block.passes, took):
        rows.paced(way, seconds)
        comes = (cached and way.cached > 0) or (handed and way.states > 0)
        rows.waits(way.coarse(SLOTS), seconds, comes, sliced)
    for name in ("weights", "cache", "neurons", "states") if near else ():
        for place, share in getattr(rows, name).items():
            rows.program += share <= (getattr(near, name)[place] and getattr(near, name)[place] + _NEAR)
            rows.program += share >= getattr(near, name)[place] - _NEAR
    for row in seen:
        rows.program += took[row.number] >= row.value(rows)
    prompts = rows.first(block.passes[:-1], took)
    total = prompts + block.sizes.layers * block.passes[-1].times * took[-1]
    total += rows.begin(block.passes) if block.passes[-1].times else 0.0
    rows.program.setObjective(total + rows.least_first(block.passes, took))
    for _ in range(CUTS):
        if not rows.solve():
            return None
        if not rows.cut(block.passes, took):
            break
    value = rows.pulp.value

    def of(shares: Mapping[str, Any]) -> dict[str, float]:
        found = {place: min(float(value(v)), 1.0) for place, v in shares.items()}
        return {place: share if share > _NEAR / 10 else 0.0 for place, share in found.items()}

    return Shares(
        of(rows.weights), of(rows.cache), of(rows.neurons), of(rows.states), float(value(total)), float(value(prompts)),
        block.sizes.layers * float(value(took[-1])), tuple(float(value(t)) for t in took), cached, sliced, handed,
    )  # fmt: skip


def shared(flows: Sequence[tuple[tuple[str, ...], float]], links: Mapping[str, Link]) -> tuple[float, list[float]]:
    """Seconds until copies that start together have ended, and by how many more per byte of each.

    Args:
        flows: the links of each copy, and its bytes.
        links: by name; latencies are left out.
    """
    free = {name: replace(link, latency=0.0) for name, link in links.items()}

    def took(bytes_: Sequence[float]) -> float:
        program = Program(free)
        for i, ((route, _), size) in enumerate(zip(flows, bytes_)):
            program.add(Task(str(i), str(i), 0.0, round(size * _GRAIN), route))
        return simulate(program).makespan / _GRAIN

    sizes = [size for _, size in flows]
    seconds, step = took(sizes), max(sizes) * 1e-5
    return seconds, [
        (took([size + step * (i == j) for j, size in enumerate(sizes)]) - seconds) / step for i in range(len(flows))
    ]
