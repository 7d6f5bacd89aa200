"""Devices as data: memory hierarchies, peak rates and links, each figure with its unit and its source.

    from peakline.hardware import device, devices

    h100 = device("h100-sxm")
    h100.main.capacity, h100.main.bandwidth, h100.peak("bf16")     # bytes, B/s, FLOP/s
    device("h100-sxm", hbm="96 GiB")                               # a variant
    device("my-accelerator.yaml")                                  # a file of your own

Importing this package reads nothing and loads neither pydantic nor YAML; the first call does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peakline.hardware.catalogue import device, from_mapping
    from peakline.hardware.faults import DeviceFileError, Fault
    from peakline.hardware.index import KINDS, UnknownDevice, devices, kind_of
    from peakline.hardware.picture import describe, draw
    from peakline.hardware.schema import SCHEMA, Device, UnsupportedDtype
    from peakline.hardware.sections import Calibration, Compute, Link, MemoryLevel, Rates, Software

_HOME = {
    "catalogue": ("device", "from_mapping"),
    "index": ("KINDS", "UnknownDevice", "devices", "kind_of"),
    "schema": ("SCHEMA", "Device", "UnsupportedDtype"),
    "faults": ("DeviceFileError", "Fault"),
    "picture": ("describe", "draw"),
    "sections": ("Calibration", "Compute", "Link", "MemoryLevel", "Rates", "Software"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "KINDS",
    "SCHEMA",
    "Calibration",
    "Compute",
    "Device",
    "DeviceFileError",
    "Fault",
    "Link",
    "MemoryLevel",
    "Rates",
    "Software",
    "UnknownDevice",
    "UnsupportedDtype",
    "describe",
    "device",
    "devices",
    "draw",
    "from_mapping",
    "kind_of",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
