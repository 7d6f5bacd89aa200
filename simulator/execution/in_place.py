"""What autograd does in place for plain tensors, and out of place as soon as a dispatch mode listens.

Plans are made for runs that nobody listens to. While a plan is carried out a dispatch mode is on, so the engine adds
second gradients into new memory (torch/csrc/autograd/input_buffer.cpp, `can_accumulate_inplace`) and formulas scatter
into copies (FunctionsManual.cpp, `areAnyTensorSubclassLike`). Here the operator that would have been
called is put back.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from peakline.models.capture.recorder import references

__all__ = ["held_by_a_buffer", "in_place"]

_aten = torch.ops.aten
_ADD = _aten.add.Tensor
_IN_PLACE = {
    _ADD: _aten.add_.Tensor,
    _aten.index_put.default: _aten.index_put_.default,
    _aten.scatter_add.default: _aten.scatter_add_.default,
    _aten.scatter.src: _aten.scatter_.src,
    _aten.index_add.default: _aten.index_add_.default,
    _aten.put.default: _aten.put_.default,
    _aten.index_fill.int_Scalar: _aten.index_fill_.int_Scalar,
}


def in_place(operator: Any, planned: str, args: tuple[Any, ...]) -> Any:
    """The operator of a backward pass that would be called without a dispatch mode, if the plan has it.

    Args:
        operator: that was called.
        planned: type of the plan's operator: `aten.add_`.
        args: the first is changed in place where nobody but autograd's buffer or formula holds it.
    """
    twin = _IN_PLACE.get(operator)
    if twin is None or planned != f"aten.{twin._schema.name.partition('::')[2]}" or torch.is_grad_enabled():
        return operator
    old, new = args[0], args[1]
    if operator is _ADD and not (isinstance(new, torch.Tensor) and old.shape == new.shape and old.dtype == new.dtype):
        return operator
    held = held_by_a_buffer()
    tensors, storages = references(old)
    return twin if tensors <= held[0] and storages <= held[1] else operator


@cache
def held_by_a_buffer() -> tuple[int, int]:
    """References to a gradient, and to its storage, that autograd's buffer alone holds: measured once, out of dispatch.

    y = sin x + cos x: the gradient by way of cos arrives while the buffer of x holds the one by way of sin.
    """
    with torch.enable_grad():
        x = torch.ones(2, requires_grad=True) * 1
        y = (x.sin() + x.cos()).sum()
        counter = _Counter()
        with counter:
            y.backward()  # type: ignore[no-untyped-call]
    return counter.seen[0]


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Looks at the references to the first operand of each sum."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[tuple[int, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _ADD and torch._C._current_graph_task_id() >= 0:
            self.seen.append(references(args[0]))
        return func(*args, **(kwargs or {}))
