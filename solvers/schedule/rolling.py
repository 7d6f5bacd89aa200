"""Addresses step by step, with an exact search that looks ahead; a little more is dropped where nothing else helps.

Two sources of advice say where an arrival should lie: a placement of the large episodes of the whole schedule, and an
exact placement of the next episodes, large or small, beside what is resident, renewed as the steps pass. Where neither
helps, residents are dropped as `residents.py` says, so this succeeds whenever the capacity holds the largest working
set.
"""

from __future__ import annotations

import time

from peakline.solvers.allocation import Instance, InstanceError, allocate
from peakline.solvers.dag import Dag, bits
from peakline.solvers.schedule.episodes import Schedule, episodes, gaps, traffic
from peakline.solvers.schedule.residents import Residents

__all__ = ["place_at_least_cost", "place_in_turn"]

_WINDOW = 96  # episodes looked at
_SECONDS = 1.0  # for one window
_PAUSE = 8  # steps without a new window after one that admits no placement
_LARGE = (50, 20, 8)  # an episode is large from the first of these parts of the capacity at which few enough are
_MOST_LARGE = 400
_CRUMBS = 1000
_ATTEMPTS = 6


def place_in_turn(
    dag: Dag, schedule: Schedule, capacity: int, *, deadline: float = 0.0, seed: int = 0, large_first: bool = True
) -> tuple[Schedule, tuple[int, ...]]:
    """The schedule with further drops such that addresses exist, and the offsets of its episodes.

    There is advice until the deadline (`time.perf_counter`); the default asks for none.
    """
    if deadline > time.perf_counter():
        schedule = _without_crumbs(dag, schedule)
    turn = _Turn(dag, schedule, capacity, deadline, seed, large_first)
    for step, i in enumerate(schedule.order):
        turn.run(step, i)
    placed = Schedule(schedule.order, frozenset(turn.dropped))
    return placed, tuple(turn.offsets[box.tensor, box.first] for box in episodes(dag, placed))


def _without_crumbs(dag: Dag, schedule: Schedule) -> Schedule:
    """The smallest tensors also dropped while they are idle, as long as that adds a thousandth to the traffic at most.

    They fragment the scratchpad and slow the search down, which lifts a large tensor over them one by one.
    """
    dropped, allowed = set(schedule.dropped), traffic(dag, schedule.dropped) // _CRUMBS
    for size, a, k in sorted((dag.size[a], a, k) for a, k, _, _ in gaps(dag, schedule.order)):
        allowed -= 2 * size
        if allowed < 0:
            break
        dropped.add((a, k))
    return Schedule(schedule.order, frozenset(dropped))


