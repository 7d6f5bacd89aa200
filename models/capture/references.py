"""Every use of a tensor in the words of the graph's language, and where to cut a segment because there are none."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from peakline.models.capture.homes import COUNTS, Homes, Program, pieces
from peakline.models.capture.layer_names import Names
from peakline.models.graph import ALL, Carry

__all__ = ["Port", "References"]

GIVE_UP = -1
"""A place of `References.cuts` that says: no cut helps, write these layers out."""


@dataclass(frozen=True, slots=True)
class Port:
    """A carry: its name, the walk whose block holds it, and the family's tensor it is like."""

    name: str
    walk: int
    carry: Carry
    like: int


@dataclass
class _Table:
    """Names of a segment's sequences: a tensor for each layer, in order of layers."""

    whole: dict[tuple[int, ...], str] = field(default_factory=dict)
    without_last: dict[tuple[int, ...], str] = field(default_factory=dict)
    without_first: dict[tuple[int, ...], str] = field(default_factory=dict)

    def add(self, sequence: tuple[int, ...], name: str) -> None:
        self.whole.setdefault(sequence, name)
        self.without_last.setdefault(sequence[:-1], name)
        self.without_first.setdefault(sequence[1:], name)


class References:
    """Words every reference of a program with homes.

    Attributes:
        families: name of each segment's family.
        names: for each segment, the names of its tensors.
        ports: carries of each segment.
        inputs, outputs: references of each operator; of operators in segments, those of layer 0 stand for all.
        storages: name of the tensor whose memory a tensor shares: by number outside, by (segment, tensor) inside.
        counts: attributes of list operators, where `[*]` stands for several tensors.
        groups: for segments whose layers alternate (every second one reads another mask), after how many they return.
        cuts: for each segment, layers at which a new segment must begin (`GIVE_UP`: none helps). Empty if all is said.
    """

    def __init__(self, homes: Homes) -> None:
        self.homes = homes
        self.program: Program = homes.program
        self.families = _family_names(homes)
        self.ports: list[list[Port]] = [[] for _ in homes.segments]
        self.cuts: dict[int, set[int]] = defaultdict(set)
        self.groups: dict[int, int] = {}
        self.inputs: dict[int, tuple[str, ...]] = {}
        self.outputs: dict[int, tuple[str, ...]] = {}
        self.storages: dict[int | tuple[int, int], str] = {}
        self.counts: dict[int, dict[str, int]] = {}
        tensors = self.program.tensors
        self.tensor_names = Names(t.name for t in tensors)
        self.names: list[list[str]] = []
        self._tables: list[_Table] = []
        self._like: list[dict[str, int]] = []
        for number, groups in enumerate(homes.instances):
            family, style = self.families[number], homes.numberings[number]
            names = [self.tensor_names.of(family, style, [tensors[t].name for t in group]) for group in groups]
            table = _Table()
            for group, name in zip(groups, names):
                table.add(group, name)
            self.names.append(names)
            self._tables.append(table)
            self._like.append({name: i for i, name in enumerate(names)})
        self._last = [self._last_layers(s) for s in range(len(homes.segments))]
        self._storages()
        for number in range(len(homes.segments)):
            self._inside(number)
        self._outside()
        self._left()

    # ---- words -----------------------------------------------------------------------------------------------------
    def _last_layers(self, segment: int) -> list[int]:
        """For each tensor of a segment, the layer that a bare name means outside: the one executed last."""
        place, maker = self.homes.place, self.program.maker
        last = self.homes.segments[segment].repeat - 1
        walks = self.homes.segments[segment].walks
        found = []
        for group in self.homes.instances[segment]:
            at = place.get(maker[group[0]])
            found.append(0 if at is not None and walks[at.walk].sign < 0 else last)
        return found

    def from_outside(self, t: int) -> str | None:
        """The bare name of one tensor, as seen from outside its family; None if it means another layer's."""
        home = self.homes.home.get(t)
        if home is None:
            return self.program.tensors[t].name
        if self._last[home.segment][home.tensor] == home.layer:
            return self.names[home.segment][home.tensor]
        return None

    def _cut_after(self, t: int) -> None:
        """Ask that a tensor's layer be the one executed last of its segment."""
        home = self.homes.home[t]
        backwards = self._last[home.segment][home.tensor] == 0
        place = home.layer if backwards else home.layer + 1
        self.cuts[home.segment].add(place if 0 < place < self.homes.segments[home.segment].repeat else GIVE_UP)

    def in_layers(self, segment: int, walk: int, sequence: tuple[int, ...]) -> str | None:
        """What the layers of a segment call `sequence`, one tensor for each layer; None, and cuts, if nothing."""
        table = self._tables[segment]
        known = table.whole.get(sequence)
        if known is not None:
            return known
        t = sequence[0]
        if all(other == t for other in sequence):
            home = self.homes.home.get(t)
            if home is None or home.segment != segment:
                name = self.from_outside(t)
                if name is None:
                    self._cut_after(t)
                return name
            repeat = self.homes.segments[segment].repeat
            self.cuts[segment] |= {p for p in (home.layer, home.layer + 1) if 0 < p < repeat}
            return None
        found = self._carried(segment, walk, sequence)
        if found is None:
            self._cut_where_it_changes(segment, walk, sequence)
        return found

    def _carried(self, segment: int, walk: int, sequence: tuple[int, ...]) -> str | None:
        """A carry: the first layer's own tensor, then what the layer executed before calls by one name."""
        table, walks = self._tables[segment], self.homes.segments[segment].walks
        order = sorted(range(len(walks)), key=lambda w: w != walk)
        for w in order:
            forwards = walks[w].sign > 0
            first = sequence[0] if forwards else sequence[-1]
            following = table.without_last.get(sequence[1:]) if forwards else table.without_first.get(sequence[:-1])
            initial = self.from_outside(first)
            if following is None or initial is None:
                continue
            like = self._like[segment][following]
            family = self.families[segment]
            name = self.tensor_names.fresh(f"{family}.carry", family, len(sequence))
            self.ports[segment].append(Port(name, w, Carry(initial, following), like))
            self._like[segment][name] = like
            table.add(sequence, name)
            return name
        return None

    def _cut_where_it_changes(self, segment: int, walk: int, sequence: tuple[int, ...]) -> None:
        home = self.homes.home
        kinds: list[object] = []
        for layer, t in enumerate(sequence):
            at = home.get(t)
            kinds.append((at.tensor, at.layer - layer) if at is not None and at.segment == segment else (t,))
        period = next((p for p in range(2, len(kinds) // 2 + 1) if kinds[p:] == kinds[:-p]), 0)
        if period:
            self.groups[segment] = math.lcm(period, self.groups.get(segment, 1))
        changes = [i for i in range(1, len(kinds)) if kinds[i] != kinds[i - 1]]
        entry = 1 if self.homes.segments[segment].walks[walk].sign > 0 else len(sequence) - 1
        if len(changes) > 1 and entry in changes:  # a carry may begin with anything
            changes.remove(entry)
        self.cuts[segment] |= set(changes) or {GIVE_UP}

    # ---- every use ---------------------------------------------------------------------------------------------------
    def _storages(self) -> None:
        """Whose memory each view shares."""
        storage, home, place = self.program.storage, self.homes.home, self.homes.place
        for number, groups in enumerate(self.homes.instances):
            for tensor, group in enumerate(groups):
                owners = tuple([storage[t] for t in group])
                if owners[0] < 0:
                    continue
                at = place.get(self.program.maker[group[0]])
                name = self.in_layers(number, at.walk if at is not None else 0, owners)
                if name is not None:
                    self.storages[number, tensor] = name
        for t, owner in enumerate(storage):
            if owner >= 0 and t not in home:
                name = self.from_outside(owner)
                if name is None:
                    self._cut_after(owner)
                else:
                    self.storages[t] = name

    def _inside(self, number: int) -> None:
        segment = self.homes.segments[number]
        for w, walk in enumerate(segment.walks):
            starts = [self.homes.first_operator(segment, walk, layer) for layer in range(segment.repeat)]
            for position in range(walk.run.period):
                rows = [start + position for start in starts]
                inputs = self._worded(number, w, [self.program.inputs[row] for row in rows])
                outputs = self._worded(number, w, [self.program.outputs[row] for row in rows])
                self.inputs[rows[0]], self.outputs[rows[0]] = inputs, outputs

    def _worded(self, segment: int, walk: int, rows: Sequence[tuple[int, ...]]) -> tuple[str, ...]:
        words = [self.in_layers(segment, walk, sequence) for sequence in zip(*rows)]
        return tuple([w or "" for w in words])

    def _outside(self) -> None:
        for number, operator in enumerate(self.program.operators):
            if number in self.homes.place:
                continue
            words: list[str] = []
            ends: dict[int, int] = {0: 0}
            for start, stop in pieces(operator):
                words += self._list(self.program.inputs[number][start:stop])
                ends[stop] = len(words)
            self.inputs[number] = tuple(words)
            self.outputs[number] = tuple(self._list(self.program.outputs[number]))
            if operator.type == "update_pass":
                length = len(self.program.inputs[number])
                self.counts[number] = {
                    k: ends[min(v, length)] + max(0, v - length)
                    for k in COUNTS
                    if (v := int(operator.attributes.get(k, 0))) or k in operator.attributes
                }

    def _list(self, tensors: Sequence[int]) -> list[str]:
        """Tensors in an order without meaning: all layers' together where all are there."""
        left = Counter(tensors)
        words = []
        for t in tensors:
            if not left[t]:
                continue
            home = self.homes.home.get(t)
            group = self.homes.instances[home.segment][home.tensor] if home is not None else ()
            if home is not None and all(left[other] for other in group):
                words.append(self.names[home.segment][home.tensor] + ALL)
                left.subtract(group)
                continue
            name = self.from_outside(t)
            if name is None:
                self._cut_after(t)
            words.append(name or "")
            left[t] -= 1
        return words

    # ---- from step to step -------------------------------------------------------------------------------------------
    def _left(self) -> None:
        """`Graph.previous`, tensor by tensor of families."""
        self.previous: dict[str, str] = {}
        home = self.homes.home
        for old, new in self.program.previous.items():
            before, after = home.get(old), home.get(new)
            if before is None and after is None:
                self.previous[self.program.tensors[old].name] = self.program.tensors[new].name
                continue
            if before is None or after is None or (before.segment, before.layer) != (after.segment, after.layer):
                self.cuts[(before or after).segment].add(GIVE_UP)  # type: ignore[union-attr]
                continue
            one, other = self.names[before.segment][before.tensor], self.names[after.segment][after.tensor]
            if self.previous.setdefault(one, other) != other:
                self.cuts[before.segment].add(before.layer or GIVE_UP)


def _family_names(homes: Homes) -> list[str]:
    """One name for each segment's family: from the numbering of its tensors' names."""
    taken: set[str] = set()
    names = []
    for style in homes.numberings:
        base = style.family if style is not None else "repeated"
        name, n = base, 1
        while name in taken:
            n += 1
            path, at, rest = base.partition("@")
            name = f"{path}~{n}{at}{rest}"
        taken.add(name)
        names.append(name)
    return names
