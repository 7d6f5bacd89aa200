"""The smallest arena, or a placement within a capacity: heuristics, then restarts of the exact search up a ladder."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import exp
from typing import Any, Literal

import numpy as np

from peakline.solvers.allocation import bounds, cpsat, heuristics, milp
from peakline.solvers.allocation.greedy import PlacementError
from peakline.solvers.allocation.instance import Instance
from peakline.solvers.allocation.search import MODES, Mode, Outcome, Search
from peakline.solvers.allocation.sections import Sections
from peakline.solvers.allocation.validator import validate
from peakline.solvers.limits import check_capacity, check_time_limit

__all__ = ["METHODS", "Allocation", "Method", "Progress", "Status", "allocate"]

Status = Literal["optimal", "feasible", "infeasible", "unknown"]
Method = Literal["auto", "heuristics", "search", "milp", "cp-sat"]
METHODS: tuple[Method, ...] = ("auto", "heuristics", "search", "milp", "cp-sat")

_MODELS: dict[str, Any] = {"milp": milp, "cp-sat": cpsat}
_MOST_PAIRS = (
    2_000_000  # pairs of neighbours kept in memory, about 100 bytes each; above, greedy placements and bounds only
)
_MOST_BUFFERS = 20_000  # likewise: a node looks at all sections
_LOOK_NODES = 1.2  # nodes of a first look up the ladder, per buffer: a run that never fails takes one per buffer
_LOOK: Mode = "low"  # succeeds at once or hardly ever
_FIRST_NODES = 3  # nodes of a first run, per buffer
_GROWTH = 1.5  # of the node limit from one round of restarts to the next
_RESTARTED: tuple[Mode, ...] = ("few", "sore")  # modes worth restarting
_NOISE = 0.3  # standard deviation of the logarithm of a perturbed preference


@dataclass(frozen=True)
class Allocation:
    """A placement with its certificate.

    Attributes:
        offsets: bytes from the arena's start, in the instance's order; None where nothing (within the capacity) was
            found.
        peak: bytes of the arena; None without offsets.
        lower_bound: bytes that no placement can do with less than: proven, never the incumbent relabelled.
        status: "optimal" (peak = lower_bound), "feasible" (placed), "infeasible" (lower_bound > capacity), "unknown".
        method: what found the placement, and what proved the bound.
        seconds: time taken.
        nodes: nodes of the search.
        smallest_found: bytes of the smallest arena met, even above the capacity.
        notes: what was given up, in words.
    """

    offsets: tuple[int, ...] | None
    peak: int | None
    lower_bound: int
    status: Status
    method: str
    seconds: float
    nodes: int
    smallest_found: int
    notes: tuple[str, ...] = ()

    @property
    def gap(self) -> float:
        """(smallest arena found − lower bound) / smallest arena found; 0 is a proof."""
        return 1 - self.lower_bound / self.smallest_found if self.smallest_found else 0.0

    @property
    def interrupted(self) -> bool:
        """Whether a keyboard interrupt ended the work early."""
        return any(note.startswith("interrupted") for note in self.notes)


@dataclass(frozen=True)
class Progress:
    """How far a solve is: bytes, bytes, seconds."""

    incumbent: int
    lower_bound: int
    seconds: float
    seconds_left: float


def allocate(
    instance: Instance,
    capacity: int | None = None,
    *,
    time_limit: float = 60.0,
    seed: int = 0,
    method: Method = "auto",
    progress: Callable[[Progress], None] | None = None,
) -> Allocation:
    """Place the buffers in the smallest arena, or anywhere within `capacity` bytes if one is given.

    Without a capacity the answer is the smallest arena found and the best bound; with one, the first placement
    within it. A keyboard interrupt ends the work early and the best placement so far is returned. The same seed
    gives the same placement unless the time limit cuts the work short.

    Raises ValueError for a time limit that is not above 0 or not finite, a capacity below 1 or an unknown method;
    ImportError naming the package if the method needs a solver that is not installed.
    """
    check_time_limit(time_limit)
    if capacity is not None:
        check_capacity(capacity)
    if method not in METHODS:
        raise ValueError(f"method: must be one of {', '.join(METHODS)}, got {method!r}")
    if method in _MODELS:
        _MODELS[method].require()
    work = _Work(instance, capacity, time_limit, seed, progress)
    try:
        work.start()
        if method in ("auto", "search"):
            work.climb()
        elif method in _MODELS:
            work.model(method)
    except KeyboardInterrupt:
        if not work.placed_by:
            raise
        work.notes.append("interrupted: the best placement so far")
    return work.result()


class _Work:
    """Incumbent and bound of one solve, and the steps that improve them."""

    def __init__(
        self,
        instance: Instance,
        capacity: int | None,
        time_limit: float,
        seed: int,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self.instance, self.capacity, self.report = instance, capacity, progress
        self.begin = time.monotonic()
        self.deadline = self.begin + time_limit
        self.random = random.Random(seed)
        self.offsets: tuple[int, ...] = ()
        self.peak = 0
        self.placed_by, self.proved_by = "", "liveness"
        self.bound, self.nodes = 0, 0
        self.notes: list[str] = []

    # -- the steps ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Bounds from the crowd, incumbents from the heuristics."""
        if not self.instance.buffers:
            self.placed_by = "nothing to place"
            return
        live = bounds.live_bound(self.instance)
        self.bound = bounds.round_up(self.instance, live)
        if self.bound > live:
            self.proved_by = "liveness, rounded up to an arena that sizes can form"
        for name, placement in heuristics.quick(self.instance, self.deadline):
            self._improve(placement.offsets, name)
            if self._done() or time.monotonic() > self.deadline:
                return

    def climb(self) -> None:
        """Restarts of the search: at the lower bound first, then up the ladder (see `_targets`)."""
        if self._done():
            return
        count, pairs = len(self.instance.buffers), _neighbour_pairs(self.instance)
        if count > _MOST_BUFFERS or pairs > _MOST_PAIRS:
            self.notes.append(
                f"{count} buffers, {pairs} pairs alive together: too many for the search; "
                "greedy placements and bounds only"
            )
            return
        if time.monotonic() > self.deadline:
            self.notes.append("the time was over before the search; greedy placements and bounds only")
            return
        sections = Sections.of(self.instance.buffers)
        rules = _rules(self.instance, sections)
        looks = [rule for rule in rules if rule[0] == _LOOK]
        searches: dict[int, Search] = {}
        nodes = float(_FIRST_NODES * count)
        for round_ in range(-1 if self.capacity is None else 0, 10**9):  # −1: a look, so that an incumbent comes early
            limit = int(nodes) if round_ >= 0 else int(_LOOK_NODES * count)
            for target in self._targets():
                search = searches.setdefault(target, Search(self.instance, sections, target))
                for mode, weights in self._shuffled(rules if round_ >= 0 else looks, perturb=round_ > 0):
                    outcome = search.run(weights, mode, limit, self.deadline)
                    self._learn(outcome, target)
                    if self._done() or time.monotonic() > self.deadline:
                        return
                    if outcome.offsets is not None or outcome.proven:
                        break
            searches = {c: s for c, s in searches.items() if self.bound <= c < self.peak}
            nodes *= _GROWTH if round_ >= 0 else 1

    def model(self, method: Method) -> None:
        """One run of an exact model by a solver for such."""
        if self._done():
            return
        offsets, bound = _MODELS[method].solve(self.instance, self.bound, self.peak, self.deadline - time.monotonic())
        if bound > self.bound:
            self.bound, self.proved_by = min(bounds.round_up(self.instance, bound), self.peak), method
        if offsets is not None:
            try:
                self._improve(offsets, method)
            except PlacementError as error:
                self.notes.append(f"the placement of {method} does not hold and was dropped: {error}")

    def result(self) -> Allocation:
        fits = self.capacity is None or self.peak <= self.capacity
        status: Status
        if fits:
            status = "optimal" if self.peak == self.bound else "feasible"
        else:
            assert self.capacity is not None
            status = "infeasible" if self.bound > self.capacity else "unknown"
        return Allocation(
            offsets=self.offsets if fits else None,
            peak=self.peak if fits else None,
            lower_bound=self.bound,
            status=status,
            method=f"{self.placed_by}; bound: {self.proved_by}",
            seconds=time.monotonic() - self.begin,
            nodes=self.nodes,
            smallest_found=self.peak,
            notes=tuple(self.notes),
        )

    # -- what they share --------------------------------------------------------------------------------------------

    def _targets(self) -> Iterator[int]:
        """Capacities to try in one round: the given one; without one the bound, then halving what lies between.

        Feasibility at a capacity is the question that the search answers well: at the bound every section is tight
        and almost nothing is left to choose. A target that resists for its share of nodes is left for the next round.
        """
        if self.capacity is not None:
            yield self.capacity
            return
        unit = bounds.grain(self.instance)
        yield self.bound
        resisted = self.bound
        while True:
            resisted = max(resisted, self.bound - unit)
            middle = (resisted + self.peak) // 2 // unit * unit
            if not resisted < middle < self.peak:
                return
            yield middle
            if self.peak > middle:
                resisted = middle

    def _shuffled(
        self, rules: Sequence[tuple[Mode, Sequence[float]]], perturb: bool
    ) -> Iterator[tuple[Mode, Sequence[float]]]:
        if perturb:
            rules = [rule for rule in rules if rule[0] in _RESTARTED]
            rules = self.random.sample(rules, len(rules))
        for mode, weights in rules:
            noise = [exp(self.random.gauss(0, _NOISE)) for _ in weights] if perturb else [1.0] * len(weights)
            yield mode, [w * x for w, x in zip(weights, noise)]

    def _learn(self, outcome: Outcome, target: int) -> None:
        self.nodes += outcome.nodes
        if outcome.offsets is not None:
            self._improve(outcome.offsets, "search")
        elif outcome.proven and target >= self.bound:
            self.bound, self.proved_by = bounds.round_up(self.instance, target + 1), "search"
        self._tell()

    def _improve(self, offsets: tuple[int, ...], by: str) -> None:
        """Take a placement if it is better; no solver's word is taken for it."""
        peak = validate(self.instance, offsets)
        if not self.placed_by or peak < self.peak:
            self.offsets, self.peak, self.placed_by = offsets, peak, by
        self._tell()

    def _done(self) -> bool:
        if self.peak <= self.bound:
            return True
        return self.capacity is not None and (self.peak <= self.capacity or self.bound > self.capacity)

    def _tell(self) -> None:
        if self.report is not None:
            now = time.monotonic()
            self.report(Progress(self.peak, self.bound, now - self.begin, max(0.0, self.deadline - now)))


