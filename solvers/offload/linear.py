"""Keep, move, pack or recompute as a mixed-integer linear program; one function per constraint.

Each is named after what it forbids.

Variables: y[i,t] ∈ [0, 1] the fraction of item i that goes to tier t, c[i] ∈ [0, 1] the fraction that is packed (held
in fewer bits), k[i] ∈ [0, 1] what stays of it, r[g] ∈ {0, 1} whether group g is executed again, w[s] ≥ 0 seconds for
which slot s waits, O[t,s] and I[t,s] the bytes that have gone to tier t and come back from it by slot s, z[l] ∈ [0, 1]
whether anything of segment l is executed again.

    minimise  Σ_g seconds[g]·r[g] + Σ_i (pack[i] + unpack[i])·c[i] + Σ_s w[s] + v

where v ≥ 0 is what the last copies take beyond the last slot.

Two readings of time give two programs. The *cautious* one lets bytes leave only after the slot that used them last and
asks them back before the slot that uses them next begins; what it decides can be carried out. The *hopeful* one lets a
slot's own time serve both, counts no transient bytes and relaxes r to [0, 1]: whatever is possible satisfies it, so its
optimum is a lower bound for every plan that keeps the order of operators and executes each a second time at most once,
with its segment.

Sources: MEMO (arXiv:2407.12117, §4.1) for the fraction moved per layer; Checkmate (arXiv:1910.02653) for
recomputation as integer choice; ActNN (arXiv:2104.14129) for activations held in fewer bits; the cumulative curves are
those of fluid scheduling.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from importlib import import_module
from typing import Any

from peakline.solvers.offload.problem import Decisions, Problem

__all__ = ["CONSTRAINTS", "NEVER", "Infeasible", "bound", "least_budget", "solve", "tightest"]

MEGA = 1e6
"""Bytes are counted in millions and seconds in milliseconds, so that coefficients stay within a few powers of ten."""

MILLI = 1e-3

NEVER = 1 << 62
"""Bytes beyond any budget."""

SLACK = 1 << 12
"""Bytes by which the smallest budget is passed: the solver meets its limits within a tolerance."""


THRESHOLDS = (1e-6, 0.3, 0.5, 0.7)
"""Shares from which on a group of the relaxation is executed; each is tried."""

ENOUGH = 0.1
"""Rounding within this part of the gap that is allowed is not tried again."""


class Infeasible(ValueError):
    """No decision fits the budget; `least` is the smallest that something would fit, `NEVER` where none is enough."""

    def __init__(self, budget: int, least: int) -> None:
        self.least = least
        more = "no budget is enough" if least >= NEVER else f"the least that would is {least:,}"
        super().__init__(f"nothing fits a budget of {budget:,} bytes; {more}")


class _Model:
    """The variables of one program."""

    def __init__(self, problem: Problem, *, hopeful: bool, integer: bool, free_budget: bool = False) -> None:
        pulp = import_module("pulp")
        self.pulp, self.p, self.hopeful = pulp, problem, hopeful
        self.program = pulp.LpProblem("offload", pulp.LpMinimize)
        tiers, slots = range(len(problem.tiers)), range(len(problem.slots))
        kind = "Binary" if integer else "Continuous"
        self.y = [
            [
                pulp.LpVariable(f"y_{i}_{t}", 0, 1) if item.movable and (item.leaves or item.returns) else None
                for t in tiers
            ]
            for i, item in enumerate(problem.items)
        ]
        self.c = [
            None if item.packing is None else pulp.LpVariable(f"c_{i}", 0, 1) for i, item in enumerate(problem.items)
        ]
        self.k = [pulp.LpVariable(f"k_{i}", 0, 0 if item.must_move else 1) for i, item in enumerate(problem.items)]
        self.r = [pulp.LpVariable(f"r_{g}", 0, 1, kind) for g in range(len(problem.groups))]
        self.z = [pulp.LpVariable(f"z_{l}", 0, 1) for l in range(len(problem.segments))]
        self.wait = [pulp.LpVariable(f"w_{s}", 0) for s in slots]
        self.out = [[pulp.LpVariable(f"O_{t}_{s}", 0) for s in slots] for t in tiers]
        self.back = [[pulp.LpVariable(f"I_{t}_{s}", 0) for s in slots] for t in tiers]
        self.tail = pulp.LpVariable("tail", 0)
        self.over = pulp.LpVariable("over", None if free_budget else 0, None if free_budget else 0)
        self.executed_in: list[list[Any]] = [[] for _ in slots]
        for g, group in enumerate(problem.groups):
            self.executed_in[problem.segments[group.segment].slot].append((group.seconds / MILLI, self.r[g]))
        self.packs: list[Any] = []
        for item, c in zip(problem.items, self.c):
            if item.packing is not None:
                self.executed_in[item.leaves[0][0]].append((item.packing.pack / MILLI, c))
                self.executed_in[item.returns[0]].append((item.packing.unpack / MILLI, c))
                self.packs.append(((item.packing.pack + item.packing.unpack) / MILLI, c))

    def add(self, constraint: Any, name: str) -> None:
        self.program += constraint, name

    def total(self, terms: list[Any]) -> Any:
        """Σ coefficient·variable; a variable may occur more than once."""
        summed: dict[Any, float] = {}
        for coefficient, variable in terms:
            summed[variable] = summed.get(variable, 0.0) + coefficient
        return self.pulp.LpAffineExpression(summed)

    def seconds(self, slot: int) -> Any:
        """Milliseconds that a slot takes, waiting and recomputation included."""
        return self.p.slots[slot].seconds / MILLI + self.total([*self.executed_in[slot], (1.0, self.wait[slot])])

    def moved(self, item: int) -> list[Any]:
        """The fractions of an item in each tier, as terms."""
        return [(1.0, y) for y in self.y[item] if y is not None]

    def there(self, item: int) -> list[Any]:
        """What is left of an item somewhere: kept, moved or packed, as terms."""
        return [(1.0, self.k[item]), *self.moved(item), *([(1.0, self.c[item])] if self.c[item] is not None else [])]

    def longer(self) -> Any:
        """Milliseconds beyond the program's own: recomputation, packing, waiting, the tail."""
        recomputed = [(g.seconds / MILLI, r) for g, r in zip(self.p.groups, self.r)]
        return self.total([*recomputed, *self.packs, *((1.0, w) for w in (*self.wait, self.tail))])


