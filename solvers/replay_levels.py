"""The referee of plans over several levels: executes one against its problem and trusts nobody; no solver's code."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isclose

from peakline.solvers.levels.plan import LevelsPlan, Move
from peakline.solvers.problem import Problem
from peakline.solvers.replay import ReplayError

__all__ = ["LevelsReplay", "replay_levels"]


@dataclass(frozen=True, slots=True)
class LevelsReplay:
    """What the plan really moves over each link, and holds in each level, in bytes.

    Attributes:
        load, store: towards the operators, and away from them, link by link.
        compulsory: bytes that any plan moves over each link.
        peak: most bytes in each level at once.
        cost: weighted non-compulsory traffic.
    """

    load: tuple[int, ...]
    store: tuple[int, ...]
    compulsory: int
    peak: tuple[int, ...]
    cost: float

    def non_compulsory(self, link: int) -> int:
        """Bytes that large enough levels would not move over the link, numbered from 1."""
        return self.load[link - 1] + self.store[link - 1] - self.compulsory


@dataclass
class _Machine:
    problem: Problem
    plan: LevelsPlan
    step: int = 0
    made: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        count = len(self.plan.levels)
        self.size = {tensor.name: tensor.bytes for tensor in self.problem.tensors}
        self.places: list[dict[str, int]] = [{} for _ in range(count)]  # offset of each copy, level by level
        self.off = {t.name for t in self.problem.tensors if t.role in ("input", "parameter")}
        self.load, self.store, self.peak = [0] * count, [0] * count, [0] * count

    def refuse(self, tensor: str | None, reason: str) -> ReplayError:
        return ReplayError(self.step, tensor, reason)

    def has(self, name: str, level: int) -> bool:
        return name in (self.places[level - 1] if level <= len(self.places) else self.off)

    def move(self, move: Move) -> None:
        """Do what a move says, or refuse it."""
        name, level, last = move.tensor, move.level, len(self.places)
        if name not in self.size:
            raise self.refuse(name, "is not a tensor of the problem")
        highest = last + 1 if move.kind == "store" else last
        lowest = 2 if move.kind == "store" else 1
        if not lowest <= level <= highest:
            raise self.refuse(name, f"{move.kind} at level {level}; there {move.kind}s go to {lowest} to {highest}")
        if move.kind == "evict":
            if not self.has(name, level):
                raise self.refuse(name, f"evicted from level {level}, where it is not")
            del self.places[level - 1][name]
            return
        source = level + 1 if move.kind == "load" else level - 1
        if not self.has(name, source):
            raise self.refuse(name, f"{move.kind} from level {source}, where it is not")
        if self.has(name, level):
            raise self.refuse(name, f"{move.kind} to level {level}, where it is already")
        if move.kind == "load":
            self.load[level - 1] += self.size[name]
        else:
            self.store[level - 2] += self.size[name]
        if level > last:
            if move.offset is not None:
                raise self.refuse(name, "has an offset off-chip")
            self.off.add(name)
        else:
            self.place(name, level, move.offset)

    def place(self, name: str, level: int, offset: int | None) -> None:
        if offset is None or offset < 0:
            raise self.refuse(name, f"offset at level {level} must be at least 0, got {offset}")
        top, capacity = offset + self.size[name], self.plan.levels[level - 1].capacity
        if top > capacity:
            raise self.refuse(name, f"[{offset}, {top}) passes level {level}'s capacity of {capacity}")
        for other, low in self.places[level - 1].items():
            if offset < low + self.size[other] and low < top:
                raise self.refuse(name, f"[{offset}, {top}) overlaps {other!r} at level {level}")
        self.places[level - 1][name] = offset
        self.peak[level - 1] = max(self.peak[level - 1], sum(self.size[n] for n in self.places[level - 1]))


def replay_levels(problem: Problem, plan: LevelsPlan) -> LevelsReplay:
    """Execute the plan move by move and recount what every link moves.

    Raises ReplayError with the step, the tensor and the reason if a copy is missing, two copies of a level overlap, a
    capacity is passed, an operator runs twice, too early or never, an output does not end off-chip, or the traffic or
    the certificate that the plan states is not what the replay counts.
    """
    machine = _Machine(problem, plan)
    operators = {operator.name: operator for operator in problem.operators}
    ran: set[str] = set()
    for machine.step, step in enumerate(plan.steps):
        operator = operators.get(step.operator)
        if operator is None:
            raise machine.refuse(None, f"{step.operator!r} is not an operator of the problem")
        if operator.name in ran:
            raise machine.refuse(None, f"operator {operator.name!r} runs a second time")
        for move in step.moves:
            machine.move(move)
        for name in operator.inputs:
            if not machine.has(name, 1):
                raise machine.refuse(name, f"read by {operator.name!r} while it is not at level 1")
        if set(step.produce) != set(operator.outputs):
            odd = sorted(set(step.produce) ^ set(operator.outputs))[0]
            raise machine.refuse(odd, f"the outputs of {operator.name!r} are not those that have offsets")
        for name in operator.outputs:
            machine.place(name, 1, step.produce[name])
        ran.add(operator.name)
    machine.step = len(plan.steps)
    for name in operators:
        if name not in ran:
            raise machine.refuse(None, f"operator {name!r} never runs")
    for move in plan.final:
        machine.move(move)
    for tensor in problem.tensors:
        if tensor.role == "output" and tensor.name not in machine.off:
            raise machine.refuse(tensor.name, "an output that does not end off-chip")
    return _compared(machine)


def _compared(machine: _Machine) -> LevelsReplay:
    problem, plan = machine.problem, machine.plan
    read = {name for operator in problem.operators for name in operator.inputs}
    compulsory = sum(
        t.bytes for t in problem.tensors if t.role == "output" or (t.role != "activation" and t.name in read)
    )
    if len(plan.traffic) != len(plan.levels):
        raise machine.refuse(None, f"the plan states the traffic of {len(plan.traffic)} links of {len(plan.levels)}")
    cost = 0.0
    for link, (level, said) in enumerate(zip(plan.levels, plan.traffic), 1):
        counted = machine.load[link - 1], machine.store[link - 1], compulsory
        if (said.load, said.store, said.compulsory) != counted:
            raise machine.refuse(
                None, f"the plan states load, store, compulsory {said.load, said.store, said.compulsory} over link "
                f"{link}, the replay counts {counted}",
            )  # fmt: skip
        cost += level.weight * (machine.load[link - 1] + machine.store[link - 1] - compulsory)
    proof = plan.certificate
    if not isclose(proof.objective, cost, rel_tol=1e-9, abs_tol=1e-9):
        raise machine.refuse(None, f"the certificate's objective {proof.objective} is not the replay's {cost}")
    if proof.lower_bound > cost * (1 + 1e-9):
        raise machine.refuse(None, f"the certificate's bound {proof.lower_bound} is above its plan's {cost}")
    return LevelsReplay(tuple(machine.load), tuple(machine.store), compulsory, tuple(machine.peak), cost)
