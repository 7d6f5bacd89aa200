"""Checks against published closed forms and counts: parameters, activation bytes per layer, weights and KV cache."""

from __future__ import annotations

import pandas as pd

from peakline.models.builder import GraphBuilder
from peakline.models.catalogue import entry, model_names
from peakline.models.graph import Graph
from peakline.models.operators.attention import attention
from peakline.models.operators.dropout import dropout
from peakline.models.operators.elementwise import activation, add
from peakline.models.operators.matmul import linear
from peakline.models.operators.normalization import layer_norm
from peakline.models.transforms.training import train
from peakline.models.workloads import decode, inference

__all__ = ["activations", "gpt_layers", "kv_cache", "parameters", "saved_bytes"]


def parameters() -> pd.DataFrame:
    """Parameters of every catalogued model as built, beside the published count and its source."""
    rows = []
    for name in model_names():
        found = entry(name)
        phase = decode if "decode" in found.family.phases and "inference" not in found.family.phases else inference
        graph = phase(name, batch=1, **({"seq": 8} if found.family.kind in ("language", "encoder") else {}))
        rows.append(
            {
                "model": name,
                "built": int(graph.parameters),
                "published": found.parameters,
                "source": found.source,
            }
        )
    return pd.DataFrame(rows)


def gpt_layers(batch: int, seq: int, hidden: int, heads: int, layers: int = 1) -> Graph:
    """GPT-3-shaped layers as arXiv:2205.05198 counts them: fp16, dropout, attention written out, GeLU of 4h."""
    b = GraphBuilder(f"GPT layer h={hidden}", kind="fp16", training=True)
    x = b.declare("x", (batch, seq, hidden), "fp16", "input", trainable=True)
    with b.layers("layers", layers, x) as layer:
        x = layer.x
        h = layer_norm(b, x, name="input_norm")
        with b.scope("self_attention"):
            q, k, v = (linear(b, h, hidden, bias=True, name=n) for n in ("q", "k", "v"))
            o = attention(
                b, q, k, v, heads=heads, kv_heads=heads, causal=True, backend="eager", upcast=False, p_dropout=0.1
            )
            o = linear(b, o, hidden, bias=True, name="dense")
        x = add(b, x, dropout(b, o, 0.1))
        h = layer_norm(b, x, name="post_norm")
        h = activation(b, "gelu", linear(b, h, 4 * hidden, bias=True, name="up"))
        layer.x = add(b, x, dropout(b, linear(b, h, hidden, bias=True, name="down"), 0.1))
    return b.graph(result=layer.result.name)


def saved_bytes(forward: Graph, recomputation: str = "none") -> int:
    """Bytes of one layer's activations that live from the forward to the backward pass; its result is the caller's."""
    from peakline.memory.lifetimes import unroll

    result = str(forward.workload["result"])
    shape = forward.tensors[result]
    seeded = dict(forward.tensors)
    seeded["seed"] = type(shape)("seed", shape.shape, shape.dtype, "input")
    graph = type(forward)(forward.name, seeded, forward.blocks, forward.workload)
    step = train(graph, result, optimizer=None, seed="seed", recomputation=recomputation)  # type: ignore[arg-type]
    program = unroll(step)
    last = max(i for i, s in enumerate(program.steps) if s.operator.phase == "forward")
    made = range(len(program.storages))
    kept = [k for k in made if 0 <= program.births[k] <= last and program.deaths[k] > last]
    total = sum(int(program.sizes[k]) for k in kept if program.storages[k].tensor.name != result)
    return total + int(forward.tensors["x"].bytes)  # the layer's input is kept by whoever made it


def activations() -> pd.DataFrame:
    """Saved bytes of one GPT-3-shaped layer beside sbh(34 + 5as/h), and 34·sbh with selective recomputation."""
    rows = []
    for name, seq, hidden, heads in (
        ("22B", 2048, 6144, 64),
        ("GPT-3 175B", 2048, 12288, 96),
        ("530B", 2048, 20480, 128),
        ("1T", 2048, 25600, 160),
    ):
        layer = gpt_layers(1, seq, hidden, heads)
        for policy, formula in (
            ("none", seq * hidden * 34 + 5 * heads * seq * seq),
            ("selective", 34 * seq * hidden),
        ):
            counted = saved_bytes(layer, policy)
            rows.append(
                {
                    "layer": name,
                    "recompute": policy,
                    "formula": formula,
                    "counted": counted,
                    "error": counted / formula - 1,
                }
            )
    return pd.DataFrame(rows)


PUBLISHED_KV = (
    ("llama-2-7b", 524288, "2·32 layers·4096·2 B = 0.5 MiB per token (vLLM paper's 13B: 800 KB, arXiv:2309.06180 §3)"),
    ("llama-2-13b", 819200, "800 KB per token (arXiv:2309.06180 §3 for a 13B model of this shape)"),
    ("llama-2-70b", 327680, "grouped heads: 2·80·8·128·2 B (arXiv:2307.09288, table of the architecture)"),
    ("llama-3.1-8b", 131072, "2·32·8·128·2 B (arXiv:2407.21783, table 3)"),
    ("llama-3.1-405b", 516096, "DeepSeek-V3 report's comparison: 516 KB per token (arXiv:2505.09343, table 1)"),
    ("deepseek-v3", 70272, "70.27 KB per token (arXiv:2505.09343, table 1)"),
)


def kv_cache() -> pd.DataFrame:
    """Bytes of KV cache per token and of weights in bf16, beside published figures."""
    rows = []
    for name, published, source in PUBLISHED_KV:
        if name not in model_names():
            continue
        graph = decode(name, batch=1, context=1000, dtype="bf16")
        tokens = int(graph.total_bytes("kv_cache")) // 1000
        rows.append(
            {
                "model": name,
                "KV bytes/token": tokens,
                "published": published,
                "weights (bf16)": int(graph.total_bytes("parameter")),
                "2·parameters": 2 * int(graph.parameters),
                "source": source,
            }
        )
    return pd.DataFrame(rows)