def no_item_is_lost(m: _Model) -> None:
    """k[i] + Σ_t y[i,t] + c[i] + r[group of i] = 1; for an extra item, which may be lost, k[i] + Σ_t y[i,t] ≤ 1."""
    for i, item in enumerate(m.p.items):
        terms = m.there(i)
        if item.extra:
            m.add(m.total(terms) <= 1, f"no_item_is_lost_{i}")
        else:
            again = [(1.0, m.r[item.group])] if item.group >= 0 else []
            m.add(m.total(terms + again) == 1, f"no_item_is_lost_{i}")


def no_group_without_its_operands(m: _Model) -> None:
    """r[g] ≤ k[i] + Σ_t y[i,t] + c[i] (+ r[group of i] within the segment); r[g] ≤ r[h] for groups it needs."""
    for g, group in enumerate(m.p.groups):
        for i in group.items:
            item = m.p.items[i]
            terms = m.there(i)
            if item.group >= 0 and m.p.groups[item.group].segment == group.segment:
                terms.append((1.0, m.r[item.group]))
            m.add(m.r[g] <= m.total(terms), f"no_group_without_its_operands_{g}_{i}")
        for h in group.groups:
            m.add(m.r[g] <= m.r[h], f"no_group_without_its_groups_{g}_{h}")
        m.add(m.r[g] <= m.z[group.segment], f"segment_{g}")


