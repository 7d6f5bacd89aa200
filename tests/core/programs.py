"""Random small programs for property tests: views, results in place, several uses, repeated layers, training."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from peakline.models.builder import GraphBuilder
from peakline.models.graph import Graph, Tensor
from peakline.models.operators.elementwise import add, cast, mul, scale, unary, view
from peakline.models.operators.indexing import cat, split
from peakline.models.operators.loss import mse_loss
from peakline.models.operators.matmul import linear
from peakline.models.operators.normalization import layer_norm
from peakline.models.operators.softmax import softmax
from peakline.models.transforms.training import train

ROWS, WIDTH = 8, 16


def _operator(draw: Any, b: GraphBuilder, pool: list[Tensor]) -> Tensor:
    """One operator on tensors of the pool; the result has shape [ROWS, WIDTH]."""
    x = draw(st.sampled_from(pool[-4:]))
    match draw(st.integers(0, 10)):
        case 0 | 1:
            return linear(b, x, WIDTH, bias=draw(st.booleans()))
        case 2:
            return unary(b, draw(st.sampled_from(["relu", "gelu", "pow", "rsqrt", "cos"])), x)
        case 3:
            return add(b, x, draw(st.sampled_from(pool[-4:])))
        case 4:
            return mul(b, x, draw(st.sampled_from(pool[-4:])))
        case 5:
            return layer_norm(b, x)
        case 6:
            return softmax(b, x)
        case 7:
            return view(b, view(b, x, (ROWS * WIDTH,)), (ROWS, WIDTH))
        case 8:
            return cast(b, cast(b, scale(b, x), "bf16"), "fp32")
        case 9:
            left, right = split(b, x, (WIDTH // 2, WIDTH // 2))
            return cat(b, (right, left))
        case _:
            made = scale(b, x)
            return unary(b, "relu", made, in_place=True)


def _chain(draw: Any, b: GraphBuilder, x: Tensor, length: int) -> Tensor:
    pool = [x]
    for _ in range(length):
        pool.append(_operator(draw, b, pool))
    return pool[-1]


@st.composite
def programs(draw: Any) -> Graph:
    """A forward pass: some operators, a repeated block, some more."""
    b = GraphBuilder("random", kind="fp32", training=True)
    x = linear(b, b.input("x", (ROWS, WIDTH), "fp32"), WIDTH, name="first")
    x = _chain(draw, b, x, draw(st.integers(0, 3)))
    with b.layers("layers", draw(st.integers(1, 4)), carry=x) as layer:
        layer.x = linear(b, _chain(draw, b, layer.x, draw(st.integers(0, 5))), WIDTH, name="last")
    x = _chain(draw, b, layer.result, draw(st.integers(0, 3)))
    mse_loss(b, x, b.input("target", (ROWS, WIDTH), "fp32"))
    return b.graph(batch=ROWS)


@st.composite
def training_steps(draw: Any) -> Graph:
    """A training step of a random forward pass."""
    forward = draw(programs())
    return train(
        forward,
        "loss.mse.out",
        optimizer=draw(st.sampled_from([None, "sgd", "adamw", "adamw-loop", "adagrad"])),
        recomputation=draw(st.sampled_from(["none", "full"])),
        accumulation=draw(st.integers(1, 3)),
        set_to_none=draw(st.booleans()),
    )
