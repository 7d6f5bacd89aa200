"""Configuration of decoder-only language models: one dataclass, each published model a setting of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from peakline.models.families.decoder_names import STYLES
from peakline.models.families.fields import positive

__all__ = ["DecoderConfig", "LatentAttention", "LayerKind", "MixtureOfExperts"]


@dataclass(frozen=True, slots=True)
class MixtureOfExperts:
    """Experts in place of the MLP.

    Attributes:
        experts: number of routed experts.
        per_token: experts each token visits.
        ffn: width of one expert.
        shared_ffn: width of the MLP that every token visits as well, 0 for none.
        shared_gate: whether a sigmoid gates the shared MLP (Qwen2-MoE).
        dense_first: leading layers with an ordinary MLP.
        every: a layer has experts when its number + 1 is a multiple of this (Qwen's `decoder_sparse_step`).
        router: `softmax` of the logits in float32, or `sigmoid` with a bias for load balance (DeepSeek-V3).
        renormalise: whether the chosen weights are divided by their sum.
        fp32_router: whether the router's product runs in float32.
        groups, groups_chosen: expert groups, and how many of them the router chooses first (DeepSeek); 1 for none.
        weights_fp32: whether the chosen weights stay float32 when the experts' results are scaled (Mixtral).
    """

    experts: int
    per_token: int
    ffn: int
    shared_ffn: int = 0
    shared_gate: bool = False
    dense_first: int = 0
    every: int = 1
    router: Literal["softmax", "sigmoid"] = "softmax"
    renormalise: bool = True
    fp32_router: bool = False
    groups: int = 1
    groups_chosen: int = 1
    weights_fp32: bool = True

    def __post_init__(self) -> None:
        positive(self, "experts", "per_token", "ffn", "every", "groups", "groups_chosen")
        positive(self, "shared_ffn", "dense_first", least=0)
        if self.experts % self.groups:
            raise ValueError(f"{self.experts} experts do not divide into {self.groups} groups")
        if self.per_token > self.experts:
            raise ValueError(f"field 'per_token' is {self.per_token}, more than the {self.experts} experts")


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434 §2.1): keys and values from a shared latent.

    Attributes:
        q_rank: width of the query latent, None for a direct projection.
        kv_rank: width of the key-value latent, which is what the cache keeps.
        nope_dim: numbers per head without rotary embedding.
        rope_dim: numbers per head with it; the key's are shared by all heads.
        v_dim: numbers per head of the values.
    """

    kv_rank: int
    nope_dim: int
    rope_dim: int
    v_dim: int
    q_rank: int | None = None

    def __post_init__(self) -> None:
        positive(self, "kv_rank", "nope_dim", "rope_dim", "v_dim")
        if self.q_rank is not None:
            positive(self, "q_rank")


@dataclass(frozen=True, slots=True)
class LayerKind:
    """What tells one layer of a model from another."""

    windowed: bool = False
    experts: bool = False


@dataclass(frozen=True)
class DecoderConfig:
    """A decoder-only transformer.

    Attributes:
        style: how its parameters are named (`decoder_names.STYLES`).
        vocab, hidden, layers, heads, ffn: sizes; `ffn` is the width of the MLP.
        kv_heads: key and value heads, `heads` by default.
        head_dim: numbers per head, hidden / heads by default.
        max_positions: longest sequence it was made for, or None.
        norm: `rms` or `layer`; `norm_offset`: RMS norm scales by 1 + weight (Gemma); `norm_affine`: it has weights.
        norm_bias: whether a layer norm has a bias.
        activation: Hugging Face name; `gated`: product of two projections (SwiGLU, GeGLU).
        qkv_bias, out_bias, mlp_bias, head_bias: which linear layers have biases.
        fused_qkv, fused_gate_up: one projection for several.
        qk_norm: RMS norm of each head's queries and keys (Qwen3).
        positions: `rope`, `learned` (`position_rows` of them), `alibi` or `none`.
        rotary_dim: numbers of each head that rotate, all by default; `rotary_joined`: queries and keys are put together
            again by a concatenation even then (Phi-3).
        parallel: attention and MLP side by side; `one_norm`: they share one norm.
        post_norms: norms after attention and MLP as well (Gemma-2).
        embed_width: width of the embedding where projections lead to and from `hidden` (OPT-350m).
        embed_norm: a layer norm after the embedding (BLOOM). `final_norm`: one before the head.
        norm_after: norms after the residual additions instead of before the branches (OPT-350m).
        embed_scale: the embedding is multiplied by √hidden (Gemma).
        logit_softcap, attention_softcap: tanh caps (Gemma-2).
        window: tokens a windowed layer sees; `windowed`: which layers are, repeated as a pattern.
        tied: the head is the embedding's matrix.
        softmax_fp32: eager attention's softmax runs in float32.
        scaled_scores: eager attention multiplies the scores by a constant (GPT-Neo does not).
        scores_fp32: eager attention casts queries and keys to float32 (GPT-Neo).
        broadcast_head: a single key-value head is left to SDPA to broadcast, which only its math form does (Falcon).
        sdpa: whether the implementation has fused attention at all; without it, attention is eager by default.
        embed_dropout, attention_dropout, residual_dropout: probabilities.
        moe, mla: mixture of experts, latent attention.
    """

    vocab: int
    hidden: int
    layers: int
    heads: int
    ffn: int
    kv_heads: int = 0
    head_dim: int = 0
    max_positions: int | None = None
    style: str = "llama"
    norm: Literal["rms", "layer"] = "rms"
    norm_offset: bool = False
    norm_affine: bool = True
    norm_bias: bool = True
    activation: str = "silu"
    gated: bool = True
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    fused_qkv: bool = False
    fused_gate_up: bool = False
    qk_norm: bool = False
    positions: Literal["rope", "learned", "alibi", "none"] = "rope"
    position_rows: int = 0
    rotary_dim: int = 0
    rotary_joined: bool = False
    parallel: bool = False
    one_norm: bool = False
    post_norms: bool = False
    embed_width: int = 0
    embed_norm: bool = False
    final_norm: bool = True
    norm_after: bool = False
    embed_scale: bool = False
    logit_softcap: bool = False
    attention_softcap: bool = False
    window: int | None = None
    windowed: tuple[bool, ...] = ()
    tied: bool = False
    softmax_fp32: bool = True
    scaled_scores: bool = True
    scores_fp32: bool = False
    broadcast_head: bool = False
    sdpa: bool = True
    embed_dropout: float = 0.0
    attention_dropout: float = 0.0
    residual_dropout: float = 0.0
    moe: MixtureOfExperts | None = None
    mla: LatentAttention | None = field(default=None)

    def __post_init__(self) -> None:
        positive(self, "vocab", "hidden", "layers", "heads", "ffn")
        if self.style not in STYLES:
            raise ValueError(f"field 'style' is {self.style!r}; accepted: {', '.join(STYLES)}")
        self._default("kv_heads", self.heads)
        if not self.head_dim and self.mla is None and self.hidden % self.heads:
            raise ValueError(
                f"hidden size {self.hidden} is not divisible by {self.heads} attention heads; "
                "accepted: a multiple of them, or head_dim"
            )
        self._default("head_dim", self.mla.nope_dim + self.mla.rope_dim if self.mla else self.hidden // self.heads)
        self._default("rotary_dim", self.mla.rope_dim if self.mla else self.head_dim)
        self._default("embed_width", self.hidden)
        positive(self, "kv_heads", "head_dim", "rotary_dim", "embed_width")
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} attention heads are not a multiple of {self.kv_heads} key-value heads")
        if self.rotary_dim % 2 or self.rotary_dim > self.head_dim:
            raise ValueError(
                f"rotary dimension {self.rotary_dim} must be even and at most the head dimension {self.head_dim}"
            )
        if self.max_positions is not None:
            positive(self, "max_positions")
        if self.window is not None:
            positive(self, "window")
        if self.positions == "learned":
            self._default("position_rows", self.max_positions or 0)
            positive(self, "position_rows")
        for name in ("embed_dropout", "attention_dropout", "residual_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"field {name!r} is {getattr(self, name)!r}; accepted: a probability below 1")

    def _default(self, name: str, value: int) -> None:
        if not getattr(self, name):
            object.__setattr__(self, name, value)

    def kinds(self) -> tuple[LayerKind, ...]:
        """What each layer is, first to last."""
        pattern = self.windowed or (self.window is not None,)
        moe = self.moe
        return tuple(
            LayerKind(
                windowed=self.window is not None and pattern[i % len(pattern)],
                experts=moe is not None and i >= moe.dense_first and (i + 1) % moe.every == 0,
            )
            for i in range(self.layers)
        )
