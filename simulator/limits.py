"""What cannot be estimated, refused before any work is done: too much to count, or arithmetic the device lacks."""

from __future__ import annotations

import numpy as np

from peakline.hardware import Device
from peakline.models.graph import Graph

__all__ = ["MOST_BYTES", "MOST_OPERATORS", "refuse_impossible", "refuse_uncountable", "refuse_unsupported"]

MOST_OPERATORS = 1_000_000
"""Executed operators, layers unrolled: two hundred times those of an 8-billion-parameter training step."""

MOST_BYTES = 1 << 62
"""Bytes of all tensors together: beyond this, sums in 64-bit integers would wrap around."""


def refuse_impossible(graph: Graph, device: Device) -> None:
    """Refuse a workload that is too large to count or whose format the device does not compute in.

    Raises:
        UnsupportedDtype: the workload's `dtype` or `autocast` is not among the device's formats, which are listed.
        ValueError: more than `MOST_OPERATORS` operators or `MOST_BYTES` bytes.
    """
    refuse_unsupported(graph, device)
    refuse_uncountable(graph)


def refuse_unsupported(graph: Graph, device: Device) -> None:
    """Refuse a workload whose format the device does not compute in. Raises UnsupportedDtype."""
    for field in ("dtype", "autocast"):
        wanted = graph.workload.get(field)
        if wanted is not None and device.compute is not None and not device.supports(wanted):
            if device.kind == "mcu" and wanted == "int4" and device.supports("int8"):
                continue  # packed in memory, multiplied as int8 (CMix-NN, IEEE TCAS-II 67, 2020)
            device.peak(wanted)  # raises, listing the formats there are


def refuse_uncountable(graph: Graph) -> None:
    """Refuse a workload of more than `MOST_OPERATORS` operators or `MOST_BYTES` bytes. Raises ValueError."""
    operators = sum(len(block.operators) * block.repeat for block in graph.blocks)
    if operators > MOST_OPERATORS:
        raise ValueError(f"{graph.name}: {operators:,} operators in a step are too many (at most {MOST_OPERATORS:,})")
    total = _bytes_at_most(graph)
    if total >= MOST_BYTES:
        sizes = ", ".join(
            f"{k} {graph.workload[k]}" for k in ("batch", "seq", "context", "image") if k in graph.workload
        )
        raise ValueError(f"{graph.name}: {sizes or 'sizes'}: too large, {total:.2g} bytes of tensors (at most 2**62)")


def _bytes_at_most(graph: Graph) -> float:
    """An upper bound on the bytes of all tensors together, in floating point, where nothing wraps around."""
    families = graph.families
    largest: dict[int, float] = {}  # most tensors share their arrays
    total = 0.0
    for tensor in graph.tensors.values():
        if tensor.storage is None:
            layers = families.get(tensor.family, 1) if tensor.family else 1
            bits = tensor.dtype.bits + (tensor.dtype.scale_bits / tensor.dtype.block if tensor.dtype.block else 0)
            elements = 1.0
            for d in tensor.shape:
                if not isinstance(d, np.ndarray):
                    elements *= float(d)
                    continue
                if id(d) not in largest:
                    largest[id(d)] = float(d.max())
                elements *= largest[id(d)]
            total += layers * elements * bits / 8
    return total
