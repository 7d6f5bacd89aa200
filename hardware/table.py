"""The catalogue as a table: `python -m peakline.hardware.table` prints it, `--write FILE` renews the one in a page."""

from __future__ import annotations

import sys
from pathlib import Path

from peakline.hardware.catalogue import device
from peakline.hardware.index import KINDS, devices
from peakline.hardware.schema import Device
from peakline.hardware.units import format_bandwidth, format_bytes, format_rate

__all__ = ["catalogue_table", "main"]

BEGIN, END = "<!-- catalogue: begin -->", "<!-- catalogue: end -->"
_SHOWN = ("bf16", "fp16", "fp8", "int8", "int16", "int32", "fp32")


def catalogue_table() -> str:
    """The devices of the catalogue, one Markdown table for each kind. An empty cell is a figure nobody published."""
    return "\n\n".join(_kind_table(kind) for kind in KINDS if devices(kind))


def main(arguments: list[str]) -> int:
    """Prints the table, or with `--write FILE` puts it between the marks in FILE."""
    if not arguments:
        print(catalogue_table())
        return 0
    if len(arguments) != 2 or arguments[0] != "--write":
        print("usage: python -m peakline.hardware.table [--write FILE]", file=sys.stderr)
        return 2
    page = Path(arguments[1])
    text = page.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        print(f"{page}: has no {BEGIN} and {END}", file=sys.stderr)
        return 2
    head, rest = text.split(BEGIN, 1)
    page.write_text(f"{head}{BEGIN}\n{catalogue_table()}\n{END}{rest.split(END, 1)[1]}", encoding="utf-8")
    return 0


def _kind_table(kind: str) -> str:
    rows = [_row(device(name)) for name in devices(kind)]
    head = ("name", "device", "main memory", "bandwidth", "dense peak", "limit")
    if kind == "link":
        head = ("name", "device", "", "each way", "", "")
    kept = [i for i, title in enumerate(head) if title]
    lines = [[head[i] for i in kept], ["---"] * len(kept), *([row[i] for i in kept] for row in rows)]
    return f"**{kind}** ({len(rows)})\n\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _row(entry: Device) -> list[str]:
    level = entry.main if entry.memory else None
    speed = level.bandwidth if level else next(iter(entry.links.values())).bandwidth
    capacity = f"{format_bytes(level.capacity)} {level.kind or ''}".strip() if level and level.capacity else ""
    limit = f"{entry.tdp:g} W" if entry.tdp else ""
    return [f"`{entry.name}`", entry.title, capacity, format_bandwidth(speed) if speed else "", _peak(entry), limit]


def _peak(entry: Device) -> str:
    name = next((dtype for dtype in _SHOWN if entry.supports(dtype)), None)
    if name is None:
        return ""
    return f"{name} {format_rate(entry.peak(name), unit='OP' if name.startswith('int') else 'FLOP')}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
