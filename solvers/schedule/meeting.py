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

are paid apart from q. The smaller front moves, and neither ever gets to the widest layers of the other half.

What may run at once does so in the forward direction alone: moving operators in both could undo each other.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from peakline.solvers.dag import bits
from peakline.solvers.schedule.ideals import Graph, Ideal, Runs, Words, backwards, next_ideals
from peakline.solvers.schedule.layers import Layer, distinct, expand, to_come, undominated
from peakline.solvers.schedule.search import Found
from peakline.solvers.schedule.states import Moves

__all__ = ["Meeting"]

_MOST_STATES = 8_000_000  # 32 bytes each
_MOST_IDEALS = 400_000  # of the whole graph, about 1 kB each
_NEVER = 1 << 60  # of an ideal that no state of the other end leads to


class Meeting:
    """A segment with all of its ideals, to be solved below one cost after another."""

    def __init__(self, graph: Graph, ideals: list[list[Ideal]], runs: list[Runs]) -> None:
        self.graph, self.ideals, self.runs = graph, ideals, runs
        self._undone: dict[int, Runs] = {}

    @classmethod
    def of(cls, moves: Moves, *, deadline: float) -> Meeting | None:
        """None past the deadline, with more than 400,000 ideals, or where more than 62 tensors may be alive at once."""
        graph = Graph(moves)
        if not graph.possible:
            return None
        ideals: list[list[Ideal]] = [[graph.first()]]
        runs: list[Runs] = []
        count = 1
        for _ in range((graph.segment.stop & ~graph.segment.start).bit_count()):
            led, found = next_ideals(graph, ideals[-1])
            ideals.append(found)
            runs.append(led)
            count += len(found)
            if count > _MOST_IDEALS or time.perf_counter() > deadline:
                return None
        return cls(graph, ideals, runs)

    def undone(self, k: int) -> Runs:
        """The runs from the ideals of k operators to those of k + 1, backwards."""
        if k not in self._undone:
            self._undone[k] = backwards(self.graph, self.ideals[k], self.runs[k], self.ideals[k + 1])
        return self._undone[k]

    def below(
        self,
        known: int,
        *,
        deadline: float,
        most_states: int = _MOST_STATES,
        tick: Callable[[], None] = lambda: None,
    ) -> Found | None:
        """The least traffic through the segment if it is below `known` bytes, else a proof that none is.

        None past the deadline, or if more than `most_states` states would have to be kept. `tick` is called after every
        layer.
        """
        ends = _Ends(self, -(-known // self.graph.unit))
        while not ends.met:
            ends.go_on()
            tick()
            if ends.hopeless:
                return Found(None, known, known, ends.states)
            if time.perf_counter() > deadline or ends.states > most_states:
                return None
        cost, path = ends.join()
        if path is None:
            return Found(None, known, known, ends.states)
        return Found(path, cost * self.graph.unit, cost * self.graph.unit, ends.states)


class _Ends:
    """The two fronts, and the layers that lead back from them."""

    def __init__(self, steps: Meeting, most: int) -> None:
        self.steps, self.graph, self.most = steps, steps.graph, most
        graph = self.graph
        self.ahead = [_one(steps.ideals[0], int(graph.held_at_first()[0]))]
        self.behind = [_one(steps.ideals[-1], int(steps.ideals[-1][0].sizes.sum()))]
        self.states = 2
        self.apart = len(steps.runs)  # layers between the fronts

    @property
    def met(self) -> bool:
        return not self.apart

    @property
    def hopeless(self) -> bool:
        """No plan is cheaper than the known one."""
        return not (len(self.ahead[-1]) and len(self.behind[-1]))

    def go_on(self) -> None:
        """One layer further from the end with fewer states."""
        self.apart -= 1
        k = len(self.ahead) - 1  # operators executed before the front
        if len(self.ahead[-1]) <= len(self.behind[-1]):
            front = expand(self.graph, self.ahead[-1], self.steps.runs[k], self.steps.ideals[k + 1])
            self._step(self.ahead, front, self._after)
        else:
            m = k + self.apart  # of the new layer
            front = expand(self.graph, self.behind[-1], self.steps.undone(m), self.steps.ideals[m])
            self._step(self.behind, front, self._before)

    def _step(self, passed: list[Layer], expanded: Layer, worth: Callable[[Ideal, Layer, slice], Words]) -> None:
        reached = self._beyond(len(passed) if passed is self.ahead else None)
        passed[-1].forget()
        layer = distinct(expanded, self.most)
        ends = np.searchsorted(layer.ideal, np.arange(len(layer.ideals) + 1))
        kept: list[npt.NDArray[np.intp]] = []
        for g, ideal in enumerate(layer.ideals):
            part = slice(int(ends[g]), int(ends[g + 1]))
            if part.start == part.stop or reached[g] >= self.most:
                continue
            value = layer.paid[part] + np.maximum(worth(ideal, layer, part), reached[g])
            chosen = np.flatnonzero(value < self.most)
            chosen = chosen[np.argsort(value[chosen], kind="stable")] + part.start
            kept.append(undominated(ideal, layer, chosen))
        passed.append(layer.take(np.concatenate(kept) if kept else np.zeros(0, dtype=np.intp)))
        self.states += len(passed[-1])

    def _beyond(self, ahead: int | None) -> Words:
        """For each ideal of the new layer the least that the other end must pay, apart from what both may."""
        runs, k = self.steps.runs, len(self.ahead) - 1
        if ahead is not None:  # from behind back to layer `ahead`
            at = ahead + self.apart
            least = self._apart(self.behind[-1])
            for n in range(at - 1, ahead - 1, -1):
                new = np.full(len(self.steps.ideals[n]), _NEVER, dtype=np.int64)
                np.minimum.at(new, runs[n].ideal, least[runs[n].to])
                least = new
            return least
        least = self._apart(self.ahead[-1])
        for n in range(k, k + self.apart):
            new = np.full(len(self.steps.ideals[n + 1]), _NEVER, dtype=np.int64)
            np.minimum.at(new, runs[n].to, least[runs[n].ideal])
            least = new
        return least

    def _apart(self, layer: Layer) -> Words:
        """Of each ideal the least that its states have paid for what nobody beyond the ideal can have paid as well."""
        least = np.full(len(layer.ideals), _NEVER, dtype=np.int64)
        ends = np.searchsorted(layer.ideal, np.arange(len(layer.ideals) + 1))
        for g, ideal in enumerate(layer.ideals):
            part = slice(int(ends[g]), int(ends[g + 1]))
            if part.start < part.stop:
                out, stored = _weights(ideal, layer, part)
                least[g] = int((layer.paid[part] - out - stored).min())
        return least

    def _after(self, ideal: Ideal, layer: Layer, part: slice) -> Words:
        return to_come(self.graph, ideal, layer.out[part], layer.stored[part])

    def _before(self, ideal: Ideal, layer: Layer, part: slice) -> Words:
        """What operators yet to be undone need out, whatever the order, beyond what is out or stored."""
        floors = self.graph.floors
        executed = [floors.column[j] for j in bits(ideal.executed & ~self.graph.segment.start)]
        excess, cheap = floors.excess[executed], floors.cheap[executed]
        crowded = excess > 0
        if not crowded.any():
            return np.zeros(part.stop - part.start, dtype=np.int64)
        out, stored = _weights(ideal, layer, part)
        e, c = excess[crowded], cheap[crowded]
        apart = np.maximum(e - out[:, None], 0) + np.maximum(e - c - stored[:, None], 0)
        return np.asarray(apart.max(axis=1), dtype=np.int64)

    def join(self) -> tuple[int, tuple[tuple[int, int], ...] | None]:
        """The cheapest pair of states of one ideal, if it is below what is known."""
        ahead, behind = self.ahead[-1], self.behind[-1]
        count = np.arange(len(ahead.ideals) + 1)
        firsts, seconds = np.searchsorted(ahead.ideal, count), np.searchsorted(behind.ideal, count)
        best, pair = self.most, None
        for g, ideal in enumerate(ahead.ideals):
            one, other = slice(int(firsts[g]), int(firsts[g + 1])), slice(int(seconds[g]), int(seconds[g + 1]))
            if one.start == one.stop or other.start == other.stop:
                continue
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
        first, second = _trace(self.graph, self.ahead, one), _trace(self.graph, self.behind, other)
        return (*reversed(first), *second)


def _one(ideals: list[Ideal], held: int) -> Layer:
    zero = np.zeros(1, dtype=np.int64)
    return Layer(ideals, zero, zero, zero, np.array([held], dtype=np.int64), zero, zero, zero)


def _trace(graph: Graph, passed: list[Layer], at: int) -> list[tuple[int, int]]:
    """Operators and evictions from a state of the last layer to the first layer."""
    found = []
    for before, layer in zip(reversed(passed[:-1]), reversed(passed[1:])):
        parent = int(layer.parent[at])
        ideal = before.ideals[int(before.ideal[parent])]
        left = int(layer.out[at]) & ~int(before.out[parent])
        found.append((int(layer.operator[at]), sum(1 << a for a in ideal.tensors if left >> graph.slot[a] & 1)))
        at = parent
    return found


def _bits(ideal: Ideal, words: Words) -> npt.NDArray[np.float64]:
    """[state, live tensor]: 1 where the tensor's bit is set."""
    return ((words[:, None] >> ideal.places) & 1).astype(np.float64)


def _weights(ideal: Ideal, layer: Layer, part: slice) -> tuple[Words, Words]:
    """Grains out and stored of each state."""
    out, stored = ((words[part][:, None] >> ideal.places) & 1 for words in (layer.out, layer.stored))
    return out @ ideal.sizes, stored @ ideal.sizes
