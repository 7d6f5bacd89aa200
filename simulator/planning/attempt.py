"""One way to run the step, and everything else decided for it: solved, rounded, replayed until it fits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property

from peakline.planning.coarse import coarse, root
from peakline.planning.execute import executed_program
from peakline.planning.extract import Keys, Profile, problem_of, saved
from peakline.planning.packing import Codec, packings
from peakline.planning.policies import good_enough
from peakline.planning.tiers import Surroundings
from peakline.planning.turns import HostOptimizer
from peakline.planning.whole import in_whole, is_captured
from peakline.solvers.offload.linear import Infeasible, bound, solve
from peakline.solvers.offload.problem import Decisions, Packing, Problem
from peakline.streams import Deadlock, Timeline, simulate

__all__ = ["Attempt", "modes", "stretches"]

ATTEMPTS = 5
"""Times the budget given to the solver is lowered by what the replay shows it to be passed."""

GREEDY = 0.005
"""A greedy policy within this of the lower bound is the plan: no solver can win more."""


def modes(words: tuple[str, ...], around: Surroundings | None) -> list[tuple[bool, HostOptimizer | None]]:
    """Ways to run the optimizer that are worth trying: as it is; in turns; on the host."""
    if "offload-optimizer" not in words or around is None:
        return [(False, None)]
    on_host = [(True, HostOptimizer(around.host_bandwidth, around.common[1]))] if around.hosted else []
    return [(True, None), *on_host]


def stretches(profiles: list[Profile], words: tuple[str, ...]) -> Iterator[Profile]:
    """The same programs with √n layers to a stretch: fewer layer inputs to keep, for the smallest budgets.

    A captured step is carried out layer by layer, so it has none.
    """
    for taken in profiles if "recompute" in words else ():
        if root(taken) > 1 and not is_captured(taken.estimate.graph):
            yield coarse(taken, root(taken))


class Attempt:
    """One way to run the optimizer, and everything else decided for it."""

    def __init__(
        self, taken: Profile, words: tuple[str, ...], around: Surroundings | None, time_limit: float,
        codec: Codec | None = None,
    ) -> None:  # fmt: skip
        self.profile, self.words, self.around, self.time_limit, self.codec = taken, words, around, time_limit, codec
        self.whole = is_captured(taken.estimate.graph)
        states = {"optimizer_state", "gradient"} if "offload-optimizer" in words else set()
        self.states = frozenset(states | ({"parameter"} if "offload-params" in words else set()))

    @cached_property
    def _packings(self) -> dict[int, Packing]:
        return {} if self.codec is None else packings(self.profile, list(saved(self.profile)), self.codec)

    def problem(self, room: int) -> tuple[Problem, Keys]:
        """What is to be decided for `room` bytes."""
        around = self.around
        problem, keys = problem_of(
            self.profile, room, around.tiers if around else (), recompute="recompute" in self.words,
            swap="swap" in self.words, states=self.states, packings=self._packings,
        )  # fmt: skip
        return (replace(problem, common=around.common) if around else problem), keys

    def within(self, room: int) -> tuple[Problem, Keys, Decisions, Timeline]:
        """The best decisions whose replay stays within `room` bytes.

        Raises:
            Infeasible: there are none.
        """
        problem, keys = self.problem(room)
        lower = bound(problem, time_limit=self.time_limit)
        simple = self._simple(problem, keys, lower, lower * (1 + GREEDY))
        if simple is not None:
            return problem, keys, *simple
        budget, short = room, 0
        for attempt in range(ATTEMPTS * (1 + self.whole)):
            if attempt == ATTEMPTS:  # rounded, tensors never fit: send rather more of them away
                budget = room
            decisions = solve(replace(problem, budget=budget), time_limit=self.time_limit, lower_bound=lower)
            if self.whole:
                decisions = in_whole(problem, decisions, up=attempt >= ATTEMPTS)
            try:
                timeline = self.carried_out(problem, keys, decisions, room)
                simple = None
                if timeline.makespan > lower * (1 + GREEDY):
                    simple = self._simple(problem, keys, lower, timeline.makespan)
                return problem, keys, *(simple or (decisions, timeline))
            except Deadlock as error:
                short = error.needed - error.free
                budget -= short + short // 8
        fewer = tuple(word for word in self.words if word != "swap")
        if self.whole and "recompute" in fewer and "swap" in self.words:  # activations are too large to move in whole
            return Attempt(self.profile, fewer, self.around, self.time_limit, self.codec).within(room)
        raise Infeasible(room, room + short)

    def _simple(self, problem: Problem, keys: Keys, lower: float, limit: float) -> tuple[Decisions, Timeline] | None:
        """What a greedy policy does, if it takes at most `limit` seconds."""
        if self.states or self.profile.host is not None:
            return None  # policies decide on activations alone
        found = good_enough(self.profile, problem, keys, self.around, problem.budget, self.words, limit)
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
