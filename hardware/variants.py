"""Variants: a device with some fields of its file changed, and what follows from the change."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from peakline.hardware.faults import nearest, submodel
from peakline.hardware.figures import Figure, Section, figures_of
from peakline.hardware.schema import Device
from peakline.hardware.units import QUANTITIES

__all__ = ["varied"]

OVERRIDE_SOURCE = "set by the caller"


def varied(base: Device, overrides: Mapping[str, Any]) -> Device:
    """`base` with fields replaced; its name says which.

    Peak rates are proportional to units and clock, so they follow a change of either unless set themselves; totals
    that the file gives per unit follow the units.

    Raises:
        ValueError: naming an unknown field and the nearest, or the faults of the values.
    """
    from peakline.hardware.files import device_from_tree

    tree = copy.deepcopy(base._tree)
    changes = {_full_path(base, key): value for key, value in overrides.items()}
    before = _anchor(base)
    for path, value in changes.items():
        _put(tree, path, value)
    _scale_rates(tree, base, before, changes)
    tree["name"] = f"{base.name}[{', '.join(f'{key}={value}' for key, value in overrides.items())}]"
    tree["aliases"] = []
    return device_from_tree(tree, origin=tree["name"], si=base._si)


def _full_path(base: Device, key: str) -> tuple[str, ...]:
    """The path an override names; a level's bare name is its capacity."""
    if key in base.memory:
        return ("memory", key, "capacity")
    path, known = tuple(key.split(".")), dict(_fields(base))
    if path in known:
        return path
    names = [".".join(p) for p in known] + list(base.memory)
    last = [".".join(p) for p in known if p[-1] == path[-1]]
    hint = nearest(key, names) or nearest(key, last)
    if not hint and last:
        hint = f"; did you mean {last[0]!r}?"
    raise ValueError(f"override {key!r} is not a field of {base.name}{hint or '; fields: ' + ', '.join(names[:12])}")


def _fields(base: Device) -> list[tuple[tuple[str, ...], Figure | None]]:
    """Every path that may be overridden on this device, with its figure where it is one."""
    out: list[tuple[tuple[str, ...], Figure | None]] = []
    for name, info in Device.model_fields.items():
        model, key = submodel(info.annotation), info.alias or name
        if model is None:
            if key in ("main", "title", "status", "year", "vendor"):
                out.append(((key,), None))
        elif key in ("memory", "links"):
            for entry in getattr(base, name):
                out += _section_fields(model, (key, entry))
        else:
            out += _section_fields(model, (key,))
    return out


def _section_fields(model: type[BaseModel], path: tuple[str, ...]) -> list[tuple[tuple[str, ...], Figure | None]]:
    out: list[tuple[tuple[str, ...], Figure | None]] = []
    figures = figures_of(model)
    for name, info in model.model_fields.items():
        below = submodel(info.annotation)
        if below is not None and issubclass(below, Section):
            out += _section_fields(below, (*path, name))
        elif name not in ("cited", "notes", "name"):
            out.append(((*path, name), figures.get(name)))
    return out


def _put(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    """Sets one field of a file's mapping, with the caller as its source."""
    figure = dict(_fields_of_path(path)).get(path[-1])
    group = tree
    for part in path[:-1]:
        if not isinstance(group.get(part), dict):
            group[part] = {}
        group = group[part]
    if figure is None:
        group[path[-1]] = value
        return
    if figure.quantity and isinstance(value, (int, float)) and not isinstance(value, bool):
        value = f"{value!r} {QUANTITIES[figure.quantity].base}"
    elif not figure.quantity and isinstance(value, str) and value.strip().isdecimal():
        value = int(value)  # a count, as the command line spells it
    group[path[-1]] = {"value": value, "source": OVERRIDE_SOURCE}
    if isinstance(group.get("cited"), dict):
        group["cited"] = {k: v for k, v in group["cited"].items() if k != path[-1]}


def _fields_of_path(path: tuple[str, ...]) -> list[tuple[str, Figure]]:
    model: type[BaseModel] | None = Device
    keyed = False
    for part in path[:-1]:
        if keyed:
            keyed = False
            continue
        assert model is not None
        info = model.model_fields[part]
        model, keyed = submodel(info.annotation), part in ("memory", "links") and model is Device
    return list(figures_of(model).items()) if model else []


# --- what follows from a change -----------------------------------------------------------------------------------


def _anchor(base: Device) -> float | None:
    return base.units * base.clock if base.units and base.clock else None


def _scale_rates(
    tree: dict[str, Any], base: Device, before: float | None, changes: Mapping[tuple[str, ...], Any]
) -> None:
    """Multiplies the rates not set by the caller with (units · clock) after / before."""
    touched = {("compute", "units"), ("compute", "clock")} & set(changes)
    if not touched or before is None or base.compute is None:
        return
    units, clock = _new(tree, "units", base.units), _new(tree, "clock", base.clock)
    if units is None or clock is None:
        return  # the value is faulty, and the reader will say so
    ratio = units * clock / before
    if base.compute.vector_clock and ("compute", "vector_clock") not in changes and base.clock:
        faster = base.compute.vector_clock * clock / base.clock
        tree["compute"]["vector_clock"] = {"value": f"{faster!r} Hz", "source": "scaled with the clock"}
    for engine in ("matrix", "vector"):
        rates = tree["compute"].get(engine)
        for name, rate in base.rates(engine).items():
            if ("compute", engine, name) not in changes and not _per_cycle(rates[name]):
                rates[name] = {"value": f"{rate * ratio!r} FLOP/s", "source": "scaled with units and clock"}
                if isinstance(rates.get("cited"), dict):
                    rates["cited"] = {k: v for k, v in rates["cited"].items() if k != name}


def _new(tree: Mapping[str, Any], field: str, old: float | None) -> float | None:
    value: Any = tree["compute"].get(field)
    value = value.get("value") if isinstance(value, dict) else value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value if value > 0 else None
    try:
        return QUANTITIES["frequency"].parse(value) if field == "clock" else old
    except ValueError:
        return None


def _per_cycle(rate: Any) -> bool:
    text = rate.get("value") if isinstance(rate, dict) else rate
    return isinstance(text, str) and "/cycle" in text
