"""Conditional U-Net of Stable Diffusion 1.x, 2.x and XL, as diffusers' `UNet2DConditionModel` runs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peakline.models.builder import GraphBuilder
from peakline.models.families.fields import Fields, positive
from peakline.models.families.vision import VISION_PHASES
from peakline.models.graph import Tensor
from peakline.models.operators.attention import attention
from peakline.models.operators.convolution import conv
from peakline.models.operators.elementwise import activation, add, cast, mul, scale, view
from peakline.models.operators.indexing import contiguous
from peakline.models.operators.loss import mse_loss
from peakline.models.operators.matmul import linear
from peakline.models.operators.normalization import group_norm, layer_norm
from peakline.models.operators.pooling import chunk, concat, interpolate
from peakline.models.workload import Family, Workload

__all__ = ["FAMILY", "UNetConfig", "build", "from_huggingface"]


@dataclass(frozen=True)
class UNetConfig:
    """A U-Net with cross-attention to text; the default is Stable Diffusion 1.5.

    Attributes:
        widths: channels of each resolution, from the finest.
        transformers: transformer blocks after each residual block of a resolution; 0 for none.
        heads: attention heads at each resolution.
        layers: residual blocks per resolution on the way down; one more on the way up.
        cross: width of the text states; `tokens` of them per image.
        linear_projection: linear layers around the transformer blocks instead of 1×1 convolutions (2.x, XL).
        added: width of the added condition (XL: pooled text and six size embeddings), 0 for none.
        channels: latent channels, in and out.
        groups: groups of group norm.
        image: pixels along a side of the image the latents decode to.
    """

    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    transformers: tuple[int, ...] = (1, 1, 1, 0)
    heads: tuple[int, ...] = (8, 8, 8, 8)
    layers: int = 2
    cross: int = 768
    tokens: int = 77
    linear_projection: bool = False
    added: int = 0
    channels: int = 4
    groups: int = 32
    image: int = 512

    def __post_init__(self) -> None:
        positive(self, "layers", "cross", "tokens", "channels", "groups", "image")
        positive(self, "added", least=0)
        for name in ("widths", "transformers", "heads"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
            if len(getattr(self, name)) != len(self.widths):
                raise ValueError(f"field {name!r} is {getattr(self, name)}; accepted: {len(self.widths)} numbers")


@dataclass(frozen=True)
class _Net:
    """What every part needs: the builder, the configuration, the workload, the time embedding, the text."""

    b: GraphBuilder
    config: UNetConfig
    work: Workload
    time: Tensor
    text: Tensor

    def residual(self, x: Tensor, width: int, name: str) -> Tensor:
        """`ResnetBlock2D`: two normalised convolutions, the time embedding added between them."""
        b, groups = self.b, self.config.groups
        with b.scope(name):
            y = activation(b, "silu", group_norm(b, x, groups, name="norm1"), name="silu1")
            y = conv(b, y, width, 3, padding=1, name="conv1")
            t = linear(b, activation(b, "silu", self.time, name="silu_t"), width, bias=True, name="time_emb_proj")
            y = add(b, y, view(b, t, (t.shape[0], width, 1, 1), name="unsqueeze"), name="add_time")
            y = activation(b, "silu", group_norm(b, y, groups, name="norm2"), name="silu2")
            y = conv(b, y, width, 3, padding=1, name="conv2")
            shortcut = x if x.shape[1] == width else conv(b, x, width, 1, name="conv_shortcut")
            return scale(b, add(b, shortcut, y, name="add"), name="output_scale")

    def transformer(self, x: Tensor, blocks: int, heads: int, name: str) -> Tensor:
        """`Transformer2DModel`: group norm, projection in, blocks over the pixels, projection out, residual."""
        b, (n, width, height, side) = self.b, x.shape
        assert isinstance(width, int)
        rows = (n, height * side, width)
        with b.scope(name):
            y = group_norm(b, x, self.config.groups, name="norm")
            if self.config.linear_projection:
                y = linear(b, view(b, y, rows, name="rows"), width, bias=True, name="proj_in")
            else:
                y = view(b, conv(b, y, width, 1, name="proj_in"), rows, name="rows")
            for i in range(blocks):
                with b.scope(f"transformer_blocks.{i}"):
                    y = self._block(y, width, heads)
            if self.config.linear_projection:
                y = contiguous(b, view(b, linear(b, y, width, bias=True, name="proj_out"), x.shape, name="map"))
            else:
                y = conv(b, contiguous(b, view(b, y, x.shape, name="map")), width, 1, name="proj_out")
            return add(b, y, x, name="residual")

    def _block(self, x: Tensor, width: int, heads: int) -> Tensor:
        """Self-attention, cross-attention to the text, GEGLU feed-forward."""
        b = self.b
        x = add(b, self._attend(layer_norm(b, x, name="norm1"), None, width, heads, "attn1"), x, name="add1")
        x = add(b, self._attend(layer_norm(b, x, name="norm2"), self.text, width, heads, "attn2"), x, name="add2")
        y = layer_norm(b, x, name="norm3")
        with b.scope("ff.net"):
            value, gate = chunk(b, linear(b, y, 8 * width, bias=True, name="0.proj"), 2)
            y = mul(b, value, activation(b, "gelu", gate, name="gelu"), name="geglu")
            y = linear(b, y, width, bias=True, name="2")
        return add(b, y, x, name="add3")

    def _attend(self, x: Tensor, text: Tensor | None, width: int, heads: int, name: str) -> Tensor:
        b, source = self.b, x if text is None else text
        with b.scope(name):
            q = linear(b, x, width, name="to_q")
            k, v = linear(b, source, width, name="to_k"), linear(b, source, width, name="to_v")
            y = attention(b, q, k, v, heads=heads, kv_heads=heads, causal=False, backend=self.work.backend())
            return scale(b, linear(b, y, width, bias=True, name="to_out.0"), name="rescale")


def _mlp(b: GraphBuilder, x: Tensor, width: int, name: str) -> Tensor:
    """`TimestepEmbedding`: linear, SiLU, linear."""
    with b.scope(name):
        x = activation(b, "silu", linear(b, x, width, bias=True, name="linear_1"), name="act")
        return linear(b, x, width, bias=True, name="linear_2")


def build(b: GraphBuilder, config: UNetConfig, work: Workload) -> Tensor:
    """Write a U-Net; in training the mean squared error in float32 with the noise, otherwise the predicted noise."""
    side = (config.image if work.image is None else work.image) // 8
    widths, last = config.widths, len(config.widths) - 1
    latents = b.input("sample", (work.batch, config.channels, side, side), b.dtype)
    text = b.input("encoder_hidden_states", (work.batch, config.tokens, config.cross), b.dtype)
    frequencies = b.input("frequencies", (work.batch, widths[0]), b.dtype)
    time = _mlp(b, frequencies, 4 * widths[0], "time_embedding")
    if config.added:
        added = b.input("added", (work.batch, config.added), b.dtype)
        time = add(b, time, _mlp(b, added, 4 * widths[0], "add_embedding"), name="add_condition")
    net = _Net(b, config, work, time, text)

    x = conv(b, latents, widths[0], 3, padding=1, name="conv_in")
    skips = [x]
    for i, width in enumerate(widths):
        with b.scope(f"down_blocks.{i}"):
            for j in range(config.layers):
                x = net.residual(x, width, f"resnets.{j}")
                if config.transformers[i]:
                    x = net.transformer(x, config.transformers[i], config.heads[i], f"attentions.{j}")
                skips.append(x)
            if i < last:
                x = conv(b, x, width, 3, stride=2, padding=1, name="downsamplers.0.conv")
                skips.append(x)
    with b.scope("mid_block"):
        x = net.residual(x, widths[-1], "resnets.0")
        x = net.transformer(x, max(config.transformers[-1], 1), config.heads[-1], "attentions.0")
        x = net.residual(x, widths[-1], "resnets.1")
    for i, width in reversed(list(enumerate(widths))):
        with b.scope(f"up_blocks.{last - i}"):
            for j in range(config.layers + 1):
                x = net.residual(concat(b, [x, skips.pop()], name=f"concat.{j}"), width, f"resnets.{j}")
                if config.transformers[i]:
                    x = net.transformer(x, config.transformers[i], config.heads[i], f"attentions.{j}")
            if i:
                x = conv(b, interpolate(b, x), width, 3, padding=1, name="upsamplers.0.conv")
    x = activation(b, "silu", group_norm(b, x, config.groups, name="conv_norm_out"), name="conv_act")
    x = conv(b, x, config.channels, 3, padding=1, name="conv_out")
    if not b.training:
        return x
    x = cast(b, x, "fp32", name="prediction_fp32")
    return mse_loss(b, x, cast(b, b.input("noise", x.shape, b.dtype), "fp32", name="noise_fp32"))


def from_huggingface(values: dict[str, Any]) -> UNetConfig:
    """Read a diffusers `UNet2DConditionModel` configuration.

    Raises:
        ValueError: a field that is missing or cannot be, or a kind of block this family has not.
    """
    fields = Fields(values)
    widths = tuple(fields.items("block_out_channels"))
    kinds = fields.items("down_block_types", default=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",))
    for kind in kinds:
        if kind not in ("CrossAttnDownBlock2D", "DownBlock2D"):
            raise ValueError(f"field 'down_block_types' has {kind!r}; accepted: CrossAttnDownBlock2D, DownBlock2D")

    def each(name: str, default: Any) -> tuple[int, ...]:
        _, value = fields.raw(name, default=default)
        return tuple(value) if isinstance(value, list | tuple) else (value,) * len(widths)

    # diffusers reads `attention_head_dim` as the number of heads where `num_attention_heads` is absent
    heads = each("num_attention_heads", None) if fields.has("num_attention_heads") else each("attention_head_dim", 8)
    blocks = each("transformer_layers_per_block", 1)
    added = values.get("addition_embed_type")
    if added not in (None, "text_time"):
        raise ValueError(f"field 'addition_embed_type' is {added!r}; accepted: text_time or null")
    return UNetConfig(
        widths=widths,
        transformers=tuple(n if "CrossAttn" in kind else 0 for n, kind in zip(blocks, kinds)),
        heads=heads,
        layers=fields.int("layers_per_block", default=2),
        cross=fields.int("cross_attention_dim", default=1280),
        linear_projection=fields.flag("use_linear_projection", default=False),
        added=fields.int("projection_class_embeddings_input_dim") if added else 0,
        channels=fields.int("in_channels", default=4),
        groups=fields.int("norm_num_groups", default=32),
        image=8 * fields.int("sample_size", default=64),
    )


FAMILY = Family(
    name="unet",
    kind="diffusion",
    config=UNetConfig,
    build=build,
    phases=VISION_PHASES,
    architectures=("UNet2DConditionModel",),
    from_huggingface=from_huggingface,
)
