"""A part of a sweep, evaluated: graphs built once for all devices, sizes as arrays, kernels of many groups together."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peakline import __version__
from peakline.cost.energy import energy
from peakline.cost.machine import machine
from peakline.cost.numeric import as_real
from peakline.cost.program import ProgramCost
from peakline.hardware import Device
from peakline.limits import refuse_unsupported
from peakline.memory.footprint import REPLAY_LIMIT
from peakline.models.graph import Graph
from peakline.models.select import sweep_shape
from peakline.sweeping.axes import ESTIMATE_OPTIONS
from peakline.sweeping.devices import DeviceSpec, area_of, figure, found
from peakline.sweeping.expressions import Condition
from peakline.sweeping.memory import Measured, memories
from peakline.sweeping.plan import SIZES, Part, Run, blocks
from peakline.sweeping.pricing import Pricer
from peakline.sweeping.reduced import (
    BOUND,
    CACHE,
    CACHE_LEAST,
    IO,
    MAIN,
    MAIN_LEAST,
    TILED,
    Program,
    RunCost,
    program_of,
)
from peakline.sweeping.structure import Lives
from peakline.sweeping.table import ROLES, Table
from peakline.sweeping.workload import Rows, built, moved

__all__ = ["BLOCK", "WorkerVersionError", "evaluate"]

BLOCK = 1 << 16
"""Configurations of a group evaluated at a time: building a graph takes milliseconds, however large its arrays."""

TOGETHER = 48
"""Groups whose kernels are priced together."""


class WorkerVersionError(RuntimeError):
    """A worker runs another version of peakline than the one that made the sweep; the message names both."""


@dataclass(frozen=True)
class _Unit:
    """Configurations of one graph, and the rows that they have on each device (slices, or numbers of rows)."""

    options: tuple[tuple[str, Any], ...]
    sizes: Mapping[str, Any]
    shape: tuple[int, ...]
    rows: tuple[tuple[DeviceSpec, Any], ...]


@dataclass(frozen=True)
class _Prepared:
    """A graph with everything about it that no device changes."""

    graph: Graph
    shape: tuple[int, ...]
    lives: Lives
    program: Program


@dataclass(frozen=True)
class _Ready(_Prepared):
    """… and the rows of the table that it is for: those of `part` among the unit's."""

    unit: _Unit
    part: Rows


def evaluate(part: Part) -> Table:
    """Every row of a part that its conditions keep; a configuration that cannot be estimated has its `error`.

    Raises:
        WorkerVersionError: the part comes from another version of peakline.
    """
    if part.version != __version__:
        raise WorkerVersionError(f"the sweep is of peakline {part.version}, and this worker runs {__version__}")
    settings = part.settings
    table = Table(settings.all_columns, part.rows)
    keep = _configured(part, table)
    units: list[_Unit] = []
    waiting = 0
    for unit in _units(part, keep):
        units.append(unit)
        waiting += math.prod(unit.shape)
        if waiting >= BLOCK or len(units) >= TOGETHER:
            _evaluate(units, part, table)
            units, waiting = [], 0
    _evaluate(units, part, table)
    if keep is not None:
        table = table.kept(keep)
    return _conditioned(table, settings.conditions, [c.name for c in settings.all_columns])


# ---- configurations -------------------------------------------------------------------------------------------------
def _configured(part: Part, table: Table) -> NDArray[np.bool_] | None:
    """Fill the columns that name a configuration; the rows that conditions on them keep, None if all."""
    start = 0
    prices = dict(part.settings.prices)
    names = {column.name for column in part.settings.columns}
    described = {name: json.dumps(c, sort_keys=True) for name, c in part.models.items() if not isinstance(c, str)}
    previous: tuple[Run, dict[str, Any]] | None = None
    for run in part.runs:
        rows = slice(start, start + run.rows)
        start = rows.stop
        if previous is not None and previous[0].options is run.options and previous[0].device is run.device:
            values = previous[1]
        else:
            values = {name: value for name, value in run.options if name in names}
            values |= {"device": run.device.name, "device_base": run.device.base, "device_json": run.device.json}
            values["model_json"] = described.get(values["model"])
            try:
                device = found(run.device)
                values |= {column: figure(device, field) for field, column in part.settings.fields}
                values |= {"tdp_w": device.tdp, "area_mm2": area_of(run.device)}
            except ValueError as error:
                values["error"] = _said(error)
            values["price_per_hour"] = prices.get(run.device.name)
            previous = run, values
        for name, value in values.items():
            table.put(rows, name, str(value) if value is not None and name in table.texts else value)
        for name, value in run.sizes:
            if name in SIZES:
                table.put(rows, name, np.broadcast_to(value, run.shape).reshape(-1) if run.shape else value)
    known = [column.name for column in part.settings.all_columns]
    before = [Condition.parse(text, known) for text in part.settings.conditions]
    keep: NDArray[np.bool_] | None = None
    for condition in before:
        if names | _OF_DEVICES >= set(condition.names):
            holds = condition.holds({name: table.column(name) for name in condition.names}, table.rows)
            holds |= table.values["error"] >= 0  # no such device: nothing is lost unseen
            keep = holds if keep is None else keep & holds
    return None if keep is None or keep.all() else keep


