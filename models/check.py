"""Consistency of a graph: every fault a builder, an importer or a hand-written file can make, named."""

from __future__ import annotations

from peakline.models.dims import same_shape
from peakline.models.graph import ALL, PHASES, RESIDENT_ROLES, ROLES, Graph, GraphError, base_name

__all__ = ["check_graph"]


def check_graph(graph: Graph) -> None:
    """Raise `GraphError` listing all faults of the graph at once; see `Graph.check`."""
    faults = [*_tensor_faults(graph), *_block_faults(graph), *_order_faults(graph), *_previous_faults(graph)]
    if faults:
        more = f"\n  … and {len(faults) - 20} more" if len(faults) > 20 else ""
        raise GraphError(f"graph {graph.name!r} is not well formed:\n  " + "\n  ".join(faults[:20]) + more)


def _tensor_faults(graph: Graph) -> list[str]:
    faults = []
    arrays: dict[int, bool] = {}  # most tensors share theirs
    for name, tensor in graph.tensors.items():
        if name != tensor.name:
            faults.append(f"tensor {tensor.name!r} is filed under the name {name!r}")
        if tensor.role not in ROLES:
            faults.append(f"tensor {name!r} has role {tensor.role!r}; accepted: {', '.join(ROLES)}")
        negative = False
        for d in tensor.shape:
            if isinstance(d, int):
                negative |= d < 0
            else:
                if id(d) not in arrays:
                    arrays[id(d)] = bool((d < 0).any())
                negative |= arrays[id(d)]
        if negative:
            faults.append(f"tensor {name!r} has a negative dimension: {tensor.shape}")
        if tensor.family and not name.startswith(tensor.family + "."):
            faults.append(f"tensor {name!r} of family {tensor.family!r} must have a name that starts with it")
        if tensor.storage is not None:
            owner = graph.tensors.get(tensor.storage)
            if owner is None:
                faults.append(f"tensor {name!r} shares the storage of {tensor.storage!r}, which does not exist")
            elif owner.storage is not None:
                faults.append(
                    f"tensor {name!r} shares the storage of {tensor.storage!r}, which has none of its own: name "
                    f"{owner.storage!r}"
                )
    return faults


def _block_faults(graph: Graph) -> list[str]:
    faults = []
    repeats: dict[str, int] = {}
    for block in graph.blocks:
        if block.repeat < 1 or block.times < 1:
            faults.append(f"block {block.name!r} must repeat at least once")
        if block.family is None:
            if block.repeat != 1:
                faults.append(f"block {block.name!r} repeats {block.repeat} times and so needs a family")
        elif repeats.setdefault(block.family, block.repeat) != block.repeat:
            faults.append(f"blocks of family {block.family!r} repeat {repeats[block.family]} and {block.repeat} times")
        for name, carry in block.carries.items():
            faults += [
                f"carry {name!r} of block {block.name!r} refers to {ref!r}, which does not exist"
                for ref in (carry.initial, carry.following)
                if ref not in graph.tensors and not any(ref in b.carries for b in graph.blocks)
            ]
    faults += [f"block name {n!r} is used twice" for n in _twice([b.name for b in graph.blocks])]
    faults += [
        f"tensor {t.name!r} belongs to family {t.family!r}, which no block walks over"
        for t in graph.tensors.values()
        if t.family and t.family not in repeats
    ]
    return faults


def _order_faults(graph: Graph) -> list[str]:
    faults = []
    carried = {name for b in graph.blocks for name in b.carries}
    known = set(graph.tensors) | carried
    made: set[str] = set()
    produced = {base_name(o) for _, op in graph.operators() for o in op.outputs}
    available = {n for n, t in graph.tensors.items() if t.role in RESIDENT_ROLES or n not in produced}
    for block in graph.blocks:
        faults += [
            f"operator {n!r} appears twice in block {block.name!r}" for n in _twice([o.name for o in block.operators])
        ]
        for operator in block.operators:
            where = f"operator {operator.name!r} in block {block.name!r}"
            if operator.phase not in PHASES:
                faults.append(f"{where} has phase {operator.phase!r}; accepted: {', '.join(PHASES)}")
            for reference in operator.inputs:
                name = base_name(reference)
                if name not in known:
                    faults.append(f"{where} reads {name!r}, which does not exist")
                elif name not in available and name not in made and name not in carried:
                    faults.append(f"{where} reads {name!r} before any operator makes it")
            for reference in operator.outputs:
                name = base_name(reference)
                if name not in graph.tensors:
                    faults.append(f"{where} makes {name!r}, which is not declared")
                elif name in made:
                    faults.append(f"{where} makes {name!r} a second time")
                made.add(name)
                if reference.endswith(ALL) and graph.tensors.get(name) and not graph.tensors[name].family:
                    faults.append(f"{where} makes {reference!r}, but {name!r} has no family")
    return faults


def _previous_faults(graph: Graph) -> list[str]:
    """What `Graph.previous` ties together must be two tensors of one kind: one given, one made to take its place."""
    if not graph.previous:
        return []
    families = graph.families
    faults = []
    touched = {base_name(i) for _, operator in graph.operators() for i in operator.inputs}
    touched |= {graph.tensors[t].storage or t for t in touched if t in graph.tensors}
    produced = {base_name(o): block for block, operator in graph.operators() for o in operator.outputs}
    for old, new in graph.previous.items():
        unknown = [name for name in (old, new) if name not in graph.tensors]
        if unknown:
            faults += [f"previous: {name!r} does not exist" for name in unknown]
            continue
        before, after = graph.tensors[old], graph.tensors[new]
        if old in produced:
            faults.append(f"previous: {old!r} must exist before the step, but operators make it")
        elif old not in touched:
            faults.append(f"previous: no operator uses {old!r}, so nothing ends its life; a release does")
        if new not in produced:
            faults.append(f"previous: {new!r} must be made in the step, to take the place of {old!r}")
        elif produced[new].times != 1:
            faults.append(f"previous: {new!r} is made {produced[new].times} times over; one must be left")
        faults += [
            f"previous: {t.name!r} must own its storage; name {t.storage!r}" for t in (before, after) if t.storage
        ]
        if not same_shape((before.bytes,), (after.bytes,)):
            faults.append(f"previous: {old!r} has {before.bytes} bytes and {new!r} {after.bytes}; they must agree")
        if before.role != after.role:
            faults.append(f"previous: {old!r} is {before.role} and {new!r} {after.role}; the roles must agree")
        if families.get(before.family or "", 0) != families.get(after.family or "", 0):
            faults.append(f"previous: {old!r} and {new!r} must have equally many layers")
    faults += [f"previous: {n!r} takes two places" for n in _twice(list(graph.previous.values()))]
    return faults


def _twice(names: list[str]) -> list[str]:
    seen: set[str] = set()
    return [n for n in names if n in seen or seen.add(n)]  # type: ignore[func-returns-value]
