"""The tiled model against measured kernels: tidy tables of measured and predicted seconds.

    python -m peakline.cost.accuracy FOLDER [--database SYSTEMS/data]

FOLDER holds the measured tables (`aic_gemm.csv.gz` and so on); `--database` the `systems/data` folder of an installed
`aiconfigurator-core` (Apache-2.0), whose other GPUs took no part in choosing constants (reading it needs pyarrow, the
`validate` extra). A measured row is one call of a library operator, so what the operator launches beside its main
kernel is priced as well: the quantisation of an fp8 linear layer, the rotary embedding and cache update of attention.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from peakline.cost.price import KernelCost, price
from peakline.hardware import device
from peakline.models.dtypes import dtype
from peakline.models.kernels import Attention, Gemm, GroupedGemm, Stream
from peakline.models.operators.rows import layer_norm_rows, softmax_rows

__all__ = ["accuracy", "attention_rows", "database", "gemm_rows", "moe_rows", "operator_rows", "summary"]

GPUS: Mapping[str, str] = {
    "a100_sxm": "a100-80gb", "h100_sxm": "h100-sxm", "h200_sxm": "h200", "l40s": "l40s", "b200_sxm": "b200",
    "gb200": "gb200", "b300_sxm": "b300", "rtx_pro_6000_server": "rtx-pro-6000-blackwell",
    "NVIDIA A100 80GB PCIe": "a100-pcie-80gb", "Tesla V100-PCIE-32GB": "v100-pcie-32gb",
    "Tesla P100-PCIE-16GB": "p100-pcie-16gb",
}  # fmt: skip
"""Names in the tables → devices of the catalogue."""

QUANTISE_LAUNCHES = 3
"""What TensorRT-LLM's dynamic fp8 quantisation starts: clear the scale, find it, convert."""
CONTEXT_LAUNCHES, DECODE_LAUNCHES = 2, 1
"""Kernels beside attention in TensorRT-LLM's operator: sequence offsets (context), rotary embedding and cache."""

Ints = NDArray[np.int64]


def gemm_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Linear layers of `aic_gemm`: columns gpu, gemm_dtype, m, n, k, latency_us → tidy rows.

    fp8 rows time a layer that receives bf16 and quantises it first, as the table's collector does.
    """
    parts = []
    for (gpu, name), rows in table.groupby(["gpu", "gemm_dtype"]):
        m, n, k = _columns(rows, "m", "n", "k")
        kind, out = dtype(str(name)), dtype("bf16")
        width = kind.bits // 8
        machine = _device(str(gpu))
        reads, writes = (m * k + n * k) * width, m * n * 2
        moved = reads + writes
        cost = price(Gemm(1, m, n, k, kind, kind, out), reads, writes, machine, cuda_graph=True)
        extra: Any = 0.0
        if kind.bits == 8:
            quantise = Stream(2 * m * k, out, QUANTISE_LAUNCHES)
            extra = price(quantise, 4 * m * k, m * k, machine, cuda_graph=True).tiled
        size = np.where(m <= 16, "thin (m ≤ 16)", np.where(m <= 256, "medium (m ≤ 256)", "large"))
        parts.append(_tidy("gemm", str(gpu), kind.name, size, rows, cost, extra, moved))
    return pd.concat(parts, ignore_index=True)


def attention_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Attention of `aic_context_attention` (prefill, causal, column isl) or `aic_generation_attention` (kv_len)."""
    decode = "kv_len" in table.columns
    parts = []
    for gpu, rows in table.groupby("gpu"):
        b, h, kv, d = _columns(rows, "batch_size", "num_heads", "num_kv_heads", "head_dim")
        s = _columns(rows, "kv_len" if decode else "isl")[0]
        queries, keys = (np.ones_like(s), s + 1) if decode else (s, s)
        pairs = keys if decode else s * (s + 1) // 2
        kind, machine = dtype("bf16"), _device(str(gpu))
        kernel = Attention(b, h, kv, queries, keys, pairs, d, d, kind, kind)
        reads, writes = 2 * b * d * (h * queries + 2 * kv * keys), 2 * b * d * h * queries
        moved = reads + writes
        cost = price(kernel, reads, writes, machine, cuda_graph=True)
        qkv = b * queries * d * (h + 2 * kv)
        update = Stream(4 * qkv, kind, DECODE_LAUNCHES if decode else CONTEXT_LAUNCHES)
        extra = price(update, 2 * qkv, 2 * qkv, machine, cuda_graph=True).tiled
        tokens = b * keys
        size = np.where(tokens <= 2048, "≤ 2k tokens", np.where(tokens <= 32768, "≤ 32k tokens", "> 32k tokens"))
        parts.append(_tidy("decode" if decode else "prefill", str(gpu), "bf16", size, rows, cost, extra, moved))
    return pd.concat(parts, ignore_index=True)


