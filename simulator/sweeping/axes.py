"""From what a user asks for to a `Plan`: axes checked one by one, products and zips, conditions, columns."""

from __future__ import annotations

import difflib
import inspect
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from os import PathLike
from typing import Any

import numpy as np

from peakline.memory.options import AllocatorOptions
from peakline.models.catalogue import resolve
from peakline.models.graph import Graph
from peakline.models.workload import PHASE_NAMES
from peakline.models.workloads import forward, refuse_option, training_step
from peakline.sweeping.devices import DeviceSpec, device_axis, field_column, found, varied_spec
from peakline.sweeping.expressions import Condition
from peakline.sweeping.plan import SIZES, Dim, Grid, Plan, Settings
from peakline.sweeping.table import Column

__all__ = ["ESTIMATE_OPTIONS", "REPLAYED_ROWS", "TRAINING_OPTIONS", "plan_of"]

REPLAYED_ROWS = 1024
"""Rows up to which `replay="auto"` replays the allocator, as `peakline.estimate` does in a graph of arrays."""

_FORWARD = tuple(list(inspect.signature(forward).parameters)[2:-1])
TRAINING_OPTIONS = tuple(list(inspect.signature(training_step).parameters)[1:-1])
ESTIMATE_OPTIONS = ("allocator", "cuda_graph")
_OPTIONS = tuple(name for name in (*_FORWARD, *TRAINING_OPTIONS, *ESTIMATE_OPTIONS) if name not in SIZES)
_MOST_CHOICES = 1_000_000
_CHANGED = re.compile(r"[\[,]([^=\[\],]+)=")  # the fields in a variant's name


def plan_of(
    model: Any,
    *,
    device: Any,
    phase: Any = None,
    zip: Any = (),
    where: Any = (),
    replay: bool | str = "auto",
    prices: Mapping[str, float] | None = None,
    **axes: Any,
) -> Plan:
    """The sweep over these axes; see `peakline.sweep`.

    Raises:
        ValueError: an empty axis, an unknown name, value or condition; the message names it and what is accepted.
    """
    devices = device_axis(device)
    models = _values("model", [model] if isinstance(model, Mapping) else model)
    content: dict[str, Any] = {}
    if any(isinstance(item, Graph) for item in models):
        if phase is not None:
            raise ValueError("phase: a graph is one already; leave phase out")
        grids, columns = _graph_grids(models, devices, axes, zip, content)
    else:
        names = _model_names(models, content)
        given = {"model": names, "phase": _phases(phase), "device": devices, **_checked_axes(axes)}
        given.setdefault("dtype", ["bf16"])
        _refuse_misplaced(given)
        grids = _grids(given, _zips(zip, given))
        columns = _option_columns(given)
    device_fields = _device_fields(devices, axes)
    total = sum(grid.rows for grid in grids)
    if replay not in (True, False, "auto"):
        raise ValueError(f"replay: {replay!r} is not one of True, False, 'auto'")
    settings = Settings(
        (*columns, *(Column(*field_column(found(spec), field)) for field, spec in device_fields.items())),
        tuple((field, field_column(found(spec), field)[0]) for field, spec in device_fields.items()),
        total <= REPLAYED_ROWS if replay == "auto" else bool(replay),
        (where,) if isinstance(where, str) else tuple(where or ()),
        _checked_prices(prices),
    )
    known = [column.name for column in settings.all_columns]
    for text in settings.conditions:
        Condition.parse(text, known)
    return Plan(tuple(grids), settings, content)


# ---- values ---------------------------------------------------------------------------------------------------------
def _values(name: str, given: Any) -> list[Any]:
    """The values of an axis; a single one is an axis of one."""
    if isinstance(given, Mapping):
        from peakline.sweeping.ranges import from_mapping

        given = from_mapping(name, given)
    if isinstance(given, str | bytes | PathLike | Graph) or not isinstance(given, Iterable):
        return [given]
    values = given.tolist() if isinstance(given, np.ndarray) else list(given)
    if not values:
        raise ValueError(f"{name}: the axis is empty; give at least one value")
    return values