_OF_DEVICES = {"price_per_hour", "tdp_w", "area_mm2"}
"""Results that are known of a device before anything runs on it."""


def _conditioned(table: Table, texts: Sequence[str], known: list[str]) -> Table:
    """The rows that conditions on results keep; a row with an error stays, so that nothing is lost unseen."""
    if not texts or not table.rows:
        return table
    keep = np.ones(table.rows, dtype=np.bool_)
    for condition in (Condition.parse(text, known) for text in texts):
        keep &= condition.holds({name: table.column(name) for name in condition.names}, table.rows)
    return table.kept(keep | (table.values["error"] >= 0))


def _units(part: Part, keep: NDArray[np.bool_] | None) -> Iterator[_Unit]:
    """Runs of the same graph on several devices together, in pieces of at most `BLOCK` configurations."""
    together: dict[Any, list[tuple[Run, int]]] = {}
    start = 0
    for run in part.runs:
        if not _is_device(run.device):
            start += run.rows
            continue
        graph = tuple([(name, value) for name, value in run.options if name not in ESTIMATE_OPTIONS])
        together.setdefault((graph, id(run.sizes)), []).append((run, start))
        start += run.rows
    for members in together.values():
        first = members[0][0]
        most = REPLAY_LIMIT if any(found(run.device).kind == "mcu" for run, _ in members) else BLOCK
        by_options: dict[Any, list[tuple[Run, int]]] = {}
        for run, at in members:
            by_options.setdefault(run.options, []).append((run, at))
        for low, high in _pieces(first.shape, most):
            for options, runs in by_options.items():
                yield from _piece(options, runs, low, high, keep)


def _is_device(spec: DeviceSpec) -> bool:
    """Whether there is such a device: a field may exist on one device of a sweep and not on another."""
    try:
        return found(spec) is not None
    except ValueError:
        return False


def _piece(
    options: tuple[tuple[str, Any], ...],
    runs: list[tuple[Run, int]],
    low: int,
    high: int,
    keep: NDArray[np.bool_] | None,
) -> Iterator[_Unit]:
    """Configurations `low` to `high` of the runs; those that a condition removes are left out, device by device."""
    first = runs[0][0]
    whole = [(run.device, slice(at + low, at + high)) for run, at in runs]
    if keep is None or all(keep[rows].all() for _, rows in whole):
        for block in blocks(first.shape, low, high):
            lengths = tuple(b - a for a, b in block)
            at = low if not block else int(np.ravel_multi_index([a for a, _ in block], first.shape))
            count = math.prod(lengths)
            sizes = {
                name: value[tuple(slice(a, b) if n > 1 else slice(None) for n, (a, b) in zip(value.shape, block))]
                if isinstance(value, np.ndarray)
                else value
                for name, value in first.sizes
            }
            yield _Unit(options, sizes, lengths, tuple((run.device, slice(s + at, s + at + count)) for run, s in runs))
        return
    flat = {name: np.broadcast_to(value, first.shape).reshape(-1) for name, value in first.sizes}
    kept: dict[bytes, list[tuple[DeviceSpec, Any]]] = {}
    for device, rows in whole:
        numbers = np.flatnonzero(keep[rows])
        if numbers.size:
            kept.setdefault(numbers.tobytes(), []).append((device, rows.start + numbers))
    for chosen, devices in kept.items():
        numbers = low + np.frombuffer(chosen, dtype=np.int64)
        if "configuration" in flat:  # of a graph of arrays only ranges can be cut
            for i, number in enumerate(numbers):
                yield _Unit(options, {"configuration": number}, (), tuple((d, rows[i : i + 1]) for d, rows in devices))
            continue
        yield _Unit(options, {name: v[numbers] for name, v in flat.items()}, (len(numbers),), tuple(devices))


