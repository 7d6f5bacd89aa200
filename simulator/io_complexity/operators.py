"""Operators by name and sizes: `operator("matmul", m=4096, n=4096, k=4096, dtype="bf16")`, or as words `m=4096`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from peakline.io_complexity.convolutions import ConvolutionChain, Layer
from peakline.io_complexity.fused import Attention, MatmulChain, Mlp
from peakline.io_complexity.products import Convolution, Matmul
from peakline.io_complexity.rows import Embedding, Pass, Rows
from peakline.io_complexity.work import Work

__all__ = ["operator", "operator_from_words", "operator_names"]

Sizes = tuple[int, ...]


def _matmul(m: int, n: int, k: int, batch: int = 1, dtype: str = "bf16", weight_dtype: str = "") -> Work:
    e = _bytes(dtype)
    return Matmul(m, n, k, batch, e, _bytes(weight_dtype or dtype), e)


def _convolution(
    channels: int, filters: int, space: Sizes, taps: Sizes = (3, 3), stride: int = 1, padding: Sizes = (0, 0),
    groups: int = 1, batch: int = 1, dtype: str = "bf16",
) -> Work:  # fmt: skip
    e = _bytes(dtype)
    if groups < 1 or channels % groups or filters % groups:
        raise ValueError(f"groups: must divide channels {channels} and filters {filters}, got {groups}")
    pair = (*map(_pair, (space, taps, padding)),)
    return Convolution(batch, channels, filters, pair[0], pair[1], stride, groups, e, e, e, pair[2])


def _attention(
    queries: int, keys: int = 0, dim: int = 128, heads: int = 1, kv_heads: int = 0, batch: int = 1, v_dim: int = 0,
    causal: bool = False, window: int = 0, passes: int = 0, backward: bool = False, dtype: str = "bf16",
    kv_dtype: str = "",
) -> Work:  # fmt: skip
    keys = keys or queries
    if causal and keys < queries:
        raise ValueError(f"keys: a causal mask needs at least as many as queries ({queries}), got {keys}")
    if heads % (kv_heads or heads):
        raise ValueError(f"kv_heads: must divide heads {heads}, got {kv_heads}")
    if passes not in (0, 1, 2, 3):
        raise ValueError(f"passes: must be 1, 2 or 3, got {passes}")
    return Attention(
        queries, keys, dim, v_dim, heads, kv_heads or heads, batch, causal or bool(window), window or None,
        _bytes(dtype), _bytes(kv_dtype or dtype), passes or None, backward,
    )  # fmt: skip


def _mlp(rows: int, width: int, hidden: int, gated: bool = True, out: int = 0, dtype: str = "bf16",
         weight_dtype: str = "") -> Work:  # fmt: skip
    return Mlp(rows, width, hidden, gated, out, _bytes(dtype), _bytes(weight_dtype or dtype))


def _chain(rows: int, widths: Sizes, dtype: str = "bf16", weight_dtype: str = "") -> Work:
    return MatmulChain(rows, widths, _bytes(dtype), _bytes(weight_dtype or dtype))


def _convolutions(
    channels: int, filters: Sizes, space: Sizes, taps: Sizes = (3, 3), batch: int = 1, dtype: str = "bf16"
) -> Work:
    layers = tuple(Layer(f, _pair(taps)) for f in filters)
    return ConvolutionChain(batch, channels, _pair(space), layers, _bytes(dtype))


def _softmax(rows: int, width: int, dtype: str = "bf16") -> Work:
    return Rows(rows, width, 1, _bytes(dtype), 0, "softmax")


def _softmax_backward(rows: int, width: int, dtype: str = "bf16") -> Work:
    return Rows(rows, width, 2, _bytes(dtype), 0, "softmax backward")


def _norm(rows: int, width: int, dtype: str = "bf16") -> Work:
    return Rows(rows, width, 1, _bytes(dtype), width * _bytes(dtype), "norm")


def _norm_backward(rows: int, width: int, dtype: str = "bf16") -> Work:
    return Rows(rows, width, 2, _bytes(dtype), 2 * width * _bytes(dtype), "norm backward")


def _elementwise(elements: int, inputs: int = 2, dtype: str = "bf16") -> Work:
    return Pass(elements * (inputs + 1) * _bytes(dtype), f"elementwise, {inputs} operands of {elements}")


def _embedding(tokens: int, width: int, vocabulary: int, dtype: str = "bf16") -> Work:
    return Embedding(tokens, width, vocabulary, _bytes(dtype))


_KNOWN: dict[str, Callable[..., Work]] = {
    "matmul": _matmul,
    "convolution": _convolution,
    "attention": _attention,
    "mlp": _mlp,
    "chain": _chain,
    "convolutions": _convolutions,
    "softmax": _softmax,
    "softmax-backward": _softmax_backward,
    "norm": _norm,
    "norm-backward": _norm_backward,
    "elementwise": _elementwise,
    "embedding": _embedding,
}


def operator_names() -> list[str]:
    """The operators there are."""
    return list(_KNOWN)


def operator(name: str, **sizes: Any) -> Work:
    """An operator by its name and sizes; what is left out has a default. All are listed with their sizes in docs/io.md.

    Raises ValueError for an unknown name, a missing, unknown or impossible size, or an unknown format.
    """
    build = _KNOWN.get(name)
    if build is None:
        raise ValueError(f"operator: {name!r} is unknown; there are: {', '.join(_KNOWN)}")
    parameters = inspect.signature(build).parameters
    stray = [key for key in sizes if key not in parameters]
    if stray:
        raise ValueError(f"{name}: {stray[0]} is unknown; its sizes are: {', '.join(parameters)}")
    missing = [key for key, p in parameters.items() if p.default is p.empty and key not in sizes]
    if missing:
        raise ValueError(f"{name}: {', '.join(missing)} missing; its sizes are: {', '.join(parameters)}")
    for key, value in sizes.items():
        values = value if isinstance(value, tuple) else (value,)
        optional = parameters[key].default in (0, (0, 0)) and not isinstance(parameters[key].default, bool)
        if any(isinstance(v, int) and not isinstance(v, bool) and v < (0 if optional else 1) for v in values):
            raise ValueError(f"{name}: {key} must be at least {0 if optional else 1}, got {value}")
    return build(**sizes)


def operator_from_words(name: str, words: Sequence[str]) -> Work:
    """The same from words KEY=VALUE: numbers, several with x between (`space=56x56`), formats, yes and no.

    Raises ValueError for a word of another form, and as `operator`.
    """
    build = _KNOWN.get(name)
    sizes: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key or not text:
            raise ValueError(f"{name}: sizes are written KEY=VALUE, got {word!r}")
        parameter = inspect.signature(build).parameters.get(key) if build else None
        sizes[key] = text if parameter is None else _value(name, key, text, str(parameter.annotation))
    return operator(name, **sizes)


def _value(name: str, key: str, text: str, kind: str) -> Any:
    if kind == "str":
        return text
    if kind == "bool":
        if text.lower() not in ("yes", "no", "true", "false"):
            raise ValueError(f"{name}: {key} is yes or no, got {text!r}")
        return text.lower() in ("yes", "true")
    parts = text.lower().split("x")
    if not all(p.isascii() and p.isdigit() for p in parts) or (kind == "int" and len(parts) > 1):
        form = "a whole number" if kind == "int" else "whole numbers with x between, 56x56"
        raise ValueError(f"{name}: {key} is {form}, got {text!r}")
    numbers = tuple(int(p) for p in parts)
    return numbers[0] if kind == "int" else numbers


def _pair(values: Sizes) -> tuple[int, int]:
    if len(values) > 2:
        raise ValueError(f"a height and a width are two numbers, got {'x'.join(map(str, values))}")
    return values[0], values[-1]


def _bytes(dtype: str) -> float:
    """Bytes of one element, scales included."""
    from peakline.models.dtypes import dtype as format_of

    found = format_of(dtype)
    size = found.bits / 8 + (found.scale_bits / found.block / 8 if found.block else 0.0)
    return int(size) if size == int(size) else size
