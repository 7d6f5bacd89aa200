"""Activation recomputation: forward operators run again in the backward pass instead of keeping their outputs.

A *region* is a run of forward operators recomputed together (a layer under full checkpointing, the score matrix under
selective). Only its inputs stay saved. Before backward first needs a tensor of the region, the operators that lead to
any tensor backward needs are run again, and no others: `torch.utils.checkpoint(use_reentrant=False)` stops as soon
as the last needed tensor exists. Sources: arXiv:1604.06174; selective: arXiv:2205.05198 §4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Literal, TypeAlias

from peakline.models.graph import Block, Graph, Operator, Tensor

__all__ = ["POLICIES", "Policy", "recompute", "regions"]

Policy: TypeAlias = Literal["none", "full", "selective"]
POLICIES = ("none", "full", "selective")

_SELECTIVE = frozenset(
    {"attention_scores", "scale", "softmax", "dropout", "add", "cast", "tanh", "attention_values", "repeat"}
)


def regions(block: Block, policy: Policy, has_families: bool) -> list[list[Operator]]:
    """The runs of operators of a forward block that the policy recomputes.

    `full`: each layer of a repeated block; in a graph without repeated blocks, each module two levels deep
    (`layer1.0`, `features.3`). `selective`: the operators between q, k, v and the attention's output.
    """
    if policy == "none":
        return []
    if policy == "selective":
        runs = groupby(block.operators, key=lambda o: o.type in _SELECTIVE and "core_attention" in o.module.split("."))
        return [list(run) for inside, run in runs if inside]
    if block.family is not None:
        layers = groupby(block.operators, key=lambda o: _position(block.family or "", o))
        return [list(run) for _, run in layers]
    if has_families:
        return []
    runs_by_module = groupby(block.operators, key=lambda o: ".".join(o.module.split(".")[:2]))
    return [list(run) for module, run in runs_by_module if "." in module]


def _position(family: str, operator: Operator) -> str:
    """Which layer of its group an operator belongs to, in a family of several layers per repeat (`layers@0/2`)."""
    return operator.module[len(family) + 1 :].split(".")[0] if "/" in family else ""


def recompute(
    forward: Graph, backward: Sequence[Block], tensors: dict[str, Tensor], policy: Policy, suffix: str = ""
) -> list[Block]:
    """Rewrite backward blocks so that they read recomputed tensors; declares the new tensors in `tensors`."""
    has_families = bool(forward.families)
    groups = [(block.family, region) for block in forward.blocks for region in regions(block, policy, has_families)]
    result = []
    for block in backward:
        for family, region in groups:
            if family == block.family:
                block = _recompute_region(block, region, tensors, suffix)
        result.append(block)
    return result


def _recompute_region(block: Block, region: list[Operator], tensors: dict[str, Tensor], suffix: str) -> Block:
    """Only the region's own gradients read what is run again; an outside reader keeps the region's output itself."""
    made = {o for operator in region for o in operator.outputs}
    names = {operator.name for operator in region}
    readers = [
        i
        for i, operator in enumerate(block.operators)
        if not made.isdisjoint(operator.inputs) and operator.name.rpartition(".backward")[0] in names
    ]
    if not readers:
        return block
    needed = {name for i in readers for name in block.operators[i].inputs if name in made}
    needed |= {tensors[n].storage or n for n in needed} & made
    again: list[Operator] = []
    for operator in reversed(region):
        if not needed.isdisjoint(operator.outputs):
            again.insert(0, operator)
            needed.update(n for n in operator.inputs if n in made)
    renamed = {o: f"{o}.recomputed{suffix}" for operator in again for o in operator.outputs}
    for old, new in renamed.items():
        tensor = tensors[old]
        storage = renamed.get(tensor.storage, tensor.storage) if tensor.storage else None
        tensors[new] = replace(tensor, name=new, storage=storage)

    def rename(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(renamed.get(n, n) for n in names)

    clones = tuple(
        replace(
            operator,
            name=f"{operator.name}.recomputed{suffix}",
            inputs=rename(operator.inputs),
            outputs=rename(operator.outputs),
            phase="recompute",
        )
        for operator in again
    )
    first, own = _first_unpacking(block, region), set(readers)
    rest = tuple(
        replace(operator, inputs=rename(operator.inputs)) if i in own else operator
        for i, operator in enumerate(block.operators[first:], first)
    )
    return replace(block, operators=block.operators[:first] + clones + rest)


def _first_unpacking(block: Block, region: list[Operator]) -> int:
    """Position of the first backward node of the region that unpacks a saved tensor, its own weight included.

    A node unpacks everything it saved before it computes anything, and any tensor saved inside the region, a parameter
    too, is one that the checkpoint packed: its unpacking starts the recomputation (`_checkpoint_hook.unpack_hook`,
    torch/utils/checkpoint.py).
    """
    packed = {name for operator in region for name in (*operator.inputs, *operator.outputs)}
    names = {operator.name for operator in region}
    start, node = 0, ""
    for position, operator in enumerate(block.operators):
        owner = operator.name.rpartition(".backward")[0]
        if owner != node:
            start, node = position, owner
        if node in names and not packed.isdisjoint(operator.inputs):
            break
    return start
