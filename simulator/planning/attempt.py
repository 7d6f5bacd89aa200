"""One way to run the step, and everything else decided for it: solved, rounded, replayed until it fits."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property

from peakline.planning.coarse import coarse, fine, parted, root
from peakline.planning.execute import executed_program
from peakline.planning.extract import Keys, Profile, problem_of, saved
from peakline.planning.packing import Codec, packings
from peakline.planning.policies import Greedy
from peakline.planning.tiers import Surroundings, beside
from peakline.planning.turns import HostOptimizer, hosted_bytes
from peakline.planning.whole import in_whole, is_captured
from peakline.solvers.offload.linear import Infeasible, Programs
from peakline.solvers.offload.problem import Decisions, Packing, Problem
from peakline.streams import Deadlock, Timeline, simulate

__all__ = ["Attempt", "hosted", "modes", "others"]

ATTEMPTS = 10
"""Budgets that the solver is given at most."""

STEPS = 1024
"""The first reserve is this part of what must leave; the next ones add twice as much each time."""

ROUNDED = 0.01
"""Where rounding is further above the bound, the mixed-integer program is asked as well."""

INTEGERS = 2
"""Mixed-integer programs that are solved at most for one budget."""

CONFIRMED = 0.001
"""A replay within this of the solver's time has nothing to win from a larger reserve."""

GREEDY = 0.005
"""A greedy policy within this of the lower bound is the plan: no solver can win more."""


def modes(words: tuple[str, ...], around: Surroundings | None) -> list[tuple[bool, HostOptimizer | None]]:
    """Ways to run the optimizer that are worth trying: as it is; in turns; on the host."""
    if "offload-optimizer" not in words or around is None:
        return [(False, None)]
    on_host = [(True, HostOptimizer(around.host_bandwidth, around.common[1]))] if around.hosted else []
    return [(True, None), *on_host]


SMALL = 128
"""Steps up to which a program is also planned in parts of layers."""

LENGTHS = (1, 2, 4)
"""Steps of such a part."""


def others(profiles: list[Profile], words: tuple[str, ...]) -> Iterator[Profile]:
    """The same programs in other pieces, for budgets that layers do not reach, or do not serve best.

    Parts of layers hold less while they run again, stretches of two and of √n layers need fewer inputs to be kept.
    Where a program is small, a few operators are a piece: a single block has nothing else to choose from. A captured
    step is carried out layer by layer, or in parts of layers.
    """
    for taken in profiles if "recompute" in words else ():
        if len(taken.steps) <= SMALL:
            yield from (fine(taken, length) for length in LENGTHS)
            continue
        parts = parted(taken)
        yield parts
        if all(step.block.family is None for step in taken.steps):
            yield parted(parts)
        if not is_captured(taken.estimate.graph):
            yield from (coarse(taken, length) for length in dict.fromkeys((2, root(taken))) if length > 1)


def hosted(taken: Profile, words: tuple[str, ...]) -> int:
    """Bytes that lie in the host's memory throughout, because it runs the optimizer; 0 where it does not."""
    return hosted_bytes(taken.program, parameters="offload-params" not in words) if taken.host is not None else 0


