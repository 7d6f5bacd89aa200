"""Normalisations, softmax and losses: what reduces rows before it can answer."""

from __future__ import annotations

from peakline.models.capture.calls import Call, View
from peakline.models.capture.target import Target
from peakline.models.capture.work.record import Rule, Work, as_node, built_in, like, present, read_bytes
from peakline.models.dims import Shape, prod
from peakline.models.kernels import Stream

__all__ = ["RULES"]


# ---- normalisation ---------------------------------------------------------------------------------------------------
def _by_row(call: Call, x: View) -> Shape:
    """[rows, n] with everything that is normalised together in the last dimension."""
    n = int(prod(call.arguments["normalized_shape"]))
    return (x.elements // max(n, 1), n)


def _row_norm(kind: str) -> Rule:
    def rule(call: Call, target: Target) -> Work:
        a = call.arguments
        shape = _by_row(call, a["input"])
        inputs = [like(a["input"], shape), *(like(v) for v in present(a.get("weight"), a.get("bias")))]
        y, *statistics = call.results
        return built_in(as_node(kind, inputs, [like(y, shape), *map(like, statistics)]))

    return rule


def _row_norm_backward(kind: str) -> Rule:
    def rule(call: Call, target: Target) -> Work:
        a = call.arguments
        dy = a.get("grad_out", a.get("grad_output"))
        shape = _by_row(call, a["input"])
        inputs = [like(dy, shape), like(a["input"], shape)]
        inputs += map(like, present(a.get("mean"), a.get("rstd"), a.get("weight")))
        return built_in(as_node("norm_backward", inputs, map(like, call.results), {"norm": kind}))

    return rule


def _channel_norm(kind: str, training: str | None = None) -> Rule:
    """Batch or group norm; `training`: the argument that says whether the batch's own statistics are made."""

    def rule(call: Call, target: Target) -> Work:
        a = call.arguments
        inputs = map(like, present(a["input"], a.get("weight"), a.get("bias")))
        statistics = training is None or bool(a.get(training, True))
        outputs = call.results if statistics else call.results[:1]
        return built_in(as_node(kind, inputs, [like(view) for view in outputs if view.elements]))

    return rule


def _channel_norm_backward(kind: str) -> Rule:
    def rule(call: Call, target: Target) -> Work:
        a = call.arguments
        dy = a.get("grad_out", a.get("grad_output"))
        saved = present(a.get("mean", a.get("save_mean")), a.get("rstd", a.get("save_invstd", a.get("save_var"))))
        inputs = map(like, present(dy, a["input"], *saved, a.get("weight")))
        return built_in(as_node("norm_backward", inputs, map(like, call.results), {"norm": kind}))

    return rule


# ---- softmax ---------------------------------------------------------------------------------------------------------
def _along(view: View, axis: int) -> Shape:
    """[rows, n] with the reduced dimension last."""
    n = view.shape[axis] if view.shape else 1
    return (view.elements // max(n, 1), n)


def _softmax(kind: str) -> Rule:
    def rule(call: Call, target: Target) -> Work:
        x, y, axis = call.arguments["self"], call.results[0], call.arguments["dim"]
        return built_in(as_node(kind, [like(x, _along(x, axis))], [like(y, _along(y, axis))]))

    return rule


def _softmax_backward(log: bool) -> Rule:
    def rule(call: Call, target: Target) -> Work:
        a, axis = call.arguments, call.arguments["dim"]
        inputs = [like(a[name], _along(a[name], axis)) for name in ("grad_output", "output")]
        return built_in(as_node("softmax_backward", inputs, [like(call.results[0])], {"log": log}))

    return rule


# ---- losses ----------------------------------------------------------------------------------------------------------
def _nll(call: Call, target: Target) -> Work:
    a = call.arguments
    work = built_in(as_node("nll_loss", [like(a["self"]), like(a["target"])], map(like, call.results)))
    return Work(work.kernels, work.reads + read_bytes(present(a.get("weight"))), work.writes)


def _nll_backward(call: Call, target: Target) -> Work:
    a = call.arguments
    inputs = map(like, present(a["grad_output"], a["target"], a.get("weight"), a.get("total_weight")))
    return built_in(as_node("fill_backward", inputs, map(like, call.results)))


def _mse(call: Call, target: Target) -> Work:
    a, y = call.arguments, call.results[0]
    return built_in(as_node("mse_loss", [like(a["self"]), like(a["target"])], [like(y)]))


def _loss(per_element: int) -> Rule:
    """An elementwise loss and its mean: `per_element` operations on each element and an addition."""

    def rule(call: Call, target: Target) -> Work:
        x = call.arguments["self"]
        kernel = Stream((per_element + 1) * x.elements, x.dtype, 2)
        return Work((kernel,), read_bytes(call.views()), read_bytes(call.results))

    return rule


RULES: dict[str, Rule] = {
    "aten.native_layer_norm": _row_norm("layer_norm"),
    "aten._fused_rms_norm": _row_norm("rms_norm"),
    "aten.native_layer_norm_backward": _row_norm_backward("layer_norm"),
    "aten._fused_rms_norm_backward": _row_norm_backward("rms_norm"),
    "aten.native_batch_norm": _channel_norm("batch_norm", "training"),
    "aten.cudnn_batch_norm": _channel_norm("batch_norm", "training"),
    "aten._native_batch_norm_legit": _channel_norm("batch_norm", "training"),
    "aten._batch_norm_with_update": _channel_norm("batch_norm"),
    "aten.native_group_norm": _channel_norm("group_norm"),
    "aten.native_batch_norm_backward": _channel_norm_backward("batch_norm"),
    "aten.cudnn_batch_norm_backward": _channel_norm_backward("batch_norm"),
    "aten.batch_norm_backward": _channel_norm_backward("batch_norm"),
    "aten.native_group_norm_backward": _channel_norm_backward("group_norm"),
    "aten._softmax": _softmax("softmax"),
    "aten._safe_softmax": _softmax("softmax"),
    "aten._log_softmax": _softmax("log_softmax"),
    "aten._softmax_backward_data": _softmax_backward(log=False),
    "aten._log_softmax_backward_data": _softmax_backward(log=True),
    "aten.nll_loss_forward": _nll,
    "aten.nll_loss2d_forward": _nll,
    "aten.nll_loss_backward": _nll_backward,
    "aten.nll_loss2d_backward": _nll_backward,
    "aten.mse_loss": _mse,
    "aten.smooth_l1_loss": _loss(4),
    "aten.huber_loss": _loss(4),
    "aten.binary_cross_entropy": _loss(8),
    "aten.binary_cross_entropy_with_logits": _loss(8),
}
