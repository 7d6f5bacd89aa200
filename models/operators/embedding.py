"""Token embeddings: a gather forward, a dense weight gradient backward (`embedding_dense_backward`)."""

from __future__ import annotations

from dataclasses import dataclass

from peakline.models.builder import GraphBuilder
from peakline.models.dims import Dim, minimum
from peakline.models.graph import Tensor
from peakline.models.kernels import Kernel, Stream
from peakline.models.operators.registry import GradientContext, Node, OperatorType, register

__all__ = ["embedding"]


@dataclass(frozen=True)
class Embedding(OperatorType):
    """out[…, h] = weight[ids[…], h]; keeps the ids."""

    name: str = "embedding"

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """A copy of one row per id."""
        return (Stream(node.outputs[0].elements, node.outputs[0].dtype),)

    def reads(self, node: Node) -> Dim:
        """The ids and at most one table row per id: all rows of the table only when there are more ids than rows."""
        ids, weight = node.inputs
        row = weight.bytes // weight.shape[0] if not isinstance(weight.shape[0], int) or weight.shape[0] else 0
        return ids.bytes + minimum(ids.elements, weight.shape[0]) * row

    def backward(self, node: Node, context: GradientContext) -> None:
        """A dense gradient of the whole table, zero-filled and added into; ids are sorted in a workspace."""
        ids, weight = node.inputs
        dy = context.grad(node.outputs[0])
        if dy is not None and context.needs(weight):
            (dw,) = context.emit("embedding_backward", [dy, ids], {"weight_grad": (weight.shape, weight.dtype)})
            context.give(weight, dw)


@dataclass(frozen=True)
class EmbeddingBackward(OperatorType):
    """Dense gradient of an embedding table."""

    name: str = "embedding_backward"
    launches: int = 6

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """One addition per gradient element, and the zero fill."""
        dy = node.inputs[0]
        return (Stream(dy.elements, dy.dtype, self.launches),)

    def workspace(self, node: Node) -> tuple[Dim, ...]:
        """Above 3,072 ids: sorted and original indices, segment tables, and a float32 partial sum per segment.

        n ids of a table of V rows make s = min(n, V) segments and p = ⌊n/10⌋ + s partial ones. Source:
        aten/src/ATen/native/cuda/Embedding.cu `embedding_dense_backward_cuda` (up to 3,072 ids one kernel without a
        workspace) and EmbeddingBackwardKernel.cu `embedding_backward_cuda_kernel` (`NROWS_PER_THREAD` = 10).
        """
        n, weight = node.inputs[1].elements, node.outputs[0]
        sorts = n > 3072
        if sorts is False:
            return ()
        n = n * sorts
        rows, width = weight.shape
        segments = minimum(n, rows)
        partial = n // 10 + segments
        sum_bytes = max(weight.dtype.bits // 8, 4)
        return (8 * n, 8 * n, 8 * n, 8 * segments, 8 * segments, 8 * partial, sum_bytes * partial * width)


register(Embedding())
register(EmbeddingBackward())


def embedding(
    b: GraphBuilder, ids: Tensor, rows: Dim, width: Dim, *, name: str = "embed", weight: Tensor | None = None
) -> Tensor:
    """Look ids up in a table of `rows` × `width`; `weight` reuses an existing table."""
    with b.scope(name):
        table = weight if weight is not None else b.parameter("weight", (rows, width))
        return b.add("embedding", (ids, table), {"out": ((*ids.shape, width), table.dtype)}, name="embedding")[0]