def operator_rows(table: pd.DataFrame) -> pd.DataFrame:
    """fp32 operators of `neusight_fp32_ops`: linear and bmm (TF32 off), elementwise, softmax, layer norm.

    The kernel names recorded show a release whose softmax does not stage rows in shared memory.
    """
    parts = []
    for (gpu, op), rows in table.groupby(["gpu", "op"]):
        kind, machine = dtype("fp32"), _device(str(gpu))
        if op in ("linear", "bmm"):
            b, m, k, n = _columns(rows, "b", "m", "n", "k")  # the table's n is the reduced dimension
            reads, writes = 4 * b * (m * k + n * k), 4 * b * m * n
            moved = reads + writes
            cost = price(Gemm(b, m, n, k, kind, kind, kind), reads, writes, machine)
        else:
            b, h = _columns(rows, "b", "h")
            elements = b * h
            operands, work = _ELEMENTWISE.get(str(op), (1, 1))
            moved = 4 * (operands + 1) * elements
            walk: dict[str, Any] = {}
            if op == "softmax":
                walk = softmax_rows(b, h, kind, staged=False)
            elif op == "ln":
                walk = layer_norm_rows(b, h)
            cost = price(Stream(work * elements, kind, **walk), 4 * operands * elements, 4 * elements, machine)
        rows = rows.assign(latency_us=rows["latency_ms"] * 1e3)
        parts.append(_tidy(str(op), str(gpu), "fp32", np.full(len(rows), "all"), rows, cost, 0.0, moved))
    return pd.concat(parts, ignore_index=True)


_ELEMENTWISE = {"add": (2, 1), "mul": (2, 1), "div": (2, 1), "pow": (2, 10), "softmax": (1, 6), "ln": (1, 8)}
"""Operands and scalar operations per element; the others take one operand (`addu` adds a constant)."""


