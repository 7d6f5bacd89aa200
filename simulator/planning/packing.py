"""Activations in fewer bits: packed after their last use of the forward pass, unpacked before their next.

Groups of consecutive elements share a scale (and a zero point). The forward pass sees the exact values; the backward
pass reads what comes back, so gradients are those of slightly different activations.

Sources: J. Chen et al., "ActNN: Reducing Training Memory Footprint via 2-Bit Activation Compressed Training",
arXiv:2104.14129, §3.2 and §4.1 (groups of 256 elements with their minimum and range, here in fp32); X. Liu et al.,
"GACT", arXiv:2206.11357 (the same for any network); H. Xi et al., "COAT: Compressing Optimizer states and Activation
for memory-efficient FP8 Training", arXiv:2410.19313, §5 (FP8 activations with a scale per group).
"""

from __future__ import annotations

from dataclasses import dataclass

from peakline.cost.price import price
from peakline.models.dtypes import dtype
from peakline.models.kernels import Stream
from peakline.planning.extract import Profile
from peakline.solvers.offload.problem import Packing

__all__ = ["CODECS", "Codec", "packable", "packings"]

WORK = 6
"""Scalar operations per element to pack or unpack it: least and largest of a group, shift, scale, round, convert."""


@dataclass(frozen=True, slots=True)
class Codec:
    """A format for saved activations.

    Attributes:
        name: for people.
        bits: of one element.
        group: consecutive elements that share `scale_bytes` bytes of scale and zero point.
        scale_bytes: per group.
        error: largest rounding error of an element, as a share of its group's range (of its largest magnitude: fp8).
        source: of the format.
    """

    name: str
    bits: int
    group: int
    scale_bytes: int
    error: float
    source: str

    def bytes_of(self, elements: int) -> int:
        """Bytes of packed elements, scales included; the last group may be short."""
        return -(-elements * self.bits // 8) + -(-elements // self.group) * self.scale_bytes


CODECS = {
    codec.name: codec
    for codec in (
        Codec("int8", 8, 256, 8, 0.5 / 255, "ActNN, arXiv:2104.14129: groups of 256 with their minimum and range"),
        Codec("int4", 4, 256, 8, 0.5 / 15, "ActNN, arXiv:2104.14129: groups of 256 with their minimum and range"),
        Codec("fp8", 8, 128, 4, 2.0**-4, "COAT, arXiv:2410.19313: E4M3 with a scale per group, here of 128 in fp32"),
    )
}
"""Formats by name."""


def packable(profile: Profile, key: int, codec: Codec) -> bool:
    """Whether a storage can be packed: floating point, of a format that takes more bits, and smaller so."""
    tensor, size = profile.program.storages[key].tensor, int(profile.program.sizes[key])
    kind = tensor.dtype
    return kind.is_float and not kind.block and kind.bits > codec.bits and codec.bytes_of(size * 8 // kind.bits) < size


def packings(profile: Profile, keys: list[int], codec: Codec) -> dict[int, Packing]:
    """What packing each of the storages saves and costs on the profile's device, as tiled; `idle` is left open."""
    device, found = profile.estimate.device, {}
    known: dict[tuple[int, int], Packing] = {}
    for key in keys:
        if not packable(profile, key, codec):
            continue
        kind, size = profile.program.storages[key].tensor.dtype, int(profile.program.sizes[key])
        if (size, kind.bits) not in known:
            elements = size * 8 // kind.bits
            small = codec.bytes_of(elements)
            work = Stream(WORK * elements, dtype("fp32"))
            out, back = (float(price(work, *sides, device).tiled) for sides in ((size, small), (small, size)))
            known[size, kind.bits] = Packing(small, out, back, (0, -1))
        found[key] = known[size, kind.bits]
    return found
