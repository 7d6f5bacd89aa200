"""The smallest peak as an integer program over slots of time (COSMA's equations 13 to 15, arXiv:2311.18246).

Beside x[o, t] (`peakline.solvers.timed`): r[a, t] = 1 if tensor a is alive in slot t, and P, the peak in grains.

    min P
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

from peakline.solvers.bounds import grain
from peakline.solvers.contest import Answer, Report
from peakline.solvers.dag import Dag, bits
from peakline.solvers.linear import ProgramSolver, solve
from peakline.solvers.segments import Segment
from peakline.solvers.timed import ORDER_CONSTRAINTS, Timed

__all__ = ["CONSTRAINTS", "Peak", "build", "by_program", "small_enough"]

_MOST_VARIABLES = 12_000  # beyond, the solvers find nothing useful in a minute


class Peak(Timed):
    """The variables of the program of one piece; between `floor` and `most` bytes."""

    def __init__(self, dag: Dag, piece: Segment, floor: int, most: int) -> None:
        super().__init__(dag, piece, grain(dag), "peak")
        touched = {a for i in self.operators for a in bits(dag.touch[i])}
        self.tensors = sorted(touched | set(bits(piece.live)))
        self.alive = {(a, t): self.binary(f"r_{a}_{t}") for a in self.tensors for t in self.slots}
        self.peak = self.pulp.LpVariable("peak", -(-floor // self.unit), most // self.unit, "Integer")


def no_operator_without_its_tensors(m: Peak) -> None:
    """x[o, t] ≤ r[a, t] for every tensor a that o reads or makes."""
    for (i, t), runs in m.run.items():
        for a in bits(m.dag.touch[i]):
            m.program += runs <= m.alive[a, t]


def no_loss_between_uses(m: Peak) -> None:
    """r[a, t] ≥ Σ_{k ≤ t} x[i, k] − Σ_{k < t} x[j, k] for every i that may bring a in and every other reader j.

    What brings a in is its maker, or any reader if a lies off-chip; what is alive at the piece's start is in already,
    and what is read after the piece stays.
    """
    for a in m.tensors:
        readers = list(bits(m.dag.readers[a] & m.inside))
        maker = m.dag.maker[a]
        kept = bool(m.dag.readers[a] & ~m.piece.stop)
        for t in m.slots:
            if m.piece.live >> a & 1:
                for j in readers:
                    m.program += m.alive[a, t] >= 1 - m.has_run(j, t - 1)
            elif maker >= 0:
                for j in readers:
                    m.program += m.alive[a, t] >= m.has_run(maker, t) - m.has_run(j, t - 1)
            else:
                for i, j in permutations(readers, 2):
                    m.program += m.alive[a, t] >= m.has_run(i, t) - m.has_run(j, t - 1)
            if kept:
                brought = [maker] if maker >= 0 and m.inside >> maker & 1 else readers
                for i in brought:
                    m.program += m.alive[a, t] >= (1 if m.piece.live >> a & 1 else m.has_run(i, t))


def no_moment_above_the_peak(m: Peak) -> None:
    """Σ_a s_a r[a, t] ≤ P for every slot t."""
    for t in m.slots:
        m.program += m.pulp.lpSum(m.size[a] * m.alive[a, t] for a in m.tensors) <= m.peak


CONSTRAINTS: tuple[Callable[[Peak], None], ...] = (
    no_operator_without_its_tensors,
    no_loss_between_uses,
    no_moment_above_the_peak,
)


def small_enough(dag: Dag, piece: Segment) -> bool:
    """Whether the program of this piece is of a size that solvers get through."""
    inside = piece.stop & ~piece.start
    count = inside.bit_count()
    return count * (count + sum(1 for users in dag.users if users & inside)) <= _MOST_VARIABLES


def build(dag: Dag, piece: Segment, floor: int, most: int) -> Peak:
    """The program of one piece; a peak of `floor` bytes is as good as any below, `most` bytes are known to do."""
    model = Peak(dag, piece, floor, most)
    model.program += model.peak
    for forbid in ORDER_CONSTRAINTS:
        forbid(model)
    for forbid_ in CONSTRAINTS:
        forbid_(model)
    return model


def by_program(
    report: Report, seconds: float, dag: Dag, piece: Segment, floor: int, most: int, solver: ProgramSolver
) -> Answer:
    """The smallest peak by one of PuLP's solvers or CP-SAT; an entry of a contest."""
    model = build(dag, piece, floor, most)
    solved = solve(model.program, solver, seconds=seconds, least=-(-floor // model.unit))
    bound = solved.bound * model.unit
    if solved.values is None:
        return Answer(None, 0, bound)
    return Answer(tuple(model.order(solved.values)), solved.values["peak"] * model.unit, bound)
