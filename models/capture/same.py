"""Whether a folded graph executes exactly what the flat one does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from peakline.models.capture.homes import COUNTS, Program
from peakline.models.capture.periods import frozen
from peakline.models.capture.references import References
from peakline.models.dims import same_shape
from peakline.models.flatten import Resolver
from peakline.models.graph import ALL, Block, Graph, Operator

__all__ = ["same_program"]


def same_program(flat: Graph, folded: Graph, words: References) -> bool:
    """Execute the folded graph's blocks on paper and compare, operator by operator, with the flat graph.

    Compared are types, phases, attributes, which tensors are read and made (reads within a list in any order), whose
    memory views share, and every tensor's shape, format and role.
    """
    program, home = words.program, words.homes.home
    resolve = Resolver(folded)
    number = {
        (words.names[h.segment][h.tensor], h.layer): t for t, h in home.items()
    } | {(tensor.name, 0): t for t, tensor in enumerate(program.tensors) if t not in home}  # fmt: skip
    if len(number) != len(program.tensors) or not _same_tensors(folded, words, number, resolve):
        return False
    families = {
        words.names[segment][tensor]: members
        for segment, groups in enumerate(words.homes.instances)
        for tensor, members in enumerate(groups)
    }
    carried = {name for block in folded.blocks for name in block.carries}
    family_of = {name: tensor.family for name, tensor in folded.tensors.items()}
    position, last = 0, len(program.operators)
    for block in folded.blocks:
        context = block, families, resolve, number, carried, family_of
        plans = [(o, _plan(o.inputs, *context), _plan(o.outputs, *context)) for o in block.operators]
        if position + block.repeat * len(plans) > last:
            return False
        for index in block.indices():
            for operator, reads, makes in plans:
                original = program.operators[position]
                read = _meant(reads, block, index, resolve, number)
                made = _meant(makes, block, index, resolve, number)
                if operator.type != original.type or operator.phase != original.phase:
                    return False
                listed = block.family is None and any(r.endswith(ALL) for r in operator.inputs)
                if not _equal(read, program.inputs[position], listed):
                    return False
                if made != program.outputs[position] and not _allocated_alike(program, made, position):
                    return False
                if operator.attributes is not original.attributes:
                    lengths = [folded.layers(r) if r.endswith(ALL) else 1 for r in operator.inputs] if listed else []
                    if not _same_attributes(operator, original, lengths):
                        return False
                position += 1
    return position == last


def _equal(found: tuple[int, ...], expected: tuple[int, ...], listed: bool) -> bool:
    return found == expected or (listed and sorted(found) == sorted(expected))


def _same_tensors(folded: Graph, words: References, number: Mapping[tuple[str, int], int], resolve: Resolver) -> bool:
    """Whether every instance has its flat tensor's shape, format and role, and shares the same memory."""
    program = words.program
    for (name, layer), t in number.items():
        tensor, found = program.tensors[t], folded.tensors[name]
        if layer and program.kinds[t] != program.kinds[number[name, 0]]:
            return False
        if not layer and (
            not same_shape(tensor.shape, found.shape)
            or not same_shape((tensor.bytes,), (found.bytes,))
            or (tensor.dtype, tensor.role, tensor.trainable) != (found.dtype, found.role, found.trainable)
        ):
            return False
        owner = -1
        if found.storage is not None:
            owner = number[resolve.one(found.storage, Block("", (), family=found.family), layer)]
        if owner != program.storage[t]:
            return False
    return True


def _allocated_alike(program: Program, made: tuple[int, ...], position: int) -> bool:
    """Whether an operator makes the same tensors, those with memory of their own in the same order."""
    expected = program.outputs[position]
    fresh = [[t for t in side if program.storage[t] < 0] for side in (made, expected)]
    return fresh[0] == fresh[1] and sorted(made) == sorted(expected)


_Plan: TypeAlias = "list[tuple[int, ...] | int | str]"


def _plan(
    references: Sequence[str],
    block: Block,
    families: Mapping[str, tuple[int, ...]],
    resolve: Resolver,
    number: Mapping[tuple[str, int], int],
    carried: set[str],
    family_of: Mapping[str, str | None],
) -> _Plan:
    """For each reference: its instances by layer, or the one tensor it always means, or its name to be looked up."""
    plan: _Plan = []
    for reference in references:
        if reference.endswith(ALL) or reference in carried:
            plan.append(reference)
        elif block.family is not None and family_of[reference] == block.family:
            plan.append(families[reference])
        else:
            plan.append(number[resolve.one(reference, block, 0)])
    return plan


def _meant(
    plan: _Plan, block: Block, index: int, resolve: Resolver, number: Mapping[tuple[str, int], int]
) -> tuple[int, ...]:
    found: list[int] = []
    for part in plan:
        if isinstance(part, int):
            found.append(part)
        elif isinstance(part, tuple):
            found.append(part[index])
        else:
            found.extend([number[instance] for instance in resolve(part, block, index)])
    return tuple(found)


def _same_attributes(found: Operator, original: Operator, lengths: Sequence[int]) -> bool:
    """Equal attributes; counts of list operators must mean equally many tensors (`lengths`: of each reference)."""
    mine, theirs = dict(found.attributes), dict(original.attributes)
    if found.type == "update_pass" and any(n != 1 for n in lengths):
        for key in COUNTS:
            if key in mine:
                mine[key] = sum(lengths[: mine[key]])
                theirs[key] = min(theirs[key], sum(lengths))
    return bool(frozen(mine) == frozen(theirs))
