"""Programs of operator benchmarks: one module, forward and backward, in a loop that never zeroes gradients.

Liger-Kernel's benchmark (`benchmark/scripts`, version 0.2 to 0.4) runs forward and `backward(retain_graph=True)` ten
times: gradients exist from the second pass on, saved tensors are not freed, the output stays in a variable, and the
gradient of a mixed-precision output is held once more in the output's format by the engine.
"""

from __future__ import annotations

import re
from dataclasses import replace

from peakline.models.builder import GraphBuilder
from peakline.models.dtypes import dtype
from peakline.models.graph import Block, Graph, Operator, Tensor
from peakline.models.operators.elementwise import activation, cast, mul, scale, unary
from peakline.models.operators.loss import cross_entropy, linear_cross_entropy
from peakline.models.operators.matmul import linear
from peakline.models.operators.normalization import layer_norm, rms_norm
from peakline.models.transforms.training import train

__all__ = ["cut_cross_entropy", "liger"]


def liger(model: str, sizes: str, kind: str) -> Graph | None:
    """The benchmark of a row of Liger's table; None if the module is not one of PyTorch's or transformers'.

    Args:
        model: what is run, as in `nn.LayerNorm`, `Llama SwiGLU MLP 4096/11008`.
        sizes: its sizes in words, as in `B=4 T=1024`.
        kind: number format of the input.
    """
    numbers = [int(n) for n in re.findall(r"\d+", sizes)]
    b = GraphBuilder(model, kind=kind, training=True)
    if model.startswith("nn.CrossEntropyLoss"):
        rows, vocabulary = numbers
        y = cross_entropy(b, _leaf(b, (rows, vocabulary)), b.input("labels", (rows,)), upcast=False)
    elif model.startswith("Linear("):
        rows, hidden, vocabulary = numbers
        logits = linear(b, _leaf(b, (rows, hidden)), vocabulary, name="head")
        b.parameter("unused_head.weight", (vocabulary, hidden))
        y = cross_entropy(b, logits, b.input("labels", (rows,)), upcast=False)
    elif model == "nn.LayerNorm":
        y = layer_norm(b, _leaf(b, (numbers[0], numbers[1])))
        for name in ("weight", "bias"):
            b.parameter(f"unused_norm.{name}", (numbers[1],))
    elif "RMSNorm" in model:
        x = _leaf(b, (numbers[0], numbers[1]))
        b.dtype = dtype("fp32")  # the weight's format: the output is promoted to it
        y = rms_norm(b, x)
        b.parameter("unused_norm.weight", (numbers[1],))
        b.input("gradient_as_given", x.shape, kind)
    elif "MLP" in model:
        hidden, inner = (int(n) for n in re.findall(r"\d+", model))
        x = _leaf(b, (numbers[0], numbers[1], hidden))
        gate = activation(b, "gelu_tanh" if "GEGLU" in model else "silu", linear(b, x, inner, name="gate_proj"))
        y = linear(b, mul(b, gate, linear(b, x, inner, name="up_proj")), hidden, name="down_proj")
    else:
        return None
    seed = b.input("output_gradient", y.shape, y.dtype).name if y.shape else None
    graph = b.graph()
    step = train(graph, y.name, optimizer=None, set_to_none=False, seed=seed)
    return _held_to_the_end(step, graph, y)


def _leaf(b: GraphBuilder, shape: tuple[int, ...]) -> Tensor:
    return b.declare(b.unique("x"), shape, b.dtype, "input", trainable=True)


def _held_to_the_end(step: Graph, forward: Graph, result: Tensor) -> Graph:
    """`retain_graph=True` and the output variable: what backward read of the forward pass lives until the end."""
    made = {o for _, operator in forward.operators() for o in operator.outputs}
    backward = [operator for _, operator in step.operators() if operator.phase == "backward"]
    saved = {name for operator in backward for name in operator.inputs if name in made}
    holder = Operator("retained_graph", "release", tuple(sorted(saved | {result.name})), (), phase="backward")
    return replace(step, blocks=(*step.blocks, Block("retained", (holder,))))


def cut_cross_entropy(implementation: str, rows: int, hidden: int, vocabulary: int) -> Graph | None:
    """Gemma-2's head, soft-capping and loss as the Cut Cross-Entropy benchmark runs them; None if not modelled.

    `baseline`: logits in bf16, divided, tanh, multiplied, float32 upcast, cross-entropy. `cce`: fused.
    """
    b = GraphBuilder(f"head and loss, {implementation}", kind="bf16", training=True)
    x = b.declare("x", (rows, hidden), "bf16", "input", trainable=True)
    labels = b.input("labels", (rows,))
    if implementation == "baseline":
        logits = linear(b, x, vocabulary, name="classifier")
        capped = scale(b, unary(b, "tanh", scale(b, logits)))
        loss = cross_entropy(b, cast(b, capped, "fp32"), labels)
    elif implementation == "cce":
        weight = b.parameter("classifier.weight", (vocabulary, hidden))
        loss = linear_cross_entropy(b, x, weight, labels, chunks=rows)
    else:
        return None
    return train(b.graph(), loss.name, optimizer=None)
