"""Recurrences along the sequence: causal convolution, selective scan (Mamba), linear attention.

Selective scan as the `mamba_ssm` kernels run it (arXiv:2312.00752 §3.3): the states stay in SRAM; forward keeps one
state per chunk of 2,048 tokens and the ungated output, backward recomputes the states from them.
Source: state-spaces/mamba `csrc/selective_scan/selective_scan.cpp`, Dao-AILab/causal-conv1d.
"""

from __future__ import annotations

from dataclasses import dataclass

from peakline.models.builder import GraphBuilder
from peakline.models.dims import Dim, ceil_div
from peakline.models.dtypes import dtype
from peakline.models.graph import Tensor
from peakline.models.kernels import Convolution, Kernel, Scan
from peakline.models.operators.registry import GradientContext, Node, OperatorType, register

__all__ = ["causal_conv1d", "conv_update", "linear_attention", "selective_scan", "state_update"]

CHUNK = 2048
"""Tokens between states that forward keeps (`selective_scan.cpp`: `n_chunks = (seqlen + 2048 - 1) / 2048`)."""

_FP32 = dtype("fp32")


def _depthwise(x: Tensor, taps: Dim, result: Tensor) -> Convolution:
    batch, tokens, width = x.shape
    return Convolution(batch, width, width, width, taps, tokens, tokens, x.dtype, x.dtype, result.dtype)


@dataclass(frozen=True)
class CausalConv1d(OperatorType):
    """y[B, L, D] = act(depthwise convolution of x with the last `taps` tokens); keeps x and the weight."""

    name: str = "causal_conv1d"

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """One depthwise convolution."""
        x, w = node.inputs[:2]
        return (_depthwise(x, w.shape[-1], node.outputs[0]),)

    def backward(self, node: Node, context: GradientContext) -> None:
        """dx, dW and db in one kernel, which recomputes the convolution for the activation's derivative."""
        dy = context.grad(node.outputs[0])
        targets = [t for t in node.inputs if context.needs(t)]
        if dy is None or not targets:
            return
        outputs = {f"grad{i}": (t.shape, t.dtype) for i, t in enumerate(targets)}
        for target, gradient in zip(targets, context.emit("causal_conv1d_backward", [dy, *node.inputs], outputs)):
            context.give(target, gradient)


@dataclass(frozen=True)
class CausalConv1dBackward(OperatorType):
    """Gradients of a causal depthwise convolution."""

    name: str = "causal_conv1d_backward"

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """The convolution again, its transpose, and the product for the weight."""
        _, x, w = node.inputs[:3]
        return (_depthwise(x, w.shape[-1], x),) * 3


@dataclass(frozen=True)
class SelectiveScan(OperatorType):
    """h ← exp(Δ·A)·h + Δ·B·x; y = C·h + D·x, gated by silu(z).

    Inputs x, Δ, z [B, L, D], B, C [B, L, N], then A [D, N], D [D] and Δ's bias [D]; outputs y, the ungated output, and
    the chunks' states in float32.
    """

    name: str = "selective_scan"

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """One scan over L steps of D channels with N numbers of state."""
        x, state = node.inputs[0], node.inputs[3].shape[-1]
        return (Scan(x.shape[0], x.shape[1], x.shape[2], state, x.dtype),)

    def backward(self, node: Node, context: GradientContext) -> None:
        """All gradients in one kernel, from the inputs, the ungated output and the chunks' states."""
        y, plain, states = node.outputs
        dy = context.grad(y)
        targets = [t for t in node.inputs if context.needs(t)]
        if dy is None or not targets:
            return
        outputs = {f"grad{i}": (t.shape, t.dtype) for i, t in enumerate(targets)}
        made = context.emit("selective_scan_backward", [dy, plain, states, *node.inputs], outputs)
        for target, gradient in zip(targets, made):
            context.give(target, gradient)


@dataclass(frozen=True)
class SelectiveScanBackward(OperatorType):
    """Gradients of a selective scan: the forward scan again and a reverse one of about twice the work."""

    name: str = "selective_scan_backward"

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """Three times the forward's operations."""
        x, state = node.inputs[3], node.inputs[6].shape[-1]
        return (Scan(x.shape[0], x.shape[1], x.shape[2], state, x.dtype, per_state=18),)

    def workspace(self, node: Node) -> tuple[Dim, ...]:
        """float32 accumulators of dB and dC (`selective_scan_bwd`: `dB`, `dC` zeros in float32)."""
        b = node.inputs[6]
        return (b.elements * 4, b.elements * 4)


