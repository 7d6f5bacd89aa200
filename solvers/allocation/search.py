"""Can the buffers be placed within a capacity? An exact depth-first search over skylines.

The search builds canonical placements from the bottom up: no buffer of a canonical placement can slide down, so each
lies at 0 or on a buffer placed before. Any placement becomes canonical by sliding buffers down, hence looking only at
canonical ones loses nothing (Moffitt, "MiniMalloc", ASPLOS 2023, calls them so and orders them by offset and index).
What differs here is the branching: a node picks one *section* of time whose lowest free address is a local minimum and
asks which buffer lies there, "none of them" being the last answer. The answers exclude each other, so no placement
is met twice, and the tightest section, where little or nothing may be wasted, answers almost by itself.

State of a node, for every buffer b not yet placed:
    rest[b]   lowest offset that the decisions so far leave open (a large number once b is placed)
    prop[b]   highest top under b; b may be placed when rest[b] == prop[b], that is when it would not float
and for every section s (a maximal set of buffers alive together, in order of time):
    floor[s]  min of rest[b] over the buffers of s: nothing more fits below
    total[s]  bytes of s not yet placed; floor[s] + total[s] ≤ capacity or the node fails
Buffers not yet placed fall into components that share no section; each is solved on its own, and the failure of one
fails the node whatever the others hold, which jumps back over all decisions made for the others. Failed components
are remembered by fingerprint and serve later restarts, whatever rule these follow; so are components placed whole
whose siblings failed.
"""

from __future__ import annotations

import sys
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from heapq import heapify, heappop
from itertools import accumulate
from operator import itemgetter
from typing import Any, Literal

from peakline.solvers.allocation.instance import Instance
from peakline.solvers.allocation.sections import Sections

__all__ = ["MODES", "Mode", "Outcome", "Search"]

Mode = Literal["low", "few", "sore"]
MODES: tuple[Mode, ...] = ("low", "few", "sore")
"""Which section a node asks about: the lowest floor; the fewest answers; the fewest answers per past failure there
(Boussemart et al., "Boosting systematic search by weighting constraints", ECAI 2004)."""

_PLACED = 1 << 62
_CHECK_CLOCK = 64  # turns of a loop between two looks at the clock
_MOST_PLACED = 100_000  # components with their offsets
_MOST_NOGOODS = 2_000_000  # 16-byte fingerprints, about 150 MB with the set around them


class _Stopped(Exception):
    """The nodes or the time of a run are used up."""


@dataclass(frozen=True)
class Outcome:
    """`offsets` where a placement was found; `proven` where none exists; neither: the run was cut short."""

    offsets: tuple[int, ...] | None
    proven: bool
    nodes: int


