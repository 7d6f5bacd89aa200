"""Operator types by family; importing this package registers all of them."""

from peakline.models.operators import (
    attention,
    captured,
    convolution,
    copies,
    dropout,
    elementwise,
    embedding,
    gated,
    indexing,
    loss,
    masks,
    matmul,
    moe,
    normalization,
    optimizer,
    pooling,
    quantized,
    rotary,
    scan,
    softmax,
)
from peakline.models.operators.registry import (
    GradientContext,
    Node,
    OperatorType,
    operator_type,
    operator_types,
    register,
)

__all__ = [
    "GradientContext", "Node", "OperatorType", "attention", "captured", "convolution", "copies", "dropout",
    "elementwise", "embedding", "gated", "indexing", "loss", "masks", "matmul", "moe", "normalization", "operator_type",
    "operator_types", "optimizer", "pooling", "quantized", "register", "rotary", "scan", "softmax",
]  # fmt: skip
