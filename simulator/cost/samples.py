"""Measured kernels as the model sees them: rows of published tables turned into kernels that can be priced.

A `Sample` is a group of rows of one table, GPU and number format. Each row is one call of a library operator, so what
the operator launches beside its main kernel belongs to it: the quantisation of an fp8 linear layer, the rotary
embedding and cache update of attention. The tables come with the project's reference folder (`folder_samples`) or with
the Python package `aiconfigurator-core` (`database_samples`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from peakline.cost.price import KernelCost, price
from peakline.hardware import device
from peakline.models.dtypes import dtype
from peakline.models.kernels import Attention, Gemm, GroupedGemm, Kernel, Stream
from peakline.models.operators.rows import layer_norm_rows, softmax_rows

__all__ = [
    "GPUS", "Part", "Sample", "attention_samples", "database_folder", "database_samples", "device_of", "folder_samples",
    "gemm_samples", "moe_samples", "operator_samples",
]  # fmt: skip

GPUS: Mapping[str, str] = {
    "a100_sxm": "a100-80gb", "h100_sxm": "h100-sxm", "h200_sxm": "h200", "l40s": "l40s", "b200_sxm": "b200",
    "gb200": "gb200", "b300_sxm": "b300", "gb300": "gb300", "rtx_pro_6000_server": "rtx-pro-6000-blackwell",
    "b60": "arc-pro-b60", "NVIDIA A100 80GB PCIe": "a100-pcie-80gb", "Tesla V100-PCIE-32GB": "v100-pcie-32gb",
    "Tesla P100-PCIE-16GB": "p100-pcie-16gb",
}  # fmt: skip
"""Names in the tables → devices of the catalogue."""

EAGER = ("b60",)
"""Measured without CUDA graphs, kernel after kernel from the host (Intel's runtime)."""

QUANTISE_LAUNCHES = 3
"""What TensorRT-LLM's dynamic fp8 quantisation starts: clear the scale, find it, convert."""
CONTEXT_LAUNCHES, DECODE_LAUNCHES = 2, 1
"""Kernels beside attention in TensorRT-LLM's operator: sequence offsets (context), rotary embedding and cache."""
MAX_COPIES = 5
"""aiconfigurator's GEMM collectors rotate through enough weights to fill L2, at most this many (`collect_gemm.py`)."""
FRAMEWORKS = ("trtllm", "vllm", "sglang")

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Part:
    """One kernel of an operator, over all rows of a sample; bytes as in `price`."""

    kernel: Kernel
    reads: Any
    writes: Any


@dataclass(frozen=True)
class Sample:
    """Rows of one table that one model of a kernel explains.

    Attributes:
        source: what was measured: `gemm`, `prefill`, `decode`, `add`, ...
        kind: which constants price it (`peakline.cost.gpu.KINDS`).
        gpu: the table's name for the GPU; `device_of` has the device.
        dtype: number format.
        parts: kernels that run one after another; the first is the one the row is named after.
        measured: seconds.
        copies: how many copies of the weights the measurement rotates through; None: as in a program.
        shapes: the table's columns that say what was run.
        size: class of size, for strata.
        graph: whether it was replayed from a CUDA graph.
        table: where the rows come from, in words.
    """

    source: str
    kind: str
    gpu: str
    dtype: str
    parts: tuple[Part, ...]
    measured: Floats
    copies: Any
    shapes: pd.DataFrame
    size: NDArray[Any]
    graph: bool = True
    table: str = ""

    def __len__(self) -> int:
        return len(self.measured)

    def costs(self, target: Any = None) -> list[KernelCost]:
        """What each part costs on a device, or on the one it was measured on."""
        where = device_of(self.gpu) if target is None else target
        return [
            price(p.kernel, p.reads, p.writes, where, cuda_graph=self.graph, copies=self.copies) for p in self.parts
        ]

    def predicted(self, target: Any = None) -> Floats:
        """Seconds of every row."""
        total: Floats = np.zeros(len(self))
        for cost in self.costs(target):
            total = total + cost.tiled
        return total

    def take(self, rows: NDArray[Any]) -> Sample:
        """The rows that a boolean or integer index selects."""

        def cut(value: Any) -> Any:
            return value[rows] if isinstance(value, np.ndarray) else value

        parts = tuple(Part(_cut_kernel(part.kernel, cut), cut(part.reads), cut(part.writes)) for part in self.parts)
        return replace(
            self, parts=parts, measured=self.measured[rows], copies=cut(self.copies),
            shapes=self.shapes.iloc[np.arange(len(self))[rows]],
            size=self.size[rows],
        )  # fmt: skip


def _cut_kernel(kernel: Kernel, cut: Callable[[Any], Any]) -> Kernel:
    changed: Any = replace(kernel, **{name: cut(getattr(kernel, name)) for name in kernel.__dataclass_fields__})
    return changed  # type: ignore[no-any-return]


@cache
def device_of(gpu: str) -> Any:
    """The device that a table's name for a GPU means; a name of the catalogue means itself."""
    name = GPUS.get(gpu, gpu)
    if name == "p100-pcie-16gb":  # Tesla P100 PCIe datasheet: 1303 MHz boost, 9.3 TFLOP/s, 250 W
        changes = {"compute.clock": "1303 MHz", "compute.vector.fp32": "9.3 TFLOP/s", "power.tdp": "250 W"}
        return device("p100-16gb", **changes)
    return device(name)


def gemm_samples(table: pd.DataFrame, origin: str = "", *, quantised: bool = True) -> list[Sample]:
    """Linear layers: columns gpu, gemm_dtype, m, n, k, latency_us.

    fp8 rows time a layer that receives bf16 and quantises it first, as the tables' collector does.
    """
    samples = []
    for (gpu, name), rows in table.groupby(["gpu", "gemm_dtype"]):
        m, n, k = _columns(rows, "m", "n", "k")
        kind, out = dtype(str(name)), dtype("bf16")
        width = kind.bits // 8
        parts = [Part(Gemm(1, m, n, k, kind, kind, out), (m * k + n * k) * width, m * n * 2)]
        if kind.bits == 8 and quantised:
            parts.append(Part(Stream(2 * m * k, out, QUANTISE_LAUNCHES), 4 * m * k, m * k))
        weights = n * k * width
        copies = np.clip(-(-_l2_bytes(str(gpu)) // weights), 1, MAX_COPIES)
        size = np.where(m <= 16, "thin (m ≤ 16)", np.where(m <= 256, "medium (m ≤ 256)", "large"))
        shapes = rows[["m", "n", "k"]].reset_index(drop=True)
        samples.append(
            Sample(
                "gemm",
                "gemm",
                str(gpu),
                kind.name,
                tuple(parts),
                _seconds(rows),
                copies,
                shapes,
                size,
                gpu not in EAGER,
                origin,
            )
        )
    return samples


def attention_samples(table: pd.DataFrame, origin: str = "", *, one_buffer: bool = False) -> list[Sample]:
    """Attention: prefill (causal, column isl) or decode (kv_len keys), bf16, replayed on the same operands.

    Args:
        one_buffer: the cache held keys only and gave them for values too, which halves what grouped heads read: so
            were A100's decoding rows collected (`CacheType.SELFKONLY`; they reach 1.5 times the memory's bandwidth).
    """
    decode = "kv_len" in table.columns
    samples = []
    for gpu, rows in table.groupby("gpu"):
        b, h, kv, d = _columns(rows, "batch_size", "num_heads", "num_kv_heads", "head_dim")
        s = _columns(rows, "kv_len" if decode else "isl")[0]
        queries, keys = (np.ones_like(s), s) if decode else (s, s)
        pairs = keys if decode else s * (s + 1) // 2
        kind = dtype("bf16")
        stored = np.where(h > kv, 1, 2) if one_buffer and decode else 2
        kernel = Attention(b, h, kv, queries, keys, pairs, d, d, kind, kind)
        qkv = b * queries * d * (h + 2 * kv)
        parts = (
            Part(kernel, 2 * b * d * (h * queries + stored * kv * keys), 2 * b * d * h * queries),
            Part(Stream(4 * qkv, kind, DECODE_LAUNCHES if decode else CONTEXT_LAUNCHES), 2 * qkv, 2 * qkv),
        )
        tokens = b * keys
        size = np.where(tokens <= 2048, "≤ 2k tokens", np.where(tokens <= 32768, "≤ 32k tokens", "> 32k tokens"))
        names = ["batch_size", "kv_len" if decode else "isl", "num_heads", "num_kv_heads", "head_dim"]
        shapes = rows[names].reset_index(drop=True)
        of = "decode" if decode else "prefill"
        graph = gpu not in EAGER
        samples.append(Sample(of, of, str(gpu), "bf16", parts, _seconds(rows), 1, shapes, size, graph, origin))
    return samples


def operator_samples(table: pd.DataFrame, origin: str = "") -> list[Sample]:
    """fp32 operators of NeuSight's tables: linear and bmm (TF32 off), elementwise, softmax, layer norm.

    The kernel names recorded show a release whose softmax does not stage rows in shared memory.
    """
    samples = []
    for (gpu, op), rows in table.groupby(["gpu", "op"]):
        kind = dtype("fp32")
        if op in ("linear", "bmm"):
            b, m, k, n = _columns(rows, "b", "m", "n", "k")  # the table's n is the reduced dimension
            part = Part(Gemm(b, m, n, k, kind, kind, kind), 4 * b * (m * k + n * k), 4 * b * m * n)
        else:
            b, h = _columns(rows, "b", "h")
            elements = b * h
            operands, work = _ELEMENTWISE.get(str(op), (1, 1))
            walk: dict[str, Any] = {}
            if op == "softmax":
                walk = softmax_rows(b, h, kind, staged=False)
            elif op == "ln":
                walk = layer_norm_rows(b, h)
            part = Part(Stream(work * elements, kind, **walk), 4 * operands * elements, 4 * elements)
        names = [name for name in ("b", "m", "n", "k", "h") if name in rows.columns and rows[name].notna().all()]
        of = "gemm" if op in ("linear", "bmm") else "stream"
        measured = rows["latency_ms"].to_numpy() * 1e-3
        samples.append(
            Sample(
                str(op), of, str(gpu), "fp32", (part,), measured, None, rows[names].reset_index(drop=True),
                np.full(len(rows), "all"), False, origin,
            )
        )  # fmt: skip
    return samples


_ELEMENTWISE = {"add": (2, 1), "mul": (2, 1), "div": (2, 1), "pow": (2, 10), "softmax": (1, 6), "ln": (1, 8)}
"""Operands and scalar operations per element; the others take one operand (`addu` adds a constant)."""


def moe_samples(table: pd.DataFrame, origin: str = "", gpu: str = "h100_sxm") -> list[Sample]:
    """Mixture-of-experts layers: permute, two grouped products, gating, weighted sum.

    Each GPU holds num_experts/ep experts of inter_size/tp columns, and rows spread evenly over the experts that
    get any; what skewed routing costs shows as error (column distribution).
    """
    names = ["num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size"]
    t, h, i, top, e, tp, ep = _columns(table, *names)
    kind = dtype("bf16")
    local = np.maximum(e // ep, 1)
    rows = np.maximum(t * top // ep, 1)
    groups, inner = np.minimum(local, rows), np.maximum(i // tp, 1)
    up = GroupedGemm(groups, rows, 2 * inner, h, kind, kind, kind)
    down = GroupedGemm(groups, rows, h, inner, kind, kind, kind)
    parts = [
        Part(up, 2 * (groups * 2 * inner * h + rows * h), 4 * rows * inner),
        Part(down, 2 * (groups * inner * h + rows * inner), 2 * rows * h),
    ]
    for passed, launches in ((2 * rows * h, 3), (3 * rows * inner, 1), (2 * rows * h, 1)):
        parts.append(Part(Stream(passed, kind, launches), passed, passed))
    size = table["distribution"].to_numpy().astype(str)
    shapes = table[names].reset_index(drop=True)
    return [Sample("moe", "gemm", gpu, "bf16", tuple(parts), _seconds(table), None, shapes, size, True, origin)]


def folder_samples(folder: Path | str) -> list[Sample]:
    """Every measured table found in a reference folder.

    Raises:
        ValueError: if the folder holds none of the tables.
    """
    found: list[Sample] = []
    for name, reader in _READERS.items():
        path = Path(folder) / name
        if path.exists():
            found += reader(pd.read_csv(path), name)
    if not found:
        raise FileNotFoundError(f"{folder} holds none of {', '.join(_READERS)}")
    return found


def _generation(table: pd.DataFrame, origin: str) -> list[Sample]:
    old = table["gpu"] == "a100_sxm"
    return [
        *(attention_samples(table[old], origin, one_buffer=True) if old.any() else []),
        *(attention_samples(table[~old], origin) if not old.all() else []),
    ]


_READERS: Mapping[str, Callable[[pd.DataFrame, str], list[Sample]]] = {
    "aic_gemm.csv.gz": gemm_samples,
    "aic_context_attention.csv.gz": attention_samples,
    "aic_generation_attention.csv.gz": _generation,
    "neusight_fp32_ops.csv.gz": operator_samples,
    "aic_moe_h100_bf16.csv.gz": moe_samples,
}


def database_folder() -> Path:
    """The data folder of the installed `aiconfigurator-core`, found without importing it.

    Raises:
        ValueError: if it is not installed, saying how to install it.
    """
    spec = find_spec("aiconfigurator_core")
    places = list(spec.submodule_search_locations or ()) if spec else []
    for place in places:
        folder = Path(place) / "systems" / "data"
        if folder.is_dir():
            return folder
    raise ValueError(
        "aiconfigurator is not installed; install it with: pip install 'peakline[validate]' "
        "(the package aiconfigurator-core, Apache-2.0), or name its systems/data folder"
    )


def database_samples(
    folder: Path | str, gpus: Sequence[str] = (), formats: Sequence[str] = ("bfloat16", "fp8")
) -> Iterator[Sample]:
    """Linear layers and bf16 attention (no window, heads of 64 and 128) from an aiconfigurator database; needs pyarrow.

    One framework per GPU, TensorRT-LLM's where it was measured.

    Raises:
        ValueError: if the folder holds no such tables, or pyarrow is missing.
    """
    if find_spec("pyarrow") is None:
        raise ValueError(
            "reading aiconfigurator's tables needs pyarrow; install it with: pip install 'peakline[validate]'"
        )
    root = Path(folder)
    chosen = tuple(gpus) or tuple(name for name in GPUS if (root / name / "gemm").is_dir())
    if not chosen or not any((root / name).is_dir() for name in chosen):
        raise ValueError(f"{folder} is no systems/data folder of aiconfigurator-core: it has none of {', '.join(GPUS)}")
    for gpu in chosen:
        for path in _tables(root / gpu / "gemm", "gemm_perf.parquet"):
            rows = pd.read_parquet(path)
            rows = rows[rows["gemm_dtype"].isin(list(formats))].drop_duplicates(["gemm_dtype", "m", "n", "k"])
            named = rows.assign(gpu=gpu, latency_us=rows["latency"] * 1e3).reset_index(drop=True)
            yield from gemm_samples(named, _origin(path), quantised=_framework(path) == "trtllm")
        for name in ("context_attention_perf.parquet", "generation_attention_perf.parquet"):
            for path in _tables(root / gpu / "attention", name):
                rows = pd.read_parquet(path).rename(columns={"num_key_value_heads": "num_kv_heads"})
                plain = (rows["attn_dtype"] == "bfloat16") & (rows["kv_cache_dtype"] == "bfloat16")
                rows = rows[plain & (rows["window_size"] == 0) & rows["head_dim"].isin([64, 128])]
                rows = rows.assign(gpu=gpu, latency_us=rows["latency"] * 1e3).reset_index(drop=True)
                if name.startswith("generation"):
                    rows = rows.assign(kv_len=rows["step"] + 1)  # cached tokens, and the one decoded
                yield from attention_samples(rows, _origin(path), one_buffer=gpu == "a100_sxm")


def _tables(folder: Path, name: str) -> list[Path]:
    """The newest table of the first framework that has one."""
    for framework in FRAMEWORKS:
        found = sorted((folder / framework).glob(f"*/{name}"))
        if found:
            return found[-1:]
    return []


def _framework(path: Path) -> str:
    return path.parts[-3]


def _origin(path: Path) -> str:
    return f"{_framework(path)} {path.parts[-2]}"


def _l2_bytes(gpu: str) -> int:
    levels = [level for level in device_of(gpu).onchip if level.name == "l2"]
    return int((levels[0].capacity if levels else 0) or 1)


def _seconds(rows: pd.DataFrame) -> Floats:
    return rows["latency_us"].to_numpy().astype(np.float64) * 1e-6


def _columns(rows: pd.DataFrame, *names: str) -> tuple[Ints, ...]:
    return tuple(rows[name].to_numpy().astype(np.int64) for name in names)
