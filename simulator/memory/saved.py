"""What the forward pass keeps for the backward pass."""

from __future__ import annotations

from peakline.memory.lifetimes import Program, unroll
from peakline.models.dims import Dim
from peakline.models.graph import Graph

__all__ = ["saved_bytes"]


def saved_bytes(graph: Graph | Program) -> Dim:
    """Bytes of activations alive between the end of the forward pass and the beginning of the backward pass.

    These are the storages of role `activation` that forward operators make and that are used afterwards: what autograd
    saves, and what the program still holds (the loss, logits kept in a variable). Parameters, inputs and other tensors
    that exist anyway are not counted though autograd refers to them, nor is what the step before left. With several
    microbatches (gradient accumulation) it is the first one's. An array in a sweep.

    Args:
        graph: a training step, or its unrolled program.

    Raises:
        ValueError: the graph has no backward pass after its forward pass.
    """
    program = unroll(graph) if isinstance(graph, Graph) else graph
    phases = [step.operator.phase for step in program.steps]
    begin = next((i for i, phase in enumerate(phases) if phase in ("backward", "recompute")), len(phases))
    if begin == len(phases) or "forward" not in phases[:begin]:
        raise ValueError(f"graph {program.graph.name!r} has no backward pass after a forward pass: nothing is saved")
    total: Dim = 0
    for key, storage in enumerate(program.storages):
        if 0 <= program.births[key] < begin <= program.deaths[key] and storage.tensor.role == "activation":
            total = total + program.sizes[key]
    return total
