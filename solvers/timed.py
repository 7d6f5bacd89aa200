"""Operators in slots of time: the variables and rows that the integer programs of order and of traffic share.

x[o, t] = 1 if operator o runs in slot t of 0 … N − 1, where a slot is open to o only if its ancestors fit before and
its descendants after: #ancestors ≤ t ≤ N − 1 − #descendants. COSMA's equations (arXiv:2311.18246) give each tensor
slots of its own and let two operators share one; here every slot has its operator, and nothing is resident before slot
0 that has not been brought in.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from peakline.solvers.dag import Dag, bits
from peakline.solvers.segments import Segment

__all__ = ["ORDER_CONSTRAINTS", "Timed"]


class Timed:
    """The program and its variables x; `size` in grains of `unit` bytes."""

    def __init__(self, dag: Dag, piece: Segment, unit: int, name: str) -> None:
        pulp = self.pulp = import_module("pulp")
        self.dag, self.piece, self.unit = dag, piece, unit
        self.inside = piece.stop & ~piece.start
        self.operators = list(bits(self.inside))
        self.slots = range(len(self.operators))
        self.size = [size // unit for size in dag.size]
        self.program = pulp.LpProblem(name, pulp.LpMinimize)
        last = len(self.operators) - 1
        self.run: dict[tuple[int, int], Any] = {}
        for i in self.operators:
            first = (dag.ancestors[i] & self.inside).bit_count()
            for t in range(first, last + 1 - (dag.descendants[i] & self.inside).bit_count()):
                self.run[i, t] = self.binary(f"x_{i}_{t}")

    def binary(self, name: str) -> Any:
        return self.pulp.LpVariable(name, 0, 1, "Integer")

    def runs(self, i: int, t: int) -> Any:
        """x[i, t], or 0 where that slot is closed to i."""
        return self.run.get((i, t), 0)

    def has_run(self, i: int, t: int) -> Any:
        """Σ_{k ≤ t} x[i, k]: 1 from the slot of i on."""
        return self.pulp.lpSum(self.run[i, k] for k in range(t + 1) if (i, k) in self.run)

    def order(self, values: Any) -> list[int]:
        """The operators by slot."""
        return [i for _, i in sorted((t, i) for (i, t), x in self.run.items() if values[x.name])]


def no_operator_left_out_or_run_twice(m: Timed) -> None:
    """Σ_t x[o, t] = 1 for every operator o."""
    for i in m.operators:
        m.program += m.pulp.lpSum(m.runs(i, t) for t in m.slots) == 1


def no_slot_shared_or_empty(m: Timed) -> None:
    """Σ_o x[o, t] = 1 for every slot t."""
    for t in m.slots:
        m.program += m.pulp.lpSum(m.runs(i, t) for i in m.operators) == 1


def no_operator_before_its_inputs(m: Timed) -> None:
    """Σ_{k ≤ t} x[j, k] ≤ Σ_{k < t} x[i, k] for every i that makes an input of j, and every slot t open to j."""
    for j in m.operators:
        for i in bits(m.dag.before[j] & m.inside):
            for t in m.slots:
                if (j, t) in m.run:
                    m.program += m.has_run(j, t) <= m.has_run(i, t - 1)


ORDER_CONSTRAINTS: tuple[Callable[[Timed], None], ...] = (
    no_operator_left_out_or_run_twice,
    no_slot_shared_or_empty,
    no_operator_before_its_inputs,
)
