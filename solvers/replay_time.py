"""The referee of time: executes a plan on one compute unit and one link, and trusts nobody; no solver's code.

The unit runs the operators in the order of the steps; the link takes one transfer at a time, in the order of the
plan's `queue`, or else of its steps (stores of a step before its loads). Either starts what is next as soon as

* its predecessor on the same unit or link has ended;
* what it reads is there: an operator waits for the loads of its inputs, a store for the operator that makes the tensor
  (or the load that brought it), a load of what was stored for that store;
* nobody still needs the bytes that it will fill: whatever earlier steps put there has been read by everyone who reads
  it there, and stored if a step says so.

So a load goes on beside operators of earlier steps exactly where the addresses that it fills lie idle.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf, isclose

from peakline.solvers.plan import Plan
from peakline.solvers.problem import Operator, Problem
from peakline.solvers.replay import ReplayError, replay

__all__ = ["Times", "replay_time"]

_SLACK = 1e-9


@dataclass(frozen=True, slots=True)
class Times:
    """What the plan really takes, in seconds.

    Attributes:
        makespan: when the last operator and the last transfer have ended; compute, transfer: how long unit and link
            are busy.
        runs: (start, end) of the operator of each step.
        transfers: ("load" or "store", tensor, start, end) in the link's order.
    """

    makespan: float
    compute: float
    transfer: float
    runs: tuple[tuple[float, float], ...]
    transfers: tuple[tuple[str, str, float, float], ...]

    @property
    def stall(self) -> float:
        """Seconds that the unit waits."""
        return self.makespan - self.compute


@dataclass(eq=False)
class _Task:
    """Something that takes time, and what must have ended before."""

    kind: str
    name: str
    step: int
    seconds: float
    after: list[_Task] = field(default_factory=list)
    start: float = 0.0
    end: float | None = None


@dataclass(eq=False)
class _Place:
    """A tensor at its bytes [low, high): who put it there and who has used it since."""

    low: int
    high: int
    users: list[_Task]


def replay_time(problem: Problem, plan: Plan) -> Times:
    """Execute the plan in time. It must pass `replay`, which is asked first.

    Raises ReplayError with the step, the tensor and the reason if the plan states no time, an operator says neither
    its seconds nor flops to divide by a rate, the queue is not the plan's transfers or waits for itself, or the
    makespan, compute or transfer that the plan states is not what the replay takes.
    """
    replay(problem, plan)
    timing = plan.time
    if timing is None:
        raise ReplayError(0, None, "the plan states no time")
    if not 0 < timing.bandwidth < inf:
        raise ReplayError(0, None, f"a link of {timing.bandwidth} bytes/s moves nothing, or takes no time")
    for step, entry in enumerate(plan.steps):
        if entry.bypass:
            raise ReplayError(step, entry.bypass[0], "bypassed; time is defined for resident operands alone")
    runs, transfers = _tasks(problem, plan)
    queue = _queued(plan, transfers)
    if timing.overlap:
        _execute(runs, queue)
    else:
        _in_turn(plan, runs, transfers)
    compute, transfer = sum(t.seconds for t in runs), sum(t.seconds for t in transfers)
    makespan = max(t.end or 0.0 for t in (*runs, *transfers))
    for what, said, found in (
        ("makespan", timing.makespan, makespan),
        ("compute", timing.compute, compute),
        ("transfer", timing.transfer, transfer),
    ):
        if not isclose(said, found, rel_tol=_SLACK, abs_tol=1e-30):
            raise ReplayError(len(plan.steps), None, f"the plan states {what} {said} s, the replay takes {found} s")
    if timing.lower_bound > makespan * (1 + _SLACK):
        raise ReplayError(len(plan.steps), None, f"the bound {timing.lower_bound} s is above its plan's {makespan} s")
    return Times(
        makespan, compute, transfer,
        tuple((t.start, t.end or 0.0) for t in runs),
        tuple((t.kind, t.name, t.start, t.end or 0.0) for t in queue),
    )  # fmt: skip


def _seconds(operator: Operator, plan: Plan, step: int) -> float:
    if operator.seconds is not None:
        return operator.seconds
    rate = plan.time.compute_rate if plan.time is not None else None
    if operator.flops is None or not rate or rate <= 0:
        raise ReplayError(step, None, f"operator {operator.name!r} says neither seconds nor flops to divide by a rate")
    return operator.flops / rate


def _tasks(problem: Problem, plan: Plan) -> tuple[list[_Task], list[_Task]]:
    """Runs by step and transfers in the order of the steps, each with what it waits for."""
    operators = {operator.name: operator for operator in problem.operators}
    size = {tensor.name: tensor.bytes for tensor in problem.tensors}
    bandwidth = plan.time.bandwidth if plan.time is not None else inf
    memory = _Memory()
    stored: dict[str, _Task] = {}
    runs: list[_Task] = []
    transfers: list[_Task] = []

    def store(name: str, step: int) -> None:
        task = _Task("store", name, step, size[name] / bandwidth, memory.makers(name))
        memory.use(name, task)
        stored[name] = task
        transfers.append(task)

    for step, entry in enumerate(plan.steps):
        for name in entry.store:
            store(name, step)
        for name in entry.evict:
            memory.leave(name)
        for name, offset in entry.load.items():
            task = _Task("load", name, step, size[name] / bandwidth)
            task.after = [stored[name]] if name in stored else []
            memory.put(name, offset, offset + size[name], task)
            transfers.append(task)
        operator = operators[entry.operator]
        task = _Task("run", operator.name, step, _seconds(operator, plan, step))
        for name in operator.inputs:
            task.after += memory.makers(name)
            memory.use(name, task)
        for name in set(entry.in_place.values()):
            memory.leave(name)
        for name, offset in entry.produce.items():
            memory.put(name, offset, offset + size[name], task)
        runs.append(task)
    for name in plan.final_store:
        store(name, len(plan.steps))
    return runs, transfers


class _Memory:
    """Who has used which bytes: tensors that are there, and traces of those that are gone."""

    def __init__(self) -> None:
        self.here: dict[str, _Place] = {}
        self.gone: list[_Place] = []

    def makers(self, name: str) -> list[_Task]:
        return [self.here[name].users[0]]

    def use(self, name: str, task: _Task) -> None:
        self.here[name].users.append(task)

    def leave(self, name: str) -> None:
        self.gone.append(self.here.pop(name))

    def put(self, name: str, low: int, high: int, task: _Task) -> None:
        """Fill the bytes with a tensor: the task waits for all who used what lay there before."""
        left = []
        for place in self.gone:
            if place.low < high and low < place.high:
                task.after += [user for user in place.users if user is not task]
            if not (low <= place.low and place.high <= high):  # else whoever comes later waits for this task
                left.append(place)
        self.gone = left
        self.here[name] = _Place(low, high, [task])


def _queued(plan: Plan, transfers: list[_Task]) -> list[_Task]:
    """The transfers in the link's order; of several of one kind and tensor the earliest step's first."""
    timing = plan.time
    if timing is None or not timing.queue:
        return transfers
    waiting: dict[tuple[str, str], list[_Task]] = {}
    for task in reversed(transfers):
        waiting.setdefault((task.kind, task.name), []).append(task)
    queue = []
    for kind, name in timing.queue:
        if not waiting.get((kind, name)):
            raise ReplayError(len(plan.steps), name, f"the queue has a {kind} of it that no step makes")
        queue.append(waiting[kind, name].pop())
    for task in transfers:
        if task in waiting.get((task.kind, task.name), []):
            raise ReplayError(task.step, task.name, f"its {task.kind} is missing in the queue")
    return queue


def _execute(runs: list[_Task], queue: list[_Task]) -> None:
    """Start each task as soon as its own line and all that it waits for allow."""
    lines = [(runs, [0]), (queue, [0])]
    free = [0.0, 0.0]
    moved = True
    while moved:
        moved = False
        for n, (line, at) in enumerate(lines):
            while at[0] < len(line) and all(task.end is not None for task in line[at[0]].after):
                task = line[at[0]]
                task.start = max([free[n], *(other.end or 0.0 for other in task.after)])
                task.end = free[n] = task.start + task.seconds
                at[0] += 1
                moved = True
    for line, at in lines:
        if at[0] < len(line):
            task = line[at[0]]
            held = next(other for other in task.after if other.end is None)
            raise ReplayError(
                task.step, task.name,
                f"its {task.kind} waits for the {held.kind} of {held.name!r}, which comes behind it (queue)",
            )  # fmt: skip


def _in_turn(plan: Plan, runs: list[_Task], transfers: list[_Task]) -> None:
    """One thing at a time: the transfers of a step, then its operator."""
    now = 0.0
    by_step: dict[int, list[_Task]] = {}
    for task in transfers:
        by_step.setdefault(task.step, []).append(task)
    for step in range(len(plan.steps) + 1):
        for task in (*by_step.get(step, []), *runs[step : step + 1]):
            task.start, now = now, now + task.seconds
            task.end = now
