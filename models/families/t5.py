"""T5 encoder–decoders (arXiv:1910.10683): relative position biases, RMS norms without mean, tied embeddings.

Source and target have the same length, `seq`. A prefill encodes the source, fills the cross-attention caches and
decodes the first token; a decode step computes one target token against `context` target and as many source tokens.
Source of the program: transformers 5 `models/t5/modeling_t5.py`. Its position biases have no flash form, so attention
is eager unless a backend is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from peakline.models.builder import GraphBuilder
from peakline.models.dims import Dim, Shape
from peakline.models.dtypes import DType, dtype
from peakline.models.families.fields import Fields, positive
from peakline.models.families.layers import Projections, lengths, loss_of
from peakline.models.flatten import instance_name, layer_by_layer
from peakline.models.graph import Tensor
from peakline.models.operators.attention import Backend, attention, write_cache
from peakline.models.operators.dropout import dropout
from peakline.models.operators.elementwise import activation, add, cast, mul, scale, unary, view
from peakline.models.operators.embedding import embedding
from peakline.models.operators.gated import gated_activation
from peakline.models.workload import Family, Workload

__all__ = ["FAMILY", "T5Config", "build"]

_FP32 = dtype("fp32")


@dataclass(frozen=True)
class T5Config:
    """An encoder–decoder.

    Attributes:
        vocab, hidden, heads, head_dim, ffn: sizes; heads·head_dim need not be `hidden`.
        layers, decoder_layers: of the encoder and the decoder.
        buckets: rows of the relative position table.
        activation: Hugging Face name; `gated`: a product of two projections (version 1.1, mT5, Flan).
        tied: the head is the embedding's matrix, and its input is scaled by 1/√hidden.
        dropout: probability everywhere.
        max_positions: None; relative positions have no limit.
    """

    vocab: int
    hidden: int
    layers: int
    heads: int
    head_dim: int
    ffn: int
    decoder_layers: int = 0
    buckets: int = 32
    activation: str = "relu"
    gated: bool = False
    tied: bool = True
    dropout: float = 0.1
    max_positions: int | None = None

    def __post_init__(self) -> None:
        positive(self, "vocab", "hidden", "layers", "heads", "head_dim", "ffn", "buckets")
        if not self.decoder_layers:
            object.__setattr__(self, "decoder_layers", self.layers)
        positive(self, "decoder_layers")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"field 'dropout' is {self.dropout!r}; accepted: a probability below 1")


@dataclass
class _Pass:
    """One forward pass while it is written."""

    b: GraphBuilder
    config: T5Config
    workload: Workload
    project: Projections
    backend: Backend
    table: Tensor

    def drop(self, x: Tensor) -> Tensor:
        """Dropout, where the workload has it."""
        return dropout(self.b, x, self.config.dropout if self.workload.dropout else 0.0)


def build(b: GraphBuilder, config: T5Config, workload: Workload) -> Tensor:
    """Write encoder, decoder and head; the loss in training, logits otherwise.

    Raises:
        ValueError: a size that the phase needs is missing.
    """
    w = workload
    decoding = w.phase == "decode"
    source = lengths(w)[1]
    target: Dim = 1 if w.phase == "prefill" else source
    backend: Backend = "eager" if w.attention == "auto" else w.backend()
    table = b.parameter("shared.weight", (config.vocab, config.hidden))
    run = _Pass(b, config, w, Projections(b, w), backend, table)
    encoded = None
    if decoding:
        _resident_encoder(b, config)
    else:
        encoded = _stack(run, "encoder", b.input("input_ids", (w.batch, source)), source, source, None)
    queries: Dim = 1 if w.phase in ("prefill", "decode") else target
    ids = b.input("decoder_input_ids", (w.batch, queries))
    x = _stack(run, "decoder", ids, target, source, encoded)
    if config.tied:
        x = scale(b, x, name="rescale")
    result = loss_of(b, w, x, config.vocab, head="lm_head", table=table if config.tied else None, upcast=False)
    run.project.finish()
    return result


def _resident_encoder(b: GraphBuilder, config: T5Config) -> None:
    """Declare the encoder's parameters, which stay in memory while the decoder runs."""
    for name, shape, kind in _encoder_parameters(config, b.dtype):
        b.parameter(name, shape, kind)


