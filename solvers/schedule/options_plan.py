"""Addresses for steps with options, and the plan that they are.

What lies in place shares its input's rectangle, which keeps all of its room; where no placement of these is found, the
steps are taken in turn (`place_in_turn`): an arrival takes the smallest hole that holds it, or the window whose idle
residents cost least to drop; if every window meets a tensor in use, all residents leave and what is in use comes back
side by side. So addresses exist whenever the operators fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from peakline.solvers.allocation import Instance, allocate
from peakline.solvers.dag import Dag, bits
from peakline.solvers.plan import Certificate, Plan, Step, Traffic
from peakline.solvers.schedule.options import Taken
from peakline.solvers.schedule.runs import Runs, events

__all__ = ["place_in_turn", "placed", "written"]

Offsets = Mapping[tuple[int, int], int]
"""Offset of a tensor that arrives at a step."""


def placed(
    dag: Dag, steps: Sequence[Taken], capacity: int, allow: tuple[str, ...], proof: Certificate, seconds: float
) -> Plan | None:
    """The plan with addresses, or None if none were found; an output in place shares its input's address."""
    stays = _Stays(dag, steps)
    found = allocate(Instance.of(stays.boxes), capacity, time_limit=max(seconds, 0.1))
    if found.offsets is None:
        return None
    offsets = {key: found.offsets[box] for key, box in stays.box.items()}
    return written(dag, steps, offsets, capacity, allow, proof)


def written(
    dag: Dag, steps: Sequence[Taken], at: Offsets, capacity: int, allow: tuple[str, ...], proof: Certificate
) -> Plan:
    """The plan of the steps at these addresses; outputs that nobody stored before are stored when they leave."""
    names = [tensor.name for tensor in dag.problem.tensors]
    listed: list[Step] = []
    peak, moved_in, moved_out, off, resident = 0, 0, 0, dag.off_chip, 0
    for t, taken in enumerate(steps):
        under = sum(1 << a for _, a in taken.in_place)
        over = sum(1 << b for b, _ in taken.in_place)
        store = (taken.store & resident) | ((taken.evict | under) & dag.results & resident & ~off)
        off |= store
        resident = (resident & ~taken.evict) | taken.load
        moved_out += dag.weigh(store)
        moved_in += dag.weigh(taken.load | taken.bypass)
        peak = max(peak, dag.weigh(resident | dag.makes[taken.i] & ~over))
        resident = (resident | dag.makes[taken.i]) & ~under
        listed.append(
            Step(
                dag.problem.operators[taken.i].name,
                tuple(names[a] for a in bits(store)),
                tuple(names[a] for a in bits(taken.evict)),
                {names[a]: at[a, t] for a in bits(taken.load)},
                {names[b]: at[b, t] for b in dag.outputs[taken.i]},
                tuple(names[a] for a in bits(taken.bypass)),
                {names[b]: names[a] for b, a in taken.in_place},
            )
        )
    final = tuple(names[a] for a in bits(resident & dag.results & ~off))
    moved_out += dag.weigh(resident & dag.results & ~off)
    traffic = Traffic(moved_in, moved_out, dag.problem.compulsory)
    return Plan(capacity, tuple(listed), final, traffic, peak, proof, allow)


class _Stays:
    """Rectangles of the steps: an output in place continues its input's."""

    def __init__(self, dag: Dag, steps: Sequence[Taken]) -> None:
        self.box: dict[tuple[int, int], int] = {}  # rectangle of a tensor that arrives at a step
        spans: list[list[int]] = []
        here: dict[int, int] = {}
        for t, taken in enumerate(steps):
            for a in bits(taken.evict):
                spans[here.pop(a)][1] = t
            over = dict(taken.in_place)
            for a in (*bits(taken.load), *(b for b in dag.outputs[taken.i] if b not in over)):
                here[a] = self.box[a, t] = len(spans)
                spans.append([t, len(steps), dag.size[a]])
            for b, a in over.items():
                here[b] = self.box[b, t] = here.pop(a)
        self.boxes = [(first, last, size) for first, last, size in spans]


