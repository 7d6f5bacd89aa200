"""Time one operator: forward, backward where it has one, warm and cold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from peakline.record.build import DTYPES, make_optimizer
from peakline.record.memory_run import is_out_of_memory
from peakline.record.schema import Measured, OperatorCase, OperatorRow
from peakline.record.timing import Clock
from peakline.record.words import describe

__all__ = ["OPERATORS", "measure_operator"]


@dataclass
class Made:
    """An operator ready to run.

    Attributes:
        run: the forward pass, under `no_grad`.
        operands: differentiable inputs; empty if there is no backward pass to time.
        cold: whether a run with the cache overwritten means anything.
    """

    run: Callable[[], Any]
    operands: tuple[Tensor, ...] = ()
    cold: bool = True


Maker = Callable[[OperatorCase, str], Made]


def measure_operator(case: OperatorCase, device: str, clock: Clock, *, seed: int = 0) -> OperatorRow:
    """Times of one case; a failure is a row with its error."""
    found: dict[str, Any] = {"case": case, "device": device}
    torch.manual_seed(seed)
    try:
        make = OPERATORS.get(case.operator)
        if make is None:
            raise ValueError(f"operator: {case.operator!r} is unknown; accepted: {', '.join(OPERATORS)}")
        with _products(case.dtype):
            made = make(case, device)
            with torch.no_grad() if case.operator != "optimizer" else torch.enable_grad():
                found["forward"] = _measured(made.run, clock, made.cold)
            if made.operands:
                found |= _backward(made, clock)
    except Exception as error:
        found |= {"error": describe(error), "out_of_memory": is_out_of_memory(error)}
    if device == "cuda" and found.get("out_of_memory"):
        torch.cuda.empty_cache()
    return OperatorRow(**found)


def _backward(made: Made, clock: Clock) -> dict[str, Any]:
    """The gradients of all operands for a given gradient of the result."""
    for operand in made.operands:
        operand.requires_grad_(True)
    out = made.run()
    gradient = torch.randn_like(out)
    backend = type(out.grad_fn).__name__

    def run() -> object:
        return torch.autograd.grad(out, made.operands, gradient, retain_graph=True)

    return {"backward": _measured(run, clock, made.cold), "backend": backend}


def _measured(run: Callable[[], Any], clock: Clock, cold: bool) -> Measured:
    warm = clock.measure(run)
    extra = None
    if clock.device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        extra = torch.cuda.max_memory_allocated() - before
    return Measured(warm=warm, cold=clock.measure(run, cold=True) if cold else None, extra_bytes=extra)


@contextmanager
def _products(dtype: str) -> Iterator[None]:
    """float32 products on the tensor cores only where `tf32` was asked for."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = dtype == "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


# ---- what runs -----------------------------------------------------------------------------------------------------
def _gemm(case: OperatorCase, device: str) -> Made:
    m, n, k = (case.sizes[d] for d in "mnk")
    if case.dtype == "fp8":
        x = torch.randn(m, k, device=device).to(torch.float8_e4m3fn)
        w = torch.randn(n, k, device=device).to(torch.float8_e4m3fn)
        one = torch.ones((), device=device)
        return Made(lambda: torch._scaled_mm(x, w.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16))
    x = torch.randn(m, k, device=device, dtype=DTYPES[case.dtype])
    w = torch.randn(n, k, device=device, dtype=x.dtype)
    return Made(lambda: F.linear(x, w))


def _batched_gemm(case: OperatorCase, device: str) -> Made:
    b, m, n, k = (case.sizes[d] for d in ("batch", "m", "n", "k"))
    x = torch.randn(b, m, k, device=device, dtype=DTYPES[case.dtype])
    y = torch.randn(b, k, n, device=device, dtype=x.dtype)
    return Made(lambda: torch.bmm(x, y))


def _attention(case: OperatorCase, device: str) -> Made:
    b, s, h, kv, d = (case.sizes[name] for name in ("batch", "seq", "heads", "kv_heads", "head_dim"))
    dtype, causal = DTYPES[case.dtype], bool(case.options.get("causal"))
    q = torch.randn(b, h, s, d, device=device, dtype=dtype)
    k, v = (torch.randn(b, kv, s, d, device=device, dtype=dtype) for _ in range(2))
    return Made(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=kv != h), (q, k, v))


def _attention_decode(case: OperatorCase, device: str) -> Made:
    b, c, h, kv, d = (case.sizes[name] for name in ("batch", "context", "heads", "kv_heads", "head_dim"))
    q = torch.randn(b, h, 1, d, device=device, dtype=DTYPES[case.dtype])
    k, v = (torch.randn(b, kv, c, d, device=device, dtype=q.dtype) for _ in range(2))
    return Made(lambda: F.scaled_dot_product_attention(q, k, v, enable_gqa=kv != h))


def _matrix(case: OperatorCase, device: str) -> Tensor:
    shape = case.sizes["rows"], case.sizes["columns"]
    return torch.randn(shape, device=device, dtype=DTYPES[case.dtype])