def _sizes(name: str, given: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Whole numbers of at least 1."""
    if isinstance(given, Mapping):
        given = _values(name, given)
    if isinstance(given, range):
        if not given:
            raise ValueError(f"{name}: the axis is empty; give at least one value")
        array = np.arange(given.start, given.stop, given.step, dtype=np.int64)
    else:
        array = np.atleast_1d(np.asarray(given if isinstance(given, np.ndarray) else _values(name, given)))
    if array.ndim != 1 or not array.size:
        raise ValueError(f"{name}: the axis must be a list of at least one size, not of shape {array.shape}")
    if array.dtype.kind not in "iu":
        strange = next((v for v in array.tolist() if not isinstance(v, int) or isinstance(v, bool)), array[0])
        raise ValueError(f"{name}: {strange!r} is not a whole number")
    if array.min() < 1:
        raise ValueError(f"{name}: must be at least 1, not {array.min()}")
    return array.astype(np.int64, copy=False)


def _checked_axes(axes: Mapping[str, Any]) -> dict[str, Any]:
    """Every axis under a known name, with plain values."""
    out: dict[str, Any] = {}
    for name, given in axes.items():
        if name in SIZES:
            if given is None:
                continue
            out[name] = _sizes(name, given)
        elif name in _OPTIONS:
            values = [given] if name == "overrides" and isinstance(given, Mapping) else _values(name, given)
            out[name] = [_plain(name, value) for value in values]
            for value in out[name]:
                refuse_option(name, value)
        elif "." in name:
            out[name] = _values(name, given)
        else:
            raise ValueError(_unknown(name))
    return out


def _unknown(name: str) -> str:
    known = [*SIZES, *_OPTIONS, "model", "device", "phase", "zip", "where", "replay", "prices"]
    near = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; axes: {', '.join(known)}, or a device's field with dots"
    return f"axis {name!r} is unknown{hint}"


def _plain(name: str, value: Any) -> Any:
    """A value that can stand in a row: text, number, truth; mappings and adapters as JSON."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Mapping):
        return json.dumps(dict(value), sort_keys=True)
    if isinstance(value, AllocatorOptions):
        raise ValueError("allocator: write the settings as PYTORCH_CUDA_ALLOC_CONF does: 'expandable_segments:True'")
    if is_dataclass(value) and not isinstance(value, type) and name == "lora":
        return json.dumps({f.name: getattr(value, f.name) for f in fields(value)}, default=str, sort_keys=True)
    if isinstance(value, str | int | float | bool | None):
        if name == "allocator" and isinstance(value, str):
            AllocatorOptions.parse(value)
        return value
    if hasattr(value, "name"):  # a DType
        return str(value.name)
    raise ValueError(f"{name}: {value!r} cannot be the value of an axis; give texts, numbers or truths")


def _model_names(models: Sequence[Any], content: dict[str, Any]) -> list[str]:
    """The name that each model's rows carry; configurations that are not catalogued are kept as `content`."""
    from pathlib import Path

    names = []
    for model in models:
        if isinstance(model, str | PathLike | Mapping):
            name = resolve(model)[0]
        else:
            raise ValueError(f"model: {model!r} is neither a name, a path, a configuration nor a Graph")
        if isinstance(model, Mapping):
            content[name] = dict(model)
        elif not isinstance(model, str) or not _catalogued(model):
            path = Path(model)
            content[name] = json.loads((path / "config.json" if path.is_dir() else path).read_text(encoding="utf-8"))
        names.append(name)
    if len(set(names)) < len(names):
        raise ValueError(f"model: {next(n for n in names if names.count(n) > 1)!r} is there twice")
    return names


def _catalogued(name: str) -> bool:
    from peakline.models.catalogue import UnknownModel, entry

    try:
        entry(name)
    except UnknownModel:
        return False
    return True


def _phases(phase: Any) -> list[str]:
    if phase is None:
        raise ValueError(f"phase: say what to run: {', '.join(PHASE_NAMES)}")
    phases = _values("phase", phase)
    for one in phases:
        if one not in PHASE_NAMES:
            raise ValueError(f"phase: {one!r} is unknown; accepted: {', '.join(PHASE_NAMES)}")
    return phases


def _refuse_misplaced(given: Mapping[str, Any]) -> None:
    """Refuse axes that no configuration could have, rather than make every row an error."""
    phases = set(given["phase"])
    if "decode" in phases and "seq" in given:
        raise ValueError("seq: a decode step makes one token; give context, the tokens in the cache")
    if phases - {"decode"} and "context" in given:
        raise ValueError(f"context: only a decode step has one; give seq for {', '.join(sorted(phases - {'decode'}))}")
    for name in TRAINING_OPTIONS:
        if name in given and ("training" not in phases or (len(phases) > 1 and len(given[name]) > 1)):
            raise ValueError(f"{name}: only a training step has one; sweep phase 'training' by itself")


def _checked_prices(prices: Mapping[str, float] | None) -> tuple[tuple[str, float], ...]:
    out = []
    for name, price in (prices or {}).items():
        if not isinstance(price, int | float) or isinstance(price, bool) or not 0 <= price < math.inf:
            raise ValueError(f"prices: {name}: {price!r} is not an amount per hour")
        out.append((device_axis(name)[0].name, float(price)))
    return tuple(out)


# ---- grids ----------------------------------------------------------------------------------------------------------
def _zips(given: Any, axes: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Groups of axes that vary together."""
    groups = [given] if given and all(isinstance(name, str) for name in given) else list(given or ())
    seen: set[str] = set()
    out = []
    for group in groups:
        names = tuple(group)
        for name in names:
            if name not in axes:
                near = difflib.get_close_matches(str(name), axes, 1)
                raise ValueError(f"zip: {name!r} is no axis here{f'; did you mean {near[0]!r}?' if near else ''}")
            if name in seen:
                raise ValueError(f"zip: {name!r} is zipped twice")
            seen.add(name)
        lengths = {name: len(axes[name]) for name in names}
        if len(set(lengths.values())) > 1:
            said = ", ".join(f"{name} has {length}" for name, length in lengths.items())
            raise ValueError(f"zip: axes that vary together need equally many values: {said}")
        out.append(names)
    return out


def _grids(axes: Mapping[str, Any], zips: list[tuple[str, ...]]) -> list[Grid]:
    """Products of the axes; a zip of sizes with other axes makes one grid for each combination of the others."""
    zipped = {name: group for group in zips for name in group}
    grids = [Grid((), (), ())]
    done: set[tuple[str, ...]] = set()
    for name in axes:
        group = zipped.get(name, (name,))
        if group not in done:
            done.add(group)
            grids = [joined for grid in grids for joined in _with(grid, group, axes)]
    return grids


def _with(grid: Grid, names: tuple[str, ...], axes: Mapping[str, Any]) -> list[Grid]:
    sizes = tuple(name for name in names if name in SIZES)
    others = tuple(name for name in names if name not in SIZES)
    length = len(axes[names[0]])
    if not others:
        dim = Dim(sizes, [axes[name] for name in sizes], length)
        return [Grid(grid.groups, grid.devices, (*grid.sizes, dim))]
    rows = list(zip(*(axes[name] for name in others)))
    if not sizes:
        return [_with_others(grid, Dim(others, rows, length))]
    members: dict[Any, list[int]] = {}
    for i, row in enumerate(rows):
        members.setdefault(row, []).append(i)
    out = []
    for row, positions in members.items():
        dim = Dim(sizes, [axes[name][positions] for name in sizes], len(positions))
        one = _with_others(grid, Dim(others, [row], 1))
        out.append(Grid(one.groups, one.devices, (*grid.sizes, dim)))
    return out


def _with_others(grid: Grid, dim: Dim) -> Grid:
    if all(name == "device" or "." in name for name in dim.names):
        return Grid(grid.groups, (*grid.devices, dim), grid.sizes)
    return Grid((*grid.groups, dim), grid.devices, grid.sizes)


def _graph_grids(
    models: Sequence[Any], devices: list[DeviceSpec], axes: Mapping[str, Any], zips: Any, content: dict[str, Any]
) -> tuple[list[Grid], tuple[Column, ...]]:
    """One grid per graph; the configurations of a graph of arrays are its sizes."""
    fixed = [name for name in axes if "." not in name and name not in ESTIMATE_OPTIONS]
    if fixed:
        raise ValueError(f"{fixed[0]}: a graph's sizes and options are fixed; give the model's name and a phase")
    if zips:
        raise ValueError("zip: graphs are swept over devices alone")
    checked = _checked_axes(axes)
    said: dict[str, list[Any]] = {}
    for graph in models:
        if not isinstance(graph, Graph):
            raise ValueError(f"model: {graph!r} beside graphs; give graphs alone or names alone")
        for name, value in graph.workload.items():
            if name not in SIZES and name != "phase":
                said.setdefault(name, []).append(_plain(name, value))
    grids = []
    for graph in models:
        name, number = graph.name, 2
        while name in content:
            name, number = f"{graph.name}#{number}", number + 1
        content[name] = graph.to_json()
        given: dict[str, Any] = {"model": [name], "phase": [graph.workload.get("phase")]}
        given |= {key: [_plain(key, graph.workload.get(key))] for key in said}
        grid = _grids(given | {"device": devices} | checked, [])[0]
        if graph.is_sweep:
            from peakline.models.select import sweep_shape

            count = math.prod(sweep_shape(graph))
            grid = Grid(
                grid.groups, grid.devices, (Dim(("configuration",), [np.arange(count, dtype=np.int64)], count),)
            )
        grids.append(grid)
    return grids, _option_columns({**said, **checked})


def _option_columns(given: Mapping[str, Any]) -> tuple[Column, ...]:
    """The columns that name a configuration."""
    fixed = ("model", "phase", "device", "device_base", "device_json", "model_json")
    options = [
        Column(name, _kind(values))
        for name, values in given.items()
        if name not in fixed and name not in SIZES and "." not in name
    ]
    head = [Column(name, "text") for name in fixed]
    return (*head, *(Column(name, "int") for name in SIZES), *options)


def _kind(values: Sequence[Any]) -> str:
    present = [value for value in values if value is not None]
    for kind, types in (("bool", (bool,)), ("int", (int,)), ("float", (int, float))):
        if present and all(type(value) in types for value in present):
            return kind
    return "text"


def _device_fields(devices: list[DeviceSpec], axes: Mapping[str, Any]) -> dict[str, DeviceSpec]:
    """Fields that some device changes → a device that has the field, to tell its unit."""
    changed: dict[str, DeviceSpec] = {}
    for spec in devices:
        for field in _CHANGED.findall(spec.name):
            changed.setdefault(field.strip(), spec)
    for name, given in axes.items():
        if "." in name:
            for value in _values(name, given)[:_MOST_CHOICES]:
                spec = varied_spec(devices[0], {name: value})
                found(spec)  # refuses an unknown field or value now, by name
                changed[name] = spec
    columns: dict[str, str] = {}
    for field, spec in changed.items():
        columns.setdefault(field_column(found(spec), field)[0], field)
    return {field: changed[field] for field in columns.values()}
