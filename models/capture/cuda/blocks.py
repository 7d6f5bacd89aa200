"""Blocks that CUDA's implementation of an operator allocates and frees inside it.

One function per rule; where a built-in operator knows its workspace, that is the one used. Blocks that exist one after
the other are given as the largest of them. Sources are files of PyTorch under aten/src/ATen/native, unless said
otherwise. cuBLAS's workspaces belong to a handle and a stream, not to an operator, and are not counted here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from peakline.models.capture.calls import Call, View
from peakline.models.capture.cuda.attention_blocks import (
    cudnn_backward,
    efficient_backward,
    efficient_forward,
    flash_backward,
    flash_forward,
)
from peakline.models.capture.cuda.reductions import reduction_blocks
from peakline.models.capture.target import Target
from peakline.models.capture.work.convolutions import channels_last, convolution_nodes
from peakline.models.capture.work.indexing import embedding_backward_node
from peakline.models.capture.work.lists import CHUNK_ELEMENTS, tensor_lists
from peakline.models.capture.work.record import as_node, like, present
from peakline.models.dims import ceil_div, prod
from peakline.models.operators import Node, operator_type

__all__ = ["workspaces"]

Rule: TypeAlias = Callable[[Call, Target], tuple[int, ...]]


def _built_in(node: Node) -> tuple[int, ...]:
    return tuple(int(size) for size in operator_type(node.operator.type).workspace(node))


# ---- convolutions ----------------------------------------------------------------------------------------------------
def is_dense(view: View) -> bool:
    """Whether the tensor lies contiguously, in either layout of images (`is_contiguous` for cuDNN's descriptor)."""
    expected = 1
    for size, stride in zip(reversed(view.shape), reversed(view.strides)):
        if size != 1:
            if stride != expected:
                return channels_last(view)
            expected *= size
    return True


def _convolution(call: Call, target: Target) -> tuple[int, ...]:
    """One cuDNN call after the other, each with the built-in operator's block, beside copies of strided operands.

    cudnn/ConvShared.cpp: `input->contiguous(memory_format)`, likewise weight and gradient.
    """
    a = call.arguments
    operands = present(a.get("grad_output"), a["input"], a["weight"])
    copies = [view.elements * view.dtype.bits // 8 for view in operands if not is_dense(view)]
    blocks = [size for node in convolution_nodes(call) for size in _built_in(node)]
    return (*copies, *((max(blocks),) if blocks else ()))


# ---- rows ------------------------------------------------------------------------------------------------------------
def _softmax_backward(call: Call, target: Target) -> tuple[int, ...]:
    """The product of gradient and result (cuda/SoftMax.cu `softmax_backward_cuda_out`)."""
    output = like(call.arguments["output"])  # the gradient may be an expanded look at one number
    return _built_in(as_node("softmax_backward", [output, output], [like(call.results[0])], {"log": False}))


def _safe_softmax(call: Call, target: Target) -> tuple[int, ...]:
    """The plain softmax, where the input is −∞, and rows that are so throughout (transformers/attention.cpp).

    `softmax`, `self.eq(-inf)`, `all(masked, dim, true)`; the result is a `where` over them.
    """
    x = call.arguments["self"]
    n = x.shape[call.arguments["dim"]] if x.shape else 1
    return (call.results[0].bytes, x.elements, x.elements // max(n, 1))


def _group_norm(call: Call, target: Target) -> tuple[int, ...]:
    """Scale and shift of every channel in float32 (cuda/group_norm_kernel.cu `GroupNormKernelImplInternal`)."""
    a = call.arguments
    if a["HxW"] == 1:
        return ()
    return (4 * a["N"] * a["C"],) * 2


def _group_norm_backward(call: Call, target: Target) -> tuple[int, ...]:
    """Sums of dy·x and dy per channel, then the coefficients of dx (`GroupNormBackwardKernelImplInternal`)."""
    a = call.arguments
    if a["HxW"] == 1:
        return ()
    channels, groups = 4 * a["N"] * a["C"], 4 * a["N"] * a["group"]
    coefficients = (channels, groups, groups) if a["output_mask"][0] else ()
    return (channels, channels, *coefficients)


PARTIAL_NORMS = (2, 8)
"""Release since which the affine gradients of many short rows are summed in two steps (pytorch/pytorch#148605)."""


def _row_norm_backward(call: Call, target: Target) -> tuple[int, ...]:
    """Operands made contiguous, and partial sums of the affine gradients when there are more than 65,536 rows, and
    fewer columns than the multiprocessors take (cuda/layer_norm_kernel.cu `LaunchGammaBetaBackwardCUDAKernel`)."""
    a = call.arguments
    copies = _dense_copies("grad_out", "input", "weight")(call, target)
    columns = int(prod(a["normalized_shape"]))
    rows = a["input"].elements // max(columns, 1)
    wide = int(ceil_div(columns, 32))
    if target.torch < PARTIAL_NORMS or rows <= 65_536 or columns // 32 >= target.multiprocessors // 2:
        return copies
    parts = min(32_768 // wide, int(ceil_div(rows, 32)))
    affine = [view for view in present(a.get("weight"), a.get("bias")) if any(a["output_mask"][1:])]
    return (*copies, *(parts * columns * view.dtype.bits // 8 for view in affine))


def _dense_copies(*names: str) -> Rule:
    """Operands that the implementation makes contiguous before its kernel."""

    def rule(call: Call, target: Target) -> tuple[int, ...]:
        views = present(*(call.arguments.get(name) for name in names))
        return tuple(view.elements * view.dtype.bits // 8 for view in views if not is_dense(view))

    return rule


# ---- losses ----------------------------------------------------------------------------------------------------------
MEAN_OR_SUM = (1, 2)
"""`at::Reduction`: 0 is none."""


def _reduced_loss(count: int) -> Rule:
    """`count` tensors of the input's size while they are averaged to a scalar."""

    def rule(call: Call, target: Target) -> tuple[int, ...]:
        x = call.arguments["self"]
        scalar = call.arguments.get("reduction", 1) in MEAN_OR_SUM
        return (x.elements * x.dtype.bits // 8,) * (count if scalar else count - 1)

    return rule


# ---- indexing and sorting --------------------------------------------------------------------------------------------
def _embedding_backward(call: Call, target: Target) -> tuple[int, ...]:
    return _built_in(embedding_backward_node(call))


def _index_put(call: Call, target: Target) -> tuple[int, ...]:
    """Accumulating, the linear indices are made, sorted with their places, and kept (cuda/Indexing.cu
    `index_put_with_sort_kernel`): four int64 per index, and as much again for the sort's second pair of buffers
    (CUB's `DeviceRadixSort` without double buffers). Otherwise nothing.
    """
    if not call.arguments.get("accumulate"):
        return ()
    shapes = [view.shape for view in present(*call.arguments["indices"])]
    count = int(prod(_broadcast(shapes)))
    return (8 * count,) * 6


def _broadcast(shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    rank = max((len(shape) for shape in shapes), default=0)
    padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    return tuple(max(sizes) for sizes in zip(*padded))


SMALL_SORT = 4096
"""Longest row that a block sorts in shared memory (cuda/Sort.cu `should_use_small_sort`)."""


def _sort(call: Call, target: Target) -> tuple[int, ...]:
    """Rows above 4,096: CUB's radix sort of keys and int64 places keeps a second copy of both (Sort.cu, SortStable.cu).

    An estimate for several rows, which PyTorch sorts by segments or as pairs of row and place.
    """
    x = next(call.views())
    axis = call.arguments.get("dim", -1)
    n = x.shape[axis] if x.shape and isinstance(axis, int) else x.elements
    if n <= SMALL_SORT:
        return ()
    return (x.elements * x.dtype.bits // 8, 8 * x.elements)


# ---- lists -----------------------------------------------------------------------------------------------------------
def _foreach_norm(call: Call, target: Target) -> tuple[int, ...]:
    """A float32 partial sum per chunk of each tensor, as many as the longest has (cuda/ForeachReduceOp.cu)."""
    lists = tensor_lists(call)
    if not lists:
        return ()
    chunks = max(int(ceil_div(view.elements, CHUNK_ELEMENTS)) for view in lists[0])
    width = 8 if lists[0][0].dtype.name == "fp64" else 4
    return (width * len(lists[0]) * chunks,)


_REDUCTIONS = (
    "sum", "mean", "amax", "amin", "max", "min", "argmax", "argmin", "prod", "any", "all", "var", "std", "var_mean",
    "std_mean", "linalg_vector_norm", "norm", "nansum",
)  # fmt: skip

RULES: dict[str, Rule] = {
    "aten.convolution": _convolution,
    "aten.convolution_backward": _convolution,
    "aten._scaled_dot_product_flash_attention": flash_forward(True),
    "aten._flash_attention_forward": flash_forward(False),
    "aten._scaled_dot_product_flash_attention_backward": flash_backward(True),
    "aten._flash_attention_backward": flash_backward(False),
    "aten._scaled_dot_product_efficient_attention": efficient_forward(True),
    "aten._efficient_attention_forward": efficient_forward(False),
    "aten._scaled_dot_product_efficient_attention_backward": efficient_backward(True),
    "aten._efficient_attention_backward": efficient_backward(False),
    "aten._scaled_dot_product_cudnn_attention_backward": cudnn_backward,
    "aten._softmax_backward_data": _softmax_backward,
    "aten._safe_softmax": _safe_softmax,
    "aten.native_layer_norm": _dense_copies("input", "weight", "bias"),
    "aten.native_layer_norm_backward": _row_norm_backward,
    "aten._fused_rms_norm": _dense_copies("input", "weight"),
    "aten._fused_rms_norm_backward": _row_norm_backward,
    "aten.native_group_norm": _group_norm,
    "aten.native_group_norm_backward": _group_norm_backward,
    "aten.mse_loss": _reduced_loss(1),
    "aten.smooth_l1_loss": _reduced_loss(1),
    "aten.huber_loss": _reduced_loss(1),
    "aten.binary_cross_entropy_with_logits": _reduced_loss(2),
    "aten.embedding_dense_backward": _embedding_backward,
    "aten.index_put_": _index_put,
    "aten.index_put": _index_put,
    "aten._index_put_impl_": _index_put,
    "aten.sort": _sort,
    "aten.argsort": _sort,
    "aten._unique2": _sort,
    "aten._foreach_norm": _foreach_norm,
    **{f"aten.{name}": reduction_blocks for name in _REDUCTIONS},
}


def workspaces(call: Call, target: Target) -> tuple[int, ...]:
    """Bytes of the blocks that the operator's implementation on the target holds at once besides its results.

    Args:
        call: as recorded; a CPU's fake results stand for CUDA's.
        target: on `cpu` there are none: other rules hold there.
    """
    if target.kind != "cuda":
        return ()
    rule = RULES.get(call.packet)
    return () if rule is None else tuple(size for size in rule(call, target) if size)