@dataclass
class Search:
    """One capacity's search. Runs may follow each other with other rules: what failed once is not tried again."""

    instance: Instance
    sections: Sections
    capacity: int
    _nogoods: set[bytes] = field(default_factory=set)
    _placed: dict[bytes, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        item, n = self.instance, len(self.instance.buffers)
        self._size = [b.size for b in item.buffers]
        self._align = list(item.alignments)
        self._aligned = any(a > 1 for a in item.alignments)
        self._first, self._last = self.sections.first, self.sections.last
        self._members = self.sections.members
        self._neighbours = self.sections.neighbours
        self._latest = [self.capacity - b.size if o is None else o for b, o in zip(item.buffers, item.fixed)]
        self._start = [o or 0 for o in item.fixed]
        self._twin = [(self._first[b], self._last[b], self._size[b], self._align[b], item.fixed[b]) for b in range(n)]
        self._conflicts = [0] * len(self._members)
        self._pick = [_picker(members) for members in self._members]
        self._witness = [members[0] for members in self._members]
        self._pick_near = [_picker(near) for near in self._neighbours]

    def run(self, preference: Sequence[float], mode: Mode, node_limit: int, deadline: float) -> Outcome:
        """Search until a placement, a proof, `node_limit` nodes or the `deadline` (`time.monotonic()` seconds).

        `preference` ranks the buffers that could take a place: highest first. `mode` chooses the section to ask about.
        Deterministic but for the deadline.
        """
        n = len(self._size)
        self._rest, self._prop = list(self._start), list(self._start)
        self._end = [r + s for r, s in zip(self._rest, self._size)]
        self._floor = [min(self._rest[b] for b in members) for members in self._members]
        self._total = [sum(self._size[b] for b in members) for members in self._members]
        self._offset = [0] * n
        self._trail: list[tuple[list[int], int, int]] = []
        self._preference = preference
        self._select: Callable[[list[int]], tuple[int, list[int]]]
        self._select = {"low": self._lowest, "few": self._fewest, "sore": self._sorest}[mode]
        self._nodes, self._node_limit, self._deadline = 0, node_limit, deadline
        if any(r > latest for r, latest in zip(self._rest, self._latest)) or any(
            f + t > self.capacity for f, t in zip(self._floor, self._total)
        ):
            return Outcome(None, True, 0)
        usual = sys.getrecursionlimit()
        sys.setrecursionlimit(max(usual, 10_000 + 50 * n))
        try:
            found = self._solve(sorted(range(n), key=self._first.__getitem__))
        except _Stopped:
            return Outcome(None, False, self._nodes)
        finally:
            sys.setrecursionlimit(usual)
        return Outcome(tuple(self._offset) if found else None, not found, self._nodes)

    # -- the tree ------------------------------------------------------------------------------------------------

    def _solve(self, waiting: list[int]) -> bool:
        """Place all of `waiting` (by first section), component by component, the smallest first."""
        first, last = self._first, self._last
        components: list[list[int]] = []
        reach = -1
        for b in waiting:
            if first[b] >= reach:
                components.append([])
            components[-1].append(b)
            reach = max(reach, last[b])
        if len(components) > 1:
            components.sort(key=len)
            for component in components:  # noqa: SIM110 (`all` would take frames of the interpreter's own stack)
                if not self._branch_once(component):
                    return False
            return True
        return self._branch(components[0]) if components else True

    def _branch_once(self, waiting: list[int]) -> bool:
        """As `_branch`, but a component that was placed before, in this state, is placed so again."""
        state = self._fingerprint(waiting)
        placed = self._placed.get(state)
        if placed is None:
            if not self._branch(waiting):
                return False
            if len(self._placed) < _MOST_PLACED:
                self._placed[state] = [self._offset[b] for b in waiting]
        else:
            for b, offset in zip(waiting, placed):
                self._offset[b] = offset
        return True

    def _branch(self, waiting: list[int]) -> bool:
        """Place the buffers of one component; on failure the state is as it was but for what the caller undoes."""
        failed: list[bytes] = []
        while True:  # each turn is a node; "none of them" turns again with higher floors
            self._count_node()
            if not self._settle(waiting):
                break
            state = self._fingerprint(waiting)
            if state in self._nogoods:
                break
            failed.append(state)
            section, answers = self._select(waiting)
            floor = self._floor[section]
            answers.sort(key=self._preference.__getitem__, reverse=True)
            mark = len(self._trail)
            tried = set()
            for b in answers:
                if self._twin[b] not in tried:  # of interchangeable buffers one is enough
                    tried.add(self._twin[b])
                    if self._place(b, floor) and self._solve([c for c in waiting if c != b]):
                        return True
                    self._undo(mark)
            if not self._leave_empty(section, floor):
                break
        if len(self._nogoods) < _MOST_NOGOODS:
            self._nogoods.update(failed)
        return False

    def _count_node(self) -> None:
        self._nodes += 1
        if self._nodes > self._node_limit or time.monotonic() > self._deadline:
            raise _Stopped

    # -- moves, all undone through the trail ------------------------------------------------------------------------

    def _place(self, b: int, offset: int) -> bool:
        """Put b at `offset` and lift what shares its time onto it; False if something no longer fits."""
        trail, rest, prop, end = self._trail, self._rest, self._prop, self._end
        size, latest, total = self._size, self._latest, self._total
        first, last = self._first, self._last
        top, low, high = offset + size[b], first[b], last[b]
        trail.append((rest, b, rest[b]))
        trail.append((end, b, end[b]))
        rest[b] = end[b] = _PLACED
        self._offset[b] = offset
        own = size[b]
        for s in range(low, high):
            trail.append((total, s, total[s]))
            total[s] -= own
        lifted = []
        for c in self._neighbours[b]:
            if rest[c] == _PLACED:
                continue
            above = -(-top // self._align[c]) * self._align[c] if self._aligned else top
            if prop[c] < above:
                trail.append((prop, c, prop[c]))
                prop[c] = above
            if rest[c] < above:
                if above > latest[c]:
                    return False
                trail.append((rest, c, rest[c]))
                trail.append((end, c, end[c]))
                rest[c] = above
                end[c] = above + size[c]
                lifted.append(c)
        if self._aligned:
            low, high = min([low, *[first[c] for c in lifted]]), max([high, *[last[c] for c in lifted]])
            return self._raise_floors(low, high, _PLACED)
        return self._raise_onto(first[b], last[b], top, lifted)

    def _raise_onto(self, low: int, high: int, top: int, lifted: list[int]) -> bool:
        """Raise floors after `lifted` were put onto a buffer of sections [low, high) that ends at `top`.

        Everything in these sections lies at `top` or higher now, so it is the floor wherever one of the lifted lives.
        """
        first, last = self._first, self._last
        lives = sorted([(first[c], last[c]) for c in lifted])
        if lives and lives[0][0] < low and not self._raise_floors(lives[0][0], low, top):
            return False
        floor, total, trail, room = self._floor, self._total, self._trail, self.capacity - top
        at = low
        for start, end in lives:
            if start > at and not self._raise_floors(at, min(start, high), _PLACED):
                return False
            for s in range(max(at, start), min(end, high)):
                trail.append((floor, s, floor[s]))
                floor[s] = top
                if total[s] > room:
                    self._conflicts[s] += 1
                    return False
            at = max(at, end)
            if at >= high:
                break
        if at < high and not self._raise_floors(at, high, _PLACED):
            return False
        reach = max([end for _, end in lives], default=high)
        return reach <= high or self._raise_floors(high, reach, top)

    def _lift(self, b: int, offset: int) -> bool:
        """Forbid b below `offset`; False if it no longer fits."""
        if offset > self._latest[b]:
            return False
        self._trail.append((self._rest, b, self._rest[b]))
        self._trail.append((self._end, b, self._end[b]))
        self._rest[b] = offset
        self._end[b] = offset + self._size[b]
        return self._raise_floors(self._first[b], self._last[b], offset)

    def _raise_floors(self, low: int, high: int, below: int) -> bool:
        """Recompute the floors of sections [low, high) that lie under `below`; False if one holds too much.

        A section's witness is a buffer that lay on its floor when last looked at: where it still does, nothing changed.
        """
        floor, total, rest, pick, capacity = self._floor, self._total, self._rest, self._pick, self.capacity
        witness, members = self._witness, self._members
        for s in range(low, high):
            if floor[s] < below and rest[witness[s]] != floor[s]:
                lying = pick[s](rest)
                least = min(lying)
                if least < _PLACED:
                    witness[s] = members[s][lying.index(least)]
                    if floor[s] < least:
                        self._trail.append((floor, s, floor[s]))
                        floor[s] = least
                        if least + total[s] > capacity:
                            self._conflicts[s] += 1
                            return False
        return True

    def _leave_empty(self, section: int, floor: int) -> bool:
        """ "None of them": everything of `section` that could lie at `floor` rests on a neighbour, higher up."""
        if floor + self._total[section] >= self.capacity:
            return False
        lifts = [(b, self._lowest_rest(b)) for b in self._members[section] if self._rest[b] == floor]
        return all(self._lift(b, offset) for b, offset in lifts)

    def _lowest_rest(self, b: int) -> int:
        """The lowest top that a buffer not yet placed can offer to b."""
        least = min(self._pick_near[b](self._end), default=_PLACED)
        return -(-least // self._align[b]) * self._align[b]

    def _settle(self, waiting: list[int]) -> bool:
        """Lift every buffer that would float to the lowest offset at which something could still come under it."""
        rest, prop = self._rest, self._prop
        floating = [b for b in waiting if rest[b] > prop[b]]
        again = bool(floating)
        turns = 0
        while again:
            again = False
            turns += 1
            if turns % _CHECK_CLOCK == 0 and time.monotonic() > self._deadline:
                raise _Stopped  # small buffers under a large one lift it by their size at a time
            for b in floating:
                offset = self._lowest_rest(b)
                if offset > rest[b]:
                    if not self._lift(b, offset):
                        return False
                    again = True
        return True

    def _undo(self, mark: int) -> None:
        trail = self._trail
        while len(trail) > mark:
            values, i, old = trail.pop()
            values[i] = old

    # -- which section to ask about ---------------------------------------------------------------------------------

    def _lowest(self, waiting: list[int]) -> tuple[int, list[int]]:
        rest, total = self._rest, self._total
        floor = min([rest[b] for b in waiting])
        ready = [b for b in waiting if rest[b] == floor]
        best = max({self._heaviest(b, total) for b in ready}, key=lambda s: (total[s], -s))
        return best, [b for b in ready if self._first[b] <= best < self._last[b]]

    def _fewest(self, waiting: list[int]) -> tuple[int, list[int]]:
        return self._least_choice(waiting, [1] * len(self._members))

    def _sorest(self, waiting: list[int]) -> tuple[int, list[int]]:
        return self._least_choice(waiting, [1 + conflicts for conflicts in self._conflicts])

    def _least_choice(self, waiting: list[int], weight: list[int]) -> tuple[int, list[int]]:
        """The section with the fewest answers per weight, then the least slack; "none" counts where slack is left."""
        first, last, floor, total, capacity = self._first, self._last, self._floor, self._total, self.capacity
        ready = self._ready(waiting)
        change = [0] * (len(floor) + 1)
        for b in ready:
            change[first[b]] += 1
            change[last[b]] -= 1
        ranks = []
        for s, count in enumerate(accumulate(change)):
            if count:
                load = floor[s] + total[s]
                choices = count + (load < capacity)
                ranks.append((0.0 if choices == 1 else choices / weight[s], -load, s))  # one answer is no choice
        heapify(ranks)
        while ranks:
            s = heappop(ranks)[2]
            if answers := self._answers(s, ready):
                return s, answers
        return self._lowest(waiting)

    def _ready(self, waiting: list[int]) -> set[int]:
        """Buffers that can be placed at once: they rest on something, and nothing can come under them any more."""
        rest, prop, floor, first, last = self._rest, self._prop, self._floor, self._first, self._last
        resting = [b for b in waiting if rest[b] == prop[b] == floor[first[b]]]
        return {b for b in resting if rest[b] == min(floor[first[b] : last[b]])}

    def _answers(self, section: int, ready: set[int]) -> list[int]:
        """Buffers that may lie on the section's floor; none if one of them has to wait for something below it."""
        floor = self._floor[section]
        answers = [b for b in self._members[section] if self._rest[b] == floor]
        return answers if ready.issuperset(answers) else []

    def _heaviest(self, b: int, load: list[int]) -> int:
        return max(range(self._first[b], self._last[b]), key=load.__getitem__)

    # -- what failed ------------------------------------------------------------------------------------------------

    def _fingerprint(self, waiting: list[int]) -> bytes:
        """128 bits of everything the rest of a component depends on: its buffers, rest and prop."""
        rest, prop = self._rest, self._prop
        state = array("q", waiting)
        state.extend([rest[b] for b in waiting])
        state.extend([prop[b] for b in waiting])
        return blake2b(state.tobytes(), digest_size=16).digest()


def _picker(indices: Sequence[int]) -> Callable[[list[int]], tuple[Any, ...]]:
    """A function that reads the entries at `indices` off a list."""
    if not indices:
        return lambda values: ()
    if len(indices) == 1:
        only = indices[0]
        return lambda values: (values[only],)
    return itemgetter(*indices)