def place_at_least_cost(
    dag: Dag, schedule: Schedule, capacity: int, *, deadline: float, seed: int
) -> tuple[Schedule, tuple[int, ...]]:
    """The best of a few `place_in_turn`, with and without placing the large episodes first, until the deadline."""
    found: list[tuple[Schedule, tuple[int, ...]]] = []
    least = traffic(dag, schedule.dropped)
    for attempt in range(_ATTEMPTS):
        first = attempt % 2 == 1
        found.append(
            place_in_turn(dag, schedule, capacity, deadline=deadline, seed=seed + attempt // 2, large_first=first)
        )
        more = traffic(dag, found[-1][0].dropped) - least
        if time.perf_counter() > deadline or more * _CRUMBS <= least:
            break
    return min(found, key=lambda placed: traffic(dag, placed[0].dropped))


class _Turn(Residents):
    """Steps taken one after the other, with advice."""

    def __init__(
        self, dag: Dag, schedule: Schedule, capacity: int, deadline: float, seed: int, large_first: bool
    ) -> None:
        super().__init__(dag, schedule.order, capacity, schedule.dropped)
        self.deadline, self.seed = deadline, seed
        self.steps = [[step for step, _ in listed] for listed in self.events]
        self.starts = sorted((s, a) for a, steps in enumerate(self.steps) for s in steps)
        self.next = 0  # position in `starts`
        self.large = self._large() if large_first else {}
        self.advice = dict(self.large)
        self.known = 0  # steps up to this one have been looked at
        self.pause = 0

    def run(self, step: int, i: int) -> None:
        """The operator's tensors come, with fresh advice where what is known ends, and what ends leaves."""
        touched = list(bits(self.dag.touch[i]))
        arriving = not self.at.keys() >= set(touched)
        if arriving and step >= max(self.known, self.pause) and time.perf_counter() < self.deadline:
            self._look_ahead(step)
        self.admit(step, touched, self.advice)
        self.pass_step(touched)

    def _stay(self, a: int, use: int) -> int:
        """The last step of the episode that holds the tensor's use number `use`."""
        while use + 1 < len(self.steps[a]) and (a, use) not in self.dropped:
            use += 1
        return self.steps[a][use]

    def _large(self) -> dict[tuple[int, int], int]:
        """Offsets for the large episodes of the whole schedule, if they can be placed by themselves."""
        left = self.deadline - time.perf_counter()
        if left <= 0:
            return {}
        keys: list[tuple[int, int]] = []
        for part in _LARGE:
            keys = [
                (a, use)
                for a, steps in enumerate(self.steps)
                if self.dag.size[a] * part >= self.capacity
                for use in range(len(steps))
                if use == 0 or (a, use - 1) in self.dropped
            ]
            if len(keys) <= _MOST_LARGE:
                break
        if not 0 < len(keys) <= _MOST_LARGE:
            return {}
        boxes = [(self.steps[a][use], self._stay(a, use) + 1, self.dag.size[a]) for a, use in keys]
        found = allocate(Instance.of(boxes), self.capacity, time_limit=min(left / 4, 5 * _SECONDS), seed=self.seed)
        if found.offsets is None:
            return {}
        return {(a, self.steps[a][use]): offset for (a, use), offset in zip(keys, found.offsets)}

    def _look_ahead(self, step: int) -> None:
        """Advice for the next episodes: with the large ones where they should lie if that is possible, else without."""
        while self.next < len(self.starts) and self.starts[self.next][0] < step:
            self.next += 1
        coming: list[tuple[int, int, int]] = []  # tensor, first and last step
        number = {a: self.used[a] for a in range(len(self.used))}
        for first, a in self.starts[self.next :]:
            use = number[a]
            number[a] += 1
            if (first == self.steps[a][self.used[a]] and a not in self.at) or (a, use - 1) in self.dropped:
                coming.append((a, first, self._stay(a, use)))
            if len(coming) == _WINDOW:
                break
        there = [(a, self._stay(a, self.used[a] - 1)) for a in self.at]
        for with_large in (True, False) if self.large else (False,):
            fixed = [*self.at.values(), *(self.large.get((a, s)) if with_large else None for a, s, _ in coming)]
            boxes = [(step, last + 1, self.dag.size[a]) for a, last in there]
            boxes += [(first, last + 1, self.dag.size[a]) for a, first, last in coming]
            found = self._solve(boxes, fixed)
            if found is not None:
                self.advice |= {(a, s): offset for (a, s, _), offset in zip(coming, found[len(there) :])}
                whole = len(coming) < _WINDOW
                self.known = len(self.steps) + len(self.starts) if whole else coming[len(coming) // 2][1] + 1
                return
        self.pause = step + _PAUSE

    def _solve(self, boxes: list[tuple[int, int, int]], fixed: list[int | None]) -> tuple[int, ...] | None:
        """Offsets of boxes, some of them fixed; None if none were found in time."""
        left = min(self.deadline - time.perf_counter(), _SECONDS)
        if left <= 0:
            return None
        try:
            instance = Instance.of(boxes, fixed=fixed)
        except InstanceError:
            return None  # residents lie where large episodes should
        return allocate(instance, self.capacity, time_limit=left, seed=self.seed).offsets

    def drop(self, a: int) -> None:
        """A resident leaves until its next use: what was foreseen no longer holds."""
        super().drop(a)
        self.known = 0
