"""A smaller problem with the same least traffic: operators that may as well run next to their neighbour join it.

Let operator k make tensor b of tensor a alone, nobody else reading a; both are activations.

* *Late.* If b is read by one operator j alone, s_a ≤ s_b, and a fits beside what j reads where j's results will lie,
  k may run just before j: until then a lies where b lay, at no more room and no more traffic.
* *Early.* If s_b ≤ s_a and b fits where what dies with a's maker lay, k may run just after it: b lies where a lay.

What one operator alone touches, a weight, a result that nobody reads, lies there while it runs, and what it moves is
compulsory: it counts as that operator's workspace, so that a convolution makes b of a alone as well. What an operator
that others joined needs beyond its tensors is a workspace too, so that its working set is what it was.
"""

from __future__ import annotations

from dataclasses import dataclass

from peakline.solvers.dag import Dag, bits
from peakline.solvers.problem import Operator, Problem, Tensor
from peakline.solvers.schedule.episodes import Schedule

__all__ = ["Contracted", "contract"]


@dataclass(frozen=True)
class Contracted:
    """`dag` is the smaller problem; its operator i stands for `runs[i]`, its tensor a for `tensors[a]` (−1: none)."""

    dag: Dag
    runs: tuple[tuple[int, ...], ...]
    tensors: tuple[int, ...]

    def expand(self, original: Dag, moves: list[tuple[int, int]]) -> Schedule:
        """The schedule of the original problem that moves (operator, mask evicted before it) of the smaller one are."""
        used = [0] * len(original.size)
        order: list[int] = []
        dropped = set()
        for i, evicted in moves:
            for a in bits(evicted):
                dropped.add((self.tensors[a], used[self.tensors[a]] - 1))
            for k in self.runs[i]:
                order.append(k)
                for a in (*original.inputs[k], *original.outputs[k]):
                    used[a] += 1
        return Schedule(tuple(order), frozenset(dropped))


def contract(dag: Dag) -> Contracted:
    """Join operators to their neighbours until none can be."""
    return _Joining(dag).result()


class _Joining:
    """The problem while operators join."""

    def __init__(self, dag: Dag) -> None:
        self.dag = dag
        self.inputs = [set(read) for read in dag.inputs]
        self.outputs = [set(made) for made in dag.outputs]
        self.readers = [set(bits(mask)) for mask in dag.readers]
        self.maker = list(dag.maker)
        self.runs: dict[int, tuple[int, ...]] = {i: (i,) for i in range(len(dag))}
        self.workspace = [0] * len(dag)
        for a, users in enumerate(dag.users):
            if users.bit_count() == 1:
                alone = users.bit_length() - 1
                self.inputs[alone].discard(a)
                self.outputs[alone].discard(a)
                self.workspace[alone] += dag.size[a]

    def weigh(self, tensors: set[int]) -> int:
        return sum(self.dag.size[a] for a in tensors)

    def working_set(self, i: int) -> int:
        return self.weigh(self.inputs[i] | self.outputs[i]) + self.workspace[i]

    def result(self) -> Contracted:
        waiting = list(self.dag.problem.given_order)
        while waiting:
            k = waiting.pop()
            neighbour = self._late(k) if k in self.runs else None
            if k in self.runs and neighbour is None:
                neighbour = self._early(k)
            if neighbour is not None:
                waiting.append(neighbour)
        return self._problem()

    def _simple(self, k: int) -> tuple[int, int] | None:
        """(a, b) if `k` makes activation b of activation a, and nobody else reads a."""
        if len(self.inputs[k]) != 1 or len(self.outputs[k]) != 1:
            return None
        (a,), (b,) = self.inputs[k], self.outputs[k]
        dear = self.dag.dear >> a & self.dag.dear >> b & 1
        return (a, b) if dear and self.maker[a] >= 0 and self.readers[a] == {k} else None

    def _late(self, k: int) -> int | None:
        """Join `k` to the only reader of its result, if that loses nothing."""
        found = self._simple(k)
        if found is None or len(self.readers[found[1]]) != 1:
            return None
        a, b = found
        (j,) = self.readers[b]
        room = self.working_set(j)
        if self.dag.size[a] > self.dag.size[b] or self.working_set(k) + self.weigh(self.inputs[j] - {b}) > room:
            return None
        self.inputs[j] = (self.inputs[j] - {b}) | {a}
        self.readers[a] = {j}
        return self._joined(k, j, (*self.runs[k], *self.runs[j]), room)

    def _early(self, k: int) -> int | None:
        """Join `k` to the maker of its input, if that loses nothing."""
        found = self._simple(k)
        if found is None:
            return None
        a, b = found
        m = self.maker[a]
        room = self.working_set(m)
        staying = {c for c in self.inputs[m] if len(self.readers[c]) > 1}
        beside = self.weigh(staying | self.outputs[m] - {a})
        if self.dag.size[b] > self.dag.size[a] or self.working_set(k) + beside > room:
            return None
        self.outputs[m] = (self.outputs[m] - {a}) | {b}
        self.maker[b] = m
        return self._joined(k, m, (*self.runs[m], *self.runs[k]), room)

    def _joined(self, k: int, other: int, runs: tuple[int, ...], room: int) -> int:
        self.runs[other] = runs
        del self.runs[k]
        self.workspace[other] = room - self.weigh(self.inputs[other] | self.outputs[other])
        return other

    def _problem(self) -> Contracted:
        listed = self.dag.problem.tensors
        kept = sorted({a for i in self.runs for a in self.inputs[i] | self.outputs[i]})
        left = [i for i in self.dag.problem.given_order if i in self.runs]
        prefix = "workspace"
        while any(tensor.name.startswith(prefix) for tensor in listed):
            prefix += "'"
        spaces = {i: Tensor(f"{prefix} {i}", self.workspace[i]) for i in left if self.workspace[i]}
        operators = tuple(
            Operator(
                self.dag.problem.operators[i].name,
                tuple(listed[a].name for a in sorted(self.inputs[i])),
                (*(listed[a].name for a in sorted(self.outputs[i])), *([spaces[i].name] if i in spaces else ())),
            )
            for i in left
        )
        problem = Problem((*(listed[a] for a in kept), *spaces.values()), operators)
        return Contracted(Dag.of(problem), tuple(self.runs[i] for i in left), (*kept, *(-1 for _ in spaces)))
