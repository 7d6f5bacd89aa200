"""The tiled model against measured kernels: tidy tables of measured and predicted seconds.

    python -m peakline.cost.accuracy FOLDER [--database SYSTEMS/data]

FOLDER holds the measured tables (`aic_gemm.csv.gz` and so on); `--database` the `systems/data` folder of an installed
`aiconfigurator-core` (Apache-2.0), (reading it needs pyarrow, the
`validate` extra). `peakline validate` prints the same by source, kind and stratum, with every miss.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from peakline.cost.price import price
from peakline.cost.samples import GPUS, Sample, database_samples, device_of, folder_samples

__all__ = ["accuracy", "database", "summary", "tidy"]


def tidy(sample: Sample, target: Any = None) -> pd.DataFrame:
    """One row per measurement of a sample, predicted for `target` (default: the GPU it was measured on):

    source, kind, gpu, dtype, size, bound_by (compute or memory), limited_by (of the main kernel), measured,
    predicted, bound (seconds, the datasheet's roofline), error (predicted/measured − 1), and its shape in words.
    """
    where = device_of(sample.gpu) if target is None else target
    costs = sample.costs(where)
    main = sample.parts[0]
    roofline = np.asarray(price(main.kernel, main.reads, main.writes, where, cuda_graph=sample.graph).bound)
    predicted: Any = 0.0
    for cost in costs:
        predicted = predicted + cost.tiled
    memory = roofline * where.main.bandwidth <= (main.reads + main.writes) * (1 + 1e-9)
    shape = sample.shapes.astype(str)
    words = shape.columns[0] + " " + shape.iloc[:, 0]
    for name in shape.columns[1:]:
        words = words + f", {name} " + shape[name]
    return pd.DataFrame(
        {
            "source": sample.source,
            "kind": sample.kind,
            "gpu": sample.gpu,
            "dtype": sample.dtype,
            "size": sample.size,
            "bound_by": np.where(memory, "memory", "compute"),
            "limited_by": costs[0].limited_by,
            "measured": sample.measured,
            "predicted": predicted,
            "bound": roofline,
            "error": predicted / sample.measured - 1.0,
            "shape": words.to_numpy(),
        }
    )


def accuracy(folder: Path | str) -> pd.DataFrame:
    """Every measured table found in `folder`, as the rows of `tidy`.

    Raises:
        FileNotFoundError: if the folder holds none of the tables.
    """
    return pd.concat([tidy(sample) for sample in folder_samples(folder)], ignore_index=True)


def database(folder: Path | str, gpus: tuple[str, ...] = ()) -> pd.DataFrame:
    """The same rows for GPUs of an aiconfigurator database (`systems/data`); needs pyarrow.

    bf16 and fp8 linear layers; bf16 attention without a window, head sizes 64 and 128.
    """
    return pd.concat([tidy(sample) for sample in database_samples(folder, gpus)], ignore_index=True)


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
