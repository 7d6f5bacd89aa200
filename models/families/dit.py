"""Diffusion transformer (DiT, arXiv:2212.09748) as facebookresearch/DiT `models.py` runs it."""

from __future__ import annotations

from dataclasses import dataclass

from peakline.models.builder import GraphBuilder
from peakline.models.families.fields import positive
from peakline.models.families.vision import VISION_PHASES
from peakline.models.families.vit import patches
from peakline.models.graph import Tensor
from peakline.models.operators.attention import attention
from peakline.models.operators.elementwise import activation, add, mul, scale, view
from peakline.models.operators.embedding import embedding
from peakline.models.operators.indexing import contiguous
from peakline.models.operators.loss import mse_loss
from peakline.models.operators.matmul import linear
from peakline.models.operators.normalization import layer_norm
from peakline.models.operators.pooling import chunk
from peakline.models.workload import Family, Workload

__all__ = ["FAMILY", "DiTConfig", "build"]

_FREQUENCIES = 256
"""Sines and cosines of a timestep (`TimestepEmbedder.frequency_embedding_size`)."""


@dataclass(frozen=True)
class DiTConfig:
    """A class-conditional diffusion transformer over latents of `image`/8 pixels a side.

    Attributes:
        hidden, layers, heads, mlp_ratio: sizes.
        patch: latent pixels along the side of a patch.
        image: pixels along a side of the image the latents decode to.
        latent_channels: channels in; twice as many out, noise and variance.
        classes: labels, and one more for none.
    """

    hidden: int = 1152
    layers: int = 28
    heads: int = 16
    mlp_ratio: int = 4
    patch: int = 2
    image: int = 256
    latent_channels: int = 4
    classes: int = 1000

    def __post_init__(self) -> None:
        positive(self, "hidden", "layers", "heads", "mlp_ratio", "patch", "image", "latent_channels", "classes")
        if self.hidden % self.heads:
            raise ValueError(f"field 'heads' is {self.heads}; accepted: a divisor of hidden, {self.hidden}")


def _modulate(b: GraphBuilder, x: Tensor, shift: Tensor, factor: Tensor) -> Tensor:
    """x·(1 + scale) + shift, broadcast over the tokens."""
    return add(b, mul(b, x, scale(b, factor, name="one_plus"), name="modulate"), shift, name="shift")


def _condition(b: GraphBuilder, c: Tensor, parts: int) -> list[Tensor]:
    """`parts` vectors [B, 1, hidden] from the conditioning: linear(silu(c)), split."""
    hidden = c.shape[1]
    assert isinstance(hidden, int)
    y = linear(b, activation(b, "silu", c, name="silu"), parts * hidden, bias=True, name="1")
    return chunk(b, view(b, y, (c.shape[0], 1, parts * hidden), name="unsqueeze"), parts)


def _block(b: GraphBuilder, x: Tensor, c: Tensor, config: DiTConfig, work: Workload) -> Tensor:
    width, heads = config.hidden, config.heads
    with b.scope("adaLN_modulation"):
        shift1, scale1, gate1, shift2, scale2, gate2 = _condition(b, c, 6)
    with b.scope("attn"):
        y = _modulate(b, layer_norm(b, x, affine=False, name="norm1"), shift1, scale1)
        q, k, v = chunk(b, linear(b, y, 3 * width, bias=True, name="qkv"), 3)
        y = attention(b, q, k, v, heads=heads, kv_heads=heads, causal=False, backend=work.backend())
        y = linear(b, y, width, bias=True, name="proj")
    x = add(b, x, mul(b, gate1, y, name="gate1"), name="residual1")
    with b.scope("mlp"):
        y = _modulate(b, layer_norm(b, x, affine=False, name="norm2"), shift2, scale2)
        y = activation(b, "gelu_tanh", linear(b, y, config.mlp_ratio * width, bias=True, name="fc1"))
        y = linear(b, y, width, bias=True, name="fc2")
    return add(b, x, mul(b, gate2, y, name="gate2"), name="residual2")


def build(b: GraphBuilder, config: DiTConfig, work: Workload) -> Tensor:
    """Write a DiT; in training the mean squared error over noise and variance channels, otherwise the prediction.

    The variational bound of the published loss adds tensors of the latents' size only, and is left out.
    """
    side = (config.image if work.image is None else work.image) // 8
    width, channels = config.hidden, config.latent_channels
    latents = b.input("latents", (work.batch, channels, side, side), b.dtype)
    x = patches(b, latents, width, config.patch, "x_embedder.proj")
    positions = b.parameter("pos_embed", (1, x.shape[1], width), trainable=False)
    x = add(b, x, positions, name="add_positions")
    with b.scope("t_embedder.mlp"):
        t = b.input("frequencies", (work.batch, _FREQUENCIES), b.dtype)
        t = activation(b, "silu", linear(b, t, width, bias=True, name="0"), name="silu")
        t = linear(b, t, width, bias=True, name="2")
    labels = b.input("labels", (work.batch,))
    c = add(b, t, embedding(b, labels, config.classes + 1, width, name="y_embedder.embedding_table"), name="condition")
    with b.layers("blocks", config.layers, x) as layer:
        layer.x = _block(b, layer.x, c, config, work)
    with b.scope("final_layer"):
        with b.scope("adaLN_modulation"):
            shift, factor = _condition(b, c, 2)
        x = _modulate(b, layer_norm(b, layer.result, affine=False, name="norm_final"), shift, factor)
        x = linear(b, x, 2 * channels * config.patch**2, bias=True, name="linear")
    x = contiguous(b, view(b, x, (work.batch, 2 * channels, side, side), name="unpatchify"))
    return mse_loss(b, x, b.input("target", x.shape, x.dtype)) if b.training else x


FAMILY = Family("dit", "diffusion", DiTConfig, build, VISION_PHASES)
