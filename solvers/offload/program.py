"""Variables and constraints of keeping, moving, packing and recomputing; one function per constraint.

Each is named after what it forbids; `CONSTRAINTS` lists them. `linear` builds and solves.

Variables: y[i,t] ∈ [0, 1] the fraction of item i that goes to tier t, c[i] ∈ [0, 1] the fraction that is packed (held
in fewer bits), k[i] ∈ [0, 1] what stays of it, r[g] ∈ {0, 1} whether group g is executed again, w[s] ≥ 0 seconds for
which slot s waits, o[t,s] ≥ 0 and b[t,s] ≥ 0 the bytes that go to tier t and come back from it in slot s, q[t,s] ≥ 0
those that have not left yet though they may, p[t,s] ≥ 0 those that are back before they are due, n[t,s] ≥ 0 those that
lie in the tier and may come, f[s] the bytes that are alive at the first moment of slot s beyond those of the program
as it is, e the bytes of the budget beyond the problem's own: given where a budget is, minimised where the smallest is
asked for.

    minimise  Σ_g seconds[g]·r[g] + Σ_i (pack[i] + unpack[i])·c[i] + Σ_s w[s] + v

where v ≥ 0 is what the last copies take beyond the last slot. Sums over time are balances from slot to slot, so that
each row has a handful of entries however many slots there are.

Two readings of time give two programs. The *cautious* one lets bytes leave only after the slot that used them last and
asks them back before the slot that uses them next begins; what it decides can be carried out. The *hopeful* one lets a
slot's own time serve both, counts of a second execution only what is there for sure, and relaxes r to [0, 1]: whatever
is possible satisfies it, so its optimum is a lower bound for every plan that keeps the order of operators and executes
each a second time at most once, with its segment.

Sources: MEMO (arXiv:2407.12117, §4.1) for the fraction moved per layer; Checkmate (arXiv:1910.02653) for
recomputation as integer choice; ActNN (arXiv:2104.14129) for activations held in fewer bits; the curves of bytes that
left and came back are those of fluid scheduling.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

from peakline.solvers.offload.problem import Item, Problem

__all__ = ["CONSTRAINTS", "MEGA", "MILLI", "Model"]

MEGA = 1e6
"""Bytes are counted in millions and seconds in milliseconds, so that coefficients stay within a few powers of ten."""

MILLI = 1e-3

HASTE = 2e-3
"""Milliseconds per millisecond on the link, at most, for moving what is soon back."""


class Model:
    """The variables of one program."""

    def __init__(self, problem: Problem, *, hopeful: bool) -> None:
        self.pulp, self.p, self.hopeful = import_module("pulp"), problem, hopeful
        self.columns: list[Any] = []
        self.rows: list[Any] = []
        tiers, slots = range(len(problem.tiers)), range(len(problem.slots))
        self.y = [
            [
                self.variable(f"y_{i}_{t}", 0, 1) if item.movable and (item.leaves or item.returns) else None
                for t in tiers
            ]
            for i, item in enumerate(problem.items)
        ]
        self.c = [
            None if item.packing is None else self.variable(f"c_{i}", 0, 1) for i, item in enumerate(problem.items)
        ]
        self.k = [self.variable(f"k_{i}", 0, 0 if item.must_move else 1) for i, item in enumerate(problem.items)]
        self.r = [self.variable(f"r_{g}", 0, 1) for g in range(len(problem.groups))]
        self.wait = [self.variable(f"w_{s}", 0) for s in slots]
        self.out, self.back, self.queued, self.early, self.stock = (
            [[self.variable(f"{name}_{t}_{s}", 0) for s in slots] for t in tiers] for name in "obqpn"
        )
        self.more = [self.variable(f"f_{s}", None) for s in slots]
        self.tail = self.variable("tail", 0)
        self.over = self.variable("over", None)
        self.executed_in: list[list[Any]] = [[] for _ in slots]
        for g, group in enumerate(problem.groups):
            self.executed_in[problem.segments[group.segment].slot].append((group.seconds / MILLI, self.r[g]))
        self.packs: list[Any] = []
        for item, c in zip(problem.items, self.c):
            if item.packing is not None:
                self.executed_in[item.leaves[0][0]].append((item.packing.pack / MILLI, c))
                self.executed_in[item.returns[0]].append((item.packing.unpack / MILLI, c))
                self.packs.append(((item.packing.pack + item.packing.unpack) / MILLI, c))

    def variable(self, name: str, low: float | None, up: float | None = None) -> Any:
        """A new variable between these bounds; None for none."""
        self.columns.append(self.pulp.LpVariable(name, low, up))
        return self.columns[-1]

    def add(self, constraint: Any, name: str) -> None:
        constraint.name = name
        self.rows.append(constraint)

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

    def haste(self) -> Any:
        """A small price on moving what is soon back: of moves that take as long, those with most time are the best.

        Links serve in turn, so that what left last has hardly left when it is asked for; the balances do not see that.
        """
        terms, slots = [], len(self.p.slots)
        for i, item in enumerate(self.p.items):
            for t, y in enumerate(self.y[i]):
                if y is not None and item.leaves and item.returns and not item.away:
                    gap = (item.returns[0] - item.leaves[0][0]) / slots
                    terms.append((HASTE * item.bytes / self.p.tiers[t].out / MILLI * (1.0 - gap), y))
        return self.total(terms)

    def leaving(self, tier: int) -> dict[int, list[Any]]:
        """Terms bytes·y of what is written to a tier, by the slot after which it leaves."""
        return self._by_slot(tier, lambda item: [slot for slot, written in item.leaves if written])

    def due(self, tier: int) -> dict[int, list[Any]]:
        """Terms bytes·y of what must be back from a tier, by the slot that needs it."""
        return self._by_slot(tier, lambda item: list(item.returns))

    def let_go(self, tier: int) -> dict[int, list[Any]]:
        """Terms bytes·y of what the tier still has, so that it is dropped, by the slot after which it is."""
        return self._by_slot(tier, lambda item: [slot for slot, written in item.leaves if not written])

    def _by_slot(self, tier: int, slots_of: Callable[[Item], list[int]]) -> dict[int, list[Any]]:
        found: dict[int, list[Any]] = {}
        for i, item in enumerate(self.p.items):
            if self.y[i][tier] is not None:
                for slot in slots_of(item):
                    found.setdefault(slot, []).append((item.bytes / MEGA, self.y[i][tier]))
        return found


def no_item_is_lost(m: Model) -> None:
    """k[i] + Σ_t y[i,t] + c[i] + r[group of i] = 1; for an extra item, which may be lost, k[i] + Σ_t y[i,t] ≤ 1."""
    for i, item in enumerate(m.p.items):
        terms = m.there(i)
        if item.extra:
            m.add(m.total(terms) <= 1, f"no_item_is_lost_{i}")
        else:
            again = [(1.0, m.r[item.group])] if item.group >= 0 else []
            m.add(m.total(terms + again) == 1, f"no_item_is_lost_{i}")


def no_group_without_its_operands(m: Model) -> None:
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


def no_byte_leaves_before_its_last_use(m: Model) -> None:
    """q[t,s] = q[t,s−1] + Σ bytes·y[i,t] of what may leave − o[t,s]: after slot s−1 (cautious), within s (hopeful)."""
    for t in range(len(m.p.tiers)):
        freed = m.leaving(t)
        for s in range(len(m.p.slots)):
            now = freed.get(s if m.hopeful else s - 1, [])
            before = [(1.0, m.queued[t][s - 1])] if s else []
            balance = m.total([*now, *before, (-1.0, m.out[t][s])])
            m.add(m.queued[t][s] == balance, f"no_byte_leaves_before_its_last_use_{t}_{s}")


def no_byte_comes_back_late(m: Model) -> None:
    """p[t,s] = p[t,s−1] + b[t,s] − Σ bytes·y[i,t] of what slot s+1 needs (hopeful: slot s)."""
    for t in range(len(m.p.tiers)):
        due = m.due(t)
        if not m.hopeful and 0 in due:
            m.add(m.total(due[0]) <= 0, f"nothing_comes_before_the_start_{t}")
        for s in range(len(m.p.slots)):
            now = [(-c, v) for c, v in due.get(s if m.hopeful else s + 1, [])]
            before = [(1.0, m.early[t][s - 1])] if s else []
            balance = m.total([*now, *before, (1.0, m.back[t][s])])
            m.add(m.early[t][s] == balance, f"no_byte_comes_back_late_{t}_{s}")


def no_byte_comes_back_before_it_left(m: Model) -> None:
    """n[t,s] = n[t,s−1] + o[t,s] + what is let go − b[t,s] ≥ 0, from what lies in the tier at the start."""
    for t in range(len(m.p.tiers)):
        let_go = m.let_go(t)
        start = [(i.bytes / MEGA, y[t]) for i, y in zip(m.p.items, m.y) if i.away and y[t] is not None]
        for s in range(len(m.p.slots)):
            before = [(1.0, m.stock[t][s - 1])] if s else start
            flow = [(1.0, m.out[t][s]), (-1.0, m.back[t][s]), *let_go.get(s if m.hopeful else s - 1, [])]
            m.add(m.stock[t][s] == m.total([*before, *flow]), f"no_byte_comes_back_before_it_left_{t}_{s}")


def no_turn_on_the_host_before_its_gradient(m: Model) -> None:
    """By the start of slot s all has gone that leaves no later than what slot s asks for: what waits left later.

    A link serves first what comes first. Hopeful: by its end, and only what is asked for need have gone.
    """
    for t in range(len(m.p.tiers)):
        for s in sorted({item.gone_by for item in m.p.items if item.gone_by is not None}):
            wanted = {i for i, item in enumerate(m.p.items) if item.gone_by is not None and item.gone_by <= s}
            left = max(slot for i in wanted for slot, _ in m.p.items[i].leaves)
            at = s if m.hopeful else max(s - 1, 0)
            may_wait: list[Any] = []
            for i, item in enumerate(m.p.items):
                for slot, written in item.leaves if m.y[i][t] is not None else ():
                    first = i in wanted or (not m.hopeful and slot <= left)
                    counted = slot <= (at if m.hopeful else at - 1)  # among what q[t,at] has seen come
                    if written and first != counted:
                        may_wait.append(((1.0 if counted else -1.0) * item.bytes / MEGA, m.y[i][t]))
            m.add(m.queued[t][at] <= m.total(may_wait), f"no_turn_on_the_host_before_its_gradient_{t}_{s}")


def no_end_before_the_last_copy(m: Model) -> None:
    """q[t,last] ≤ bandwidth · v (cautious: with what the last slot lets go, and that slot's seconds)."""
    last = len(m.p.slots) - 1
    for t, tier in enumerate(m.p.tiers):
        rest = [] if m.hopeful else m.leaving(t).get(last, [])
        span = m.tail if m.hopeful else m.tail + m.seconds(last)
        waiting = m.total([(1.0, m.queued[t][last]), *rest])
        m.add(waiting <= tier.out * MILLI / MEGA * span, f"no_end_before_the_last_copy_{t}")


def no_link_beyond_its_bandwidth(m: Model) -> None:
    """b[t,s] ≤ bandwidth · seconds of slot s; o[t,s] likewise (cautious: of the slot before)."""
    for t, tier in enumerate(m.p.tiers):
        for s in range(len(m.p.slots)):
            m.add(m.back[t][s] <= tier.back * MILLI / MEGA * m.seconds(s), f"no_link_back_{t}_{s}")
            span = s if m.hopeful else s - 1
            if span >= 0:
                m.add(m.out[t][s] <= tier.out * MILLI / MEGA * m.seconds(span), f"no_link_out_{t}_{s}")
            else:
                m.out[t][s].upBound = 0


def no_common_link_beyond_its_bandwidth(m: Model) -> None:
    """Σ_t o (of b) ≤ bandwidth of the link that all tiers share · seconds of the slot."""
    if len(m.p.tiers) < 2 or m.p.common is None:
        return
    out_rate, back_rate = (rate * MILLI / MEGA for rate in m.p.common)
    for s in range(len(m.p.slots)):
        back = m.total([(1.0, row[s]) for row in m.back])
        m.add(back <= back_rate * m.seconds(s), f"no_common_link_back_{s}")
        span = s if m.hopeful else s - 1
        if span >= 0:
            out = m.total([(1.0, row[s]) for row in m.out])
            m.add(out <= out_rate * m.seconds(span), f"no_common_link_out_{s}")


def no_moment_beyond_the_budget(m: Model) -> None:
    """bytes[moment] + f[slot] + what changes within the slot ≤ budget + e, at every moment of it.

    f[s] = f[s−1] − o[s] + b[s] (hopeful: b[s−1]) − what is let go − what becomes idle and is dropped or packed
    + what is made again, + extras and passing bytes while they are held.
    """
    rows, slots = m.p.rows, len(m.p.slots)
    firsts = [bisect_left(rows, s, key=lambda row: row.slot) for s in range(slots)]
    lasts = [bisect_right(rows, s, key=lambda row: row.slot) - 1 for s in range(slots)]
    steps: list[list[Any]] = [[] for _ in range(slots + 1)]
    within: list[list[Any]] = [[] for _ in rows]
    for coefficient, variable, (start, end) in _effects(m):
        low, high = rows[start].slot, rows[end].slot
        enters = bisect_left(firsts, start)  # first slot at whose first moment it counts
        ends = bisect_right(firsts, end)  # first slot at whose first moment it does no longer
        if enters < ends:
            steps[enters].append((coefficient, variable))
            steps[ends].append((-coefficient, variable))
            for j in range(end + 1, lasts[high] + 1):
                within[j].append((-coefficient, variable))
        if firsts[low] < start:
            for j in range(start, (end if enters >= ends else lasts[low]) + 1):
                within[j].append((coefficient, variable))
    for t in range(len(m.p.tiers)):
        for s, terms in m.let_go(t).items():
            steps[min(s + (not m.hopeful), slots)] += [(-c, v) for c, v in terms]
    elsewhere = [(-item.bytes / MEGA, y) for i, item in enumerate(m.p.items) if item.away for _, y in _of(m, i)]
    for s in range(slots):
        came = s - 1 if m.hopeful else s
        flow = [(-1.0, row[s]) for row in m.out] + [(1.0, row[came]) for row in m.back if came >= 0]
        before = [(1.0, m.more[s - 1])] if s else elsewhere
        m.add(m.more[s] == m.total([*before, *steps[s], *flow]), f"more_{s}")
    for j, row in enumerate(rows):
        terms = [(1.0, m.more[row.slot]), *within[j], (-1.0, m.over)]
        if m.hopeful and row.group >= 0 and row.inside:
            terms.append((row.inside / MEGA, m.r[row.group]))
        m.add(m.total(terms) <= (m.p.budget - row.bytes) / MEGA, f"no_moment_beyond_the_budget_{j}")


def _of(m: Model, item: int) -> Iterator[Any]:
    return ((t, y) for t, y in enumerate(m.y[item]) if y is not None)


def _effects(m: Model) -> Iterator[tuple[float, Any, tuple[int, int]]]:
    """(millions of bytes, variable, (first, last) moments) of what changes memory otherwise than over a link."""
    for i, item in enumerate(m.p.items):
        first, last = item.idle
        if item.extra:
            last = last if m.hopeful else max(last, item.lingers)
            elsewhere = m.hopeful and bool(m.p.tiers) and not item.movable  # it could be in a tier meanwhile
            if first <= last and not elsewhere:
                for _, variable in [*m.moved(i), (1.0, m.k[i])]:
                    yield item.bytes / MEGA, variable, (first, last)
        elif item.group >= 0 and first <= last:
            yield -item.bytes / MEGA, m.r[item.group], (first, last)
        if item.packing is not None and item.packing.idle[0] <= item.packing.idle[1]:
            yield (item.packing.bytes - item.bytes) / MEGA, m.c[i], item.packing.idle
    for g, group in enumerate(m.p.groups):
        for passing in group.passing if not m.hopeful else ():
            yield passing.bytes / MEGA, m.r[g], passing.span


def no_tier_beyond_its_capacity(m: Model) -> None:
    """Σ bytes·y[i,t] ≤ capacity over the items that lie in tier t: from the start, or between leaving and returning."""
    slots = len(m.p.slots)
    for t, tier in enumerate(m.p.tiers):
        if tier.capacity is None:
            continue
        change: list[list[Any]] = [[] for _ in range(slots + 1)]
        for i, item in enumerate(m.p.items):
            if m.y[i][t] is not None:
                first = 0 if item.away else min(slot for slot, _ in item.leaves)
                last = slots - 1 if item.away or not item.returns else max(item.returns)
                change[first].append((item.bytes / MEGA, m.y[i][t]))
                change[last + 1].append((-item.bytes / MEGA, m.y[i][t]))
        before: list[Any] = []
        for s in range(slots):
            if not change[s]:
                continue
            held = m.variable(f"h_{t}_{s}", 0, tier.capacity / MEGA)
            m.add(m.total([*before, *change[s]]) == held, f"no_tier_beyond_its_capacity_{t}_{s}")
            before = [(1.0, held)]


CONSTRAINTS: tuple[Callable[[Model], None], ...] = (
    no_item_is_lost,
    no_group_without_its_operands,
    no_byte_leaves_before_its_last_use,
    no_byte_comes_back_late,
    no_byte_comes_back_before_it_left,
    no_turn_on_the_host_before_its_gradient,
    no_end_before_the_last_copy,
    no_link_beyond_its_bandwidth,
    no_common_link_beyond_its_bandwidth,
    no_moment_beyond_the_budget,
    no_tier_beyond_its_capacity,
)
