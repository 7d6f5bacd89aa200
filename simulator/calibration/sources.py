"""Where measured kernels come from: published tables, aiconfigurator's database, traces of `peakline record`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from peakline.calibration.device import is_quantised
from peakline.cost.samples import GPUS, Sample, database_folder, database_samples, device_of, folder_samples
from peakline.hardware import Device

__all__ = ["AICONFIGURATOR", "kind_of_source", "samples_of"]

FORMATS = ("bfloat16", "fp8")
AICONFIGURATOR = "aiconfigurator"
"""The word for the installed package's own tables."""


def kind_of_source(source: Any) -> str:
    """What a source is: `aiconfigurator`, `database` (its folder), `reference` or `tables` (published), `trace`.

    Raises:
        ValueError: if it is none of these, saying what is accepted.
    """
    if str(source) == AICONFIGURATOR:
        return AICONFIGURATOR
    path = Path(source)
    accepted = (
        f"accepted: {AICONFIGURATOR!r}, a systems/data folder of aiconfigurator-core, a folder of published tables, "
        "or a trace that `peakline record` wrote"
    )
    if not path.exists():
        raise ValueError(f"source {str(source)!r} does not exist; {accepted}")
    if path.is_file():
        return "trace"
    if any((path / name / "gemm").is_dir() for name in GPUS):
        return "database"
    if any(path.glob("aic_*.csv.gz")) or any(path.glob("neusight_*.csv.gz")):
        return "tables"
    if any(path.glob("memory_points*.csv")) or (path / "measured").is_dir():
        return "reference"
    if any(path.glob("*.jsonl")):
        return "trace"
    raise ValueError(f"source {str(source)!r} holds neither measured tables nor traces (*.jsonl); {accepted}")


def samples_of(sources: Sequence[Any], base: Device) -> tuple[list[Sample], str]:
    """Measured kernels of one device from all sources, and the sources in words.

    Raises:
        ValueError: for an unknown source, or none that measured this device.
    """
    found: list[Sample] = []
    words: list[str] = []
    names = [gpu for gpu in GPUS if device_of(gpu).name == base.name]
    for source in sources:
        kind = kind_of_source(source)
        if kind in (AICONFIGURATOR, "database"):
            folder = database_folder() if kind == AICONFIGURATOR else Path(source)
            mine = [s for gpu in names if (folder / gpu).is_dir() for s in database_samples(folder, (gpu,), FORMATS)]
            mine = [s for s in mine if s.dtype != "fp8" or is_quantised(s)]
            tables = ", ".join(dict.fromkeys(sample.table for sample in mine))
            said = f"aiconfigurator-core {_version()} (Apache-2.0), {', '.join(names)}, {tables}"
        elif kind == "trace":
            from peakline.calibration.traces import trace_samples

            mine, said = trace_samples(source, base), f"trace {Path(source).name}"
        else:
            folder = Path(source) / "measured" if kind == "reference" else Path(source)
            mine = [s for s in folder_samples(folder) if s.gpu in names and s.source != "moe"]
            said = f"published tables: {', '.join(dict.fromkeys(sample.table for sample in mine))}"
        if mine:
            found += mine
            words.append(said)
    if not found:
        raise ValueError(
            f"{base.name}: no kernel of it was measured in {', '.join(map(str, sources))}; aiconfigurator measured "
            f"{', '.join(sorted({device_of(gpu).name for gpu in GPUS}))}"
        )
    return found, "; ".join(words)


def _version() -> str:
    try:
        return version("aiconfigurator-core")
    except PackageNotFoundError:
        return "(version unknown)"
