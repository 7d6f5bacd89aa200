"""What people do without a solver, as decisions of the same problem, replayed by the same simulation.

* `checkpoint_layers`: every repeated layer is executed again from its input (`gradient_checkpointing_enable`); where
  nothing repeats, every block.
* `checkpoint_stretches`: the same for stretches of √n layers (T. Chen et al., arXiv:1604.06174, algorithm 1).
* `offload_everything`: every saved activation goes to the host, and comes back one layer ahead (vDNN's `all` policy,
  arXiv:1602.08124; `torch.autograd.graph.save_on_cpu` with overlap).
* `cheapest_first`: greedy recomputation: whatever frees the most bytes per second of work, one group after the other.
* `uniform_selection`: the same choice in every layer, cheapest first: what a memory budget with selective activation
  checkpointing decides (PyTorch's `activation_memory_budget`, SAC).
* `longest_idle_first`: greedy swapping: tensors with the most byte·seconds of idleness go to the host until it fits
  (Capuchin, ASPLOS 2020, §4.2).

`good_enough` asks whether one of the greedy ones is proven to be as good as a plan.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import numpy as np

from peakline.planning.coarse import coarse, forward, root
from peakline.planning.execute import executed_program
from peakline.planning.extract import Keys, Profile, problem_of, profile
from peakline.planning.tiers import Surroundings
from peakline.result import Estimate
from peakline.solvers.offload.problem import Decisions, Problem
from peakline.streams import Deadlock, Timeline, simulate

__all__ = ["POLICIES", "Greedy", "Outcome", "compare", "decided", "good_enough"]

AHEAD = 2
"""Layers before its use at which a policy asks a tensor back: while the layer before the previous one runs."""


Choice: TypeAlias = Callable[[], Decisions]


@dataclass(frozen=True)
class Outcome:
    """A policy at a budget: its timeline, or None where it does not fit."""

    policy: str
    timeline: Timeline | None

    @property
    def seconds(self) -> float | None:
        """Time of the step; None where it does not fit."""
        return None if self.timeline is None else self.timeline.makespan


def compare(
    estimate: Estimate, around: Surroundings, rooms: Iterable[int], only: Collection[str] | None = None
) -> dict[int, list[Outcome]]:
    """Every policy (or those named in `only`) at every room (bytes that tensors may take)."""
    taken = profile(estimate)
    found: dict[int, list[Outcome]] = {}
    for room in rooms:
        found[room] = []
        for name, (policy, _) in POLICIES.items():
            if only is None or name in only:
                seen = coarse(taken, root(taken)) if policy is checkpoint_stretches else taken
                problem, keys = problem_of(seen, room, around.tiers)
                carried_out = _Replayed(seen, problem, keys, around, room)
                found[room].append(Outcome(name, _mildest(carried_out, policy(seen, problem))))
    return found


def good_enough(
    taken: Profile, problem: Problem, keys: Keys, around: Surroundings | None, room: int, words: Collection[str],
    limit: float,
) -> tuple[str, Decisions, Timeline] | None:  # fmt: skip
    """`Greedy.within`, asked once."""
    return Greedy(taken, problem, keys, around).within(room, words, limit)


@dataclass
class Greedy:
    """The greedy policies for one problem, asked for one room after the other."""

    taken: Profile
    problem: Problem
    keys: Keys
    around: Surroundings | None
    _candidates: dict[str, list[Choice]] = field(default_factory=dict)
    _least: dict[tuple[str, int], tuple[float, int]] = field(default_factory=dict)

    def within(
        self, room: int, words: Collection[str], limit: float
    ) -> tuple[str, Decisions, Timeline] | None:  # fmt: skip
        """The best of the policies that fits `room` bytes and takes at most `limit` seconds; None if none does.

        Most are refused without a simulation: what they execute again, or what their copies take on the link, is too
        long already, or what they leave is too much.

        Args:
            words: `recompute` and `swap`, as allowed.
        """
        best: tuple[str, Decisions, Timeline] | None = None
        carried_out = _Replayed(self.taken, self.problem, self.keys, self.around, room)
        for name, (policy, word) in POLICIES.items():
            if word not in words or policy is checkpoint_stretches:
                continue
            if name not in self._candidates:
                self._candidates[name] = policy(self.taken, self.problem)
            candidates = self._candidates[name]
            count = range(len(candidates))
            affordable = bisect_right(count, limit, key=lambda n: self._at_least(name, n)[0])
            enough = bisect_left(count, -room, hi=affordable, key=lambda n: -self._at_least(name, n)[1])
            found = _mildest(carried_out, candidates[enough:affordable]) if enough < affordable else None
            if found is not None and found.makespan <= limit and (best is None or found.makespan < best[2].makespan):
                best = name, carried_out.decisions, found
        return best

    def _at_least(self, name: str, number: int) -> tuple[float, int]:
        """Seconds and bytes that a candidate takes at least."""
        if (name, number) not in self._least:
            decisions = self._candidates[name][number]()
            self._least[name, number] = _least_seconds(self.problem, decisions), _least_bytes(self.problem, decisions)
        return self._least[name, number]


def _least_seconds(problem: Problem, decisions: Decisions) -> float:
    """Seconds that these decisions take at least: the work, or the bytes on the way out of any link."""
    work = problem.seconds + sum(g.seconds for g, on in zip(problem.groups, decisions.executed) if on)
    copies = 0.0
    for t, tier in enumerate(problem.tiers):
        out = sum(item.bytes * share[t] for item, share in zip(problem.items, decisions.moved))
        copies = max(copies, out / tier.out)
    return max(work, copies)


def _least_bytes(problem: Problem, decisions: Decisions) -> int:
    """Bytes that these decisions leave at the fullest moment at least.

    Second executions take no room for it, and what moves is gone from its last use on until its next slot is over.
    """
    rows = problem.rows
    slots = np.asarray([row.slot for row in rows])
    change = np.zeros(len(rows) + 1)
    for item, shares, kept in zip(problem.items, decisions.moved, decisions.kept):
        (first, last), out = item.idle, sum(shares)
        gone = item.bytes * max(1.0 - kept, out)
        if gone and first <= last and not item.extra:
            if out:
                last = max(last, int(np.searchsorted(slots, item.returns[0], side="right")) - 1)
            change[first] -= gone
            change[last + 1] += gone
    alive = np.asarray([row.bytes for row in rows]) + np.cumsum(change[:-1])
    return int(alive.max(initial=0.0))


@dataclass
class _Replayed:
    """Decisions carried out in a room; `decisions` are the last that stayed within it."""

    taken: Profile
    problem: Problem
    keys: Keys
    around: Surroundings | None
    room: int

    def __call__(self, choice: Choice) -> Timeline | None:
        decisions = choice()
        routes, links = (self.around.routes, self.around.links) if self.around else ((), {})
        try:
            tasks = executed_program(self.taken, self.problem, self.keys, decisions, routes, links, self.room)
            found = simulate(tasks)
        except (Deadlock, ValueError):
            return None
        self.decisions = decisions
        return found


def _mildest(carried_out: _Replayed, candidates: list[Choice]) -> Timeline | None:
    """The mildest of the decisions that stays within the room, by bisection: each does more than the one before."""
    best = carried_out(candidates[-1])
    low, high = 0, len(candidates) - 1
    while best is not None and low < high:
        middle = (low + high) // 2
        found = carried_out(candidates[middle])
        if found is None:
            low = middle + 1
        else:
            best, high = found, middle
    return best


# ---- the policies ---------------------------------------------------------------------------------------------------
def checkpoint_layers(taken: Profile, problem: Problem) -> list[Choice]:
    """All groups of every repeated layer are executed again."""
    layers = _layers(taken, problem)
    again = {g for g, group in enumerate(problem.groups) if group.segment in layers}
    return [lambda: decided(problem, again, {})]


def checkpoint_stretches(taken: Profile, problem: Problem) -> list[Choice]:
    """All groups of every slot of a coarse profile are executed again; first without the last stretch, then with it."""
    soonest = min((segment.slot for segment in problem.segments), default=0)
    mild = {g for g, group in enumerate(problem.groups) if problem.segments[group.segment].slot > soonest}
    return [partial(decided, problem, mild, {}), partial(decided, problem, set(range(len(problem.groups))), {})]


def offload_everything(taken: Profile, problem: Problem) -> list[Choice]:
    """Every saved activation goes to the first tier."""
    saved = [i for i, item in enumerate(problem.items) if item.movable and not item.extra]
    return [lambda: decided(problem, set(), dict.fromkeys(saved, 1.0))]


def cheapest_first(taken: Profile, problem: Problem) -> list[Choice]:
    """Groups by bytes freed per second of execution, operands included, in growing numbers."""
    freed = _freed(problem)
    order = sorted(range(len(problem.groups)), key=lambda g: _price(problem, freed, g))
    return _growing(problem, [[g] for g in order if freed[g]])


def uniform_selection(taken: Profile, problem: Problem) -> list[Choice]:
    """The same groups in every repeated layer: kinds of group by bytes freed per second, in growing numbers."""
    layers, freed = _layers(taken, problem), _freed(problem)
    kinds: dict[str, list[int]] = {}
    for g, group in enumerate(problem.groups):
        if group.segment in layers and freed[g]:
            kinds.setdefault(_kind(group.name), []).append(g)
    return _growing(problem, sorted(kinds.values(), key=lambda kind: _price(problem, freed, kind[0])))


def longest_idle_first(taken: Profile, problem: Problem) -> list[Choice]:
    """Saved activations by bytes · slots of idleness, in growing numbers, to the first tier."""
    movable = [i for i, item in enumerate(problem.items) if item.movable and not item.extra and item.returns]
    movable.sort(key=lambda i: -problem.items[i].bytes * (problem.items[i].returns[0] - problem.items[i].leaves[0][0]))

    def first(n: int) -> Decisions:
        return decided(problem, set(), dict.fromkeys(movable[:n], 1.0))

    return [partial(first, n) for n in range(len(movable) + 1)]


POLICIES: dict[str, tuple[Callable[[Profile, Problem], list[Choice]], str]] = {
    "checkpoint every layer": (checkpoint_layers, "recompute"),
    "checkpoint √n stretches": (checkpoint_stretches, "recompute"),
    "recompute, cheapest first": (cheapest_first, "recompute"),
    "recompute, same in every layer": (uniform_selection, "recompute"),
    "offload everything": (offload_everything, "swap"),
    "swap, longest idle first": (longest_idle_first, "swap"),
}
"""Policies by name, with what must be allowed for them."""


def _growing(problem: Problem, kinds: list[list[int]]) -> list[Choice]:
    """Decisions with the first n kinds of groups executed again, for growing n."""

    def first(n: int) -> Decisions:
        return decided(problem, {g for kind in kinds[:n] for g in kind}, {})

    return [partial(first, n) for n in range(len(kinds) + 1)]


def _kind(name: str) -> str:
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def _layers(taken: Profile, problem: Problem) -> set[int]:
    """Segments that repeat: the layers; all segments where nothing repeats."""
    first = {taken.program.steps[start].name: start for start, _ in forward(taken)}
    found = {l for l, s in enumerate(problem.segments) if taken.program.steps[first[s.name]].block.repeat > 1}
    return found or set(range(len(problem.segments)))


def _freed(problem: Problem) -> list[int]:
    """Bytes that executing each group again frees."""
    found = [0] * len(problem.groups)
    for item in problem.items:
        if item.group >= 0:
            found[item.group] += item.bytes
    return found


def _price(problem: Problem, freed: Sequence[int], group: int) -> float:
    """Seconds per byte freed, operands included."""
    closure = _with_operands(problem, {group})
    return sum(problem.groups[g].seconds for g in closure) / max(sum(freed[g] for g in closure), 1)


def _with_operands(problem: Problem, groups: set[int]) -> set[int]:
    """The groups, and those whose results they need that nobody saves."""
    found, pending = set(groups), list(groups)
    while pending:
        for h in problem.groups[pending.pop()].groups:
            if h not in found:
                found.add(h)
                pending.append(h)
    return found


def _possible(problem: Problem, groups: set[int]) -> set[int]:
    """The groups without those whose results another segment reads when it is executed again: these stay.

    A layer that is executed again starts from its input, which the layer before it made.
    """
    found = set(groups)
    while True:
        read = {
            problem.items[i].group
            for g in found
            for i in problem.groups[g].items
            if problem.items[i].group in found
            and problem.groups[problem.items[i].group].segment != problem.groups[g].segment
        }
        lacking = {g for g in found - read if not found - read >= set(problem.groups[g].groups)}
        if not read | lacking:
            return found
        found -= read | lacking


def decided(problem: Problem, executed: set[int], moved: dict[int, float]) -> Decisions:
    """Decisions with these groups executed again (and what they need) and these items moved to the first tier."""
    again = _possible(problem, _with_operands(problem, executed))
    needed = {i for g in again for i in problem.groups[g].items}
    share, kept = [], []
    for i, item in enumerate(problem.items):
        out = 0.0 if item.group in again and item.group >= 0 else moved.get(i, 0.0)
        share.append(tuple(out if t == 0 else 0.0 for t in range(len(problem.tiers))))
        gone = item.group >= 0 and item.group in again
        kept.append(1.0 - out if (i in needed or not item.extra) and not gone else 0.0)
    due, asked = [0.0] * len(problem.slots), _asked(problem)
    for i, item in enumerate(problem.items):
        for slot in item.returns if share[i] and share[i][0] else ():
            due[asked[slot]] += item.bytes * share[i][0]
    curve, total = [], 0.0
    for bytes_ in due:
        total += bytes_
        curve.append(total)
    return Decisions(
        tuple(share), tuple(g in again for g in range(len(problem.groups))), tuple(kept),
        tuple(tuple(curve) if t == 0 else (0.0,) * len(curve) for t in range(len(problem.tiers))), 0.0, 0.0, "policy",
    )  # fmt: skip


def _asked(problem: Problem) -> list[int]:
    """The slot at whose start a tensor is asked back that each slot needs: as many seconds ahead as layers take."""
    layers = 2 * max(len(problem.segments), 1)  # forward and backward
    lead, starts = AHEAD * problem.seconds / layers, [0.0]
    for slot in problem.slots:
        starts.append(starts[-1] + slot.seconds)
    return [max(bisect_right(starts, starts[s] - lead) - 1, 0) for s in range(len(problem.slots))]
