"""Which alternative each operator takes: exhaustively where that is possible, else by improving one after the other.

A choice is solved like any problem (`Choices.expand`). Where all choices are solved, the least of their bounds is the
bound of the whole; a choice whose own bound is no less than the best objective so far need not be solved. Beyond that
the bound is one that holds for every choice (`traffic_of_any_choice`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import islice, product

from peakline.solvers.alternatives import Alternative, Choices
from peakline.solvers.bounds import traffic_bound
from peakline.solvers.dag import Dag, bits
from peakline.solvers.limits import check_capacity, check_time_limit
from peakline.solvers.plan import Certificate, Plan
from peakline.solvers.problem import Operator, Problem, ProblemError
from peakline.solvers.schedule.fixed_order import furthest_use
from peakline.solvers.schedule.solve import Infeasible, NotFound, Progress, schedule

__all__ = ["best_choice", "refuse_too_small", "schedule_choosing", "smallest_capacity", "traffic_of_any_choice"]

_MOST_CHOICES = 256  # all of which are solved
_MOST_BOUNDED = 400  # operators for each of which the tensors alive under any choice are sought
_LARGEST_EXPANSION = 20_000  # parts
_SHARE = 0.25  # of the time left that one choice, or ranking all of them, may take
_RESERVE = 0.6  # of the time left that bounds of choices which are not solved may take at most

Solve = Callable[[Problem, float], Plan]
"""(a choice carried out, seconds) → its plan."""

Floor = Callable[[Problem, bool], float]
"""(a choice carried out, whether it must be quick) → what bounds its plans without solving it."""

Choice = dict[str, str]


def schedule_choosing(
    choices: Choices,
    capacity: int,
    *,
    time_limit: float = 60.0,
    seed: int = 0,
    progress: Callable[[Progress], None] | None = None,
) -> Plan:
    """The least non-compulsory traffic over alternatives, orders and replacements; `Plan.alternatives` says which.

    A keyboard interrupt ends the work early, and the best plan so far is returned with its gap.

    Raises as `schedule`; Infeasible where an operator fits in none of its alternatives.
    """
    check_time_limit(time_limit)
    check_capacity(capacity)
    refuse_too_small(choices, capacity)
    began = time.perf_counter()

    def solve(problem: Problem, seconds: float) -> Plan:
        return schedule(problem, capacity, time_limit=seconds, seed=seed)

    def floor(problem: Problem, quick: bool) -> float:
        return traffic_bound(Dag.of(problem), capacity) if len(problem.operators) <= _MOST_BOUNDED else 0

    def estimate(problem: Problem) -> float:
        return furthest_use(Dag.of(problem), problem.given_order, capacity).cost

    found = best_choice(
        choices, capacity, solve, lambda plan: (plan.certificate.objective, plan.certificate.lower_bound), floor,
        estimate, traffic_of_any_choice(choices, capacity), time_limit, progress or (lambda _: None),
    )  # fmt: skip
    plan = found.plan
    proof = Certificate(
        plan.certificate.objective, min(plan.certificate.objective, math.ceil(found.bound)),
        f"{plan.certificate.method.split('; bound')[0].removesuffix(', interrupted')}, {found.method}",
        time.perf_counter() - began,
    )  # fmt: skip
    return replace(plan, certificate=proof)


@dataclass(frozen=True, slots=True)
class Chosen:
    """The best plan found, a bound on every plan of every choice, and how they came about."""

    plan: Plan
    bound: float
    method: str


def best_choice(
    choices: Choices,
    capacity: int,
    solve: Solve,
    value: Callable[[Plan], tuple[float, float]],
    floor: Floor,
    estimate: Callable[[Problem], float],
    bound_of_all: float,
    time_limit: float,
    report: Callable[[Progress], None] = lambda _: None,
) -> Chosen:
    """The plan with the least `value(plan)[0]`; `value(plan)[1]` bounds its choice, `floor` a choice not yet solved.

    `estimate` says what a choice may cost: the most promising are solved first. `report` is told of every better plan.

    Raises NotFound if no choice could be solved in time.
    """
    began = time.perf_counter()
    options = feasible_options(choices, capacity)
    count = math.prod(len(listed) for listed in options.values())
    work = _Work(choices, solve, value, floor, estimate, began + time_limit)

    def better(cost: float) -> None:
        now = time.perf_counter()
        report(Progress(cost, bound_of_all, now - began, max(0.0, began + time_limit - now)))

    work.better = better
    bound, method = bound_of_all, "alternatives improved one kind after the other; bound: over all choices"
    try:
        if count <= _MOST_CHOICES:
            complete = work.all_of(options, count)
            bound = max(bound_of_all, work.least_bound)
            method = f"{'all' if complete else 'some'} of {count} choices of alternatives"
        else:
            work.improve(options, bound_of_all)
    except KeyboardInterrupt:
        if work.best is None:
            raise
        method = "interrupted; bound: over all choices of alternatives"
    if work.best is None:
        raise NotFound(f"capacity {capacity}: no choice of alternatives could be solved in time; {work.refusal}")
    choice, plan = work.best
    plan = replace(plan, alternatives=choice)
    return Chosen(plan, min(bound, value(plan)[0]), method)


def feasible_options(choices: Choices, capacity: int) -> dict[str, list[str | None]]:
    """For each operator with alternatives those whose parts fit, first None if it fits as it stands."""
    size = {tensor.name: tensor.bytes for tensor in choices.problem.tensors}
    found: dict[str, list[str | None]] = {}
    for operator in choices.problem.operators:
        listed = choices.alternatives.get(operator.name)
        if not listed:
            continue
        whole: list[str | None] = [None] if _working_set(operator, size) <= capacity else []
        parts = [a for a in listed if a.largest_part(size) <= capacity]
        found[operator.name] = whole + [a.name for a in sorted(parts, key=lambda a: len(a.parts))]
    return found


def smallest_capacity(choices: Choices) -> tuple[int, str]:
    """Bytes below which some operator fits in none of its alternatives, and that operator."""
    size = {tensor.name: tensor.bytes for tensor in choices.problem.tensors}
    least = {
        operator.name: min(
            [
                _working_set(operator, size),
                *(a.largest_part(size) for a in choices.alternatives.get(operator.name, ())),
            ]
        )
        for operator in choices.problem.operators
    }
    worst = max(least, key=lambda name: least[name])
    return least[worst], worst


def refuse_too_small(choices: Choices, capacity: int) -> None:
    """Raise Infeasible where an operator fits in none of its alternatives."""
    smallest, operator = smallest_capacity(choices)
    if smallest > capacity:
        ways = len(choices.alternatives.get(operator, ()))
        raise Infeasible(
            f"capacity {capacity}: too small by {smallest - capacity} bytes for operator {operator!r}"
            f"{f', also in each of its {ways} alternatives' if ways else ''}; {smallest} bytes would do",
            capacity, smallest, operator,
        )  # fmt: skip


def _working_set(operator: Operator, size: Mapping[str, int]) -> int:
    return sum(size[name] for name in {*operator.inputs, *operator.outputs})


class _Work:
    """The best choice so far."""

    def __init__(
        self, choices: Choices, solve: Solve, value: Callable[[Plan], tuple[float, float]],
        floor: Floor, estimate: Callable[[Problem], float], deadline: float,
    ) -> None:  # fmt: skip
        self.choices, self.solve, self.value, self.floor, self.deadline = choices, solve, value, floor, deadline
        self.estimate = estimate
        self.best: tuple[Choice, Plan] | None = None
        self.better: Callable[[float], None] = lambda cost: None
        self.cost = math.inf
        self.least_bound = math.inf
        self.refusal = ""
        self.known: dict[tuple[tuple[str, str], ...], float] = {}
        self.floors: dict[tuple[tuple[str, str], ...], float] = {}

    def attempt(self, choice: Choice, seconds: float) -> float:
        """Solve a choice unless it cannot be better; its objective, infinite if there is no plan."""
        key = tuple(sorted(choice.items()))
        if key in self.known:
            return self.known[key]
        least = 0.0
        try:
            problem = self.choices.expand(choice)
            least = self.floor_of(choice)
            if least >= self.cost or len(problem.operators) > _LARGEST_EXPANSION:
                self.least_bound = min(self.least_bound, least)
                self.known[key] = math.inf
                return math.inf
            plan = self.solve(problem, max(0.05, seconds))
        except (Infeasible, ProblemError) as refusal:  # no plan of this choice: it bounds nothing
            self.refusal = str(refusal)
            self.known[key] = math.inf
            return math.inf
        except (NotFound, ValueError) as refusal:
            self.refusal, self.least_bound = str(refusal), min(self.least_bound, least)
            return math.inf
        cost, bound = self.value(plan)
        self.known[key] = cost
        self.least_bound = min(self.least_bound, max(bound, least))
        if cost < self.cost:
            self.cost, self.best = cost, (choice, plan)
            self.better(cost)
        if plan.interrupted:
            raise KeyboardInterrupt
        return cost

    def floor_of(self, choice: Choice) -> float:
        """A bound on the plans of a choice, without solving it."""
        key = tuple(sorted(choice.items()))
        if key not in self.floors:
            self.floors[key] = self.floor(self.choices.expand(choice), False)
        return self.floors[key]

    def all_of(self, options: Mapping[str, list[str | None]], count: int) -> bool:
        """Solve every choice, the most promising first; whether each was solved, or bounded by what is better.

        Each may take a share of the time left; of a choice that is not solved its floor counts.
        """
        ranked: list[tuple[float, int, int, float, Choice]] = []
        began = time.perf_counter()
        for taken in islice(product(*options.values()), count):
            choice = _taken(dict(zip(options, taken)))
            parts = sum(self.parts(name, choice.get(name)) for name in options)
            hurry = time.perf_counter() - began > _SHARE * (self.deadline - began)
            try:
                problem = self.choices.expand(choice)
            except ProblemError as refusal:  # cuts that do not meet: no choice
                self.refusal = str(refusal)
                continue
            promise = 0.0 if hurry else self.estimate(problem)
            ranked.append((promise, parts, len(ranked), 0.0 if hurry else self.floor(problem, True), choice))
        ranked.sort()
        solved = 0
        until = self.deadline - self.reserve([choice for *_, choice in ranked])
        for n, (_, _, _, floor, choice) in enumerate(ranked):
            left = until - time.perf_counter()
            if self.best is not None and left <= 0:
                break
            solved = n + 1
            if floor >= self.cost:
                self.least_bound = min(self.least_bound, floor)
                continue
            self.attempt(choice, max(_SHARE * left, left / (count - n)))
            if self.cost == 0:
                self.least_bound = 0
                return True
        return self.bounded(ranked[solved:])

    def reserve(self, ranked: list[Choice]) -> float:
        """Seconds to keep for bounding all choices but one; what the first one's bound takes tells."""
        began = time.perf_counter()
        if len(ranked) > 1:
            self.floor_of(ranked[0])
        now = time.perf_counter()
        return min((now - began) * 1.3 * (len(ranked) - 1), _RESERVE * max(0.0, self.deadline - now))

    def bounded(self, unsolved: list[tuple[float, int, int, float, Choice]]) -> bool:
        """Bound what was not solved, the least floor first; whether none of it can be better than the best."""
        below = False
        for _, _, _, floor, choice in sorted(unsolved, key=lambda entry: entry[3]):
            if floor < self.cost and time.perf_counter() < self.deadline:
                floor = max(floor, self.floor_of(choice))
            self.least_bound = min(self.least_bound, floor)
            below |= floor < self.cost
        return not below

    def parts(self, operator: str, taken: str | None) -> int:
        return 1 if taken is None else len(self.choices.named(operator, taken).parts)

    def improve(self, options: Mapping[str, list[str | None]], bound: float) -> None:
        """Fewest parts first; then another alternative for all operators of a kind, or one; as long as it helps."""
        current = {name: listed[0] for name, listed in options.items()}
        kinds: dict[tuple[object, ...], list[str]] = {}
        for name in options:
            kinds.setdefault(self.kind(name), []).append(name)
        left = self.deadline - time.perf_counter()
        self.attempt(_taken(current), 0.25 * left)
        groups = [*kinds.values(), *([name] for names in kinds.values() if len(names) > 1 for name in names)]
        again = True
        while again and time.perf_counter() < self.deadline:
            again = False
            for names in groups:
                for other in options[names[0]]:
                    left = self.deadline - time.perf_counter()
                    if left <= 0 or self.cost <= bound:
                        return
                    before = self.cost
                    trial = {**current, **dict.fromkeys(names, other)}
                    if trial != current and self.attempt(_taken(trial), min(left, 0.1 * left + 0.5)) < before:
                        current, again = trial, True

    def kind(self, name: str) -> tuple[object, ...]:
        """Equal for operators with the same alternatives on tensors of the same sizes."""
        operator = next(o for o in self.choices.problem.operators if o.name == name)
        size = {t.name: t.bytes for t in self.choices.problem.tensors}
        return (
            tuple(size[n] for n in operator.inputs), tuple(size[n] for n in operator.outputs),
            tuple((a.name, len(a.parts)) for a in self.choices.alternatives[name]),
        )  # fmt: skip


