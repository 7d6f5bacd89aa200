"""Estimate: peak memory, time and traffic of a workload on a device."""

from __future__ import annotations

import numpy as np

from peakline.chunks import CHUNK, in_chunks
from peakline.cost.program import ProgramCost, price_program
from peakline.hardware import Device
from peakline.hardware import device as find_device
from peakline.limits import refuse_impossible
from peakline.memory.footprint import Memory, footprint
from peakline.memory.lifetimes import unroll
from peakline.memory.micro import LIBRARIES
from peakline.memory.options import AllocatorOptions
from peakline.models.graph import Graph
from peakline.models.select import sweep_shape
from peakline.result import Estimate

__all__ = ["estimate"]


def estimate(
    graph: Graph,
    device: str | Device,
    *,
    allocator: AllocatorOptions | str | None = None,
    cuda_graph: bool = False,
    runtime: str | None = None,
    patches: int | str | None = None,
    patch_stage: int | None = None,
) -> Estimate:
    """Memory, time and traffic of `graph` on `device`.

    Args:
        graph: a workload, as `training_step`, `prefill`, `decode` or `inference` builds it; a sweep gives arrays.
        device: catalogue name, path of a device file, or a `Device`.
        allocator: settings of PyTorch's caching allocator, or a `PYTORCH_CUDA_ALLOC_CONF` string.
        cuda_graph: launches are replayed from a CUDA graph.
        runtime: inference library of a microcontroller: `tflm`, `cmsis-nn`, `x-cube-ai`, `tinyengine`, or `bare` for
            the tensors alone; None for the device's own (`mcu.runtime`).
        patches: a microcontroller runs the network's first operators in this many patches along each side, or `auto`:
            as many as it takes to fit, with as little as possible computed twice.
        patch_stage: how many operators run in patches; None for what lowers the peak most.

    Raises:
        ValueError: an unknown device, an impossible setting, or a format the device does not compute in.
    """
    found = _with_runtime(find_device(device), runtime)
    refuse_impossible(graph, found)
    if patch_stage is not None and patches is None:
        raise ValueError("patch_stage: say how many patches as well: patches=4, or patches='auto'")
    if patches is not None:
        from peakline.memory.patched import with_patches

        def fits(part: Graph) -> bool:
            memory = footprint(unroll(part), found)
            return bool(memory.device <= memory.capacity)  # patches do nothing for the flash

        graph = with_patches(graph, found, patches, patch_stage, fits)
    options = AllocatorOptions.parse(allocator) if isinstance(allocator, str) else allocator

    large = int(np.prod(sweep_shape(graph))) > CHUNK

    def evaluate(part: Graph) -> tuple[Memory, ProgramCost]:
        memory = footprint(unroll(part), found, options, replay=not large)
        return memory, price_program(part, found, cuda_graph=cuda_graph)

    memory, cost = in_chunks(graph, evaluate) if large else evaluate(graph)
    return Estimate(graph, found, memory, cost)


def _with_runtime(found: Device, runtime: str | None) -> Device:
    """The device with another inference library."""
    if runtime is None:
        return found
    if found.mcu is None:
        raise ValueError(f"runtime: {runtime!r} is an inference library of microcontrollers, and {found.name} is none")
    accepted = ("bare", *LIBRARIES)
    if runtime not in accepted:
        raise ValueError(f"runtime: must be one of {', '.join(accepted)}; got {runtime!r}")
    return found if found.mcu.runtime == runtime else find_device(found, **{"mcu.runtime": runtime})
