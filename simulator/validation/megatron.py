"""Megatron-LM's functional tests of a GPT on one rank without model parallelism, as a program.

Sources: `tests/functional_tests/test_cases/gpt/*/model_config.yaml` (micro-batch, `attention-backend: unfused`,
`no-gradient-accumulation-fusion`, bf16), `megatron/core/tensor_parallel/cross_entropy.py` (float32 logits, overwritten
by their softmax, kept), `megatron/core/models/gpt` (embedding tied to the head, learned positions, dropout 0.1,
vocabulary padded to a multiple of 128), `megatron/core/optimizer` (float32 main parameters, moments and gradients).
"""

from __future__ import annotations

from dataclasses import dataclass

from peakline.models.builder import GraphBuilder
from peakline.models.dtypes import dtype
from peakline.models.graph import Graph
from peakline.models.kernels import Kernel, Stream
from peakline.models.operators.attention import attention
from peakline.models.operators.dropout import dropout
from peakline.models.operators.elementwise import activation, add
from peakline.models.operators.embedding import embedding
from peakline.models.operators.matmul import linear
from peakline.models.operators.normalization import layer_norm
from peakline.models.operators.registry import GradientContext, Node, OperatorType, register
from peakline.models.transforms.recompute import Policy
from peakline.models.transforms.training import train

__all__ = ["megatron_step", "sharded_away"]

VOCABULARY = 50304  # GPT-2's 50,257 (--vocab-file bpe/vocab.json) padded to a multiple of 128
DROPOUT = 0.1  # --hidden-dropout and --attention-dropout by default


@dataclass(frozen=True)
class VocabParallelCrossEntropy(OperatorType):
    """Cross-entropy on float32 logits, overwritten in place by their softmax, which backward overwrites in turn."""

    name: str = "vocab_parallel_cross_entropy"
    launches: int = 8

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """About eight operations per logit."""
        return (Stream(8 * node.inputs[0].elements, dtype("fp32"), self.launches),)

    def backward(self, node: Node, context: GradientContext) -> None:
        """The softmax less one at the labels, in place, cast to the logits' format."""
        logits, (loss, softmax) = node.inputs[0], node.outputs
        if context.grad(loss) is not None and context.needs(logits):
            (dx,) = context.emit("cast", [softmax], {"dx": (logits.shape, logits.dtype)})
            context.give(logits, dx)


register(VocabParallelCrossEntropy())


def megatron_step(layers: int, hidden: int, heads: int, batch: int, seq: int, recompute: Policy) -> Graph:
    """One training step of a GPT with a feed-forward layer of 4·hidden."""
    b = GraphBuilder(f"Megatron GPT L{layers} h{hidden} a{heads}", kind="bf16", training=True)
    ids, positions = b.input("input_ids", (batch, seq)), b.input("position_ids", (1, seq))
    x = embedding(b, ids, VOCABULARY, hidden, name="word_embeddings")
    table = b.tensors["word_embeddings.weight"]
    x = add(b, x, embedding(b, positions, seq, hidden, name="position_embeddings"), name="add_positions")
    x = dropout(b, x, DROPOUT)
    with b.layers("layers", layers, x) as layer:
        x = layer.x
        h = layer_norm(b, x, name="input_layernorm")
        with b.scope("self_attention"):
            q, k, v = (linear(b, h, hidden, bias=True, name=n) for n in ("q", "k", "v"))
            h = attention(
                b, q, k, v, heads=heads, kv_heads=heads, causal=True, backend="eager", p_dropout=DROPOUT, upcast=False,
                scaled=False,
            )  # fmt: skip
            h = linear(b, h, hidden, bias=True, name="linear_proj")
        x = add(b, dropout(b, h, DROPOUT), x)
        h = layer_norm(b, x, name="pre_mlp_layernorm")
        h = activation(b, "gelu", linear(b, h, 4 * hidden, bias=True, name="linear_fc1"))
        layer.x = add(b, dropout(b, linear(b, h, hidden, bias=True, name="linear_fc2"), DROPOUT), x)
    x = layer_norm(b, layer.result, name="final_layernorm")
    logits = linear(b, x, VOCABULARY, weight=table, name="output_layer")
    outputs = {"out": ((), dtype("fp32")), "softmax": (logits.shape, dtype("fp32"))}
    (loss, _) = b.add("vocab_parallel_cross_entropy", (logits, b.input("labels", (batch, seq))), outputs, name="loss")
    return train(b.graph(), loss.name, optimizer="adam-fused", recomputation=recompute, master_weights=True)


def sharded_away(graph: Graph, ranks: int) -> int:
    """Bytes that the distributed optimizer leaves to other ranks: all but 1/ranks of main parameters and moments."""
    states = int(graph.total_bytes("optimizer_state"))
    return states - states // ranks
