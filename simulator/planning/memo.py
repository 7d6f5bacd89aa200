"""MEMO's question: how much of a layer's activations should leave, and what does the step then attain?

MEMO (P. Zhao et al., arXiv:2407.12117, §4.1) offloads per layer its input and the attention output, and of the other
"skeletal" activations a fraction α of the tokens, the same in every layer; the rest is recomputed:

    max α  subject to  (S_in + S_attn + α·S_others)/B ≤ T_layer,  (n − 2)(S_in + S_attn + α·S_others) ≤ M_host.

Here every tensor of every layer decides for itself, the backward pass counts as a window too, what fits the device
stays there, and a drive may lie behind the host: α is the same linear program with all of these tied to one number.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from peakline.solvers.offload.linear import bound, solve
from peakline.solvers.offload.problem import Decisions, Group, Item, Problem, Segment, Slot, Tier

__all__ = ["Layer", "Tensor", "alpha", "per_tensor", "tied"]


@dataclass(frozen=True, slots=True)
class Tensor:
    """One activation that a layer saves.

    Attributes:
        name: for people.
        bytes: on one device.
        seconds: to make it again from what is always there, on one device.
        always: MEMO always moves it (the layer's input and the attention's output).
    """

    name: str
    bytes: int
    seconds: float
    always: bool = False


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer on one device: seconds forward and backward, and what it saves."""

    forward: float
    backward: float
    tensors: tuple[Tensor, ...]

    @property
    def always(self) -> int:
        """Bytes that MEMO always moves."""
        return sum(t.bytes for t in self.tensors if t.always)

    @property
    def others(self) -> int:
        """Bytes of which it moves a fraction α."""
        return sum(t.bytes for t in self.tensors if not t.always)


def alpha(layer: Layer, layers: int, bandwidth: float, host: int | None) -> tuple[float, str]:
    """MEMO's fraction α, and what bounds it (`bandwidth`, `host memory` or `nothing`).

    Args:
        bandwidth: bytes/s from the device to the host.
        host: bytes of host memory for one device; None without bound.

    Raises:
        ValueError: not even the tensors that always move would fit.
    """
    limits = {"nothing": 1.0, "bandwidth": (layer.forward * bandwidth - layer.always) / layer.others}
    if host is not None:
        limits["host memory"] = (host / (layers - 2) - layer.always) / layer.others
    cause = min(limits, key=lambda name: limits[name])
    if limits[cause] < 0:
        raise ValueError(f"{cause}: too small for the {layer.always:,} bytes of every layer that always move")
    return limits[cause], cause


def tied(layer: Layer, layers: int, share: float) -> float:
    """Seconds of recomputation of a step in which every layer moves `share` of its other tensors (MEMO).

    The first backward layers need nothing: two layers' activations stay in the rounding buffers.
    """
    return (layers - 2) * (1 - share) * sum(t.seconds for t in layer.tensors if not t.always)


def per_tensor(
    layer: Layer, layers: int, room: int, tiers: tuple[Tier, ...], common: tuple[float, float]
) -> tuple[Decisions, float]:
    """The same step with every tensor of every layer deciding for itself; and the lower bound of its seconds.

    Args:
        room: bytes on the device for activations.
        tiers: the host, and what lies behind it.
        common: bytes/s out and back of the link of the device.

    Raises:
        peakline.solvers.offload.linear.Infeasible: the room is too small for two layers.
    """
    size = layer.always + layer.others
    slots = [Slot(layer.forward, min(i + 1, layers) * size) for i in range(layers)]
    slots += [Slot(layer.backward, (layers - i) * size) for i in range(layers)]
    items: list[Item] = []
    groups: list[Group] = []
    segments: list[Segment] = []
    for number in range(layers):
        back = 2 * layers - 1 - number
        segments.append(Segment(f"layer {number}", back))
        first = len(items)
        for tensor in layer.tensors:
            group = -1
            if not tensor.always:
                group = len(groups)
                needs = tuple(first + i for i, t in enumerate(layer.tensors) if t.always)
                groups.append(Group(f"{tensor.name} {number}", tensor.seconds, number, needs))
            items.append(
                Item(
                    f"{tensor.name} {number}", tensor.bytes, (number + 1, back - 1), group, ((number, True),), (back,),
                    movable=back > number + 1,
                )
            )  # fmt: skip
    problem = Problem(tuple(slots), tuple(items), tuple(groups), tuple(segments), tiers, room, common)
    lowest = bound(problem)
    return solve(replace(problem, budget=room), lower_bound=lowest), lowest
