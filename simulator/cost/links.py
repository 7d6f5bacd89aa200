"""Time on a link: a fixed start and a rate, packets with headers, directions that share wires, chains of links.

One message of n bytes takes

    t = α + n / β,

so half of β is reached at n½ = α·β bytes (R. Hockney, "The communication challenge for MPP", Parallel Computing 20,
1994). The rate is what the wires carry less what headers take (`packet_share`).

References:
    [1] R. Neugebauer et al., "Understanding PCIe performance for end host networking", SIGCOMM 2018, §3: 24 bytes of
        framing, sequence number, checksum and header go with every write packet, 20 with every completion of a read.
    [2] NVIDIA, CUDA C++ Best Practices Guide, §10.1: pageable memory is copied through a pinned staging buffer.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peakline.hardware.sections import Link

__all__ = ["PAYLOAD", "Channel", "channel_of", "chunked", "packet_share", "staged"]

PAYLOAD = 256
"""Bytes that a packet carries at most on servers' root ports: 256 on Intel Xeon and AMD EPYC ([1], §3)."""

WRITE_OVERHEAD, READ_OVERHEAD = 24, 20
"""Bytes around the payload of a PCIe write, and of a completion that answers a read ([1], §3)."""


@dataclass(frozen=True, slots=True)
class Channel:
    """A way between two memories.

    Attributes:
        bandwidth: bytes/s in one direction that long messages reach.
        latency: seconds before the first byte arrives.
        half_duplex: both directions share the wires (a DRAM bus, eMMC, a drive's flash channels).
    """

    bandwidth: float
    latency: float = 0.0
    half_duplex: bool = False

    def __post_init__(self) -> None:
        if not self.bandwidth > 0 or self.latency < 0:
            raise ValueError(
                f"bandwidth and latency: a channel needs bytes/s above 0 and seconds of at least 0; got "
                f"{self.bandwidth!r}, {self.latency!r}"
            )

    @property
    def half_size(self) -> float:
        """Bytes of a message that gets half of the bandwidth, α·β."""
        return self.latency * self.bandwidth

    def seconds(self, size: float, messages: int = 1) -> float:
        """Seconds of `size` bytes in `messages` messages that are sent one after the other."""
        return messages * self.latency + size / self.bandwidth

    def rate(self, size: float) -> float:
        """Bytes/s of one message of `size` bytes."""
        return size / self.seconds(size) if size else 0.0

    def both_ways(self, out: float, back: float) -> float:
        """Seconds of `out` bytes one way and `back` bytes the other at the same time.

        The longer of the two; on a half-duplex channel one after the other.
        """
        if self.half_duplex:
            return self.seconds(out, int(out > 0)) + self.seconds(back, int(back > 0))
        return max(self.seconds(out, int(out > 0)), self.seconds(back, int(back > 0)))

    def shared(self, users: int) -> Channel:
        """What each of `users` gets that use it at the same time, by turns."""
        if users < 1:
            raise ValueError(f"users: must be at least 1; got {users}")
        return Channel(self.bandwidth / users, self.latency, self.half_duplex)


def channel_of(link: Link) -> Channel:
    """The channel of a device's link: what copies were measured to reach, else its stated rate.

    Raises:
        ValueError: the link names no bandwidth.
    """
    rate = link.achieved or link.bandwidth
    if not rate:
        raise ValueError(f"bandwidth: the link {link.kind or 'of this device'} names none")
    return Channel(rate, link.latency or 0.0, link.duplex == "half")


def packet_share(payload: int = PAYLOAD, overhead: int = WRITE_OVERHEAD) -> float:
    """Share of a packet link's raw rate that is payload, p / (p + h): no copy is faster."""
    if payload < 1 or overhead < 0:
        raise ValueError(f"payload, overhead: bytes above 0, and not negative; got {payload}, {overhead}")
    return payload / (payload + overhead)


def chunked(channels: tuple[Channel, ...], size: float, chunk: float) -> float:
    """Seconds of `size` bytes over several channels in a row, handed on chunk by chunk.

    The first chunk pays every channel, each further one the slowest: Σ t(c) + (⌈n/c⌉ − 1)·max t(c). With one
    chunk it is store and forward, with many the slowest channel alone.
    """
    if not channels or not chunk > 0:
        raise ValueError("channels, chunk: at least one channel and a chunk above 0 bytes are needed")
    if not size:
        return 0.0
    each = min(chunk, size)
    times = [channel.seconds(each) for channel in channels]
    return sum(times) + (ceil(size / each) - 1) * max(times)


def staged(channel: Channel, copying: float, size: float, chunk: float = 1 << 20) -> float:
    """Seconds of a copy between pageable host memory and a device, through a pinned buffer of `chunk` bytes [2].

    A core copies the next piece into (or out of) the buffer while the last one is on its way, so the slower of the two
    decides: on old buses the link, on PCIe 4 and later the core.

    Args:
        channel: the link, as pinned copies see it.
        copying: bytes/s at which one core copies within the host's memory.
    """
    return chunked((Channel(copying), channel), size, chunk)
