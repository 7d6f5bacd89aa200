"""What is placed, where it lies, and what a replay says of that: the data of the placement of a served model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peakline.planning.serving_passes import BUFFERS, Pass
from peakline.planning.serving_sizes import Sizes
from peakline.planning.tiers import Surroundings

__all__ = ["Block", "Seen", "Shares"]

_NOTHING = 1e-9
"""Shares that are rounding."""


@dataclass(frozen=True)
class Block:
    """What is placed: sizes, passes (the prompts', then a decoding step), places and their bytes.

    Attributes:
        room: bytes of the device for weights, cache, buffers and workspaces.
        window: bytes on the device of the neurons that lie elsewhere.
        sequences: of the block.
        slot: of a batch's cache, the bytes that one slot holds.
        hidden: bytes of the hidden states of a block's prompts, where there are several batches.
        beside: bytes always on the device for the batches that wait: what they keep between pieces, or tokens.
        kept: the share of the cache that stays on the device, where it is given.
    """

    sizes: Sizes
    passes: tuple[Pass, ...]
    around: Surroundings
    room: float
    window: float
    sequences: int
    slot: float
    kept: float | None = None
    hidden: float = 0.0
    beside: float = 0.0

    @property
    def places(self) -> tuple[str, ...]:
        """The device, and the tiers beside it."""
        return ("device", *(tier.name for tier in self.around.tiers))

    def lies(self, place: str, shares: Any) -> Any:
        """Bytes of weights, cache and hidden states that lie in a place, by its shares (numbers, or unknowns)."""
        s = self.sizes
        weights = shares.weights[place] * (s.weights - s.gathered)
        if shares.neurons:
            weights += shares.neurons[place] * s.gathered
        held = (weights + shares.cache[place] * s.cache * self.sequences) * s.layers
        return held + shares.states[place] * self.hidden

    def meets(self, shares: Shares) -> bool:
        """Whether copies slow each other down: from two tiers, or in and out over a link too slow for both."""
        tensors = (shares.weights, shares.cache, shares.neurons, shares.states)
        used = [r for r in self.around.routes if any(at.get(r.tier.name, 0.0) > _NOTHING for at in tensors)]
        rates = {name: link.bandwidth for name, link in self.around.links.items()}
        return len(used) > 1 or any(
            rates[name] < min(rates[n] for n in route.out) + min(rates[n] for n in route.back)
            for route in used
            for name in set(route.out) & set(route.back)
        )

    def needs(self, shares: Any) -> Any:
        """Bytes of the device: what lies there, buffers for what comes and goes, windows and workspaces."""
        read = max(way.largest for way in self.passes)
        saved = max((way.saved for way in self.passes if way.decodes), default=0.0)
        came = (1 - shares.weights["device"]) * read
        came += (1 - shares.cache["device"]) * (self.slot + saved)
        windows = (1 - shares.neurons["device"]) * self.window if shares.neurons else 0.0
        came += (1 - shares.states["device"]) * (2 * max(way.states for way in self.passes))  # in, and out
        return self.lies("device", shares) + BUFFERS * came + windows + self.sizes.working + self.beside


@dataclass(frozen=True)
class Shares:
    """A solution.

    Attributes:
        weights, cache, neurons, states: shares by place.
        seconds, prompts, step: of all passes, of those of the prompts, and of one decoding step, as solved.
        layers: seconds from one layer to the next in every pass, as solved.
        cached, sliced, handed: how copies are cut (`serving_passes.layer`).
    """

    weights: dict[str, float]
    cache: dict[str, float]
    neurons: dict[str, float]
    states: dict[str, float]
    seconds: float
    prompts: float
    step: float
    layers: tuple[float, ...]
    cached: bool
    sliced: bool
    handed: bool = False

    def comes(self, way: Pass) -> bool:
        """Something comes in for every slot of a pass."""
        return (self.cached and way.cached > 0) or (self.handed and way.states > 0)


@dataclass(frozen=True)
class Seen:
    """What a replay says of one pass beside some shares: seconds of a layer, and by how many more per share.

    Attributes:
        number: of the pass.
        at, slopes: by tensor (`weights`, `cache`, `neurons`, `states`) and place.
    """

    number: int
    seconds: float
    at: dict[tuple[str, str], float]
    slopes: dict[tuple[str, str], float]

    def value(self, shares: Any) -> Any:
        """Seconds at other shares, numbers or unknowns, if the slopes are the same there."""
        found: Any = self.seconds
        for (name, place), slope in self.slopes.items():
            found += slope * (getattr(shares, name)[place] - self.at[name, place])
        return found
