"""Estimate a large sweep in cache-sized parts and put the results together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from peakline.cost.program import ProgramCost
from peakline.memory.footprint import Memory
from peakline.models.graph import Graph
from peakline.models.select import select, sweep_shape

__all__ = ["CHUNK", "in_chunks"]

CHUNK = 1 << 14
"""Configurations evaluated at a time: the arrays of one operator then stay in a core's cache."""


def in_chunks(graph: Graph, evaluate: Callable[[Graph], tuple[Memory, ProgramCost]]) -> tuple[Memory, ProgramCost]:
    """Evaluate `graph` part by part; results have the sweep's shape. The per-operator prices are not kept."""
    shape = sweep_shape(graph)
    total = int(np.prod(shape))
    figures: list[dict[str, Any]] = []
    for start in range(0, total, CHUNK):
        memory, cost = evaluate(select(graph, start, min(start + CHUNK, total)))
        figures.append(
            {name: getattr(memory, name) for name in _MEMORY} | {name: getattr(cost, name) for name in _COST}
        )
    joined: dict[str, Any] = {
        name: (_join_mapping if name in _MAPPINGS else _join)([part[name] for part in figures], shape)
        for name in (*_MEMORY, *_COST)
    }
    return (
        replace(memory, **{name: joined[name] for name in _MEMORY}),
        replace(cost, operators=(), **{name: joined[name] for name in _COST}),
    )


_MEMORY = ("live", "allocated", "reserved", "device", "fits", "peak_step", "retries", "by_role")
_COST = ("flops", "vector_work", "bound", "io", "tiled", "traffic", "io_lower_bound", "limited_by", "by_kind")
_MAPPINGS = ("by_role", "traffic", "io_lower_bound", "limited_by", "by_kind")


def _join(values: Sequence[Any], shape: tuple[int, ...]) -> Any:
    if not any(isinstance(v, np.ndarray) for v in values):
        return values[0]
    return np.concatenate([np.atleast_1d(v) for v in values]).reshape(shape)


def _join_mapping(values: Sequence[Any], shape: tuple[int, ...]) -> dict[str, Any]:
    """Join mappings of arrays; a key that a part lacks counts 0 there."""
    sizes = [max((np.size(v) for v in mapping.values()), default=1) for mapping in values]
    keys = dict.fromkeys(key for mapping in values for key in mapping)
    return {
        key: _join([np.broadcast_to(mapping.get(key, 0), size) for mapping, size in zip(values, sizes)], shape)
        for key in keys
    }
