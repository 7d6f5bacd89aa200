"""The folded graph, written down."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

from peakline.models.capture.layer_names import Names
from peakline.models.capture.references import References
from peakline.models.graph import Block, Graph, Operator, Tensor

__all__ = ["emit"]


def emit(words: References) -> Graph:
    """Blocks and families from worded references; what outside a segment runs in a row becomes one block."""
    return _Writer(words).graph()


class _Writer:
    def __init__(self, words: References) -> None:
        self.words = words
        self.homes = words.homes
        self.program = words.program
        self.blocks: list[Block] = []
        self.plain: list[Operator] = []
        self.block_names: set[str] = set()
        self.operator_names = Names(o.name for o in self.program.operators)

    def graph(self) -> Graph:
        place, position = self.homes.place, 0
        while position < len(self.program.operators):
            at = place.get(position)
            if at is None:
                self.plain.append(self._outside(position))
                position += 1
                continue
            self._close()
            position = self._block(at.segment, at.walk)
        self._close()
        return replace(
            self.program.graph, tensors=self._tensors(), blocks=tuple(self.blocks), previous=self.words.previous
        )

    # ---- blocks ----------------------------------------------------------------------------------------------------
    def _outside(self, position: int) -> Operator:
        operator, words = self.program.operators[position], self.words
        counts = words.counts.get(position)
        attributes = MappingProxyType({**operator.attributes, **counts}) if counts else operator.attributes
        return replace(
            operator, inputs=words.inputs[position], outputs=words.outputs[position], attributes=attributes
        )  # fmt: skip

    def _close(self) -> None:
        if self.plain:
            self.blocks.append(Block(self._unique(str(self.plain[0].phase)), tuple(self.plain)))
        self.plain = []

    def _block(self, number: int, w: int) -> int:
        """The block of one walk over a segment; the position after it."""
        segment, words = self.homes.segments[number], self.words
        walk, family, style = segment.walks[w], words.families[number], self.homes.numberings[number]
        starts = [self.homes.first_operator(segment, walk, layer) for layer in range(segment.repeat)]
        operators = []
        for position in range(walk.run.period):
            rows = [self.program.operators[start + position] for start in starts]
            at = starts[0] + position
            operators.append(
                replace(
                    rows[0],
                    name=self.operator_names.of(family, style, [o.name for o in rows]),
                    module=self._module(number, [o.module for o in rows]),
                    inputs=words.inputs[at],
                    outputs=words.outputs[at],
                )
            )
        carries = {port.name: port.carry for port in words.ports[number] if port.walk == w}
        name = self._unique(family if operators[0].phase == "forward" else f"{family} {operators[0].phase}")
        self.blocks.append(
            Block(name, tuple(operators), segment.repeat, family, walk.sign < 0, MappingProxyType(carries))
        )  # fmt: skip
        return max(starts) + walk.run.period

    def _module(self, number: int, modules: list[str]) -> str:
        """The path within the family, where the layers' paths are numbered as the family is."""
        family, style = self.words.families[number], self.homes.numberings[number]
        first = modules[0]
        if style is None or not first.startswith(style.prefix + ".") or all(m == first for m in modules):
            return first
        found = style.layer(first, len(modules))
        if found is None or found[0] != 0:
            return first
        return f"{family}.{found[1]}" if found[1] else family

    def _unique(self, name: str) -> str:
        candidate, n = name, 1
        while candidate in self.block_names:
            n += 1
            candidate = f"{name} {n}"
        self.block_names.add(candidate)
        return candidate

    # ---- tensors ---------------------------------------------------------------------------------------------------
    def _tensors(self) -> dict[str, Tensor]:
        """What is given first, in the order in which a process creates it; then what operators make; then carries."""
        words, program = self.words, self.program
        order = sorted(range(len(program.tensors)), key=lambda t: program.maker[t] >= 0)
        tensors: dict[str, Tensor] = {}
        for t in order:
            home, tensor = self.homes.home.get(t), program.tensors[t]
            if home is None:
                if tensor.storage is not None:
                    tensor = replace(tensor, storage=words.storages[t])
                tensors[tensor.name] = tensor
                continue
            name = words.names[home.segment][home.tensor]
            if name not in tensors:
                storage = words.storages.get((home.segment, home.tensor))
                tensors[name] = replace(tensor, name=name, family=words.families[home.segment], storage=storage)
        for number, ports in enumerate(words.ports):
            for port in ports:
                like = program.tensors[self.homes.instances[number][port.like][0]]
                family = words.families[number]
                tensors[port.name] = replace(
                    like, name=port.name, family=family, storage=None, role="activation", trainable=False
                )  # fmt: skip
        return tensors
