"""A graph whose first operators run patch by patch, as a program of its own (`patches` says what each patch needs).

Every patch gets operators over its windows; the last of them writes into the stage's assembled output. What follows is
as before. Since the result is a graph like any other, its arena, its time and its traffic are those of any other:
halos cost time because they are computed again, and memory because they are held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from peakline.hardware import Device
from peakline.memory.lifetimes import Program, unroll
from peakline.memory.micro import LIBRARIES
from peakline.memory.patches import Window, cut, needed_windows, plan_of, space
from peakline.models.graph import Block, Graph, Operator, Tensor, base_name

__all__ = ["MOST_PATCHES", "patched", "stages", "ways", "with_patches"]

MOST_PATCHES = 8
"""Patches along a side up to which `auto` looks."""


TWICE = 1.0
"""Share of operations done again in halos beyond which no later stage is tried."""


def stages(graph: Graph) -> list[int]:
    """Numbers of operators after which a patched stage may end: one tensor passes on, and all before can be cut."""
    return _stages(unroll(graph))


def _stages(program: Program) -> list[int]:
    found = []
    for stage in range(1, len(program.steps)):
        step = program.steps[stage - 1]
        if step.operator.type not in ("convolution", "add") or len(step.makes) != 1:
            break
        if _crossing(program, stage) == {step.makes[0]}:
            found.append(stage)
    return found


def _crossing(program: Program, stage: int) -> set[int]:
    """Activations and inputs made before the end of a stage that something after it touches."""
    before = {key for step in program.steps[:stage] for key in (*step.makes, *step.touches)}
    after = {key for step in program.steps[stage:] for key in step.touches}
    return {key for key in before & after if program.storages[key].tensor.role in ("activation", "input")}


def ways(graph: Graph, patches: int | str, stage: int | None, runtime: str) -> Iterator[tuple[int, int, int]]:
    """(patches, stage, peak bytes of activations) to try, the one with the fewest operations done again first.

    A number of patches alone takes the stage with the lowest peak.

    Raises:
        ValueError: neither a number of patches nor `auto`, or a stage that cannot end there.
    """
    program = unroll(graph)
    accepted = _stages(program)
    if stage is not None and stage not in accepted:
        raise ValueError(f"patch_stage: after operator {stage} no stage can end; accepted: {accepted or 'none'}")
    if patches != "auto" and (isinstance(patches, bool) or not isinstance(patches, int) or patches < 1):
        raise ValueError(f"patches: must be a number of at least 1, or 'auto'; got {patches!r}")
    if not accepted:
        raise ValueError("patches: the first operators are not convolutions and additions that could be cut")
    counts = range(2, MOST_PATCHES + 1) if patches == "auto" else [int(patches)]
    plans = []
    for count in counts:
        for end in accepted if stage is None else [stage]:
            if count <= min(space(program, program.steps[end - 1].makes[0])):
                plan = plan_of(program, count, end, runtime)
                plans.append((plan.macs if patches == "auto" else plan.peak, plan.peak, count, end))
                if stage is None and plan.overhead > TWICE:
                    break  # the halos of later stages only grow
    if not plans:
        raise ValueError(f"patches: {patches} along a side are more than any stage's output has positions")
    for _, peak, count, end in sorted(plans):
        yield count, end, peak


def with_patches(
    graph: Graph, device: Device, patches: int | str, stage: int | None, fits: Callable[[Graph], bool]
) -> Graph:
    """`graph` as it runs in patches on a microcontroller: as asked, or for `auto` with the least work that fits.

    Args:
        fits: whether a graph fits the device; asked of promising ones only.

    Raises:
        ValueError: the device or its inference library does not run patches, or as `ways`.
    """
    runtime = device.mcu.runtime if device.mcu is not None else None
    if runtime not in ("tinyengine", "bare"):
        raise ValueError(
            f"patches: {runtime or device.name} does not run a network in patches; TinyEngine does: "
            "choose a microcontroller and runtime='tinyengine' (or 'bare')"
        )
    rule = runtime if runtime in LIBRARIES else "tflm"  # nothing is written over its input without a library's rules
    found = list(ways(graph, patches, stage, rule))
    if patches != "auto":
        return patched(graph, found[0][0], found[0][1])
    if stage is None and fits(graph):
        return graph
    room = device.main.capacity or 0
    for count, end, peak in found:
        if peak <= room and fits(whole := patched(graph, count, end)):
            return whole
    count, end, _ = min(found, key=lambda way: way[2])
    return patched(graph, count, end)


def patched(graph: Graph, patches: int, stage: int) -> Graph:
    """`graph` with its first `stage` operators run in `patches` × `patches` patches; the image arrives patch by patch.

    Args:
        graph: an inference of one block, batch 1.
        stage: one of `stages(graph)`.

    Raises:
        ValueError: a sweep, several images, or a stage that cannot end there.
    """
    if graph.is_sweep or graph.workload.get("batch") != 1:
        raise ValueError("patches: one image at a time; give batch 1")
    if stage not in stages(graph):
        raise ValueError(f"stage: no stage can end after operator {stage}; accepted: {stages(graph)}")
    flat = graph.flatten()
    program = unroll(flat)
    last = program.steps[stage - 1].makes[0]
    whole = program.storages[last].tensor
    tensors = dict(flat.tensors)
    inputs = {program.storages[k].tensor.name for k in program.resident if program.storages[k].tensor.role == "input"}
    for name in inputs:
        del tensors[name]
    operators = [Operator(f"{whole.name}.assemble", "zeros", (), (whole.name,))]
    height, width = space(program, last)
    number = 0
    for rows in cut(height, patches):
        for columns in cut(width, patches):
            windows = needed_windows(program, stage, last, Window(*rows, *columns))
            made = _Patch(program, windows, number, whole.name, tensors)
            operators += made.operators(stage, inputs)
            number += 1
    for name in {program.storages[k].tensor.name for step in program.steps[:stage] for k in step.makes} - {whole.name}:
        del tensors[name]
    rest = tuple(step.operator for step in program.steps[stage:])
    said = {**graph.workload, "patches": patches, "patch_stage": stage}
    note = f"the first {stage} operators run in {patches} × {patches} patches; the image arrives patch by patch"
    return replace(
        flat, tensors=tensors, blocks=(Block("patched", (*operators, *rest)),), workload=said,
        notes=(*flat.notes, note),
    )  # fmt: skip


class _Patch:
    """Names and operators of one patch."""

    def __init__(
        self, program: Program, windows: dict[int, Window], number: int, whole: str, tensors: dict[str, Tensor]
    ) -> None:
        self.program, self.number, self.whole, self.tensors = program, number, whole, tensors
        self.named: dict[str, str] = {}
        for key, window in windows.items():
            old = program.storages[key].tensor
            shape = (*old.shape[:2], window.bottom - window.top, window.right - window.left)
            name = f"{old.name}.patch{number}"
            alias = whole if old.name == whole else None
            tensors[name] = replace(old, name=name, shape=shape, role="activation", storage=alias)
            self.named[old.name] = name

    def operators(self, stage: int, inputs: set[str]) -> list[Operator]:
        """Receiving the patch of the image, and the stage's operators over its windows."""
        found = [
            Operator(f"{self.named[name]}.receive", "zeros", (), (self.named[name],))
            for name in sorted(inputs)
            if name in self.named
        ]
        for step in self.program.steps[:stage]:
            old = step.operator
            found.append(
                replace(
                    old,
                    name=f"{old.name}.patch{self.number}",
                    inputs=tuple(self.named.get(base_name(name), name) for name in old.inputs),
                    outputs=tuple(self.named.get(base_name(name), name) for name in old.outputs),
                )
            )
        return found