def _pieces(shape: tuple[int, ...], most: int) -> Iterator[tuple[int, int]]:
    """Ranges of at most `most` rows, whole products of the inner dimensions."""
    whole = 1
    for length in reversed(shape):
        if whole * length > most:
            break
        whole *= length
    step = max(most // whole, 1) * whole
    rows = math.prod(shape)
    for low in range(0, rows, step):
        yield low, min(low + step, rows)


# ---- estimates ------------------------------------------------------------------------------------------------------
def _evaluate(units: list[_Unit], part: Part, table: Table) -> None:
    ready: list[_Ready] = []
    for unit in units:
        for found_one, rows in _prepared(unit, part.models):
            if isinstance(found_one, Exception):
                for _, places in unit.rows:
                    table.put(_cut(places, rows), "error", _said(found_one))
            else:
                graph, shape, lives, program = (getattr(found_one, f.name) for f in fields(_Prepared))
                ready.append(_Ready(graph, shape, lives, program, unit, rows))
    by_device: dict[tuple[DeviceSpec, bool], list[_Ready]] = {}
    for one in ready:
        for spec, _ in one.unit.rows:
            by_device.setdefault((spec, bool(dict(one.unit.options).get("cuda_graph"))), []).append(one)
    pricers: dict[tuple[int, ...], Pricer] = {}
    prices: dict[tuple[int, DeviceSpec], RunCost | Exception] = {}
    for (spec, cuda_graph), members in by_device.items():
        same = tuple(map(id, members))
        if same not in pricers:
            pricers[same] = Pricer([one.program for one in members])
        costs = pricers[same].on(found(spec), cuda_graph=cuda_graph)
        prices |= {(id(one), spec): cost for one, cost in zip(members, costs)}
    for one in ready:
        able: list[tuple[Device, Any, RunCost | Exception]] = []
        for spec, places in one.unit.rows:
            device, rows = found(spec), _cut(places, one.part)
            try:
                refuse_unsupported(one.graph, device)
                able.append((device, rows, prices[id(one), spec]))
            except ValueError as error:
                table.put(rows, "error", _said(error))
        allocator = dict(one.unit.options).get("allocator")
        devices = [device for device, _, _ in able]
        held = memories(one.graph, one.shape, one.lives, devices, allocator, replay=part.settings.replay)
        for (device, rows, cost), memory in zip(able, held):
            _put(one, device, rows, memory, cost, table)


def _prepared(unit: _Unit, models: Mapping[str, Any]) -> list[tuple[_Prepared | Exception, Rows]]:
    """The unit's graphs, or the errors that stand in their place, and the configurations that each is for.

    Small ones are remembered: the next sweep over the same configurations asks for other devices.
    """
    options = tuple([(name, value) for name, value in unit.options if name not in ESTIMATE_OPTIONS])
    key: Any = None
    if math.prod(unit.shape) <= _SMALL and dict(options)["model"] not in models:
        sizes = tuple([(n, np.shape(v), np.asarray(v).tobytes()) for n, v in unit.sizes.items()])
        key = options, sizes, unit.shape
        if key in _remembered:
            return _remembered[key]
    out = [(_prepare(graph, rows, unit), rows) for graph, rows in built(dict(options), unit.sizes, unit.shape, models)]
    if key is not None:
        while len(_remembered) >= _MOST_REMEMBERED:
            for oldest in list(_remembered)[:1]:  # a copy: other threads may be at it
                _remembered.pop(oldest, None)
        _remembered[key] = out
    return out


_SMALL = 64
_MOST_REMEMBERED = 256
_remembered: dict[Any, list[tuple[_Prepared | Exception, Rows]]] = {}


def _prepare(graph: Graph | Exception, rows: Rows, unit: _Unit) -> _Prepared | Exception:
    if isinstance(graph, Exception):
        return graph
    if isinstance(rows, slice):
        shape = unit.shape if rows == slice(0, math.prod(unit.shape)) else (rows.stop - rows.start,)
    else:
        shape = rows.shape
    try:
        if "configuration" in unit.sizes:
            shape = sweep_shape(graph)
        return _Prepared(graph, shape, Lives(graph, shape), program_of(graph, shape))
    except Exception as error:
        return error


def _cut(places: Any, part: Rows) -> Any:
    return moved(part, places.start) if isinstance(places, slice) else places[part]


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) and str(error) else f"{type(error).__name__}: {error}"


