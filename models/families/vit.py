"""Vision transformers: ViT, DeiT and DINOv2 with Hugging Face's operators (`modeling_vit`, `modeling_dinov2`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from peakline.models.builder import GraphBuilder
from peakline.models.dims import Dim
from peakline.models.families.fields import Fields, positive
from peakline.models.families.vision import VISION_PHASES, image_input, loss_or_logits
from peakline.models.graph import Tensor
from peakline.models.operators.attention import attention
from peakline.models.operators.convolution import conv
from peakline.models.operators.dropout import dropout
from peakline.models.operators.elementwise import activation, add, mul, view
from peakline.models.operators.indexing import split, take
from peakline.models.operators.matmul import linear
from peakline.models.operators.normalization import layer_norm
from peakline.models.operators.pooling import concat
from peakline.models.workload import Family, Workload

__all__ = ["FAMILY", "ViTConfig", "build", "from_huggingface", "patches"]


@dataclass(frozen=True)
class ViTConfig:
    """A vision transformer.

    Attributes:
        hidden, layers, heads, mlp: sizes; `mlp` is the width of the feed-forward layer (SwiGLU: of its gate).
        patch, image: pixels along the side of a patch, of the image the position embedding was made for.
        classes: outputs; 0 leaves the class token's features.
        activation: Hugging Face name.
        swiglu: silu(gate)·up instead of two linear layers (DINOv2's giant).
        layer_scale: a learned scale per channel on each branch (DINOv2).
        distilled: a second learned token, with a position of its own (DeiT, arXiv:2012.12877 §4).
        registers: learned tokens beside the class token (arXiv:2309.16588).
        mask_token: whether the checkpoint holds one (DINOv2), which only pre-training reads.
        qkv_bias: whether the projections of queries, keys and values have biases.
        fused_qkv: one matrix makes all three (timm); under autocast its input is cast once, not three times.
        dropout: probability of hidden and attention dropout.
        path: where the layers lie in the state dict.
    """

    hidden: int = 768
    layers: int = 12
    heads: int = 12
    mlp: int = 3072
    patch: int = 16
    image: int = 224
    classes: int = 1000
    activation: str = "gelu"
    swiglu: bool = False
    layer_scale: bool = False
    distilled: bool = False
    registers: int = 0
    mask_token: bool = False
    qkv_bias: bool = True
    fused_qkv: bool = False
    dropout: float = 0.0
    channels: int = 3
    path: str = field(default="vit.encoder.layer", repr=False)

    def __post_init__(self) -> None:
        positive(self, "hidden", "layers", "heads", "mlp", "patch", "image", "channels")
        positive(self, "classes", "registers", least=0)
        if self.hidden % self.heads:
            raise ValueError(f"field 'heads' is {self.heads}; accepted: a divisor of hidden, {self.hidden}")
        if self.image < self.patch:
            raise ValueError(f"field 'patch' is {self.patch}; accepted: at most the image's {self.image} pixels")


def patches(b: GraphBuilder, x: Tensor, hidden: int, patch: int, name: str) -> Tensor:
    """A convolution of stride `patch`, then a view [B, tokens, hidden] of its result."""
    x = conv(b, x, hidden, patch, stride=patch, name=name)
    return view(b, x, (x.shape[0], x.shape[2] * x.shape[3], hidden), name=f"{name}.flatten")


def _embed(b: GraphBuilder, config: ViTConfig, work: Workload) -> Tensor:
    """Patches, class token, position embedding (interpolated for another image size), registers."""
    pixels = image_input(b, work, config.image, config.channels)
    own = (config.image // config.patch) ** 2 + (2 if config.distilled else 1)
    with b.scope("vit.embeddings"):
        x = patches(b, pixels, config.hidden, config.patch, "patch_embeddings.projection")
        first = ["cls_token", "distillation_token"] if config.distilled else ["cls_token"]
        x = concat(b, [*(_token(b, name, 1, x) for name in first), x], axis=1, name="cat")
        positions = b.parameter("position_embeddings", (1, own, config.hidden))
        if config.mask_token:
            b.parameter("mask_token", (1, config.hidden))
        if work.image is not None and not (isinstance(work.image, int) and work.image == config.image):
            shape = (1, x.shape[1], config.hidden)
            positions = b.add("interpolate", (positions,), {"out": (shape, positions.dtype)}, name="interpolate")[0]
        x = add(b, x, positions, name="add_positions")
        if config.registers:
            x = concat(b, [_token(b, "register_tokens", config.registers, x), x], axis=1, name="cat_registers")
        return dropout(b, x, config.dropout if work.dropout else 0.0)


def _token(b: GraphBuilder, name: str, count: int, x: Tensor) -> Tensor:
    """A learned token, expanded over the batch."""
    token = b.parameter(name, (1, count, x.shape[2]))
    shape: tuple[Dim, ...] = (x.shape[0], count, x.shape[2])
    return b.add("expand", (token,), {"out": (shape, token.dtype)}, name=f"{name}.expand", in_place={"out": token})[0]


def _layer(b: GraphBuilder, x: Tensor, config: ViTConfig, work: Workload) -> Tensor:
    width, p = config.hidden, config.dropout if work.dropout else 0.0
    y = layer_norm(b, x, name="layernorm_before")
    with b.scope("attention"):
        if config.fused_qkv:
            q, k, v = split(b, linear(b, y, 3 * width, bias=config.qkv_bias, name="qkv"), (width,) * 3, name="unbind")
        else:
            q, k, v = (linear(b, y, width, bias=config.qkv_bias, name=n) for n in ("query", "key", "value"))
        backend = work.backend()
        y = attention(b, q, k, v, heads=config.heads, kv_heads=config.heads, causal=False, backend=backend, p_dropout=p)
        y = dropout(b, linear(b, y, width, bias=True, name="output"), p)
    x = add(b, _scaled(b, y, config, "layer_scale1"), x, name="residual1")
    y = layer_norm(b, x, name="layernorm_after")
    with b.scope("mlp"):
        if config.swiglu:
            gate = activation(b, "silu", linear(b, y, config.mlp, bias=True, name="gate_proj"))
            y = mul(b, gate, linear(b, y, config.mlp, bias=True, name="up_proj"), name="gated")
        else:
            y = activation(b, config.activation, linear(b, y, config.mlp, bias=True, name="fc1"))
        y = dropout(b, linear(b, y, width, bias=True, name="fc2"), p)
    return add(b, _scaled(b, y, config, "layer_scale2"), x, name="residual2")


def _scaled(b: GraphBuilder, y: Tensor, config: ViTConfig, name: str) -> Tensor:
    return mul(b, y, b.parameter(f"{name}.lambda1", (config.hidden,)), name=name) if config.layer_scale else y


def build(b: GraphBuilder, config: ViTConfig, work: Workload) -> Tensor:
    """Write a vision transformer; the loss in training, otherwise the logits (or the class token's features).

    Raises:
        ValueError: training without a classifier.
    """
    if b.training and not config.classes:
        raise ValueError("field 'classes' is 0; accepted for training: a classifier, as in overrides={'classes': 1000}")
    x = _embed(b, config, work)
    with b.layers(config.path, config.layers, x) as layer:
        layer.x = _layer(b, layer.x, config, work)
    x = layer_norm(b, layer.result, name="vit.layernorm")
    x = take(b, x, (x.shape[0], config.hidden), name="class_token")
    return loss_or_logits(b, linear(b, x, config.classes, bias=True, name="classifier")) if config.classes else x


def from_huggingface(values: dict[str, Any]) -> ViTConfig:
    """Read a `ViTForImageClassification`, `DeiTForImageClassification` or `Dinov2Model` configuration.

    Raises:
        ValueError: a field that is missing or cannot be.
    """
    fields = Fields(values)
    hidden = fields.int("hidden_size", default=768)
    dino = values.get("model_type") == "dinov2"
    ratio = fields.number("mlp_ratio", default=4)
    swiglu = dino and fields.flag("use_swiglu_ffn", default=False)
    mlp = int(hidden * ratio) if dino else fields.int("intermediate_size", default=3072)
    if swiglu:
        mlp = (int(mlp * 2 / 3) + 7) // 8 * 8
    labels = values.get("id2label")
    return ViTConfig(
        hidden=hidden,
        layers=fields.int("num_hidden_layers", default=12),
        heads=fields.int("num_attention_heads", default=12),
        mlp=mlp,
        patch=fields.int("patch_size", default=16),
        image=fields.int("image_size", default=224),
        classes=len(labels) if labels else fields.int("num_labels", default=0 if dino else 2, least=0),
        activation=fields.text("hidden_act", default="gelu", among=("gelu", "relu", "silu", "gelu_new")),
        swiglu=swiglu,
        layer_scale=dino,
        distilled=values.get("model_type") == "deit",
        mask_token=dino,
        qkv_bias=fields.flag("qkv_bias", default=True),
        dropout=fields.number("hidden_dropout_prob", default=0.0),
        channels=fields.int("num_channels", default=3),
    )


FAMILY = Family(
    name="vit",
    kind="vision",
    config=ViTConfig,
    build=build,
    phases=VISION_PHASES,
    architectures=("ViTForImageClassification", "DeiTForImageClassification", "Dinov2Model"),
    model_types=("vit", "deit", "dinov2"),
    from_huggingface=from_huggingface,
)
