"""What the integer programs over gaps share: in which of its gaps between two uses each tensor leaves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from typing import Any

from peakline.solvers.dag import Dag
from peakline.solvers.linear import available, highs
from peakline.solvers.schedule.episodes import gaps

__all__ = ["Gap", "chosen", "enough_leaves", "minimised", "slots", "solver_available"]

Gap = tuple[int, int, int, int]
"""(tensor, k, first step, last step) of what lies between its uses k and k + 1."""


def solver_available() -> bool:
    """Whether PuLP can call HiGHS on this machine."""
    return available("highs")


def slots(dag: Dag, order: Sequence[int]) -> Iterator[tuple[int, int, frozenset[Gap]]]:
    """Each step with its operator, the bytes alive if nothing ever leaves, and the gaps around it."""
    opened: list[list[Gap]] = [[] for _ in range(len(order) + 1)]
    for gap in gaps(dag, order):
        opened[gap[2]].append(gap)
    around: set[Gap] = set()
    for t, i in enumerate(order):
        around = {gap for gap in around if gap[3] >= t} | set(opened[t])
        yield i, dag.working_sets[i] + sum(dag.size[gap[0]] for gap in around), frozenset(around)


def enough_leaves(leaving: Iterable[tuple[int, Any]], excess: int, unit: int) -> Any:
    """Σ min(s, e) y ≥ e over (bytes s, variable y), in units of bytes: of what may leave at least e bytes do.

    Cutting a coefficient to the right-hand side changes no integer point and tightens the relaxation.
    """
    needed = -(-excess // unit)
    return import_module("pulp").lpSum(min(size // unit, needed) * y for size, y in leaving) >= needed


def minimised(program: Any, *, seconds: float, gap: float = 0.0, apart: float | None = None) -> bool:
    """Solve by HiGHS in one thread; whether the program's variables now have the values of a solution.

    It stops within a `gap`, as a share of the objective, or within half of what objectives are `apart`, if not equal.
    """
    pulp = import_module("pulp")
    within = {} if apart is None else {"gapAbs": apart / 2}
    try:
        program.solve(highs(timeLimit=seconds, gapRel=gap, **within))
    except pulp.PulpSolverError:
        return False
    if program.sol_status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
        return False
    return all(variable.value() is not None for variable in program.variables())


def chosen(variable: Any) -> bool:
    """Whether a binary variable is 1; one that is in no row is not."""
    value = variable.value()
    return value is not None and bool(value > 0.5)
