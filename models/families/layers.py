"""What language-model families share: linear layers as the workload wants them, norms, the KV cache, the loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from peakline.models.builder import GraphBuilder
from peakline.models.dims import Dim, ceil_div, is_array, minimum, prod
from peakline.models.graph import Tensor
from peakline.models.operators.attention import write_cache
from peakline.models.operators.dropout import dropout
from peakline.models.operators.elementwise import add, cast, scale, view
from peakline.models.operators.indexing import take
from peakline.models.operators.loss import cross_entropy, linear_cross_entropy
from peakline.models.operators.matmul import linear
from peakline.models.operators.quantized import quantized_linear
from peakline.models.workload import Workload

__all__ = [
    "Projections",
    "cached",
    "family_name",
    "in_group",
    "last_token",
    "lengths",
    "loss_of",
    "note_length",
    "reads_cache",
    "runs",
    "sequence",
]

Kind = TypeVar("Kind")


def sequence(workload: Workload) -> Dim:
    """`Workload.seq`.

    Raises:
        ValueError: the phase needs it and it is absent.
    """
    if workload.seq is None:
        raise ValueError(f"seq is missing; a {workload.phase} workload of a language model needs it")
    return workload.seq


def lengths(workload: Workload) -> tuple[Dim, Dim]:
    """(queries, keys) of self-attention: tokens computed now, and tokens attended to.

    Training and inference: seq and seq. Prefill: seq, and `context` if some of it lies in the cache already. Decode: 1
    (or `seq`, several tokens at once as in speculative decoding) and `context`.

    Raises:
        ValueError: a size is missing, or fewer keys than queries.
    """
    if workload.phase != "decode":
        queries = sequence(workload)
        keys = queries if workload.context is None or workload.phase != "prefill" else workload.context
    else:
        queries = 1 if workload.seq is None else workload.seq
        if workload.context is None:
            raise ValueError("context is missing; a decode workload needs the number of tokens attended to")
        keys = workload.context
    if np.any(np.less(keys, queries)):
        raise ValueError(f"context {keys} is less than the {queries} tokens computed; it counts them too")
    return queries, keys


def note_length(b: GraphBuilder, tokens: Dim, limit: int | None) -> None:
    """Note on the graph that a sequence passes the model's limit."""
    longest = int(np.max(tokens))
    if limit is not None and longest > limit:
        b.notes.append(f"{longest} tokens pass the {limit} positions that {b.name} was made for")


# ---- linear layers ---------------------------------------------------------------------------------------------------
@dataclass
class Projections:
    """Writes linear layers as a workload runs them: plain, with quantised weights, with low-rank adapters."""

    b: GraphBuilder
    workload: Workload
    names: set[str] = field(default_factory=set)
    adapters: set[str] = field(default_factory=set)

    def __call__(self, x: Tensor, out_features: Dim, *, name: str, bias: bool = False) -> Tensor:
        """A linear layer of the model's body (embeddings and heads are neither quantised nor adapted)."""
        b, kind, lora = self.b, self.workload.weight_kind, self.workload.lora
        if kind is not None:
            y = quantized_linear(b, x, out_features, kind, bias=bias, name=name)
        else:
            y = linear(b, x, out_features, bias=bias, name=name)
        leaf = name.rsplit(".", 1)[-1]
        self.names.add(leaf)
        if lora is None or (leaf not in lora.targets and "all-linear" not in lora.targets):
            return y
        with b.scope(name):
            return self._adapted(x, y, out_features)

    def _adapted(self, x: Tensor, y: Tensor, out_features: Dim) -> Tensor:
        """y + scale·B(A(dropout(x))), cast back to y's format (peft `lora.Linear.forward`)."""
        b, lora = self.b, self.workload.lora
        assert lora is not None
        kind = lora.kind or b.dtype
        if self.workload.dropout:
            x = dropout(b, x, lora.dropout, name="lora_dropout")
        if b.autocast is None:
            x = cast(b, x, kind)
        low = linear(b, x, lora.rank, name="lora_A.default", kind=kind)
        high = linear(b, low, out_features, name="lora_B.default", kind=kind)
        self.adapters |= {f"{b.module}.lora_A.default.weight", f"{b.module}.lora_B.default.weight"}
        return cast(b, add(b, y, scale(b, high, name="scaling"), name="add_adapter"), y.dtype)

    def matrix(self, shape: tuple[Dim, ...], *, name: str) -> Tensor:
        """A linear layer's weight by itself, in the activations' format; expanded first where it is quantised."""
        b, kind = self.b, self.workload.weight_kind
        with b.scope(name):
            weight = b.parameter("weight", shape, kind, trainable=kind is None)
            if kind is None:
                return b.cast_once(weight)
            return b.add("dequantize", (weight,), {"out": (shape, b.autocast or b.dtype)}, name="dequantize")[0]

    def finish(self) -> None:
        """Freeze what is not an adapter, if there are adapters.

        Raises:
            ValueError: no layer matches the adapters' targets.
        """
        lora = self.workload.lora
        if lora is None:
            return
        if not self.adapters:
            raise ValueError(f"lora targets {list(lora.targets)} match no layer; accepted: {sorted(self.names)}")
        for name, tensor in self.b.tensors.items():
            if tensor.role == "parameter" and name not in self.adapters:
                self.b.tensors[name] = replace(tensor, trainable=False)


