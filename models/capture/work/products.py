"""Matrix products: mm, addmm, bmm and their kin, dense, scaled and grouped."""

from __future__ import annotations

from peakline.models.capture.calls import Call, View
from peakline.models.capture.target import Target
from peakline.models.capture.work.record import Rule, Work, present, read_bytes
from peakline.models.dims import prod
from peakline.models.kernels import Gemm, GroupedGemm, Kernel, Stream

__all__ = ["RULES"]


def _matrix(view: View) -> tuple[int, int, int]:
    """(batch, rows, columns) of a matrix or a batch of them; a vector is a column."""
    if len(view.shape) == 1:
        return 1, view.shape[0], 1
    return int(prod(view.shape[:-2])), view.shape[-2], view.shape[-1]


def _product(left: str, right: str) -> Rule:
    """C = A·B (+ an addend) of the arguments so named; batches as the result has them."""

    def rule(call: Call, target: Target) -> Work:
        a, b, y = call.arguments[left], call.arguments[right], call.results[0]
        batch, m, k = _matrix(a)
        n = _matrix(b)[2]
        gemm = Gemm(batch, m, n, k, a.dtype, b.dtype, y.dtype)
        return Work((gemm,), read_bytes(call.views()), y.bytes)

    return rule


def _dot(call: Call, target: Target) -> Work:
    """Σ aᵢ·bᵢ: a product of a row and a column."""
    a, b = call.arguments["self"], call.arguments.get("tensor", call.arguments.get("other"))
    y = call.results[0]
    return Work((Gemm(1, 1, 1, a.elements, a.dtype, b.dtype, y.dtype),), read_bytes((a, b)), y.bytes)


def _linear(call: Call, target: Target) -> Work:
    """y[…, n] = x[…, k]·W[n, k]ᵀ (+ bias)."""
    x, w, y = call.arguments["input"], call.arguments["weight"], call.results[0]
    gemm = Gemm(1, x.elements // max(x.shape[-1], 1), w.elements // max(w.shape[-1], 1), x.shape[-1], x.dtype, w.dtype,
                y.dtype)  # fmt: skip
    return Work((gemm,), read_bytes(call.views()), y.bytes)


def _outer(call: Call, target: Target) -> Work:
    """C = A + u·vᵀ."""
    u, v, y = call.arguments["vec1"], call.arguments["vec2"], call.results[0]
    gemm = Gemm(1, u.elements, v.elements, 1, u.dtype, v.dtype, y.dtype)
    return Work((gemm,), read_bytes(call.views()), y.bytes)


def _grouped(call: Call, target: Target) -> Work:
    """`_grouped_mm`: rows sorted by group meet their group's matrix, or (both 2-D) each group its own slice of the sum.

    Every group is taken to receive rows, as routing is data.
    """
    a, b, y = call.arguments["self"], call.arguments["mat2"], call.results[0]
    kernel: Kernel
    if len(a.shape) == 2 and len(b.shape) == 3:  # rows × expert matrices
        kernel = GroupedGemm(min(b.shape[0], a.shape[0]), a.shape[0], b.shape[2], b.shape[1], a.dtype, b.dtype, y.dtype)
    elif len(a.shape) == 2:  # a weight's gradient: the rows are summed
        kernel = GroupedGemm(y.shape[0], a.shape[1], a.shape[0], b.shape[1], a.dtype, b.dtype, y.dtype)
    elif len(b.shape) == 2:  # expert matrices × columns
        kernel = GroupedGemm(a.shape[0], b.shape[1], a.shape[1], a.shape[2], b.dtype, a.dtype, y.dtype)
    else:
        kernel = Gemm(a.shape[0], a.shape[1], b.shape[2], a.shape[2], a.dtype, b.dtype, y.dtype)
    return Work((kernel,), read_bytes(call.views()), y.bytes)


_GATES = (1, 1, 4, 3)
"""Gates of cuDNN's modes: RNN with relu, RNN with tanh, LSTM, GRU (`cudnnRNNMode_t`)."""


def _recurrent(times: int) -> Rule:
    """`_cudnn_rnn`: per layer and direction a product for all tokens' inputs and one per token for the state.

    The backward pass makes two gradients of each product (`times` = 2).
    """

    def rule(call: Call, target: Target) -> Work:
        a = call.arguments
        x, hidden = a["input"], a["hidden_size"]
        tokens, batch = (x.shape[1], x.shape[0]) if a["batch_first"] else (x.shape[0], x.shape[1])
        ways = 2 if a["bidirectional"] else 1
        width = _GATES[a["mode"]] * hidden
        kernels: list[Kernel] = []
        for layer in range(a["num_layers"]):
            inner = x.shape[-1] if layer == 0 else hidden * ways
            kernels += [Gemm(1, tokens * batch, width, inner, x.dtype, x.dtype, x.dtype)] * (ways * times)
            kernels += [Gemm(tokens, batch, width, hidden, x.dtype, x.dtype, x.dtype)] * (ways * times)
        return Work(tuple(kernels), read_bytes(call.views()), read_bytes(call.results))

    return rule


def _lstm_cell(call: Call, target: Target) -> Work:
    """`_thnn_fused_lstm_cell` and the like: the gates' activations after both products."""
    x = present(*call.arguments.values())[0]
    return Work((Stream(8 * x.elements, x.dtype),), read_bytes(call.views()), read_bytes(call.results))


RULES: dict[str, Rule] = {
    "aten.mm": _product("self", "mat2"),
    "aten._int_mm": _product("self", "mat2"),
    "aten._scaled_mm": _product("self", "mat2"),
    "aten.bmm": _product("self", "mat2"),
    "aten.addmm": _product("mat1", "mat2"),
    "aten.addmm_": _product("mat1", "mat2"),
    "aten._addmm_activation": _product("mat1", "mat2"),
    "aten.baddbmm": _product("batch1", "batch2"),
    "aten.baddbmm_": _product("batch1", "batch2"),
    "aten.addbmm": _product("batch1", "batch2"),
    "aten.mv": _product("self", "vec"),
    "aten.addmv": _product("mat", "vec"),
    "aten.dot": _dot,
    "aten.vdot": _dot,
    "aten.addr": _outer,
    "aten.linear": _linear,
    "aten._grouped_mm": _grouped,
    "aten._scaled_grouped_mm": _grouped,
    "aten._cudnn_rnn": _recurrent(1),
    "aten._cudnn_rnn_backward": _recurrent(2),
    "aten._thnn_fused_lstm_cell": _lstm_cell,
    "aten._thnn_fused_lstm_cell_backward_impl": _lstm_cell,
    "aten._thnn_fused_gru_cell": _lstm_cell,
    "aten._thnn_fused_gru_cell_backward": _lstm_cell,
}