def _rules(instance: Instance, sections: Sections) -> list[tuple[Mode, list[float]]]:
    """Which section to ask about × which buffer to prefer: large area, long life, large size, many sections,
    crowded sections; and low hints if there are any."""
    n = len(instance.buffers)
    size = [float(b.size) for b in instance.buffers]
    life = [float(b.upper - b.lower) for b in instance.buffers]
    width = [float(last - first) for first, last in zip(sections.first, sections.last)]
    total = [sum(size[b] for b in members) for members in sections.members]
    most = max(total)
    crowd = [max(total[sections.first[b] : sections.last[b]]) / most for b in range(n)]
    weights = [
        [s * w for s, w in zip(size, width)],
        life,
        [s * x for s, x in zip(size, life)],
        size,
        [c**8 * s * x for c, s, x in zip(crowd, size, life)],  # the crowd first, unless areas differ a lot
    ]
    if any(hint is not None for hint in instance.hints):
        weights.insert(0, [1.0 / (1 + max(hint, 0)) if hint is not None else 0.0 for hint in instance.hints])
    return [(mode, list(w)) for w in weights for mode in MODES]


def _neighbour_pairs(instance: Instance) -> int:
    """Pairs of buffers alive together: whom each finds alive at its birth."""
    born = np.array(instance.events) >= 0
    alive = np.cumsum(np.where(born, 1, -1))
    return int((alive[born] - 1).sum())
