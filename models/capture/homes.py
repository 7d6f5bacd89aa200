"""Where every tensor of a flat program belongs: to a layer of a family, or to itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

from peakline.models.capture.families import Segment, Walk
from peakline.models.capture.layer_names import Numbering, numbering
from peakline.models.capture.periods import numbers, tensor_kinds
from peakline.models.graph import Graph, Operator, Tensor

__all__ = ["Home", "Homes", "Program", "pieces"]


class Program:
    """A flat graph in numbers: tensors and operators by their position.

    Attributes:
        inputs, outputs: tensors of each operator.
        maker: operator that makes each tensor, −1 for what is given.
        storage: tensor whose memory each one shares, −1 for its own.
        kinds: number of each tensor's shape, format, role and so on: all but its name.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.operators: tuple[Operator, ...] = graph.blocks[0].operators
        self.tensors: list[Tensor] = list(graph.tensors.values())
        self.number = {name: i for i, name in enumerate(graph.tensors)}
        number = self.number
        self.inputs = [tuple([number[n] for n in o.inputs]) for o in self.operators]
        self.outputs = [tuple([number[n] for n in o.outputs]) for o in self.operators]
        self.maker = [-1] * len(self.tensors)
        for position, made in enumerate(self.outputs):
            for tensor in made:
                self.maker[tensor] = position
        self.storage = [-1 if t.storage is None else number[t.storage] for t in self.tensors]
        self._sizes, kinds = tensor_kinds(graph.tensors)
        self._kinds = kinds
        self.kinds = list(kinds.values())
        self.tokens = numbers(self.operators, self._sizes, kinds)
        self.previous = {number[old]: number[new] for old, new in graph.previous.items()}

    @cached_property
    def touched(self) -> list[tuple[int, ...]]:
        """Tensors that each operator reads and makes; what a step left counts as what takes its place."""
        heir = self.previous
        touched = [i + o for i, o in zip(self.inputs, self.outputs)]
        return [tuple([heir.get(t, t) for t in ts]) for ts in touched] if heir else touched


class Home(NamedTuple):
    """A layer's instance of a family's tensor: which segment, which tensor of it, which layer."""

    segment: int
    tensor: int
    layer: int


class Place(NamedTuple):
    """Where an operator stands: segment, layer, walk and position within the layer."""

    segment: int
    layer: int
    walk: int
    position: int


def pieces(operator: Operator) -> list[tuple[int, int]]:
    """Stretches of an operator's inputs within which their order has no meaning, as for lists of tensors."""
    if operator.type != "update_pass":
        return [(0, len(operator.inputs))]
    edges = {0, len(operator.inputs), *(min(int(operator.attributes[k]), len(operator.inputs)) for k in COUNTS)}
    places = sorted(edges)
    return list(pairwise(places))


COUNTS = ("writes", "tensors")


