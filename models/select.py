"""A part of a sweep: the same graph with every array of sizes cut to some of its configurations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np

from peakline.models.dims import is_array
from peakline.models.graph import Block, Graph

__all__ = ["select", "sweep_shape"]


def sweep_shape(graph: Graph) -> tuple[int, ...]:
    """The common shape that the graph's arrays of sizes broadcast to; () for a single configuration.

    Raises:
        ValueError: arrays that do not broadcast against each other.
    """
    return np.broadcast_shapes(*(np.shape(array) for array in graph.arrays()))


def select(graph: Graph, start: int, stop: int) -> Graph:
    """Configurations `start` to `stop` (in flat order of `sweep_shape`): every array becomes one-dimensional."""
    shape = sweep_shape(graph)
    cut: dict[int, Any] = {}

    def take(value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return value
        if id(value) not in cut:
            part = value[start:stop] if value.shape == shape and value.ndim == 1 else _flat(value, shape, start, stop)
            cut[id(value)] = (part, value)  # the original is kept so that its id stays taken
        return cut[id(value)][0]

    tensors = {
        name: replace(t, shape=tuple([take(d) for d in t.shape]), bytes_override=take(t.bytes_override))
        if is_array(*t.shape, t.bytes_override)
        else t
        for name, t in graph.tensors.items()
    }
    blocks = tuple([_select_block(block, take) for block in graph.blocks])
    workload = {key: take(value) for key, value in graph.workload.items()}
    return replace(graph, tensors=tensors, blocks=blocks, workload=workload)


def _flat(value: Any, shape: tuple[int, ...], start: int, stop: int) -> Any:
    return np.broadcast_to(value, shape).flat[start:stop]


def _select_block(block: Block, take: Any) -> Block:
    if not any(is_array(*o.attributes.values()) for o in block.operators):
        return block
    operators = tuple(
        [
            replace(o, attributes=_mapped(o.attributes, take)) if is_array(*o.attributes.values()) else o
            for o in block.operators
        ]
    )
    return replace(block, operators=operators)


def _mapped(attributes: Mapping[str, Any], take: Any) -> Mapping[str, Any]:
    return MappingProxyType({key: take(value) for key, value in attributes.items()})
