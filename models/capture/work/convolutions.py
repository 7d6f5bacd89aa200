"""Convolutions forward and backward, pooling and resizing."""

from __future__ import annotations

from peakline.models.capture.calls import Call, View
from peakline.models.capture.target import Target
from peakline.models.capture.work.record import Rule, Work, as_node, built_in, like, present
from peakline.models.dims import prod
from peakline.models.kernels import Stream
from peakline.models.operators import Node

__all__ = ["RULES", "channels_last", "convolution_nodes"]


def channels_last(view: View) -> bool:
    """Whether a [N, C, *space] tensor lies as [N, *space, C] (and not at the same time channel by channel)."""
    if len(view.shape) not in (4, 5):
        return False

    def dense(order: list[int]) -> bool:
        expected = 1
        for axis in order:
            if view.shape[axis] != 1:
                if view.strides[axis] != expected:
                    return False
                expected *= view.shape[axis]
        return True

    last = len(view.shape) - 1
    return dense([1, *range(last, 1, -1), 0]) and not dense([*range(last, -1, -1)])


def _attributes(call: Call) -> dict[str, object]:
    a = call.arguments
    attributes: dict[str, object] = {"groups": a["groups"], "transposed": a["transposed"]}
    if channels_last(a["input"]) or channels_last(a["weight"]):
        attributes["channels_last"] = True
    return attributes


def convolution_nodes(call: Call) -> list[Node]:
    """A call of `convolution` or `convolution_backward` as built-in operators: one for each result asked for.

    The order is `convolution_backward`'s: the input's gradient, the weight's, the bias's.
    """
    a, attributes = call.arguments, _attributes(call)
    if not call.packet.endswith("_backward"):
        inputs = [like(view) for view in present(a["input"], a["weight"], a.get("bias"))]
        return [as_node("convolution", inputs, [like(call.results[0])], attributes)]
    dy, x, w = (like(a[name]) for name in ("grad_output", "input", "weight"))
    made = iter(call.results)
    nodes = []
    for kind, wanted, inputs in (
        ("convolution_input_gradient", a["output_mask"][0], [dy, w]),
        ("convolution_weight_gradient", a["output_mask"][1], [dy, x]),
        ("reduce", a["output_mask"][2], [dy]),
    ):
        if wanted and (result := next(made, None)) is not None:
            nodes.append(as_node(kind, inputs, [like(result)], attributes if kind != "reduce" else {}))
    return nodes


def _convolution(call: Call, target: Target) -> Work:
    parts = [built_in(node) for node in convolution_nodes(call)]
    kernels = tuple(kernel for part in parts for kernel in part.kernels)
    return Work(kernels, sum(part.reads for part in parts), sum(part.writes for part in parts))


def _taps(call: Call) -> int:
    a = call.arguments
    if "kernel_size" in a:
        size = tuple(a["kernel_size"])
        space = 3 if "3d" in call.packet else 2 if "2d" in call.packet else 1
        return int(prod(size * space if len(size) == 1 else size))
    x, y = a["self"], call.results[0]  # adaptive: windows cover the input
    return max(1, -(-int(x.elements) // max(int(y.elements), 1)))


def _pool(kind: str) -> Rule:
    def rule(call: Call, target: Target) -> Work:
        outputs = [like(view) for view in call.results]
        return built_in(as_node(kind, [like(call.arguments["self"])], outputs, {"taps": _taps(call)}))

    return rule


def _pool_backward(call: Call, target: Target) -> Work:
    a = call.arguments
    inputs = [like(view) for view in present(a["grad_output"], a["self"], a.get("indices"))]
    return built_in(as_node("pool_backward", inputs, [like(view) for view in call.results]))


def _resample(call: Call, target: Target) -> Work:
    first = present(*call.arguments.values())[0]
    return built_in(as_node("interpolate", [like(first)], [like(call.results[0])]))


def _resample_backward(call: Call, target: Target) -> Work:
    first = present(*call.arguments.values())[0]
    return built_in(as_node("resample_backward", [like(first)], [like(call.results[0])]))


def _unfold(call: Call, target: Target) -> Work:
    """`im2col`, `col2im`: a copy with as many operations as the wider side has elements."""
    x, y = call.arguments["self"], call.results[0]
    wide = x if x.elements > y.elements else y
    return Work((Stream(wide.elements, wide.dtype),), x.bytes, y.bytes)


_SIZES = ("1d", "2d", "3d")
_UPSAMPLE = (
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact1d",
    "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "upsample_linear1d", "upsample_bilinear2d",
    "upsample_trilinear3d", "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa",
    "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d",
    "replication_pad2d", "replication_pad3d", "pixel_shuffle", "pixel_unshuffle",
)  # fmt: skip

RULES: dict[str, Rule] = {
    "aten.convolution": _convolution,
    "aten.convolution_backward": _convolution,
    "aten.im2col": _unfold,
    "aten.col2im": _unfold,
    **{f"aten.max_pool{d}_with_indices": _pool("max_pool") for d in _SIZES},
    **{f"aten.adaptive_max_pool{d}": _pool("max_pool") for d in _SIZES},
    **{f"aten.avg_pool{d}": _pool("avg_pool") for d in _SIZES},
    **{f"aten._adaptive_avg_pool{d}": _pool("avg_pool") for d in _SIZES},
    **{f"aten.max_pool{d}_with_indices_backward": _pool_backward for d in _SIZES},
    **{f"aten.adaptive_max_pool{d}_backward": _pool_backward for d in _SIZES},
    **{f"aten.avg_pool{d}_backward": _pool_backward for d in _SIZES},
    **{f"aten._adaptive_avg_pool{d}_backward": _pool_backward for d in _SIZES},
    **{f"aten.{name}": _resample for name in _UPSAMPLE},
    **{f"aten.{name}_backward": _resample_backward for name in _UPSAMPLE},
}
