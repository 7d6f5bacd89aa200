"""Sequences of runs in which plans may bypass, overwrite and run again, and the rule that says what leaves when.

Every operator runs, and with recompute any may run once more. A tensor has an *event* wherever an operator makes or
reads it. Between two events lies a gap: the tensor stays, or is dropped after the first event. If the second one makes
it anew, that costs nothing; else a load, and a store of an activation that was never stored. An output in place takes
no room while its operator runs, if what it overwrites is dropped after that; what is bypassed takes none either, if it
is not resident before and after.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from peakline.solvers.dag import Dag
from peakline.solvers.schedule.options import Taken

__all__ = ["Event", "Runs", "as_steps", "events", "furthest_event", "non_compulsory", "valid"]

Event = tuple[int, bool]
"""(step, whether the operator makes the tensor there)."""


@dataclass(frozen=True)
class Runs:
    """`order`: the operator of each step, repeated where it runs again.

    Attributes:
        dropped: (tensor, k): not resident between its events k and k + 1.
        bypassed: (tensor, step): read from off-chip there.
        over: the (output, input) pairs in place of each step that has any.
    """

    order: tuple[int, ...]
    dropped: frozenset[tuple[int, int]]
    bypassed: frozenset[tuple[int, int]] = frozenset()
    over: dict[int, tuple[tuple[int, int], ...]] = field(default_factory=dict)

    def again(self) -> int:
        """Runs beyond the first of each operator."""
        return len(self.order) - len(set(self.order))


def events(dag: Dag, order: Sequence[int]) -> list[list[Event]]:
    """The events of each tensor, in order."""
    found: list[list[Event]] = [[] for _ in dag.size]
    for t, i in enumerate(order):
        for a in dag.inputs[i]:
            found[a].append((t, False))
        for a in dag.outputs[i]:
            found[a].append((t, True))
    return found


def valid(dag: Dag, order: Sequence[int]) -> bool:
    """Whether every run finds its inputs made, and every operator runs."""
    there, ran = dag.off_chip, 0
    for i in order:
        if dag.reads[i] & ~there:
            return False
        there |= dag.makes[i]
        ran |= 1 << i
    return ran == dag.everything


def non_compulsory(dag: Dag, runs: Runs) -> int:
    """Bytes moved beyond the compulsory ones."""
    seen = events(dag, runs.order)
    loads = [a for a, k in runs.dropped if not seen[a][k + 1][1]]
    return dag.weigh(sum(1 << a for a in set(loads) if dag.dear >> a & 1)) + sum(dag.size[a] for a in loads)


def furthest_event(dag: Dag, order: Sequence[int], capacity: int, allow: Sequence[str]) -> Runs | None:
    """Drop what is read again last, of equals the largest; None if an operator does not fit even so.

    In place lies whatever overwrites an input that is not read again; bypassed is what is read for the last time and
    not resident, and inputs where idle tensors do not make enough room or are read again sooner.
    """
    rule = _Rule(dag, order, capacity, "bypass" in allow, "in-place" in allow)
    return rule.runs if all(rule.run(t, i) for t, i in enumerate(order)) else None


class _Rule:
    """The scratchpad while the steps are taken one after the other."""

    def __init__(self, dag: Dag, order: Sequence[int], capacity: int, bypass: bool, in_place: bool) -> None:
        self.dag, self.order, self.capacity, self.bypass, self.in_place = dag, tuple(order), capacity, bypass, in_place
        self.events = events(dag, order)
        self.used = [0] * len(dag.size)  # events that have passed, per tensor
        self.resident: dict[int, int] = {}  # tensor → step at which it is read again
        self.held = 0
        self.dropped: set[tuple[int, int]] = set()
        self.bypassed: set[tuple[int, int]] = set()
        self.over: dict[int, tuple[tuple[int, int], ...]] = {}

    @property
    def runs(self) -> Runs:
        """What has been decided."""
        return Runs(self.order, frozenset(self.dropped), frozenset(self.bypassed), self.over)

    def read_after(self, a: int) -> int | None:
        """The step at which a tensor touched now is read again; None if it is not, or is made anew before."""
        listed, k = self.events[a], self.used[a] + 1
        return listed[k][0] if k < len(listed) and not listed[k][1] else None

    def run(self, t: int, i: int) -> bool:
        """Make room for operator `i` and let it run; False if it does not fit."""
        size = self.dag.size
        reads, makes = self.dag.inputs[i], self.dag.outputs[i]
        later = {a: self.read_after(a) for a in (*reads, *makes)}
        passed = {a for a in reads if self.bypass and a not in self.resident and later[a] is None}
        pairs = self.pairs(i, {a for a in reads if later[a] is None and a not in passed})
        need = self.held + sum(size[a] for a in (*reads, *makes) if a not in self.resident and a not in passed)
        need -= sum(size[b] for b, _ in pairs)
        while need > self.capacity:
            a = self.furthest(t, i, later, passed, pairs)
            if a is None:
                return self.squeeze(t, i, later, passed, pairs, need)
            if a in later:
                passed.add(a)
            if a in self.resident:
                self.drop(a)
            need -= size[a]
        self.end(t, i, later, passed, pairs)
        return True

    def furthest(
        self, t: int, i: int, later: dict[int, int | None], passed: set[int], pairs: list[tuple[int, int]]
    ) -> int | None:
        """What is read again last of all that may leave or be bypassed; inputs that end only where nothing else is."""
        size = self.dag.size
        idle = [(step, size[a], a) for a, step in self.resident.items() if a not in later]
        if self.bypass:
            inputs = [a for a in self.dag.inputs[i] if a not in passed]
            idle += [(step, size[a], a) for a in inputs if (step := later[a]) is not None]
            idle = idle or [(t, size[a], a) for a in inputs if a not in {under for _, under in pairs}]
        return max(idle)[-1] if idle else None

    def squeeze(
        self, t: int, i: int, later: dict[int, int | None], passed: set[int], pairs: list[tuple[int, int]], need: int
    ) -> bool:
        """Outputs also in place of inputs that are read again: these come back then."""
        taken = {b for b, _ in pairs} | {a for _, a in pairs}
        for b, a in self.dag.overlays[i] if self.in_place else ():
            if need > self.capacity and not {a, b} & taken and a not in passed:
                pairs.append((b, a))
                taken |= {a, b}
                need -= self.dag.size[b]
        self.end(t, i, later, passed, pairs)
        return need <= self.capacity

    def pairs(self, i: int, ending: set[int]) -> list[tuple[int, int]]:
        """Outputs in place of inputs that end, the largest first."""
        found: list[tuple[int, int]] = []
        if self.in_place and ending:
            size = self.dag.size
            for b, a in sorted(self.dag.overlays[i], key=lambda pair: (-size[pair[0]], size[pair[1]])):
                if a in ending and all(b != other and a != under for other, under in found):
                    found.append((b, a))
        return found

    def drop(self, a: int) -> None:
        """A resident leaves until it is read again."""
        self.dropped.add((a, self.used[a] - 1))
        self.held -= self.dag.size[a]
        del self.resident[a]

    def end(self, t: int, i: int, later: dict[int, int | None], passed: set[int], pairs: list[tuple[int, int]]) -> None:
        """The operator has run: what is not read again, bypassed or overwritten is gone."""
        gone = passed | {a for _, a in pairs}
        self.bypassed |= {(a, t) for a in passed}
        if pairs:
            self.over[t] = tuple(pairs)
        for a, step in later.items():
            last = self.used[a]
            self.used[a] += 1
            if a in self.resident:
                self.held -= self.dag.size[a]
                del self.resident[a]
            if step is not None and a not in gone:
                self.resident[a] = step
                self.held += self.dag.size[a]
            elif last + 1 < len(self.events[a]):
                self.dropped.add((a, last))


def as_steps(dag: Dag, runs: Runs) -> tuple[Taken, ...]:
    """The runs with what is stored, evicted and loaded before each; whatever is dropped leaves at once."""
    listed = events(dag, runs.order)
    count = len(runs.order)
    store, evict, load = [0] * (count + 1), [0] * (count + 1), [0] * (count + 1)
    under = {(a, t) for t, pairs in runs.over.items() for _, a in pairs}
    for a, happening in enumerate(listed):
        resident = stored = False
        for k, (t, made) in enumerate(happening):
            here = not made and (a, t) in runs.bypassed
            if not made and not resident and not here:
                load[t] |= 1 << a
            resident = not here
            last = k + 1 == len(happening)
            if not last and (a, k) not in runs.dropped:
                continue
            if not last and not happening[k + 1][1] and dag.dear >> a & 1 and not stored:
                stored = True
                store[t if (a, t) in under else t + 1] |= 1 << a
            if resident and (a, t) not in under:
                evict[t + 1] |= 1 << a
            resident = False
    bypass = [0] * count
    for a, t in runs.bypassed:
        bypass[t] |= 1 << a
    return tuple(
        Taken(i, store[t], evict[t], load[t], bypass[t], runs.over.get(t, ())) for t, i in enumerate(runs.order)
    )
