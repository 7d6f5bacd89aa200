"""From what a file says to plain figures: sources attached to each figure, per-cycle and per-unit figures expanded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from peakline.hardware.faults import Fault, nearest, submodel
from peakline.hardware.figures import Section, figures_of
from peakline.hardware.schema import Device
from peakline.hardware.sections import MemoryLevel
from peakline.hardware.units import QUANTITIES, UnitError

__all__ = ["resolve"]

Path = tuple[str, ...]
_CYCLE = re.compile(r"\s*([0-9.]+(?:e[+-]?\d+)?)\s*(FLOP/|OP/|MAC/|B/|KiB/|)cycles?\s*")
_CYCLE_UNITS = {
    "rate": {"FLOP/": 1, "OP/": 1, "MAC/": 2},
    "bandwidth": {"B/": 1, "KiB/": 1024},
    "time": {"": 1},
}
_FIGURE_KEYS = ("value", "source", "note")


def resolve(
    tree: Mapping[str, Any], shared: Mapping[str, str], *, si: bool = False
) -> tuple[dict[str, Any], list[Fault]]:
    """A file's mapping with every figure plain and every source resolved, and the faults met on the way.

    `{value: x, source: s, note: n}` becomes `x` with the citation and the note put in the section's `cited` and
    `notes`. `8 FLOP/cycle` becomes a rate through `compute.units` and `compute.clock`; `128 B/cycle` a bandwidth
    and `200 cycles` a latency through the clock; a level's total is its figure per unit times the units where no
    total is given.
    """
    work = _Resolver(tree, shared, si)
    return work.device(), work.faults


class _Resolver:
    def __init__(self, tree: Mapping[str, Any], shared: Mapping[str, str], si: bool) -> None:
        self.tree, self.si, self.faults = tree, si, list[Fault]()
        own = tree.get("sources")
        self.sources = dict(shared) | ({str(k): v for k, v in own.items()} if isinstance(own, dict) else {})
        compute = tree.get("compute")
        compute = compute if isinstance(compute, dict) else {}
        units = _bare(compute.get("units"))
        self.units = units if isinstance(units, int) and units > 0 else None
        self.clock = self._hertz(_bare(compute.get("clock")))

    def device(self) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for field, value in self.tree.items():
            model = submodel(Device.model_fields[_FIELDS[field]].annotation) if field in _FIELDS else None
            if field == "source":
                continue
            if model is None or not isinstance(value, dict):
                out[field] = value
            elif field in ("memory", "links"):
                out[field] = {name: self._entry(part, model, (field, name)) for name, part in value.items()}
            else:
                out[field] = self._section(value, model, (field,), self.tree.get("source"))
        return out

    def _entry(self, part: Any, model: type[BaseModel], path: Path) -> Any:
        if not isinstance(part, dict):
            return {} if part is None else part
        out = self._section(part, model, path, self.tree.get("source"))
        if model is MemoryLevel:
            out["name"] = path[-1]
            self._totals(out)
        return out

    def _section(self, part: dict[str, Any], model: type[BaseModel], path: Path, inherited: Any) -> dict[str, Any]:
        """One group of figures: citations and notes gathered, sub-groups entered."""
        source = part.get("source", inherited)
        figures = figures_of(model)
        given_cited, given_notes = part.get("cited"), part.get("notes")
        cited = dict(given_cited) if isinstance(given_cited, dict) else {}
        notes = dict(given_notes) if isinstance(given_notes, dict) else {}
        if isinstance(part.get("note"), str):
            notes[""] = part["note"]
        out: dict[str, Any] = {}
        for field, value in part.items():
            here = (*path, field)
            info = model.model_fields.get(field)
            below = submodel(info.annotation) if info else None
            if field in ("source", "note", "cited", "notes"):
                continue
            if field in figures:
                value, own, note = self._figure(value, here)
                if note:
                    notes[field] = note
                if value is not None and field not in cited:
                    citation = self._citation(source if own is None else own, here)
                    if citation:
                        cited[field] = citation
                out[field] = self._per_cycle(value, figures[field].quantity, here)
            elif below is not None and issubclass(below, Section) and isinstance(value, dict):
                out[field] = self._section(value, below, here, source)
            else:
                out[field] = value
        return out | ({"cited": cited} if cited else {}) | ({"notes": notes} if notes else {})

    def _figure(self, value: Any, path: Path) -> tuple[Any, Any, str | None]:
        """(value, source, note) of a figure written bare or as a mapping."""
        if not isinstance(value, dict):
            return value, None, None
        for key in value:
            if key not in _FIGURE_KEYS:
                self.faults.append(
                    Fault((*path, key), value[key], f"is not part of a figure; accepted: {', '.join(_FIGURE_KEYS)}")
                )
        return value.get("value"), value.get("source"), value.get("note")

    def _citation(self, source: Any, path: Path) -> str | None:
        """The text a source stands for: a short name of `sources`, a list of them, or a citation written out."""
        if source is None:
            self.faults.append(Fault(path, None, "has no source; name one of `sources` or write the citation out"))
            return None
        if isinstance(source, list):
            return "; ".join(filter(None, (self._citation(part, path) for part in source))) or None
        text = str(source)
        if text in self.sources:
            return str(self.sources[text])
        if " " in text.strip():
            return text
        known = ", ".join(k for k in self.sources)
        self.faults.append(
            Fault(path, source, f"source {text!r} is not in `sources`{nearest(text, self.sources)} ({known})")
        )
        return None

    # --- figures that stand for others ------------------------------------------------------------------------

    def _per_cycle(self, value: Any, quantity: str, path: Path) -> Any:
        """A figure stated per clock cycle in SI: rates per unit, bandwidths and latencies as they stand."""
        match = _CYCLE.fullmatch(value) if isinstance(value, str) else None
        if match is None or match[2] not in _CYCLE_UNITS.get(quantity, ()):
            return value  # not per cycle, or left for the quantity itself to refuse
        number = float(match[1]) * _CYCLE_UNITS[quantity][match[2]]
        if not self.clock:
            self.faults.append(Fault(path, value, f"{value!r} needs compute.clock"))
            return None
        if quantity == "time":
            return f"{number / self.clock!r} s"
        if quantity == "bandwidth":
            return f"{number * self.clock!r} B/s"
        if self.units is None:
            self.faults.append(Fault(path, value, f"{value!r} is per unit and needs compute.units"))
            return None
        return f"{number * self.units * self.clock!r} FLOP/s"

    def _totals(self, level: dict[str, Any]) -> None:
        """Capacity and bandwidth of the whole device from those of one unit, where only those are given."""
        if self.units is None:
            return
        for total, quantity in (("capacity", "capacity"), ("bandwidth", "bandwidth")):
            each = f"{total}_per_unit"
            number = self._si(level.get(each), quantity)
            if level.get(total) is None and number is not None:
                level[total] = (
                    number * self.units if self.si else f"{number * self.units!r} {QUANTITIES[quantity].base}"
                )
                level.setdefault("cited", {})[total] = f"{each} × {self.units} units; {level['cited'].get(each, '')}"

    def _si(self, value: Any, quantity: str) -> Any:
        if self.si and isinstance(value, (int, float)):
            return value
        try:
            return QUANTITIES[quantity].parse(value)
        except UnitError:
            return None

    def _hertz(self, value: Any) -> float | None:
        found = self._si(value, "frequency")
        return None if found is None else float(found)


def _bare(value: Any) -> Any:
    return value.get("value") if isinstance(value, dict) else value


_FIELDS = {info.alias or name: name for name, info in Device.model_fields.items()}
