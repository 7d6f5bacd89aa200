"""Rotary position embedding (RoFormer, arXiv:2104.09864): eager, as transformers runs it, and fused in place."""

from __future__ import annotations

from dataclasses import dataclass

from peakline.models.builder import GraphBuilder
from peakline.models.dims import Dim
from peakline.models.dtypes import DType, dtype
from peakline.models.graph import Tensor
from peakline.models.kernels import Kernel, Stream
from peakline.models.operators.elementwise import add, cast, mul, scale, unary, view
from peakline.models.operators.indexing import cat, split, take
from peakline.models.operators.registry import GradientContext, Node, OperatorType, hand_back, register

__all__ = ["rotary", "rotary_tables"]


@dataclass(frozen=True)
class Rotary(OperatorType):
    """x·cos + rotate_half(x)·sin in one kernel that overwrites x; keeps cos and sin (Liger, flash-attn, vLLM)."""

    name: str = "rotary"

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """Two products and an addition per element."""
        return (Stream(3 * node.outputs[0].elements, node.outputs[0].dtype),)

    def backward(self, node: Node, context: GradientContext) -> None:
        """The inverse rotation of dy, in place."""
        hand_back(node, context, "rotary", *node.inputs[1:], in_place=True)


register(Rotary())


def rotary_tables(b: GraphBuilder, rows: Dim, tokens: Dim, width: int, kind: DType) -> tuple[Tensor, Tensor]:
    """cos and sin of `tokens` positions, [rows, tokens, width], as transformers' `RotaryEmbedding.forward` makes them.

    Frequencies and angles are float32; cosine and sine are scaled and cast to the activations' format.
    """
    fp32 = dtype("fp32")
    with b.scope("rotary_emb"):
        inverse = b.input("inv_freq", (width // 2,), fp32, "buffer")
        positions = b.input("position_ids", (rows, tokens), "int64")
        shape = (rows, tokens, width // 2)
        (angles,) = b.add("mul", (positions, inverse), {"out": (shape, fp32)}, name="angles")
        angles = cat(b, (angles, angles))
        cos, sin = (cast(b, scale(b, unary(b, f, angles)), kind) for f in ("cos", "sin"))
    return view(b, cos, (rows, tokens, 1, width)), view(b, sin, (rows, tokens, 1, width))


def rotary(b: GraphBuilder, x: Tensor, cos: Tensor, sin: Tensor, *, name: str, joined: bool = False) -> Tensor:
    """Rotate the first `cos.shape[-1]` of each head's numbers, x [B, S, heads, d]; the others pass through.

    Eager: x·cos + cat(−x₂, x₁)·sin, with the parts put together again by a concatenation when only some rotate, or
    always (`joined`: Phi-3 does so even where no part is left).
    """
    width, head = cos.shape[-1], x.shape[-1]
    with b.scope(name):
        if not b.eager:
            return b.add("rotary", (x, cos, sin), {"out": (x.shape, x.dtype)}, name="rotary", in_place={"out": x})[0]
        if width == head:
            y = _rotated(b, x, cos, sin)
            return cat(b, (y,)) if joined else y
        first, rest = split(b, x, (width, head - width))
        return cat(b, (_rotated(b, first, cos, sin), rest))


def _rotated(b: GraphBuilder, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = (*x.shape[:-1], x.shape[-1] // 2)
    straight = mul(b, x, cos, name="times_cos")
    left, right = take(b, x, half, name="left"), take(b, x, half, name="right")
    turned = mul(b, cat(b, (unary(b, "neg", right), left)), sin, name="times_sin")
    return add(b, straight, turned)
