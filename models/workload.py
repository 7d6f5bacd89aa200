"""What is to be computed with a model: the phase, the sizes, the formats, the implementations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from peakline.models.builder import GraphBuilder
from peakline.models.dims import Dim
from peakline.models.dtypes import DTYPES, DType
from peakline.models.graph import Tensor
from peakline.models.operators.attention import Backend

__all__ = ["PHASE_NAMES", "Family", "Lora", "Workload"]

WorkPhase: TypeAlias = Literal["training", "prefill", "decode", "inference"]
PHASE_NAMES = ("training", "prefill", "decode", "inference")


@dataclass(frozen=True, slots=True)
class Lora:
    """Low-rank adapters (arXiv:2106.09685): the base is frozen; y = Wx + B·A·x on the targeted projections."""

    rank: int
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    dropout: float = 0.0
    kind: DType | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """One run of a model.

    Attributes:
        phase: `training` (forward with loss, gradients follow), `prefill` (fill the KV cache), `decode` (one token
            with `context` tokens in the cache), `inference` (a forward pass without cache).
        batch: sequences or images.
        seq: tokens per sequence (training, prefill, inference of language models).
        context: tokens in the KV cache that a decode step attends to, the new one included.
        image: height and width of the input image; None takes the model's own.
        kind: format of parameters and activations.
        autocast: format of matrix products under mixed precision, or None.
        kv_kind: format of the KV cache.
        weight_kind: storage format of quantised linear weights, or None.
        attention: backend of `operators.attention`, or `auto`.
        eager: kernel by kernel as eager PyTorch and transformers run it; False for fused kernels.
        loss: `unfused` (logits upcast to float32), `native` (in the logits' own format), `fused` or `chunked` (never
            the whole logits).
        dropout: whether the configuration's dropout probabilities apply.
        lora: adapters, or None for full training.
    """

    phase: WorkPhase
    batch: Dim = 1
    seq: Dim | None = None
    context: Dim | None = None
    image: Dim | None = None
    kind: DType = DTYPES["bf16"]
    autocast: DType | None = None
    kv_kind: DType | None = None
    weight_kind: DType | None = None
    attention: Backend | Literal["auto"] = "auto"
    eager: bool = True
    loss: Literal["unfused", "native", "fused", "chunked"] = "unfused"
    loss_chunks: int = 8
    dropout: bool = True
    lora: Lora | None = None

    @property
    def training(self) -> bool:
        """Whether gradients follow."""
        return self.phase == "training"

    def backend(self, default: Backend = "flash") -> Backend:
        """The attention backend: as asked, or flash for 16-bit formats and memory-efficient for float32."""
        if self.attention != "auto":
            return self.attention
        kind = self.autocast or self.kind
        return default if kind.bits <= 16 or default not in ("flash",) else "efficient"


@dataclass(frozen=True)
class Family:
    """A model family: its configuration and how to write its program.

    Attributes:
        name: key, as in `decoder`.
        kind: `language`, `encoder`, `vision`, `diffusion`; decides which sizes a workload needs.
        config: frozen dataclass of hyperparameters; raises ValueError naming a field that cannot be.
        build: writes the model into a builder and returns the loss (training) or the result.
        architectures: Hugging Face `architectures` it reads.
        model_types: Hugging Face `model_type` it reads.
        from_huggingface: turns a `config.json` mapping into `config`; None if there is no such format.
        phases: phases it can run.
        max_positions: the configuration's sequence limit, or None.
    """

    name: str
    kind: Literal["language", "encoder", "vision", "diffusion"]
    config: type[Any]
    build: Callable[[GraphBuilder, Any, Workload], Tensor]
    phases: tuple[WorkPhase, ...]
    architectures: tuple[str, ...] = ()
    model_types: tuple[str, ...] = ()
    from_huggingface: Callable[[dict[str, Any]], Any] | None = None
