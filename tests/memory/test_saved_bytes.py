"""Bytes kept from the forward to the backward pass, counted by hand from what autograd's formulas read."""

from __future__ import annotations

import numpy as np
import pytest

import peakline as pk
from peakline.memory.lifetimes import unroll
from peakline.memory.saved import saved_bytes
from peakline.models.builder import GraphBuilder
from peakline.models.capture.fold import fold
from peakline.models.dtypes import dtype
from peakline.models.graph import Block, Graph, Operator, Tensor
from peakline.models.operators.elementwise import activation
from peakline.models.operators.matmul import linear
from peakline.models.transforms.training import train

ROWS, WIDTH, INNER, BF16 = 64, 128, 512, 2


def mlp(layers: int, rows: int = ROWS) -> Graph:
    """x → (up → ReLU → down) × layers; the last result's gradient is given."""
    b = GraphBuilder("mlp", training=True)
    x = b.input("x", (rows, WIDTH), "bf16")
    b.input("seed", (rows, WIDTH), "bf16")
    with b.layers("layers", layers, carry=x) as layer:
        h = activation(b, "relu", linear(b, layer.x, INNER, name="up"))
        layer.x = linear(b, h, WIDTH, name="down")
    return train(b.graph(), layer.result.name, optimizer="sgd", seed="seed")


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_an_mlp_keeps_what_its_linears_and_its_relu_read(layers: int) -> None:
    """A linear's weight gradient reads its input, ReLU's gradient its own result, which is the next linear's input.

    So each layer keeps the hidden activation, and each but the last its result; the first one's input is the step's,
    and the last result is held as the loop's loss.
    """
    hidden, result = ROWS * INNER * BF16, ROWS * WIDTH * BF16
    assert saved_bytes(mlp(layers)) == layers * (hidden + result)


def test_a_sweep_has_as_many_answers() -> None:
    rows = np.array([1, 64, 1000])
    assert saved_bytes(mlp(3, rows)).tolist() == [saved_bytes(mlp(3, int(r))) for r in rows]


def test_recomputed_layers_keep_their_inputs_alone() -> None:
    full = pk.training_step("gpt2", batch=2, seq=64, recompute="full", dtype="bf16")
    kept = pk.training_step("gpt2", batch=2, seq=64, dtype="bf16")
    layer_input = 2 * 64 * 768 * 2
    program = unroll(full)
    begin = next(i for i, s in enumerate(program.steps) if s.operator.phase == "backward")
    inside = [
        int(program.sizes[k])
        for k, s in enumerate(program.storages)
        if s.tensor.family and 0 <= program.births[k] < begin <= program.deaths[k]
    ]
    assert inside == [layer_input] * 12  # each layer's result is the next one's input, the last one's the norm's
    assert saved_bytes(kept) - saved_bytes(full) > 12 * 10 * layer_input  # at least the MLP's and attention's


def test_only_what_is_alive_across_the_turn_counts() -> None:
    """`a` is read again, a variable has `held` until the end; `b` dies in the forward pass, `old` is not made."""
    sizes = {"w": 1, "a": 10, "b": 100, "held": 1000, "grad": 10_000, "old": 1000}
    roles = {"w": "parameter", "grad": "gradient"}
    tensors = {n: Tensor(n, (s,), dtype("uint8"), roles.get(n, "activation")) for n, s in sizes.items()}  # type: ignore[arg-type]
    operators = (
        Operator("first", "copy", ("w",), ("a",)),
        Operator("second", "copy", ("a",), ("b",)),
        Operator("third", "copy", ("b",), ("held",)),
        Operator("back", "copy", ("a", "w"), ("grad",), phase="backward"),
        Operator("next", "release", ("old", "held"), (), phase="backward"),
    )
    graph = Graph("by hand", tensors, (Block("main", operators),), previous={"old": "held"})
    graph.check()
    assert saved_bytes(graph) == saved_bytes(unroll(graph)) == 10 + 1000


def test_folding_and_flattening_keep_it() -> None:
    graph = pk.training_step("llama-2-7b", batch=2, seq=64)
    assert saved_bytes(graph) == saved_bytes(graph.flatten()) == saved_bytes(fold(graph.flatten()))


def test_inference_saves_nothing_and_says_so() -> None:
    with pytest.raises(ValueError, match="no backward pass"):
        saved_bytes(pk.inference("gpt2", batch=1, seq=8))