class Homes:
    """Gives homes.

    Attributes:
        place: of each operator that a segment holds.
        home: of each tensor that is an instance of a family's tensor.
        instances: for each segment, the instances of each of its tensors, by layer.
        numberings: how each segment's layers are numbered in names.
    """

    def __init__(self, program: Program, found: Sequence[Segment]) -> None:
        self.program = program
        self.segments = list(found)
        self.place: dict[int, Place] = {}
        self.home: dict[int, Home] = {}
        self.instances: list[list[tuple[int, ...]]] = [[] for _ in self.segments]
        self.inside: set[int] = set()
        for number, segment in enumerate(self.segments):
            for w, walk in enumerate(segment.walks):
                for layer in range(segment.repeat):
                    start = self.first_operator(segment, walk, layer)
                    for position in range(walk.run.period):
                        self.place[start + position] = Place(number, layer, w, position)
        self._made_in_layers()
        self._given_to_layers()
        self._views_of_layers()
        self._left_by_layers()
        self.numberings: list[Numbering | None] = [self._numbering(i) for i in range(len(self.segments))]
        self._lists_by_name()
        self._views_of_layers()

    @staticmethod
    def first_operator(segment: Segment, walk: Walk, layer: int) -> int:
        """Number of the operator with which a walk begins a layer of the segment."""
        return walk.run.start + walk.repetition(layer + segment.low) * walk.run.period

    # ---- groups ----------------------------------------------------------------------------------------------------
    def _admit(self, groups: dict[tuple[int, Hashable], dict[int, int]]) -> None:
        """Groups that have one tensor of one kind in every layer become tensors of their family."""
        for (segment, _), by_layer in groups.items():
            if len(by_layer) == self.segments[segment].repeat:
                self._join(segment, tuple([by_layer[layer] for layer in range(len(by_layer))]))

    def _join(self, segment: int, members: tuple[int, ...]) -> None:
        kinds = self.program.kinds
        if len({kinds[t] for t in members}) != 1 or any(t in self.home for t in members):
            return
        tensor = len(self.instances[segment])
        self.instances[segment].append(members)
        for layer, t in enumerate(members):
            self.home[t] = Home(segment, tensor, layer)

    def _made_in_layers(self) -> None:
        outputs = self.program.outputs
        for number, segment in enumerate(self.segments):
            for walk in segment.walks:
                starts = [self.first_operator(segment, walk, layer) for layer in range(segment.repeat)]
                for position in range(walk.run.period):
                    for members in zip(*[outputs[start + position] for start in starts]):
                        self._join(number, members)

    def _given_to_layers(self) -> None:
        """What exists before the step and only one layer touches: weights, states, caches, gradient buffers."""
        first: dict[int, tuple[int, int, Hashable] | None] = {}
        maker = self.program.maker
        for operator in sorted(self.place):
            place = self.place[operator]
            for slot, t in enumerate(self.program.inputs[operator]):
                self.inside.add(t)
                if maker[t] >= 0:
                    continue
                known = first.setdefault(t, (place.segment, place.layer, (place.walk, place.position, slot)))
                if known is not None and known[:2] != (place.segment, place.layer):
                    first[t] = None
        groups: dict[tuple[int, Hashable], dict[int, int]] = defaultdict(dict)
        for t, where in first.items():
            if where is not None:
                groups[where[0], where[2]][where[1]] = t
        self._admit(groups)

    def _views_of_layers(self) -> None:
        """Views that an operator outside makes of every layer's tensor: an optimizer's results in place."""
        program = self.program
        for operator, made in enumerate(program.outputs):
            if operator in self.place or len(made) < 2:
                continue
            groups: dict[tuple[int, Hashable], dict[int, int]] = defaultdict(dict)
            for t in made:
                owner = self.home.get(program.storage[t])
                if owner is not None:
                    groups[owner.segment, owner.tensor].setdefault(owner.layer, t)
            self._admit(groups)

    def _left_by_layers(self) -> None:
        """What the step before left, and layers make anew (`Graph.previous`)."""
        groups: dict[tuple[int, Hashable], dict[int, int]] = defaultdict(dict)
        for old, new in self.program.previous.items():
            heir = self.home.get(new)
            if heir is not None and old not in self.home:
                groups[heir.segment, heir.tensor][heir.layer] = old
        self._admit(groups)

    def _numbering(self, segment: int) -> Numbering | None:
        tensors = self.program.tensors
        return numbering([[tensors[t].name for t in members] for members in self.instances[segment]])

    def _lists_by_name(self) -> None:
        """Tensors that only whole lists use, or nobody, where their names are numbered as a family's layers are."""
        program, inside = self.program, self.inside
        uses: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for operator, read in enumerate(program.inputs):
            if operator in self.place:
                continue
            for number, (start, stop) in enumerate(pieces(program.operators[operator])):
                for t in read[start:stop]:
                    if t not in inside and t not in self.home:
                        uses[t].append((operator, number))
        for view, owner in enumerate(program.storage):
            if owner >= 0:
                uses[owner].append((program.maker[view], -1))
        tied = {*program.previous, *program.previous.values()}
        groups: dict[tuple[int, Hashable], dict[int, int]] = defaultdict(dict)
        by_prefix: dict[str, list[tuple[int, Numbering]]] = defaultdict(list)
        for segment, style in enumerate(self.numberings):
            if style is not None:
                by_prefix[style.prefix].append((segment, style))
        for t, tensor in enumerate(program.tensors):
            if t in self.home or t in inside or t in tied or program.storage[t] >= 0:
                continue
            for prefix, styles in by_prefix.items():
                if not tensor.name.startswith(prefix + "."):
                    continue
                for segment, style in styles:
                    at = style.layer(tensor.name, self.segments[segment].repeat)
                    if at is not None:
                        layer, rest = at
                        groups[segment, (rest, tuple(uses.get(t, ())), self._slot(t, layer))][layer] = t
        self._admit(groups)

    def _slot(self, t: int, layer: int) -> Hashable:
        """What a list that is made must have in common: its maker, and its place there, layer after layer."""
        maker = self.program.maker[t]
        return (maker, self.program.outputs[maker].index(t) - layer) if maker >= 0 else None