def _put(
    one: _Ready, device: Device, rows: Any, memory: Measured | Exception, cost: RunCost | Exception, table: Table
) -> None:
    """Write one graph's figures on one device into its rows."""
    try:
        for failure in (memory, cost):
            if isinstance(failure, Exception):
                raise failure
        assert isinstance(memory, Measured)
        assert isinstance(cost, RunCost)
        figures = {**_memory(one, memory), **_cost(one, device, cost)}
    except Exception as error:
        table.put(rows, "error", _said(error))
        return
    for name in ("batch", "seq", "context", "image"):
        if name in one.graph.workload and name not in one.unit.sizes:
            figures[name] = one.graph.workload[name]
    for name, value in figures.items():
        if isinstance(value, np.ndarray) and value.ndim:
            value = (value if value.shape == one.shape else np.broadcast_to(value, one.shape)).reshape(-1)
        table.put(rows, name, value)
    worst, share = cost.limited_by
    table.put_codes(rows, "bound_by", worst.reshape(-1), [*cost.limits])
    table.put(rows, "bound_share", share.reshape(-1))
    hourly = table.values["price_per_hour"][rows]
    if not np.isnan(hourly).all():
        run = hourly * table.values["time_s"][rows] / 3600.0
        table.put(rows, "price_per_run", run)
        per_token = 1e6 / (table.values["tokens_per_s"][rows] * table.values["time_s"][rows])
        table.put(rows, "price_per_million_tokens", run * per_token)


def _memory(one: _Ready, memory: Measured) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "fits": memory.fits,
        "replayed": memory.replayed,
        "live_bytes": memory.live.live,
        "allocated_bytes": memory.allocated,
        "reserved_bytes": memory.reserved,
        "device_bytes": memory.device,
        "capacity_bytes": memory.capacity,
        "outside_allocator_bytes": memory.context,
        "allocator_retries": memory.retries,
    }
    return figures | {f"live_{role}_bytes": memory.live.by_role[i] for i, role in enumerate(ROLES)}


def _cost(one: _Ready, device: Device, cost: RunCost) -> dict[str, Any]:
    target, sums, graph = machine(device), cost.sums, one.graph
    seconds = sums[TILED]
    figures: dict[str, Any] = {
        "time_s": seconds,
        "time_io_s": sums[IO],
        "time_bound_s": sums[BOUND],
        "flops": as_real(one.program.flops),
        "vector_operations": as_real(one.program.vector_work),
        "main_memory": target.main.name,
        "main_traffic_bytes": sums[MAIN],
        "main_least_bytes": sums[MAIN_LEAST],
    }
    traffic = {target.main.name: sums[MAIN]}
    if target.cache is not None:
        figures |= {
            "cache": target.cache.name,
            "cache_traffic_bytes": sums[CACHE],
            "cache_least_bytes": sums[CACHE_LEAST],
        }
        traffic[target.cache.name] = sums[CACHE]
    name, count = _produced(graph)
    if count is not None:
        with np.errstate(divide="ignore"):
            figures[f"{name}_per_s"] = count / seconds
    if device.tdp is not None:
        figures["energy_at_tdp_j"] = seconds * device.tdp
    if device.main.energy_per_byte is not None:
        work = one.program.flops, one.program.vector_work
        totals = ProgramCost((), *work, sums[BOUND], sums[IO], seconds, traffic, {}, {})
        figures["energy_j"] = energy(totals, device, graph)
    return figures


def _produced(graph: Graph) -> tuple[str, Any]:
    """What a run makes, tokens or images, and how many."""
    work = graph.workload
    if "batch" not in work:
        return "images", None
    count = work["batch"] * work.get("accumulation", 1)
    if work.get("phase") == "decode":
        return "tokens", count
    return ("tokens", count * work["seq"]) if work.get("seq") is not None else ("images", count)
