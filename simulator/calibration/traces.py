"""Operators of a recorded sweep as samples: products and attention on a GPU, cold and warm."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from peakline.cost.samples import Part, Sample
from peakline.hardware import Device
from peakline.models.dtypes import dtype
from peakline.models.kernels import Attention, Gemm
from peakline.record import OperatorRow, Trace, read_trace

__all__ = ["samples_of_rows", "trace_samples"]

MODELLED = ("gemm", "batched_gemm", "attention", "attention_decode")


def trace_samples(path: str | Path, base: Device) -> list[Sample]:
    """Samples of a device from a recording; raises TraceError, a ValueError, for one that cannot be trusted."""
    from peakline.validation.traces import device_recorded

    trace = read_trace(path)
    here = {id(environment): device_recorded(environment) for _, environment in trace.rows}
    samples, _ = samples_of_rows(trace, Path(path).name)
    return [s for s in samples if s.gpu == base.name] if any(d is not None for d in here.values()) else []


def samples_of_rows(trace: Trace, source: str) -> tuple[list[Sample], dict[str, int]]:
    """Samples of all operators that one kernel of the model stands for, and how many others there are, by reason.

    A warm time is of the same operands again and again, a cold one of operands that no cache holds.
    """
    from peakline.validation.traces import device_recorded

    groups: dict[tuple[str, str, str], list[OperatorRow]] = defaultdict(list)
    left: Counter[str] = Counter()
    for row, environment in trace.rows:
        if not isinstance(row, OperatorRow):
            continue
        where = device_recorded(environment)
        if where is None or where.kind != "gpu":
            left[f"{environment.device_name} is no GPU of the catalogue"] += 1
        elif row.case.operator not in MODELLED:
            left[f"{row.case.operator}: priced as part of programs, not by itself"] += 1
        elif row.error is not None or row.forward is None:
            left[f"{row.case.operator}: not measured"] += 1
        else:
            groups[where.name, row.case.operator, row.case.dtype].append(row)
    samples = []
    for (gpu, operator, kind), rows in groups.items():
        for state in ("warm", "cold"):
            timed = [row for row in rows if getattr(row.forward, state) is not None]
            if timed:
                samples.append(_sample(gpu, operator, kind, state, timed, source))
    return samples, dict(left)


def _sample(gpu: str, operator: str, kind: str, state: str, rows: list[OperatorRow], source: str) -> Sample:
    sizes = pd.DataFrame([row.case.sizes for row in rows]).fillna(0).astype(np.int64)
    causal = np.array([bool(row.case.options.get("causal", False)) for row in rows])
    measured = np.array([getattr(row.forward, state).median_seconds for row in rows])
    part, of = (_product if "gemm" in operator else _attention)(sizes, kind, causal)
    copies: Any = 1 if state == "warm" else None
    size = np.full(len(rows), state)
    return Sample(operator, of, gpu, kind, (part,), measured, copies, sizes, size, False, source)


def _product(sizes: pd.DataFrame, kind: str, _: Any) -> tuple[Part, str]:
    m, n, k = (sizes[name].to_numpy() for name in ("m", "n", "k"))
    b: Any = sizes["batch"].to_numpy() if "batch" in sizes else 1
    stored = dtype("fp32" if kind == "tf32" else kind)
    out = dtype("bf16") if kind == "fp8" else stored
    multiplied = dtype(kind)
    reads = b * (m * k + n * k) * stored.bits // 8
    return Part(Gemm(b, m, n, k, multiplied, multiplied, out), reads, b * m * n * out.bits // 8), "gemm"


def _attention(sizes: pd.DataFrame, kind: str, causal: Any) -> tuple[Part, str]:
    b, h, kv, d = (sizes[name].to_numpy() for name in ("batch", "heads", "kv_heads", "head_dim"))
    decode = "context" in sizes
    keys = sizes["context" if decode else "seq"].to_numpy()
    queries = np.ones_like(keys) if decode else keys
    pairs = np.where(causal, keys * (keys + 1) // 2, queries * keys)
    of = dtype(kind)
    width = of.bits // 8
    reads = width * b * d * (h * queries + 2 * kv * keys)
    kernel = Attention(b, h, kv, queries, keys, pairs, d, d, of, of)
    return Part(kernel, reads, width * b * d * h * queries), "decode" if decode else "prefill"
