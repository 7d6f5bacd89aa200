"""Any tensors, any list of tiers: which tier holds each tensor in each slot, exactly, for small problems.

Variables: x[a,s,m] ∈ {0, 1}, tensor a lies in tier m at the start of slot s; T[s] ≥ 0 seconds of slot s. Between slots
a tensor goes from the device (tier 0) to a tier or back, while the slot runs; from tier to tier it goes by way of the
device.

    minimise  Σ_s T[s]

It is the placement that the specialised programs restrict or relax: `linear` moves fractions of a tensor, has copies
span slots, and adds recomputation; its bound is a bound for every placement found here without recomputation.

Source: lifetime and location of arrays as binaries, B. Steiner et al., "OLLA", arXiv:2210.12924, with one per tier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from itertools import product
from typing import Any

from peakline.solvers.linear import highs
from peakline.solvers.offload.problem import Tier

__all__ = ["CONSTRAINTS", "Located", "Placement", "Store", "place", "seconds_of"]


@dataclass(frozen=True, slots=True)
class Located:
    """A tensor.

    Attributes:
        name: for people.
        bytes: its size.
        alive: first and last slot in which it exists.
        uses: slots in which it must be on the device from start to end; its first slot makes it there, unless `home`.
        home: number of the tier that holds it at first (0: the device).
    """

    name: str
    bytes: int
    alive: tuple[int, int]
    uses: tuple[int, ...]
    home: int = 0


@dataclass(frozen=True)
class Store:
    """The problem: seconds of each slot's work, tensors, the device's bytes, and tiers 1, 2, … beside it."""

    seconds: tuple[float, ...]
    tensors: tuple[Located, ...]
    capacity: int
    tiers: tuple[Tier, ...]


@dataclass(frozen=True)
class Placement:
    """A solution: `tiers[tensor][slot − first]`, its seconds, and seconds that nothing can beat."""

    tiers: tuple[tuple[int, ...], ...]
    seconds: float
    lower_bound: float


class _Model:
    """The variables of the program."""

    def __init__(self, store: Store) -> None:
        pulp = import_module("pulp")
        self.pulp, self.store = pulp, store
        self.program = pulp.LpProblem("placement", pulp.LpMinimize)
        self.places = range(len(store.tiers) + 1)
        self.x: dict[tuple[int, int, int], Any] = {}
        for a, tensor in enumerate(store.tensors):
            for s in range(tensor.alive[0], tensor.alive[1] + 1):
                for m in self.places:
                    self.x[a, s, m] = pulp.LpVariable(f"x_{a}_{s}_{m}", cat="Binary")
        self.goes: dict[tuple[int, int, int], Any] = {}
        self.comes: dict[tuple[int, int, int], Any] = {}
        for a, s, m in self.x:
            if m and (a, s + 1, m) in self.x:
                self.goes[a, s, m] = pulp.LpVariable(f"goes_{a}_{s}_{m}", 0, 1)
                self.comes[a, s, m] = pulp.LpVariable(f"comes_{a}_{s}_{m}", 0, 1)
        self.time = [pulp.LpVariable(f"T_{s}", seconds) for s, seconds in enumerate(store.seconds)]

    def add(self, constraint: Any) -> None:
        self.program += constraint


def no_tensor_in_two_places(m: _Model) -> None:
    """Σ_m x[a,s,m] = 1; at first it lies at home."""
    for a, tensor in enumerate(m.store.tensors):
        for s in range(tensor.alive[0], tensor.alive[1] + 1):
            m.add(m.pulp.lpSum(m.x[a, s, p] for p in m.places) == 1)
        m.add(m.x[a, tensor.alive[0], tensor.home] == 1)


def no_use_off_the_device(m: _Model) -> None:
    """x[a,s,0] = 1 where a is used in s."""
    for a, tensor in enumerate(m.store.tensors):
        for s in tensor.uses:
            m.add(m.x[a, s, 0] == 1)


def no_move_unpaid(m: _Model) -> None:
    """goes[a,s,m] ≥ x[a,s+1,m] − x[a,s,m] and comes[a,s,m] ≥ x[a,s,m] − x[a,s+1,m]; only by way of the device."""
    for (a, s, p), goes in m.goes.items():
        here, there = m.x[a, s, p], m.x[a, s + 1, p]
        m.add(goes >= there - here)
        m.add(m.comes[a, s, p] >= here - there)
        m.add(there - here <= m.x[a, s, 0])
        m.add(here - there <= m.x[a, s + 1, 0])


def no_move_of_what_is_used(m: _Model) -> None:
    """A tensor leaves after the slot that uses it: goes[a,s,m] = 0 where a is used in s."""
    for (a, s, _), goes in m.goes.items():
        if s in m.store.tensors[a].uses:
            m.add(goes == 0)


def no_slot_beyond_the_capacity(m: _Model) -> None:
    """Σ_a bytes·(x[a,s,0] + Σ_m comes[a,s,m]) ≤ capacity: what arrives takes room while it does; tiers likewise."""
    for s in range(len(m.store.seconds)):
        alive = [a for a, tensor in enumerate(m.store.tensors) if tensor.alive[0] <= s <= tensor.alive[1]]
        size = {a: m.store.tensors[a].bytes for a in alive}
        arriving = [size[a] * m.comes[a, s, p] for a in alive for p in m.places if (a, s, p) in m.comes]
        m.add(m.pulp.lpSum([size[a] * m.x[a, s, 0] for a in alive] + arriving) <= m.store.capacity)
        for p, tier in enumerate(m.store.tiers, start=1):
            if tier.capacity is not None:
                going = [size[a] * m.goes[a, s, p] for a in alive if (a, s, p) in m.goes]
                m.add(m.pulp.lpSum([size[a] * m.x[a, s, p] for a in alive] + going) <= tier.capacity)


def no_link_beyond_its_bandwidth(m: _Model) -> None:
    """T[s] ≥ Σ_a bytes·goes[a,s,m] / out[m], and likewise back."""
    for s, time in enumerate(m.time):
        for p, tier in enumerate(m.store.tiers, start=1):
            for moves, rate in ((m.goes, tier.out), (m.comes, tier.back)):
                copies = [m.store.tensors[a].bytes / rate * v for (a, t, q), v in moves.items() if (t, q) == (s, p)]
                m.add(time >= m.pulp.lpSum(copies))


CONSTRAINTS: tuple[Callable[[_Model], None], ...] = (
    no_tensor_in_two_places,
    no_use_off_the_device,
    no_move_unpaid,
    no_move_of_what_is_used,
    no_slot_beyond_the_capacity,
    no_link_beyond_its_bandwidth,
)


def place(store: Store, *, time_limit: float = 60.0) -> Placement | None:
    """The fastest placement; None where none fits.

    Args:
        time_limit: seconds for HiGHS.
    """
    model = _Model(store)
    for forbid in CONSTRAINTS:
        forbid(model)
    model.program.setObjective(model.pulp.lpSum(model.time))
    model.program.solve(highs(timeLimit=time_limit, gapRel=0.0))
    if model.program.sol_status not in (model.pulp.LpSolutionOptimal, model.pulp.LpSolutionIntegerFeasible):
        return None
    value = model.pulp.value
    tiers = tuple(
        tuple(
            max(model.places, key=lambda p, a=a, s=s: value(model.x[a, s, p]))  # type: ignore[misc]
            for s in range(tensor.alive[0], tensor.alive[1] + 1)
        )
        for a, tensor in enumerate(store.tensors)
    )
    seconds = seconds_of(store, tiers)
    if seconds is None:
        raise AssertionError("the solver's placement breaks a rule of the problem")
    proven = model.program.sol_status == model.pulp.LpSolutionOptimal
    return Placement(tiers, seconds, seconds if proven else sum(store.seconds))


def seconds_of(store: Store, tiers: tuple[tuple[int, ...], ...]) -> float | None:
    """Seconds of a placement, walking through the slots and knowing nothing of the solver; None if it breaks a rule."""
    total = 0.0
    for s, work in enumerate(store.seconds):
        held = [0] * (len(store.tiers) + 1)
        out, back = [0] * len(held), [0] * len(held)
        for tensor, path in zip(store.tensors, tiers):
            first, last = tensor.alive
            if not first <= s <= last:
                continue
            here = path[s - first]
            there = path[s - first + 1] if s < last else here
            if (s == first and here != tensor.home) or (s in tensor.uses and here != 0):
                return None
            held[here] += tensor.bytes
            if here != there:
                if (here and there) or (there and s in tensor.uses):
                    return None
                held[there] += tensor.bytes
                (out if there else back)[there or here] += tensor.bytes
        limits = [store.capacity, *(tier.capacity for tier in store.tiers)]
        if any(limit is not None and used > limit for used, limit in zip(held, limits)):
            return None
        copies = [out[p] / tier.out for p, tier in enumerate(store.tiers, 1)]
        copies += [back[p] / tier.back for p, tier in enumerate(store.tiers, 1)]
        total += max(work, *copies, 0.0)
    return total


def every(store: Store) -> Iterator[tuple[tuple[int, ...], ...]]:
    """All placements there are: for problems of a few tensors, to check the solver against."""
    paths = [
        [
            path
            for path in product(range(len(store.tiers) + 1), repeat=tensor.alive[1] - tensor.alive[0] + 1)
            if all(path[s - tensor.alive[0]] == 0 for s in tensor.uses)
        ]
        for tensor in store.tensors
    ]
    yield from product(*paths)
