"""Activations and KV caches against the figures in papers."""

from __future__ import annotations

from typing import Any

import pytest
import transformers_reference as reference

from peakline.models.builder import GraphBuilder
from peakline.models.catalogue import entry
from peakline.models.dtypes import dtype
from peakline.models.workload import Workload


def gpt3_layer_bytes(batch: int, recomputation: str) -> int:
    """Bytes the middle one of three GPT-3-sized layers keeps: fp16, dropout on, scores written out."""
    config = {
        "model_type": "gpt2", "vocab_size": 64, "n_embd": 12288, "n_layer": 3, "n_head": 96, "n_positions": 2048,
        "activation_function": "gelu",
    }  # fmt: skip
    workload = Workload("training", batch=batch, seq=2048, kind=dtype("fp16"), attention="eager")
    graph, loss = reference.build(config, workload)
    kept = reference.kept_for_backward(graph, loss, recomputation)
    return sum(size for name, size in kept.items() if name.startswith("transformer.h.1."))


@pytest.mark.parametrize("batch", [1, 4])
def test_a_gpt3_layer_keeps_sbh_34_plus_5as_over_h(batch: int) -> None:
    """Korthikanti et al., arXiv:2205.05198, equation 1."""
    s, h, a = 2048, 12288, 96
    assert gpt3_layer_bytes(batch, "none") == pytest.approx(s * batch * h * (34 + 5 * a * s / h), rel=1e-3)


@pytest.mark.parametrize("batch", [1, 4])
def test_selective_recomputation_leaves_34_sbh(batch: int) -> None:
    """Korthikanti et al., arXiv:2205.05198, §5."""
    assert gpt3_layer_bytes(batch, "selective") == pytest.approx(34 * 2048 * batch * 12288, rel=1e-3)


def cache_bytes(name: str, **options: Any) -> int:
    """Bytes of the cache of one sequence of 1,024 tokens."""
    model = entry(name)
    b = GraphBuilder(name)
    model.family.build(b, model.config, Workload("decode", context=1024, **options))
    return int(b.graph().total_bytes("kv_cache"))


@pytest.mark.parametrize(
    ("name", "per_token"),
    [
        ("llama-2-7b", 512 * 1024),  # 2·32 layers·4096·2 bytes
        ("llama-2-70b", 320 * 1024),  # arXiv:2307.09288: 8 of 64 heads are kept
        ("llama-3.1-8b", 128 * 1024),
        ("deepseek-v3", 70272),  # arXiv:2412.19437: 61 layers of 512 + 64 numbers; DeepSeek quotes 70 KB
        ("opt-13b", 819200),  # arXiv:2309.06180 §3: 800 KB a token
    ],
)
def test_kv_cache_bytes_per_token_are_the_published_ones(name: str, per_token: int) -> None:
    assert cache_bytes(name) == 1024 * per_token


def test_an_8_bit_cache_is_half_a_16_bit_one() -> None:
    assert 2 * cache_bytes("llama-3.1-8b", kv_kind=dtype("fp8")) == cache_bytes("llama-3.1-8b")


def test_windowed_layers_cache_no_more_than_their_window() -> None:
    """Half of Gemma-2's layers see 4,096 tokens."""
    model = entry("gemma-2-2b")

    def cache(context: int) -> int:
        b = GraphBuilder("gemma-2-2b")
        model.family.build(b, model.config, Workload("decode", context=context))
        return int(b.graph().total_bytes("kv_cache"))

    per_layer = 2 * 4 * 256 * 2  # keys and values, heads, numbers, bytes
    assert cache(8192) == 13 * per_layer * (4096 + 8192)


def test_a_mamba_state_does_not_grow_with_the_context() -> None:
    assert cache_bytes("mamba-130m") == 24 * 1536 * (16 + 4) * 2