def moe_rows(table: pd.DataFrame, gpu: str = "h100_sxm") -> pd.DataFrame:
    """Mixture-of-experts layers of `aic_moe_h100_bf16`: permute, two grouped products, gating, weighted sum.

    Each GPU holds num_experts/ep experts of inter_size/tp columns, and rows spread evenly over the experts that
    get any; what skewed routing costs shows as error (column distribution).
    """
    t, h, i, top, e, tp, ep = _columns(
        table, "num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size"
    )
    kind, machine = dtype("bf16"), _device(str(gpu))
    local = np.maximum(e // ep, 1)
    rows = np.maximum(t * top // ep, 1)
    groups, inner = np.minimum(local, rows), np.maximum(i // tp, 1)
    up = GroupedGemm(groups, rows, 2 * inner, h, kind, kind, kind)
    down = GroupedGemm(groups, rows, h, inner, kind, kind, kind)
    reads, writes = 2 * (groups * 2 * inner * h + rows * h), 4 * rows * inner
    cost = price(up, reads, writes, machine, cuda_graph=True)
    extra = price(down, 2 * (groups * inner * h + rows * inner), 2 * rows * h, machine, cuda_graph=True).tiled
    for passed, launches in ((2 * rows * h, 3), (3 * rows * inner, 1), (2 * rows * h, 1)):
        extra = extra + price(Stream(passed, kind, launches), passed, passed, machine, cuda_graph=True).tiled
    size = table["distribution"].to_numpy().astype(str)
    return _tidy("moe", gpu, "bf16", size, table, cost, extra, reads + writes)


def accuracy(folder: Path | str) -> pd.DataFrame:
    """Every measured table found in `folder`, as rows of

        source, gpu, dtype, size, bound_by (compute or memory), measured, predicted, bound (seconds), error (relative).

    Raises:
        FileNotFoundError: if the folder holds none of the tables.
    """
    found = [
        reader(pd.read_csv(Path(folder) / name)) for name, reader in _READERS.items() if (Path(folder) / name).exists()
    ]
    if not found:
        raise FileNotFoundError(f"{folder} holds none of {', '.join(_READERS)}")
    return pd.concat(found, ignore_index=True)


_READERS: Mapping[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "aic_gemm.csv.gz": gemm_rows,
    "aic_context_attention.csv.gz": attention_rows,
    "aic_generation_attention.csv.gz": attention_rows,
    "neusight_fp32_ops.csv.gz": operator_rows,
    "aic_moe_h100_bf16.csv.gz": moe_rows,
}


def database(folder: Path | str, gpus: tuple[str, ...] = ()) -> pd.DataFrame:
    """The same rows for GPUs of an aiconfigurator database (`systems/data`), TensorRT-LLM tables; needs pyarrow.

    bf16 and fp8 linear layers; bf16 attention without a window, head sizes 64 and 128.
    """
    parts = []
    for gpu in gpus or tuple(name for name in GPUS if (Path(folder) / name / "gemm").exists()):
        for path in sorted((Path(folder) / gpu).glob("gemm/trtllm/*/gemm_perf.parquet"))[:1]:
            rows = pd.read_parquet(path)
            rows = rows[rows["gemm_dtype"].isin(["bfloat16", "fp8"])]
            parts.append(gemm_rows(rows.assign(gpu=gpu, latency_us=rows["latency"] * 1e3)))
        for path in sorted((Path(folder) / gpu).glob("attention/trtllm/*/*_attention_perf.parquet")):
            rows = pd.read_parquet(path).rename(columns={"num_key_value_heads": "num_kv_heads"})
            plain = (rows["attn_dtype"] == "bfloat16") & (rows["kv_cache_dtype"] == "bfloat16")
            rows = rows[plain & (rows["window_size"] == 0) & rows["head_dim"].isin([64, 128])]
            rows = rows.assign(gpu=gpu, latency_us=rows["latency"] * 1e3)
            parts.append(attention_rows(rows.assign(kv_len=rows["step"]) if "generation" in path.name else rows))
    return pd.concat(parts, ignore_index=True)


def summary(rows: pd.DataFrame, by: list[str] | None = None) -> pd.DataFrame:
    """Median absolute error, its 90th percentile and the signed median of `tiled`, and the roofline's error, by group.

    `impossible` counts rows measured faster than compulsory traffic allows (results served from L2, or a
    benchmark that does not touch what it should).
    """
    by = by or ["source", "gpu", "dtype"]
    work = rows.assign(
        magnitude=rows["error"].abs(),
        roofline=(rows["bound"] / rows["measured"] - 1).abs(),
        impossible=rows["measured"] < rows["bound"],
    )
    groups = work.groupby(by, sort=False)
    return pd.DataFrame(
        {
            "rows": groups.size(),
            "median abs error": groups["magnitude"].median(),
            "p90 abs error": groups["magnitude"].quantile(0.9),
            "median error": groups["error"].median(),
            "roofline": groups["roofline"].median(),
            "impossible": groups["impossible"].sum(),
        }
    ).reset_index()


def _columns(rows: pd.DataFrame, *names: str) -> tuple[Ints, ...]:
    return tuple(rows[name].to_numpy().astype(np.int64) for name in names)


def _device(gpu: str) -> Any:
    name = GPUS.get(gpu, gpu)
    if name == "p100-pcie-16gb":  # Tesla P100 PCIe datasheet: 1303 MHz boost, 9.3 TFLOP/s, 250 W
        changes = {"compute.clock": "1303 MHz", "compute.vector.fp32": "9.3 TFLOP/s", "power.tdp": "250 W"}
        return device("p100-16gb", **changes)
    return device(name)


def _tidy(
    source: str,
    gpu: str,
    kind: str,
    size: NDArray[Any],
    rows: pd.DataFrame,
    cost: KernelCost,
    extra: Any,
    moved: Ints,
) -> pd.DataFrame:
    measured = rows["latency_us"].to_numpy() * 1e-6
    predicted = cost.tiled + extra
    memory = np.asarray(cost.bound) * _device(gpu).main.bandwidth <= moved * (1 + 1e-9)
    return pd.DataFrame(
        {
            "source": source,
            "gpu": gpu,
            "dtype": kind,
            "size": size,
            "bound_by": np.where(memory, "memory", "compute"),
            "measured": measured,
            "predicted": predicted,
            "bound": cost.bound,
            "error": predicted / measured - 1.0,
        }
    )


def main(arguments: list[str]) -> int:
    """Print the error tables; see the module's documentation."""
    if not arguments or arguments[0].startswith("-"):
        print("usage: python -m peakline.cost.accuracy FOLDER [--database SYSTEMS/data]", file=sys.stderr)
        return 2
    pd.options.display.width = 160
    rows = accuracy(arguments[0])
    if "--database" in arguments:
        held_out = tuple(gpu for gpu in GPUS if gpu not in ("a100_sxm", "h100_sxm"))
        folder = Path(arguments[arguments.index("--database") + 1])
        rows = pd.concat([rows, database(folder, tuple(g for g in held_out if (folder / g / "gemm").exists()))])
    kernels = rows[rows["source"].isin(["gemm", "prefill", "decode"])]
    tables = (
        (rows, ["source", "gpu", "dtype"]),
        (kernels, ["source", "gpu", "dtype", "size"]),
        (kernels, ["source", "gpu", "dtype", "bound_by"]),
    )
    for chosen, by in tables:
        print(summary(chosen, by).to_string(index=False, float_format=lambda value: f"{value:.3f}"), "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