def _unary(function: Callable[[Tensor], Tensor], *, backward: bool = False) -> Maker:
    def make(case: OperatorCase, device: str) -> Made:
        x = _matrix(case, device)
        return Made(lambda: function(x), (x,) if backward else ())

    return make


def _binary(function: Callable[[Tensor, Tensor], Tensor], *, backward: bool = False) -> Maker:
    def make(case: OperatorCase, device: str) -> Made:
        x, y = _matrix(case, device), _matrix(case, device)
        return Made(lambda: function(x, y), (x, y) if backward else ())

    return make


def _cast(case: OperatorCase, device: str) -> Made:
    x = _matrix(case, device)
    other = torch.bfloat16 if x.dtype == torch.float32 else torch.float32
    return Made(lambda: x.to(other))


def _layer_norm(case: OperatorCase, device: str) -> Made:
    x = _matrix(case, device)
    weight, bias = torch.ones_like(x[0]), torch.zeros_like(x[0])
    return Made(lambda: F.layer_norm(x, weight.shape, weight, bias), (x, weight, bias))


def _rms_norm(case: OperatorCase, device: str) -> Made:
    x = _matrix(case, device)
    weight = torch.ones_like(x[0])
    return Made(lambda: F.rms_norm(x, list(weight.shape), weight), (x, weight))


def _cross_entropy(case: OperatorCase, device: str) -> Made:
    tokens, vocab = case.sizes["tokens"], case.sizes["vocab"]
    logits = torch.randn(tokens, vocab, device=device, dtype=DTYPES[case.dtype])
    target = torch.randint(0, vocab, (tokens,), device=device)
    return Made(lambda: F.cross_entropy(logits, target), (logits,))


def _embedding(case: OperatorCase, device: str) -> Made:
    tokens, vocab, width = (case.sizes[name] for name in ("tokens", "vocab", "width"))
    table = torch.randn(vocab, width, device=device, dtype=DTYPES[case.dtype])
    ids = torch.randint(0, vocab, (tokens,), device=device)
    return Made(lambda: F.embedding(ids, table), (table,))


def _convolution(case: OperatorCase, device: str) -> Made:
    s = case.sizes
    x = torch.randn(s["batch"], s["channels_in"], s["side"], s["side"], device=device, dtype=DTYPES[case.dtype])
    w = torch.randn(s["channels_out"], s["channels_in"], s["kernel"], s["kernel"], device=device, dtype=x.dtype)
    if case.options.get("channels_last"):
        x, w = x.to(memory_format=torch.channels_last), w.to(memory_format=torch.channels_last)
    return Made(lambda: F.conv2d(x, w, stride=s["stride"], padding=s["kernel"] // 2), (x, w))


def _copy(case: OperatorCase, device: str) -> Made:
    size, direction = case.sizes["bytes"], case.options["direction"]
    if direction == "d2d":
        a, b = (torch.ones(size, dtype=torch.uint8, device=device) for _ in range(2))
        return Made(lambda: b.copy_(a), cold=size < 1 << 28)
    if device == "cpu":
        raise ValueError(f"direction: a CPU has no copies {direction!r}; accepted: d2d")
    host = torch.ones(size, dtype=torch.uint8, pin_memory=bool(case.options["pinned"]))
    there = torch.ones(size, dtype=torch.uint8, device=device)
    if direction == "h2d":
        return Made(lambda: there.copy_(host, non_blocking=True), cold=False)
    return Made(lambda: host.copy_(there, non_blocking=True), cold=False)


def _optimizer(case: OperatorCase, device: str) -> Made:
    shape, dtype = (case.sizes["width"],) * 2, DTYPES[case.dtype]
    tensors = [torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for _ in range(case.sizes["tensors"])]
    for tensor in tensors:
        tensor.grad = torch.randn_like(tensor)
    return Made(make_optimizer(str(case.options["optimizer"]), tensors).step, cold=False)


OPERATORS: dict[str, Maker] = {
    "gemm": _gemm,
    "batched_gemm": _batched_gemm,
    "attention": _attention,
    "attention_decode": _attention_decode,
    "add": _binary(torch.add),
    "mul": _binary(torch.mul),
    "gelu": _unary(F.gelu, backward=True),
    "silu": _unary(F.silu, backward=True),
    "swiglu": _binary(lambda gate, up: F.silu(gate) * up, backward=True),
    "cast": _cast,
    "clone": _unary(torch.clone),
    "transpose": _unary(lambda x: x.t().contiguous()),
    "sum": _unary(torch.sum),
    "dropout": _unary(lambda x: F.dropout(x, 0.1)),
    "softmax": _unary(lambda x: F.softmax(x, -1), backward=True),
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "cross_entropy": _cross_entropy,
    "embedding": _embedding,
    "convolution": _convolution,
    "copy": _copy,
    "optimizer": _optimizer,
}
"""Operators by the name a case gives; y = x·Wᵀ for `gemm`."""
