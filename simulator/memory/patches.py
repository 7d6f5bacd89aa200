"""Patch-based inference: the first operators run patch by patch, so that no large feature map exists as a whole.

A patch of the stage's output needs, operator by operator backwards, the window of each input that its positions look
at: rows a·s − p … (b − 1)·s − p + k of a convolution, cut at the image's border. Neighbouring patches overlap in these
windows (the halo), and what lies in an overlap is computed once for each (J. Lin et al., "MCUNetV2: memory-efficient
patch-based inference for tiny deep learning", arXiv:2110.15352, §3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from peakline.memory.lifetimes import Program, Step, unroll
from peakline.memory.micro import LIBRARIES, convolution_of
from peakline.memory.micro_spans import overwritten
from peakline.models.dtypes import nbytes
from peakline.models.graph import Graph, Tensor, base_name

__all__ = ["PatchPlan", "Window", "cut", "needed_windows", "patch_plan", "plan_of", "space"]


class Window(NamedTuple):
    """Rows [top, bottom) and columns [left, right) of a feature map."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def positions(self) -> int:
        """Rows times columns."""
        return (self.bottom - self.top) * (self.right - self.left)

    def union(self, other: Window) -> Window:
        """The smallest window around both."""
        return Window(
            min(self.top, other.top), max(self.bottom, other.bottom), min(self.left, other.left),
            max(self.right, other.right),
        )  # fmt: skip


@dataclass(frozen=True)
class PatchPlan:
    """What running the first `stage` operators in `patches` × `patches` patches costs and saves.

    Attributes:
        patches, stage: as asked; `stage` counts operators of the program.
        peak: bytes of tensors alive at once; the larger of `patch_peak` and `rest_peak`.
        patch_peak: while patches run: the largest patch's tensors and the assembled output of the stage.
        rest_peak: afterwards, layer by layer.
        whole_peak: without patches.
        macs, whole_macs: multiply-accumulates with and without patches.
    """

    patches: int
    stage: int
    peak: int
    patch_peak: int
    rest_peak: int
    whole_peak: int
    macs: int
    whole_macs: int

    @property
    def overhead(self) -> float:
        """Share of multiply-accumulates done again in halos."""
        return self.macs / self.whole_macs - 1.0


def patch_plan(
    graph: Graph, patches: int, stage: int, *, runtime: str = "tinyengine", stream: bool = True
) -> PatchPlan:
    """Peak bytes and multiply-accumulates of `graph` with its first `stage` operators run per patch.

    Args:
        graph: an inference of convolutions and additions up to `stage`, batch 1.
        patches: patches along each side.
        stage: number of operators run per patch; 0 for none.
        runtime: whose rule for outputs over inputs holds (`peakline.memory.micro`).
        stream: the image arrives patch by patch (decoded or captured by regions); else it stays in SRAM as a whole.

    Raises:
        ValueError: a stage beyond the program, an operator in it that is neither a convolution nor an addition, or
            more patches than positions.
    """
    return plan_of(unroll(graph), patches, stage, runtime, stream)


def plan_of(program: Program, patches: int, stage: int, runtime: str, stream: bool = True) -> PatchPlan:
    """`patch_plan` of a program that is unrolled already."""
    if runtime not in LIBRARIES:
        raise ValueError(f"runtime: must be one of {', '.join(LIBRARIES)}; got {runtime!r}")
    if not 0 <= stage < len(program.steps):
        raise ValueError(f"stage: must be between 0 and {len(program.steps) - 1}; got {stage}")
    if patches < 1:
        raise ValueError(f"patches: must be at least 1; got {patches}")
    full, macs = _whole(program, runtime)
    if stage == 0 or patches == 1:
        return PatchPlan(patches, stage, max(full), 0, max(full), max(full), sum(macs), sum(macs))
    last = program.steps[stage - 1].makes[0]
    height, width = space(program, last)
    if patches > min(height, width):
        raise ValueError(f"patches: must be at most {min(height, width)} after operator {stage}; got {patches}")
    assembled = program.sizes[last]
    largest, done = 0, 0
    for rows in cut(height, patches):
        for columns in cut(width, patches):
            windows = needed_windows(program, stage, last, Window(*rows, *columns))
            image = 0 if stream else _image_bytes(program)
            live = max(_live(program, p, runtime, windows, stream) for p in range(stage))
            largest = max(largest, live + int(assembled) + image)
            done += sum(_macs(program, program.steps[p], windows) for p in range(stage))
    rest = max(full[stage:])
    return PatchPlan(
        patches, stage, max(largest, rest), largest, rest, max(full), done + sum(macs[stage:]), sum(macs)
    )  # fmt: skip


def _whole(program: Program, runtime: str) -> tuple[list[int], list[int]]:
    """(live bytes, multiply-accumulates) of every operator without patches; remembered with the program."""
    known: dict[str, tuple[list[int], list[int]]] = program.__dict__.setdefault("_without_patches", {})
    if runtime not in known:
        live = [_live(program, p, runtime, None) for p in range(len(program.steps))]
        known[runtime] = live, [_macs(program, step, None) for step in program.steps]
    return known[runtime]


