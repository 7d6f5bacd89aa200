"""Where a device's tensors can go, and how fast: pinned host memory over the host link, and a drive behind it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from peakline.cost.links import Channel, channel_of
from peakline.cost.storage import Drive, drive_of
from peakline.hardware import Device, device, devices
from peakline.hardware.sections import Link as DeviceLink
from peakline.hardware.units import format_bytes
from peakline.planning.execute import Route
from peakline.solvers.offload.problem import Tier
from peakline.streams import Link
from peakline.streams import Tier as StreamTier

__all__ = ["Surroundings", "beside", "surroundings"]

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
    found: Device, *, host: int | None = None, ssd: int | None = None, host_device: str | Device = HOST_MEMORY,
    ssd_device: str | Device = DRIVE, gpudirect: bool = False,
) -> Surroundings:  # fmt: skip
    """The memory beside `found`.

    Args:
        host: bytes of pinned host memory that may be used; None for what the host device has.
        ssd: bytes of the drive that may be used; None for no drive.
        gpudirect: the drive's bytes go to the device without passing through the host's memory (GPUDirect Storage).

    Raises:
        ValueError: the device has no link to a host; it is a CPU and no drive is named; a memory that is none, or that
            has less than was asked for.
    """
    if found.kind == "cpu":
        if host is not None:
            raise ValueError(
                f"host: {found.name} is a CPU, whose memory is the host's: budget bounds it, leave host out"
            )
        return _of_cpu(found, ssd, ssd_device)
    memory, notes = _host_memory(host_device, host), []
    link = found.links.get("host")
    if link is None or link.bandwidth is None:
        raise ValueError(
            f"{found.name} has no links.host.bandwidth, so nothing can be moved off it; state one: "
            "peakline.device(name, **{'links.host.bandwidth': '25 GB/s'})"
        )
    way = _channel(link)
    rate = way.bandwidth
    if not link.achieved and _catalogued(link.kind) is None:
        notes.append(f"copies over {link.kind or 'the host link'} are taken to reach {ATTAINED:.0%} of its peak")
    dram = memory.main.bandwidth or 0.0
    if not dram:
        raise ValueError(f"{memory.name}: memory.{memory.main.name}.bandwidth is unknown")
    if memory.kind == "cxl" and "host" in memory.links:
        dram = min(dram, channel_of(memory.links["host"]).bandwidth)  # behind a link of its own
    out, into = ("host link", "host link") if way.half_duplex else ("host out", "host in")
    links = {name: Link(name, rate, way.latency) for name in (out, into)} | {"host memory": Link("host memory", dram)}
    capacity = host if host is not None else memory.main.capacity
    if host is None:
        notes.append(f"host memory: that of {memory.name}; name yours with host=")
    tiers = [Tier("host", min(rate, dram), min(rate, dram), capacity)]
    routes = [Route(StreamTier("host", capacity), (out, "host memory"), (into, "host memory"))]
    if ssd is not None:
        drive = _large_enough(device(ssd_device), ssd)
        plain, more = _drive_links(drive)
        links |= more
        tiers.append(Tier("ssd", min(rate, plain.writing.bandwidth), min(rate, plain.reading.bandwidth), ssd))
        # staged in pinned host memory (written once and read once), or straight from the drive
        through = () if gpudirect else ("host memory",)
        routes.append(Route(StreamTier("ssd", ssd), (out, *through, "ssd write"), (into, *through, "ssd read")))
        notes.append(f"drive: {drive.title or drive.name}{', without passing through host memory' * gpudirect}")
    return Surroundings(tuple(tiers), tuple(routes), links, (rate, rate), dram, tuple(notes))


def beside(around: Surroundings, held: int) -> Surroundings | None:
    """The same with `held` bytes of the host's memory taken throughout; None where it has less."""
    first = around.routes[0]
    whole = first.tier.capacity
    if whole is not None and whole < held:
        return None
    tier = replace(around.tiers[0], capacity=None if whole is None else whole - held)
    route = Route(StreamTier(first.tier.name, whole, held), first.out, first.back)
    return replace(around, tiers=(tier, *around.tiers[1:]), routes=(route, *around.routes[1:]))


def _of_cpu(found: Device, ssd: int | None, ssd_device: str | Device) -> Surroundings:
    """A CPU's memory is the host's: only a drive lies beyond it, attached directly."""
    if ssd is None:
        raise ValueError(
            f"ssd: {found.name} is a CPU, whose memory is the host's: name the bytes of a drive that may be used "
            "(ssd='1 TB'), or allow recompute alone"
        )
    drive, dram = _large_enough(device(ssd_device), ssd), found.main.bandwidth or 0.0
    if not dram:
        raise ValueError(f"{found.name}: memory.{found.main.name}.bandwidth is unknown")
    plain, links = _drive_links(drive)
    write, read = plain.writing.bandwidth, plain.reading.bandwidth
    route = Route(StreamTier("ssd", ssd), ("ssd write",), ("ssd read",))
    notes = (f"drive: {drive.title or drive.name}",)
    return Surroundings((Tier("ssd", write, read, ssd),), (route,), links, (write, read), dram, notes, hosted=False)


HOST_KINDS = ("dram", "cxl", "cpu")
"""Kinds of devices whose memory may stand for the host's."""


def _host_memory(given: str | Device, asked: int | None) -> Device:
    """The device whose memory is the host's. Servers hold more or less than the catalogue's; a CXL module does not."""
    memory = device(given)
    if memory.kind not in HOST_KINDS:
        raise ValueError(
            f"host_device: {memory.name} is of kind {memory.kind}, not host memory; accepted: {', '.join(HOST_KINDS)}"
        )
    held = memory.main.capacity
    if memory.kind == "cxl" and asked is not None and held is not None and asked > held:
        raise ValueError(f"host: {format_bytes(asked)} is more than {memory.name} has ({format_bytes(held)})")
    return memory


def _large_enough(drive: Device, asked: int) -> Device:
    """The drive, if it holds so many bytes."""
    drive_of(drive)  # a drive at all
    held = drive.main.capacity
    if held is not None and asked > held:
        raise ValueError(
            f"ssd: {format_bytes(asked)} is more than {drive.name} holds ({format_bytes(held)}); name a larger drive "
            "with ssd_device, or derive one (several together: their capacities and bandwidths added up)"
        )
    return drive


def _drive_links(drive: Device) -> tuple[Drive, dict[str, Link]]:
    """A drive's figures, and its writes and reads as links; a step writes again and again, so no cache outlasts it."""
    plain = drive_of(drive)
    if plain.sustained is not None:
        plain = replace(plain, writing=replace(plain.writing, bandwidth=min(plain.sustained, plain.writing.bandwidth)))
    sides = {"ssd write": plain.writing, "ssd read": plain.reading}
    return plain, {name: Link(name, side.bandwidth, side.latency or 0.0) for name, side in sides.items()}


def _channel(link: DeviceLink) -> Channel:
    """The host link as pinned copies see it: measured figures of the device, else of the link of its kind."""
    known, own = _catalogued(link.kind), channel_of(link)
    rate = link.achieved or (known and known.achieved) or ATTAINED * own.bandwidth
    return Channel(rate, own.latency or (known and known.latency) or 0.0, own.half_duplex)


def _catalogued(kind: str | None) -> DeviceLink | None:
    """The catalogued link of this kind (`PCIe 4.0 x16`) whose copies were measured."""
    if kind is None:
        return None
    for name in devices("link"):
        for entry in device(name).links.values():
            if entry.kind == kind and entry.achieved:
                return entry
    return None
