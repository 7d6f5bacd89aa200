"""Bounds on traffic where plans may bypass, overwrite inputs or run operators again.

*Relief.* An operator j saves at most S_j bytes of room: with bypass its inputs, in place the outputs that may lie
within inputs. So any plan within M bytes is a plan without options within M + max S, even if every operator j also
needs a workspace of max S − S_j bytes. What is proven of that problem (`relieved`) holds for this one; where outputs
always may lie in place, it is the same problem.

*The fullest operator.* While j first runs, of the tensors alive whatever the order (`forced_alive`) at most M bytes are
resident (`traffic_bound_allowing`). The options take something off that, or make leaving cheaper:

* *bypass*: an input of j need not be resident. If nobody else reads it and it lies off-chip anyway, that is free: it is
  read once. Else somebody else's reading, before or after, is a load besides; an activation is stored as well.
* *in-place*: the outputs of j that may lie within inputs take no room of their own.
* *recompute*: activations may go without a store and be made anew.

*Cuts.* What is made anew is made of something (`remaking_bound`).
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from math import inf
from time import perf_counter

from peakline.solvers.bounds import cheapest_spill, forced_alive
from peakline.solvers.dag import Dag, bits
from peakline.solvers.problem import Problem
from peakline.solvers.schedule.workspace import with_workspaces

__all__ = ["relieved", "remaking_bound", "savings", "traffic_bound_allowing"]


def savings(dag: Dag, allow: Sequence[str]) -> tuple[int, ...]:
    """Bytes of room that each operator saves at most: S_j."""
    if "bypass" in allow:  # an input may be bypassed, or hold an output that is no larger
        return tuple(dag.weigh(read) for read in dag.reads)
    if "in-place" not in allow:
        return (0,) * len(dag)
    return tuple(_most_in_place(dag, i, dag.outputs[i], 0) for i in range(len(dag)))


def _most_in_place(dag: Dag, i: int, outputs: Sequence[int], taken: int) -> int:
    """Most bytes of these outputs that lie within inputs not taken, one in each."""
    if not outputs:
        return 0
    b, *rest = outputs
    found = _most_in_place(dag, i, rest, taken)
    for made, a in dag.overlays[i]:
        if made == b and not taken >> a & 1:
            found = max(found, dag.size[b] + _most_in_place(dag, i, rest, taken | 1 << a))
    return found


def relieved(dag: Dag, capacity: int, allow: Sequence[str]) -> tuple[Problem, int]:
    """The problem without options, and its capacity, to which every plan with the options belongs (no recompute).

    Its operators are those of the problem in their order; those that save less have one more tensor.
    """
    saved = savings(dag, allow)
    most = max(saved)
    return with_workspaces(dag.problem, [most - less for less in saved], "saves less"), capacity + most


def traffic_bound_allowing(dag: Dag, capacity: int, allow: Sequence[str]) -> int:
    """Non-compulsory bytes that every plan with the options in `allow` moves: the largest over all operators of

    least traffic of tensors that may leave with e bytes,  e = bytes alive − what takes no room − M.
    """
    best = 0
    for j, alive in enumerate(forced_alive(dag)):
        excess = dag.weigh(alive) - capacity
        if excess <= 0:
            continue
        made = sum(1 << a for a in dag.outputs[j])
        leaving = alive & ~dag.touch[j]
        if "bypass" in allow:
            own = alive & dag.touch[j] & ~made
            once = sum(1 << a for a in bits(own & dag.off_chip) if dag.readers[a] == 1 << j)
            excess -= dag.weigh(once)
            leaving |= own & ~once
        if "in-place" in allow:
            excess -= dag.weigh(sum(1 << b for b in {b for b, _ in dag.overlays[j]}))
        if "recompute" in allow:
            excess -= dag.weigh(leaving & ~dag.off_chip)
            leaving &= dag.off_chip
        if 0 < excess <= dag.weigh(leaving):  # more cannot leave: then there is no plan to bound
            best = max(best, cheapest_spill(dag, leaving, excess))
    return best


def remaking_bound(dag: Dag, capacity: int, allow: Sequence[str], *, deadline: float = inf) -> int:
    """Non-compulsory bytes that every plan moves, even if operators may run again: the largest over all operators.

    Let j run for the first time, and R be what is resident beside what j touches, at most r = M − working set(j) + S_j
    bytes. What ancestors of j touched and descendants read must then be derived from R and from what is loaded later,
    L: so R ∪ L cuts all ways on which it comes, through ancestors of j, from inputs and parameters; what j touches is
    free. All of L moves again: an activation twice, since it is stored as well. With s the bytes, and s' those of
    activations doubled,

        non-compulsory bytes ≥ max(least cut by s − r, least cut by s' − 2 r).

    No operator is looked at past the deadline (of `time.perf_counter`).
    """
    saved = savings(dag, allow)
    wanted = [mask & ~touched for mask, touched in zip(forced_alive(dag), dag.touch)]
    room = [capacity - bytes_ + less for bytes_, less in zip(dag.working_sets, saved)]
    doubled = [size * (2 if dag.dear >> a & 1 else 1) for a, size in enumerate(dag.size)]
    best = 0
    for price, times in ((dag.size, 1), (doubled, 2)):
        most = [sum(price[a] for a in bits(mask)) - times * free for mask, free in zip(wanted, room)]
        for j in sorted(range(len(dag)), key=lambda j: -most[j]):
            if most[j] <= best or room[j] < 0 or perf_counter() > deadline:
                break
            best = max(best, _least_cut(dag, j, wanted[j], price) - times * room[j])
    return best


def _least_cut(dag: Dag, j: int, wanted: int, price: Sequence[int]) -> int:
    """Least price of tensors, none touched by `j`, on all ways through ancestors of `j` to the `wanted` ones."""
    networkx = import_module("networkx")
    graph = networkx.DiGraph()
    graph.add_nodes_from(("source", "sink"))
    seen = wanted
    stack = list(bits(wanted))
    for a in bits(wanted):
        graph.add_edge((a, "out"), "sink")
    while stack:
        a = stack.pop()
        if dag.touch[j] >> a & 1:
            continue
        graph.add_edge((a, "in"), (a, "out"), capacity=price[a])
        if dag.maker[a] < 0:
            graph.add_edge("source", (a, "in"))
            continue
        for b in dag.inputs[dag.maker[a]]:
            graph.add_edge((b, "out"), (a, "in"))
            if not seen >> b & 1:
                seen |= 1 << b
                stack.append(b)
    return int(networkx.minimum_cut_value(graph, "source", "sink"))
