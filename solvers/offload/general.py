"""Any tensors, any tiers, any second execution: one linear program that bounds all the others.

It decides per tensor, interval and tier. At the start of step s the fraction d[a,s] of tensor a lies on the device and
q[a,s,p] of it in tier p (a copy may be in both). Between two starts, T[s] seconds apart, m[a,s] of it is made again,
g[a,s,p] goes to tier p and b[a,s,p] comes back.

    minimise  Σ_s T[s]

With binaries it is the exact multi-tier placement; relaxed, a lower bound for every plan that keeps the order of the
steps: plans of `linear` (fractions moved, layers once again), chains whose layers run more often, Checkmate's
schedules, `placement`, and greedy policies are restrictions of it. A second execution is charged a tensor's share of
the step that makes it, and its operands are not asked for; copies may be cut at any byte. What is held in fewer bits is
outside.

Source: lifetime and location of arrays as variables per interval, B. Steiner et al., "OLLA", arXiv:2210.12924;
FlexGen's fractions per tier (arXiv:2303.06865, §4.2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from peakline.solvers.linear import highs
from peakline.solvers.offload.problem import Tier

__all__ = ["CONSTRAINTS", "Array", "General", "general_bound"]

MEGA = 1e6
"""Bytes are counted in millions and seconds in milliseconds, so that coefficients stay within a few powers of ten."""

MILLI = 1e-3


@dataclass(frozen=True, slots=True)
class Array:
    """A tensor.

    Attributes:
        name: for people.
        bytes: its size.
        alive: first and last step in which it exists.
        uses: steps during which all of it must be on the device.
        remake: seconds to make it again; None if it cannot be.
        away: the tiers have it from the start.
    """

    name: str
    bytes: int
    alive: tuple[int, int]
    uses: tuple[int, ...]
    remake: float | None = None
    away: bool = False


@dataclass(frozen=True)
class General:
    """The problem.

    Attributes:
        seconds: of each step.
        fixed: bytes of the device that are taken while each step runs, whatever is decided.
        arrays: what is decided on.
        capacity: bytes of the device.
        tiers: beside it.
    """

    seconds: tuple[float, ...]
    fixed: tuple[int, ...]
    arrays: tuple[Array, ...]
    capacity: int
    tiers: tuple[Tier, ...] = ()


class _Model:
    """The variables of the program."""

    def __init__(self, problem: General, integer: bool) -> None:
        pulp = import_module("pulp")
        self.pulp, self.p = pulp, problem
        self.program = pulp.LpProblem("general", pulp.LpMinimize)
        kind = "Binary" if integer else "Continuous"
        tiers = range(len(problem.tiers))
        self.d: dict[tuple[int, int], Any] = {}
        self.q: dict[tuple[int, int, int], Any] = {}
        self.made: dict[tuple[int, int], Any] = {}
        self.goes: dict[tuple[int, int, int], Any] = {}
        self.comes: dict[tuple[int, int, int], Any] = {}
        for a, array in enumerate(problem.arrays):
            first, last = array.alive
            for s in range(first, last + 1):
                self.d[a, s] = pulp.LpVariable(f"d_{a}_{s}", 0, 1, kind)
                for p in tiers:
                    self.q[a, s, p] = pulp.LpVariable(f"q_{a}_{s}_{p}", 0, 1, kind)
                if s < last:
                    if array.remake is not None:
                        self.made[a, s] = pulp.LpVariable(f"m_{a}_{s}", 0, 1)
                    for p in tiers:
                        self.goes[a, s, p] = pulp.LpVariable(f"g_{a}_{s}_{p}", 0, 1)
                        self.comes[a, s, p] = pulp.LpVariable(f"b_{a}_{s}_{p}", 0, 1)
        self.time = [pulp.LpVariable(f"T_{s}", seconds / MILLI) for s, seconds in enumerate(problem.seconds)]

    def add(self, constraint: Any) -> None:
        self.program += constraint


def no_use_off_the_device(m: _Model) -> None:
    """d[a,s] = 1 in every step s that uses a."""
    for a, array in enumerate(m.p.arrays):
        for s in array.uses:
            m.add(m.d[a, s] == 1)


def nothing_from_nowhere(m: _Model) -> None:
    """d[a,s+1] − d[a,s] ≤ m[a,s] + Σ_p b[a,s,p]; b[a,s,p] ≤ q[a,s,p] + g[a,s,p]; q[a,s+1,p] − q[a,s,p] ≤ g[a,s,p]."""
    tiers = range(len(m.p.tiers))
    for a, array in enumerate(m.p.arrays):
        first, last = array.alive
        for p in tiers:
            if not array.away:
                m.add(m.q[a, first, p] == 0)
        for s in range(first, last):
            again = m.made.get((a, s), 0)
            m.add(m.d[a, s + 1] - m.d[a, s] <= again + m.pulp.lpSum(m.comes[a, s, p] for p in tiers))
            for p in tiers:
                m.add(m.comes[a, s, p] <= m.q[a, s, p] + m.goes[a, s, p])
                if not array.away:
                    m.add(m.q[a, s + 1, p] - m.q[a, s, p] <= m.goes[a, s, p])


def no_moment_beyond_the_capacity(m: _Model) -> None:
    """fixed[s] + Σ_a bytes·d[a,s] ≤ capacity at the start of every step; tiers likewise, but for what is theirs."""
    for s in range(len(m.p.seconds)):
        alive = [a for a, array in enumerate(m.p.arrays) if array.alive[0] <= s <= array.alive[1]]
        size = {a: m.p.arrays[a].bytes / MEGA for a in alive}
        m.add(m.pulp.lpSum(size[a] * m.d[a, s] for a in alive) <= (m.p.capacity - m.p.fixed[s]) / MEGA)
        for p, tier in enumerate(m.p.tiers):
            if tier.capacity is not None:
                held = m.pulp.lpSum(size[a] * m.q[a, s, p] for a in alive if not m.p.arrays[a].away)
                m.add(held <= tier.capacity / MEGA)


def no_copy_and_no_second_execution_for_nothing(m: _Model) -> None:
    """T[s] ≥ seconds[s] + Σ_a remake[a]·m[a,s]; T[s] ≥ Σ_a bytes·g / out[p] and Σ_a bytes·b / back[p]."""
    for s, time in enumerate(m.time):
        again = m.pulp.lpSum((m.p.arrays[a].remake or 0.0) / MILLI * v for (a, t), v in m.made.items() if t == s)
        m.add(time >= m.p.seconds[s] / MILLI + again)
    for p, tier in enumerate(m.p.tiers):
        for moves, rate in ((m.goes, tier.out), (m.comes, tier.back)):
            load: dict[int, list[Any]] = {}
            for (a, s, q), v in moves.items():
                if q == p:
                    load.setdefault(s, []).append(m.p.arrays[a].bytes / rate / MILLI * v)
            for s, terms in load.items():
                m.add(m.time[s] >= m.pulp.lpSum(terms))


CONSTRAINTS: tuple[Callable[[_Model], None], ...] = (
    no_use_off_the_device,
    nothing_from_nowhere,
    no_moment_beyond_the_capacity,
    no_copy_and_no_second_execution_for_nothing,
)


def general_bound(problem: General, *, integer: bool = False, time_limit: float = 60.0) -> float:
    """Seconds that no plan can beat; infinite where none fits.

    Args:
        integer: whole tensors: the exact placement, for problems of a few tensors.
        time_limit: seconds for HiGHS; where they are not enough, what the steps take by themselves is returned.
    """
    model = _Model(problem, integer)
    for forbid in CONSTRAINTS:
        forbid(model)
    model.program.setObjective(model.pulp.lpSum(model.time))
    model.program.solve(highs(timeLimit=time_limit, gapRel=0.0))
    if model.program.sol_status == model.pulp.LpSolutionOptimal:
        return MILLI * float(model.pulp.value(model.program.objective))
    return sum(problem.seconds) if model.program.sol_status != model.pulp.LpSolutionInfeasible else float("inf")