def cut(size: int, parts: int) -> list[tuple[int, int]]:
    """`parts` ranges that cover `size`, as equal as possible."""
    return [(i * size // parts, (i + 1) * size // parts) for i in range(parts)]


def needed_windows(program: Program, stage: int, last: int, window: Window) -> dict[int, Window]:
    """The window of every storage that a patch of the stage's output depends on."""
    needed = {last: window}
    for step in reversed(program.steps[:stage]):
        target = needed.get(step.makes[0]) if step.makes else None
        if target is None:
            continue
        for key in step.touches:
            if key in step.makes or program.storages[key].tensor.role == "parameter":
                continue
            found = _input_window(program, step, key, target)
            needed[key] = needed[key].union(found) if key in needed else found
    return needed


def _input_window(program: Program, step: Step, key: int, target: Window) -> Window:
    height, width = space(program, key)
    if step.operator.type == "add":
        return target
    conv = convolution_of(program, step)
    if conv is None:
        raise ValueError(
            f"stage: {step.name} ({step.operator.type}) cannot be run per patch: only convolutions and add"
        )
    strides = step.operator.attributes.get("stride", (1, 1))
    strides = (strides, strides) if isinstance(strides, int) else tuple(strides)
    padding = conv.padding if conv.explicit else _same(program, step, conv.kernel, strides)

    def reach(a: int, b: int, axis: int, size: int) -> tuple[int, int]:
        low = a * strides[axis] - padding[axis]
        return max(low, 0), min((b - 1) * strides[axis] - padding[axis] + conv.kernel[axis], size)

    return Window(*reach(target.top, target.bottom, 0, height), *reach(target.left, target.right, 1, width))


def _same(program: Program, step: Step, kernel: tuple[int, int], strides: tuple[int, int]) -> tuple[int, int]:
    """Padding before the first row and column under TensorFlow's `SAME`."""
    inside, outside = space(program, step.touches[0]), space(program, step.makes[0])
    totals = [max((o - 1) * s + k - i, 0) for i, o, s, k in zip(inside, outside, strides, kernel)]
    return totals[0] // 2, totals[1] // 2


def _live(program: Program, position: int, runtime: str, windows: dict[int, Window] | None, stream: bool = True) -> int:
    """Bytes of activations alive while an operator runs; with `windows`, those of one patch."""
    step = program.steps[position]
    total = 0
    for key in _alive(program)[position]:
        if not (windows is not None and not stream and program.storages[key].tensor.role == "input"):
            total += _bytes(program, key, windows)
    pair = overwritten(program, position, step, LIBRARIES[runtime])
    if pair is not None:
        total -= min(_bytes(program, key, windows) for key in pair)
    return total


def _alive(program: Program) -> list[list[int]]:
    """Inputs and activations that each step has to hold; remembered with the program."""
    known: list[list[int]] | None = program.__dict__.get("_held")
    if known is None:
        uses = {key: p for p, step in enumerate(program.steps) for key in step.touches}
        known = [[] for _ in program.steps]
        for key, (born, dies) in enumerate(zip(program.births, program.deaths)):
            role = program.storages[key].tensor.role
            first, last = (0, uses.get(key, -1)) if role == "input" else (born, dies)
            if role == "input" or (role == "activation" and born >= 0):
                for position in range(first, min(last + 1, len(known))):
                    known[position].append(key)
        program.__dict__["_held"] = known
    return known


def _bytes(program: Program, key: int, windows: dict[int, Window] | None) -> int:
    if windows is None:
        return int(program.sizes[key])
    tensor = program.storages[key].tensor
    window = windows.get(key)
    return 0 if window is None else int(nbytes(int(tensor.shape[1]) * window.positions, tensor.dtype))


def _macs(program: Program, step: Step, windows: dict[int, Window] | None) -> int:
    """Multiply-accumulates of an operator with weights over the output positions it computes."""
    if not step.makes or len(step.operator.inputs) < 2:
        return 0
    weight = program.graph.tensors[base_name(step.operator.inputs[1])]
    if weight.role != "parameter":
        return 0
    out: Tensor = program.storages[step.makes[0]].tensor
    each = 1
    for size in weight.shape[1:]:
        each *= int(size)
    if windows is None:
        return int(out.elements) * each
    window = windows.get(step.makes[0])
    return 0 if window is None else int(out.shape[1]) * window.positions * each


def space(program: Program, key: int) -> tuple[int, int]:
    """Height and width of a feature map."""
    shape = program.storages[key].tensor.shape
    return int(shape[2]), int(shape[3])


def _image_bytes(program: Program) -> int:
    return sum(int(program.sizes[k]) for k in program.resident if program.storages[k].tensor.role == "input")
