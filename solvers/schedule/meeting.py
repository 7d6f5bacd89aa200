"""Least traffic from both ends: layers of states from the first operator on and from the last one back.

A plan read backwards is a plan: each tensor is brought in by its last reader and goes with its maker, evicting one
costs the same store, once, and the same load. So the states of `layers.py` can be built from the end as well: R of an
ideal of executed operators, (Y out, T stored) is what must hold between the ideal and the rest, and the traffic q that
the rest pays then, with one load of each tensor of Y. Joined with a state (X, S) of traffic p before the same ideal,
what both have paid counts once:

    p + q − Σ_{a ∈ X ∩ Y} s_a − Σ_{a ∈ S ∩ T} s_a.

Each end is the other's bound on what is to come. Whatever states lie between, a plan through ideals E ⊂ F of the two
fronts pays at least min_E (p − |X| − |S|) before E and min_F (q − |Y| − |T|) behind F; so a state of one front goes on
only if some ideal of the other lies on its way for which the sum stays below the plan that is known. Backwards there is
also what any order must have out at an operator j that has yet to run: e grains, of which c cost no store, so

    max(0, e_j − |Y|) + max(0, e_j − c_j − |T|)

are paid apart from q, Y and T counting only what may be out beside j. The smaller front moves, so that neither has to
hold the widest layers of the other half.

A state that another dominates is not missed where ends meet: evicting a more before the ideal costs s_a (and the store
once), and saves no more than that in the sum above. What may run at once does so in the forward direction alone:
moving operators in both could undo each other.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from peakline.solvers.dag import bits
from peakline.solvers.schedule.ideals import Graph, Ideal, Words, next_ideals, previous_ideals
from peakline.solvers.schedule.layers import Crowded, Layer, distinct, expand, to_come, trace, undominated
from peakline.solvers.schedule.search import Found
from peakline.solvers.schedule.states import Moves

__all__ = ["meet"]

_MOST_STATES = 8_000_000  # 32 bytes each
_MOST_PAIRS = 200_000_000  # of ideals of both fronts that are compared at a step
_FIRST_WAYS = 50_000  # to make room in a layer, before the other end is tried
_MOST_WAYS = 64_000_000
_WAYS_EACH = 64  # of each state of the smaller front
_GROWTH = 8
_ROWS = 256  # of them at a time
_BITS = 62
_WORD = (1 << _BITS) - 1
_NEVER = 1 << 60  # of an ideal that no state of the other end leads to


def meet(
    moves: Moves,
    known: int,
    *,
    deadline: float,
    most_states: int = _MOST_STATES,
    tick: Callable[[], None] = lambda: None,
) -> Found | None:
    """The least traffic through the segment if it is below `known` bytes, else a proof that none is.

    None past the deadline, if more than `most_states` states would have to be kept, or where more than 62 tensors may
    be alive at once. `tick` is called after every layer.
    """
    graph = Graph(moves)
    if not graph.possible:
        return None
    ends = _Ends(graph, -(-known // graph.unit))
    while not ends.met:
        try:
            ends.go_on()
        except Crowded:
            return None
        tick()
        if ends.hopeless:
            return Found(None, known, known, ends.states)
        if time.perf_counter() > deadline or ends.states > most_states:
            return None
    cost, path = ends.join()
    if path is None:
        return Found(None, known, known, ends.states)
    return Found(path, cost * graph.unit, cost * graph.unit, ends.states)


class _Ends:
    """The two fronts, and the layers that lead back from them."""

    def __init__(self, graph: Graph, most: int) -> None:
        self.graph, self.most = graph, most
        first, last = graph.first(), graph.last()
        self.ahead, self.behind = [_one(first)], [_one(last)]
        self.states = 2
        self.apart = len(graph.floors.operators)  # layers between the fronts
        self._beside: dict[int, Words] = {}

    @property
    def met(self) -> bool:
        return not self.apart

    @property
    def hopeless(self) -> bool:
        """No plan is cheaper than the known one."""
        return not (len(self.ahead[-1]) and len(self.behind[-1]))

    def go_on(self) -> None:
        """One layer further from the end with fewer states, or from the other where that leads to far too many.

        Raises Crowded if both do.
        """
        fewer = len(self.ahead[-1]) <= len(self.behind[-1])
        most = max(_FIRST_WAYS, _WAYS_EACH * min(len(self.ahead[-1]), len(self.behind[-1])))
        while most < _GROWTH * _MOST_WAYS:
            for forward in (fewer, not fewer):
                with contextlib.suppress(Crowded):
                    self._go_on(forward, most)
                    self.apart -= 1
                    return
            most *= _GROWTH
        raise Crowded

    def _go_on(self, forward: bool, most: int) -> None:
        """One layer further from one end, with at most so many ways to make room."""
        passed, other = (self.ahead, self.behind) if forward else (self.behind, self.ahead)
        front = passed[-1]
        runs, ideals = (next_ideals if forward else previous_ideals)(self.graph, front.ideals)
        reached = self._reached(ideals, other[-1], forward)
        further = expand(self.graph, front, runs, ideals, self.most - reached, forward=forward, most=most)
        layer = distinct(further, self.most)
        front.forget()
        worth = self._after if forward else self._before
        ends = layer.starts()
        kept: list[npt.NDArray[np.intp]] = []
        for g in np.unique(layer.ideal):
            ideal, part = ideals[g], slice(int(ends[g]), int(ends[g + 1]))
            value = layer.paid[part] + np.maximum(worth(ideal, layer, part), reached[g])
            chosen = np.flatnonzero(value < self.most)
            chosen = chosen[np.argsort(value[chosen], kind="stable")] + part.start
            kept.append(undominated(ideal, layer, chosen))
        passed.append(_alone(layer.take(np.concatenate(kept) if kept else np.zeros(0, dtype=np.intp))))
        self.states += len(passed[-1])

    def _reached(self, ideals: list[Ideal], other: Layer, forward: bool) -> Words:
        """For each ideal the least that is paid beyond the other front, apart from what both may have paid."""
        least = self._apart(other)
        if len(ideals) * len(least) > _MOST_PAIRS:
            return np.full(len(ideals), least.min(initial=_NEVER), dtype=np.int64)
        ours, theirs = self._words(ideals), self._words(other.ideals)
        reached = np.empty(len(ideals), dtype=np.int64)
        for k in range(0, len(ideals), _ROWS):
            rows = slice(k, k + _ROWS)
            less, more = (ours[rows, None], theirs[None]) if forward else (theirs[None], ours[rows, None])
            reached[rows] = np.where((less & ~more).any(axis=2), _NEVER, least).min(axis=1, initial=_NEVER)
        return reached

    def _words(self, ideals: list[Ideal]) -> Words:
        """The executed operators of each ideal as rows of 62 bits a word."""
        count = len(self.graph.dag)
        rows = [[i.executed >> k & _WORD for k in range(0, count, _BITS)] for i in ideals]
        return np.array(rows, dtype=np.int64).reshape(len(ideals), -(-count // _BITS))

    def _apart(self, layer: Layer) -> Words:
        """Of each ideal the least that its states have paid, but for what the other end may have paid as well."""
        least = np.full(len(layer.ideals), _NEVER, dtype=np.int64)
        ends = layer.starts()
        for g in np.unique(layer.ideal):
            ideal, part = layer.ideals[g], slice(int(ends[g]), int(ends[g + 1]))
            out, stored = ((words[part][:, None] >> ideal.places) & 1 for words in (layer.out, layer.stored))
            least[g] = int((layer.paid[part] - (out + stored) @ ideal.sizes).min())
        return least

    def _after(self, ideal: Ideal, layer: Layer, part: slice) -> Words:
        """What is to come, by the bounds on the operators left."""
        return to_come(self.graph, ideal, layer.out[part], layer.stored[part])

    def _before(self, ideal: Ideal, layer: Layer, part: slice) -> Words:
        """What operators yet to be undone need out, whatever the order, beyond what is out or stored."""
        floors = self.graph.floors
        crowded = np.array([floors.column[j] for j in bits(ideal.executed & floors.inside)], dtype=np.intp)
        crowded = crowded[floors.excess[crowded] > 0]
        if not len(crowded):
            return np.zeros(part.stop - part.start, dtype=np.int64)
        e, c = floors.excess[crowded], floors.cheap[crowded]
        size = np.array([self._out_at(a)[crowded] for a in ideal.tensors], dtype=np.float64)
        size = size.reshape(len(ideal.tensors), len(crowded))
        out, stored = _bits(ideal, layer.out[part]) @ size, _bits(ideal, layer.stored[part]) @ size
        apart = np.maximum(e - out, 0) + np.maximum(e - c - stored, 0)
        return np.asarray(apart.max(axis=1), dtype=np.int64)

    def _out_at(self, a: int) -> Words:
        """Grains of a tensor at the operators beside which it may be out, 0 at the others."""
        found = self._beside.get(a)
        if found is None:
            dag, floors = self.graph.dag, self.graph.floors
            first = 1 << dag.maker[a] if dag.maker[a] >= 0 else dag.users[a]
            found = self._beside[a] = np.array(
                [
                    0 if dag.touch[j] >> a & 1 or not first & ~dag.descendants[j] else self.graph.size[a]
                    for j in floors.operators
                ],
                dtype=np.int64,
            )
        return found

    def join(self) -> tuple[int, tuple[tuple[int, int], ...] | None]:
        """The cheapest pair of states of one ideal, if it is below what is known."""
        ahead, behind = self.ahead[-1], self.behind[-1]
        firsts = ahead.starts()
        seconds = behind.starts()
        numbers = {ideal.executed: h for h, ideal in enumerate(behind.ideals)}
        best, pair = self.most, None
        for g, ideal in enumerate(ahead.ideals):
            h = numbers.get(ideal.executed)
            if h is None:
                continue
            one, other = slice(int(firsts[g]), int(firsts[g + 1])), slice(int(seconds[h]), int(seconds[h + 1]))
            size = ideal.sizes.astype(np.float64)
            out, stored = _bits(ideal, ahead.out[one]) * size, _bits(ideal, ahead.stored[one]) * size
            both = out @ _bits(ideal, behind.out[other]).T + stored @ _bits(ideal, behind.stored[other]).T
            total = ahead.paid[one][:, None] + behind.paid[other] - both
            at = int(total.argmin())
            if total.flat[at] < best:
                row, column = divmod(at, total.shape[1])
                best, pair = int(total.flat[at]), (one.start + row, other.start + column)
        return best, None if pair is None else self._path(*pair)

    def _path(self, one: int, other: int) -> tuple[tuple[int, int], ...]:
        """Operators in order, each with what leaves before it; what leaves backwards lies between two uses as well."""
        first, second = trace(self.graph, self.ahead, one), trace(self.graph, self.behind, other)
        return (*reversed(first), *second)


def _one(ideal: Ideal) -> Layer:
    zero = np.zeros(1, dtype=np.int64)
    return Layer([ideal], zero, zero, zero, np.array([ideal.sizes.sum()], dtype=np.int64), zero, zero, zero)


def _alone(layer: Layer) -> Layer:
    """The layer without ideals that have no states."""
    which, number = np.unique(layer.ideal, return_inverse=True)
    layer.ideals, layer.ideal = [layer.ideals[g] for g in which], number.ravel()
    return layer


def _bits(ideal: Ideal, words: Words) -> npt.NDArray[np.float64]:
    """[state, live tensor]: 1 where the tensor's bit is set."""
    return ((words[:, None] >> ideal.places) & 1).astype(np.float64)
