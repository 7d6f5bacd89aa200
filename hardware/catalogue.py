"""A device by its name in the catalogue, from a file, or as a variant of another."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from peakline.hardware.files import device_from_tree, read_device
from peakline.hardware.index import UnknownDevice, file_of, find
from peakline.hardware.schema import Device
from peakline.hardware.variants import varied

__all__ = ["device", "from_mapping"]

_VARIANT = re.compile(r"(?P<name>[^\[\]]+)\[(?P<changes>[^\[\]]+)\]")


def device(source: str | Path | Device, /, **overrides: Any) -> Device:
    """A device by catalogue name or alias, from a YAML file, or a variant of one.

    Names ignore case and take `_` and space for `-`. Overrides are fields of the file by their dotted path with the
    value as the file would write it (a bare number is in SI units), or `level=capacity` for short:

    >>> device("h100-sxm").main.bandwidth
    3352320000000.0
    >>> device("h100-sxm", hbm="96 GiB").name
    'h100-sxm[hbm=96 GiB]'
    >>> device("h100-sxm", **{"compute.clock": "1.5 GHz"}).peak("bf16") < device("h100-sxm").peak("bf16")
    True

    Changing `compute.units` or `compute.clock` scales the peak rates, which are proportional to both.

    Raises:
        UnknownDevice: for a name that is not in the catalogue, with the nearest that are.
        DeviceFileError: for a file with faults, all of them at once.
        ValueError: for an unknown or unreadable override, with the nearest field.
    """
    base = source if isinstance(source, Device) else _named_or_file(source)
    return varied(base, overrides) if overrides else base


def _named_or_file(source: str | Path) -> Device:
    if not isinstance(source, (str, Path)):
        raise UnknownDevice(f"a device is a name, a path or a Device, not {source!r}")
    text = str(source)
    if isinstance(source, Path) or _looks_like_a_path(text):
        return read_device(Path(source))
    spelled = _VARIANT.fullmatch(text.strip())
    if spelled:
        return varied(device(spelled["name"]), dict(_changes(spelled["changes"])))
    return _load(find(text))


def _looks_like_a_path(text: str) -> bool:
    return "[" not in text and ("/" in text or "\\" in text or text.lower().endswith((".yaml", ".yml")))


def _changes(text: str) -> Iterator[tuple[str, str]]:
    """`a=1, b=2` as pairs: how a variant's name spells its overrides."""
    for part in text.split(","):
        key, found, value = part.partition("=")
        if not found:
            raise ValueError(f"variant {part.strip()!r} is not written as field=value")
        yield key.strip(), value.strip()


@cache
def _load(name: str) -> Device:
    path = file_of(name)
    found = read_device(path)
    if found.name != name:
        raise ValueError(f"{path}: the file of device {found.name!r} must be called {found.name}.yaml")
    return found


def from_mapping(tree: Mapping[str, Any]) -> Device:
    """A device from a mapping laid out as a device file is, without writing the file. Raises DeviceFileError."""
    return device_from_tree(tree, origin=str(tree.get("name", "device")))