@dataclass(frozen=True)
class StateUpdate(OperatorType):
    """One token's step: reads and writes the state [B, D, N] (or the convolution's window [B, D, taps]) in place."""

    name: str = "state_update"

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """One step of the recurrence over every number of state."""
        batch, width, state = node.inputs[-1].shape
        return (Scan(batch, 1, width, state, node.inputs[-1].dtype),)


@dataclass(frozen=True)
class LinearAttention(OperatorType):
    """S ← S + kᵀ·v; y = q·S, without a softmax (arXiv:2006.16236); q, k [B, L, h·dk], v [B, L, h·dv]."""

    name: str = "linear_attention"

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """Per step and head dk·dv multiply-adds into the state and as many out of it."""
        q, _, v = node.inputs
        heads = node.attributes["heads"]
        return (Scan(q.shape[0], q.shape[1], q.shape[2], v.shape[2] // heads, q.dtype, per_state=4),)

    def backward(self, node: Node, context: GradientContext) -> None:
        """dq, dk, dv by a forward and a reverse scan."""
        dy = context.grad(node.outputs[0])
        targets = [t for t in node.inputs if context.needs(t)]
        if dy is None or not targets:
            return
        outputs = {f"grad{i}": (t.shape, t.dtype) for i, t in enumerate(targets)}
        made = context.emit("linear_attention_backward", [dy, *node.inputs], outputs, attributes=node.attributes)
        for target, gradient in zip(targets, made):
            context.give(target, gradient)


@dataclass(frozen=True)
class LinearAttentionBackward(OperatorType):
    """Gradients of linear attention: the state again, its gradient, and three products with them."""

    name: str = "linear_attention_backward"

    def kernels(self, node: Node) -> tuple[Kernel, ...]:
        """Ten operations per number of state and step: two states made, three products."""
        q, v = node.inputs[1], node.inputs[3]
        heads = node.attributes["heads"]
        return (Scan(q.shape[0], q.shape[1], q.shape[2], v.shape[2] // heads, q.dtype, per_state=10),)


for _type in (
    CausalConv1d(), CausalConv1dBackward(), SelectiveScan(), SelectiveScanBackward(), StateUpdate(), LinearAttention(),
    LinearAttentionBackward(),
):  # fmt: skip
    register(_type)


def causal_conv1d(b: GraphBuilder, x: Tensor, weight: Tensor, bias: Tensor | None, *, name: str = "conv") -> Tensor:
    """Causal depthwise convolution of x [B, L, D] with weight [D, 1, taps], and SiLU, in one kernel."""
    inputs = [x, weight] if bias is None else [x, weight, bias]
    return b.add("causal_conv1d", inputs, {"out": (x.shape, x.dtype)}, name=name)[0]


def selective_scan(
    b: GraphBuilder, x: Tensor, delta: Tensor, z: Tensor, bc: tuple[Tensor, Tensor], constants: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """The scan over a whole sequence: gated output [B, L, D] and the chunks' states [B, D, chunks, 2·N]."""
    batch, tokens, width = x.shape
    state = bc[0].shape[-1]
    outputs = {
        "out": (x.shape, x.dtype),
        "plain": (x.shape, x.dtype),
        "states": ((batch, width, ceil_div(tokens, CHUNK), 2 * state), _FP32),
    }
    y, _, states = b.add("selective_scan", [x, delta, z, *bc, *constants], outputs, name="selective_scan")
    return y, states


def conv_update(b: GraphBuilder, x: Tensor, parameters: list[Tensor], window: Tensor) -> Tensor:
    """One token through the convolution: x [B, 1, D], its last tokens in `window` [B, D, taps] shifted in place."""
    outputs = {"out": (x.shape, x.dtype), "window": (window.shape, window.dtype)}
    made = b.add("state_update", [x, *parameters, window], outputs, name="conv_update", in_place={"window": window})
    return made[0]


def state_update(b: GraphBuilder, x: Tensor, inputs: list[Tensor], state: Tensor) -> Tensor:
    """One token through the recurrence: x [B, 1, D], `state` [B, D, N] overwritten in place."""
    outputs = {"out": (x.shape, x.dtype), "state": (state.shape, state.dtype)}
    return b.add("state_update", [x, *inputs, state], outputs, name="state_update", in_place={"state": state})[0]


def linear_attention(b: GraphBuilder, q: Tensor, k: Tensor, v: Tensor, *, heads: int) -> Tensor:
    """Causal linear attention, heads side by side in the last dimension."""
    outputs = {"out": (v.shape, v.dtype)}
    return b.add("linear_attention", [q, k, v], outputs, name="linear_attention", attributes={"heads": heads})[0]
