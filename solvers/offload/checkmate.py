"""Any operator again at any time: Checkmate's integer program, exact, for graphs of some twenty operators.

Operators run in a fixed order. In stage t operator t runs for the first time; before it, any earlier ones may run
again. Binaries: R[t,i], operator i runs in stage t; S[t,i], its result is held from stage t−1 into stage t; F[t,d,i],
the result of d is freed in stage t right after i ran. U[t,i] is the memory while i runs in stage t.

    minimise  Σ_t Σ_i seconds[i]·R[t,i]

Source: P. Jain et al., "Checkmate: Breaking the Memory Wall with Optimal Tensor Rematerialization", arXiv:1910.02653,
§4.2–§4.7 (frontier-advancing stages; equations 1a–1e for the schedule, 2–7 for memory and frees).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from peakline.solvers.linear import highs

__all__ = ["CONSTRAINTS", "Node", "Rerun", "checkmate", "replay"]


TOLERANCE = 1e-5
"""Share of the largest result by which the solver's memory may pass the budget."""


@dataclass(frozen=True, slots=True)
class Node:
    """An operator.

    Attributes:
        name: for people.
        seconds: of one run.
        bytes: of its result.
        reads: numbers of earlier operators whose results it reads.
        work: further bytes while it runs.
    """

    name: str
    seconds: float
    bytes: int
    reads: tuple[int, ...] = ()
    work: int = 0


@dataclass(frozen=True)
class Rerun:
    """A schedule: operators in the order in which they run, its seconds, and seconds that none can beat."""

    order: tuple[int, ...]
    seconds: float
    lower_bound: float


class _Model:
    """The variables of the program; R and S only where a stage can have them."""

    def __init__(self, nodes: tuple[Node, ...], budget: int) -> None:
        pulp = import_module("pulp")
        self.pulp, self.nodes, self.budget = pulp, nodes, budget
        self.unit = max(max((node.bytes for node in nodes), default=1), 1)
        self.program = pulp.LpProblem("checkmate", pulp.LpMinimize)
        n = len(nodes)
        self.users = [[j for j in range(n) if i in nodes[j].reads] for i in range(n)]
        self.R = {(t, i): pulp.LpVariable(f"R_{t}_{i}", cat="Binary") for t in range(n) for i in range(t + 1)}
        self.S = {(t, i): pulp.LpVariable(f"S_{t}_{i}", cat="Binary") for t in range(n) for i in range(t)}
        self.F = {
            (t, d, i): pulp.LpVariable(f"F_{t}_{d}_{i}", cat="Binary")
            for t in range(n)
            for i in range(t + 1)
            for d in (*nodes[i].reads, i)
        }
        self.U = {(t, i): pulp.LpVariable(f"U_{t}_{i}", 0) for t in range(n) for i in range(t + 1)}

    def held(self, t: int, i: int) -> Any:
        """S[t,i]; nothing is held beyond the last stage, or before it was made."""
        return self.S.get((t, i), 0)

    def add(self, constraint: Any) -> None:
        self.program += constraint


def no_operator_without_its_operands(m: _Model) -> None:
    """R[t,j] ≤ R[t,i] + S[t,i] for every i that j reads (1b)."""
    for t, j in m.R:
        for i in m.nodes[j].reads:
            m.add(m.R[t, j] <= m.R[t, i] + m.held(t, i))


def no_result_from_nowhere(m: _Model) -> None:
    """S[t,i] ≤ R[t−1,i] + S[t−1,i] (1c)."""
    for t, i in m.S:
        m.add(m.S[t, i] <= m.R[t - 1, i] + m.held(t - 1, i))


def no_stage_without_its_operator(m: _Model) -> None:
    """R[t,t] = 1 (frontier-advancing stages, §4.6)."""
    for t in range(len(m.nodes)):
        m.add(m.R[t, t] == 1)


