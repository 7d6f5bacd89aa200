"""The operator sweep as data: which operators, at which sizes, in which formats, most valuable first."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from itertools import zip_longest

from peakline.record.schema import OperatorCase

__all__ = ["operator_cases"]

_LARGEST_GEMM = 4e13  # FLOPs
# (n, k) of linear layers: ViT/BERT/GPT-2 base to medium, TinyLlama, Llama 7B, 8B, 13B and 70B, heads, MoE experts, odd.
_LINEAR = (
    (4096, 4096), (11008, 4096), (4096, 11008), (14336, 4096), (8192, 8192), (28672, 8192), (8192, 28672),
    (1024, 1024), (768, 768), (3072, 768), (768, 3072), (2048, 2048), (5632, 2048), (5120, 5120), (13824, 5120),
    (32000, 2048), (128256, 4096), (1536, 4096), (64, 512), (1000, 3000),
)  # fmt: skip
_ROWS = (4096, 1, 1024, 16, 8192, 128, 2048, 64, 512, 8, 256, 16384, 1000, 3000, 96, 200)
_ELEMENTWISE = ("add", "mul", "gelu", "silu", "swiglu", "cast", "clone", "transpose", "sum", "dropout")
_NORMS = ("layer_norm", "rms_norm", "softmax")
# (batch, channels in, out, side, kernel, stride) of ResNet-50 and a diffusion U-Net
_CONVOLUTIONS = (
    (64, 64, 64, 56, 3, 1), (64, 3, 64, 224, 7, 2), (64, 256, 64, 56, 1, 1), (64, 128, 128, 28, 3, 1),
    (64, 512, 256, 28, 1, 2), (64, 256, 256, 14, 3, 1), (64, 512, 512, 7, 3, 1), (64, 512, 2048, 7, 1, 1),
    (8, 320, 320, 64, 3, 1), (8, 640, 640, 32, 3, 1), (1, 64, 64, 56, 3, 1),
)  # fmt: skip


def operator_cases(device: str, seed: int = 0) -> list[OperatorCase]:
    """The sweep of a device, `cuda` or `cpu`: groups interleaved, and the GEMM grid in an order that `seed` decides."""
    groups = _cuda(seed) if device == "cuda" else _cpu(seed)
    found = [case for row in zip_longest(*groups) for case in row if case is not None]
    return list({case.name: case for case in found}.values())


def _case(operator: str, dtype: str, options: dict[str, bool | str] | None = None, **sizes: int) -> OperatorCase:
    parts = [operator, dtype, *(f"{key}{value}" for key, value in sizes.items())]
    parts += [key if value is True else f"{key}-{value}" for key, value in (options or {}).items() if value]
    return OperatorCase(name="_".join(parts), operator=operator, dtype=dtype, sizes=dict(sizes), options=options or {})


def _shuffled(cases: Iterable[OperatorCase], seed: int) -> list[OperatorCase]:
    found = list(cases)
    random.Random(seed).shuffle(found)
    return found


# ---- CUDA ----------------------------------------------------------------------------------------------------------
def _cuda(seed: int) -> list[list[OperatorCase]]:
    bf16 = [_case("gemm", "bf16", m=m, n=n, k=k) for m in _ROWS for n, k in _LINEAR if 2.0 * m * n * k < _LARGEST_GEMM]
    others = [
        _case("gemm", dtype, m=m, n=n, k=k)
        for dtype in ("fp8", "fp16", "tf32", "fp32")
        for m in _ROWS[:8]
        for n, k in _LINEAR[:12]
        if (dtype != "fp8" or m >= 16) and (dtype != "fp32" or 2.0 * m * n * k < _LARGEST_GEMM / 20)
    ]
    return [
        _shuffled(bf16, seed),
        _shuffled(others, seed),
        list(_batched((1, 8, 32, 256), ((1024, 1024, 64), (2048, 2048, 128), (128, 128, 4096)), ("bf16", "fp32"))),
        list(_attention_cuda()),
        list(_rows(_ELEMENTWISE, (256, 2048, 8192, 32768), (768, 4096, 8192), ("bf16", "fp32"))),
        list(_rows(_NORMS, (256, 2048, 8192, 32768), (768, 2048, 4096, 8192), ("bf16", "fp32"))),
        [
            *(_case("cross_entropy", d, tokens=t, vocab=v) for t, v in _LOSSES for d in ("bf16", "fp32")),
            *(_case("embedding", "bf16", tokens=t, vocab=v, width=w) for t, v, w in _EMBEDDINGS),
            *(_convolution("bf16", *shape) for shape in _CONVOLUTIONS),
            *(_convolution("fp32", *shape) for shape in _CONVOLUTIONS[:4]),
            *(_convolution("bf16", *shape, channels_last=True) for shape in (*_CONVOLUTIONS[:4], _CONVOLUTIONS[8])),
        ],
        list(_copies((12, 16, 20, 24, 26, 28, 30), ("h2d", "d2h", "d2d"), (True, False))),
        [
            _case("optimizer", dtype, {"optimizer": name}, tensors=tensors, width=width)
            for dtype in ("bf16", "fp32")
            for name in ("adamw-foreach", "adamw-fused", "adamw-loop", "sgd-foreach", "momentum-foreach")
            for tensors, width in ((64, 1024), (8, 4096))
        ],
    ]


_LOSSES = ((8192, 32000), (2048, 32000), (8192, 128256), (4096, 256000), (8192, 50257))
_EMBEDDINGS = ((8192, 32000, 4096), (8192, 128256, 4096), (4096, 50257, 768))


def _attention_cuda() -> Iterator[OperatorCase]:
    heads = ((32, 32, 128), (32, 8, 128), (16, 16, 64), (64, 8, 128), (8, 8, 256))
    for seq in (2048, 512, 8192, 1024, 4096, 128, 16384):
        for batch in (4, 1, 16):
            for h, kv, d in heads:
                if batch * seq <= 65536:
                    sizes = {"batch": batch, "seq": seq, "heads": h, "kv_heads": kv, "head_dim": d}
                    yield _case("attention", "bf16", {"causal": True}, **sizes)
                    if seq in (512, 2048) and batch == 4:
                        yield _case("attention", "bf16", {"causal": False}, **sizes)
                        yield _case("attention", "fp32", {"causal": True}, **sizes)
    for context in (4096, 1024, 16384, 65536):
        for batch in (8, 1, 32):
            for h, kv, d in heads[:2]:
                if batch * context <= 1 << 20:
                    sizes = {"batch": batch, "context": context, "heads": h, "kv_heads": kv, "head_dim": d}
                    yield _case("attention_decode", "bf16", {}, **sizes)


def _rows(
    operators: Iterable[str], rows: Iterable[int], columns: Iterable[int], dtypes: Iterable[str]
) -> Iterator[OperatorCase]:
    rows, dtypes, operators = list(rows), list(dtypes), list(operators)
    for column in columns:
        for dtype in dtypes:
            for row in rows:
                for operator in operators:
                    yield _case(operator, dtype, rows=row, columns=column)


def _batched(
    batches: Iterable[int], shapes: Iterable[tuple[int, int, int]], dtypes: Iterable[str]
) -> Iterator[OperatorCase]:
    shapes, dtypes = list(shapes), list(dtypes)
    for batch in batches:
        for m, n, k in shapes:
            for dtype in dtypes:
                yield _case("batched_gemm", dtype, batch=batch, m=m, n=n, k=k)


def _convolution(
    dtype: str,
    batch: int,
    inside: int,
    outside: int,
    side: int,
    kernel: int,
    stride: int,
    *,
    channels_last: bool = False,
) -> OperatorCase:
    return _case(
        "convolution",
        dtype,
        {"channels_last": True} if channels_last else None,
        batch=batch,
        channels_in=inside,
        channels_out=outside,
        side=side,
        kernel=kernel,
        stride=stride,
    )


def _copies(powers: Iterable[int], directions: Iterable[str], pinned: Iterable[bool]) -> Iterator[OperatorCase]:
    directions, pinned = list(directions), list(pinned)
    for power in powers:
        for direction in directions:
            for pin in pinned if direction != "d2d" else (False,):
                options: dict[str, bool | str] = {"direction": direction, "pinned": pin}
                yield _case("copy", "uint8", options, bytes=1 << power)


# ---- CPU -----------------------------------------------------------------------------------------------------------
def _cpu(seed: int) -> list[list[OperatorCase]]:
    gemm = [
        _case("gemm", dtype, m=m, n=n, k=k)
        for dtype in ("fp32", "bf16")
        for m in (1, 16, 128, 512, 2048)
        for n, k in ((256, 256), (768, 768), (1024, 4096), (4096, 1024), (2048, 2048), (300, 1000))
        if 2.0 * m * n * k < 2e10
    ]
    return [
        _shuffled(gemm, seed),
        list(_rows(("add", "mul", "clone", "gelu", "silu", "sum", "cast", "softmax", "layer_norm", "rms_norm"),
                   (64, 1024, 8192), (1024,), ("fp32", "bf16"))),
        [
            *_copies((14, 18, 22, 25, 27, 28), ("d2d",), (False,)),
            *_batched((8, 32), ((128, 128, 64), (512, 512, 64)), ("fp32", "bf16")),
            *(
                _case("attention", dtype, {"causal": True}, batch=2, seq=seq, heads=8, kv_heads=8, head_dim=64)
                for seq in (128, 512, 1024)
                for dtype in ("fp32", "bf16")
            ),
            *(_case("cross_entropy", "fp32", tokens=t, vocab=v) for t, v in ((512, 4096), (512, 32000))),
            _case("embedding", "fp32", tokens=2048, vocab=32000, width=256),
            *(_convolution("fp32", 4, *shape[1:]) for shape in _CONVOLUTIONS[:6]),
            *(
                _case("optimizer", "fp32", {"optimizer": name}, tensors=16, width=512)
                for name in ("adamw-loop", "adamw-foreach", "adamw-fused", "sgd-loop")
            ),
            *_rows(("dropout", "transpose", "swiglu"), (1024,), (1024,), ("fp32",)),
        ],
    ]  # fmt: skip
