"""How a workload came about, so that it can be built once more with something changed.

A graph itself says what is computed, not how to change it: with which options a builder wrote it, from which module it
was captured. That is remembered beside the graph, for as long as the process holds it; a graph read from a file, or
changed afterwards, has no origin.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from peakline.models.graph import Graph

__all__ = ["Origin", "origin", "remember"]


@dataclass(frozen=True)
class Origin:
    """What made a graph.

    Attributes:
        kind: `built` from a model's description, or `captured` from a program.
        build: builds the graph; takes the options by name.
        options: what it was given.
    """

    kind: Literal["built", "captured"]
    build: Callable[..., Graph]
    options: Mapping[str, Any]

    def again(self, **changes: Any) -> Graph:
        """The same workload with other options."""
        return self.build(**{**self.options, **changes})


_ORIGINS: dict[int, Origin] = {}


def remember(graph: Graph, made: Origin) -> Graph:
    """Remember where `graph` came from, and return it; its program lives as long as the graph does."""
    key = id(graph)
    _ORIGINS[key] = made
    weakref.finalize(graph, _ORIGINS.pop, key, None).atexit = False
    return graph


def origin(graph: Graph) -> Origin | None:
    """Where a graph came from; None if this process did not make it."""
    return _ORIGINS.get(id(graph))