def no_free_of_what_is_needed(m: _Model) -> None:
    """F[t,d,i] = R[t,i]·(1 − S[t+1,d])·Π_{later users j of d} (1 − R[t,j]), linearised (6a–6c)."""
    for (t, d, i), freed in m.F.items():
        later = [m.R[t, j] for j in m.users[d] if i < j <= t]
        hazards = (1 - m.R[t, i]) + m.held(t + 1, d) + m.pulp.lpSum(later)
        m.add(1 - freed <= hazards)
        m.add((2 + len(later)) * (1 - freed) >= hazards)


def no_moment_beyond_the_budget(m: _Model) -> None:
    """U[t,0] = Σ S·bytes + bytes[0]·R[t,0]; U[t,i+1] = U[t,i] − freed by i + bytes[i+1]·R[t,i+1] (2, 3); U ≤ budget."""
    size = [node.bytes / m.unit for node in m.nodes]
    for t in range(len(m.nodes)):
        start = m.pulp.lpSum(size[i] * m.S[t, i] for i in range(t))
        for i in range(t + 1):
            own = size[i] * m.R[t, i]
            if i == 0:
                m.add(m.U[t, 0] == start + own)
            else:
                freed = m.pulp.lpSum(size[d] * m.F[t, d, i - 1] for d in (*m.nodes[i - 1].reads, i - 1))
                m.add(m.U[t, i] == m.U[t, i - 1] - freed + own)
            m.add(m.U[t, i] + m.nodes[i].work / m.unit * m.R[t, i] <= m.budget / m.unit)


CONSTRAINTS: tuple[Callable[[_Model], None], ...] = (
    no_operator_without_its_operands,
    no_result_from_nowhere,
    no_stage_without_its_operator,
    no_free_of_what_is_needed,
    no_moment_beyond_the_budget,
)


def checkmate(nodes: tuple[Node, ...], budget: int, *, time_limit: float = 60.0) -> Rerun | None:
    """The fastest schedule within `budget` bytes; None where none was found.

    Args:
        time_limit: seconds for HiGHS; where it is not enough, `lower_bound` is what all operators take once.
    """
    model = _Model(nodes, budget)
    for forbid in CONSTRAINTS:
        forbid(model)
    slowest = max((node.seconds for node in nodes), default=1.0) or 1.0
    model.program.setObjective(model.pulp.lpSum(nodes[i].seconds / slowest * r for (_, i), r in model.R.items()))
    model.program.solve(highs(timeLimit=time_limit, gapRel=0.0))
    if model.program.sol_status not in (model.pulp.LpSolutionOptimal, model.pulp.LpSolutionIntegerFeasible):
        return None
    value = model.pulp.value
    order = tuple([i for t in range(len(nodes)) for i in range(t + 1) if value(model.R[t, i]) > 0.5])
    seconds, peak = replay(nodes, order)
    if peak > budget + TOLERANCE * model.unit:
        raise AssertionError("the solver's schedule breaks a rule of the problem")
    proven = model.program.sol_status == model.pulp.LpSolutionOptimal
    return Rerun(order, seconds, seconds if proven else sum(node.seconds for node in nodes))


def replay(nodes: tuple[Node, ...], order: tuple[int, ...]) -> tuple[float, int]:
    """Seconds and peak bytes of operators run in this order; a result is held until its last reader.

    Raises:
        ValueError: an operator runs without something that it reads, or one never runs.
    """
    last: dict[int, int] = {}
    version: dict[int, int] = {}
    for place, i in enumerate(order):
        for d in nodes[i].reads:
            if d not in version:
                raise ValueError(f"{nodes[i].name} runs without the result of {nodes[d].name}")
            last[version[d]] = place
        version[i] = place
        last[place] = place
    if len(version) < len(nodes):
        missing = next(node.name for i, node in enumerate(nodes) if i not in version)
        raise ValueError(f"{missing} never runs")
    held = peak = 0
    for place, i in enumerate(order):
        held += nodes[i].bytes
        peak = max(peak, held + nodes[i].work)
        held -= sum(nodes[order[made]].bytes for made, end in last.items() if end == place)
    return sum(nodes[i].seconds for i in order), peak