def no_byte_leaves_before_its_last_use(m: _Model) -> None:
    """O[t,s] ≤ Σ bytes·y[i,t] over items that have left by then: before slot s (cautious), within it (hopeful)."""
    for t in range(len(m.p.tiers)):
        due = _schedule(m, t, lambda item: [slot for slot, dirty in item.leaves if dirty])
        gone: list[Any] = []
        for s in range(len(m.p.slots)):
            if m.hopeful:
                gone += due.get(s, [])
            m.add(m.out[t][s] <= m.total(gone), f"no_byte_leaves_before_its_last_use_{t}_{s}")
            if not m.hopeful:
                gone += due.get(s, [])


def no_byte_comes_back_late(m: _Model) -> None:
    """I[t,s−1] ≥ Σ bytes·y[i,t] over items due back by slot s (hopeful: I[t,s])."""
    for t in range(len(m.p.tiers)):
        due = _schedule(m, t, lambda item: list(item.returns))
        asked: list[Any] = []
        for s in range(len(m.p.slots)):
            asked += due.get(s, [])
            if not asked:
                continue
            if m.hopeful:
                m.add(m.back[t][s] >= m.total(asked), f"no_byte_comes_back_late_{t}_{s}")
            elif s > 0:
                m.add(m.back[t][s - 1] >= m.total(asked), f"no_byte_comes_back_late_{t}_{s}")
            else:
                m.add(m.total(asked) <= 0, f"no_byte_comes_back_late_{t}_{s}")


def no_turn_on_the_host_before_its_gradient(m: _Model) -> None:
    """O[t,s−1] ≥ bytes of all that leaves no later than what must be gone by slot s.

    A link serves first what comes first. Hopeful: O[t,s], and those bytes only.
    """
    for t in range(len(m.p.tiers)):
        for s in sorted({item.gone_by for item in m.p.items if item.gone_by is not None}):
            wanted = {i for i, item in enumerate(m.p.items) if item.gone_by is not None and item.gone_by <= s}
            left = max(slot for i in wanted for slot, _ in m.p.items[i].leaves)
            terms = [
                (item.bytes / MEGA, m.y[i][t])
                for i, item in enumerate(m.p.items)
                if m.y[i][t] is not None
                for slot, dirty in item.leaves
                if dirty and (i in wanted or (not m.hopeful and slot <= left))
            ]
            at = s if m.hopeful else max(s - 1, 0)
            m.add(m.out[t][at] >= m.total(terms), f"no_turn_on_the_host_before_its_gradient_{t}_{s}")


def no_end_before_the_last_copy(m: _Model) -> None:
    """Σ bytes·y[i,t] over all that is written − O[t,last] ≤ bandwidth · v (cautious: and the last slot's seconds)."""
    last = len(m.p.slots) - 1
    for t, tier in enumerate(m.p.tiers):
        due = _schedule(m, t, lambda item: [slot for slot, dirty in item.leaves if dirty])
        written = m.total([term for terms in due.values() for term in terms])
        span = m.tail if m.hopeful else m.tail + m.seconds(last)
        m.add(written - m.out[t][last] <= tier.out * MILLI / MEGA * span, f"no_end_before_the_last_copy_{t}")


def no_link_beyond_its_bandwidth(m: _Model) -> None:
    """O and I grow by at most bandwidth · seconds of the slot (cautious: O by those of the slot before)."""
    for t, tier in enumerate(m.p.tiers):
        for s in range(len(m.p.slots)):
            back = m.back[t][s] - (m.back[t][s - 1] if s else 0)
            m.add(back <= tier.back * MILLI / MEGA * m.seconds(s), f"no_link_back_{t}_{s}")
            m.add(back >= 0, f"back_grows_{t}_{s}")
            out = m.out[t][s] - (m.out[t][s - 1] if s else 0)
            m.add(out >= 0, f"out_grows_{t}_{s}")
            span = s if m.hopeful else s - 1
            if span >= 0:
                m.add(out <= tier.out * MILLI / MEGA * m.seconds(span), f"no_link_out_{t}_{s}")
            else:
                m.add(out <= 0, f"no_link_out_{t}_{s}")


