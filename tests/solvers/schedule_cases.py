"""Random problems, the published irregular cells, and exhaustive search to compare the solvers with."""

from __future__ import annotations

import heapq
import json
import random
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

from hypothesis import strategies as st

from peakline.solvers.problem import Operator, Problem, Tensor

INSTANCES = Path(__file__).parents[2].parent / "shared" / "reference" / "instances"


@st.composite
def problems(draw: st.DrawFn, most: int = 7) -> Problem:
    """Up to `most` operators with one or two outputs, up to three inputs, sizes 1 to 6, all roles."""
    count = draw(st.integers(2, most))
    tensors = {f"in{i}": (draw(st.integers(1, 6)), "input") for i in range(draw(st.integers(1, 2)))}
    if draw(st.booleans()):
        tensors["weight"] = (draw(st.integers(1, 6)), "parameter")
    operators = []
    for i in range(count):
        inputs = draw(st.lists(st.sampled_from(sorted(tensors)), min_size=1, max_size=3, unique=True))
        outputs = [f"t{i}{letter}" for letter in "ab"[: draw(st.sampled_from((1, 1, 1, 2)))]]
        if draw(st.sampled_from((False, False, False, False, False, True))):  # a weight of its own
            tensors[f"w{i}"] = (draw(st.integers(1, 6)), "parameter")
            inputs.append(f"w{i}")
        for name in outputs:
            tensors[name] = (draw(st.integers(1, 6)), draw(st.sampled_from(("activation", "activation", "output"))))
        operators.append(Operator(f"op{i}", tuple(inputs), tuple(outputs)))
    listed = tuple(Tensor(name, size, role) for name, (size, role) in tensors.items())  # type: ignore[arg-type]
    return Problem(listed, tuple(operators))


def wired(seed: int, count: int) -> Problem:
    """`count` operators that each read up to three of the last eight tensors."""
    chance = random.Random(seed)
    tensors, operators = [Tensor("x", 3, "input")], []
    for i in range(count):
        near = [t.name for t in tensors[-8:]]
        reads = tuple(chance.sample(near, min(len(near), chance.randint(1, 3))))
        tensors.append(Tensor(f"t{i}", chance.randint(1, 4)))
        operators.append(Operator(f"f{i}", reads, (f"t{i}",)))
    return Problem(tuple(tensors), tuple(operators))


def working_set(problem: Problem) -> int:
    """Bytes of the largest working set."""
    size = {t.name: t.bytes for t in problem.tensors}
    return max(sum(size[name] for name in {*o.inputs, *o.outputs}) for o in problem.operators)


def orders(problem: Problem) -> Iterator[list[Operator]]:
    """Every topological order."""
    made_by_none = {t.name for t in problem.tensors if t.role in ("input", "parameter")}

    def extend(done: list[Operator], known: set[str]) -> Iterator[list[Operator]]:
        if len(done) == len(problem.operators):
            yield done
        for operator in problem.operators:
            if operator not in done and known.issuperset(operator.inputs):
                yield from extend([*done, operator], known | set(operator.outputs))

    yield from extend([], made_by_none)


def peak_of(problem: Problem, order: list[Operator]) -> int:
    """Most bytes alive at once: from a tensor's first operator in the order to its last."""
    peak = 0
    for step in range(len(order)):
        before = {name for o in order[: step + 1] for name in (*o.inputs, *o.outputs)}
        later = {name for o in order[step:] for name in (*o.inputs, *o.outputs)}
        peak = max(peak, sum(t.bytes for t in problem.tensors if t.name in before & later))
    return peak


def smallest_peak_by_enumeration(problem: Problem) -> int:
    """The smallest peak over every topological order."""
    return min(peak_of(problem, order) for order in orders(problem))


def least_traffic_by_enumeration(problem: Problem, capacity: int) -> int:
    """Non-compulsory bytes of the best plan, by Dijkstra over everything a scratchpad may hold at every moment.

    Before an operator runs, any subset of the residents may leave, stored if anybody still reads them; outputs are
    stored when they are made. Addresses are not looked at.
    """
    size = {t.name: t.bytes for t in problem.tensors}
    outputs = {t.name for t in problem.tensors if t.role == "output"}
    at_rest = frozenset(t.name for t in problem.tensors if t.role in ("input", "parameter"))
    start = (frozenset[str](), frozenset[str](), at_rest)
    cost = {start: 0}
    heap = [(0, 0, start)]
    serial = 0
    while heap:
        paid, _, state = heapq.heappop(heap)
        if cost[state] < paid:
            continue
        done, resident, off_chip = state
        if len(done) == len(problem.operators):
            return paid - problem.compulsory
        needed_later = {n for o in problem.operators if o.name not in done for n in o.inputs}
        for operator in problem.operators:
            made = {n for o in problem.operators if o.name in done for n in o.outputs} | at_rest
            if operator.name in done or not made.issuperset(operator.inputs):
                continue
            touched = {*operator.inputs, *operator.outputs}
            idle = sorted(resident - touched)
            for count in range(len(idle) + 1):
                for leaving in combinations(idle, count):
                    held = (resident - set(leaving)) | touched
                    if sum(size[n] for n in held) > capacity:
                        continue
                    if not off_chip | resident >= set(operator.inputs):
                        continue
                    stored = {n for n in leaving if n not in off_chip and n in needed_later}
                    stored |= outputs & set(operator.outputs)
                    loaded = set(operator.inputs) - resident
                    price = sum(size[n] for n in stored) + sum(size[n] for n in loaded)
                    new = (done | {operator.name}, frozenset(held), off_chip | stored)
                    if paid + price < cost.get(new, 1 << 60):
                        cost[new] = paid + price
                        serial += 1
                        heapq.heappush(heap, (paid + price, serial, new))
    raise AssertionError("no plan")


def cell(name: str) -> Problem:
    """An irregular cell of `instances/nas`: every result is an activation, the last one too."""
    data = json.loads((INSTANCES / "nas" / f"{name}.json").read_text(encoding="utf-8"))
    tensors = tuple(Tensor(str(op["id"]), op["bytes"]) for op in data["ops"])
    operators = tuple(
        Operator(f"{op['kind']}{op['id']}", tuple(dict.fromkeys(map(str, op["inputs"]))), (str(op["id"]),))
        for op in data["ops"]
    )
    return Problem(tensors, operators)


def profiled(name: str) -> Problem:
    """A profiled graph of `instances/profiled` in the units of its README: KiB, rounded up, at least 1.

    A tensor is as large as its largest outgoing edge; nodes without a predecessor (parameters) are left out.
    """
    data = json.loads((INSTANCES / "profiled" / f"{name}.json").read_text(encoding="utf-8"))
    size: dict[int, float] = {}
    inputs: dict[int, list[int]] = {}
    for edge in data["edges"]:
        size[edge["sourceId"]] = max(size.get(edge["sourceId"], 0.0), edge["size"])
        inputs.setdefault(edge["destId"], []).append(edge["sourceId"])
    kept = [node["id"] for node in data["nodes"] if node["id"] in inputs]
    tensors = tuple(Tensor(str(i), max(1, -int(-size.get(i, 0.0) // 1024))) for i in kept)
    operators = tuple(
        Operator(str(i), tuple(dict.fromkeys(str(j) for j in inputs[i] if j in inputs)), (str(i),)) for i in kept
    )
    return Problem(tensors, operators)
