"""The smallest arena as a mixed-integer linear program: exact, and slow beyond some dozens of buffers.

Variables, in units of g = `bounds.grain` bytes: the arena M; for buffer a its offset o_a (a multiple of its alignment:
o_a = alignment_a/g · k_a with integer k_a where it has one); for buffers a, b alive together above_ab ∈ {0, 1}, 1 if a
lies above b. Minimise M. The big constant is U, the arena of a placement already known: no better one is higher.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from math import ceil
from typing import Any

from peakline.solvers.allocation.bounds import grain
from peakline.solvers.allocation.instance import Instance
from peakline.solvers.allocation.sections import Sections
from peakline.solvers.linear import highs

__all__ = ["CONSTRAINTS", "build", "require", "solve"]

_MOST_PAIRS = 50_000  # binaries; HiGHS finds nothing useful long before
_TOLERANCE = 1e-6  # of HiGHS's integrality, relative


def require() -> None:
    """Raise ImportError naming the package if PuLP or HiGHS is not installed."""
    for package in ("pulp", "highspy"):
        if find_spec(package) is None:
            raise ImportError(f"method milp: needs the package {package}, which is not installed")


class _Model:
    """The variables of one program, and the numbers its constraints read."""

    def __init__(self, instance: Instance, least: int, most: int) -> None:
        pulp = import_module("pulp")
        self.instance, self.unit = instance, grain(instance)
        self.least, self.most = least // self.unit, most // self.unit
        self.size = [b.size // self.unit for b in instance.buffers]
        near = Sections.of(instance.buffers).neighbours
        self.pairs = [(a, b) for a, others in enumerate(near) for b in others if a < b]
        if len(self.pairs) > _MOST_PAIRS:
            raise ValueError(f"method milp: at most {_MOST_PAIRS} pairs alive together, got {len(self.pairs)}")
        self.problem = pulp.LpProblem("allocation", pulp.LpMinimize)
        self.arena = pulp.LpVariable("arena", self.least, self.most)
        self.offset: list[Any] = []
        for a, size in enumerate(self.size):
            step = instance.alignments[a] // self.unit
            if step > 1:
                self.offset.append(step * pulp.LpVariable(f"step_{a}", 0, (self.most - size) // step, "Integer"))
            else:
                self.offset.append(1 * pulp.LpVariable(f"offset_{a}", 0, self.most - size))
        self.above = {(a, b): pulp.LpVariable(f"above_{a}_{b}", cat="Binary") for a, b in self.pairs}


def no_top_above_the_arena(m: _Model) -> None:
    """o_a + s_a ≤ M for every buffer a."""
    for a, size in enumerate(m.size):
        m.problem += m.offset[a] + size <= m.arena, f"no_top_above_the_arena_{a}"


def no_overlap_below(m: _Model) -> None:
    """o_a + s_a ≤ o_b + U · above_ab: a lies below b unless it lies above it. For a, b alive together."""
    for a, b in m.pairs:
        m.problem += m.offset[a] + m.size[a] <= m.offset[b] + m.most * m.above[a, b], f"no_overlap_below_{a}_{b}"


def no_overlap_above(m: _Model) -> None:
    """o_b + s_b ≤ o_a + U · (1 − above_ab): b lies below a if a lies above it. For a, b alive together."""
    for a, b in m.pairs:
        m.problem += m.offset[b] + m.size[b] <= m.offset[a] + m.most * (1 - m.above[a, b]), f"no_overlap_above_{a}_{b}"


def no_move_of_a_fixed_buffer(m: _Model) -> None:
    """o_a = f_a for every buffer a with a fixed offset f_a."""
    for a, fixed in enumerate(m.instance.fixed):
        if fixed is not None:
            m.problem += m.offset[a] == fixed // m.unit, f"no_move_of_a_fixed_buffer_{a}"


CONSTRAINTS: tuple[Callable[[_Model], None], ...] = (
    no_top_above_the_arena,
    no_overlap_below,
    no_overlap_above,
    no_move_of_a_fixed_buffer,
)


def build(instance: Instance, least: int, most: int) -> _Model:
    """The program for arenas from `least` to `most` bytes, `most` being one that is known to do."""
    model = _Model(instance, least, most)
    model.problem += model.arena
    for forbid in CONSTRAINTS:
        forbid(model)
    return model


def solve(instance: Instance, least: int, most: int, time_limit: float) -> tuple[tuple[int, ...] | None, int]:
    """Run HiGHS: offsets in bytes, None if it found none in time, and its proven lower bound in bytes.

    Raises ImportError if PuLP or highspy is missing, ValueError if there are too many pairs for such a model.
    """
    require()
    pulp = import_module("pulp")
    model = build(instance, least, most)
    solver = highs(timeLimit=max(0.1, time_limit))
    model.problem.solve(solver)
    bound = _proven(model)
    proven = max(least, model.unit * ceil(bound - _TOLERANCE * max(1.0, abs(bound))))
    if model.problem.sol_status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
        return None, proven
    return _repaired(model), proven


def _proven(model: _Model) -> float:
    """The arena in units that HiGHS proved necessary; what was known before if it proved nothing.

    `sol_status` tells an optimum from an incumbent at the time limit; `status` says "Optimal" of both.
    """
    pulp = import_module("pulp")
    if model.problem.sol_status == pulp.LpSolutionOptimal:
        return float(pulp.value(model.arena))
    bound = float(model.problem.solverModel.getInfo().mip_dual_bound)
    return bound if model.least <= bound <= model.most else float(model.least)


def _repaired(model: _Model) -> tuple[int, ...]:
    """Integer offsets from HiGHS's floating ones: buffers by their offset, each as low as those before it allow."""
    pulp = import_module("pulp")
    item = model.instance
    values = [float(pulp.value(offset)) for offset in model.offset]
    offsets = [0] * len(values)
    done: list[int] = []
    for a in sorted(range(len(values)), key=lambda i: (values[i], i)):
        b, fixed = item.buffers[a], item.fixed[a]
        under = [i for i in done if item.buffers[i].lower < b.upper and b.lower < item.buffers[i].upper]
        top = max((offsets[i] + item.buffers[i].size for i in under), default=0)
        offsets[a] = fixed if fixed is not None else -(-top // item.alignments[a]) * item.alignments[a]
        done.append(a)
    return tuple(offsets)
