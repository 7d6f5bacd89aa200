"""How many bytes must lie outside the scratchpad while an operator is yet to run, whatever the order from here.

*Flows.* Let j be an operator to come and S the set that has run when j starts: closed under predecessors, without j and
its descendants. A tensor alive now need not be alive then, but something made of it is, if a descendant of j still
reads that. For each j a flow runs along the graph from operators to their readers: through a tensor that j does not
touch at most its bytes, out of an operator at least what flows in, into the descendants of j as much as comes. What
flows out of S is at least what flows out of any smaller set, and at most the bytes of the tensors alive, so that

    bytes alive while j runs ≥ working set(j) + Σ_{operators i that have run, or must have} (outflow(i) − inflow(i)).

Any such flow will do; the one taken fills tensors greedily from the last operator to the first. By duality the best
one is a minimum cut, the least that can be alive at j.

*Chains.* Of two operators j ≺ k the excess at k is paid apart from that at j, but for tensors that may lie outside from
j to k: those that nobody between them must touch. Their flow is taken off (`Floors.after`), and for the store, which a
tensor pays once, that of all tensors that may have existed at j.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from peakline.solvers.bounds import forced_alive, grain, read_by_descendants
from peakline.solvers.dag import Dag, bits
from peakline.solvers.segments import Segment

__all__ = ["NEVER", "Floors", "Vector", "peak_floor"]

Vector = npt.NDArray[np.int64]

NEVER = -(1 << 40)
"""Excess, in grains, of an operator that has run."""

_MOST_SUMS = 1 << 17  # grains of the capacity; tables of subset sums have four times as many bits
_MOST_CHAINED = 700  # operators of a segment: the pairs of a larger one take too long


def peak_floor(dag: Dag) -> int:
    """Bytes that are alive at once in every order, by flows: at least the largest of `live_floors`."""
    floors = Floors(dag, Segment(0, dag.everything, 0), 0, chains=False)
    return int(floors.excess.max()) * floors.unit


class Floors:
    """Flows of all operators of a segment; vectors hold one number per operator j of `operators`, in grains.

    Attributes:
        unit: bytes of a grain, the greatest common divisor of all sizes.
        operators: those of the segment.
        column: position of each operator in the vectors.
        excess: bytes that must be out at j before anything has run, less the capacity's.
        cheap: of the tensors behind the excess, what costs no store.
        grows: what running an operator adds to the excess of those that do not descend from it.
        after: traffic that must follow j.
    """

    def __init__(self, dag: Dag, segment: Segment, capacity: int, *, chains: bool = True) -> None:
        self.dag, self.segment, self.unit = dag, segment, grain(dag)
        self.operators = list(bits(segment.stop & ~segment.start))
        self.column = {j: n for n, j in enumerate(self.operators)}
        self.size = [size // self.unit for size in dag.size]
        self.capacity = capacity // self.unit
        self.inside = segment.stop & ~segment.start
        self.topological = [i for i in dag.problem.given_order if i in self.column]
        made = [a for i in self.topological for a in dag.outputs[i]]
        self.carriers = [*(a for a in bits(segment.live) if dag.maker[a] >= 0), *made]
        self.sink = {a: self.zero() for a in self.carriers}
        self.edge = {(a, i): self.zero() for a in self.carriers for i in bits(dag.readers[a] & self.inside)}
        self.grows = {i: self.zero() for i in self.operators}
        for j in self.operators:
            self._fill(j)
        self.excess, self.cheap = self._at_start()
        for j in self.operators:  # what an ancestor of j adds is counted from the start
            self.grows[j][[self.column[k] for k in bits(dag.descendants[j] & self.inside)]] = 0
        self._remaining: dict[tuple[int, int], tuple[Vector, Vector]] = {}
        self._sums: dict[int, tuple[int, int]] = {}
        self._rounded: dict[tuple[int, int, int], int] = {}
        self.after = self.zero()
        if chains and len(self.operators) <= _MOST_CHAINED:
            self._chain()
        self.chained = bool(self.after.any())

    def zero(self) -> Vector:
        """A vector of zeros."""
        return np.zeros(len(self.operators), dtype=np.int64)

    def _fill(self, j: int) -> None:
        """A flow for j, greedily from the last operator to the first."""
        dag, column = self.dag, self.column[j]
        later = dag.descendants[j]
        spare: dict[int, int] = {}  # what the results of an operator carry on, not yet claimed by its inputs
        touched = dag.touch[j]

        def fill(a: int) -> int:
            if touched >> a & 1:
                return 0
            if dag.readers[a] & later:
                self.sink[a][column] = self.size[a]
                return self.size[a]
            room = self.size[a]
            for i in bits(dag.readers[a] & self.inside):
                share = min(room, spare.get(i, 0))
                if share:
                    self.edge[a, i][column] = share
                    spare[i] -= share
                    room -= share
            return self.size[a] - room

        for i in reversed(self.topological):
            if i == j or later >> i & 1:
                continue
            spare[i] = sum(fill(b) for b in dag.outputs[i])
        for a in self.carriers:
            if not self.inside >> dag.maker[a] & 1:
                fill(a)
        for i, left in spare.items():  # what no input claimed, the operator adds
            self.grows[i][column] = left

    def _at_start(self) -> tuple[Vector, Vector]:
        dag, later, alive = self.dag, read_by_descendants(self.dag), forced_alive(self.dag)
        excess, cheap = self.zero(), self.zero()
        self.off_chip_live: dict[int, Vector] = {}
        self.off_chip_out: dict[int, Vector] = {}
        touched = {a for j in self.operators for a in bits(dag.touch[j])} | set(bits(self.segment.live))
        for a in touched & set(bits(dag.off_chip)):
            self.off_chip_live[a], self.off_chip_out[a] = self.zero(), self.zero()
        for n, j in enumerate(self.operators):
            must = alive[j] & dag.off_chip
            idle = sum(self.size[a] for a in bits(must & ~dag.touch[j]))
            adds = sum(int(self.grows[i][n]) for i in bits(dag.ancestors[j] & self.inside))
            excess[n] = dag.working_sets[j] // self.unit + adds + idle - self.capacity
            cheap[n] = idle
            for a in bits(later[j] & dag.off_chip):
                if a in touched and not must >> a & 1:
                    self.off_chip_live[a][n] = self.size[a]
                if a in touched and not dag.touch[j] >> a & 1:
                    self.off_chip_out[a][n] = self.size[a]
        for a in self.carriers:
            if not dag.dear >> a & 1:
                cheap += self.flow(a, self.inside)
            if not self.inside >> dag.maker[a] & 1:
                excess += self.flow(a, self.inside)
        for a in bits(self.segment.live & dag.off_chip):
            excess += self.off_chip_live[a]
            cheap += self.off_chip_live[a]
        return excess, cheap

    def flow(self, a: int, left: int) -> Vector:
        """What flows out of a tensor to the readers in `left` and to the descendants of each j."""
        total = self.sink[a].copy()
        for i in bits(self.dag.readers[a] & left & self.inside):
            total += self.edge[a, i]
        return total

    def remaining(self, a: int, left: int) -> tuple[Vector, Vector]:
        """What flows out of a tensor while `left` has not run; and of that what may stay outside until j runs."""
        key = (a, self.dag.readers[a] & left)
        found = self._remaining.get(key)
        if found is None:
            full = self.off_chip_out[a] if self.dag.off_chip >> a & 1 else self.flow(a, left)
            returns = np.array([bool(key[1] & self.dag.ancestors[j]) for j in self.operators])
            found = self._remaining[key] = (full, np.where(returns, 0, full))
        return found

    def to_come(self, excess: Vector, cheap: Vector) -> int:
        """Bytes that must still be moved: max over j of max(e, 2 e − cheap) + after(j), e rounded up to what may leave.

        Taking e bytes out and back costs one byte a byte for what is cheap (off-chip anyway, to be stored anyway, or
        stored before), two for the rest.
        """
        least = 2 * excess - cheap
        np.maximum(least, excess, out=least)
        if self.chained:
            np.maximum(least, 0, out=least, where=excess > NEVER // 2)
            least += self.after
        top = int(least.argmax())
        if least[top] <= 0:
            return 0
        e, c = int(excess[top]), int(cheap[top])
        if e <= 0:
            return int(least[top]) * self.unit
        key = (top, e, min(e, c))
        found = self._rounded.get(key)
        if found is None:
            found = self._rounded[key] = self._round(*key)
        return max(int(least[top]), found + int(self.after[top])) * self.unit

    def _round(self, column: int, excess: int, cheap: int) -> int:
        """Least traffic of tensors that together have `excess` grains, and those that are stored what is not cheap."""
        if self.capacity > _MOST_SUMS:
            return 0
        if column not in self._sums:
            self._sums[column] = self._subset_sums(self.operators[column])
        every, dear = self._sums[column]
        leaving, stored = every >> excess, dear >> max(0, excess - cheap)
        if not leaving or not stored:
            return 0  # beyond the table
        first = (leaving & -leaving).bit_length() - 1
        return 2 * excess + first + (stored & -stored).bit_length() - 1 - min(excess, cheap)

    def _subset_sums(self, j: int) -> tuple[int, int]:
        """Bits at the sums that tensors alive beside `j` can have: all of them, and the activations among them."""
        dag = self.dag
        made_later = dag.descendants[j] | 1 << j
        before = dag.ancestors[j] | 1 << j
        every = dear = 1
        end = (1 << 4 * self.capacity) - 1
        for a, size in enumerate(self.size):
            made = dag.maker[a]
            gone = (made >= 0 and made_later >> made & 1) or not dag.readers[a] & ~before
            if not gone and not dag.touch[j] >> a & 1:
                every |= every << size & end
                if dag.dear >> a & 1:
                    dear |= dear << size & end
        return every, dear

    def _chain(self) -> None:
        """`after`: for each j the largest sum along a chain j ≺ k ≺ … of excesses that are paid apart."""
        dag = self.dag
        later = read_by_descendants(dag)
        flow: dict[int, Vector] = {}
        for a in self.carriers:
            flow[a] = self.sink[a] + sum(
                (np.where(self._descends(i), 0, self.edge[a, i]) for i in bits(dag.readers[a] & self.inside)),
                self.zero(),
            )
        for a in self.off_chip_out:
            forced = np.array([bool(later[j] >> a & 1 and not dag.touch[j] >> a & 1) for j in self.operators])
            flow[a] = np.where(forced, self.size[a], 0)
        flow = {a: amount for a, amount in flow.items() if amount.any()}
        reach = {u: self._descends(u) | self._is(u) for u in self.operators}
        for j in reversed(self.topological):
            column = self.column[j]
            below = self._descends(j) & (self.excess > 0)
            if self.excess[column] <= 0 or not below.any():
                continue
            shared, known = self.zero(), self.cheap.copy()
            from_here = dag.descendants[j] | 1 << j
            for a, amount in flow.items():
                if dag.maker[a] >= 0 and from_here >> dag.maker[a] & 1:
                    continue  # made later
                between = list(bits(dag.users[a] & from_here & self.inside))
                stays = np.where(np.logical_or.reduce([reach[u] for u in between]), 0, amount) if between else amount
                shared += stays
                if dag.dear >> a & 1:
                    known += amount
            apart = np.maximum(self.excess - shared, 0) + np.maximum(self.excess - known, 0)
            self.after[column] = int(np.where(below, apart + self.after, 0).max())

    def _descends(self, i: int) -> npt.NDArray[np.bool_]:
        """Which operators descend from `i`."""
        found = np.zeros(len(self.operators), dtype=np.bool_)
        found[[self.column[k] for k in bits(self.dag.descendants[i] & self.inside)]] = True
        return found

    def _is(self, i: int) -> npt.NDArray[np.bool_]:
        found = np.zeros(len(self.operators), dtype=np.bool_)
        found[self.column[i]] = True
        return found
