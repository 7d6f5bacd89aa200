"""Recognise repeated layers: from a program written out operator by operator to blocks and families.

    fold(captured)          # 60,000 operators of an 80-layer model → a few hundred

1. `periods` finds runs of operators that repeat in kind and size, `families` ties together those that walk over the
   same layers (forward, recomputation, backward, a loop over parameters). Each set of layers is a *segment*.
2. `homes` gives every tensor its place: an instance of a family's tensor, or a tensor of its own.
3. `references` words every use in the graph's language: this layer's instance, a tensor outside, a carry from the layer
   executed before, all layers (`[*]`), the layer executed last. A use that has no words says where its segment must be
   cut; after a cut everything is tried again.
4. What comes out is compared with what went in, operator by operator; if anything differs, nothing is folded.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from peakline.models.capture.emit import emit
from peakline.models.capture.families import Segment, segments
from peakline.models.capture.homes import Homes, Program
from peakline.models.capture.periods import Run, find_runs
from peakline.models.capture.references import References
from peakline.models.capture.same import same_program
from peakline.models.graph import Graph

__all__ = ["fold"]

_ROUNDS = 12
"""Times that segments are cut."""

_ATTEMPTS = 3
"""Sets of runs that are tried."""


def fold(graph: Graph) -> Graph:
    """The same program with repeated layers described once.

    The result executes the same operators in the same order on storages of the same sizes, births and deaths as the
    flat graph. Its names are those that flattening turns back into the flat ones wherever these are numbered by layer
    (`model.layers.3.mlp.up.out`); others are made up, unique. Within an operator that takes lists (foreach
    optimizers, releases), inputs may come in another order: layer by layer becomes tensor by tensor.

    Args:
        graph: any graph that is well formed (`Graph.check`); one with families is flattened first.

    Returns the graph itself where nothing repeats.
    """
    if len(graph.blocks) != 1 or graph.blocks[0].repeat != 1 or graph.blocks[0].times != 1 or graph.families:
        graph = graph.flatten()
    with _no_collection():
        return _folded(graph)


def _folded(graph: Graph) -> Graph:
    program = Program(graph)
    modules = [o.module for o in program.operators]
    without: set[int] = set()
    for _ in range(_ATTEMPTS):
        runs = find_runs(program.tokens, modules, without)
        folded = _described_once(graph, program, runs)
        if folded is not graph or not runs:
            return folded
        without.add(min(run.period for run in runs))  # steps of a loop may stand in the way of layers
    return graph


def _described_once(graph: Graph, program: Program, runs: list[Run]) -> Graph:
    """The graph with those runs folded; itself if no references have words."""
    candidates = segments(runs, program.touched, program.maker)
    for _ in range(_ROUNDS):
        candidates = [s for s in candidates if s.repeat >= 2]
        if not candidates:
            return graph
        homes = Homes(program, candidates)
        references = References(homes)
        if not references.cuts:
            folded = emit(references)
            return folded if same_program(graph, folded, references) else graph
        candidates = _cut(candidates, references.cuts, references.groups)
    return graph


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection meanwhile: nothing here is cyclic, and its passes over a large graph double the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _cut(candidates: list[Segment], cuts: dict[int, set[int]], groups: dict[int, int]) -> list[Segment]:
    """Segments cut where their references ask for it; one that would fall into crumbs is given up.

    Layers that alternate are put together, as many as come back (`groups`).
    """
    result: list[Segment] = []
    for number, segment in enumerate(candidates):
        places = cuts.get(number, set())
        if not places:
            result.append(segment)
        elif groups.get(number, 0) > 1 and segment.repeat >= 2 * groups[number]:
            result.append(segment.grouped(groups[number]))
        elif len(places) <= max(3, segment.repeat // 4) and -1 not in places:
            result += segment.cut(places)
    return result