def no_common_link_beyond_its_bandwidth(m: _Model) -> None:
    """Σ_t growth of O (of I) ≤ bandwidth of the link that all tiers share · seconds of the slot; the tail likewise."""
    if len(m.p.tiers) < 2 or m.p.common is None:
        return
    out_rate, back_rate = (rate * MILLI / MEGA for rate in m.p.common)
    for s in range(len(m.p.slots)):
        back = m.pulp.lpSum(m.back[t][s] - (m.back[t][s - 1] if s else 0) for t in range(len(m.p.tiers)))
        m.add(back <= back_rate * m.seconds(s), f"no_common_link_back_{s}")
        span = s if m.hopeful else s - 1
        if span >= 0:
            out = m.pulp.lpSum(m.out[t][s] - (m.out[t][s - 1] if s else 0) for t in range(len(m.p.tiers)))
            m.add(out <= out_rate * m.seconds(span), f"no_common_link_out_{s}")


def no_slot_beyond_the_budget(m: _Model) -> None:
    """bytes[s] − dropped − away − saved by packing + kept extras + transients ≤ budget, when every slot is fullest."""
    slots = len(m.p.slots)
    change: list[list[Any]] = [[] for _ in range(slots)]
    for i, item in enumerate(m.p.items):
        first, last = item.idle
        for s in range(first, last + 1):
            if item.extra:
                change[s] += [(item.bytes / MEGA * c, v) for c, v in [(1.0, m.k[i]), *m.moved(i)]]
            elif item.group >= 0:
                change[s].append((-item.bytes / MEGA, m.r[item.group]))
        if item.packing is not None:
            for s in range(item.packing.idle[0], item.packing.idle[1] + 1):
                change[s].append(((item.packing.bytes - item.bytes) / MEGA, m.c[i]))
    for t in range(len(m.p.tiers)):
        start = [
            (item.bytes / MEGA, m.y[i][t]) for i, item in enumerate(m.p.items) if item.away and m.y[i][t] is not None
        ]
        dropped = _schedule(m, t, lambda item: [slot for slot, dirty in item.leaves if not dirty])
        gone = list(start)
        for s in range(slots):
            if m.hopeful:
                gone += dropped.get(s, [])
            change[s] += [(-c, v) for c, v in gone]
            change[s].append((-1.0, m.out[t][s]))
            if not m.hopeful:
                change[s].append((1.0, m.back[t][s]))
                gone += dropped.get(s, [])
            elif s:
                change[s].append((1.0, m.back[t][s - 1]))
    if not m.hopeful:
        for l, segment in enumerate(m.p.segments):
            change[segment.slot].append((segment.transient / MEGA, m.z[l]))
    for s, slot in enumerate(m.p.slots):
        room = (m.p.budget - slot.bytes) / MEGA
        m.add(m.total(change[s]) - m.over <= room, f"no_slot_beyond_the_budget_{s}")


def no_tier_beyond_its_capacity(m: _Model) -> None:
    """Σ bytes·y[i,t] ≤ capacity over the items that lie in tier t: from the start, or between leaving and returning."""
    for t, tier in enumerate(m.p.tiers):
        if tier.capacity is None:
            continue
        held: dict[int, list[Any]] = {s: [] for s in range(len(m.p.slots))}
        for i, item in enumerate(m.p.items):
            if m.y[i][t] is None:
                continue
            first = 0 if item.away else min(slot for slot, _ in item.leaves)
            last = len(m.p.slots) - 1 if item.away or not item.returns else max(item.returns)
            for s in range(first, last + 1):
                held[s].append((item.bytes / MEGA, m.y[i][t]))
        for s, terms in held.items():
            if terms:
                m.add(m.total(terms) <= tier.capacity / MEGA, f"no_tier_beyond_its_capacity_{t}_{s}")


CONSTRAINTS: tuple[Callable[[_Model], None], ...] = (
    no_item_is_lost,
    no_group_without_its_operands,
    no_byte_leaves_before_its_last_use,
    no_byte_comes_back_late,
    no_turn_on_the_host_before_its_gradient,
    no_end_before_the_last_copy,
    no_link_beyond_its_bandwidth,
    no_common_link_beyond_its_bandwidth,
    no_slot_beyond_the_budget,
    no_tier_beyond_its_capacity,
)


