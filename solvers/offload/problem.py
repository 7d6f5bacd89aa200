"""The problem in plain numbers: slots of work in a fixed order, items that may leave memory meanwhile, and tiers.

A *slot* is a stretch of the program; it has its seconds, and the bytes that are alive at its fullest moment if nothing
leaves. A *moment* is an operator, or some operators of a slot between which nothing becomes idle or is used again:
memory must be enough at each. An *item* is a tensor (or many of one kind) with a time in which nobody needs it. It may
stay; it may be moved to a tier and back, whole or in part; it may be held in fewer bits where it is (*packed*); or it
may be dropped and made again by its *group*: the operators that must be executed together to have it again. Groups of
one *segment* (a layer) are executed in one go, in the slot where the first of the segment's items is needed again.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Decisions", "Group", "Item", "Moment", "Packing", "Passing", "Problem", "Segment", "Slot", "Tier"]


@dataclass(frozen=True, slots=True)
class Slot:
    """A stretch of the program: its seconds, and the bytes alive at its fullest moment if nothing leaves."""

    seconds: float
    bytes: int


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment at which memory must be enough.

    Attributes:
        slot: during which it is.
        bytes: alive if nothing leaves.
        group: the group that is executed again just then, −1 where the program itself runs.
        inside: bytes that this second execution holds for sure, of what is no item: its results, operands, workspace.
    """

    slot: int
    bytes: int
    group: int = -1
    inside: int = 0


@dataclass(frozen=True, slots=True)
class Tier:
    """Somewhere to move items to.

    Attributes:
        name: for people.
        out, back: bytes/s towards the tier and from it.
        capacity: bytes, None without bound.
    """

    name: str
    out: float
    back: float
    capacity: int | None = None


@dataclass(frozen=True, slots=True)
class Packing:
    """An item held in fewer bits while nobody needs it.

    Attributes:
        bytes: of the packed item, scales included.
        pack, unpack: seconds of computing, in the slot after which it leaves and in the one at whose start it is back.
        idle: (first, last) moments at which only the packed bytes are there.
    """

    bytes: int
    pack: float
    unpack: float
    idle: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Item:
    """A tensor that may leave memory for a while.

    Attributes:
        name: for people.
        bytes: its size.
        idle: (first, last) moments at which it is alive and nobody uses it; memory is saved there by dropping it, or
            taken there by keeping an `extra` one.
        group: number of the group that makes it again, −1 if none may.
        leaves: slots after which it may leave; (slot, whether its bytes must be written).
        returns: slots at whose start it must be back.
        away: it lies in the tier before the first slot (states that a step brings in, and leaves behind).
        movable: it may be moved at all.
        must_move: it must be (a gradient for an optimizer on the host).
        gone_by: slot at whose start the tier must have it all (the host's turn), or None.
        extra: nothing holds it in `idle` unless it is kept for a group's sake.
        lingers: last moment at which an extra one that is kept may still be there, where that is after `idle`.
        packing: what it is in fewer bits, or None if it may not be packed.
    """

    name: str
    bytes: int
    idle: tuple[int, int]
    group: int = -1
    leaves: tuple[tuple[int, bool], ...] = ()
    returns: tuple[int, ...] = ()
    away: bool = False
    movable: bool = True
    must_move: bool = False
    gone_by: int | None = None
    extra: bool = False
    packing: Packing | None = None
    lingers: int = -1


@dataclass(frozen=True, slots=True)
class Passing:
    """Bytes that a second execution makes beside items, and the (first, last) moments at which they may be there."""

    bytes: int
    span: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Group:
    """Operators that make some items again when executed a second time.

    Attributes:
        name: for people.
        seconds: of the execution.
        segment: the segment it belongs to.
        items: numbers of items that must be there: kept, moved back in time, or of the same segment and made again.
        groups: groups of the same segment whose results it needs and which are no items themselves.
        passing: what it holds meanwhile beside items.
    """

    name: str
    seconds: float
    segment: int
    items: tuple[int, ...] = ()
    groups: tuple[int, ...] = ()
    passing: tuple[Passing, ...] = ()


@dataclass(frozen=True, slots=True)
class Segment:
    """Groups that are executed in one go in slot `slot`."""

    name: str
    slot: int


@dataclass(frozen=True)
class Problem:
    """Everything. Numbers of slots, items, groups and segments are list indices.

    Attributes:
        budget: bytes of device memory.
        common: bytes/s out and back of the link that the ways to all tiers share; None if each has its own.
        moments: in the order of time; empty where every slot has but its fullest one, with the slot's number.
    """

    slots: tuple[Slot, ...]
    items: tuple[Item, ...]
    groups: tuple[Group, ...]
    segments: tuple[Segment, ...]
    tiers: tuple[Tier, ...]
    budget: int
    common: tuple[float, float] | None = None
    moments: tuple[Moment, ...] = ()

    @property
    def rows(self) -> tuple[Moment, ...]:
        """The moments, or the fullest one of every slot."""
        return self.moments or tuple([Moment(number, slot.bytes) for number, slot in enumerate(self.slots)])

    @property
    def seconds(self) -> float:
        """Time of the program if everything stays."""
        return sum(slot.seconds for slot in self.slots)

    @property
    def peak(self) -> int:
        """Bytes alive at the fullest moment if everything stays."""
        return max((slot.bytes for slot in self.slots), default=0)


@dataclass(frozen=True)
class Decisions:
    """What to do with each item.

    Attributes:
        moved: fraction of each item in each tier, `[item][tier]`.
        executed: whether each group is executed again.
        kept: fraction of each item that stays (of an extra one: is kept for groups that need it).
        incoming: cumulative bytes that have come back from each tier by the end of each slot, `[tier][slot]`.
        seconds: time of the program so, by the model that chose it.
        lower_bound: seconds that no decision of this class can beat.
        method: what found it.
        packed: fraction of each item that is packed; empty where nothing may be.
    """

    moved: tuple[tuple[float, ...], ...]
    executed: tuple[bool, ...]
    kept: tuple[float, ...]
    incoming: tuple[tuple[float, ...], ...]
    seconds: float
    lower_bound: float
    method: str
    packed: tuple[float, ...] = ()

    def packed_share(self, item: int) -> float:
        """The fraction of an item that is packed."""
        return self.packed[item] if self.packed else 0.0
