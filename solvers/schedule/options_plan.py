"""Addresses for steps with options, and the plan that they are.

What lies in place shares its input's rectangle, which keeps all of its room; where no placement of these is found, the
steps are taken in turn (`residents.py`), which drops a little more. So addresses exist whenever the operators fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from peakline.solvers.allocation import Instance, allocate
from peakline.solvers.dag import Dag, bits
from peakline.solvers.plan import Certificate, Plan, Step, Traffic
from peakline.solvers.schedule.options import Taken
from peakline.solvers.schedule.residents import Residents
from peakline.solvers.schedule.runs import Runs

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


class _Turn(Residents):
    """Steps taken one after the other, with what they bypass and lay in place."""

    def __init__(self, dag: Dag, runs: Runs, capacity: int) -> None:
        super().__init__(dag, runs.order, capacity, runs.dropped)
        self.runs = runs

    def run(self, t: int, i: int) -> None:
        """The operator's tensors come, outputs in place take over their inputs' addresses, and what ends leaves."""
        over = dict(self.runs.over.get(t, ()))
        reads = [a for a in self.dag.inputs[i] if (a, t) not in self.runs.bypassed]
        self.admit(t, [*reads, *(b for b in self.dag.outputs[i] if b not in over)])
        for b, a in over.items():
            self.place(b, t, self.at.pop(a))
        self.pass_step((*self.dag.inputs[i], *self.dag.outputs[i]))
