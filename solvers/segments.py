"""Divide and conquer: operators that every order passes through, and the pieces between them.

An operator v with ancestors ∪ {v} ∪ descendants = V separates the graph: whatever the order, exactly its ancestors
have run before it. The smallest peak is then the largest over the pieces. For traffic the pieces are independent if
nothing but v's own results is alive when v has run: those are resident, and nothing of them is stored yet.
"""

from __future__ import annotations

from dataclasses import dataclass

from peakline.solvers.dag import Dag, bits

__all__ = ["Segment", "in_order", "segments", "signature", "tensors_in_order"]


@dataclass(frozen=True, slots=True)
class Segment:
    """The operators of `stop` that are not in `start`; both are masks of executed operators that every order meets.

    Attributes:
        start: operators that have run before.
        stop: operators that have run after.
        live: tensors alive at the start.
    """

    start: int
    stop: int
    live: int


def segments(dag: Dag, *, independent: bool) -> list[Segment]:
    """The pieces between the operators comparable with all others, in order.

    `independent`: cut only where what is alive are results of that operator, or tensors that it touches and whose
    eviction costs no store, so that plans of the pieces join to a plan of the whole at the sum of their traffic.
    """
    stops = []
    for v in dag.problem.given_order:
        reached = dag.ancestors[v] | (1 << v)
        if reached | dag.descendants[v] == dag.everything:
            live = dag.live_after(reached)
            own = sum(1 << a for a in dag.outputs[v]) | (dag.touch[v] & ~dag.dear)
            if not independent or not live & ~own:
                stops.append((reached, live))
    if not stops or stops[-1][0] != dag.everything:
        stops.append((dag.everything, 0))
    found, start, live = [], 0, 0
    for stop, left in stops:
        found.append(Segment(start, stop, live))
        start, live = stop, left
    return found


def signature(dag: Dag, segment: Segment) -> tuple[object, ...]:
    """Equal for pieces that are the same problem up to the names, their operators being listed in the same order.

    The k-th operator (`in_order`) and tensor (`tensors_in_order`) of one piece correspond to the k-th of the other.
    """
    number = {a: n for n, a in enumerate(tensors_in_order(dag, segment))}
    kinds = [
        (dag.size[a], dag.dear >> a & 1, segment.live >> a & 1, bool(dag.readers[a] & ~segment.stop)) for a in number
    ]
    place = {i: n for n, i in enumerate(in_order(dag, segment))}
    touched = [
        (
            tuple(number[a] for a in dag.inputs[i]),
            tuple(number[a] for a in dag.outputs[i]),
            tuple(sorted(place[k] for k in bits(dag.before[i] & ~segment.start))),
        )
        for i in place
    ]
    return tuple(kinds), tuple(touched)


def tensors_in_order(dag: Dag, segment: Segment) -> list[int]:
    """What is alive at the piece's start, then what its operators touch, by first appearance in the given order."""
    found = dict.fromkeys(bits(segment.live))
    for i in in_order(dag, segment):
        found.update(dict.fromkeys((*dag.inputs[i], *dag.outputs[i])))
    return list(found)


def in_order(dag: Dag, segment: Segment) -> list[int]:
    """The piece's operators in the given order."""
    inside = segment.stop & ~segment.start
    return [i for i in dag.problem.given_order if inside >> i & 1]
