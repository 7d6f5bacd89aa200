"""A decided plan as a program of tasks: what really happens, step by step, on the compute stream and on the links.

Nothing here asks the solver's model: storages are allocated where the program makes them and freed where it is done
with them, tensors that leave are copied after their last use and come back before their next, groups that are executed
again run just before the first of their segment's tensors is read. `peakline.streams` then says what it takes.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from functools import cached_property

from peakline.memory.lifetimes import Step
from peakline.planning.extract import Keys, Profile
from peakline.solvers.offload.problem import Decisions, Problem
from peakline.streams import Hold, Link, Program, Task, Tier

__all__ = ["DEVICE", "Route", "executed_program"]

DEVICE = "device"
COMPUTE = "compute"

PACKED = -1
"""The tier of what stays on the device in fewer bits."""


@dataclass(frozen=True, slots=True)
class Route:
    """How bytes get to a tier and back.

    Attributes:
        tier: the tier's name and capacity in bytes.
        out, back: names of the links loaded on the way out and back.
    """

    tier: Tier
    out: tuple[str, ...]
    back: tuple[str, ...]


@dataclass(slots=True)
class _Part:
    """A part of an item that lies in one tier, or packed: its bytes, and where it leaves and returns (steps).

    What is packed takes `packed` bytes meanwhile, and `seconds` of computing to pack and to unpack.
    """

    key: int
    tier: int
    bytes: int
    leaves: list[tuple[int, bool]]
    returns: list[int]
    away: bool
    present: bool = False
    version: int = 0
    packed: int = 0
    seconds: tuple[float, float] = (0.0, 0.0)


def executed_program(
    profile: Profile,
    problem: Problem,
    keys: Keys,
    decisions: Decisions,
    routes: tuple[Route, ...],
    links: dict[str, Link],
    capacity: int | None,
) -> Program:
    """The tasks of the step with `decisions` carried out; `routes` in the order of the problem's tiers.

    Args:
        capacity: bytes of the device; None lets the peak be what it is.

    Raises:
        ValueError: decisions that cannot be carried out: what is executed again reads something that is gone by then.
    """
    return _Writer(profile, problem, keys, decisions, routes, links, capacity).write()


@dataclass
class _Writer:
    profile: Profile
    problem: Problem
    keys: Keys
    decisions: Decisions
    routes: tuple[Route, ...]
    links: dict[str, Link]
    capacity: int | None
    parts: dict[int, list[_Part]] = field(default_factory=dict)
    rest: dict[int, int] = field(default_factory=dict)
    alive: dict[int, str] = field(default_factory=dict)
    versions: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    waits: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    dropped_after: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    kept_until: dict[int, int] = field(default_factory=dict)
    last: int | None = None

    # ---- reading the decisions ------------------------------------------------------------------------------------
    def _prepare(self) -> None:
        p = self.problem
        again = {
            self.keys.items[i]
            for i, item in enumerate(p.items)
            if item.group >= 0 and self.decisions.executed[item.group]
        }
        for i, item in enumerate(p.items):
            key, size = self.keys.items[i], item.bytes
            moved = [round(size * share) for share in self.decisions.moved[i]]
            packed = round(size * self.decisions.packed_share(i))
            stays = size - sum(moved) - packed
            if item.extra:
                wanted = sum(moved) + round(size * self.decisions.kept[i])
                if wanted < size / 2 or i not in self._users:
                    continue  # not kept at all, or for nobody: it dies as it always did
                if max(self._users[i]) > self.profile.program.deaths[key]:  # else it dies as it always did, but moves
                    self.kept_until[key] = max(self._users[i])
            self.rest[key] = stays
            for tier, bytes_ in enumerate(moved):
                if bytes_:
                    leaves, returns = self._windows(i, key)
                    part = _Part(key, tier, bytes_, leaves, returns, item.away)
                    self.parts.setdefault(key, []).append(part)
            if packed and item.packing is not None:
                share, (leaves, returns) = packed / size, self._windows(i, key)
                part = _Part(key, PACKED, packed, leaves, returns, False)
                part.packed = round(share * item.packing.bytes)
                part.seconds = share * item.packing.pack, share * item.packing.unpack
                self.parts.setdefault(key, []).append(part)
            if key in again:
                self.dropped_after[self._last_forward(key)].append(key)
        self.again = again

    @cached_property
    def _users(self) -> dict[int, list[int]]:
        """Starts of the segments whose groups, executed again, read each item."""
        found: dict[int, list[int]] = {}
        for group, executed in zip(self.problem.groups, self.decisions.executed):
            for item in group.items if executed else ():
                found.setdefault(item, []).append(self._starts[group.segment])
        return found

    def _last_forward(self, key: int) -> int:
        return max(self.profile.held[key], *(i for i in self.profile.touches[key] if i < self.profile.turn))

    @cached_property
    def _starts(self) -> dict[int, int]:
        """First backward step that reads something a segment saved, by segment."""
        found: dict[int, int] = {}
        segment_of = {piece: i for i, piece in enumerate(self.keys.segments)}
        for i, item in enumerate(self.problem.items):
            birth, back = self.profile.program.births[self.keys.items[i]], self.keys.gaps[i][1]
            if item.extra or item.away or back is None or birth >= self.profile.turn:
                continue
            number = segment_of.get(self.profile.piece_of[birth])
            if number is not None:
                found[number] = min(found.get(number, back), back)
        return found

    def _windows(self, item: int, key: int) -> tuple[list[tuple[int, bool]], list[int]]:
        """Steps after which a part leaves (and whether it is written), and before which it must be back."""
        touches, slot_of = self.profile.touches[key], self.profile.slot_of
        entry = self.problem.items[item]
        if entry.away:
            touches = self.keys.uses[key]
            leaves = [(max(i for i in touches if slot_of[i] <= slot), dirty) for slot, dirty in entry.leaves]
            return leaves, [min(i for i in touches if slot_of[i] >= slot) for slot in entry.returns]
        leave, back = self.keys.gaps[item]
        if back is None:
            return [(leave, True)], []
        users = self._users.get(item, [back])
        return [(leave, True)], [min(users) if entry.extra else min(*users, back)]

    @cached_property
    def _leaving(self) -> dict[int, list[tuple[_Part, bool]]]:
        """Parts that leave after each step, and whether they are written; the step need not touch them."""
        found: dict[int, list[tuple[_Part, bool]]] = defaultdict(list)
        for parts in self.parts.values():
            for part in parts:
                for step, dirty in part.leaves:
                    found[step].append((part, dirty))
        return found

    # ---- writing --------------------------------------------------------------------------------------------------
    def write(self) -> Program:
        self._prepare()
        tiers = {DEVICE: Tier(DEVICE, self.capacity), **{r.tier.name: r.tier for r in self.routes}}
        self.program = Program(dict(self.links), tiers)
        self._initial()
        fetches = self._fetches()
        starts = defaultdict(list)
        for segment in {self.problem.groups[g].segment for g, on in enumerate(self.decisions.executed) if on}:
            starts[self._starts[segment]].append(segment)
        for i in range(len(self.profile.steps)):
            for part in fetches.get(i, []):
                self._fetch(part)
            for segment in starts.get(i, []):
                self._recompute(segment)
            self._step(i)
        return self.program

    def _initial(self) -> None:
        program = self.profile.program
        resident = 0
        for key in program.resident:
            if key in self.parts:
                for part in self.parts[key]:
                    tier = self.routes[part.tier].tier.name
                    self.program.initial.append(Hold(f"{self._name(key)}@{tier}", tier, part.bytes))
                resident += self.rest[key]
            elif key in program.previous:  # the step before left it, and this one frees it
                hold = Hold(self._buffer(key, ""), DEVICE, int(program.sizes[key]))
                self.alive[key] = hold.buffer
                self.program.initial.append(hold)
            else:
                resident += int(program.sizes[key])
        self.program.initial.append(Hold("resident", DEVICE, resident))

    def _name(self, key: int) -> str:
        return self.profile.program.storages[key].name

    def _fetches(self) -> dict[int, list[_Part]]:
        """Parts by the step at whose beginning their way back is issued: when the solver's curve reaches their bytes.

        Links serve them in the order in which they are needed.
        """
        found: dict[int, list[_Part]] = defaultdict(list)
        for tier in range(len(self.routes)):
            needs = sorted(
                [
                    (step, key, part)
                    for key, parts in self.parts.items()
                    for part in parts
                    if part.tier == tier
                    for step in part.returns
                ],
                key=lambda need: need[:2],
            )
            curve, before = self.decisions.incoming[tier], 0.0
            for step, _, part in needs:
                due = self.profile.slot_of[step]
                slot = next((s for s in range(due) if curve[s] > before + 0.5 * part.bytes), due)
                first = self.profile.slots[slot][0]
                found[max(min(first, step), self._earliest(part, step))].append(part)
                before += part.bytes
        for parts in self.parts.values():
            for part in parts:
                for step in part.returns if part.tier == PACKED else ():
                    found[step].append(part)
        return found

    def _earliest(self, part: _Part, step: int) -> int:
        """A part cannot come back before it has left."""
        return max((i + 1 for i, _ in part.leaves if i < step), default=0)

    def _buffer(self, key: int, kind: str) -> str:
        self.versions[key] += 1
        return f"{self._name(key)}#{self.versions[key]}{kind}"

    def _fetch(self, part: _Part) -> None:
        if part.present:
            return
        if part.tier == PACKED:
            self._unpack(part)
            return
        route = self.routes[part.tier]
        part.present, part.version = True, part.version + 1
        hold = Hold(self._part(part), DEVICE, part.bytes)
        after = () if self.last is None else (self.last,)
        there = self.waits.pop(-1 - part.key, []) if not part.away else []
        drops = () if part.away else (f"{self._name(part.key)}@{route.tier.name}",)
        task = Task(
            f"fetch {self._name(part.key)}", f"from {route.tier.name}", 0.0, part.bytes, route.back,
            tuple(sorted({*after, *there})), (hold,), drops, "fetch",
        )  # fmt: skip
        self.waits[part.key].append(self.program.add(task))

    def _part(self, part: _Part) -> str:
        where = "packed" if part.tier == PACKED else self.routes[part.tier].tier.name
        return f"{self._name(part.key)}/{where}.{part.version}"

    def _pack(self, part: _Part) -> None:
        """Hold a part in fewer bits, right after the step that used it last."""
        part.present = False
        hold = Hold(f"{self._name(part.key)} packed", DEVICE, part.packed)
        name = f"pack {self._name(part.key)}"
        task = Task(name, COMPUTE, part.seconds[0], holds=(hold,), drops=(self._part(part),), kind="pack")
        self.last = self.program.add(task)

    def _unpack(self, part: _Part) -> None:
        """Have a packed part back, right before the step that uses it."""
        part.present, part.version = True, part.version + 1
        hold = Hold(self._part(part), DEVICE, part.bytes)
        task = Task(
            f"unpack {self._name(part.key)}", COMPUTE, part.seconds[1], holds=(hold,),
            drops=(f"{self._name(part.key)} packed",), kind="unpack",
        )  # fmt: skip
        self.last = self.program.add(task)

    def _leave(self, part: _Part, dirty: bool, after: int) -> None:
        """Send a part away once `after` has ended; what the tier still has is only dropped."""
        if part.tier == PACKED:
            self._pack(part)
            return
        route = self.routes[part.tier]
        part.present = False
        holds = () if part.away else (Hold(f"{self._name(part.key)}@{route.tier.name}", route.tier.name, part.bytes),)
        if dirty:
            task = Task(
                f"offload {self._name(part.key)}", f"to {route.tier.name}", 0.0, part.bytes, route.out,
                (after,), holds, (self._part(part),), "offload",
            )  # fmt: skip
            number = self.program.add(task)
            self.waits[-1 - part.key].append(number)

    def _compute(self, name: str, seconds: float, kind: str, touched: tuple[int, ...], holds: list[Hold]) -> int:
        after: list[int] = []
        for key in touched:
            after += self.waits.get(key, [])
        task = Task(name, COMPUTE, seconds, 0, (), tuple(sorted(set(after))), tuple(holds), (), kind)
        self.last = self.program.add(task)
        return self.last

    def _host_turn(self, step: Step, seconds: float) -> int:
        """A turn of the optimizer on the host: it waits for its gradients to arrive, and for the backward pass.

        What it has updated goes back over the link, except what is fetched anyhow when it is needed.
        """
        after = [number for key in step.touches for number in self.waits.get(-1 - key, [])]
        if self.last is not None:
            after.append(self.last)
        taken = float(step.operator.attributes.get("seconds", seconds))
        turn = self.program.add(Task(step.name, "host", taken, after=tuple(sorted(set(after))), kind="optimizer"))
        updated = step.operator.attributes.get("updates", ())
        size = sum(int(self.profile.program.sizes[key]) for key in updated if key not in self.parts)
        size += sum(self.rest[key] for key in updated if key in self.parts)
        if size and self.routes:
            name, route = f"fetch updates of {step.name}", self.routes[0]
            self.program.add(Task(name, f"from {route.tier.name}", 0.0, size, route.back, after=(turn,), kind="fetch"))
        return turn

    def _holds(self, key: int) -> list[Hold]:
        """The buffers of a storage that is made: what stays, and each part that will leave."""
        size = int(self.profile.program.sizes[key])
        parts = self.parts.get(key, [])
        own = Hold(self._buffer(key, ""), DEVICE, size - sum(part.bytes for part in parts))
        self.alive[key] = own.buffer
        found = [own]
        for part in parts:
            part.present, part.version = True, part.version + 1
            found.append(Hold(self._part(part), DEVICE, part.bytes))
        return found

    def _drop(self, task: int, buffers: list[str]) -> None:
        """Let `task` free buffers when it ends."""
        old = self.program.tasks[task]
        self.program.tasks[task] = replace(old, drops=(*old.drops, *buffers))

    def _step(self, i: int) -> None:
        profile, program = self.profile, self.profile.program
        step = profile.steps[i]
        holds = [hold for key in step.makes for hold in self._holds(key)]
        inside = sum(map(int, program.workspaces.get(id(step.operator), ())))
        if inside:
            holds.append(Hold(f"workspace {i}", DEVICE, inside))
        if step.operator.attributes.get("host"):
            task = self._host_turn(step, profile.seconds[i])
        else:
            touched = (*step.touches, *(part.key for part, _ in self._leaving.get(i, []) if part.present))
            task = self._compute(step.name, profile.seconds[i], step.operator.phase, touched, holds)
        drops = [f"workspace {i}"] if inside else []
        for key in self.dropped_after.get(i, []):
            drops += self._gone(key)
        for key in program.dying[i]:
            if key not in self.kept_until:
                drops += self._gone(key)
        for key, until in list(self.kept_until.items()):
            if until == i and key in self.alive and program.deaths[key] <= i:
                drops += self._gone(key)
                del self.kept_until[key]
        for part, dirty in self._leaving.get(i, []):
            if part.present:
                if not dirty:
                    drops.append(self._part(part))
                self._leave(part, dirty, task)
        self._drop(task, drops)

    def _gone(self, key: int) -> list[str]:
        """Buffers of a storage whose time is over."""
        found = [self.alive.pop(key)] if key in self.alive else []
        for part in self.parts.get(key, []):
            if part.present:
                part.present = False
                found.append(self._part(part))
        return found

    def _there(self, key: int) -> bool:
        """Whether a storage and all its parts are on the device, or on their way to it."""
        resident = self.profile.program.births[key] < 0
        return (resident or key in self.alive) and all(part.present for part in self.parts.get(key, []))

    def _recompute(self, segment: int) -> None:
        """Execute the segment's chosen groups again, in forward order; what nobody saved is freed on the way.

        Raises:
            ValueError: something that they read was let go before.
        """
        profile = self.profile
        steps = sorted(
            {
                i
                for g, group in enumerate(self.problem.groups)
                if group.segment == segment and self.decisions.executed[g]
                for i in self.keys.groups[g]
            }
        )
        final: dict[int, int] = {}
        for i in steps:
            for key in profile.steps[i].touches:
                final[key] = i
        mine: set[int] = set()
        for i in steps:
            step = profile.steps[i]
            for key in step.touches:
                if key not in step.makes and not self._there(key):
                    raise ValueError(f"{step.name!r} cannot be executed again: {self._name(key)} is gone by then")
            makes = [key for key in step.makes if key not in self.alive]
            holds = []
            for key in makes:
                buffer = self._buffer(key, " again")
                self.alive[key] = buffer
                holds.append(Hold(buffer, DEVICE, int(profile.program.sizes[key])))
            mine.update(makes)
            inside = sum(map(int, profile.program.workspaces.get(id(step.operator), ())))
            if inside:
                holds.append(Hold(f"workspace {i} again", DEVICE, inside))
            task = self._compute(f"{step.name} again", profile.seconds[i], "recompute", step.touches, holds)
            drops = [f"workspace {i} again"] if inside else []
            for key in [key for key in mine if final[key] <= i and key not in self.again]:
                mine.discard(key)
                drops.append(self.alive.pop(key))
            self._drop(task, drops)
