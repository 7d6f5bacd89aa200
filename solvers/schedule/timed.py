"""The joint problem as an integer program over slots of time (F1), for PuLP's solvers and CP-SAT.

Beside x[o, t] (`peakline.solvers.timed`): r[a, t] = 1 if tensor a is resident in slot t; w[a] = 1 if activation a is
ever stored; R[a, t] = 1 if a is loaded before slot t. All sizes are in grains.

    min Σ_a s_a (w[a] + Σ_t R[a, t]) − compulsory first loads

Addresses are not part of it: a reloaded tensor may come back elsewhere, so they are found afterwards (`pack.py`).
COSMA's own program has them in, as pairs above or below each other in every slot, which is what makes it large.
"""

from __future__ import annotations

from collections.abc import Callable

from peakline.solvers.bounds import grain
from peakline.solvers.contest import Answer, Report
from peakline.solvers.dag import Dag, bits
from peakline.solvers.linear import ProgramSolver, solve
from peakline.solvers.schedule.episodes import traffic
from peakline.solvers.segments import Segment
from peakline.solvers.timed import ORDER_CONSTRAINTS, Timed

__all__ = ["CONSTRAINTS", "Traffic", "build", "by_program", "small_enough"]

_MOST_VARIABLES = 12_000  # beyond, the solvers find nothing useful in a minute


class Traffic(Timed):
    """The variables of the program of one piece."""

    def __init__(self, dag: Dag, piece: Segment, capacity: int, floor: int) -> None:
        super().__init__(dag, piece, grain(dag), "traffic")
        self.capacity, self.floor = capacity // self.unit, -(-floor // self.unit)
        touched = {a for i in self.operators for a in bits(dag.touch[i])}
        self.tensors = sorted(touched | set(bits(piece.live)))
        self.resident = {(a, t): self.binary(f"r_{a}_{t}") for a in self.tensors for t in self.slots}
        self.load = {(a, t): self.binary(f"R_{a}_{t}") for a in self.tensors for t in self.slots}
        self.stored = {a: self.binary(f"w_{a}") for a in self.tensors if dag.dear >> a & 1}
        self.first_loads = [a for a in self.tensors if dag.off_chip >> a & 1 and not piece.live >> a & 1]  # compulsory
        self.moved = self.pulp.lpSum(
            [self.size[a] * self.load[a, t] for a in self.tensors for t in self.slots]
            + [self.size[a] * w for a, w in self.stored.items()]
        ) - sum(self.size[a] for a in self.first_loads)

    def made_by(self, a: int) -> int | None:
        """The operator of the piece that makes a; None for what exists before it."""
        maker = self.dag.maker[a]
        return maker if maker >= 0 and self.inside >> maker & 1 else None


def no_operator_without_its_tensors(m: Traffic) -> None:
    """x[o, t] ≤ r[a, t] for every tensor a that o reads or makes."""
    for (i, t), runs in m.run.items():
        for a in bits(m.dag.touch[i]):
            m.program += runs <= m.resident[a, t]


def no_residency_before_creation(m: Traffic) -> None:
    """r[a, t] ≤ Σ_{k ≤ t} x[maker of a, k]: implied for whole solutions, it tightens the relaxation."""
    for (a, t), resident in m.resident.items():
        maker = m.made_by(a)
        if maker is not None:
            m.program += resident <= m.has_run(maker, t)


def no_return_without_a_load(m: Traffic) -> None:
    """r[a, t] ≤ r[a, t − 1] + x[maker of a, t] + R[a, t], where r[a, −1] = 1 for what is alive at the piece's start."""
    for (a, t), resident in m.resident.items():
        before = m.resident[a, t - 1] if t else m.piece.live >> a & 1
        maker = m.made_by(a)
        m.program += resident <= before + (m.runs(maker, t) if maker is not None else 0) + m.load[a, t]


def no_load_of_what_was_never_stored(m: Traffic) -> None:
    """R[a, t] ≤ w[a] for activations; all else lies off-chip anyway, or must be stored in any plan."""
    for (a, _), load in m.load.items():
        if a in m.stored:
            m.program += load <= m.stored[a]


def no_load_before_creation(m: Traffic) -> None:
    """R[a, t] ≤ Σ_{k < t} x[maker of a, k]: implied as well."""
    for (a, t), load in m.load.items():
        maker = m.made_by(a)
        if maker is not None:
            m.program += load <= m.has_run(maker, t - 1)


def no_more_than_the_capacity(m: Traffic) -> None:
    """Σ_a s_a r[a, t] ≤ M for every slot t."""
    for t in m.slots:
        m.program += m.pulp.lpSum(m.size[a] * m.resident[a, t] for a in m.tensors) <= m.capacity


def no_less_than_is_proven(m: Traffic) -> None:
    """Σ_a s_a (w[a] + Σ_t R[a, t]) − compulsory ≥ what the order-free bounds say: the cut that closes small trees."""
    if m.floor > 0:
        m.program += m.moved >= m.floor


CONSTRAINTS: tuple[Callable[[Traffic], None], ...] = (
    no_operator_without_its_tensors,
    no_residency_before_creation,
    no_return_without_a_load,
    no_load_of_what_was_never_stored,
    no_load_before_creation,
    no_more_than_the_capacity,
    no_less_than_is_proven,
)


def small_enough(dag: Dag, piece: Segment) -> bool:
    """Whether the program of this piece is of a size that solvers get through."""
    inside = piece.stop & ~piece.start
    count = inside.bit_count()
    tensors = sum(1 for users in dag.users if users & inside)
    return count * (count + 2 * tensors) <= _MOST_VARIABLES


def build(dag: Dag, piece: Segment, capacity: int, floor: int = 0) -> Traffic:
    """The program of one piece for a scratchpad of `capacity` bytes, `floor` bytes being proven."""
    model = Traffic(dag, piece, capacity, floor)
    model.program += model.moved
    for forbid in ORDER_CONSTRAINTS:
        forbid(model)
    for forbid_ in CONSTRAINTS:
        forbid_(model)
    return model


def by_program(
    report: Report, seconds: float, dag: Dag, piece: Segment, capacity: int, floor: int, solver: ProgramSolver
) -> Answer:
    """The least traffic by one of PuLP's solvers or CP-SAT; an entry of a contest."""
    model = build(dag, piece, capacity, floor)
    solved = solve(model.program, solver, seconds=seconds, least=model.floor)
    bound = solved.bound * model.unit
    if solved.values is None:
        return Answer(None, 0, bound)
    order = model.order(solved.values)
    resident = {key: bool(solved.values[variable.name]) for key, variable in model.resident.items()}
    moves, dropped = [], set()
    used = [0] * len(dag.size)
    done = piece.start
    for t, i in enumerate(order):
        evicted = 0
        for a in model.tensors:
            was = resident[a, t - 1] if t else bool(piece.live >> a & 1)
            began = used[a] or piece.live >> a & 1
            if was and began and not resident[a, t] and dag.readers[a] & ~done:
                evicted |= 1 << a
                dropped.add((a, used[a]))
        for a in bits(dag.touch[i]):
            used[a] += 1
        done |= 1 << i
        moves.append((i, evicted))
    return Answer(tuple(moves), traffic(dag, dropped), bound)
