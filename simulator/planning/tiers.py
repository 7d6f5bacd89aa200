"""Where a device's tensors can go, and how fast: pinned host memory over the host link, and a drive behind it."""

from __future__ import annotations

from dataclasses import dataclass

from peakline.hardware import Device, device, devices
from peakline.planning.execute import Route
from peakline.solvers.offload.problem import Tier
from peakline.streams import Link
from peakline.streams import Tier as StreamTier

__all__ = ["Surroundings", "surroundings"]

HOST_MEMORY = "host-ddr5-8ch"
"""Device of the catalogue that stands for the host's memory where the user names none."""

DRIVE = "samsung-pm1743-7.68tb"
"""Device of the catalogue that stands for the drive where the user names none."""

ATTAINED = 0.8
"""Share of a link's peak that large copies reach where its file gives no measured figure: 25 of 31.5 GB/s on PCIe 4.0
(`hardware/devices/link/pcie-4-x16.yaml`)."""


@dataclass(frozen=True)
class Surroundings:
    """The tiers beside a device.

    Attributes:
        tiers: as the solver sees them.
        routes: the links of each tier's ways, in the same order.
        links: by name.
        common: bytes/s out and back of the link to the host.
        host_bandwidth: bytes/s of the host's memory.
        notes: what was assumed.
        hosted: there is a host beside the device that could run the optimizer.
    """

    tiers: tuple[Tier, ...]
    routes: tuple[Route, ...]
    links: dict[str, Link]
    common: tuple[float, float]
    host_bandwidth: float
    notes: tuple[str, ...]
    hosted: bool = True


def surroundings(
    found: Device, *, host: int | None, ssd: int | None, host_device: str | Device = HOST_MEMORY,
    ssd_device: str | Device = DRIVE,
) -> Surroundings:  # fmt: skip
    """The memory beside `found`.

    Args:
        host: bytes of pinned host memory that may be used; None for what the host device has.
        ssd: bytes of the drive that may be used; None for no drive.

    Raises:
        ValueError: the device has no link to a host, or it is a CPU and no drive is named.
    """
    if found.kind == "cpu":
        return _of_cpu(found, ssd, ssd_device)
    memory, notes = device(host_device), []
    link = found.links.get("host")
    if link is None or link.bandwidth is None:
        raise ValueError(
            f"{found.name} has no links.host.bandwidth, so nothing can be moved off it; state one: "
            "peakline.device(name, **{'links.host.bandwidth': '25 GB/s'})"
        )
    rate = link.achieved or _attained(link.kind) or 0.0
    if not rate:
        rate = ATTAINED * link.bandwidth
        notes.append(f"copies over {link.kind or 'the host link'} are taken to reach {ATTAINED:.0%} of its peak")
    latency = link.latency or 0.0
    dram = memory.main.bandwidth or 0.0
    if not dram:
        raise ValueError(f"{memory.name}: memory.{memory.main.name}.bandwidth is unknown")
    links = {
        "host out": Link("host out", rate, latency),
        "host in": Link("host in", rate, latency),
        "host memory": Link("host memory", dram),
    }
    capacity = host if host is not None else memory.main.capacity
    if host is None:
        notes.append(f"host memory: that of {memory.name}; name yours with host=")
    tiers = [Tier("host", min(rate, dram), min(rate, dram), capacity)]
    routes = [Route(StreamTier("host", capacity), ("host out", "host memory"), ("host in", "host memory"))]
    if ssd is not None:
        drive = device(ssd_device)
        write, read = _rates(drive)
        links["ssd write"], links["ssd read"] = Link("ssd write", write), Link("ssd read", read)
        tiers.append(Tier("ssd", min(rate, write), min(rate, read), ssd))
        through = ("host memory",)  # staged in pinned host memory: written once and read once
        routes.append(
            Route(StreamTier("ssd", ssd), ("host out", *through, "ssd write"), ("host in", *through, "ssd read"))
        )
        notes.append(f"drive: {drive.title or drive.name}")
    return Surroundings(tuple(tiers), tuple(routes), links, (rate, rate), dram, tuple(notes))


def _of_cpu(found: Device, ssd: int | None, ssd_device: str | Device) -> Surroundings:
    """A CPU's memory is the host's: only a drive lies beyond it, attached directly."""
    if ssd is None:
        raise ValueError(
            f"ssd: {found.name} is a CPU, whose memory is the host's: name the bytes of a drive that may be used "
            "(ssd='1 TB'), or allow recompute alone"
        )
    drive, dram = device(ssd_device), found.main.bandwidth or 0.0
    if not dram:
        raise ValueError(f"{found.name}: memory.{found.main.name}.bandwidth is unknown")
    write, read = _rates(drive)
    links = {"ssd write": Link("ssd write", write), "ssd read": Link("ssd read", read)}
    route = Route(StreamTier("ssd", ssd), ("ssd write",), ("ssd read",))
    notes = (f"drive: {drive.title or drive.name}",)
    return Surroundings((Tier("ssd", write, read, ssd),), (route,), links, (write, read), dram, notes, hosted=False)


def _rates(drive: Device) -> tuple[float, float]:
    """Bytes/s that a drive writes and reads."""
    read = drive.main.read_bandwidth or drive.main.bandwidth
    write = drive.main.write_bandwidth or drive.main.bandwidth
    if not read or not write:
        raise ValueError(f"{drive.name}: memory.{drive.main.name} names no read and write bandwidth")
    return write, read


def _attained(kind: str | None) -> float | None:
    """Measured rate of the catalogued link of this kind (`PCIe 4.0 x16`)."""
    if kind is None:
        return None
    for name in devices("link"):
        for entry in device(name).links.values():
            if entry.kind == kind and entry.achieved:
                return entry.achieved
    return None
