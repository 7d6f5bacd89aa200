"""The record of one operator's work, and how a recorded call looks to a built-in operator type."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from peakline.models.capture.calls import Call, View
from peakline.models.capture.target import Target
from peakline.models.dims import Shape
from peakline.models.graph import Operator, Tensor
from peakline.models.kernels import Kernel
from peakline.models.operators import Node, operator_type

__all__ = ["NOTHING", "Rule", "Work", "as_node", "built_in", "distinct", "like", "present", "read_bytes"]


@dataclass(frozen=True, slots=True)
class Work:
    """What one call computes.

    Attributes:
        kernels: in order of launch.
        reads, writes: bytes that must be read and written at least: every distinct operand once, of a view its part,
            an expanded dimension once.
    """

    kernels: tuple[Kernel, ...]
    reads: int
    writes: int


NOTHING = Work((), 0, 0)
"""A view, an allocation without a fill, a question about a tensor."""

Rule: TypeAlias = Callable[[Call, Target], Work]
"""How one operator is described."""


def distinct(views: Iterable[View]) -> list[View]:
    """The views without repetitions, in order; one whose storage is wholly looked at by an equal view counts once."""
    return list(dict.fromkeys(views))


def read_bytes(views: Iterable[View]) -> int:
    """Bytes of the distinct views."""
    return sum(view.bytes for view in distinct(views))


def like(view: View, shape: Shape | None = None) -> Tensor:
    """A view as a built-in operator sees it, under another shape where that says so; its bytes are the view's."""
    name = f"{view.storage}+{view.offset}{view.shape}{view.strides}{view.dtype}"
    return Tensor(name, view.shape if shape is None else shape, view.dtype, bytes_override=view.bytes)


def as_node(
    kind: str, inputs: Iterable[Tensor], outputs: Iterable[Tensor], attributes: Mapping[str, Any] | None = None
) -> Node:
    """A node of a built-in operator type, outside any graph."""
    ins, outs = tuple(inputs), tuple(outputs)
    operator = Operator("", kind, tuple(t.name for t in ins), tuple(t.name for t in outs), dict(attributes or {}))
    return Node(operator, ins, outs, (1,) * (len(ins) + len(outs)))


def built_in(node: Node) -> Work:
    """The work of a built-in operator type on a node."""
    kind = operator_type(node.operator.type)
    return Work(kind.kernels(node), int(kind.reads(node)), int(kind.writes(node)))


def present(*values: Any) -> list[View]:
    """The views among values of which some may be None."""
    return [value for value in values if isinstance(value, View)]
