"""From a forward graph to a training step: loss, backward, recomputation, gradient accumulation, optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from peakline.models.dtypes import dtype
from peakline.models.graph import Block, Carry, Graph, Operator, Phase, Tensor
from peakline.models.transforms.gradients import differentiate
from peakline.models.transforms.optimizer import add_optimizer
from peakline.models.transforms.recompute import POLICIES, Policy, recompute

__all__ = ["train"]


def train(
    forward: Graph,
    loss: str,
    *,
    optimizer: str | None = "adamw",
    implementation: str | None = None,
    recomputation: Policy = "none",
    accumulation: int = 1,
    master_weights: bool = False,
    set_to_none: bool = True,
    seed: str | None = None,
    workload: Mapping[str, Any] | None = None,
) -> Graph:
    """A training step of `forward`; the loss stays until its end, as the variable of a training loop holds it.

    Args:
        forward: the model with its loss, built with `training=True`.
        loss: name of the loss tensor.
        optimizer: name, or None for forward and backward only (gradients then stay).
        implementation: `foreach` (CUDA's default), `fused` or `loop`.
        recomputation: `none`, `full` (each layer) or `selective` (the unfused attention core).
        accumulation: microbatches per step; all have the forward graph's batch.
        master_weights: float32 master copies, states and gradient buffers beside low-precision parameters
            (18 bytes per parameter with Adam, as Megatron-LM counts them).
        set_to_none: gradients are freed after the step; otherwise their buffers stay and are added into.
        seed: tensor to use as the loss's gradient where the loss is not a scalar.
        workload: what to say of the step in `Graph.workload`, besides what the forward graph says.

    Raises:
        ValueError: an unknown policy, or fewer than one microbatch.
    """
    if recomputation not in POLICIES:
        raise ValueError(f"recompute {recomputation!r} is unknown; accepted: {', '.join(POLICIES)}")
    if accumulation < 1:
        raise ValueError(f"accumulation must be at least 1, not {accumulation}")
    tensors = dict(forward.tensors)
    into: dict[str, str] = {}
    if master_weights or not set_to_none:
        into = _gradient_buffers(tensors, "fp32" if master_weights else None)
    base = replace(forward, tensors=tensors)
    first = differentiate(base, loss, into=into, seed=seed)
    tensors = first.tensors
    for parameter, buffer in into.items():
        if parameter not in first.of:  # nothing reached it: its `.grad` stays None
            del tensors[buffer]
    blocks = [*forward.blocks, *recompute(forward, first.blocks, tensors, recomputation)]
    if accumulation > 1:
        later = _renamed(replace(base, tensors=tensors), "+")
        second = differentiate(later, loss + "+", into=first.of, suffix="+", seed=seed)
        tensors = second.tensors
        again = [*later.blocks, *recompute(later, second.blocks, tensors, recomputation, "+")]
        blocks += [replace(block, times=accumulation - 1) for block in again]
    last_phase: Phase = "backward" if optimizer is None else "optimizer"
    if optimizer is not None:
        blocks += add_optimizer(
            optimizer,
            implementation,
            tensors,
            first.of,
            forward.families,
            master=master_weights,
            free_gradients=set_to_none and not master_weights,
        )
    else:
        grads = tuple(f"{g}[*]" if tensors[g].family else g for g in dict.fromkeys(first.of.values()))
        held = Operator("hold_gradients", "release", grads, (), phase="backward")
        blocks.append(Block("gradients", (held,)))
    blocks.append(Block("end of step", (Operator("hold_loss", "release", (loss,), (), phase=last_phase),)))
    notes = forward.notes
    if recomputation != "none" and not any(o.phase == "recompute" for block in blocks for o in block.operators):
        notes = (*notes, _NOTHING_RECOMPUTED[recomputation])
    graph = replace(
        forward, tensors=tensors, blocks=tuple(blocks), workload={**forward.workload, **(workload or {})}, notes=notes
    )
    graph.check()
    return graph


_NOTHING_RECOMPUTED = {
    "full": "recompute full: the model has no repeated layers or modules to recompute, so nothing is",
    "selective": "recompute selective: it leaves out the score matrix of attention='math' or 'eager'; "
    "fused attention never keeps it, so nothing is recomputed",
}


def _gradient_buffers(tensors: dict[str, Tensor], kind: str | None) -> dict[str, str]:
    """A gradient buffer per trainable leaf that exists before the step."""
    into = {}
    for tensor in list(tensors.values()):
        if tensor.trainable:
            name = f"{tensor.name}.main_grad"
            tensors[name] = replace(
                tensor,
                name=name,
                role="gradient",
                trainable=False,
                dtype=dtype(kind) if kind else tensor.dtype,
            )
            into[tensor.name] = name
    return into


def _renamed(graph: Graph, suffix: str) -> Graph:
    """The forward graph again with fresh activations: the program of a later microbatch."""
    made = {o for _, operator in graph.operators() for o in operator.outputs}
    made |= {port for block in graph.blocks for port in block.carries}

    def rename(name: str) -> str:
        return name + suffix if name in made else name

    tensors = dict(graph.tensors)
    for name in made:
        tensor = graph.tensors[name]
        storage = rename(tensor.storage) if tensor.storage else None
        tensors[name + suffix] = replace(tensor, name=name + suffix, storage=storage)
    blocks = []
    for block in graph.blocks:
        operators = tuple(
            replace(
                o,
                name=o.name + suffix,
                inputs=tuple(map(rename, o.inputs)),
                outputs=tuple(map(rename, o.outputs)),
            )
            for o in block.operators
        )
        carries = {
            rename(port): Carry(rename(carry.initial), rename(carry.following)) for port, carry in block.carries.items()
        }
        blocks.append(replace(block, name=block.name + suffix, operators=operators, carries=carries))
    return replace(graph, tensors=tensors, blocks=tuple(blocks))
