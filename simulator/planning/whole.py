"""Whole tensors: a captured step is to be carried out, and there a tensor leaves or it stays.

The linear program moves fractions. Rounded one after the other, each takes over what the ones before it left (error
diffusion), so that the bytes that move stay what was decided, within one tensor; the simulation then judges the result.
"""

from __future__ import annotations

from dataclasses import replace

from peakline.models.graph import Graph
from peakline.solvers.offload.problem import Decisions, Problem

__all__ = ["in_whole", "is_captured"]


def is_captured(graph: Graph) -> bool:
    """Whether the graph's operators are those that torch dispatches, one for one."""
    return any(operator.type.startswith("aten.") for _, operator in graph.operators())


def in_whole(problem: Problem, decisions: Decisions, *, up: bool = False) -> Decisions:
    """The decisions with every item in one place: an item goes to the tier that takes most of it, or is packed.

    Args:
        up: whatever moves or is packed in part is so as a whole.
    """
    moved, packed, kept, owed = [], [], [], 0.0
    for i, (item, out, stays) in enumerate(zip(problem.items, decisions.moved, decisions.kept)):
        shares = (*out, decisions.packed_share(i))
        share = sum(shares)
        if share <= 0.0 or (item.group >= 0 and decisions.executed[item.group]):
            moved.append(tuple(0.0 for _ in out))
            packed.append(0.0)
            kept.append(stays)
            continue
        owed += share * item.bytes
        goes = up or item.must_move or owed >= item.bytes / 2
        owed -= item.bytes * goes
        best = max(range(len(shares)), key=shares.__getitem__)
        moved.append(tuple(float(goes and t == best) for t in range(len(out))))
        packed.append(float(goes and best == len(out)))
        kept.append(0.0 if goes else 1.0)
    return replace(decisions, moved=tuple(moved), kept=tuple(kept), packed=tuple(packed) if decisions.packed else ())
