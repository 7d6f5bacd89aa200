"""`validate(*sources)`: predictions beside measurements from anywhere, by stratum, with every miss."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from peakline.calibration.sources import AICONFIGURATOR, kind_of_source
from peakline.cost.samples import Sample, database_folder, database_samples, folder_samples
from peakline.validation.kernels import kernel_table, strata
from peakline.validation.traces import HOST_COLUMNS, MEMORY_COLUMNS, TRAFFIC_COLUMNS, Recorded, recorded

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SCHEMA", "Validation", "validate"]

SCHEMA = "peakline.validation/1"
MISS = 0.25
"""Errors beyond this are misses: listed one by one."""
WORST = 10


@dataclass(frozen=True)
class Validation:
    """Predictions beside measurements.

    Attributes:
        table: one row per measured kernel (`peakline.validation.kernels.kernel_table`); seconds.
        memory: one row per measured peak (`peakline.validation.traces.memory_table`); bytes.
        left_out: what was not predicted: source, rows, reason.
        host: operators recorded on a CPU, by the device fitted on the other half of them (`fit_local`); seconds.
        traffic: bytes that the Triton kernels were counted to move, beside the formulas of their tiles.
    """

    table: pd.DataFrame
    memory: pd.DataFrame
    left_out: pd.DataFrame
    host: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(HOST_COLUMNS)))
    traffic: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(TRAFFIC_COLUMNS)))

    @cached_property
    def by_operator(self) -> pd.DataFrame:
        """Errors on a CPU's held-out operators by source, operator and format: rows, median and 90 % quantile."""
        groups = self.host.assign(error=self.host["error"].abs()).groupby(["source", "kind", "dtype"], sort=False)
        found = groups["error"].agg(rows="count", median="median", p90=lambda e: e.quantile(0.9))
        return found.reset_index()

    @cached_property
    def by_kernel(self) -> pd.DataFrame:
        """Triton kernels by source, name and format: rows, how many match to the byte, and the worst error."""
        groups = self.traffic.assign(error=self.traffic["error"].abs()).groupby(["source", "kind", "dtype"], sort=False)
        found = groups["error"].agg(rows="count", exact=lambda e: int((e == 0).sum()), worst="max")
        return found.reset_index()

    @cached_property
    def strata(self) -> pd.DataFrame:
        """Errors by source, GPU, format and class of size."""
        return strata(self.table, ["source", "gpu", "dtype", "size"])

    @cached_property
    def by_gpu(self) -> pd.DataFrame:
        """Errors by source, GPU and format, the roofline's beside them."""
        return strata(self.table)

    @property
    def misses(self) -> pd.DataFrame:
        """Every kernel and every peak predicted more than 25 % wrong, the worst first, with what explains it."""
        kernels = self.table[self.table["error"].abs() > MISS]
        order = np.log1p(kernels["error"]).abs().sort_values(ascending=False, kind="stable").index
        worst = kernels.loc[order, ["source", "gpu", "dtype", "shape", "measured", "predicted", "error", "limited_by"]]
        worst = worst.assign(explanation=[explained(row) for row in self.table.loc[order].itertuples()])
        peaks = self.memory[self.memory["error"].abs() > MISS]
        named = peaks.rename(columns={"case": "shape", "device": "gpu", "reason": "explanation"})
        hosts = self.host[self.host["error"].abs() > MISS].sort_values("error", key=lambda e: -abs(np.log1p(e)))
        hosts = hosts.assign(explanation=[f"{'under' if e < 0 else 'over'}estimated by rates fitted on the others"
                                          for e in hosts["error"]]).drop(columns=["kind"])  # fmt: skip
        bytes_ = self.traffic[self.traffic["error"] != 0].drop(columns=["kind"])
        bytes_ = bytes_.assign(explanation="the kernel moves other bytes than the formula of its tiles says")
        parts = [part for part in (worst, named.drop(columns=["what"]), hosts, bytes_) if len(part)]
        joined: pd.DataFrame = pd.concat(parts, ignore_index=True) if parts else worst
        return joined

    def plot(self, folder: str | PathLike[str] | None = None) -> list[Figure]:
        """Measured against predicted, error by size, and the worst ten; also written to `folder` as PNG."""
        from peakline.validation.pictures import pictures

        return pictures(self, folder)

    def to_dict(self) -> dict[str, Any]:
        """Strata, memory, misses and what was left out, in plain values (`peakline.validation/1`)."""
        rows = {
            "strata": self.strata, "by_gpu": self.by_gpu, "memory": self.memory, "misses": self.misses.head(WORST * 10),
            "by_operator": self.by_operator, "by_kernel": self.by_kernel, "left_out": self.left_out,
        }  # fmt: skip
        counts = {"kernels": len(self.table), "peaks": len(self.memory), "missed": len(self.misses)}
        counts |= {"host_operators": len(self.host), "traffic": len(self.traffic)}
        return {"schema": SCHEMA, **counts, **{name: _plain(table) for name, table in rows.items()}}

    def to_json(self) -> str:
        """`to_dict` as one JSON object."""
        return json.dumps(self.to_dict(), indent=2)


