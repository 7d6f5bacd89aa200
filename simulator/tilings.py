"""Ways to run an operator of a model in parts where it does not fit a scratchpad as it stands.

Two axes serve. *features*: a matrix product or convolution makes a share of its output features (channels) from the
whole input and that share of the weights, which so stream past in blocks; operators on each channel by itself take the
same share of everything. *rows*: a share of the tokens (of the batch, for images) of inputs and outputs, the weights
whole. Only these: a share of the products' inner dimension would hold two copies of every partial sum. An operator with
a workspace stays whole: what its parts would need is not known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod

from peakline.models.graph import Graph
from peakline.scheduling import Described, described
from peakline.solvers.alternatives import Alternative, Choices, Split
from peakline.solvers.problem import Operator, Problem

__all__ = ["tilings", "with_tilings"]

_CURVES = {"relu", "relu6", "sigmoid", "tanh", "exp", "gelu", "gelu_tanh", "silu", "hardswish", "hardsigmoid"}
_POINTWISE = _CURVES | {"neg", "scale", "softplus", "leaky_relu", "relu_squared", "cast", "add", "mul", "dropout"}
_BY_CHANNEL = _POINTWISE | {"batch_norm", "max_pool", "avg_pool"}
_BY_ROW = _POINTWISE | {"layer_norm", "rms_norm"}
_MOST_PARTS = 64
_OFFERED = 2  # alternatives along each axis: the fewest parts that fit, and twice as many


def with_tilings(graph: Graph, problem: Problem, capacity: int) -> Choices:
    """The problem, made from the graph or a part of it, with alternatives for operators above `capacity` bytes."""
    known = described(graph)
    size = {tensor.name: tensor.bytes for tensor in problem.tensors}
    found = {}
    for operator in problem.operators:
        if sum(size[name] for name in {*operator.inputs, *operator.outputs}) > capacity and operator.name in known:
            offered = tuple(tilings(operator, known[operator.name], size, capacity))
            if offered:
                found[operator.name] = offered
    return Choices(problem, found)


def tilings(operator: Operator, what: Described, size: Mapping[str, int], capacity: int) -> Iterator[Alternative]:
    """Alternatives of an operator whose parts fit `capacity` bytes, along each axis the coarsest."""
    for axis, shares in (("features", _features(operator, what)), ("rows", _rows(operator, what))):
        length = shares.pop("", 0)
        if not shares or not set(operator.outputs) <= shares.keys():
            continue
        offered, count = 0, 2
        whole_units = all(size[name] % length == 0 for name in shares)
        while whole_units and offered < _OFFERED and count <= min(length, _MOST_PARTS):
            tiling = _tiling(operator, axis, sorted(shares), size, length, count)
            if tiling.largest_part(size) <= capacity:
                offered += 1
                yield tiling
            count *= 2


def _tiling(
    operator: Operator, axis: str, cut: list[str], size: Mapping[str, int], length: int, count: int
) -> Alternative:
    """`count` parts of ⌈length / count⌉ units along the axis, the last ones one shorter."""
    units = [length // count + (k < length % count) for k in range(count)]
    splits = tuple(Split(name, tuple(size[name] // length * n for n in units), axis) for name in cut)

    def part(k: int, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(f"{name}[{k}]" if name in cut else name for name in names)

    parts = tuple(Operator(str(k), part(k, operator.inputs), part(k, operator.outputs)) for k in range(count))
    return Alternative(f"{axis}/{count}", splits, parts)


def _features(operator: Operator, what: Described) -> dict[str, int]:
    """Tensors that are cut along the output features, and under "" the number of features; empty if none are."""
    first, *joined = what.types
    out = what.shapes.get(operator.outputs[0], ())
    if len(out) < 2 or not set(joined) <= _BY_CHANNEL:
        return {}
    images = len(out) == 4
    features = out[1] if images else out[-1]
    if first in ("linear", "convolution"):
        weight = next((name for name in operator.inputs[1:] if len(what.shapes.get(name, ())) == len(out)), None)
        weight = weight or next((name for name in operator.inputs[1:] if len(what.shapes.get(name, ())) == 2), None)
        if weight is None or what.shapes[weight][0] != features or (first == "linear") == images:
            return {}
        depthwise = images and what.shapes[weight][1] == 1
        if images and not depthwise and what.shapes[weight][1] != what.shapes[operator.inputs[0]][1]:
            return {}  # grouped
        cut = {weight, *(operator.inputs[:1] if depthwise else ())}
    elif first in _BY_CHANNEL and (images or first in _POINTWISE):
        cut = {name for name in operator.inputs if len(what.shapes.get(name, ())) == len(out)}
        if any((what.shapes[name][1] if images else what.shapes[name][-1]) != features for name in cut):
            return {}
    else:
        return {}
    cut |= {name for name in operator.inputs if what.shapes.get(name) == (features,)}
    cut |= {name for name in operator.outputs if len(what.shapes.get(name, ())) == len(out)}
    return {**dict.fromkeys(cut, 1), "": features}


def _rows(operator: Operator, what: Described) -> dict[str, int]:
    """Tensors that are cut along the leading dimensions, and under "" their length; empty if none are."""
    first, *joined = what.types
    out = what.shapes.get(operator.outputs[0], ())
    images = len(out) == 4
    if len(out) < 2 or not set(joined) <= (_BY_CHANNEL if images else _BY_ROW):
        return {}
    if images:
        if first not in _BY_CHANNEL and first != "convolution":
            return {}
        rows = out[0]
        cut = {n for n in _data(operator, what) if len(what.shapes[n]) == 4 and what.shapes[n][0] == rows}
        if first == "convolution":
            cut -= set(operator.inputs[1:])
    else:
        if first not in _BY_ROW and first != "linear":
            return {}
        rows = prod(out[:-1])
        cut = {n for n in _data(operator, what) if len(what.shapes[n]) > 1 and prod(what.shapes[n][:-1]) == rows}
        if first == "linear":
            cut -= set(operator.inputs[1:])
    return {**dict.fromkeys(cut, 1), "": rows}


def _data(operator: Operator, what: Described) -> list[str]:
    return [name for name in (*operator.inputs, *operator.outputs) if name in what.shapes]
