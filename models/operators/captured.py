"""Operators recorded from a running program (`peakline.models.capture`): their work in plain numbers.

A recorded operator has fixed sizes, and what it computes was worked out when it was recorded. Its type is the name of
the ATen operator (`aten.addmm`, `aten._softmax`, …), its attributes hold the rest:

* `kernels`: a list of kernels, each a list of the kernel's name and its fields in order
  (`["gemm", batch, m, n, k, "bf16", "bf16", "bf16"]`),
* `reads`, `writes`: compulsory bytes (a view of a tensor reads only its part),
* `workspace`: sizes of blocks allocated and freed inside the operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from peakline.models.dims import Dim
from peakline.models.dtypes import DType, dtype
from peakline.models.kernels import Attention, Convolution, Gemm, GroupedGemm, Kernel, Scan, Stream
from peakline.models.operators.registry import Node, OperatorType

__all__ = ["Captured", "kernel_in", "kernel_out"]

_KERNELS: dict[str, type] = {
    "gemm": Gemm,
    "grouped_gemm": GroupedGemm,
    "convolution": Convolution,
    "attention": Attention,
    "stream": Stream,
    "scan": Scan,
}
_NAMES = {kind: name for name, kind in _KERNELS.items()}


def kernel_out(kernel: Kernel) -> list[Any]:
    """A kernel as a list of JSON values: its name, then its fields in order."""
    values = [getattr(kernel, f.name) for f in fields(kernel)]
    return [_NAMES[type(kernel)], *(v.name if isinstance(v, DType) else v for v in values)]


def kernel_in(values: Sequence[Any]) -> Kernel:
    """The kernel that `kernel_out` wrote.

    Raises:
        ValueError: an unknown kernel, or a wrong number of fields.
    """
    name, *rest = values
    kind = _KERNELS.get(name)
    if kind is None:
        raise ValueError(f"kernel {name!r} is unknown; accepted: {', '.join(_KERNELS)}")
    if len(rest) > len(fields(kind)):
        raise ValueError(f"kernel {name!r} has {len(fields(kind))} fields, not {len(rest)}")
    kernel: Kernel = kind(*(dtype(v) if isinstance(v, str) else v for v in rest))
    return kernel


@dataclass(frozen=True)
class Captured(OperatorType):
    """Any recorded ATen operator; see the module's docstring for its attributes."""

    name: str = "aten"

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """As recorded."""
        return tuple([kernel_in(values) for values in node.attributes.get("kernels", ())])

    def reads(self, node: Node) -> Dim:
        """As recorded."""
        found: Dim = node.attributes.get("reads", 0)
        return found

    def writes(self, node: Node) -> Dim:
        """As recorded."""
        found: Dim = node.attributes.get("writes", 0)
        return found

    def workspace(self, node: Node) -> tuple[Dim, ...]:
        """As recorded."""
        return tuple(node.attributes.get("workspace", ()))
