"""The smallest arena as a constraint program: rectangles that do not overlap, by the CP-SAT of OR-Tools."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec

from peakline.solvers.allocation.bounds import grain
from peakline.solvers.allocation.instance import Instance

__all__ = ["require", "solve"]


def require() -> None:
    """Raise ImportError if OR-Tools is not installed, or cannot run beside the highspy loaded in this process."""
    if find_spec("ortools") is None:
        raise ImportError("method cp-sat: needs the package ortools, which is not installed")
    if "highspy" in sys.modules and tuple(int(part) for part in version("highspy").split(".")[:2]) >= (1, 15):
        raise ImportError("method cp-sat: highspy 1.15 and ortools clash in one process; install highspy below 1.15")


def solve(instance: Instance, least: int, most: int, time_limit: float) -> tuple[tuple[int, ...] | None, int]:
    """Run CP-SAT between `least` and `most` bytes: offsets (None if it found none in time), proven lower bound.

    Each buffer is a rectangle of its lifetime and [o_a, o_a + s_a), none overlapping (`add_no_overlap_2d`); the
    living fill the arena at most (`add_cumulative`, redundant); o_a = alignment · k_a or fixed; minimise the arena.

    Raises ImportError as `require`.
    """
    require()
    cp_model = import_module("ortools.sat.python.cp_model")
    unit = grain(instance)
    top = most // unit
    model = cp_model.CpModel()
    arena = model.new_int_var(-(-least // unit), top, "arena")
    lives, ranges, offsets, sizes = [], [], [], []
    for a, b in enumerate(instance.buffers):
        size, step, fixed = b.size // unit, instance.alignments[a] // unit, instance.fixed[a]
        offset = model.new_int_var(0, top - size, f"offset_{a}")
        if step > 1:
            model.add(offset == step * model.new_int_var(0, (top - size) // step, f"step_{a}"))
        if fixed is not None:
            model.add(offset == fixed // unit)
        model.add(offset + size <= arena)
        lives.append(model.new_fixed_size_interval_var(b.lower, b.upper - b.lower, f"life_{a}"))
        ranges.append(model.new_fixed_size_interval_var(offset, size, f"range_{a}"))
        offsets.append(offset)
        sizes.append(size)
    model.add_no_overlap_2d(lives, ranges)
    model.add_cumulative(lives, sizes, arena)
    model.minimize(arena)
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = max(0.1, time_limit)
    solver.parameters.num_workers = 1  # one worker is deterministic
    status = solver.solve(model)
    bound = max(least, round(solver.best_objective_bound) * unit) if status != cp_model.UNKNOWN else least
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None, bound
    return tuple(solver.value(offset) * unit for offset in offsets), bound
