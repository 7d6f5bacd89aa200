"""From the options and sizes of a row to its graph."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peakline.limits import refuse_uncountable
from peakline.models.dims import MixedSizes
from peakline.models.dtypes import dtype as dtype_of
from peakline.models.graph import Graph
from peakline.models.select import select
from peakline.models.workload import Lora
from peakline.models.workloads import decode, inference, prefill, training_step
from peakline.sweeping.axes import ESTIMATE_OPTIONS, TRAINING_OPTIONS

__all__ = ["Rows", "build", "built", "moved"]

_BUILD = {"training": training_step, "prefill": prefill, "decode": decode, "inference": inference}


def build(options: Mapping[str, Any], sizes: Mapping[str, Any], models: Mapping[str, Any]) -> Graph:
    """The graph of one group.

    Args:
        options: model, phase and the rest, as a row has them; None stands for the default.
        sizes: whole numbers or arrays by axis.
        models: content of models that are not catalogued.

    Raises:
        ValueError: what `peakline.training_step` and the others raise.
    """
    model, phase = options["model"], options["phase"]
    content = models.get(model, model) if isinstance(model, str) else model
    if isinstance(content, str) and model in models:
        return _of_graph(content, sizes.get("configuration"))
    chosen: dict[str, Any] = {}
    for name, value in options.items():
        if value is None or name in ("model", "phase", *ESTIMATE_OPTIONS):
            continue
        if name in TRAINING_OPTIONS and phase != "training":
            continue
        chosen[name] = _decoded(name, value)
    return _BUILD[phase](content, **chosen, **sizes)


def _decoded(name: str, value: Any) -> Any:
    """What `axes` wrote as JSON, read again."""
    if name == "overrides":
        return json.loads(value)
    if name == "lora" and isinstance(value, str):
        said = json.loads(value)
        kind = None if said.get("kind") is None else dtype_of(said["kind"])
        return Lora(said["rank"], tuple(said["targets"]), said["dropout"], kind)
    return value


@lru_cache(maxsize=8)
def _read(text: str) -> Graph:
    return Graph.from_json(text)


def _of_graph(text: str, configurations: Any) -> Graph:
    """A graph given as such; of a graph of arrays the configurations from the first to the last asked for."""
    graph = _read(text)
    if configurations is None:
        return graph
    numbers = np.atleast_1d(configurations).reshape(-1)
    return select(graph, int(numbers[0]), int(numbers[-1]) + 1)


Rows = slice | NDArray[np.intp]
"""Rows of a block: a range, or their numbers."""


def built(
    options: Mapping[str, Any], sizes: Mapping[str, Any], shape: tuple[int, ...], models: Mapping[str, Any]
) -> Iterator[tuple[Graph | Exception, Rows]]:
    """The graphs of a block of sizes, and the rows each has: one, unless some sizes cannot be built with the others.

    A block of sizes on both sides of a threshold that changes the program is parted there; one that cannot be built is
    halved until what cannot be built stands alone.
    """
    rows = int(np.prod(shape))
    try:
        graph = build(options, sizes, models)
        refuse_uncountable(graph)
    except MixedSizes as error:
        met = np.broadcast_to(error.condition, shape).reshape(-1)
        for numbers in (np.flatnonzero(met), np.flatnonzero(~met)):
            chosen = {name: np.broadcast_to(value, shape).reshape(-1)[numbers] for name, value in sizes.items()}
            for found, part in built(options, chosen, numbers.shape, models):
                yield found, numbers[part]
        return
    except Exception as error:
        if rows == 1:
            yield error, slice(0, 1)
            return
    else:
        yield graph, slice(0, rows)
        return
    flat = {name: np.broadcast_to(value, shape).reshape(-1) for name, value in sizes.items()}
    half = rows // 2
    for start, stop in ((0, half), (half, rows)):
        cut = {name: value[start:stop] for name, value in flat.items()}
        if stop - start == 1:
            cut = {name: value[0] for name, value in cut.items()}
        for found, part in built(options, cut, (stop - start,), models):
            yield found, moved(part, start)


def moved(rows: Rows, by: int) -> Rows:
    """The rows of a block that begins `by` rows further on."""
    return slice(rows.start + by, rows.stop + by) if isinstance(rows, slice) else rows + by