class Attempt:
    """One way to run the optimizer, and everything else decided for it."""

    def __init__(
        self, taken: Profile, words: tuple[str, ...], around: Surroundings | None, time_limit: float,
        codec: Codec | None = None,
    ) -> None:  # fmt: skip
        self.profile, self.words, self.around, self.time_limit, self.codec = taken, words, around, time_limit, codec
        self.whole = is_captured(taken.estimate.graph)
        self._bounds: dict[int, float | Infeasible] = {}
        states = {"optimizer_state", "gradient"} if "offload-optimizer" in words else set()
        self.states = frozenset(states | ({"parameter"} if "offload-params" in words else set()))
        if around is not None and taken.host is not None:
            self.around = beside(around, hosted(taken, words))

    @cached_property
    def _without_swap(self) -> Attempt | None:
        """The same where no activation moves; None where that is so already, or nothing is executed again."""
        if not {"recompute", "swap"} <= set(self.words):
            return None
        fewer = tuple(word for word in self.words if word != "swap")
        return Attempt(self.profile, fewer, self.around, self.time_limit, self.codec)

    @cached_property
    def _packings(self) -> dict[int, Packing]:
        return {} if self.codec is None else packings(self.profile, list(saved(self.profile)), self.codec)

    @cached_property
    def _asked(self) -> tuple[Problem, Keys]:
        """What is to be decided, whatever the budget."""
        around = self.around
        problem, keys = problem_of(
            self.profile, max(self.profile.live), around.tiers if around else (), recompute="recompute" in self.words,
            swap="swap" in self.words, states=self.states, packings=self._packings,
        )  # fmt: skip
        return (replace(problem, common=around.common) if around else problem), keys

    @cached_property
    def _greedy(self) -> Greedy:
        return Greedy(self.profile, *self._asked, self.around)

    @cached_property
    def programs(self) -> Programs:
        """The linear programs of what is to be decided."""
        return Programs(self._asked[0])

    def problem(self, room: int) -> tuple[Problem, Keys]:
        """What is to be decided for `room` bytes."""
        problem, keys = self._asked
        return replace(problem, budget=room), keys

    def bound(self, room: int) -> float:
        """Seconds that no plan of this way within `room` bytes can beat.

        Raises:
            Infeasible: not even that fits.
        """
        if room not in self._bounds:
            try:
                self._bounds[room] = self.programs.bound(room, time_limit=self.time_limit)
            except Infeasible as error:
                self._bounds[room] = error
        found = self._bounds[room]
        if isinstance(found, Infeasible):
            raise found
        return found

    def within(self, room: int) -> tuple[Problem, Keys, Decisions, Timeline]:
        """The best decisions whose replay stays within `room` bytes.

        Raises:
            Infeasible: there are none.
        """
        problem, keys = self.problem(room)
        lower = self.bound(room)
        simple = self._simple(room, lower, lower * (1 + GREEDY))
        if simple is not None:
            return problem, keys, *simple
        found: tuple[Decisions, Timeline] | None = None
        least = room
        try:
            found = self._refined(problem, keys, room, lower)
        except Infeasible as error:
            least = error.least
            if not (self.states or "swap" in self.words) and self.programs.least_budget() > room:
                raise  # without copies the program counts what a replay holds, so that no policy fits either
        limit = found[1].makespan if found else float("inf")
        if limit > lower * (1 + GREEDY):
            found = self._simple(room, lower, limit) or found
        if found is not None and found[1].makespan <= lower * (1 + GREEDY):
            return problem, keys, *found
        if self._without_swap is not None:  # the smaller program is solved better, and moves nothing in whole
            try:
                other = self._without_swap.within(room)
            except Infeasible:
                pass
            else:
                if found is None or other[-1].makespan < found[1].makespan:
                    return (*other[:2], replace(other[2], lower_bound=lower), other[3])
        if found is None:
            raise Infeasible(room, least)
        return problem, keys, *found

    def _refined(self, problem: Problem, keys: Keys, room: int, lower: float) -> tuple[Decisions, Timeline]:
        """The fastest of what is decided for smaller and smaller budgets and replayed within `room`.

        The solver lets bytes flow; the replay moves tensors. What it lacks for that it gets by a reserve that the
        solver may not use, which costs little and wins stalls, until the replay takes what the solver says.

        Raises:
            Infeasible: nothing was decided, or nothing of it stayed within the room.
        """
        best: tuple[Decisions, Timeline] | None = None
        first = step = max((problem.peak - room) // STEPS, 1)
        low, high, reserve, short = 0, room, 0, 0  # reserves that are too small, and that are large enough or too large
        kept = 0  # the reserve of the best
        until = time.process_time() + self.time_limit
        for _ in range(ATTEMPTS):
            try:
                decisions = self.programs.solve(
                    room - reserve, time_limit=self.time_limit, lower_bound=lower, integers=False
                )
            except Infeasible as error:
                if not reserve:
                    raise
                high, short = reserve, error.least - (room - reserve)
            else:
                found, short = self._replayed(problem, keys, decisions, room)
                beaten = best is not None and decisions.seconds >= best[1].makespan
                if beaten or (found is not None and found[1].makespan <= decisions.seconds * (1 + CONFIRMED)):
                    high = reserve
                else:
                    low = reserve
                if found is not None and (best is None or found[1].makespan < best[1].makespan):
                    best, kept = found, reserve
            if high - low <= first or (best is not None and time.process_time() > until):
                break
            reserve = (low + high) // 2 if high < room else low + max(step, short + short // 8)
            step *= 2
        if best is None:
            raise Infeasible(room, room + short)
        return self._in_integers(problem, keys, room - kept, lower, best)

    def _in_integers(
        self, problem: Problem, keys: Keys, target: int, lower: float, best: tuple[Decisions, Timeline]
    ) -> tuple[Decisions, Timeline]:
        """The best, or what the mixed-integer program decides for the same budget where rounding lost much."""
        room = problem.budget
        for _ in range(INTEGERS if best[1].makespan > lower * (1 + ROUNDED) else 0):
            try:
                decisions = self.programs.solve(target, time_limit=self.time_limit / 2, lower_bound=lower)
            except Infeasible:
                break
            found, short = self._replayed(problem, keys, decisions, room)
            if found is not None and found[1].makespan < best[1].makespan:
                best = found
            if found is not None or decisions.seconds >= best[1].makespan:
                break
            target -= short + short // 8
        return best

    def _replayed(
        self, problem: Problem, keys: Keys, decisions: Decisions, room: int
    ) -> tuple[tuple[Decisions, Timeline] | None, int]:
        """The decisions as simulated, None where they do not stay within the room; and the bytes they are short of.

        Where tensors move as a whole, rounded to as many bytes as were decided, and rounded up.
        """
        best: tuple[Decisions, Timeline] | None = None
        short = 0
        for variant in [in_whole(problem, decisions, up=up) for up in (False, True)] if self.whole else [decisions]:
            try:
                timeline = self.carried_out(problem, keys, variant, room)
            except Deadlock as error:
                short = error.needed - error.free
            except ValueError:
                continue  # something that is executed again reads what another piece let go
            else:
                if best is None or timeline.makespan < best[1].makespan:
                    best = variant, timeline
        return best, short

    def _simple(self, room: int, lower: float, limit: float) -> tuple[Decisions, Timeline] | None:
        """What a greedy policy does, if it takes at most `limit` seconds."""
        if self.states or self.profile.host is not None:
            return None  # policies decide on activations alone
        found = self._greedy.within(room, self.words, limit)
        if found is None:
            return None
        name, decisions, timeline = found
        seconds = timeline.makespan
        return replace(decisions, seconds=seconds, lower_bound=lower, method=f"greedy: {name}"), timeline

    def carried_out(self, problem: Problem, keys: Keys, decisions: Decisions, room: int | None) -> Timeline:
        """The step as simulated, in a device of `room` bytes: allocations wait for what is on its way out.

        Raises:
            Deadlock: something came back too early, and what runs cannot go on.
        """
        routes, links = (self.around.routes, self.around.links) if self.around else ((), {})
        return simulate(executed_program(self.profile, problem, keys, decisions, routes, links, room))