def validate(
    *sources: str | PathLike[str],
    gpus: Iterable[str] = (),
    progress: Callable[[str], None] = lambda _: None,
) -> Validation:
    """Compare predictions with everything measured in the sources.

    Args:
        sources: `"aiconfigurator"` (the installed package), its `systems/data` folder, a folder of published tables or
            one that has such a folder as `measured/`, a recording of `peakline record` (folder or file).
        gpus: only these, by the name the tables give them (`h100_sxm`); empty: all.
        progress: told what is being compared.

    Raises:
        ValueError: no source, an unknown one, one without measurements, or a trace that is cut or newer.
    """
    if not sources:
        raise ValueError("validate needs a source: 'aiconfigurator', a folder of tables, or a recorded trace")
    only = set(gpus)
    kinds = [(source, kind_of_source(source)) for source in sources]
    samples: list[Sample] = []
    traces: list[Recorded] = []
    for source, kind in kinds:
        progress(str(source))
        if kind == "trace":
            traces.append(recorded(Path(source), progress))
            samples += traces[-1].samples
            continue
        for sample in _samples(source, kind):
            if not only or sample.gpu in only:
                samples.append(sample)
    if only and not samples:
        raise ValueError(f"gpus: none of {', '.join(sorted(only))} was measured in {', '.join(map(str, sources))}")
    return Validation(
        kernel_table(samples),
        _joined([t.memory for t in traces], MEMORY_COLUMNS),
        pd.DataFrame([row for t in traces for row in t.left_out], columns=["source", "rows", "reason"]),
        _joined([t.host for t in traces], HOST_COLUMNS),
        _joined([t.traffic for t in traces], TRAFFIC_COLUMNS),
    )


def _samples(source: Any, kind: str) -> Iterable[Sample]:
    if kind == AICONFIGURATOR:
        return database_samples(database_folder())
    if kind == "database":
        return database_samples(source)
    return folder_samples(Path(source) / "measured" if kind == "reference" else source)


def _joined(tables: list[pd.DataFrame], columns: tuple[str, ...]) -> pd.DataFrame:
    found = [table for table in tables if len(table)]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=list(columns))


def explained(row: Any) -> str:
    """What bound a mispredicted kernel, by which rule of the model, and on which side the error lies."""
    rule = RULES.get(str(row.limited_by), f"{row.limited_by} traffic over its attainable bandwidth")
    side = "measured slower" if row.error < 0 else "measured faster"
    if row.measured < row.bound:
        return f"{side} than main memory could feed it: operands stayed in cache; bound by {rule}"
    return f"{side} than the model says; bound by {rule}"


RULES = {
    "compute": "the arithmetic peak under the power limit",
    "launch": "starting the kernel",
    "latency": "what no resource explains: waves of blocks, pipeline fill, imperfect overlap",
    "l2": "tiles fetched through L2",
    "hbm": "main memory's attainable bandwidth",
    "gddr": "main memory's attainable bandwidth",
}


def _plain(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {str(key): None if isinstance(value, float) and not np.isfinite(value) else value for key, value in row.items()}
        for row in json.loads(table.to_json(orient="records"))
    ]