def _schedule(m: _Model, tier: int, slots_of: Callable[[Any], list[int]]) -> dict[int, list[Any]]:
    """Terms bytes·y[i,tier] of the items by each of the slots that `slots_of` names."""
    found: dict[int, list[Any]] = {}
    for i, item in enumerate(m.p.items):
        if m.y[i][tier] is not None:
            for slot in slots_of(item):
                found.setdefault(slot, []).append((item.bytes / MEGA, m.y[i][tier]))
    return found


def _built(
    problem: Problem, *, hopeful: bool, integer: bool, free_budget: bool = False, limit: float | None = None
) -> _Model:
    """The program; with `free_budget` it asks for the smallest budget, within `limit` seconds where one is given."""
    model = _Model(problem, hopeful=hopeful, integer=integer, free_budget=free_budget)
    for forbid in CONSTRAINTS:
        forbid(model)
    if limit is not None:
        model.add(model.longer() <= (limit - problem.seconds) / MILLI, "no_time_beyond_the_limit")
    model.program.setObjective(model.over if free_budget else model.longer())
    return model


def _run(model: _Model, time_limit: float, gap: float) -> bool:
    """Solve; whether there is a solution."""
    solver = model.pulp.HiGHS(msg=False, timeLimit=max(time_limit, 0.5), gapRel=gap, threads=1)
    model.program.solve(solver)
    return model.program.sol_status in (model.pulp.LpSolutionOptimal, model.pulp.LpSolutionIntegerFeasible)


def bound(problem: Problem, *, time_limit: float = 60.0) -> float:
    """Seconds that no plan of the class can beat: the optimum of the hopeful program, relaxed.

    Raises:
        Infeasible: not even that fits; `least` then is a floor for every plan.
    """
    model = _built(problem, hopeful=True, integer=False)
    if not _run(model, time_limit, 0.0):
        raise Infeasible(problem.budget, least_budget(problem, hopeful=True))
    return problem.seconds + MILLI * float(model.pulp.value(model.program.objective))


def least_budget(problem: Problem, *, hopeful: bool = False, limit: float | None = None) -> int:
    """The smallest budget in bytes at which there is a (fractional) decision, whatever the problem's own budget is.

    Args:
        limit: seconds that the program may take; None without bound.

    Raises:
        Infeasible: no budget is enough: what must move finds no room in the tiers, or the limit is too short.
    """
    model = _built(problem, hopeful=hopeful, integer=False, free_budget=True, limit=limit)
    if not _run(model, 60.0, 0.0):
        raise Infeasible(problem.budget, NEVER)
    return problem.budget + round(MEGA * float(model.pulp.value(model.over)))


def tightest(problem: Problem, *, limit: float | None = None, time_limit: float = 20.0) -> tuple[Decisions, int]:
    """Decisions for the smallest budget there is (cautious, groups rounded), the fastest at it; and that budget.

    They depend on the problem alone, not on its budget.

    Args:
        limit: seconds that the program may take; None without bound.

    Raises:
        Infeasible: no budget is enough.
    """
    model = _built(problem, hopeful=False, integer=False, free_budget=True, limit=limit)
    if not _run(model, 60.0, 0.0):
        raise Infeasible(problem.budget, NEVER)
    shares = [float(model.pulp.value(r) or 0.0) for r in model.r]
    best: tuple[float, set[int]] | None = None
    for threshold in (1e-6, 0.5, 1.0 - 1e-6):
        chosen = _closed(problem, {g for g, share in enumerate(shares) if share >= threshold})
        if _run(_fixed(model, chosen), 60.0, 0.0):
            over = float(model.pulp.value(model.over))
            if best is None or over < best[0]:
                best = over, chosen
    if best is None:
        raise Infeasible(problem.budget, NEVER)
    over, chosen = best
    model.over.upBound = over + SLACK / MEGA
    model.program.setObjective(model.longer())
    if not _run(_fixed(model, chosen), time_limit, 0.0):
        raise Infeasible(problem.budget, problem.budget + round(MEGA * over))
    decisions = _decisions(model, problem.seconds, "linear program (HiGHS) for the smallest budget, rounded")
    return decisions, problem.budget + round(MEGA * over) + SLACK


