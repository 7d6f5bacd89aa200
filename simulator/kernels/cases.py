"""The kernels of the suite but attention: problems, references and bounds."""

import torch

from peakline.cost.io_bounds import attention_traffic, matmul_traffic
from peakline.cost.tiled import cross_entropy as ce
from peakline.cost.tiled import elementwise, rows, scan
from peakline.cost.tiled import matmul as products
from peakline.cost.tiled.traffic import Traffic, power_of_two
from peakline.kernels.cross_entropy import linear_cross_entropy, linear_cross_entropy_backward
from peakline.kernels.elementwise import swiglu, swiglu_backward
from peakline.kernels.matmul import matmul
from peakline.kernels.quantized import dequantise_int4, dequantised_matmul, quantise_int4
from peakline.kernels.rows import rms_norm, rms_norm_backward, softmax
from peakline.kernels.scan import selective_scan
from peakline.kernels.suite import Kernel, Shape, Tensors, Tile, gradients

__all__ = ["CASES"]


def _normal(
    size: tuple[int, ...], kind: torch.dtype, device: torch.device, generator: torch.Generator, scale: float = 1.0
) -> torch.Tensor:
    return (torch.randn(size, generator=generator, dtype=torch.float32) * scale).to(kind).to(device)


def _matmul_inputs(s: Shape, kind: torch.dtype, device: torch.device, generator: torch.Generator) -> Tensors:
    drawn = {name: _normal(size, kind, device, generator) for name, size in
             {"a": (s["m"], s["k"]), "b": (s["k"], s["n"]), "bias": (s["n"],)}.items()}  # fmt: skip
    return drawn if s.get("bias", True) else {"a": drawn["a"], "b": drawn["b"]}


def _matmul_launch(t: Tensors, s: Shape, tile: Tile) -> Tensors:
    return {"c": matmul(t["a"], t["b"], t.get("bias"), s.get("activation", "none"), **tile)}


def _matmul_reference(t: Tensors, s: Shape) -> Tensors:
    c = t["a"] @ t["b"] + t.get("bias", 0.0)
    functions = {"relu": torch.relu, "silu": torch.nn.functional.silu, "gelu": torch.nn.functional.gelu}
    return {"c": functions.get(s.get("activation", "none"), lambda x: x)(c)}


def _matmul_moved(s: Shape, tile: Tile, e: int) -> Traffic:
    split = tile.get("split_k", 1)
    return products.matmul(
        s["m"], s["n"], s["k"], rows=tile["rows"], cols=tile["cols"], a=e, b=e, c=4 if split > 1 else e,
        bias=e if s.get("bias", True) else 0, split_k=split,
    )  # fmt: skip


def _matmul_bound(s: Shape, capacity: int, e: int) -> float:
    m, n, k = s["m"], s["n"], s["k"]
    compulsory = e * (m * k + k * n + m * n + (n if s.get("bias", True) else 0))
    return max(float(matmul_traffic(float(m * n * k), capacity, e, e, e)), float(compulsory))


MATMUL = Kernel(
    "matmul",
    (
        {"m": 64, "n": 64, "k": 64, "activation": "none", "bias": False},
        {"m": 70, "n": 50, "k": 45, "activation": "gelu"},
        {"m": 33, "n": 130, "k": 100, "activation": "silu"},
    ),
    (
        {"rows": 16, "cols": 16, "step": 16},
        {"rows": 32, "cols": 16, "step": 32},
        {"rows": 32, "cols": 64, "step": 16},
        {"rows": 64, "cols": 64, "step": 16},
    ),
    _matmul_inputs, _matmul_launch, _matmul_reference, _matmul_moved,
    lambda s, tile, e: products.matmul_footprint(tile["rows"], tile["cols"], tile["step"], a=e, b=e),
    _matmul_bound,
)  # fmt: skip

SPLIT_K = Kernel(
    "matmul, split k",
    ({"m": 40, "n": 24, "k": 150}, {"m": 16, "n": 16, "k": 128, "bias": False}),
    (
        {"rows": 16, "cols": 16, "step": 16, "split_k": 2},
        {"rows": 32, "cols": 16, "step": 16, "split_k": 4},
    ),
    _matmul_inputs, _matmul_launch, _matmul_reference, _matmul_moved,
    lambda s, tile, e: products.matmul_footprint(tile["rows"], tile["cols"], tile["step"], a=e, b=e),
    _matmul_bound,
)  # fmt: skip


def _int4_inputs(s: Shape, kind: torch.dtype, device: torch.device, generator: torch.Generator) -> Tensors:
    packed, scales = quantise_int4(_normal((s["n"], s["k"]), torch.float32, device, generator), s["group"])
    return {"x": _normal((s["m"], s["k"]), kind, device, generator), "packed": packed, "scales": scales.to(kind)}


