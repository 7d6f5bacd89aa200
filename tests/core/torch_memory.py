"""What a real PyTorch step does to memory, event by event, on a CPU; and the same step as peakline sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from peakline.memory.lifetimes import unroll
from peakline.memory.live import live_peak, occupancy
from peakline.models.builder import GraphBuilder
from peakline.models.graph import Graph, Tensor
from peakline.models.transforms.training import train


def storage_bytes(tensors: Iterable[Any]) -> int:
    """Bytes of the distinct storages of torch tensors."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def memory_events(run: Callable[[], object]) -> list[int]:
    """Bytes of each allocation (positive) and free (negative) of `run`, as `torch.profiler` records them."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    assert recorded.profiler is not None
    tree = recorded.profiler.kineto_results.experimental_event_tree()
    found = [
        (event.start_time_ns, event.extra_fields.alloc_size)
        for event in _walk(tree)
        if type(event.extra_fields).__name__ == "_ExtraFields_Allocation"
    ]
    return [size for _, size in sorted(found, key=lambda pair: pair[0])]


def _walk(events: Iterable[Any]) -> Iterator[Any]:
    for event in events:
        yield event
        yield from _walk(event.children)


def rise(run: Callable[[], object]) -> int:
    """The most bytes that `run` adds to what is allocated when it starts, in steady state (after one warm-up)."""
    run()
    live = peak = 0
    for size in memory_events(run):
        live += size
        peak = max(peak, live)
    return peak


def saved_bytes(run: Callable[[], Any], own: Iterable[Any]) -> int:
    """Bytes of the storages autograd keeps during `run`, without those of `own` (parameters, buffers)."""
    import torch

    mine = {t.untyped_storage().data_ptr() for t in own}
    kept = []

    def pack(t: Any) -> Any:
        if t.untyped_storage().data_ptr() not in mine:
            kept.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        result = run()
    assert result is not None
    return storage_bytes(kept)


# ---- what peakline says ---------------------------------------------------------------------------------------
def step_graph(
    build: Callable[[GraphBuilder], Tensor], kind: str = "fp32", autocast: str | None = None, **how: Any
) -> Graph:
    """A training step of a network whose `build` writes it and returns the loss; `how` goes to `train`."""
    b = GraphBuilder("test", kind=kind, training=True, autocast=autocast)
    loss = build(b)
    return train(b.graph(), loss.name, **{"optimizer": None, **how})


def predicted_rise(graph: Graph) -> int:
    """peakline's live peak above what exists before the step."""
    program = unroll(graph)
    before = sum(int(program.sizes[key]) for key in program.resident)
    return int(live_peak(occupancy(program)).bytes) - before


def predicted_saved(graph: Graph) -> int:
    """Bytes of the storages that the forward pass makes, or is given as inputs, and that the backward pass reads."""
    program = unroll(graph)
    before: set[int] = {k for k in program.resident if program.storages[k].tensor.role == "input"}
    kept: set[int] = set()
    for step in program.steps:
        if step.operator.phase == "forward":
            before.update(step.makes)
        elif step.operator.type != "release":
            kept |= before.intersection(step.touches)
    return sum(int(program.sizes[key]) for key in kept)