def _taken(choice: Mapping[str, str | None]) -> Choice:
    return {name: one for name, one in choice.items() if one is not None}


# -- a bound over all choices -----------------------------------------------------------------------------------------


def traffic_of_any_choice(choices: Choices, capacity: int) -> int:
    """Non-compulsory bytes that every plan of every choice moves.

    Let f be an operator without alternatives. When it runs, every part of what makes its inputs has run, and of what
    makes theirs, as far back as operators have one output each (`_wholly_before`). Of what these touch, f's
    descendants still read all of a tensor if parts that cannot run before f read all its slices, whatever the
    alternatives (`_still_read`). Slices may be out one by one, so the excess over the capacity costs at least
    max(e, 2 e − what costs no store), e = bytes alive − M.
    """
    problem = choices.problem
    if len(problem.operators) > _MOST_BOUNDED:
        return 0
    dag = Dag.of(problem)
    best = 0
    for f, operator in enumerate(problem.operators):
        if choices.alternatives.get(operator.name):
            continue
        idle = _wholly_before(dag, choices, f) & _still_read(dag, choices, f) & ~dag.touch[f]
        excess = dag.working_sets[f] + dag.weigh(idle) - capacity
        best = max(best, excess, 2 * excess - dag.weigh(idle & ~dag.dear))
    return best