@lru_cache(maxsize=32)
def _encoder_parameters(config: T5Config, kind: DType) -> tuple[tuple[str, Shape, DType], ...]:
    """Names, shapes and formats of the encoder's own parameters, layer by layer."""
    inner = GraphBuilder("encoder", kind=kind)
    w = Workload("inference", seq=1)
    table = inner.parameter("shared.weight", (config.vocab, config.hidden))
    run = _Pass(inner, config, w, Projections(inner, w), "eager", table)
    _stack(run, "encoder", inner.input("input_ids", (1, 1)), 1, 1, None)
    return tuple(
        (instance_name(tensor.name, tensor.family, i), tensor.shape, tensor.dtype)
        for tensor, i in layer_by_layer(inner.graph())
        if tensor.role == "parameter" and tensor is not table
    )


def _stack(run: _Pass, name: str, ids: Tensor, tokens: Dim, source: Dim, encoded: Tensor | None) -> Tensor:
    """The encoder, or the decoder with attention to what was encoded (or to the caches, when it is None)."""
    b, c = run.b, run.config
    decoder = name == "decoder"
    x = run.drop(embedding(b, ids, c.vocab, c.hidden, name=f"{name}.embed_tokens", weight=run.table))
    with b.scope(f"{name}.block.0.layer.0.SelfAttention"):
        bias = _position_bias(b, c, ids.shape[1], tokens)
    mask = None
    if decoder:
        kind = b.autocast or b.dtype
        mask = b.input("decoder_mask", (ids.shape[0], 1, ids.shape[1], tokens), kind, "buffer")
    with b.layers(f"{name}.block", c.decoder_layers if decoder else c.layers, x) as layer:
        h = _sublayer(run, layer.x, "layer.0", lambda y: _self_attention(run, y, tokens, bias, mask, decoder))
        if decoder:
            h = _sublayer(run, h, "layer.1", lambda y: _cross_attention(run, y, source, encoded))
        layer.x = _sublayer(run, h, f"layer.{1 + decoder}", lambda y: _mlp(run, y))
    return run.drop(t5_norm(b, layer.result, name=f"{name}.final_layer_norm"))


def _position_bias(b: GraphBuilder, c: T5Config, queries: Dim, keys: Dim) -> Tensor:
    """[1, heads, queries, keys]: one learned number per head and bucket of distance."""
    buckets = b.input("relative_position_bucket", (queries, keys))
    values = embedding(b, buckets, c.buckets, c.heads, name="relative_attention_bias")
    return view(b, values, (1, c.heads, queries, keys), name="position_bias")


def _sublayer(run: _Pass, x: Tensor, name: str, inner: Callable[[Tensor], Tensor]) -> Tensor:
    """x + dropout(inner(norm(x)))."""
    b = run.b
    with b.scope(name):
        return add(b, x, run.drop(inner(t5_norm(b, x, name="layer_norm"))), name="add_residual")


def _attend(
    run: _Pass, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, mask: Tensor | None, causal: bool
) -> Tensor:
    c = run.config
    y = attention(
        run.b,
        q,
        k,
        v,
        heads=c.heads,
        kv_heads=c.heads,
        causal=causal,
        backend=run.backend,
        p_dropout=c.dropout if run.workload.dropout else 0.0,
        mask=mask,
        bias=bias,
        upcast=False,
    )
    return run.project(y, c.hidden, name="o")


