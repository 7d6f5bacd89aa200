"""The referee: executes a plan against its problem and trusts nobody. Shares no code with the solvers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from peakline.solvers.plan import Plan, Step
from peakline.solvers.problem import Operator, Problem, Tensor

__all__ = ["Replay", "ReplayError", "replay"]


class ReplayError(ValueError):
    """A plan that does not do what it must: at which step, with which tensor, and why.

    `step` is the position of the step, its number of steps for what comes after the last one.
    """

    def __init__(self, step: int, tensor: str | None, reason: str) -> None:
        self.step, self.tensor, self.reason = step, tensor, reason
        subject = f"tensor {tensor!r}: " if tensor is not None else ""
        super().__init__(f"step {step}: {subject}{reason}")


@dataclass(frozen=True, slots=True)
class Replay:
    """What the plan really does, recounted, in bytes.

    Attributes:
        load, store: bytes moved in and out.
        compulsory: bytes that any plan moves.
        peak: most bytes resident at once.
        arena: highest address that any resident reaches.
        resident: bytes resident while each step's operator runs.
    """

    load: int
    store: int
    compulsory: int
    peak: int
    arena: int
    resident: tuple[int, ...]

    @property
    def non_compulsory(self) -> int:
        """Bytes moved that a large enough scratchpad would not move."""
        return self.load + self.store - self.compulsory


@dataclass
class _Machine:
    """A scratchpad and the memory behind it."""

    problem: Problem
    capacity: int
    step: int = 0
    resident: dict[str, int] = field(default_factory=dict)  # offset of each tensor in the scratchpad
    off_chip: set[str] = field(default_factory=set)
    made: set[str] = field(default_factory=set)
    moved_in: int = 0
    moved_out: int = 0
    arena: int = 0

    def __post_init__(self) -> None:
        self.tensors: dict[str, Tensor] = {tensor.name: tensor for tensor in self.problem.tensors}
        self.off_chip = {t.name for t in self.problem.tensors if t.role in ("input", "parameter")}

    def refuse(self, tensor: str | None, reason: str) -> ReplayError:
        return ReplayError(self.step, tensor, reason)

    def known(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise self.refuse(name, "is not a tensor of the problem")
        return self.tensors[name]

    def store(self, name: str) -> None:
        tensor = self.known(name)
        if name not in self.resident:
            raise self.refuse(name, "stored while it is not resident")
        self.off_chip.add(name)
        self.moved_out += tensor.bytes

    def evict(self, name: str) -> None:
        self.known(name)
        if name not in self.resident:
            raise self.refuse(name, "evicted while it is not resident")
        del self.resident[name]

    def load(self, name: str, offset: int) -> None:
        tensor = self.known(name)
        if name in self.resident:
            raise self.refuse(name, "loaded while it is resident")
        if name not in self.off_chip:
            raise self.refuse(name, "loaded though it is not off-chip: " + self._why_absent(name))
        self._place(tensor, offset)
        self.moved_in += tensor.bytes

    def bypass(self, operator: Operator, name: str) -> None:
        tensor = self.known(name)
        if name not in operator.inputs:
            raise self.refuse(name, f"bypassed though {operator.name!r} does not read it")
        if name in self.resident:
            raise self.refuse(name, "bypassed while it is resident")
        if name not in self.off_chip:
            raise self.refuse(name, "bypassed though it is not off-chip: " + self._why_absent(name))
        self.moved_in += tensor.bytes

    def run(self, operator: Operator, step: Step) -> int:
        """Run the operator; returns the bytes resident meanwhile."""
        produce = dict(step.produce)
        for name in operator.inputs:
            if name not in self.resident and name not in step.bypass:
                raise self.refuse(name, f"read by {operator.name!r} while it is not resident: {self._why_absent(name)}")
        if set(produce) != set(operator.outputs):
            odd = sorted(set(produce) ^ set(operator.outputs))[0]
            known = "is an output without an offset" if odd in operator.outputs else "is not an output"
            raise self.refuse(odd, f"{known} of {operator.name!r}")
        for name in step.in_place:
            self._check_in_place(operator, name, step.in_place[name], produce)
        held = self.resident_bytes
        for name in operator.outputs:
            if name in self.resident:
                raise self.refuse(name, f"made again by {operator.name!r} while it is resident")
            self._place(self.known(name), produce[name], within=step.in_place.get(name))
            held += 0 if name in step.in_place else self.known(name).bytes
            self.made.add(name)
        for name in set(step.in_place.values()):
            del self.resident[name]
        return held

    def _check_in_place(self, operator: Operator, name: str, below: str, produce: dict[str, int]) -> None:
        if name not in operator.outputs:
            raise self.refuse(name, f"in place though it is not an output of {operator.name!r}")
        if below not in operator.inputs or below not in self.resident:
            raise self.refuse(name, f"in place of {below!r}, which is not a resident input of {operator.name!r}")
        if operator.in_place is not None and (name, below) not in operator.in_place:
            raise self.refuse(name, f"in place of {below!r}, which the operator {operator.name!r} does not offer")
        low = self.resident[below]
        if not low <= produce[name] <= low + self.tensors[below].bytes - self.tensors[name].bytes:
            raise self.refuse(name, f"at {produce[name]}, not within the bytes of {below!r} that it is to overwrite")

    def _why_absent(self, name: str) -> str:
        if name in self.off_chip:
            return "it was not loaded"
        return "it was evicted without a store" if name in self.made else "nobody has made it yet (order violated)"

    def _place(self, tensor: Tensor, offset: int, within: str | None = None) -> None:
        if offset < 0:
            raise self.refuse(tensor.name, f"offset must be at least 0, got {offset}")
        top = offset + tensor.bytes
        if top > self.capacity:
            raise self.refuse(tensor.name, f"[{offset}, {top}) passes the capacity of {self.capacity}")
        for other, bottom in self.resident.items():
            if other != within and offset < bottom + self.tensors[other].bytes and bottom < top:
                raise self.refuse(
                    tensor.name,
                    f"[{offset}, {top}) overlaps {other!r} at [{bottom}, {bottom + self.tensors[other].bytes})",
                )
        self.resident[tensor.name] = offset
        self.arena = max(self.arena, top)

    @property
    def resident_bytes(self) -> int:
        return sum(self.tensors[name].bytes for name in self.resident)


def replay(problem: Problem, plan: Plan) -> Replay:
    """Execute the plan step by step and recount what it moves and holds.

    Raises ReplayError with the step, the tensor and the reason if an input is missing, two residents overlap, the
    capacity is passed, an operator runs twice, too early or never, a final output is not off-chip at the end, or the
    traffic, the peak or the certificate that the plan states is not what the replay counts.
    """
    operators = {operator.name: operator for operator in problem.operators}
    machine = _Machine(problem, plan.capacity)
    ran: set[str] = set()
    resident: list[int] = []
    for machine.step, step in enumerate(plan.steps):
        operator = operators.get(step.operator)
        if operator is None:
            raise machine.refuse(None, f"{step.operator!r} is not an operator of the problem")
        if step.operator in ran and "recompute" not in plan.allow:
            raise machine.refuse(None, f"operator {step.operator!r} runs a second time")
        for option, used in (("bypass", step.bypass), ("in-place", step.in_place)):
            if used and option not in plan.allow:
                raise machine.refuse(next(iter(used)), f"{option} is used, which the plan does not allow itself")
        _move(machine, step)
        for name in _each_once(machine, step.bypass, "bypass"):
            machine.bypass(operator, name)
        resident.append(machine.run(operator, step))
        ran.add(step.operator)
    machine.step = len(plan.steps)
    for name in operators:
        if name not in ran:
            raise machine.refuse(None, f"operator {name!r} never runs")
    for name in _each_once(machine, plan.final_store, "final_store"):
        machine.store(name)
    for tensor in problem.tensors:
        if tensor.role == "output" and tensor.name not in machine.off_chip:
            raise machine.refuse(tensor.name, "an output that does not end off-chip")
    done = Replay(
        machine.moved_in, machine.moved_out, _compulsory(problem), max(resident), machine.arena, tuple(resident)
    )
    _compare(machine, plan, done)
    return done


def _move(machine: _Machine, step: Step) -> None:
    for name in _each_once(machine, step.store, "store"):
        machine.store(name)
    for name in _each_once(machine, step.evict, "evict"):
        machine.evict(name)
    for name, offset in step.load.items():
        machine.load(name, offset)


def _each_once(machine: _Machine, names: Iterable[str], action: str) -> list[str]:
    listed = list(names)
    for position, name in enumerate(listed):
        if name in listed[:position]:
            raise machine.refuse(name, f"listed twice in {action}")
    return listed


def _compulsory(problem: Problem) -> int:
    """Each input or parameter that anybody reads once, each output once."""
    total = 0
    for tensor in problem.tensors:
        used = any(tensor.name in operator.inputs for operator in problem.operators)
        if tensor.role == "output" or (tensor.role != "activation" and used):
            total += tensor.bytes
    return total


def _compare(machine: _Machine, plan: Plan, done: Replay) -> None:
    stated = plan.traffic
    for what, said, counted in (
        ("traffic.load", stated.load, done.load),
        ("traffic.store", stated.store, done.store),
        ("traffic.compulsory", stated.compulsory, done.compulsory),
        ("peak", plan.peak, done.peak),
    ):
        if said != counted:
            raise machine.refuse(None, f"the plan states {what} {said}, the replay counts {counted}")
    proof = plan.certificate
    if proof.objective not in (done.non_compulsory, done.peak):
        raise machine.refuse(
            None,
            f"the certificate's objective {proof.objective} is neither the non-compulsory traffic "
            f"{done.non_compulsory} nor the peak {done.peak}",
        )
    if proof.lower_bound > proof.objective:
        raise machine.refuse(None, f"the certificate's bound {proof.lower_bound} is above its plan's {proof.objective}")
