"""Better sequences of runs: an operator moves, runs again before a reader of what was dropped, or no longer does.

Each sequence is priced by the rule of `runs.py`; an additional run counts a byte, so that of equal sequences the one
with the fewest runs wins.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from peakline.solvers.annealing import Cooling, anneal
from peakline.solvers.dag import Dag
from peakline.solvers.schedule.runs import Runs, events, furthest_event, non_compulsory, valid

__all__ = ["improve_runs"]

_COOLING = Cooling(first=0.03)
_AGAIN, _NO_MORE = 0.5, 0.15  # of the attempts where plans may run again: one more run, one less
_DEEPER = 0.5  # chance that what an additional run reads is made anew as well, if it was dropped too
_DEEPEST = 4
_LONGEST = 3  # times as many runs as operators


def improve_runs(
    dag: Dag, start: Sequence[int], capacity: int, allow: Sequence[str], *, tries: int, seed: int, deadline: float
) -> Runs | None:
    """Simulated annealing from a sequence; None if the rule finds nothing that fits in it.

    The result depends on the seed alone, unless the deadline (of `time.perf_counter`) cuts it short.
    """
    first = furthest_event(dag, start, capacity, allow)
    if first is None:
        return None

    def near(runs: Runs, chance: random.Random) -> Runs | None:
        order = _changed(dag, runs, chance, "recompute" in allow)
        return furthest_event(dag, order, capacity, allow) if order is not None else None

    *_, best = anneal(
        first, lambda runs: _price(dag, runs), near, tries=tries, seed=seed, deadline=deadline, cooling=_COOLING
    )
    return _fewest(dag, best, capacity, allow)


def _fewest(dag: Dag, runs: Runs, capacity: int, allow: Sequence[str]) -> Runs:
    """Without the additional runs that save nothing."""
    t = 0
    while t < len(runs.order):
        order = (*runs.order[:t], *runs.order[t + 1 :])
        if runs.order.count(runs.order[t]) > 1 and valid(dag, order):
            found = furthest_event(dag, order, capacity, allow)
            if found is not None and non_compulsory(dag, found) <= non_compulsory(dag, runs):
                runs = found
                continue
        t += 1
    return runs


def _price(dag: Dag, runs: Runs) -> int:
    """Bytes moved beyond the compulsory ones, and a byte for each additional run."""
    return non_compulsory(dag, runs) + runs.again()


def _changed(dag: Dag, runs: Runs, chance: random.Random, again: bool) -> list[int] | None:
    """A sequence near this one, or None where the attempt leads nowhere."""
    kind = chance.random() if again else 1.0
    if kind < _AGAIN and len(runs.order) < _LONGEST * len(dag):
        return _one_more(dag, runs, chance)
    if kind < _AGAIN + _NO_MORE:
        return _one_less(dag, runs, chance)
    order = list(runs.order)
    i = order.pop(chance.randrange(len(order)))
    at = chance.randrange(len(order) + 1)
    order.insert(at, i)
    return order if valid(dag, order) else None


def _one_more(dag: Dag, runs: Runs, chance: random.Random) -> list[int] | None:
    """Just before it is loaded again, a dropped activation is made anew."""
    listed = events(dag, runs.order)
    reloads = [(a, k) for a, k in sorted(runs.dropped) if dag.maker[a] >= 0 and not listed[a][k + 1][1]]
    if not reloads:
        return None
    a, k = chance.choice(reloads)
    step = listed[a][k + 1][0]
    order = list(runs.order)
    order[step:step] = _makers(dag, runs, listed, a, step, chance, _DEEPEST)
    return order


def _makers(
    dag: Dag, runs: Runs, listed: list[list[tuple[int, bool]]], a: int, step: int, chance: random.Random, depth: int
) -> list[int]:
    """The operators that make `a` before a step: its maker, and maybe makers of what that finds dropped."""
    found: list[int] = []
    for b in dag.inputs[dag.maker[a]]:
        k = max((k for k, (t, _) in enumerate(listed[b]) if t < step), default=-1)
        gone = k + 1 == len(listed[b]) or (b, k) in runs.dropped
        if depth and gone and dag.maker[b] >= 0 and chance.random() < _DEEPER:
            found += [i for i in _makers(dag, runs, listed, b, step, chance, depth - 1) if i not in found]
    return [*found, dag.maker[a]]


def _one_less(dag: Dag, runs: Runs, chance: random.Random) -> list[int] | None:
    """A run of an operator that has others goes."""
    several = [t for t, i in enumerate(runs.order) if runs.order.count(i) > 1]
    if not several:
        return None
    order = list(runs.order)
    del order[chance.choice(several)]
    return order if valid(dag, order) else None
