"""The same small networks twice: as peakline programs, and (in the tests) as PyTorch modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from peakline.models.builder import GraphBuilder
from peakline.models.graph import Tensor
from peakline.models.operators.attention import attention
from peakline.models.operators.elementwise import add, mul, unary, view
from peakline.models.operators.embedding import embedding
from peakline.models.operators.loss import cross_entropy, mse_loss
from peakline.models.operators.matmul import linear
from peakline.models.operators.normalization import layer_norm, rms_norm

BATCH, SEQ, WIDTH, INNER, HEADS, VOCABULARY = 2, 48, 64, 128, 4, 900
SHAPE = (BATCH, SEQ, WIDTH)

Build: TypeAlias = Callable[[GraphBuilder], Tensor]
LayerBuild: TypeAlias = Callable[[GraphBuilder, Tensor], Tensor]


def feed_forward(b: GraphBuilder, x: Tensor) -> Tensor:
    """x + W₂·gelu(W₁·LN(x))."""
    y = linear(b, layer_norm(b, x), INNER, bias=True, name="up")
    return add(b, x, linear(b, unary(b, "gelu", y), WIDTH, bias=True, name="down"))


def swiglu(b: GraphBuilder, x: Tensor) -> Tensor:
    """x + W₃·(silu(W₁·n)·W₂·n) with n = RMS norm of x as Llama computes it."""
    y = rms_norm(b, x)
    gate = unary(b, "silu", linear(b, y, INNER, name="gate"))
    return add(b, x, linear(b, mul(b, gate, linear(b, y, INNER, name="up")), WIDTH, name="down"))


def self_attention(kv_heads: int = HEADS, bias: bool = False) -> LayerBuild:
    """x + O·attention(LN(x)), the scores written out."""

    def write(b: GraphBuilder, x: Tensor) -> Tensor:
        y = layer_norm(b, x)
        kv = kv_heads * WIDTH // HEADS
        q, k, v = (linear(b, y, n, bias=bias, name=name) for n, name in ((WIDTH, "q"), (kv, "k"), (kv, "v")))
        y = attention(b, q, k, v, heads=HEADS, kv_heads=kv_heads, causal=False, backend="eager")
        return add(b, x, linear(b, y, WIDTH, bias=bias, name="o"))

    return write


def stack(layer: LayerBuild, layers: int, *, repeated: bool = True) -> Build:
    """A linear layer, `layers` residual layers and the mean squared error; as one repeated block or written out."""

    def build(b: GraphBuilder) -> Tensor:
        x = linear(b, b.input("x", SHAPE, b.dtype), WIDTH, bias=True, name="first")
        if repeated:
            with b.layers("layers", layers, carry=x) as body:
                body.x = layer(b, body.x)
            x = body.result
        else:
            for i in range(layers):
                with b.scope(f"layers_{i}"):
                    x = layer(b, x)
        return mse_loss(b, x, b.input("target", SHAPE, b.dtype))

    return build


def language_model(layer: LayerBuild = feed_forward, layers: int = 2, *, tied: bool = False) -> Build:
    """Embedding, layers, head and cross-entropy."""

    def build(b: GraphBuilder) -> Tensor:
        x = embedding(b, b.input("ids", (BATCH, SEQ)), VOCABULARY, WIDTH, name="embed")
        table = b.tensors["embed.weight"]
        with b.layers("layers", layers, carry=x) as body:
            body.x = layer(b, body.x)
        logits = linear(b, body.result, VOCABULARY, name="head", weight=table if tied else None)
        logits = view(b, logits, (BATCH * SEQ, VOCABULARY))
        return cross_entropy(b, logits, b.input("labels", (BATCH * SEQ,)), upcast=False)

    return build
