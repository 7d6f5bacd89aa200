"""Drives: bandwidth from requests in flight, requests that collide, writes that wear, and computing beside the flash.

A drive answers a request after its latency L; with q requests in flight it answers at most q/L per second (J. Little,
"A proof for the queuing formula L = λW", Operations Research 9, 1961), and never more than its dies or interface do.

* *Sequential* requests are striped evenly over the dies, so the two limits are met as they are: min(q/L, X).
* *Random* requests meet at the same die while others idle. With service at random times that is a closed network of
  D = X·L equal stations, whose throughput is q·D / (L·(D + q − 1)) (J. Zahorjan et al., "Balanced job bound analysis of
  queueing networks", CACM 25, 1982): half of the limit where Little's law alone gives all of it. Measured drives lie
  between the two.

A request longer than the rated one is split over dies, and adds its bytes at the interface's bandwidth to the latency.
At random places a drive moves whole ones of the rated size, a page for less than a page.
Small random writes rewrite whole erase blocks: what the flash writes is more than what the host does, by
(sequential bandwidth) / (random bandwidth) in the steady state (X.-Y. Hu et al., "Write amplification analysis in
flash-based solid state drives", SYSTOR 2009).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Literal, TypeAlias

from peakline.hardware import Device
from peakline.hardware import device as find_device

__all__ = ["Drive", "Near", "drive_of", "near_data"]

Way: TypeAlias = Literal["read", "write"]

PAGE = 4096
"""Bytes of the request that datasheets rate where the file does not say."""

WARRANTY_YEARS = 5
"""Years over which drive writes per day are rated (JEDEC JESD218A, enterprise drives; Samsung PM1743 brief)."""


@dataclass(frozen=True, slots=True)
class Side:
    """One direction of a drive: bytes/s of long sequential requests, seconds of one request of `request` bytes with
    nothing else in flight, and random requests of that size per second (None: unknown)."""

    bandwidth: float
    latency: float | None
    rate: float | None
    request: int

    def whole(self, request: float) -> int:
        """Bytes that the drive moves for a request at a random place: as many of the rated size as it takes."""
        return ceil(request / self.request) * self.request


@dataclass(frozen=True, slots=True)
class Drive:
    """A drive in plain figures.

    Attributes:
        name: of the device.
        reading, writing: its two directions.
        sustained: bytes/s of writes once a cache is full, None where it has none or nobody says.
        endurance: bytes that may be written over its life, None unknown.
        inside: bytes/s between the flash and what computes beside it, None for an ordinary drive.
    """

    name: str
    reading: Side
    writing: Side
    sustained: float | None = None
    endurance: float | None = None
    inside: float | None = None

    def side(self, way: Way) -> Side:
        """One direction. Raises ValueError for a word that is none."""
        if way not in ("read", "write"):
            raise ValueError(f"way: {way!r} is unknown; accepted: read, write")
        return self.reading if way == "read" else self.writing

    def latency(self, way: Way, request: float) -> float:
        """Seconds of one request of `request` bytes with nothing else in flight.

        Raises:
            ValueError: the drive's latency is not published.
        """
        side = self.side(way)
        if side.latency is None:
            raise ValueError(f"{self.name}: storage.{way}_latency is unknown, so nothing can be said of queue depths")
        return side.latency + max(request - side.request, 0.0) / side.bandwidth

    def sequential(self, way: Way, request: float, depth: int) -> float:
        """Bytes/s of `depth` consecutive requests of `request` bytes kept in flight."""
        _some(request, depth)
        return min(depth * request / self.latency(way, request), self.side(way).bandwidth)

    def random_rate(self, way: Way, request: float) -> float:
        """Requests of `request` bytes at random places per second, enough in flight: whole rated ones are read.

        Raises:
            ValueError: random requests per second are not published.
        """
        side = self.side(way)
        if side.rate is None:
            raise ValueError(f"{self.name}: storage.random_{way} is unknown")
        return min(side.rate, side.bandwidth / side.whole(request))

    def random(self, way: Way, request: float, depth: int) -> float:
        """Bytes/s of `depth` requests at random places kept in flight, colliding (see the module).

        Raises:
            ValueError: random requests per second, or the latency, are not published.
        """
        _some(request, depth)
        alone = self.latency(way, self.side(way).whole(request))
        most = self.random_rate(way, request)
        stations = max(most * alone, 1.0)
        return min(depth * stations / (alone * (stations + depth - 1)), most) * request

    def depth(self, way: Way, request: float) -> int:
        """Requests that must be in flight for all of the sequential bandwidth: ⌈X·L / n⌉."""
        _some(request, 1)
        return max(ceil(self.side(way).bandwidth * self.latency(way, request) / request), 1)

    @property
    def write_amplification(self) -> float | None:
        """Bytes that the flash writes for each byte of small random writes; None where a rate is unknown."""
        side = self.writing
        return None if side.rate is None else max(side.bandwidth / (side.rate * side.request), 1.0)

    def lifetime(self, bytes_per_second: float) -> float | None:
        """Seconds until its rated endurance is written at this pace; None where that is not published."""
        if self.endurance is None:
            return None
        return self.endurance / bytes_per_second if bytes_per_second > 0 else float("inf")


def drive_of(device: str | Device) -> Drive:
    """A drive's figures.

    Raises:
        ValueError: the device is none, or names no bandwidth.
    """
    found = find_device(device)
    if found.kind != "ssd":
        raise ValueError(f"device: {found.name} is a {found.kind}, not a drive")
    level, storage = found.main, found.storage
    read, write = level.read_bandwidth or level.bandwidth, level.write_bandwidth or level.bandwidth
    if not read or not write:
        raise ValueError(f"{found.name}: memory.{level.name} names no read and write bandwidth")
    if storage is None:
        return Drive(found.name, Side(read, level.latency, None, PAGE), Side(write, level.latency, None, PAGE))
    request, rated = storage.request or PAGE, storage.endurance
    if rated is None and storage.drive_writes_per_day and level.capacity:
        rated = int(storage.drive_writes_per_day * level.capacity * 365 * WARRANTY_YEARS)
    return Drive(
        found.name,
        Side(read, storage.read_latency or level.latency, storage.random_read, request),
        Side(write, storage.write_latency or level.latency, storage.random_write, request),
        storage.sustained_write, None if rated is None else float(rated), storage.internal_bandwidth,
    )  # fmt: skip


def _some(request: float, depth: int) -> None:
    if not request > 0 or depth < 1:
        raise ValueError(f"request, depth: bytes above 0 and at least 1 in flight; got {request}, {depth}")


@dataclass(frozen=True, slots=True)
class Near:
    """Work on stored data beside the flash and at the host; seconds."""

    beside: float
    host: float

    @property
    def gain(self) -> float:
        """How many times faster it is beside the flash."""
        return self.host / self.beside


def near_data(
    drives: int, drive: Drive, size: float, results: float, *, link: float, computing: float = float("inf")
) -> Near:
    """`size` stored bytes reduced to `results` bytes, beside the flash of computational drives or at the host.

    Beside the flash every drive reads its share at its internal bandwidth and only results leave; at the host all bytes
    share `link`. The drives add up, the host's link does not, which is what computational storage lives on.

    Args:
        drives: how many, the data striped over them.
        size, results: bytes over all drives.
        link: bytes/s into the host or the device, of all drives together.
        computing: bytes/s that the unit beside one drive's flash works through.

    Raises:
        ValueError: an ordinary drive, or none.
    """
    if drives < 1:
        raise ValueError(f"drives: must be at least 1; got {drives}")
    if drive.inside is None:
        raise ValueError(f"{drive.name} does not compute: storage.internal_bandwidth is unknown")
    outward = min(link, drives * drive.reading.bandwidth)
    beside = max(size / (drives * min(drive.inside, computing)), results / outward)
    return Near(beside, size / outward)
