"""Mamba state-space language models (arXiv:2312.00752).

Written with the kernels of `mamba_ssm` and `causal_conv1d`, which transformers uses where they are installed; its
fallback, a Python loop over tokens, is not modelled. Source: transformers 5 `models/mamba/modeling_mamba.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peakline.models.builder import GraphBuilder
from peakline.models.dims import Dim
from peakline.models.dtypes import dtype
from peakline.models.families.fields import Fields, positive
from peakline.models.families.layers import Projections, last_token, loss_of, sequence
from peakline.models.graph import Tensor
from peakline.models.operators.attention import write_cache
from peakline.models.operators.elementwise import add, cast, unary
from peakline.models.operators.embedding import embedding
from peakline.models.operators.indexing import split, take
from peakline.models.operators.matmul import product
from peakline.models.operators.normalization import rms_norm
from peakline.models.operators.scan import causal_conv1d, conv_update, selective_scan, state_update
from peakline.models.workload import Family, Workload

__all__ = ["FAMILY", "MambaConfig", "build"]

_FP32 = dtype("fp32")


@dataclass(frozen=True)
class MambaConfig:
    """A Mamba language model.

    Attributes:
        vocab, hidden, layers: sizes.
        inner: width of the recurrence, 2·hidden by default.
        state: numbers of state per channel.
        taps: width of the convolution.
        rank: width of the time step's projection, ⌈hidden/16⌉ by default.
        bias, conv_bias: whether the projections and the convolution have biases.
        fp32_residual: whether the residual stream is float32.
        tied: the head is the embedding's matrix.
        max_positions: None; a recurrence has no limit.
    """

    vocab: int
    hidden: int
    layers: int
    inner: int = 0
    state: int = 16
    taps: int = 4
    rank: int = 0
    bias: bool = False
    conv_bias: bool = True
    fp32_residual: bool = True
    tied: bool = True
    max_positions: int | None = None

    def __post_init__(self) -> None:
        positive(self, "vocab", "hidden", "layers", "state", "taps")
        if not self.inner:
            object.__setattr__(self, "inner", 2 * self.hidden)
        if not self.rank:
            object.__setattr__(self, "rank", -(-self.hidden // 16))
        positive(self, "inner", "rank")


def build(b: GraphBuilder, config: MambaConfig, workload: Workload) -> Tensor:
    """Write the model; the loss in training, the logits otherwise (of the last token after a prefill).

    Raises:
        ValueError: `seq` is missing.
    """
    c, w = config, workload
    tokens: Dim = 1 if w.phase == "decode" else sequence(w)
    project = Projections(b, w)
    x = embedding(b, b.input("input_ids", (w.batch, tokens)), c.vocab, c.hidden, name="backbone.embeddings")
    if c.fp32_residual:
        x = cast(b, x, _FP32, name="residual")
    with b.layers("backbone.layers", c.layers, x) as layer:
        h = rms_norm(b, cast(b, layer.x, b.dtype), name="norm")
        with b.scope("mixer"):
            h = _mixer(b, project, c, w, h)
        layer.x = cast(b, add(b, layer.x, h, name="add_residual"), x.dtype)
    x = rms_norm(b, cast(b, layer.result, b.dtype), name="backbone.norm_f")
    if w.phase == "prefill":
        x = last_token(b, x)
    table = b.tensors["backbone.embeddings.weight"] if c.tied else None
    result = loss_of(b, w, x, c.vocab, head="lm_head", table=table)
    project.finish()
    return result


def _mixer(b: GraphBuilder, project: Projections, c: MambaConfig, w: Workload, x: Tensor) -> Tensor:
    """Projection, convolution, time step and B, C from it, scan, gate, projection."""
    h, z = split(b, project(x, 2 * c.inner, name="in_proj", bias=c.bias), (c.inner, c.inner), name="split_gate")
    h = _convolved(b, c, w, h)
    packed = project(h, c.rank + 2 * c.state, name="x_proj")
    step, b_in, c_out = split(b, packed, (c.rank, c.state, c.state), name="split_x")
    with b.scope("dt_proj"):
        weight = b.parameter("weight", (c.inner, c.rank))
        delta_bias = cast(b, b.parameter("bias", (c.inner,)), _FP32)
        delta = product(b, "linear", [step, weight], (*h.shape[:-1], c.inner))
    a = unary(b, "neg", unary(b, "exp", cast(b, b.parameter("A_log", (c.inner, c.state)), _FP32)))
    skip = cast(b, b.parameter("D", (c.inner,)), _FP32, name="skip")
    constants = [a, skip, delta_bias]
    state_shape = (h.shape[0], c.inner, c.state)
    if w.phase == "decode":
        state = b.input("ssm_state", state_shape, w.kv_kind or b.dtype, "kv_cache")
        y = state_update(b, h, [delta, z, b_in, c_out, *constants], state)
    else:
        y, states = selective_scan(b, h, delta, z, (b_in, c_out), constants)
        if w.phase == "prefill":
            state = b.input("ssm_state", state_shape, w.kv_kind or b.dtype, "kv_cache")
            write_cache(b, take(b, states, state_shape, name="last_state"), state, name="write_state")
    return project(y, c.hidden, name="out_proj", bias=c.bias)


def _convolved(b: GraphBuilder, c: MambaConfig, w: Workload, x: Tensor) -> Tensor:
    """The causal convolution over the sequence, or over the window that the cache keeps."""
    with b.scope("conv1d"):
        weight = b.parameter("weight", (c.inner, 1, c.taps))
        bias = b.parameter("bias", (c.inner,)) if c.conv_bias else None
    shape = (x.shape[0], c.inner, c.taps)
    if w.phase == "decode":
        window = b.input("conv_state", shape, w.kv_kind or b.dtype, "kv_cache")
        return conv_update(b, x, [weight] if bias is None else [weight, bias], window)
    if w.phase == "prefill":
        window = b.input("conv_state", shape, w.kv_kind or b.dtype, "kv_cache")
        write_cache(b, take(b, x, shape, name="last_tokens"), window, name="write_window")
    return causal_conv1d(b, x, weight, bias)


def from_huggingface(values: dict[str, Any]) -> MambaConfig:
    """Read a Mamba `config.json`.

    Raises:
        ValueError: a field is missing or cannot be.
    """
    f = Fields(values)
    hidden = f.int("hidden_size", "d_model")
    rank = values.get("time_step_rank")
    return MambaConfig(
        vocab=f.int("vocab_size"),
        hidden=hidden,
        layers=f.int("num_hidden_layers", "n_layer"),
        inner=f.int("intermediate_size", "d_inner", default=f.int("expand", default=2) * hidden),
        state=f.int("state_size", default=16),
        taps=f.int("conv_kernel", default=4),
        rank=0 if rank in (None, "auto") else f.int("time_step_rank"),
        bias=f.flag("use_bias", default=False),
        conv_bias=f.flag("use_conv_bias", default=True),
        fp32_residual=f.flag("residual_in_fp32", default=True),
        tied=f.flag("tie_word_embeddings", default=True),
    )


FAMILY = Family(
    name="mamba",
    kind="language",
    config=MambaConfig,
    build=build,
    phases=("training", "prefill", "decode", "inference"),
    architectures=("MambaForCausalLM",),
    model_types=("mamba",),
    from_huggingface=from_huggingface,
)