def _int4_launch(t: Tensors, s: Shape, tile: Tile) -> Tensors:
    return {"y": dequantised_matmul(t["x"], t["packed"], t["scales"], s["group"], **tile)}


def _int4_reference(t: Tensors, s: Shape) -> Tensors:
    return {"y": t["x"] @ dequantise_int4(t["packed"], t["scales"], s["group"]).T}


def _int4_moved(s: Shape, tile: Tile, e: int) -> Traffic:
    return products.dequantised_matmul(s["m"], s["n"], s["k"], **tile, x=e, y=e, scale=e)


def _int4_bound(s: Shape, capacity: int, e: int) -> float:
    m, n, k = s["m"], s["n"], s["k"]
    compulsory = e * (m * k + m * n + n * -(-k // s["group"])) + n * k // 2
    return max(float(matmul_traffic(float(m * n * k), capacity, e, 0.5, e)), float(compulsory))


INT4 = Kernel(
    "dequantise (int4) and multiply",
    ({"m": 16, "n": 64, "k": 128, "group": 32}, {"m": 21, "n": 50, "k": 90, "group": 64}),
    (
        {"rows": 16, "cols": 16, "step": 32},
        {"rows": 16, "cols": 64, "step": 16},
        {"rows": 32, "cols": 32, "step": 32},
    ),
    _int4_inputs, _int4_launch, _int4_reference, _int4_moved,
    lambda s, tile, e: products.dequantised_matmul_footprint(tile["rows"], tile["cols"], tile["step"], x=e, scale=e),
    _int4_bound,
)  # fmt: skip


def _rows_inputs(s: Shape, kind: torch.dtype, device: torch.device, generator: torch.Generator) -> Tensors:
    size = (s["rows"], s["width"])
    x, dy = (_normal(size, kind, device, generator) for _ in range(2))
    rstd = torch.rsqrt(x.float().square().mean(1) + 1e-6)
    return {"x": x, "weight": _normal(size[1:], kind, device, generator), "dy": dy, "rstd": rstd}


def _rms_reference(t: Tensors, s: Shape) -> Tensors:
    rstd = torch.rsqrt(t["x"].square().mean(1) + 1e-6)
    return {"y": t["x"] * rstd[:, None] * t["weight"], "rstd": rstd}


def _rms_gradients(t: Tensors, s: Shape) -> Tensors:
    x, weight = (t[name].clone().requires_grad_() for name in ("x", "weight"))
    y = x * torch.rsqrt(x.square().mean(1) + 1e-6)[:, None] * weight
    return gradients(y, t["dy"], dx=x, dweight=weight)


def _block(s: Shape, tile: Tile) -> int:
    return int(tile.get("block", power_of_two(s["width"])))


_ROWS = ({"rows": 16, "width": 64}, {"rows": 13, "width": 100}, {"rows": 7, "width": 257})

RMS_NORM = Kernel(
    "rms norm",
    _ROWS,
    ({"tile_rows": 1}, {"tile_rows": 4}, {"tile_rows": 4, "block": 32}),
    _rows_inputs,
    lambda t, s, tile: dict(zip(("y", "rstd"), rms_norm(t["x"], t["weight"], **tile))),
    _rms_reference,
    lambda s, tile, e: rows.rms_norm(s["rows"], s["width"], tile_rows=tile["tile_rows"], block=_block(s, tile),
                                     element=e),
    lambda s, tile, e: 4 * (tile["tile_rows"] + 1) * _block(s, tile),
    lambda s, capacity, e: float(2 * e * s["rows"] * s["width"] + e * s["width"] + 4 * s["rows"]),
)  # fmt: skip

RMS_NORM_BACKWARD = Kernel(
    "rms norm, backward",
    _ROWS,
    (
        {"tile_rows": 1, "programs": 4, "sum_rows": 16, "sum_cols": 32},
        {"tile_rows": 4, "programs": 2, "sum_rows": 16, "sum_cols": 64},
        {"tile_rows": 2, "programs": 64, "sum_rows": 4, "sum_cols": 128},
    ),
    _rows_inputs,
    lambda t, s, tile: dict(zip(("dx", "dweight"), rms_norm_backward(t["x"], t["weight"], t["dy"], t["rstd"], **tile))),
    _rms_gradients,
    lambda s, tile, e: rows.rms_norm_backward(s["rows"], s["width"], **tile, element=e),
    lambda s, tile, e: 4 * (2 * tile["tile_rows"] + 2) * power_of_two(s["width"]),
    lambda s, capacity, e: float(3 * e * s["rows"] * s["width"] + 2 * e * s["width"] + 4 * s["rows"]),
)

SOFTMAX = Kernel(
    "softmax",
    _ROWS,
    ({"tile_rows": 1}, {"tile_rows": 4}, {"tile_rows": 4, "block": 32}),
    _rows_inputs,
    lambda t, s, tile: {"y": softmax(t["x"], 0.7, **tile)},
    lambda t, s: {"y": torch.softmax(t["x"] * 0.7, dim=1)},
    lambda s, tile, e: rows.softmax(s["rows"], s["width"], block=_block(s, tile), element=e),
    lambda s, tile, e: 4 * tile["tile_rows"] * _block(s, tile),
    lambda s, capacity, e: float(2 * e * s["rows"] * s["width"]),
)


def _ce_inputs(s: Shape, kind: torch.dtype, device: torch.device, generator: torch.Generator) -> Tensors:
    tokens, vocabulary, dim = s["tokens"], s["vocabulary"], s["dim"]
    targets = torch.randint(0, vocabulary, (tokens,), generator=generator)
    targets[1] = -100
    drawn = {
        "hidden": _normal((tokens, dim), kind, device, generator, dim**-0.5),
        "weight": _normal((vocabulary, dim), kind, device, generator),
        "targets": targets.to(device),
        "dloss": _normal((tokens,), torch.float32, device, generator),
    }
    return drawn


def _ce_backward_inputs(s: Shape, kind: torch.dtype, device: torch.device, generator: torch.Generator) -> Tensors:
    """With the log-sum-exp from the forward kernel, as in a training step."""
    drawn = _ce_inputs(s, kind, device, generator)
    _, lse = linear_cross_entropy(drawn["hidden"], drawn["weight"], drawn["targets"])
    return {**drawn, "lse": lse}


def _ce_reference(t: Tensors, s: Shape) -> Tensors:
    logits = t["hidden"] @ t["weight"].T
    loss = torch.nn.functional.cross_entropy(logits, t["targets"], reduction="none")
    return {"loss": loss, "lse": torch.logsumexp(logits, dim=1)}


def _ce_gradients(t: Tensors, s: Shape) -> Tensors:
    hidden, weight = (t[name].clone().requires_grad_() for name in ("hidden", "weight"))
    loss = torch.nn.functional.cross_entropy(hidden @ weight.T, t["targets"], reduction="none")
    return gradients(loss, t["dloss"], dhidden=hidden, dweight=weight)


def _ce_tiles(tile: Tile) -> dict[str, int]:
    return {name: int(tile[name]) for name in ("tile_tokens", "tile_vocabulary")}


def _ce_bound(s: Shape, capacity: int, e: int) -> float:
    """Logits vanish once they are used, as scores do in attention: the bound of the product QKᵀ alone."""
    tokens, vocabulary, dim = s["tokens"], s["vocabulary"], s["dim"]
    least = attention_traffic(float(tokens * vocabulary), dim, capacity, e, e)
    return max(float(least), float(e * (tokens + vocabulary) * dim + 16 * tokens))


def _ce_backward_bound(s: Shape, capacity: int, e: int) -> float:
    """The same logits, and each gradient stored once in float32."""
    tokens, vocabulary, dim = s["tokens"], s["vocabulary"], s["dim"]
    least = attention_traffic(float(tokens * vocabulary), dim, capacity, e, e)
    return max(float(least), float((e + 4) * (tokens + vocabulary) * dim + 16 * tokens))


_CE_SHAPES = ({"tokens": 32, "vocabulary": 128, "dim": 64}, {"tokens": 37, "vocabulary": 101, "dim": 50})
_CE_TILES = (
    {"tile_tokens": 16, "tile_vocabulary": 16, "tile_dim": 16},
    {"tile_tokens": 32, "tile_vocabulary": 32, "tile_dim": 32},
    {"tile_tokens": 32, "tile_vocabulary": 64, "tile_dim": 64},
)

CROSS_ENTROPY = Kernel(
    "linear cross-entropy", _CE_SHAPES, _CE_TILES, _ce_inputs,
    lambda t, s, tile: dict(zip(("loss", "lse"), linear_cross_entropy(t["hidden"], t["weight"], t["targets"], **tile))),
    _ce_reference,
    lambda s, tile, e: ce.linear_cross_entropy(**s, **_ce_tiles(tile), element=e),
    lambda s, tile, e: ce.linear_cross_entropy_footprint(**tile, element=e),
    _ce_bound,
)  # fmt: skip

CROSS_ENTROPY_BACKWARD = Kernel(
    "linear cross-entropy, backward", _CE_SHAPES, _CE_TILES, _ce_backward_inputs,
    lambda t, s, tile: dict(zip(
        ("dhidden", "dweight"),
        linear_cross_entropy_backward(t["hidden"], t["weight"], t["targets"], t["lse"], t["dloss"], **tile),
    )),
    _ce_gradients,
    lambda s, tile, e: ce.linear_cross_entropy_backward(**s, **_ce_tiles(tile), element=e),
    lambda s, tile, e: ce.linear_cross_entropy_footprint(**tile, element=e),
    _ce_backward_bound,
)  # fmt: skip


def _swiglu_inputs(s: Shape, kind: torch.dtype, device: torch.device, generator: torch.Generator) -> Tensors:
    return {name: _normal((s["size"],), kind, device, generator) for name in ("gate", "up", "dy")}


def _swiglu_gradients(t: Tensors, s: Shape) -> Tensors:
    gate, up = (t[name].clone().requires_grad_() for name in ("gate", "up"))
    return gradients(torch.nn.functional.silu(gate) * up, t["dy"], dgate=gate, dup=up)


_SWIGLU = ({"size": 1024}, {"size": 1000}, {"size": 333}), ({"block": 128}, {"block": 512})

SWIGLU = Kernel(
    "swiglu", *_SWIGLU, _swiglu_inputs,
    lambda t, s, tile: {"y": swiglu(t["gate"], t["up"], **tile)},
    lambda t, s: {"y": torch.nn.functional.silu(t["gate"]) * t["up"]},
    lambda s, tile, e: elementwise.swiglu(s["size"], element=e),
    lambda s, tile, e: 3 * e * tile["block"],
    lambda s, capacity, e: float(3 * e * s["size"]),
)  # fmt: skip

SWIGLU_BACKWARD = Kernel(
    "swiglu, backward", *_SWIGLU, _swiglu_inputs,
    lambda t, s, tile: dict(zip(("dgate", "dup"), swiglu_backward(t["gate"], t["up"], t["dy"], **tile))),
    _swiglu_gradients,
    lambda s, tile, e: elementwise.swiglu_backward(s["size"], element=e),
    lambda s, tile, e: 5 * e * tile["block"],
    lambda s, capacity, e: float(5 * e * s["size"]),
)  # fmt: skip


def _scan_inputs(s: Shape, kind: torch.dtype, device: torch.device, generator: torch.Generator) -> Tensors:
    batch, length, channels, states = s["batch"], s["length"], s["channels"], s["states"]
    wide, narrow = (batch, length, channels), (batch, length, states)
    dt = torch.nn.functional.softplus(_normal(wide, torch.float32, device, generator)).to(kind)
    return {
        "x": _normal(wide, kind, device, generator),
        "dt": dt,
        "a": -torch.exp(_normal((channels, states), torch.float32, device, generator)),
        "b": _normal(narrow, kind, device, generator),
        "c": _normal(narrow, kind, device, generator),
        "skip": _normal((channels,), torch.float32, device, generator),
    }


def _scan_reference(t: Tensors, s: Shape) -> Tensors:
    h = torch.zeros((s["batch"], s["channels"], s["states"]), dtype=torch.float64, device=t["x"].device)
    y = torch.empty_like(t["x"])
    for i in range(s["length"]):
        dt, x = t["dt"][:, i, :, None], t["x"][:, i, :, None]
        h = torch.exp(dt * t["a"]) * h + dt * x * t["b"][:, i, None, :]
        y[:, i] = (h * t["c"][:, i, None, :]).sum(2) + t["skip"] * t["x"][:, i]
    return {"y": y, "state": h}


def _scan_bound(s: Shape, capacity: int, e: int) -> float:
    batch, length, channels, states = s["batch"], s["length"], s["channels"], s["states"]
    along = e * batch * length * (3 * channels + 2 * states)
    return float(along + 4 * channels * (states + 1) + 4 * batch * channels * states)


SCAN = Kernel(
    "selective scan",
    (
        {"batch": 2, "length": 12, "channels": 32, "states": 16},
        {"batch": 1, "length": 9, "channels": 50, "states": 12},
    ),
    ({"tile_channels": 16}, {"tile_channels": 32}, {"tile_channels": 64}),
    _scan_inputs,
    lambda t, s, tile: dict(zip(
        ("y", "state"), selective_scan(t["x"], t["dt"], t["a"], t["b"], t["c"], t["skip"], **tile)
    )),
    _scan_reference,
    lambda s, tile, e: scan.selective_scan(**s, tile_channels=tile["tile_channels"], element=e),
    lambda s, tile, e: 4 * tile["tile_channels"] * (2 * power_of_two(s["states"]) + 3),
    _scan_bound,
)  # fmt: skip

CASES = (MATMUL, SPLIT_K, INT4, RMS_NORM, RMS_NORM_BACKWARD, SOFTMAX, CROSS_ENTROPY, CROSS_ENTROPY_BACKWARD, SWIGLU,
         SWIGLU_BACKWARD, SCAN)  # fmt: skip
