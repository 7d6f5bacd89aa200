"""An order and what leaves the scratchpad between uses: the plans of the traffic problem before they have addresses.

Between two consecutive uses of a tensor lies a *gap*; a plan keeps the tensor throughout the gap or drops it after the
first use and reloads it for the second. Nothing else matters: dropping later or reloading earlier saves nothing. A run
of kept gaps is an *episode*, a rectangle of time and addresses that may lie elsewhere than the tensor's other episodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from peakline.solvers.dag import Dag
from peakline.solvers.plan import Certificate, Plan, Step, Timing, Traffic

__all__ = [
    "Episode",
    "Schedule",
    "episodes",
    "gaps",
    "of_stays",
    "order_of",
    "schedule_of",
    "to_plan",
    "traffic",
    "uses",
]


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
    """The plan that keeps each episode (in the order of `episodes`) at its offset.

    What must be stored is, when its first episode that is not its last ends; an output at the latest with that one.
    """
    boxes = episodes(dag, schedule)
    last = {box.tensor: box.last for box in boxes}
    off_chip = dag.off_chip
    stores: list[tuple[int, int]] = []
    for box in boxes:
        needed = dag.results >> box.tensor & 1 or box.last < last[box.tensor]
        if needed and not off_chip >> box.tensor & 1:
            off_chip |= 1 << box.tensor
            stores.append((box.tensor, box.last + 1))
    return of_stays(dag, schedule.order, boxes, stores, offsets, capacity, certificate)


def of_stays(
    dag: Dag,
    order: Sequence[int],
    stays: Sequence[Episode],
    stores: Iterable[tuple[int, int]],
    offsets: Sequence[int],
    capacity: int,
    certificate: Certificate,
    timing: Timing | None = None,
) -> Plan:
    """The plan in which each stay has its offset; `stores`: (tensor, step before which; the number of steps: at last).

    A tensor is loaded or made at the first step of a stay, and evicted before the one after its last.
    """
    names = [tensor.name for tensor in dag.problem.tensors]
    count = len(order)
    store: list[list[str]] = [[] for _ in range(count + 1)]
    evict: list[list[str]] = [[] for _ in range(count + 1)]
    load: list[dict[str, int]] = [{} for _ in range(count)]
    produce: list[dict[str, int]] = [{} for _ in range(count)]
    change = [0] * (count + 1)
    moved_in = moved_out = 0
    for a, step in stores:
        store[step].append(names[a])
        moved_out += dag.size[a]
    for stay, offset in zip(stays, offsets, strict=True):
        name, size = names[stay.tensor], dag.size[stay.tensor]
        (load if stay.loaded else produce)[stay.first][name] = offset
        moved_in += size if stay.loaded else 0
        change[stay.first] += size
        change[stay.last + 1] -= size
        evict[stay.last + 1].append(name)
    operators = dag.problem.operators
    steps = tuple(
        Step(operators[i].name, tuple(store[t]), tuple(evict[t]), load[t], produce[t]) for t, i in enumerate(order)
    )
    traffic = Traffic(moved_in, moved_out, dag.problem.compulsory)
    return Plan(capacity, steps, tuple(store[count]), traffic, max(accumulate(change)), certificate, (), timing)


def order_of(dag: Dag, plan: Plan) -> tuple[int, ...]:
    """The operators of a plan in its order."""
    number = {operator.name: i for i, operator in enumerate(dag.problem.operators)}
    return tuple(number[step.operator] for step in plan.steps)


def schedule_of(dag: Dag, plan: Plan) -> Schedule:
    """The order of a plan and what it drops between uses: what it loads a second time."""
    number = {tensor.name: a for a, tensor in enumerate(dag.problem.tensors)}
    used = [0] * len(number)
    dropped = set()
    order = order_of(dag, plan)
    for i, step in zip(order, plan.steps):
        dropped |= {(number[name], used[number[name]] - 1) for name in step.load if used[number[name]]}
        for a in (*dag.inputs[i], *dag.outputs[i]):
            used[a] += 1
    return Schedule(order, frozenset(dropped))
