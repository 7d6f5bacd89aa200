"""The devices of a sweep: catalogue names, variants over fields of the device file, and how a row names them again."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from peakline.hardware import Device
from peakline.hardware import device as find_device
from peakline.hardware.figures import figures_of
from peakline.hardware.units import QUANTITIES
from peakline.sweeping.area import area, same_area

__all__ = ["DeviceSpec", "device_axis", "field_column", "figure", "found", "varied_spec"]

_SUFFIX = {
    "B": "bytes",
    "B/s": "bytes_per_s",
    "FLOP/s": "flop_per_s",
    "s": "s",
    "Hz": "hz",
    "W": "w",
    "J": "j",
    "J/B": "j_per_byte",
    "J/FLOP": "j_per_flop",
    "IO/s": "io_per_s",
}


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """A device in plain texts: its name, and the whole device as JSON where the name alone does not give it."""

    name: str
    json: str | None = None

    @property
    def base(self) -> str:
        """The name without a variant's changes."""
        return self.name.partition("[")[0]


@lru_cache(maxsize=4096)
def found(spec: DeviceSpec) -> Device:
    """The device that `spec` describes. Raises what `peakline.device` raises."""
    return find_device(spec.name) if spec.json is None else Device.from_json(spec.json)


@lru_cache(maxsize=4096)
def area_of(spec: DeviceSpec) -> float | None:
    """mm² of the device's memory on the chip and its matrix arithmetic (`area`); None where it does not say enough."""
    try:
        return area(found(spec))["total_mm2"]
    except (ValueError, TypeError):
        return None


def spec_of(device: Device) -> DeviceSpec:
    """How a row names `device`: the name if the catalogue gives the same device for it, else also its JSON."""
    spec = DeviceSpec(device.name)
    try:
        if found(spec) == device:
            return spec
    except ValueError:
        pass
    return DeviceSpec(device.name, device.to_json())


def varied_spec(spec: DeviceSpec, changes: Mapping[str, Any]) -> DeviceSpec:
    """`spec` with fields replaced, as `peakline.device(spec, **changes)`; changes of a variant add up."""
    if not changes:
        return spec
    if spec.json is None:
        base, _, before = spec.name.rstrip("]").partition("[")
        texts = {field.strip(): value.strip() for field, _, value in (c.partition("=") for c in before.split(",") if c)}
        texts |= {field: str(value) for field, value in changes.items()}
        named = DeviceSpec(f"{base}[{', '.join(f'{field}={value}' for field, value in texts.items())}]")
        if all(isinstance(value, str | int) and not set("[],=") & set(str(value)) for value in changes.values()):
            return named
    return spec_of(find_device(found(spec), **changes))


def device_axis(given: Any) -> list[DeviceSpec]:
    """The devices that a user names: names, paths, `Device`s, or mappings `{"base": …, field: value or list}`.

    A mapping stands for every combination of its fields' values; `same_area` in it names the field that pays for the
    others' silicon (`peakline.sweeping.area`).

    Raises:
        ValueError: an unknown device or field, a value that cannot be, or no device at all.
    """
    items = given if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    specs = [spec for item in items for spec in _specs(item)]
    if not specs:
        raise ValueError("device: the axis is empty; name at least one device")
    return list(dict.fromkeys(specs))


def _specs(item: Any) -> Iterable[DeviceSpec]:
    if isinstance(item, Device):
        return [spec_of(item)]
    if isinstance(item, Mapping):
        return _variants(dict(item))
    if isinstance(item, str | PathLike):
        device = find_device(item if isinstance(item, str) else Path(fspath(item)))
        return [spec_of(device)]
    raise ValueError(f"device: {item!r} is neither a name, a path, a Device nor a mapping with 'base'")


def _variants(item: dict[str, Any]) -> list[DeviceSpec]:
    """Every combination of a mapping's values, e.g. `{"base": "h100-sxm", "memory.hbm.bandwidth": [...]}`."""
    if "base" not in item:
        raise ValueError(f"device: {item!r} derives from nothing; add 'base': the name of a device")
    base = device_axis(item.pop("base"))
    pays, node = item.pop("same_area", None), item.pop("node", None)
    fields = {name: value if isinstance(value, list | tuple) else [value] for name, value in item.items()}
    for name, values in fields.items():
        if not values:
            raise ValueError(f"device: {name}: the axis is empty; give at least one value")
    out = []
    for spec in base:
        for values in itertools.product(*fields.values()):
            changes = dict(zip(fields, values))
            found(varied_spec(spec, changes))  # refuses unknown fields and values here, by name
            if pays is None:
                out.append(varied_spec(spec, changes))
                continue

            out.append(spec_of(same_area(found(spec), changes, pay_with=pays, node=node)))
    return out


def figure(device: Device, field: str) -> Any:
    """The value of a dotted field in SI units; None where the device has no such field or no figure for it."""
    return _lookup(device, field)[0]


def field_column(device: Device, field: str) -> tuple[str, str]:
    """Name and kind of the column for a field, `memory.hbm.bandwidth_bytes_per_s` being a `float`."""
    value, quantity = _lookup(device, field)
    path = field if "." in field else f"memory.{field}.capacity"
    if quantity is None or isinstance(value, str):
        return path, "text"
    return (f"{path}_{_SUFFIX[QUANTITIES[quantity].base]}" if quantity else path), "float"


def _lookup(device: Device, field: str) -> tuple[Any, str | None]:
    """(value, quantity) of a field; the quantity is "" for a count and None for what is not a figure."""
    path = field.split(".") if "." in field else ["memory", field, "capacity"]
    at: Any = device
    for part in path[:-1]:
        at = at.get(part) if isinstance(at, Mapping) else getattr(at, part, None)
        if at is None:
            return None, ""
    value = getattr(at, path[-1], None)
    if not isinstance(at, BaseModel):
        return value, None
    known = figures_of(type(at)).get(path[-1])
    return value, None if known is None else known.quantity