def _wholly_before(dag: Dag, choices: Choices, f: int) -> int:
    """Tensors touched by operators all of whose parts have run when `f` runs."""
    found, seen = 0, 0
    stack = list(bits(dag.before[f]))
    while stack:
        i = stack.pop()
        operator = dag.problem.operators[i]
        if seen >> i & 1 or not all(_useful(operator, a) for a in choices.alternatives.get(operator.name, ())):
            continue
        seen |= 1 << i
        found |= dag.touch[i]
        stack += bits(dag.before[i])
    return found


def _useful(operator: Operator, alternative: Alternative) -> bool:
    """Whether every part makes, or is needed for, some of the operator's only output."""
    if len(operator.outputs) != 1:
        return False
    slices = alternative.slices
    needed = {
        n for n in (operator.outputs[0], *slices) if n not in slices or slices[n][0].tensor == operator.outputs[0]
    }
    for _ in alternative.parts:  # backwards through tensors of its own
        for part in alternative.parts:
            if needed & set(part.outputs):
                needed |= set(part.inputs)
    return all(needed & set(part.outputs) for part in alternative.parts)


def _still_read(dag: Dag, choices: Choices, f: int) -> int:
    """Tensors all of whose slices some part reads that cannot run before `f`, in every alternative."""
    problem = dag.problem
    names = [tensor.name for tensor in problem.tensors]
    late = {names[a] for a in dag.outputs[f]}  # tensors no slice of which exists before f has run
    needed = 0
    for k in problem.given_order:
        if not dag.descendants[f] >> k & 1:
            continue
        operator = problem.operators[k]
        ways = [_late_part(operator, a, late) for a in choices.alternatives.get(operator.name, ())]
        if not late & set(operator.inputs):
            continue
        ways.append((set(operator.inputs), set(operator.outputs)))
        reads = set.intersection(*(read for read, _ in ways))
        late |= set.intersection(*(made for _, made in ways))
        needed |= sum(1 << a for a, name in enumerate(names) if name in reads)
    return needed


def _late_part(operator: Operator, alternative: Alternative, late: set[str]) -> tuple[set[str], set[str]]:
    """(inputs that late parts read whole, outputs that late parts alone make) of an alternative."""
    slices = alternative.slices
    count = {split.tensor: len(split.bytes) for split in alternative.splits}

    def whole(name: str) -> str:
        return slices[name][0].tensor if name in slices else name

    waiting = set(late)
    parts = []
    for _ in alternative.parts:
        for part in alternative.parts:
            if part not in parts and any(whole(name) in waiting for name in part.inputs):
                parts.append(part)
                waiting |= {name for name in part.outputs if name not in operator.outputs and name not in slices}
    read = {name for part in parts for name in part.inputs}
    made = {name for part in parts for name in part.outputs}

    def covered(name: str, touched: set[str]) -> bool:
        return name in touched or (name in count and all(f"{name}[{k}]" in touched for k in range(count[name])))

    return {n for n in operator.inputs if covered(n, read)}, {n for n in operator.outputs if covered(n, made)}