def _self_attention(run: _Pass, x: Tensor, tokens: Dim, bias: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    b, inner = run.b, run.config.heads * run.config.head_dim
    with b.scope("SelfAttention"):
        q, k, v = (run.project(x, inner, name=name) for name in ("q", "k", "v"))
        if causal and run.workload.phase in ("prefill", "decode"):
            k, v = (
                write_cache(b, t, _cache(run, f"self_{n}", tokens), name=f"write_{n}")
                for t, n in ((k, "key"), (v, "value"))
            )
        return _attend(run, q, k, v, bias, mask, causal)


def _cross_attention(run: _Pass, x: Tensor, source: Dim, encoded: Tensor | None) -> Tensor:
    """Attention to the source: keys and values made from it, or read from the caches a prefill has filled."""
    b, inner = run.b, run.config.heads * run.config.head_dim
    with b.scope("EncDecAttention"):
        q = run.project(x, inner, name="q")
        if encoded is None:
            for name in ("k", "v"):
                with b.scope(name):
                    b.parameter("weight", (inner, run.config.hidden), run.workload.weight_kind)
            k, v = _cache(run, "cross_key", source), _cache(run, "cross_value", source)
        else:
            k, v = run.project(encoded, inner, name="k"), run.project(encoded, inner, name="v")
            if run.workload.phase == "prefill":
                for t, n in ((k, "key"), (v, "value")):
                    write_cache(b, t, _cache(run, f"cross_{n}", source), name=f"write_{n}")
        return _attend(run, q, k, v, None, None, causal=False)


def _cache(run: _Pass, name: str, tokens: Dim) -> Tensor:
    w, c = run.workload, run.config
    kind = w.kv_kind or run.b.autocast or run.b.dtype
    return run.b.input(f"{name}_cache", (w.batch, tokens, c.heads * c.head_dim), kind, "kv_cache")


def _mlp(run: _Pass, x: Tensor) -> Tensor:
    b, c = run.b, run.config
    with b.scope("DenseReluDense"):
        if not c.gated:
            hidden = activation(b, c.activation, run.project(x, c.ffn, name="wi"), name="act")
        else:
            gate, up = run.project(x, c.ffn, name="wi_0"), None
            gate = activation(b, c.activation, gate, name="act") if b.eager else gate
            up = run.project(x, c.ffn, name="wi_1")
            hidden = mul(b, gate, up, name="gated") if b.eager else gated_activation(b, gate, up)
        return run.project(run.drop(hidden), c.hidden, name="wo")


def t5_norm(b: GraphBuilder, x: Tensor, *, name: str) -> Tensor:
    """T5's RMS norm: the variance in float32, the product on the input itself (`T5LayerNorm.forward`)."""
    with b.scope(name):
        weight = b.parameter("weight", (x.shape[-1],))
        rows = (*x.shape[:-1], 1)
        if not b.eager:
            return b.add("rms_norm", [x, weight], {"out": (x.shape, x.dtype), "rstd": (rows, _FP32)}, name="rms_norm")[
                0
            ]
        (variance,) = b.add("mean", (unary(b, "pow", cast(b, x, _FP32)),), {"out": (rows, _FP32)}, name="mean")
        normed = mul(b, x, unary(b, "rsqrt", scale(b, variance, name="plus_eps")), name="normalise")
        if weight.dtype.bits == 16:
            normed = cast(b, normed, weight.dtype)
        return mul(b, weight, normed, name="affine")


def from_huggingface(values: dict[str, Any]) -> T5Config:
    """Read a T5 or mT5 `config.json`.

    Raises:
        ValueError: a field is missing or cannot be.
    """
    f = Fields(values)
    layers = f.int("num_layers", "num_hidden_layers")
    mt5 = values.get("model_type") in ("mt5", "umt5")
    forward = f.text("feed_forward_proj", default="gated-gelu" if mt5 else "relu")
    gated, _, act = forward.rpartition("-")
    if forward not in ("relu", "gated-gelu", "gated-silu", "gelu", "silu"):
        raise ValueError(
            f"field 'feed_forward_proj' is {forward!r}; accepted: relu, gelu, silu, gated-gelu, gated-silu"
        )
    return T5Config(
        vocab=f.int("vocab_size"),
        hidden=f.int("d_model"),
        layers=layers,
        decoder_layers=f.int("num_decoder_layers", default=layers),
        heads=f.int("num_heads"),
        head_dim=f.int("d_kv"),
        ffn=f.int("d_ff"),
        buckets=f.int("relative_attention_num_buckets", default=32),
        activation="gelu_new" if forward == "gated-gelu" else act,
        gated=bool(gated),
        tied=f.flag("tie_word_embeddings", default=not mt5),
        dropout=f.number("dropout_rate", default=0.1),
    )


FAMILY = Family(
    name="t5",
    kind="language",
    config=T5Config,
    build=build,
    phases=("training", "prefill", "decode", "inference"),
    architectures=("T5ForConditionalGeneration", "T5WithLMHeadModel", "MT5ForConditionalGeneration"),
    model_types=("t5", "mt5"),
    from_huggingface=from_huggingface,
)
