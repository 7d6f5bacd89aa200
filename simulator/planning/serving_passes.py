"""One layer of a served model, as its copies and its computing follow each other: the order that both the linear
program and the replay keep.

A *pass* takes a block of sequences through the layers: its prompts (or a chunk of them), or a decoding step. A layer is
a sequence of *pieces* (itself, or its matrices); the piece with the cache is computed in *slots*, a batch and a unit of
the cache each. On the device lie as many weights as twice the largest piece takes, the cache of two slots and what two
slots are about to save. So

* the cache of a slot comes once the slot two before has ended, and a slot computes when what it saved two slots ago is
  away (two buffers each);
* the weights of a piece come once those that leave room have been used: while one piece computes, the ones after the
  next are on their way. Where the cache comes in as well, they do so in *slices*, one after every other slot, so that
  neither waits long for the other on the link;
* what a batch of prompts hands from layer to layer (its hidden states) comes and goes as the cache does, where it does
  not stay; with one batch, or in a decoding step, there is too little of it to move;
* of a mixture, prompts need every expert: they come in parts, one after the other, behind the rest of the layer;
* what is known late (experts after their router, neurons after their attention) comes once the layer before has ended.

Copies of one direction and one tier follow each other, as on a CUDA stream.

Source: Y. Sheng et al., "FlexGen", arXiv:2303.06865, algorithm 1: the next layer's weights, the next batch's cache and
the last batch's come and go while the present batch computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from peakline.planning.serving_sizes import Piece, Sizes

__all__ = ["BUFFERS", "Event", "Load", "Pass", "decoding", "early", "layer", "loads", "prompts"]

BUFFERS = 2
"""Units of everything that comes or goes on the device at once: one in use, one on its way."""


@dataclass(frozen=True, slots=True)
class Pass:
    """What one layer needs when a block passes through it: bytes if all of it lay elsewhere.

    Attributes:
        name: for people.
        times: passes of this kind.
        slots: in which the piece with the cache is computed.
        seconds: computing of the layer.
        weights: of its weights that come ahead of their use, without those that may come by neurons.
        neurons: of those, where all of them come ahead.
        late_weights, late_neurons: what comes once the layer before has ended.
        cached: of the cache that one slot reads.
        saved: of the cache that is written after every `every` slots.
        decodes: it generates a token.
        pieces: in which the layer's weights come in.
        copies: that a slot's bytes come and go in.
        states: bytes of hidden states that a slot reads, and writes for the layer after.
    """

    name: str
    times: float
    slots: int
    seconds: float
    weights: float
    neurons: float
    late_weights: float
    late_neurons: float
    cached: float
    saved: float
    every: int
    decodes: bool
    pieces: tuple[Piece, ...]
    copies: float = 1.0
    states: float = 0.0

    @property
    def largest(self) -> float:
        """Bytes of weights that come in at a time, at most."""
        return max(piece.weights for piece in self.pieces) * (self.weights + self.late_weights)

    def coarse(self, slots: int) -> Pass:
        """The pass in at most so many slots, each of several."""
        if self.slots <= slots:
            return self
        many = self.slots / slots
        return replace(
            self,
            slots=slots,
            cached=many * self.cached,
            states=many * self.states,
            saved=many * self.saved / self.every,
            every=1,
            copies=many,
        )


def decoding(s: Sizes, batch: int, batches: int, prefetch: float, times: int) -> Pass:
    """The pass of an average decoding step: a token of every sequence, half of what is generated in the cache."""
    block = batch * batches
    late = (1.0 - prefetch) * s.experts * s.touched(block)
    neurons = s.sparse.beside(block).loaded if s.sparse else 0.0
    return Pass(
        "", times, batches * s.units, batches * s.step_seconds, s.read(block) - s.gathered - late, 0.0, late, neurons,
        s.filled * s.cache * batch / s.units, s.appended * batch, s.units, True, s.pieces,
    )  # fmt: skip


def prompts(s: Sizes, batch: int, batches: int) -> tuple[Pass, ...]:
    """The passes of the prompts: every weight is needed, and nothing of it is a guess."""
    return tuple(
        Pass(
            "prompt", chunk.times, batches * s.units, batches * chunk.seconds,
            s.read(batch * batches * chunk.tokens) - s.gathered, s.gathered, 0.0, 0.0,
            s.held(chunk.cached) * batch / s.units, s.held(chunk.tokens) * batch / s.units, 1, False,
            s.pieces_of(batch * batches * chunk.tokens), 1.0,
            s.hidden * batch * chunk.tokens / s.units if batches > 1 and s.pieces[0].cached else 0.0,
        )
        for chunk in s.chunks
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Load:
    """A piece whose weights come while another computes: its number, and how many layers further on it is."""

    piece: int
    ahead: int


def loads(pieces: Sequence[Piece]) -> list[list[Load]]:
    """For each piece, the pieces whose weights may come once the piece before it has been used.

    A piece waits until those between leave it room: bytes of twice the largest.
    """
    count, room = len(pieces), BUFFERS * max(piece.weights for piece in pieces) * (1.0 + 1e-9)
    found: list[list[Load]] = [[] for _ in pieces]
    for number, piece in enumerate(pieces):
        if not piece.weights:
            continue
        taken, first = 0.0, number + 1
        while number - first < BUFFERS * count and taken + pieces[(first - 1) % count].weights <= room:
            first -= 1
            taken += pieces[first % count].weights
        found[first % count].append(Load(number, -(first // count)))
    return [sorted(some, key=lambda load: (load.ahead, load.piece)) for some in found]


def early(pieces: Sequence[Piece]) -> list[tuple[int, int]]:
    """What the layers before would have brought before the first of a kind begins: (piece, layers further on)."""
    all_ = [load for some in loads(pieces) for load in some]
    deepest = max((load.ahead for load in all_), default=0)
    return [(load.piece, load.ahead - back) for back in range(deepest, 0, -1) for load in all_ if load.ahead >= back]


@dataclass(frozen=True, slots=True)
class Event:
    """A step in a layer.

    Attributes:
        kind: `cache`, `late` or `weights` come in; `use` computes; `save` goes out.
        piece: during which.
        slot: of it.
        load: whose weights come.
        share: of the load's bytes, or of the piece's computing.
    """

    kind: str
    piece: int
    slot: int = 0
    load: Load | None = None
    share: float = 1.0


def layer(way: Pass, cached: bool, sliced: bool) -> Iterator[Event]:
    """The events of a layer in the order of their issue.

    Args:
        cached: some of the cache comes in.
        sliced: weights come in slices between the slots; else in one copy after the first two.
    """
    for number, (piece, coming) in enumerate(zip(way.pieces, loads(way.pieces))):
        slots = way.slots if piece.cached else 1
        late = number == 0 and bool(way.late_weights or way.late_neurons)
        for slot in range(slots):
            if piece.cached and cached:
                yield Event("cache", number, slot)
            if late and slot == 0:
                yield Event("late", number)
            for load, share in _shares(coming, way.pieces, *_portion(slot, slots, piece.cached and cached and sliced)):
                yield Event("weights", number, slot, load, share)
            yield Event("use", number, slot, None, 1.0 / slots)
            if piece.cached and (slot + 1) % way.every == 0:
                yield Event("save", number, slot)


def _portion(slot: int, slots: int, sliced: bool) -> tuple[float, float]:
    """From where to where, of all bytes that come during a piece, those of a slot do: equal shares after every second
    slot, or all after the second one."""
    if not sliced:
        return (0.0, 1.0) if slot == min(BUFFERS, slots) - 1 else (0.0, 0.0)
    if slot == slots - 1:
        return slot // 2 * 2 / slots, 1.0
    return (slot - 1) / slots * (slot % 2), (slot + 1) / slots * (slot % 2)


def _shares(coming: Sequence[Load], pieces: Sequence[Piece], low: float, high: float) -> Iterator[tuple[Load, float]]:
    """The loads that lie between two shares of all bytes that come, and how much of each does."""
    total, start = sum(pieces[load.piece].weights for load in coming), 0.0
    for load in coming:
        size = pieces[load.piece].weights / total
        share = (min(high, start + size) - max(low, start)) / size
        if share > 1e-9:
            yield load, share
        start += size
