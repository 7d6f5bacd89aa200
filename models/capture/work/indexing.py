"""Lookups and scatters, sorting, scans and Fourier transforms: where the bytes moved are not the tensors' sizes."""

from __future__ import annotations

from math import log2

from peakline.models.capture.calls import Call, View
from peakline.models.capture.target import Target
from peakline.models.capture.work.record import Rule, Work, as_node, built_in, like, present, read_bytes
from peakline.models.kernels import Stream
from peakline.models.operators import Node

__all__ = ["RULES", "embedding_backward_node"]

SCAN_WORK = 2
"""Additions per element of a parallel prefix sum (a sweep up and one down)."""


def _embedding(call: Call, target: Target) -> Work:
    a = call.arguments
    return built_in(as_node("embedding", [like(a["indices"]), like(a["weight"])], map(like, call.results)))


def embedding_backward_node(call: Call) -> Node:
    """`embedding_dense_backward` as the built-in operator's node."""
    a = call.arguments
    return as_node("embedding_backward", [like(a["grad_output"]), like(a["indices"])], map(like, call.results))


def _embedding_backward(call: Call, target: Target) -> Work:
    return built_in(embedding_backward_node(call))


def _indices(call: Call) -> list[View]:
    a = call.arguments
    found = a.get("indices", a.get("index", ()))
    return present(*(found if isinstance(found, tuple) else (found,)))


def _pick(call: Call, target: Target) -> Work:
    """`index`, `gather`, `index_select`, `take`: the indices and what they name, at most the whole tensor."""
    x, y = call.arguments["self"], call.results[0]
    reads = read_bytes(_indices(call)) + min(y.bytes, x.bytes)
    return Work((Stream(y.elements, y.dtype),), reads, y.bytes)


def _values(call: Call) -> View | None:
    a = call.arguments
    for name in ("values", "value", "source", "src", "tensor"):
        if isinstance(a.get(name), View):
            found: View = a[name]
            return found
    return None


def _put(adds: bool) -> Rule:
    """`index_put`, `scatter`, `index_add`, `index_copy` and the like: as many elements as there are values.

    `adds`: the places written are read first. Out of place the whole tensor is copied as well.
    """

    def rule(call: Call, target: Target) -> Work:
        x, indices, values = call.arguments["self"], _indices(call), _values(call)
        count = values.elements if values is not None else sum(index.elements for index in indices)
        touched = min(count * x.dtype.bits // 8, x.bytes)
        accumulates = adds or bool(call.arguments.get("accumulate"))
        reads = read_bytes([*indices, *present(values)]) + touched * accumulates
        in_place = not call.results or call.results[0].storage == x.storage
        copied = 0 if in_place else x.bytes
        launches = 1 if in_place else 2
        return Work((Stream(count, x.dtype, launches),), reads + copied, touched + copied)

    return rule


def _backward_fill(call: Call, target: Target) -> Work:
    """`slice_backward`, `select_backward`, `gather` backward: a zero fill and the gradient copied in."""
    return built_in(as_node("fill_backward", map(like, call.views()), map(like, call.results)))


def _topk(call: Call, target: Target) -> Work:
    return built_in(as_node("topk", [like(call.arguments["self"])], map(like, call.results)))


def _sort(call: Call, target: Target) -> Work:
    x = next(call.views())
    return built_in(as_node("sort", [like(x)], map(like, call.results)))


def _scan(call: Call, target: Target) -> Work:
    """A prefix sum along a dimension, one kernel (ScanKernels.cu `scan_innermost_dim`)."""
    x = call.arguments["self"]
    return Work((Stream(SCAN_WORK * x.elements, x.dtype),), x.bytes, read_bytes(call.results))


def _fourier(call: Call, target: Target) -> Work:
    """Fast Fourier transform: 5·n·log₂n operations for n complex points (half as many for real ones), cuFFT's count."""
    x, y = call.arguments["self"], call.results[0]
    wide = max((x, y), key=lambda view: view.elements)
    axes = call.arguments.get("dim", ())
    points = 1
    for axis in axes:
        points *= wide.shape[axis]
    work = int(5 * wide.elements * log2(max(points, 2)))
    if "c2c" not in call.packet:
        work //= 2
    return Work((Stream(work, wide.dtype, max(len(axes), 1)),), x.bytes, y.bytes)


def _triangle(call: Call, target: Target) -> Work:
    x, y = call.arguments["self"], call.results[0]
    return Work((Stream(y.elements, y.dtype),), x.bytes, y.bytes)


RULES: dict[str, Rule] = {
    "aten.embedding": _embedding,
    "aten.embedding_dense_backward": _embedding_backward,
    **{f"aten.{n}": _pick for n in ("index", "gather", "index_select", "take", "_unsafe_index", "masked_select")},
    **{f"aten.{n}": _put(False) for n in ("index_put_", "index_put", "_index_put_impl_", "_unsafe_index_put",
                                          "scatter_", "scatter", "index_copy_", "index_copy", "index_fill_",
                                          "masked_scatter_", "slice_scatter", "select_scatter")},
    **{f"aten.{n}": _put(True) for n in ("index_add_", "index_add", "scatter_add_", "scatter_add", "scatter_reduce_",
                                         "scatter_reduce")},
    **{f"aten.{n}": _backward_fill for n in ("slice_backward", "select_backward", "diagonal_backward")},
    "aten.topk": _topk,
    "aten.sort": _sort,
    "aten.argsort": _sort,
    "aten.unique_dim": _sort,
    "aten._unique2": _sort,
    "aten.kthvalue": _topk,
    **{f"aten.{n}": _scan for n in ("cumsum", "cumprod", "cumsum_", "logcumsumexp", "cummax", "cummin")},
    **{f"aten.{n}": _fourier for n in ("_fft_r2c", "_fft_c2c", "_fft_c2r")},
    **{f"aten.{n}": _triangle for n in ("tril", "triu", "tril_", "triu_")},
}  # fmt: skip
