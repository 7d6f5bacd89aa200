"""One integer program, three solvers: HiGHS and CBC through PuLP, and CP-SAT of OR-Tools on the same rows.

What each says is taken with care. PuLP calls a time-out with an incumbent "Optimal" and tells it apart in `sol_status`
alone; CBC may say "Infeasible" when its time is up; HiGHS stops at a relative gap of 1e-4 unless told not to, and its
values are floating; `highspy` 1.15 and `ortools` clash in one process.
"""

from __future__ import annotations

import sys
import threading
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from math import ceil, isfinite
from typing import Any, Literal

__all__ = ["PROGRAM_SOLVERS", "ProgramSolver", "Solved", "available", "highs", "require", "solve"]

ProgramSolver = Literal["highs", "cbc", "cp-sat"]
PROGRAM_SOLVERS: tuple[ProgramSolver, ...] = ("highs", "cbc", "cp-sat")

_PACKAGES: dict[ProgramSolver, tuple[str, ...]] = {
    "highs": ("pulp", "highspy"),
    "cbc": ("pulp",),
    "cp-sat": ("pulp", "ortools"),
}
_GRACE = 2.0  # seconds that HiGHS has to end after an interrupt
_NEAR = 1e-6  # relative distance from a whole number that counts as none


@dataclass(frozen=True, slots=True)
class Solved:
    """`values` of the variables by name (None: no solution found), and what the objective cannot be less than."""

    values: Mapping[str, int] | None
    bound: int


def available(solver: ProgramSolver) -> bool:
    """Whether `solver` can be called on this machine, in this process."""
    try:
        require(solver)
    except ImportError:
        return False
    return True


def require(solver: ProgramSolver) -> None:
    """Raise ImportError naming what is missing for `solver`, or what it cannot run beside in this process."""
    for package in _PACKAGES[solver]:
        try:
            missing = find_spec(package) is None
        except ValueError:  # a package that was made unimportable
            missing = True
        if missing:
            extra = "; it comes with the extra solve" if package == "ortools" else ""
            raise ImportError(f"method {solver}: needs the package {package}, which is not installed{extra}")
    if solver == "cbc" and not _cbc().available():
        raise ImportError("method cbc: PuLP finds no executable of CBC on this machine")
    if solver == "cp-sat" and "highspy" in sys.modules:
        numbers = version("highspy").split(".")
        if (int(numbers[0]), int(numbers[1])) >= (1, 15):
            raise ImportError(
                "method cp-sat: highspy 1.15 and ortools clash in one process; install highspy below 1.15"
            )


def highs(**options: Any) -> Any:
    """PuLP's command for HiGHS, in one thread, silent; a keyboard interrupt ends it at once, not when its time is up.

    While C++ runs in the main thread Python hears no interrupt, so HiGHS gets a thread of its own.
    """
    pulp = import_module("pulp")

    class Interruptible(pulp.HiGHS):  # type: ignore[misc,name-defined]
        def callSolver(self, lp: Any) -> None:
            model = lp.solverModel
            model.HandleUserInterrupt = True
            done = threading.Event()  # a thread whose `join` was interrupted counts as ended in Python before 3.13

            def run() -> None:
                try:
                    model.run()
                finally:
                    done.set()

            try:
                threading.Thread(target=run, daemon=True).start()
                done.wait()
            except KeyboardInterrupt:
                model.cancelSolve()
                done.wait(_GRACE)
                raise

    return Interruptible(msg=False, threads=1, **options)


def solve(program: Any, solver: ProgramSolver, *, seconds: float, least: int = 0) -> Solved:
    """Minimise a `pulp.LpProblem` of integer variables with integer coefficients.

    `least` is known to bound the objective. Each solver has one thread: with several, HiGHS and CP-SAT give another
    solution each time. Raises ImportError as `require`.
    """
    require(solver)
    if solver == "cp-sat":
        return _by_cp_sat(program, seconds, least)
    pulp = import_module("pulp")
    began = time.perf_counter()
    limit = max(0.1, seconds)
    if solver == "highs":
        command = highs(timeLimit=limit, gapRel=0.0, gapAbs=0.5)
    else:
        command = _cbc(timeLimit=limit, gapRel=0.0, threads=1)
    try:
        program.solve(command)
    except pulp.PulpSolverError:
        return Solved(None, least)
    in_time = time.perf_counter() - began < limit
    if program.sol_status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
        return Solved(None, least)
    values = {variable.name: round(variable.value() or 0.0) for variable in program.variables()}
    if program.sol_status == pulp.LpSolutionOptimal and in_time:
        return Solved(values, max(least, _worth(program, values)))
    bound = float(program.solverModel.getInfo().mip_dual_bound) if solver == "highs" else float("-inf")
    return Solved(values, max(least, _up(bound)))


def _cbc(**options: Any) -> Any:
    """PuLP's command for CBC: the one on the path, or the one that PuLP brings until version 4."""
    pulp = import_module("pulp")
    own = pulp.COIN_CMD(msg=False, **options)
    if own.available() or not hasattr(pulp, "PULP_CBC_CMD"):
        return own
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return pulp.PULP_CBC_CMD(msg=False, **options)


def _worth(program: Any, values: Mapping[str, int]) -> int:
    """The objective at whole values, counted anew."""
    terms = program.objective.items()
    return int(program.objective.constant) + sum(int(c) * values[variable.name] for variable, c in terms)


def _up(bound: float) -> int:
    return ceil(bound - _NEAR * max(1.0, abs(bound))) if isfinite(bound) else -(1 << 62)


def _by_cp_sat(program: Any, seconds: float, least: int) -> Solved:
    cp_model = import_module("ortools.sat.python.cp_model")
    pulp = import_module("pulp")
    model = cp_model.CpModel()
    variables = {
        v.name: model.new_int_var(round(v.lowBound or 0), round(v.upBound), v.name) for v in program.variables()
    }

    def total(expression: Any) -> Any:
        listed = list(expression.items())
        names, weights = [variables[v.name] for v, _ in listed], [round(c) for _, c in listed]
        return cp_model.LinearExpr.weighted_sum(names, weights) + round(expression.constant)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # PuLP 4 lists rows otherwise
        rows = list(program.constraints.values())
    for row in rows:
        left = total(row)
        if row.sense == pulp.LpConstraintEQ:
            model.add(left == 0)
        elif row.sense == pulp.LpConstraintLE:
            model.add(left <= 0)
        else:
            model.add(left >= 0)
    model.minimize(total(program.objective))
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = max(0.1, seconds)
    solver.parameters.num_workers = 1
    status = solver.solve(model)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Solved(None, least)
    values = {name: int(solver.value(variable)) for name, variable in variables.items()}
    return Solved(values, max(least, _up(solver.best_objective_bound)))
