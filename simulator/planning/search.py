"""The best over all ways to run a step: in the least time within a budget, or in the least memory within a time.

What a plan *needs* is what its tensors take at once (`allocated`), or what PyTorch's caching allocator holds for the
same allocations and frees, fragmentation counted (`reserved`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from peakline.planning.addresses import reserved_by, staying
from peakline.planning.attempt import GREEDY, Attempt
from peakline.planning.chains import Chain, chain_of
from peakline.planning.execute import DEVICE
from peakline.planning.extract import Keys
from peakline.planning.policies import decided
from peakline.planning.whole import in_whole
from peakline.solvers.offload.linear import NEVER, Infeasible
from peakline.solvers.offload.problem import Decisions, Problem
from peakline.streams import Deadlock, Timeline

__all__ = ["Found", "Search"]

TRIES = 7
"""Budgets that are tried at most until what the allocator reserves fits."""

PROBES = 6
"""Budgets that are tried at most on the way to the least memory."""

WIDE = 0.02
"""Where a plan is further above its bound, the decisions for the smallest budget and all of the room are tried too."""

PATIENCE = 12.0
"""Seconds of computing from which on other pieces are not tried where there is a plan."""

NEARLY = 0.002
"""Other pieces whose bound is no further below a plan than this part are not tried."""

CHAIN = "dynamic programme over the chain of layers (Rotor)"

NEAR = 200
"""Two budgets within this part of the larger are not told apart."""


@dataclass(frozen=True)
class Found:
    """Decisions and their simulation."""

    attempt: Attempt
    problem: Problem
    keys: Keys
    decisions: Decisions
    timeline: Timeline

    def needs(self, fit: str) -> int:
        """Bytes of the device that it takes: alive at once, or as reserved by the caching allocator."""
        return self.timeline.peak(DEVICE) if fit == "allocated" else self._reserved

    @cached_property
    def _reserved(self) -> int:
        stays = staying(self.attempt.profile.program, self.problem, self.keys.items, self.decisions)
        return reserved_by(self.timeline, DEVICE, stays)


@dataclass
class Search:
    """Ways to run a step, and what must fit.

    Attributes:
        attempts: the ways.
        coarse: further ones, for budgets that these do not reach or do not serve best.
        fit: `allocated` or `reserved`.
        until: the processor's time from which on nothing further is tried where something was found.
    """

    attempts: Sequence[Attempt]
    coarse: Sequence[Attempt]
    fit: str = "allocated"
    until: float = field(default_factory=lambda: time.process_time() + PATIENCE)

    # ---- the least time -------------------------------------------------------------------------------------------
    def fastest(self, room: int, aim: int) -> tuple[Found, float] | None:
        """The fastest plan that needs at most `room` bytes, and seconds that none can beat; None where none is known.

        Args:
            aim: bytes that tensors alive at once may take, at most `room`.
        """
        outcome = self._fastest(room, aim)
        if outcome is not None and aim < room and outcome[0].timeline.makespan > outcome[1] * (1 + WIDE):
            whole = self._fastest(room, room)
            outcome = min(outcome, whole or outcome, key=lambda found: found[0].timeline.makespan)
        if outcome is None:
            floor = self._smallest[0]
            if floor is not None and floor.needs(self.fit) <= room:
                outcome = floor, min(self._bound(attempt, room) for attempt in (*self.attempts, *self.coarse))
        return outcome

    def _fastest(self, room: int, aim: int) -> tuple[Found, float] | None:
        """The same, as far as each budget is looked at for itself."""
        outcomes: list[Found] = []
        refused: list[Attempt] = []
        for attempt in sorted(self.attempts, key=lambda attempt: self._bound(attempt, aim)):
            if outcomes and self._bound(attempt, aim) >= min(found.timeline.makespan for found in outcomes):
                continue  # nothing to win
            try:
                outcomes.append(self._within(attempt, room, aim))
            except Infeasible:
                refused.append(attempt)
        lower = min((found.decisions.lower_bound for found in outcomes), default=NEVER)
        if outcomes:
            lower = min([lower, *(self._bound(attempt, aim) for attempt in refused)])
        lower = min(lower, self._in_other_pieces(room, aim, outcomes))
        if not outcomes or min(found.timeline.makespan for found in outcomes) > lower * (1 + WIDE):
            outcomes += [found for found in self._tight if outcomes and found.needs(self.fit) <= room]
            outcomes += self._chained(room)
        if not outcomes:
            return None
        best = min(outcomes, key=lambda found: found.timeline.makespan)
        by_chain = min((chain.lower_bound(room) for chain in self._chains.values()), default=NEVER)
        if best.decisions.method == CHAIN:  # of another class: stages may run more than twice
            lower = min(lower, by_chain)
        return best, lower

    def _in_other_pieces(self, room: int, aim: int, outcomes: list[Found]) -> float:
        """Add what the further attempts find that may still be faster; the least of the bounds that were looked at."""
        best = min((found.timeline.makespan for found in outcomes), default=NEVER)
        asis = min((sum(attempt.profile.seconds) for attempt in self.attempts), default=0.0)
        if best <= asis * (1 + GREEDY) or (outcomes and time.process_time() > self.until):
            return NEVER
        bounds = sorted(((self._bound(attempt, aim), n) for n, attempt in enumerate(self.coarse)))
        for lower, number in bounds:
            if lower * (1 + NEARLY) >= best or (outcomes and time.process_time() > self.until):
                break
            try:
                outcomes.append(self._within(self.coarse[number], room, aim))
            except Infeasible:
                continue
            best = min(best, outcomes[-1].timeline.makespan)
        return min((lower for lower, _ in bounds), default=NEVER)

    # ---- sequential models ----------------------------------------------------------------------------------------
    @cached_property
    def _chains(self) -> dict[Attempt, Chain]:
        """The attempts that are chains, where nothing but recomputation is decided by them."""
        plain = [a for a in self.attempts if "recompute" in a.words and not (a.whole or a.states or a.profile.host)]
        return {attempt: chain for attempt in plain if (chain := chain_of(attempt.profile))}

    def _chained(self, room: int) -> list[Found]:
        """The best schedules of chains that need at most `room` bytes."""
        timelines = [(attempt, chain.within(room)) for attempt, chain in self._chains.items()]
        found = [self._of_chain(attempt, timeline) for attempt, timeline in timelines if timeline is not None]
        return [one for one in found if one.needs(self.fit) <= room]

    def _of_chain(self, attempt: Attempt, timeline: Timeline) -> Found:
        """A chain's schedule as decisions: what it makes again is recomputed, everything else stays."""
        problem, keys = attempt.problem(max(attempt.profile.live))
        again = {run.task.name.removesuffix(" again") for run in timeline.runs if run.task.kind == "recompute"}
        groups = {
            g for g, steps in enumerate(keys.groups) if all(attempt.profile.steps[i].name in again for i in steps)
        }
        decisions = replace(decided(problem, groups, {}), seconds=timeline.makespan, method=CHAIN)
        return Found(attempt, problem, keys, decisions, timeline)

    def _bound(self, attempt: Attempt, room: int) -> float:
        try:
            return attempt.bound(room)
        except Infeasible:
            return float("inf")

    def _within(self, attempt: Attempt, room: int, aim: int) -> Found:
        """The fastest plan of one attempt that needs at most `room` bytes.

        What the allocator reserves cannot be asked of a linear program: tensors get less and less room until the replay
        of the allocator fits, and then more again, halving the interval.

        Raises:
            Infeasible: there is none.
        """
        found = first = Found(attempt, *attempt.within(aim))
        over = found.needs(self.fit) - room
        if self.fit == "allocated" or over <= 0:
            return found
        best: Found | None = None
        low, high = 0, aim
        for _ in range(TRIES):
            target = (low + high) // 2 if best is not None else high - max(over, high // NEAR)
            if high - low <= high // NEAR or target <= 0:
                break
            try:
                found = Found(attempt, *attempt.within(target))
            except Infeasible:
                if best is None:
                    raise
                low = target
                continue
            over = found.needs(self.fit) - room
            if over > 0:
                high = target
                continue
            low = target
            if best is None or found.timeline.makespan < best.timeline.makespan:
                best = found
        if best is None:
            raise Infeasible(room, NEVER)
        return replace(best, decisions=replace(best.decisions, lower_bound=first.decisions.lower_bound))

    # ---- the least memory -----------------------------------------------------------------------------------------
    @cached_property
    def _tight(self) -> list[Found]:
        """Each attempt's decisions for the smallest budget of the linear program."""
        return self._tightest(None)

    @cached_property
    def _smallest(self) -> tuple[Found | None, int]:
        """The plan that needs least, whatever budget is asked for."""
        found = self.smallest(None)
        return found if found is not None else (None, NEVER)

    def floor(self) -> Found:
        """The plan that needs least: at every budget from there on there is a plan.

        Raises:
            Infeasible: no budget is enough.
        """
        if self._smallest[0] is None:
            raise Infeasible(0, NEVER)
        return self._smallest[0]

    def smallest(self, limit: float | None) -> tuple[Found, int] | None:
        """The plan that needs least and takes at most `limit` seconds; and bytes that none of its kind can go below.

        None where none is known to keep the limit.
        """
        everyone = (*self.attempts, *self.coarse)
        least = min(self._least(attempt, limit) for attempt in everyone)
        least = min([least, *(chain.least_bytes(limit) for chain in self._chains.values())])
        if limit is None:
            candidates = self._tight
        else:
            candidates = self._tightest(limit)
        for attempt, chain in self._chains.items():
            timeline = chain.smallest(limit)
            if timeline is not None and (limit is None or timeline.makespan <= limit):
                candidates = [*candidates, self._of_chain(attempt, timeline)]
        best = min(candidates, key=lambda found: found.needs(self.fit), default=None)
        low, high = least, best.needs(self.fit) if best else max(max(a.profile.live) for a in self.attempts)
        for probe in range(PROBES):
            room = high if probe == 0 else (low + high) // 2  # first: the fastest that needs no more
            outcome = self._fastest(room, room)
            kept = outcome is not None and (limit is None or outcome[0].timeline.makespan <= limit)
            if outcome is not None and kept:
                best = _better(best, outcome[0], self.fit)
                high = min(high, best.needs(self.fit))
            elif probe:
                low = room
            if high - low <= high // NEAR:
                break
        return None if best is None else (best, least)

    def _least(self, attempt: Attempt, limit: float | None) -> int:
        try:
            return attempt.programs.least_budget(hopeful=True, limit=limit)
        except Infeasible:
            return NEVER

    def _tightest(self, limit: float | None) -> list[Found]:
        """Each attempt's decisions for the smallest budget, in the least room in which their replay goes through.

        The least room is looked for where the linear program needs less than what is found already.
        """
        decided: list[tuple[int, int, Attempt, Decisions]] = []
        for number, attempt in enumerate((*self.attempts, *self.coarse)):
            try:
                decisions, least = attempt.programs.tightest(limit=limit, time_limit=attempt.time_limit)
            except Infeasible:
                continue
            decided.append((least, number, attempt, decisions))
        found: list[Found] = []
        for least, _, attempt, decisions in sorted(decided, key=lambda one: one[:2]):
            problem, keys = attempt.problem(max(attempt.profile.live))
            best: Found | None = None
            variants = [in_whole(problem, decisions, up=up) for up in (False, True)] if attempt.whole else [decisions]
            for variant in variants:
                known = min((one.timeline.peak(DEVICE) for one in found), default=NEVER)
                for timeline in _narrowing(attempt, problem, keys, variant, least, known):
                    if limit is None or timeline.makespan <= limit:
                        best = _better(best, Found(attempt, problem, keys, variant, timeline), self.fit)
            found += [best] if best else []
        return found


def _better(one: Found | None, other: Found, fit: str) -> Found:
    """The one that needs less; the faster of two that need the same."""
    if one is None:
        return other
    return min(one, other, key=lambda found: (found.needs(fit), found.timeline.makespan))


def _narrowing(
    attempt: Attempt, problem: Problem, keys: Keys, decisions: Decisions, least: int, known: int
) -> Iterator[Timeline]:
    """Replays in less and less room: where copies wait for room they are in nobody's way.

    Where nothing is copied, or no less than `known` bytes can come of it, the first one is all there is.
    """
    try:
        timeline = attempt.carried_out(problem, keys, decisions, None)
    except ValueError:
        return  # something that is executed again reads what another piece let go
    yield timeline
    low, high = least, timeline.peak(DEVICE)
    if least >= known or not any(timeline.moved.values()):
        return
    while high - low > high // NEAR // 4:
        middle = (low + high) // 2
        try:
            timeline = attempt.carried_out(problem, keys, decisions, middle)
        except (Deadlock, ValueError):
            low = middle
        else:
            yield timeline
            high = timeline.peak(DEVICE)
