"""What PyTorch really does on a CPU, and the same two figures from a graph: bytes kept for backward, and FLOPs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from peakline.models.builder import GraphBuilder
from peakline.models.graph import Tensor
from peakline.models.kernels import Attention, Convolution, Gemm
from peakline.models.operators import Node, operator_type
from peakline.models.transforms.training import train


def torch_step(module: Any, *inputs: Any, loss: Callable[[Any], Any] | None = None) -> tuple[int, int]:
    """(bytes saved for backward without parameters and buffers, FLOPs of forward and backward products)."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    own = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
    saved: dict[int, int] = {}
    keep = []

    def pack(t: Any) -> Any:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
            keep.append(t)
        return t

    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            result = module(*inputs)
            scalar = loss(result) if loss else result.sum()
        scalar.backward()
    return sum(saved.values()), counter.get_total_flops()


def graph_step(build: Callable[[GraphBuilder], Tensor], kind: str = "fp32") -> tuple[int, int]:
    """The same two figures from a graph whose `build` returns the result, or the loss.

    A tensor is kept if the forward pass makes or is given it, it is no parameter, and a backward operator reads it;
    the result itself is held by whoever called the model, not by autograd.
    """
    b = GraphBuilder("test", kind=kind, training=True)
    result = build(b)
    unrolled = b.graph()
    step = train(unrolled, result.name, optimizer=None).flatten()
    forward = unrolled.flatten()
    given = {t.name for t in step.tensors.values() if t.role in ("parameter", "buffer")} | {result.name}
    kept: dict[str, int] = {}
    flops = 0
    for _, operator in step.operators():
        for kernel in operator_type(operator.type).kernels(Node.of(step, operator)):
            if isinstance(kernel, Gemm | Convolution | Attention):
                flops += kernel.flops
        if operator.phase == "backward":
            for name in operator.inputs:
                if name in forward.tensors and name not in given:
                    owner = forward.tensors[name].storage or name
                    kept[owner] = forward.tensors[owner].bytes
    return sum(kept.values()), flops


def forward_flops(graph: Any) -> Any:
    """FLOPs of the matrix products and convolutions of a graph."""
    families = graph.families
    total: Any = 0
    for block, operator in graph.operators():
        for kernel in operator_type(operator.type).kernels(Node.of(graph, operator, families)):
            if isinstance(kernel, Gemm | Convolution | Attention):
                total = total + kernel.flops * block.repeat
    return total
