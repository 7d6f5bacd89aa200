"""Operators that may as well wait: precedences that no least traffic needs to violate, and that make the graph narrow.

Let operator k make b, and let j read b before any other operator that must run after k. Then some plan with the least
traffic runs k just before j, that is after everything else that j waits for, if

* Σ s_a ≤ s_b over the tensors a that k reads (but for what k alone reads from off-chip, which is there only while k
  runs), and b is an activation if one of them is;
* k fits then: what k touches and j reads is no more than what j touches, or together with all that may be alive when j
  is about to run it is no more than the capacity.

For let a plan run k earlier. Keep k's inputs resident wherever b was, in b's bytes, and run k just before j; where b
was out, they are out, unless they were resident anyway. The stays of an input a become the union of its own and of b's
up to j. Both hold the moment when k ran, so the union has at most as many stays as both together, less one: a is loaded
no more often than a and b were, and stored only if one of them was. Whatever must run after k still does.

A Transformer's decoder shows what it is good for: keys and values of the encoder's result may be projected at any time,
each of twelve projections by itself, but none of them needs to be before its layer asks for it.
"""

from __future__ import annotations

from dataclasses import replace

from peakline.solvers.dag import Dag, Ordered, bits
from peakline.solvers.problem import Problem
from peakline.solvers.schedule.contract import Contracted

__all__ = ["postpone", "waits"]


def postpone(small: Contracted, capacity: int) -> Contracted:
    """The same problem with operators that wait until they are needed; the least traffic is the same."""
    extra = waits(small.dag, capacity)
    if not any(extra):
        return small
    order = _topological(small.dag, extra)
    number = {i: n for n, i in enumerate(order)}
    listed = small.dag.problem
    dag = Dag.of(Problem(listed.tensors, tuple(listed.operators[i] for i in order)))
    renumbered = tuple(sum(1 << number[k] for k in bits(extra[i])) for i in order)
    return replace(small, dag=Ordered.by(dag, renumbered), runs=tuple(small.runs[i] for i in order))


def waits(dag: Dag, capacity: int) -> tuple[int, ...]:
    """For each operator the mask of those that it may as well wait for, in plans within `capacity` bytes.

    Operators are looked at from the last to the first, each among the plans in which those before it wait already.
    """
    now = _Precedences(dag)
    extra = [0] * len(dag)
    for k in reversed(dag.problem.given_order):
        j = now.first_after(k)
        if j is not None and _may_wait(dag, k, j) and _fits(dag, now, k, j, capacity):
            extra[k] = now.before[j] & ~(1 << k) & ~now.ancestors[k]
            now.wait(k, extra[k])
    return tuple(extra)


class _Precedences:
    """Which operator runs before which, while more is decided."""

    def __init__(self, dag: Dag) -> None:
        self.before, self.after = list(dag.before), list(dag.after)
        self.ancestors, self.descendants = list(dag.ancestors), list(dag.descendants)

    def first_after(self, k: int) -> int | None:
        """The operator that waits for `k` and that all others that do wait for as well."""
        for j in bits(self.after[k]):
            if not self.after[k] & ~(self.descendants[j] | 1 << j):
                return j
        return None

    def wait(self, k: int, others: int) -> None:
        """Let `k` run after `others`, none of which comes after `k`."""
        self.before[k] |= others
        above, below = others, self.descendants[k] | 1 << k
        for i in bits(others):
            self.after[i] |= 1 << k
            above |= self.ancestors[i]
        for i in bits(above):
            self.descendants[i] |= below
        for i in bits(below):
            self.ancestors[i] |= above


def _may_wait(dag: Dag, k: int, j: int) -> bool:
    """Whether keeping what `k` reads costs no more room and no more traffic than keeping what `j` reads of it."""
    read = [b for b in dag.outputs[k] if dag.readers[b]]
    if len(read) != 1 or not dag.readers[read[0]] >> j & 1:
        return False
    b = read[0]
    kept = [a for a in dag.inputs[k] if not (dag.off_chip >> a & 1 and dag.users[a] == 1 << k)]
    dear = any(dag.dear >> a & 1 for a in kept)
    return sum(dag.size[a] for a in kept) <= dag.size[b] and (bool(dag.dear >> b & 1) or not dear)


def _fits(dag: Dag, now: _Precedences, k: int, j: int, capacity: int) -> bool:
    """Whether `k` can run where `j` is about to, with all that may be resident then."""
    beside = dag.touch[k] | dag.reads[j]
    if dag.weigh(beside) <= dag.working_sets[j]:
        return True
    alive = 0
    for a, users in enumerate(dag.users):
        made = dag.maker[a]
        later = now.descendants[j] | 1 << j
        if (made < 0 or not later >> made & 1) and users & ~later and dag.readers[a] & ~now.ancestors[j]:
            alive |= 1 << a
    return dag.weigh(alive | beside) <= capacity


def _topological(dag: Dag, extra: tuple[int, ...]) -> list[int]:
    """The operators as listed, but each after what it waits for."""
    order: list[int] = []
    done = 0

    def run(i: int) -> None:
        nonlocal done
        if done >> i & 1:
            return
        done |= 1 << i
        for k in bits(dag.before[i] | extra[i]):
            run(k)
        order.append(i)

    for i in dag.problem.given_order:
        run(i)
    return order
