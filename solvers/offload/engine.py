"""HiGHS, kept between questions: the rows are handed over once, bounds and objective may change from run to run.

A run starts from the basis of the one before, so that the same program with another budget, or with some variables
fixed, takes a fraction of the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Engine"]


class Engine:
    """A program of PuLP's variables and constraints in HiGHS, minimised.

    Args:
        columns: the variables; bounds are theirs until `bounds` says otherwise.
        rows: the constraints.
    """

    def __init__(self, columns: Sequence[Any], rows: Sequence[Any]) -> None:
        self._highspy = highspy = import_module("highspy")
        self._number = {variable: n for n, variable in enumerate(columns)}
        self._whole: list[int] = []
        self._solver = highspy.Highs()
        self._solver.setOptionValue("output_flag", False)
        self._solver.setOptionValue("threads", 1)
        self._solver.passModel(self._program(columns, rows))
        self.values: NDArray[np.float64] = np.zeros(len(columns))
        self.objective = 0.0

    def _program(self, columns: Sequence[Any], rows: Sequence[Any]) -> Any:
        infinite = self._highspy.kHighsInf
        program = self._highspy.HighsLp()
        program.num_col_, program.num_row_ = len(columns), len(rows)
        program.col_cost_ = np.zeros(len(columns))
        program.col_lower_ = np.asarray([-infinite if v.lowBound is None else v.lowBound for v in columns])
        program.col_upper_ = np.asarray([infinite if v.upBound is None else v.upBound for v in columns])
        lows, ups = [row.getLb() for row in rows], [row.getUb() for row in rows]
        program.row_lower_ = np.asarray([-infinite if low is None else low for low in lows])
        program.row_upper_ = np.asarray([infinite if up is None else up for up in ups])
        starts, index, value = [0], [], []
        for row in rows:
            for variable, coefficient in row.items():
                if coefficient:
                    index.append(self._number[variable])
                    value.append(coefficient)
            starts.append(len(index))
        matrix = program.a_matrix_
        matrix.format_ = self._highspy.MatrixFormat.kRowwise
        matrix.num_col_, matrix.num_row_ = len(columns), len(rows)
        matrix.start_ = np.asarray(starts, dtype=np.int32)
        matrix.index_ = np.asarray(index, dtype=np.int32)
        matrix.value_ = np.asarray(value, dtype=np.float64)
        return program

    def bounds(self, variables: Iterable[Any], low: float | None, up: float | None) -> None:
        """Other bounds of some variables; None for none."""
        infinite = self._highspy.kHighsInf
        numbers = np.asarray([self._number[variable] for variable in variables], dtype=np.int32)
        lows = np.full(len(numbers), -infinite if low is None else low)
        ups = np.full(len(numbers), infinite if up is None else up)
        self._solver.changeColsBounds(len(numbers), numbers, lows, ups)

    def at_most(self, row: int, up: float | None) -> None:
        """Another upper bound of a row without a lower one."""
        infinite = self._highspy.kHighsInf
        self._solver.changeRowBounds(row, -infinite, infinite if up is None else up)

    def minimise(self, objective: Mapping[Any, float]) -> None:
        """Another objective: coefficients of variables, the others' are 0."""
        costs = np.zeros(len(self._number))
        for variable, coefficient in objective.items():
            costs[self._number[variable]] = coefficient
        self._solver.changeColsCost(len(costs), np.arange(len(costs), dtype=np.int32), costs)

    def whole(self, variables: Iterable[Any]) -> None:
        """Let these variables, and no others, be whole numbers."""
        kinds = self._highspy.HighsVarType
        numbers = [self._number[variable] for variable in variables]
        for these, kind in ((self._whole, kinds.kContinuous), (numbers, kinds.kInteger)):
            if these:
                asked = np.full(len(these), int(kind), dtype=np.uint8)
                self._solver.changeColsIntegrality(len(these), np.asarray(these, dtype=np.int32), asked)
        self._whole = numbers

    def run(self, time_limit: float, gap: float = 0.0) -> str:
        """Solve: `optimal`, `feasible` where the time was up with a solution, or `none`; `values` are the solution's.

        Args:
            time_limit: seconds.
            gap: relative, at which whole numbers need not be improved further.
        """
        self._solver.setOptionValue("time_limit", self._solver.getRunTime() + max(time_limit, 0.5))
        self._solver.setOptionValue("mip_rel_gap", gap)
        self._solver.run()
        status, information = self._solver.getModelStatus(), self._solver.getInfo()
        if information.primal_solution_status != int(self._highspy.SolutionStatus.kSolutionStatusFeasible):
            return "none"
        self.values = np.asarray(self._solver.getSolution().col_value)
        self.objective = float(information.objective_function_value)
        return "optimal" if status == self._highspy.HighsModelStatus.kOptimal else "feasible"

    def value(self, variable: Any) -> float:
        """The variable's value in the last solution."""
        return float(self.values[self._number[variable]])

    def worth(self, expression: Mapping[Any, float]) -> float:
        """The value of a sum of coefficients times variables in the last solution."""
        return sum(coefficient * self.value(variable) for variable, coefficient in expression.items())
