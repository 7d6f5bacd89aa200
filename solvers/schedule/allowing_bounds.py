"""A bound on traffic where plans may bypass, overwrite inputs or run operators again.

While operator j first runs, of the tensors alive whatever the order (`forced_alive`) at most M bytes are resident. The
options take something off that, or make leaving cheaper:

* *bypass*: an input of j need not be resident. If nobody else reads it and it lies off-chip anyway, that is free: it is
  read once. Else somebody else's reading, before or after, is a load besides; an activation is stored as well.
* *in-place*: each output of j that is no larger than some input may take no room of its own.
* *recompute*: activations may go without a store and be made anew.
"""

from __future__ import annotations

from collections.abc import Sequence

from peakline.solvers.bounds import cheapest_spill, forced_alive
from peakline.solvers.dag import Dag, bits

__all__ = ["traffic_bound_allowing"]


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
            largest = max((dag.size[a] for a in dag.inputs[j]), default=0)
            excess -= sum(dag.size[b] for b in dag.outputs[j] if dag.size[b] <= largest)
        if "recompute" in allow:
            excess -= dag.weigh(leaving & ~dag.off_chip)
            leaving &= dag.off_chip
        if 0 < excess <= dag.weigh(leaving):  # more cannot leave: then there is no plan to bound
            best = max(best, cheapest_spill(dag, leaving, excess))
    return best
