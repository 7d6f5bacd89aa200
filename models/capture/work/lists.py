"""Operators over lists of tensors: `_foreach_*` and the fused optimizers.

`multi_tensor_apply` (aten/src/ATen/native/cuda/MultiTensorApply.cuh) cuts every tensor into chunks of 65,536 elements
and starts a kernel whenever 320 chunks, or as many tensors as fit its arguments, have been gathered.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from peakline.models.capture.calls import Call, View
from peakline.models.capture.target import Target
from peakline.models.capture.work.record import NOTHING, Rule, Work, read_bytes
from peakline.models.dims import ceil_div
from peakline.models.kernels import Stream

__all__ = ["RULES", "foreach", "launches", "tensor_lists"]

CHUNK_ELEMENTS = 65_536
CHUNKS_PER_LAUNCH = 320
TENSORS_PER_LAUNCH = (110, 64, 48, 36, 30)
"""Tensors a launch takes at most, by how many lists it walks at once (`depth_to_max_tensors`)."""


def tensor_lists(call: Call) -> list[tuple[View, ...]]:
    """The arguments that are lists of tensors, in order."""
    found = []
    for value in call.arguments.values():
        if isinstance(value, tuple) and value and all(isinstance(view, View) for view in value):
            found.append(value)
    return found


def launches(sizes: Sequence[int], lists: int) -> int:
    """Kernels that `multi_tensor_apply` starts for tensors of these numbers of elements in `lists` parallel lists."""
    room = TENSORS_PER_LAUNCH[min(max(lists, 1), len(TENSORS_PER_LAUNCH)) - 1]
    count = tensors = chunks = 0
    for size in sizes:
        left = int(ceil_div(size, CHUNK_ELEMENTS))
        if not left:
            continue
        tensors += 1
        while left:
            taken = min(left, CHUNKS_PER_LAUNCH - chunks)
            left, chunks = left - taken, chunks + taken
            if chunks == CHUNKS_PER_LAUNCH or (tensors == room and not left):
                count += 1
                chunks, tensors = 0, int(left > 0)
    return count + (chunks > 0)


_WORK = {
    "add": 1, "sub": 1, "mul": 1, "div": 1, "neg": 1, "copy": 1, "zero": 1, "sqrt": 4, "rsqrt": 4, "reciprocal": 2,
    "lerp": 3, "addcmul": 3, "addcdiv": 3, "pow": 4, "exp": 4, "sign": 1, "abs": 1, "norm": 2, "maximum": 1,
    "minimum": 1, "clamp_min": 1, "clamp_max": 1, "max": 1,
}  # fmt: skip
"""Scalar operations per element; as the built-in optimizers count them."""

_FUSED = {
    "aten._fused_adam_": (12, ("self", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs", "state_steps")),
    "aten._fused_adamw_": (12, ("self", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs", "state_steps")),
    "aten._fused_sgd_": (4, ("self", "momentum_buffer_list")),
    "aten._fused_adagrad_": (6, ("self", "state_sums", "state_steps")),
    "aten._amp_foreach_non_finite_check_and_unscale_": (2, ("self", "found_inf")),
}
"""Scalar operations per element, and the arguments that are overwritten."""


def _flat(values: Iterable[object]) -> list[View]:
    found: list[View] = []
    for value in values:
        found += [v for v in value if isinstance(v, View)] if isinstance(value, tuple) else []
        if isinstance(value, View):
            found.append(value)
    return found


def _pass(lists: list[tuple[View, ...]], work: int) -> Stream:
    sizes = [view.elements for view in lists[0]]
    return Stream(work * sum(sizes), lists[0][0].dtype, max(launches(sizes, len(lists)), 1))


def foreach(call: Call, target: Target) -> Work:
    """One pass over each element of the lists; in place the first list is overwritten, else new tensors are made.

    `_foreach_norm` ends with a kernel that adds the chunks' partial sums (ForeachReduceOp.cu).
    """
    lists = tensor_lists(call)
    if not lists:
        return NOTHING
    name = call.packet.removeprefix("aten._foreach_")
    in_place = name.endswith("_")
    kernel = _pass(lists if in_place else [*lists, tuple(call.results)], _WORK.get(name.rstrip("_"), 2))
    written = list(lists[0]) if in_place else list(call.results)
    read = [view for view in call.views() if name not in ("zero_", "copy_") or view not in lists[0]]
    if name in ("norm", "max"):
        kernel = Stream(kernel.work, kernel.kind, int(_pass(lists, 1).launches) + 1)
    return Work((kernel,), read_bytes(read), read_bytes(written))


def _fused(call: Call, target: Target) -> Work:
    """A whole optimizer step in one pass."""
    work, names = _FUSED[call.packet]
    lists = [value for value in tensor_lists(call) if value[0].shape or len(value[0].shape)] or tensor_lists(call)
    if not lists:
        return NOTHING
    written = _flat(call.arguments.get(name) for name in names)
    return Work((_pass(lists, work),), read_bytes(call.views()), read_bytes(written))


def _cat(call: Call, target: Target) -> Work:
    """`cat`, `stack`: one copy of everything."""
    y = call.results[0]
    return Work((Stream(y.elements, y.dtype),), read_bytes(call.views()), y.bytes)


RULES: dict[str, Rule] = {**dict.fromkeys(_FUSED, _fused), "aten.cat": _cat, "aten.stack": _cat}
