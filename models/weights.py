"""Weights of a network in a format of their own: int4 or int8 convolutions over wider activations."""

from __future__ import annotations

from dataclasses import replace

from peakline.models.dtypes import DType
from peakline.models.graph import Graph

__all__ = ["with_weights"]


def with_weights(graph: Graph, kind: DType) -> Graph:
    """The inference with the weights of its convolutions and linear layers in `kind`.

    Weights are what an operator multiplies with: parameters of two dimensions and more that are its second operand.
    Biases, norms and embeddings stay as they are.

    Raises:
        ValueError: a training step, whose weights have gradients.
    """
    if graph.workload.get("phase") == "training":
        raise ValueError(f"weight_dtype: {kind} has no gradients; only inference has weights in a format of their own")
    products = ("convolution", "linear", "matmul")
    named = {o.inputs[1] for _, o in graph.operators() if o.type in products and len(o.inputs) > 1}
    changed = {
        name: replace(tensor, dtype=kind)
        for name, tensor in graph.tensors.items()
        if name in named and tensor.role == "parameter" and len(tensor.shape) > 1
    }
    return replace(graph, tensors={**graph.tensors, **changed})