def solve(
    problem: Problem, *, time_limit: float = 20.0, gap: float = 0.01, lower_bound: float | None = None
) -> Decisions:
    """Decide: the cautious program, with whole groups.

    The relaxation first; its groups are rounded and the rest solved again. Where that is more than `gap` above the
    relaxation, HiGHS looks for better integers within the time limit.

    Args:
        lower_bound: `bound` of the problem, if known.

    Raises:
        Infeasible: nothing fits.
    """
    lower = bound(problem, time_limit=time_limit) if lower_bound is None else lower_bound
    relaxed = _built(problem, hopeful=False, integer=False)
    if not _run(relaxed, time_limit, 0.0):
        raise Infeasible(problem.budget, least_budget(problem))
    value = relaxed.pulp.value
    shares = [float(value(r) or 0.0) for r in relaxed.r]
    if all(share < 1e-6 or share > 1 - 1e-6 for share in shares):
        return _decisions(relaxed, lower, "linear program (HiGHS), integral by itself")
    optimum = problem.seconds + MILLI * float(value(relaxed.program.objective))
    best: Decisions | None = None
    tried: set[frozenset[int]] = set()
    for threshold in THRESHOLDS:
        chosen = frozenset(_closed(problem, {g for g, share in enumerate(shares) if share >= threshold}))
        if chosen in tried or (best is not None and best.seconds <= optimum * (1 + gap * ENOUGH)):
            continue
        tried.add(chosen)
        if _run(_fixed(relaxed, chosen), time_limit, 0.0):
            found = _decisions(relaxed, lower, "linear program (HiGHS), rounded")
            best = found if best is None or found.seconds < best.seconds else best
    if (best is None or best.seconds > optimum * (1 + gap)) and _run(_whole(relaxed), time_limit, gap / 2):
        found = _decisions(relaxed, lower, "mixed-integer linear program (HiGHS)")
        best = found if best is None or found.seconds < best.seconds else best
    if best is None:
        raise Infeasible(problem.budget, least_budget(problem))
    return best


def _closed(problem: Problem, chosen: set[int]) -> set[int]:
    """The groups, and those whose results they need that are no items."""
    found, pending = set(chosen), list(chosen)
    while pending:
        for h in problem.groups[pending.pop()].groups:
            if h not in found:
                found.add(h)
                pending.append(h)
    return found


def _fixed(model: _Model, chosen: Set[int]) -> _Model:
    """The model with exactly these groups executed."""
    for g, r in enumerate(model.r):
        r.lowBound = r.upBound = 1.0 if g in chosen else 0.0
    return model


def _whole(model: _Model) -> _Model:
    """The model with every group executed or not, as the solver sees fit."""
    for r in model.r:
        r.lowBound, r.upBound, r.cat = 0.0, 1.0, model.pulp.LpInteger
    return model


def _decisions(model: _Model, lower: float, method: str) -> Decisions:
    value, p = model.pulp.value, model.p

    def share(variable: Any) -> float:
        found = float(value(variable) or 0.0) if variable is not None else 0.0
        return 0.0 if found < 1e-7 else 1.0 if found > 1 - 1e-7 else found

    return Decisions(
        moved=tuple(tuple(share(y) for y in row) for row in model.y),
        executed=tuple(share(r) > 0.5 for r in model.r),
        kept=tuple(share(k) for k in model.k),
        incoming=tuple(tuple(MEGA * float(value(v) or 0.0) for v in row) for row in model.back),
        seconds=p.seconds + MILLI * float(value(model.program.objective)),
        lower_bound=lower,
        method=method,
        packed=tuple(share(c) for c in model.c) if any(c is not None for c in model.c) else (),
    )