def place_in_turn(dag: Dag, runs: Runs, capacity: int) -> tuple[Runs, dict[tuple[int, int], int]]:
    """The runs with further drops such that addresses exist, and the offset of each arrival."""
    turn = _Turn(dag, runs, capacity)
    for t, i in enumerate(runs.order):
        turn.run(t, i)
    return Runs(runs.order, frozenset(turn.dropped), runs.bypassed, runs.over), turn.offsets


class _Turn:
    """The scratchpad while the steps are taken one after the other."""

    def __init__(self, dag: Dag, runs: Runs, capacity: int) -> None:
        self.dag, self.runs, self.capacity = dag, runs, capacity
        self.events = events(dag, runs.order)
        self.passed = [0] * len(dag.size)
        self.dropped = set(runs.dropped)
        self.at: dict[int, int] = {}
        self.offsets: dict[tuple[int, int], int] = {}

    def run(self, t: int, i: int) -> None:
        dag, over = self.dag, dict(self.runs.over.get(t, ()))
        reads = [a for a in dag.inputs[i] if (a, t) not in self.runs.bypassed]
        fresh = [b for b in dag.outputs[i] if b not in over]
        arriving = [a for a in (*reads, *fresh) if a not in self.at]
        if not all(self.arrive(a, t, {*reads, *fresh}) for a in sorted(arriving, key=lambda a: -dag.size[a])):
            for a in [a for a in self.at if (a, t) not in self.offsets]:
                self.drop(a)
            bottom = 0
            for a in (*reads, *fresh):
                self.at[a] = self.offsets[a, t] = bottom
                bottom += dag.size[a]
        for b, a in over.items():
            self.at[b] = self.offsets[b, t] = self.at.pop(a)
        for a in (*dag.inputs[i], *dag.outputs[i]):
            self.passed[a] += 1
            k = self.passed[a] - 1
            if k + 1 == len(self.events[a]) or (a, k) in self.dropped:
                self.at.pop(a, None)

    def arrive(self, a: int, t: int, touched: set[int]) -> bool:
        """Place one tensor, dropping idle residents if need be; False if tensors in use lie in every window."""
        size = self.dag.size
        edges = {0, *(low + size[b] for b, low in self.at.items())}
        edges |= {self.capacity - size[a], *(low - size[a] for low in self.at.values())}
        best: tuple[int, int, int, list[int]] | None = None
        for low in edges:
            if low < 0 or low + size[a] > self.capacity:
                continue
            inside = [b for b, other in self.at.items() if other < low + size[a] and low < other + size[b]]
            if touched.intersection(inside):
                continue
            key = (sum(map(self.price, inside)), self.hole(low, inside), low, inside)
            best = min(best or key, key)
        if best is None:
            return False
        for b in best[3]:
            self.drop(b)
        self.at[a] = self.offsets[a, t] = best[2]
        return True

    def hole(self, low: int, leaving: list[int]) -> int:
        """Free bytes around an address once some residents have left."""
        stay = [(other, other + self.dag.size[b]) for b, other in self.at.items() if b not in leaving]
        above = min((bottom for bottom, top in stay if top > low), default=self.capacity)
        return above - max((top for _, top in stay if top <= low), default=0)

    def price(self, a: int) -> int:
        """Bytes that dropping a resident adds."""
        seen = self.events[a]
        stored = any((a, k) in self.dropped and not seen[k + 1][1] for k in range(self.passed[a]))
        return self.dag.size[a] * (2 if self.dag.dear >> a & 1 and not stored else 1)

    def drop(self, a: int) -> None:
        """A resident leaves until it is read again."""
        self.dropped.add((a, self.passed[a] - 1))
        del self.at[a]
