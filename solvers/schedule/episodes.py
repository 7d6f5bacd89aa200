"""An order and what leaves the scratchpad between uses: the plans of the traffic problem before they have addresses.

Between two consecutive uses of a tensor lies a *gap*; a plan keeps the tensor throughout the gap or drops it after the
first use and reloads it for the second. Nothing else matters: dropping later or reloading earlier saves nothing. A run
of kept gaps is an *episode*, a rectangle of time and addresses that may lie elsewhere than the tensor's other episodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from peakline.solvers.dag import Dag
from peakline.solvers.plan import Certificate, Plan, Step, Traffic

__all__ = ["Episode", "Schedule", "episodes", "gaps", "to_plan", "traffic", "uses"]


@dataclass(frozen=True)
class Schedule:
    """`order` of the operators; `dropped` holds (tensor, k): not resident between its uses k and k + 1 in the order."""

    order: tuple[int, ...]
    dropped: frozenset[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Episode:
    """Tensor `tensor` is resident at the steps `first` to `last`, both included; `loaded`: it comes from off-chip."""

    tensor: int
    first: int
    last: int
    loaded: bool


def uses(dag: Dag, order: Sequence[int]) -> list[list[int]]:
    """Steps at which each tensor is touched, in order."""
    found: list[list[int]] = [[] for _ in dag.size]
    for step, i in enumerate(order):
        for a in (*dag.inputs[i], *dag.outputs[i]):
            found[a].append(step)
    return found


def gaps(dag: Dag, order: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """(tensor, k, first step, last step) of each gap during which other operators run."""
    return [
        (a, k, p + 1, q - 1)
        for a, steps in enumerate(uses(dag, order))
        for k, (p, q) in enumerate(pairwise(steps))
        if q > p + 1
    ]


def traffic(dag: Dag, dropped: Iterable[tuple[int, int]]) -> int:
    """Non-compulsory bytes: a reload for each drop, and one store of each activation that is ever dropped."""
    listed = list(dropped)
    stored = {a for a, _ in listed if dag.dear >> a & 1}
    return sum(dag.size[a] for a, _ in listed) + sum(dag.size[a] for a in stored)


def episodes(dag: Dag, schedule: Schedule) -> list[Episode]:
    """The rectangles to be placed, by first step."""
    found = []
    for a, steps in enumerate(uses(dag, schedule.order)):
        start = 0
        for k in range(len(steps)):
            if k + 1 == len(steps) or (a, k) in schedule.dropped:
                found.append(Episode(a, steps[start], steps[k], start > 0 or dag.maker[a] < 0))
                start = k + 1
    return sorted(found, key=lambda e: (e.first, e.tensor))


def to_plan(dag: Dag, schedule: Schedule, offsets: Sequence[int], capacity: int, certificate: Certificate) -> Plan:
    """The plan that keeps each episode (in the order of `episodes`) at its offset."""
    names = [tensor.name for tensor in dag.problem.tensors]
    outputs = {a for a, tensor in enumerate(dag.problem.tensors) if tensor.role == "output"}
    steps = len(schedule.order)
    store: list[list[str]] = [[] for _ in range(steps)]
    evict: list[list[str]] = [[] for _ in range(steps)]
    load: list[dict[str, int]] = [{} for _ in range(steps)]
    produce: list[dict[str, int]] = [{} for _ in range(steps)]
    final: list[str] = []
    change = [0] * (steps + 1)
    last = {e.tensor: e.last for e in episodes(dag, schedule)}
    off_chip = {a for a, maker in enumerate(dag.maker) if maker < 0}
    moved_in = moved_out = 0
    for episode, offset in zip(episodes(dag, schedule), offsets):
        a, name, size = episode.tensor, names[episode.tensor], dag.size[episode.tensor]
        (load if episode.loaded else produce)[episode.first][name] = offset
        moved_in += size if episode.loaded else 0
        change[episode.first] += size
        change[episode.last + 1] -= size
        needed = a in outputs or episode.last < last[a]
        if needed and a not in off_chip:
            off_chip.add(a)
            moved_out += size
            (store[episode.last + 1] if episode.last + 1 < steps else final).append(name)
        if episode.last + 1 < steps:
            evict[episode.last + 1].append(name)
    peak = alive = 0
    for amount in change:
        alive += amount
        peak = max(peak, alive)
    operators = dag.problem.operators
    return Plan(
        capacity,
        tuple(
            Step(operators[i].name, tuple(store[t]), tuple(evict[t]), load[t], produce[t])
            for t, i in enumerate(schedule.order)
        ),
        tuple(final),
        Traffic(moved_in, moved_out, dag.problem.compulsory),
        peak,
        certificate,
    )