# ---- KV cache --------------------------------------------------------------------------------------------------------
def cached(b: GraphBuilder, workload: Workload, x: Tensor, keys: Dim, window: Dim | None, name: str) -> Tensor:
    """Store new keys or values [B, S, w] in the layer's cache; what attention reads.

    The cache is a tensor [B, T, w] that exists before the step, T = keys or, for a windowed layer, at most the window.
    A prefill of everything attends to the fresh tensor, otherwise attention reads the cache.
    """
    if workload.phase not in ("prefill", "decode"):
        return x
    kept = keys if window is None else minimum(keys, window)
    kind = workload.kv_kind or b.autocast or b.dtype
    cache = b.input(name, (x.shape[0], kept, x.shape[2]), kind, "kv_cache")
    fresh = x if window is None else take(b, x, (x.shape[0], minimum(x.shape[1], window), x.shape[2]))
    stored = write_cache(b, fresh, cache, name=f"write_{name}")
    return stored if reads_cache(workload) else x


def reads_cache(workload: Workload) -> bool:
    """Whether attention reads keys and values from the cache, because some were computed before this step."""
    return workload.phase == "decode" or (workload.phase == "prefill" and workload.context is not None)


# ---- repeated layers -------------------------------------------------------------------------------------------------
def runs(kinds: Sequence[Kind], longest: int = 8) -> Iterator[tuple[int, int, tuple[Kind, ...]]]:
    """Cut a list of layer kinds into repeated groups: (first layer, repeats, kinds of one group).

    At each place the group of at most `longest` layers whose repetition covers most layers; the shorter of equals.
    """
    first = 0
    while first < len(kinds):
        best = (0, 1, 1)
        for width in range(1, min(longest, len(kinds) - first) + 1):
            group, times = kinds[first : first + width], 1
            while kinds[first + times * width : first + (times + 1) * width] == group:
                times += 1
            if (times > 1 or width == 1) and times * width > best[0]:
                best = (times * width, width, times)
        covered, width, times = best
        yield first, times, tuple(kinds[first : first + width])
        first += covered


def family_name(path: str, first: int, group: int) -> str:
    """The block family of a run: `path`, with its first layer and group width where those are not 0 and 1."""
    if group > 1:
        return f"{path}@{first}/{group}"
    return f"{path}@{first}" if first else path


@contextmanager
def in_group(b: GraphBuilder, position: int, group: int) -> Iterator[None]:
    """The scope of one layer of a group: its position, where the group holds several."""
    with b.scope(str(position) if group > 1 else ""):
        yield


# ---- head and loss ---------------------------------------------------------------------------------------------------
def last_token(b: GraphBuilder, x: Tensor) -> Tensor:
    """The last position of each sequence [B, 1, h], as generation asks for (`logits_to_keep=1`)."""
    return take(b, x, (x.shape[0], 1, x.shape[2]), name="last_token")


def loss_of(
    b: GraphBuilder,
    workload: Workload,
    x: Tensor,
    vocab: int,
    *,
    head: str,
    table: Tensor | None,
    bias: bool = False,
    softcap: bool = False,
    upcast: bool = True,
) -> Tensor:
    """Logits of x, and in training the mean cross-entropy against `labels`.

    Args:
        head: name of the head's module.
        table: the embedding's matrix if the head is tied to it.
        bias: whether the head has one.
        softcap: tanh-capped logits.
        upcast: the loss is computed on float32 logits.
    """
    training = workload.training
    if training and workload.loss in ("fused", "chunked"):
        with b.scope(head):
            weight = table if table is not None else b.parameter("weight", (vocab, x.shape[-1]))
        labels = b.input("labels", x.shape[:-1])
        chunks = workload.loss_chunks if workload.loss == "chunked" else liger_chunks(prod(x.shape[:-1]), vocab, x)
        return linear_cross_entropy(b, x, weight, labels, chunks=chunks)
    logits = linear(b, x, vocab, name=head, weight=table, bias=bias)
    if softcap:
        with b.scope("final_logit_softcapping"):
            logits = soft_capped(b, logits)
    if not training:
        return logits
    labels = b.input("labels", x.shape[:-1])
    rows = prod(logits.shape[:-1])
    return cross_entropy(b, view(b, logits, (rows, vocab)), labels, upcast=upcast and workload.loss != "native")


def soft_capped(b: GraphBuilder, x: Tensor) -> Tensor:
    """cap·tanh(x/cap), three kernels."""
    from peakline.models.operators.elementwise import unary

    return scale(b, unary(b, "tanh", scale(b, x, name="divide")), name="multiply")


def liger_chunks(rows: Dim, vocab: int, x: Tensor) -> Dim:
    """Slices of Liger's fused linear cross-entropy: about vocab/hidden, with a power of two rows each.

    Source: liger_kernel/ops/fused_linear_cross_entropy.py: chunk = next_power_of_2(⌈rows / ⌈V/H⌉⌉).
    """
    chunk = next_power_of_two(ceil_div(rows, ceil_div(vocab, x.shape[-1])))
    return ceil_div(rows, chunk)


def next_power_of_two(n: Dim) -> Dim:
    """The least power of two that is at least n ≥ 1."""
    if is_array(n):
        array: Any = np.vectorize(lambda v: 1 << int(v - 1).bit_length(), otypes=[np.int64])(n)
        return array  # type: ignore[no-any-return]
    return 1 << int(n - 1).bit_length()
