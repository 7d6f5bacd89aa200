"""When every tensor needs its place in a library's arena: paddings as operators, outputs over inputs, windows.

Time runs in half steps: operator p copies its input into a padded tensor at 2p, where the library pads, and computes at
2p + 1. An output that overwrites its input appears at 2p + 2; an input that an output grows over is gone from 2p + 1.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from peakline.memory.lifetimes import Program, Step
from peakline.memory.micro import Library, convolution_of
from peakline.models.dims import Dim
from peakline.models.dtypes import nbytes

__all__ = ["Span", "library_spans", "overwritten"]

Span: TypeAlias = tuple[str, Any, int, int]
"""(name, bytes, first half step, last half step)."""


def overwritten(program: Program, position: int, step: Step, library: Library) -> tuple[int, int] | None:
    """(input, output) storages where the output takes the input's place, else None.

    Both must be of no further use apart from it: the input dies here. Depthwise convolutions never widen.
    """
    if library.overwrites == "none" or len(step.makes) != 1:
        return None
    conv = convolution_of(program, step)
    if conv is None or not (conv.depthwise or library.overwrites == "all"):
        return None
    x, y = step.touches[0], step.makes[0]
    dies = _last_uses(program).get(x, -1) == position
    return (x, y) if dies else None


def library_spans(program: Program, constants: frozenset[int], library: Library) -> list[Span]:
    """Spans of all tensors, padded copies (`.pad`) and windows (`.window`) under the library's rules.

    In the order in which a planner that takes the last of equals first places them as the library does.
    """
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    extra: list[Span] = []
    uses = _last_uses(program)
    for key in program.resident:
        if key not in constants:
            first[key] = 0
            last[key] = 2 * len(program.steps)
            if program.storages[key].tensor.role == "input":
                last[key] = 2 * uses.get(key, len(program.steps)) + 1
    for position, step in enumerate(program.steps):
        for key in step.makes:
            first[key] = 2 * position + 1
            last[key] = max(2 * uses.get(key, position) + 1, 2 * position + 1)
    for position, step in enumerate(program.steps):
        conv = convolution_of(program, step)
        if conv is None:
            continue
        x = step.touches[0]
        ends_here = uses.get(x, -1) == position and x in last
        if library.pads and conv.explicit and max(conv.padding) > 0:
            size = nbytes(conv.padded * _images(program, x), program.storages[x].tensor.dtype)
            extra.append((f"{step.name}.pad", size, 2 * position, 2 * position + 1))
            if ends_here:
                last[x] = 2 * position
        window = library.window(conv)
        if not (np.ndim(window) == 0 and window == 0):
            extra.append((f"{step.name}.window", window, 2 * position + 1, 2 * position + 1))
        pair = overwritten(program, position, step, library)
        if pair is not None:
            if bool(np.all(np.asarray(program.sizes[pair[1]]) > np.asarray(program.sizes[x]))):
                last[x] = max(2 * position, first[x])
            else:
                first[pair[1]] = 2 * position + 2
                last[pair[1]] = max(last[pair[1]], 2 * position + 2)
    spans = [(program.storages[key].name, program.sizes[key], first[key], last[key]) for key in first]
    found = [span for span in (*spans, *extra) if not (np.ndim(span[1]) == 0 and span[1] == 0)]
    return found[::-1] if library.planner == "oldest" else found


def _images(program: Program, key: int) -> Dim:
    return program.storages[key].tensor.shape[0]


def _last_uses(program: Program) -> dict[int, int]:
    """The last step that touches each storage; remembered with the program."""
    known: dict[int, int] | None = program.__dict__.get("_last_uses")
    if known is None:
        known = {key: position for position, step in enumerate(program.steps) for key in step.touches}
        program.__dict__["_last_uses"] = known
    return known
