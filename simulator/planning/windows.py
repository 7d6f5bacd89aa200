"""Feed-forward weights in flash, of which only the neurons that a token activates come in.

A neuron is active for a share s of the tokens. Those active for any of the last k tokens stay in memory (a sliding
*window*), so a new token reads only what the window lacks. With s_agg(k) the share of neurons active at least once in k
tokens, the window holds s_agg(k) of a layer's neurons, and a token reads s_agg(k + 1) − s_agg(k).

How s_agg grows is a property of model and text. Here a neuron is a chain of two states: active with probability s, and
with probability r (*reuse*) if it was for the token before. It stays idle from an idle token with probability
1 − s(1 − r)/(1 − s), hence

    s_agg(k) = 1 − (1 − s) · (1 − s(1 − r)/(1 − s))^(k − 1)

r = s are independent draws, 1 − (1 − s)^k: the most that is read for any r ≥ s. Sequences of a block activate neurons
independently of each other, so B of them leave (1 − s_agg(k))^B idle.

A neuron is a row of each matrix that goes in (up, gate) and a column of the one that goes out. Stored together
(*bundled*) they are one read instead of two or three, and longer reads get more of a drive's bandwidth.

Source: K. Alizadeh et al., "LLM in a flash: Efficient Large Language Model Inference with Limited Memory",
arXiv:2312.11514, §3.1 (windows), §3.2 (bundles). The two-state chain is ours: the paper measures s_agg.
"""

from __future__ import annotations

from dataclasses import dataclass

from peakline.cost.storage import Drive
from peakline.models.graph import Graph

__all__ = ["Activity", "FeedForward", "Sparse", "Windowed", "feed_forward", "read_rate", "windowed"]

DEPTH = 32
"""Reads in flight: the paper reads with 32 threads."""

_FEED_FORWARD = (".mlp.", ".fc1.", ".fc2.", ".ffn.", "feed_forward", "densereludense")


@dataclass(frozen=True, slots=True)
class Activity:
    """Which neurons tokens activate.

    Attributes:
        share: s, of a layer's neurons, above 0 and at most 1.
        window: k, tokens whose neurons stay; 0 keeps none.
        reuse: r, share of a token's active neurons that the token before activated as well, s to 1; None for s.

    Raises:
        ValueError: shares or a window that are none.
    """

    share: float
    window: int = 5
    reuse: float | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.share <= 1.0:
            raise ValueError(f"active_share: {self.share!r} is not a share above 0 and at most 1")
        if self.window < 0 or int(self.window) != self.window:
            raise ValueError(f"window: {self.window!r} is not a number of at least 0 tokens")
        if self.reuse is not None and not self.share <= self.reuse <= 1.0:
            raise ValueError(
                f"reuse_share: {self.reuse!r} is not between active_share ({self.share!r}: independent tokens) and 1"
            )

    def aggregated(self, tokens: int, sequences: int = 1) -> float:
        """Share of neurons active for any of `tokens` consecutive tokens of any of the sequences."""
        if tokens < 1:
            return 0.0
        s, r = self.share, self.share if self.reuse is None else self.reuse
        wakes = s * (1.0 - r) / (1.0 - s) if s < 1.0 else 1.0
        return float(1.0 - ((1.0 - s) * (1.0 - wakes) ** (tokens - 1)) ** sequences)

    def resident(self, sequences: int = 1) -> float:
        """Share of neurons that the window holds."""
        return self.aggregated(self.window, sequences)

    def loaded(self, sequences: int = 1) -> float:
        """Share of neurons that a new token of every sequence reads, on average."""
        return self.aggregated(self.window + 1, sequences) - self.resident(sequences)


@dataclass(frozen=True, slots=True)
class FeedForward:
    """The feed-forward matrices of one layer.

    Attributes:
        bytes: of all of them (on average over the layers).
        neuron: bytes of one neuron in all matrices.
        row: bytes of one neuron in one matrix.
    """

    bytes: float
    neuron: float
    row: float


@dataclass(frozen=True, slots=True)
class Windowed:
    """A layer read through a window.

    Attributes:
        resident: bytes that the window holds, on average.
        loaded: bytes that one token of every sequence reads, on average.
        seconds: of these reads.
    """

    resident: float
    loaded: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Sparse:
    """A layer's feed-forward part, its activity, and bytes/s of reads of its neurons from a drive, if any."""

    part: FeedForward
    activity: Activity
    rate: float | None

    def beside(self, sequences: int) -> Windowed:
        """The part behind its window; seconds 0 without a drive."""
        return windowed(self.part, self.activity, self.rate or float("inf"), sequences)

    def slower(self, rate: float, place: str) -> float:
        """Bytes/s from a place whose link has `rate`: neurons are gathered from a drive, slower than layers."""
        return min(rate, self.rate) if place == "ssd" and self.rate else rate


def feed_forward(graph: Graph, layers: int) -> FeedForward:
    """The feed-forward part of a model, its bytes over `layers`.

    Raises:
        ValueError: a mixture of experts (its experts are chosen whole), or no feed-forward matrices.
    """
    weights = graph.of_role("parameter")
    if any(".experts." in tensor.name for tensor in weights):
        raise ValueError("active_share: the experts of a mixture are chosen whole; accepted: models without experts")
    found = [t for t in weights if len(t.shape) == 2 and any(part in t.name.lower() for part in _FEED_FORWARD)]
    if not found:
        raise ValueError("active_share: no feed-forward matrices were found; accepted: models that have them")
    width = min(int(min(t.shape)) for t in found)
    neurons = min(int(max(t.shape)) for t in found)
    rows = sum(int(t.elements) for t in found) / (neurons * width)
    one = sum(int(t.bytes) for t in found) / neurons
    total = sum(graph.layers(t.name) * int(t.bytes) for t in found)
    return FeedForward(total / layers, one, one / rows)


def read_rate(drive: Drive, chunk: float, depth: int = DEPTH) -> float:
    """Bytes/s of reads of `chunk` bytes at random places, `depth` in flight.

    Where the drive's latency is not published, enough are taken to be in flight for its rated requests per second.

    Raises:
        ValueError: random reads per second are not published.
    """
    if drive.reading.latency is None:
        return drive.random_rate("read", chunk) * chunk
    return drive.random("read", chunk, depth)


def windowed(part: FeedForward, activity: Activity, rate: float, sequences: int = 1) -> Windowed:
    """A layer's feed-forward part behind reads of `rate` bytes/s."""
    loaded = part.bytes * activity.loaded(sequences)
    return Windowed(part.bytes * activity.resident(sequences), loaded, loaded / rate)
