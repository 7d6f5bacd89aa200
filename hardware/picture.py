"""A device as a picture: its hierarchy in plain text for the terminal, or drawn with matplotlib."""

from __future__ import annotations

import textwrap
from html import escape
from typing import TYPE_CHECKING

from peakline.hardware.schema import Device
from peakline.hardware.sections import Link, MemoryLevel
from peakline.hardware.units import (
    format_bandwidth,
    format_bytes,
    format_frequency,
    format_power,
    format_rate,
    format_time,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["describe", "draw", "html"]

WIDTH = 78
_INTEGERS = ("int32", "int16", "int8", "int4", "int1")


def describe(device: Device, *, sources: bool = False) -> str:
    """A plain-text picture of a device: arithmetic on top, levels growing downwards, links, and what is unknown.

    Args:
        device: the device.
        sources: also list the citations that its figures rest on.
    """
    lines = [device.title or device.name, _subtitle(device), ""]
    if device.note:
        lines += [*textwrap.wrap(device.note, WIDTH), ""]
    lines += _hierarchy(device)
    lines += _table("links", [(name, _link_text(link)) for name, link in device.links.items()])
    lines += _table("software", _software(device))
    lines += _table("also", _extras(device))
    if sources:
        lines += _table("sources", [(str(i + 1), text) for i, text in enumerate(_citations(device))])
    return "\n".join(lines).rstrip() + "\n"


def draw(device: Device, ax: Axes | None = None) -> Axes:
    """The same picture with matplotlib: a box for each level, the wider the larger it is, and what moves between.

    Args:
        device: the device.
        ax: where to draw; a new figure where None.

    Returns:
        The axes drawn on.
    """
    import math

    import matplotlib.pyplot as plt
    from matplotlib.patches import FancyBboxPatch

    blocks = _blocks(device)
    heights = [max(0.6, 0.22 * len(block) + 0.16) for block in blocks]
    if ax is None:
        _, ax = plt.subplots(figsize=(8, 0.9 * (sum(heights) + 0.35 * len(heights)) + 0.6), layout="constrained")
    levels: list[MemoryLevel | None] = [None] * (len(blocks) - len(device.memory)) + list(device.memory.values())
    sizes = [math.log2(level.capacity) if level and level.capacity else None for level in levels]
    largest = max((size for size in sizes if size is not None), default=1.0)
    y = 0.0
    for block, size, level, height in zip(blocks, sizes, levels, heights, strict=True):
        width = 0.8 if level is None else 0.35 + 0.65 * (size / largest if size is not None else 0.0) ** 2
        y -= height
        is_main = level is not None and level.name == device.main.name
        face = "#f4d9b5" if level is None else ("#a9c9e8" if is_main else "#dbe7f3")
        box = FancyBboxPatch((0.5 - width / 2, y), width, height, boxstyle="round,pad=0.01", fc=face, ec="#33475b")
        ax.add_patch(box)
        ax.text(0.5, y + height / 2, "\n".join(block), ha="center", va="center", fontsize=9)
        if level is not None:
            ax.text(0.52, y + height + 0.18, _edge(level), ha="left", va="center", fontsize=8, color="#33475b")
            ax.plot([0.5, 0.5], [y + height, y + height + 0.35], color="#33475b", linewidth=1)
        y -= 0.35
    ax.set(xlim=(-0.05, 1.05), ylim=(y + 0.2, 0.3), title=device.title or device.name)
    ax.axis("off")
    return ax


def html(device: Device) -> str:
    """A device as a small HTML table for notebooks: arithmetic, then the levels from nearest to farthest, links."""
    rows = [("compute", " · ".join(_compute_lines(device)))] if device.compute is not None else []
    for level in device.memory.values():
        rows.append((" ".join(filter(None, (level.name, level.kind and f"({level.kind})"))),
                     f"{_capacity(device, level)}, {_edge(level)}"))  # fmt: skip
    rows += [(f"link {name}", _link_text(link)) for name, link in device.links.items()]
    left = "style='text-align:left'"
    cells = (f"<tr><th {left}>{escape(name)}</th><td {left}>{escape(text)}</td></tr>" for name, text in rows)
    head = f"<b>{escape(device.title or device.name)}</b><br>{escape(_subtitle(device))}"
    return f"<div class='peakline'>{head}<table>{''.join(cells)}</table></div>"


# --- text -------------------------------------------------------------------------------------------------------


def _subtitle(device: Device) -> str:
    parts = [device.name, device.kind, device.vendor, str(device.year) if device.year else None]
    parts.append(device.status if device.status != "product" else None)
    parts.append(f"{format_power(device.tdp)}" if device.tdp else None)
    return " · ".join(part for part in parts if part)


def _blocks(device: Device) -> list[list[str]]:
    """The boxes from top to bottom, each as its lines of text."""
    compute = _compute_lines(device)
    return ([compute] if compute else []) + [_level_lines(device, level) for level in device.memory.values()]


def _compute_lines(device: Device) -> list[str]:
    if device.compute is None:
        return []
    head = f"{device.units} × {device.compute.unit}" if device.units else device.compute.unit
    if device.clock:
        head += f" at {format_frequency(device.clock)}"
    lines = [head]
    for engine in ("matrix", "vector"):
        rates = [f"{name} {_rate(name, value)}" for name, value in device.rates(engine).items()]
        lines += [f"{engine:6}  {row}" for row in _rows(rates)]
    return lines if len(lines) > 1 else [*lines, "peak rates unknown"]


def _rows(parts: list[str], limit: int = WIDTH - 14) -> list[str]:
    rows: list[str] = []
    for part in parts:
        if rows and len(rows[-1]) + len(part) + 3 <= limit:
            rows[-1] += f" · {part}"
        else:
            rows.append(part)
    return rows


def _rate(name: str, value: float) -> str:
    return format_rate(value, unit="OP" if name in _INTEGERS else "FLOP")


def _level_lines(device: Device, level: MemoryLevel) -> list[str]:
    name = f"{level.name} ({level.kind})" if level.kind else level.name
    first = f"{name}  {_capacity(device, level)}"
    tags = ["main memory" if level.name == device.main.name else None]
    tags.append("read-only" if level.access == "read-only" else None)
    tags.append(f"shared by {level.shared_by}" if level.shared_by and level.capacity_per_unit is None else None)
    tags.append(f"{level.energy_per_byte * 1e12:.3g} pJ/B" if level.energy_per_byte else None)
    second = " · ".join(tag for tag in tags if tag)
    return [first, second] if second else [first]


def _capacity(device: Device, level: MemoryLevel) -> str:
    if not level.capacity:
        return "capacity unknown"
    total = format_bytes(level.capacity)
    if level.capacity_per_unit and device.units and device.units > 1:
        return f"{device.units} × {format_bytes(level.capacity_per_unit)} = {total}"
    return total


def _edge(level: MemoryLevel) -> str:
    """What moves between a level and the one nearer to the arithmetic."""
    if level.read_bandwidth and level.write_bandwidth:
        speed = f"read {format_bandwidth(level.read_bandwidth)}, write {format_bandwidth(level.write_bandwidth)}"
    else:
        speed = format_bandwidth(level.bandwidth) if level.bandwidth else "bandwidth unknown"
    return f"{speed}, {format_time(level.latency, 3)}" if level.latency else speed


def _hierarchy(device: Device) -> list[str]:
    """Boxes under each other, wider the farther from the arithmetic, joined by their bandwidths."""
    blocks = _blocks(device)
    edges = [_edge(level) for level in device.memory.values()]
    if len(blocks) > len(edges):
        edges = ["", *edges]
    out: list[str] = []
    least = 30
    for i, (block, edge) in enumerate(zip(blocks, edges, strict=True)):
        least = min(max(least + 4, *(len(line) + 4 for line in block)), WIDTH) if i else max(map(len, block)) + 4
        if i or (device.compute is None and edge):
            out.append(" " * (WIDTH // 2) + f"│ {edge}")
        margin = " " * max((WIDTH - least) // 2, 0)
        out += [margin + line for line in _box(block, least)]
        least = least if i else min(least, 40)
    return out


def _box(lines: list[str], width: int) -> list[str]:
    inner = width - 4
    body = [f"│ {line:^{inner}} │" for line in lines] if len(lines) < 3 else [f"│ {line:<{inner}} │" for line in lines]
    return [f"┌{'─' * (inner + 2)}┐", *body, f"└{'─' * (inner + 2)}┘"]


def _link_text(link: Link) -> str:
    ways = "one way at a time" if link.duplex == "half" else "each way"
    parts = [link.kind, f"{format_bandwidth(link.bandwidth)} {ways}" if link.bandwidth else "bandwidth unknown"]
    parts.append(f"{format_bandwidth(link.achieved)} reached" if link.achieved else None)
    parts += [f"{format_time(link.latency, 3)} to start" if link.latency else None, link.topology]
    return ", ".join(part for part in parts if part)


def _software(device: Device) -> list[tuple[str, str]]:
    software = device.software
    rows = [
        ("context", software.context),
        ("libraries", software.libraries),
        ("matmul workspace", software.cublas_workspace),
    ]
    out = [(name, format_bytes(value)) for name, value in rows if value]
    return out + ([("launch", format_time(software.launch))] if software.launch else [])


def _extras(device: Device) -> list[tuple[str, str]]:
    """The kind's own section, figure by figure."""
    out: list[tuple[str, str]] = []
    for kind in ("gpu", "npu", "pim", "fpga", "mcu", "cpu", "storage"):
        section = getattr(device, kind)
        if section is None:
            continue
        for name, value in section.model_dump(exclude={"cited", "notes"}, exclude_none=True).items():
            out.append((name.replace("_", " "), _extra(type(section), name, value)))
    return out


def _extra(section: type, name: str, value: object) -> str:
    from peakline.hardware.figures import figures_of
    from peakline.hardware.units import format_quantity

    mark = figures_of(section).get(name)
    if mark is None or not mark.quantity or not isinstance(value, (int, float)):
        return str(value)
    return format_bytes(value) if mark.quantity == "capacity" else format_quantity(mark.quantity, value)


def _table(title: str, rows: list[tuple[str, str]]) -> list[str]:
    if not rows:
        return []
    width = max(len(name) for name, _ in rows)
    out = ["", title]
    for name, text in rows:
        first, *more = textwrap.wrap(text, max(WIDTH - width - 4, 20)) or [""]
        out += [f"  {name:<{width}}  {first}", *(" " * (width + 4) + line for line in more)]
    return out


def _citations(device: Device) -> list[str]:
    """Every citation of the device's figures, each once, in the order of the file."""
    found: dict[str, None] = {}

    def walk(node: object) -> None:
        if isinstance(node, dict):
            cited = node.get("cited")
            if isinstance(cited, dict):
                found.update(dict.fromkeys(cited.values()))
            for key, value in node.items():
                if key != "cited":
                    walk(value)

    walk(device.model_dump())
    return list(found)
